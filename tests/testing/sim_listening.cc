// The simulated engine's dealings with listeners; sim_engine.cc has the rest.
#include <cerrno>

#include "testing/sim_engine.h"
#include "testing/sim_wire.h"

namespace penstock::testing {

using internal::Acceptor;
using internal::SlotKind;

namespace {

constexpr int kAcceptBurst = 8;

}  // namespace

absl::Status SimEngine::Add(Acceptor& acceptor) {
  acceptor.slot = loop_.slots().Take(SlotKind::kAcceptor, &acceptor);
  StateOf(acceptor.slot) = State();
  world_.WatchFd(acceptor.fd, this, TokenOf(acceptor.slot).bits());
  return absl::OkStatus();
}

void SimEngine::Accept(Acceptor& acceptor) {
  State& state = StateOf(acceptor.slot);
  state.accepting = true;
  if (!completes()) {
    QueueReady(TokenOf(acceptor.slot), world_.wire().Ready(acceptor.fd));
  } else if (!(state.armed & kAccept)) {
    // One that is being cancelled is armed again by its terminal completion.
    Arm(acceptor.slot, kAccept);
  }
}

void SimEngine::StopAccepting(Acceptor& acceptor) {
  StateOf(acceptor.slot).accepting = false;
  Cancel(acceptor.slot, kAccept);
}

void SimEngine::AcceptBurst(Token token) {
  for (int i = 0; i < kAcceptBurst; ++i) {
    Slot* const slot = loop_.slots().Find(token);
    if (slot == nullptr || slot->object == nullptr || !StateOf(token.index()).accepting) return;
    auto* const acceptor = static_cast<Acceptor*>(slot->object);
    SocketAddress peer;
    const int fd = world_.wire().Accept(acceptor->fd, &peer);
    world_.Note("accept", token.index(), static_cast<uint64_t>(fd));
    if (fd == -EAGAIN) return;
    if (fd < 0) {
      acceptor->OnAcceptFailed(-fd);
      break;
    }
    acceptor->OnAccepted(fd, peer);
  }
  // Level-triggered: what is left is reported again.
  Slot* const slot = loop_.slots().Find(token);
  if (slot == nullptr || slot->object == nullptr || !StateOf(token.index()).accepting) return;
  QueueReady(token, world_.wire().Ready(static_cast<Acceptor*>(slot->object)->fd));
}

bool SimEngine::RefuseOne(Acceptor& acceptor) {
  if (reserve_ >= 0) world_.CloseFd(reserve_);
  SocketAddress peer;
  const int fd = world_.wire().Accept(acceptor.fd, &peer);
  if (fd >= 0) world_.wire().Close(fd, false);
  reserve_ = world_.OpenFd();
  return fd >= 0;
}

void SimEngine::RestoreReserve() {
  if (reserve_ < 0) reserve_ = world_.OpenFd();
}

bool SimEngine::Release(Acceptor& acceptor) {
  State& state = StateOf(acceptor.slot);
  state.accepting = false;
  world_.UnwatchFd(acceptor.fd, this);
  if (!released_ && state.armed != 0) {
    state.releasing = true;
    Cancel(acceptor.slot, kAccept);
    return false;
  }
  loop_.slots().Free(acceptor.slot);
  return true;
}

void SimEngine::Forget(Acceptor& acceptor) {
  State& state = StateOf(acceptor.slot);
  state.accepting = false;
  if (!released_ && state.armed != 0) {
    state.leaving = true;
    Cancel(acceptor.slot, kAccept);
    loop_.slots().at(acceptor.slot).object = nullptr;
  } else {
    loop_.slots().Free(acceptor.slot);
  }
  world_.wire().Close(acceptor.fd, false);
}

}  // namespace penstock::testing
