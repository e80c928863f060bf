// SealState: one handshake on its way to a sealed stream: it gives a Handshaker the bytes of the
// stream below and sends its answers, asks for authorization, and watches the bounds.
//
// Owned by itself, through its loop's SealLoop, until it has called back; SealAttempt, the answer
// to an authorization, and what runs on an executor only look at it. Loop's thread. It reads below
// only when the Handshaker wants bytes. After a failure that the peer shall hear of it stays a
// while without its callback: an alert followed by a reset would never arrive.
#ifndef PENSTOCK_SECURE_SEAL_STATE_H_
#define PENSTOCK_SECURE_SEAL_STATE_H_

#include <penstock/export.h>
#include <penstock/handshake.h>
#include <penstock/seal.h>
#include <penstock/stream.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/timer_wheel.h"
#include "engine/connection.h"
#include "engine/deferred.h"
#include "engine/parcel.h"
#include "secure/seal_loop.h"
#include "secure/seal_queue.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Keeps the connection of a handshake on its loop, where the handshake's timers and bounds are.
class LoopAnchor final : private Layer {
 public:
  explicit LoopAnchor(Connection* connection) : connection_(connection) {
    if (connection_ != nullptr) connection_->AddLayer(*this);
  }
  ~LoopAnchor() { Lift(); }
  // Before the stream goes.
  void Lift() {
    if (connection_ != nullptr) std::exchange(connection_, nullptr)->RemoveLayer(*this);
  }

 private:
  absl::Status MayLeave() const override {
    return absl::FailedPreconditionError("a handshake is running on it");
  }
  void OnLeave() override {}
  absl::Status OnJoin(LoopCore&) override { return absl::OkStatus(); }
  void OnLost() override {}

  Connection* connection_;
};

using SealedPeerCallback = absl::AnyInvocable<void(absl::StatusOr<SealedPeer>) &&>;

class SealState final : public std::enable_shared_from_this<SealState>,
                        private SealMember,
                        private Deferred {
 public:
  SealState(SealLoop& seal_loop, StreamPtr plain, SealOptions options, SealedPeerCallback done);
  // Both keep it alive until it has called back. The second makes the handshaker when it is to
  // begin.
  void Start(std::unique_ptr<Handshaker> handshaker);
  void Start(CredentialsPtr credentials, HandshakeOptions handshake);
  void Cancel();

  // From other threads by way of the loop, and from the caller's authorization.
  void OnStepped(std::unique_ptr<Handshaker> handshaker, SealTicket ticket,
                 Handshaker::Progress progress);
  void OnJobDropped();
  void OnVerdict(absl::Status verdict);
  void OnWake();

 private:
  enum class Phase : uint8_t {
    kNew,       // Run has not been called yet
    kSilent,    // waits for the peer's first bytes
    kQueued,    // waits for a ticket
    kAdmitted,  // has one; Begin is next
    kStepping,  // the Handshaker is on the executor, and the ticket with it
    kReading,
    kAuthorizing,  // the answer may be there, in verdict_
    kWaiting,      // for the Handshaker's service
    kTelling,      // has failed and called back; the peer is being told
    kEnded,
  };

  // What NewHandshaker is called with, until it is.
  struct Making {
    CredentialsPtr credentials;
    HandshakeOptions handshake;
  };

  void Join();
  void Run();
  void EnterQueue();
  void Begin();
  void Step();
  void Advance(Handshaker::Progress progress);
  void Read();
  void OnRead(absl::StatusOr<Buffer> data);
  void Ask();
  void OnAuthorized(Handshaker::Progress progress);
  void Finish();
  void Tell(absl::Status error);
  void OnTold();
  void ReadAway();
  void OnDeadline();
  // Calls back, and is gone unless its owner on the stack holds it.
  void End(absl::StatusOr<SealedPeer> result);
  void CallDone(absl::StatusOr<SealedPeer> result);
  void OnLoopGone() override;
  absl::Status Explain(const absl::Status& status) const;
  LoopHandle loop_handle() const { return seal_loop_.core().handle(); }

  SealLoop& seal_loop_;
  std::shared_ptr<SealState> self_;
  StreamPtr plain_;
  LoopAnchor anchor_;
  std::unique_ptr<Handshaker> handshaker_;
  std::unique_ptr<Making> making_;
  SealOptions options_;
  SealedPeerCallback done_;
  SealTicket ticket_;
  CallbackTimer deadline_;
  Phase phase_ = Phase::kNew;
  bool alerted_ = false;  // the peer knows that an orderly end is none of a stream
  bool woken_ = false;
  bool begun_ = false;  // the Handshaker has made its first step, which is shown no bytes
  bool shown_ = false;  // its last step was shown rest_
  std::optional<absl::Status> verdict_;
  absl::Status failure_;  // not OK: Run ends it with this
  std::string rest_;      // received and not consumed
  size_t consumed_ = 0;
  size_t read_away_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_SEAL_STATE_H_
