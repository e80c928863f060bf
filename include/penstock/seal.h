// Seal: a handshake over a stream, and then a sealed stream in its place.
//
//   Seal(std::move(stream), credentials, {.verify_name = "pump.example"}, {},
//        [](absl::StatusOr<StreamPtr> sealed) { ... });
//
// Takes any Stream and gives a Stream with the same contract, whose bytes travel as records that
// nobody on the way can read, alter, drop, repeat or move without the stream ending with an error.
// What differs from a socket stream:
//   - stats() counts plaintext; sealed_pinned_bytes is what this layer holds, 0 while it waits.
//   - Native mode: ShutdownWrite, and destroying a stream that has sent everything, tell the peer
//     with an authenticated record that this was all. The end of the stream below without it is
//     DataLoss. (A loop that goes first tells nobody.)
//   - gRPC mode: there is no such record, and IsUnauthenticatedEof holds for every end of stream.
//     Inside a record it is DataLoss.
//   - One record that is not the next of this stream ends it: reads and writes fail with
//     Unauthenticated (or InvalidArgument, when it is no record at all) and the peer sees a reset.
//   - Bounds are those of the stream below, counted in plaintext. Deadlines are those of the stream
//     below, whose bytes count: one of a record that is not in whole yet keeps a read deadline off,
//     although it brings no plaintext. Who wants plaintext in time runs a timer and CancelRead.
// Identities are known while the handshake runs, on either side: SealOptions::authorize is shown
// the peer's, and copies what it wants to keep. With the stream SealIdentified tells it, to
// servers; Seal, coro::Seal and SealAccepted give the stream alone.
//
// Everything belongs to the loop's thread, except SealLimiter.
#ifndef PENSTOCK_SEAL_H_
#define PENSTOCK_SEAL_H_

#include <penstock/export.h>
#include <penstock/handshake.h>
#include <penstock/listener.h>
#include <penstock/resolve.h>
#include <penstock/stream.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE

namespace internal {
class SealQueue;
class SealState;
}  // namespace internal

// Figures of a SealLimiter.
struct SealLimiterStats {
  uint32_t running = 0;  // handshakes under way
  uint32_t waiting = 0;
  uint64_t admitted = 0;
  uint64_t refused = 0;
};

// Bounds how many handshakes run at once: each costs about a millisecond of a processor and some
// 35 KB while it runs. Those beyond wait their turn, with their deadline running, and those beyond
// that are refused (ResourceExhausted) and counted. A server waits for its peer's first bytes
// before it asks for a turn, and keeps what one receive brought meanwhile: silent peers fill no
// queue. Share one between loops; any thread.
class PENSTOCK_EXPORT SealLimiter {
 public:
  static constexpr uint32_t kRunningMax = 256;
  static constexpr uint32_t kWaitingMax = 4096;

  // `running_max` at least 1.
  explicit SealLimiter(uint32_t running_max = kRunningMax, uint32_t waiting_max = kWaitingMax);
  ~SealLimiter();
  SealLimiter(const SealLimiter&) = delete;
  SealLimiter& operator=(const SealLimiter&) = delete;
  SealLimiterStats stats() const;

 private:
  friend class internal::SealState;
  std::shared_ptr<internal::SealQueue> queue_;
};

// Answers an authorization: OK admits the peer. Any other status refuses it: Seal ends with
// PermissionDenied and that status's message here, and with PermissionDenied, without it, at a peer
// that speaks TLS; other handshakes have no words for it, and the peer sees a reset, of its stream
// if it has that by then. Loop's thread; at once or later. Destroyed without a call, it refuses.
using AuthorizeAnswer = absl::AnyInvocable<void(absl::Status verdict) &&>;

// Asked about every peer that has proved who it is. `below` is the stream that will be sealed, for
// its addresses. Both references hold until the answer, or until the handshake ends without it
// (deadline, Cancel, the loop's end): an answer that comes later works on copies.
using Authorizer =
    std::function<void(const PeerIdentity& peer, const Stream& below, AuthorizeAnswer answer)>;

