#include <penstock/seal.h>

#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "base/error.h"
#include "secure/seal_state.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// How the handshaker comes, or came, to be.
using StartState = absl::FunctionRef<void(SealState& state)>;

// For whoever asks for the stream alone.
SealedPeerCallback StreamOnly(SealCallback done) {
  if (!done) return nullptr;
  return [done = std::move(done)](absl::StatusOr<SealedPeer> sealed) mutable {
    if (!sealed.ok()) return std::move(done)(sealed.status());
    std::move(done)(std::move(sealed->stream));
  };
}

SealAttempt StartSeal(StreamPtr plain, SealOptions options, SealedPeerCallback done,
                      StartState start) {
  LoopCore& core = plain->loop().core();
  absl::StatusOr<SealLoop*> seal_loop = SealLoop::Of(core);
  if (!seal_loop.ok()) {
    const SocketAddress peer = plain->peer();
    absl::Status status = PeerStatus(seal_loop.status().code(), "handshake with", &peer,
                                     std::string(seal_loop.status().message()));
    plain->Abort();
    if (!done) return SealAttempt();
    core.Post([done = std::move(done), status = std::move(status)]() mutable {
      std::move(done)(std::move(status));
    });
    return SealAttempt();
  }
  const auto state = std::make_shared<SealState>(**seal_loop, std::move(plain), std::move(options),
                                                 std::move(done));
  start(*state);
  return SealAttempt(state);
}

SealAttempt SealWith(StreamPtr plain, CredentialsPtr credentials, HandshakeOptions handshake,
                     SealOptions options, SealedPeerCallback done) {
  if (handshake.peer == SocketAddress()) handshake.peer = plain->peer();
  if (handshake.local == SocketAddress()) handshake.local = plain->local();
  if (handshake.peer_name.empty()) handshake.peer_name = handshake.peer.ToString();
  return StartSeal(std::move(plain), std::move(options), std::move(done), [&](SealState& state) {
    state.Start(std::move(credentials), std::move(handshake));
  });
}

}  // namespace
}  // namespace internal

void SealAttempt::Cancel() {
  if (const auto state = state_.lock()) state->Cancel();
}

SealAttempt Seal(StreamPtr plain, std::unique_ptr<Handshaker> handshaker, SealOptions options,
                 SealCallback done) {
  return internal::StartSeal(
      std::move(plain), std::move(options), internal::StreamOnly(std::move(done)),
      [&](internal::SealState& state) { state.Start(std::move(handshaker)); });
}

SealAttempt Seal(StreamPtr plain, CredentialsPtr credentials, HandshakeOptions handshake,
                 SealOptions options, SealCallback done) {
  return internal::SealWith(std::move(plain), std::move(credentials), std::move(handshake),
                            std::move(options), internal::StreamOnly(std::move(done)));
}

Listener::AcceptCallback SealAccepted(CredentialsPtr credentials, HandshakeOptions handshake,
                                      SealOptions options, SealedAcceptCallback on_sealed) {
  return SealIdentified(
      std::move(credentials), std::move(handshake), std::move(options),
      [on_sealed = std::move(on_sealed)](absl::StatusOr<SealedPeer> sealed) mutable {
        if (!sealed.ok()) return on_sealed(sealed.status());
        on_sealed(std::move(sealed->stream));
      });
}

Listener::AcceptCallback SealIdentified(CredentialsPtr credentials, HandshakeOptions handshake,
                                        SealOptions options, IdentifiedAcceptCallback on_sealed) {
  handshake.server = true;
  if (options.limiter == nullptr && !options.unlimited_handshakes) {
    options.limiter = std::make_shared<SealLimiter>();
  }
  return [credentials = std::move(credentials), handshake = std::move(handshake),
          options = std::move(options),
          on_sealed = std::make_shared<IdentifiedAcceptCallback>(std::move(on_sealed))](
             StreamPtr accepted) {
    internal::SealWith(
        std::move(accepted), credentials, handshake, options,
        [on_sealed](absl::StatusOr<SealedPeer> sealed) { (*on_sealed)(std::move(sealed)); });
  };
}

PENSTOCK_END_NAMESPACE
