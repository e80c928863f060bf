// AltsHandshaker: a conversation with the handshaker service, whose frames go to and from the peer.
//
// Owns its AltsChannel for as long as it lives. One request is outstanding at a time; what the
// service has not consumed stays the driver's, so the bytes behind the handshake are exact. Single-
// threaded, the channel's callbacks included.
#ifndef PENSTOCK_SECURE_ALTS_HANDSHAKER_H_
#define PENSTOCK_SECURE_ALTS_HANDSHAKER_H_

#include <penstock/alts_service.h>
#include <penstock/export.h>
#include <penstock/handshake.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "secure/alts_messages.h"
#include "secure/frame_sizes.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class AltsHandshaker final : public Handshaker {
 public:
  // `slot` is held until the handshake is over; `options` lives as long as `slot`.
  AltsHandshaker(std::shared_ptr<const AltsServiceOptions> options, std::shared_ptr<void> slot,
                 std::unique_ptr<AltsChannel> channel, const HandshakeOptions& handshake,
                 const FrameSizes& frames);
  ~AltsHandshaker() override;
  // The service's answers come on the loop's thread.
  bool MayStepElsewhere() const override { return false; }

  Progress Step(std::string_view in) override;
  Progress Authorize(const absl::Status& verdict) override;
  const PeerIdentity& peer() const override { return result_.peer; }
  HandshakeResult TakeResult() override { return std::move(result_); }
  absl::Status OnPeerEnd() override;
  std::string_view phase() const override;
  void SetWake(absl::AnyInvocable<void()> wake) override {
    wake_ = std::make_shared<absl::AnyInvocable<void()>>(std::move(wake));
  }

 private:
  enum class Phase : uint8_t {
    kStart,    // nothing asked yet
    kPeer,     // needs bytes from the peer
    kService,  // needs the service's answer
    kVerdict,
    kDone,
    kFailed,
  };

  void OnResponse(absl::StatusOr<std::string> response);
  // Forgets the service's last answer, which may hold a key.
  void DropResponse();
  // Go on with the bytes not consumed yet; false when that must wait.
  bool Ask(std::string_view rest);
  bool TakeResponse(std::string_view rest, size_t& consumed);
  // Everything that must be right before a result is believed.
  absl::Status CheckResult(const AltsResult& result) const;
  void Accept(AltsResult result);
  void Send(std::string request, size_t offered);
  void Fail(absl::Status error);
  Progress Report(size_t consumed);

  const std::shared_ptr<const AltsServiceOptions> options_;
  std::shared_ptr<void> slot_;
  const std::unique_ptr<AltsChannel> channel_;
  const HandshakeOptions handshake_;
  const FrameSizes frames_;
  std::shared_ptr<absl::AnyInvocable<void()>> wake_;  // may drop this handshaker as it runs

  Phase phase_ = Phase::kStart;
  bool stepping_ = false;
  std::optional<absl::StatusOr<std::string>> response_;
  size_t offered_ = 0;        // of the bytes not consumed, how many the service has seen
  size_t taken_ = 0;          // bytes consumed so far
  bool peer_answers_ = true;  // the last response had something to send to the peer
  std::string out_;
  std::string held_;  // the last frames of a client, until the verdict
  absl::Status error_;
  HandshakeResult result_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_ALTS_HANDSHAKER_H_