struct SealOptions {
  // From Seal to its end, the wait for a SealLimiter included.
  absl::Duration deadline = absl::Seconds(10);
  // Bytes of handshake taken from the peer. TLS has HandshakeOptions::input_max besides, and takes
  // lists of certificates of at most 32 KiB: the smallest of them holds.
  size_t handshake_bytes_max = 64 * 1024;
  // Empty: everyone whom the credentials accept.
  Authorizer authorize;
  // Where to run the steps of the handshake, which sign and verify for a millisecond or so; null:
  // on the loop, as where Handshaker::MayStepElsewhere says no. Must outlive the handshakes.
  Executor* executor = nullptr;
  // Null: Seal bounds nothing, and SealAccepted makes one with the usual bounds for what it
  // accepts.
  std::shared_ptr<SealLimiter> limiter;
  // SealAccepted without a limiter takes any number of handshakes at once.
  bool unlimited_handshakes = false;
};

using SealCallback = absl::AnyInvocable<void(absl::StatusOr<StreamPtr>) &&>;

// A way to give a handshake up. Dropping it lets the handshake go on. Loop's thread.
class PENSTOCK_EXPORT SealAttempt {
 public:
  SealAttempt() = default;
  explicit SealAttempt(std::weak_ptr<internal::SealState> state) : state_(std::move(state)) {}
  // The callback runs with Cancelled, unless the attempt has already ended.
  void Cancel();

 private:
  std::weak_ptr<internal::SealState> state_;
};

// Runs `handshaker` over `plain`, which has no operation pending and whose send queue holds a few
// KiB at least, and calls `done` once, in a later turn: with the sealed stream, or, `plain` being
// given up, with Unauthenticated, PermissionDenied (either side's authorization), InvalidArgument
// (the peer speaks no handshake of ours), DataLoss or Unavailable (the peer has left),
// DeadlineExceeded, Cancelled, ResourceExhausted (a bound), Unimplemented (no AES-GCM here), each
// naming the peer. A peer that is refused is told so before the end, where its handshake has words
// for that: the connection stays up to 2 s longer, and counts as open. It ends in order behind a
// TLS alert; every other failure resets it, for a peer that is done with its part would take an
// orderly end for one of the stream; a reset may overtake what it comes behind.
//
// `done` is destroyed unrun when the loop goes first. When it is empty nobody is told, and nobody
// gets the sealed stream: it ends as soon as it is there.
PENSTOCK_EXPORT SealAttempt Seal(StreamPtr plain, std::unique_ptr<Handshaker> handshaker,
                                 SealOptions options, SealCallback done);

// The same with a handshaker of `credentials`, made when it is its turn: after the peer's first
// bytes where those come first, and after the wait for a SealLimiter. What NewHandshaker says
// against the options goes to `done`. Of `handshake`, both addresses are the stream's, and
// `peer_name` is the peer's address, when they are empty.
PENSTOCK_EXPORT SealAttempt Seal(StreamPtr plain, CredentialsPtr credentials,
                                 HandshakeOptions handshake, SealOptions options,
                                 SealCallback done);

// Receives each stream that was accepted and sealed, or why one was not. Loop's thread. Not empty.
using SealedAcceptCallback = absl::AnyInvocable<void(absl::StatusOr<StreamPtr>)>;

// For Listener::Listen: seals, as the server, whatever is accepted. Handshakes under way go on when
// the listener goes, and `on_sealed` lives as long as they do.
PENSTOCK_EXPORT Listener::AcceptCallback SealAccepted(CredentialsPtr credentials,
                                                      HandshakeOptions handshake,
                                                      SealOptions options,
                                                      SealedAcceptCallback on_sealed);

// A stream that was accepted and sealed, and who has proved to be at its other end.
struct SealedPeer {
  StreamPtr stream;
  PeerIdentity identity;
};
using IdentifiedAcceptCallback = absl::AnyInvocable<void(absl::StatusOr<SealedPeer>)>;

// As SealAccepted, and tells who it is besides: for servers whose answers depend on that.
PENSTOCK_EXPORT Listener::AcceptCallback SealIdentified(CredentialsPtr credentials,
                                                        HandshakeOptions handshake,
                                                        SealOptions options,
                                                        IdentifiedAcceptCallback on_sealed);

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SEAL_H_
