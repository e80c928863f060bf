// TlsHandshaker: one TLS handshake, the messages that end it, and the keys that come out.
//
// Owns the SSL with its two memory BIOs until the end, successful or not, and nothing after it. The
// order is what keeps the switch safe: a client switches when the server has confirmed, a server
// confirms when it has verified the client's Finished, identity, hello and authorisation; nobody
// exports keys before that. Bytes behind the last TLS record stay the driver's.
#ifndef PENSTOCK_SECURE_TLS_HANDSHAKER_H_
#define PENSTOCK_SECURE_TLS_HANDSHAKER_H_

#include <penstock/export.h>
#include <penstock/handshake.h>

#include <memory>
#include <string>
#include <string_view>

#include "secure/frame_sizes.h"
#include "secure/tls_context.h"
#include "secure/tls_hello.h"
#include "secure/tls_notes.h"
#include "secure/tls_ptr.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class TlsHandshaker final : public Handshaker {
 public:
  static absl::StatusOr<std::unique_ptr<Handshaker>> Make(std::shared_ptr<const TlsContext> context,
                                                          const HandshakeOptions& options);

  Progress Step(std::string_view in) override;
  Progress Authorize(const absl::Status& verdict) override;
  const PeerIdentity& peer() const override { return result_.peer; }
  HandshakeResult TakeResult() override { return std::move(result_); }
  absl::Status OnPeerEnd() override;
  std::string_view phase() const override;
  bool FailsWithAnAlert() const override { return true; }
  void SetWake(absl::AnyInvocable<void()>) override {}

 private:
  enum class Phase : uint8_t { kTls, kVerdict, kHello, kDone, kFailed };

  TlsHandshaker(std::shared_ptr<const TlsContext> context, const HandshakeOptions& options,
                const FrameSizes& frames)
      : context_(std::move(context)), options_(options), frames_(frames) {}

  // Each goes on from one phase, and returns false when it must wait for bytes or a verdict.
  bool AdvanceTls();
  bool AdvanceHello();
  void OnTlsDone();
  void OnHello(std::string_view message);
  void OnConfirmation(const TlsHello& confirm, std::string_view message);
  void Confirm();
  void Refuse(const absl::Status& verdict);

  absl::Status CheckSession() const;
  absl::Status Identify();
  absl::Status DeriveKeys();
  absl::Status SendHello(TlsHello::Kind kind, std::string& kept);

  // Why OpenSSL's call that returned `result` failed.
  absl::Status TlsError(int result);
  void Fail(absl::Status error);
  // The same, once TLS itself is complete: a server tells the peer by `alert`, a client closes.
  void FailWithAlert(absl::Status error, int alert);
  void Finish();
  Progress Report(size_t consumed);
  absl::Status Describe(const absl::Status& error) const;

  const std::shared_ptr<const TlsContext> context_;
  const HandshakeOptions options_;
  const FrameSizes frames_;
  TlsNotes notes_;
  SslPtr ssl_;
  Phase phase_ = Phase::kTls;
  size_t taken_ = 0;  // bytes of input
  std::string out_;
  std::string hello_;    // the client's message
  std::string confirm_;  // the server's
  absl::Status error_;
  HandshakeResult result_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_TLS_HANDSHAKER_H_
