#include "engine/epoll_engine.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// The bits of a slot's engine word.
struct EpollBit {
  // Of a connection: bytes or an end may wait; an end or an urgent byte is near, so that a short
  // receive proves nothing; EPOLLOUT is registered; it is on waiting_for_room_.
  static constexpr uint64_t kReadable = 1;
  static constexpr uint64_t kEnding = 2;
  static constexpr uint64_t kOutWatched = 4;
  static constexpr uint64_t kNeedsBuffer = 8;
  // Of an acceptor.
  static constexpr uint64_t kAccepting = 1;
};

// More than 256 costs time again (one event array no longer fits the first cache).
constexpr uint32_t kEventsMax = 256;

constexpr uint32_t kReadEvents = EPOLLIN | EPOLLRDHUP | EPOLLPRI | EPOLLET;
// recv stops short at an urgent mark, and an end that has been announced raises no new edge.
constexpr uint32_t kEndingEvents = EPOLLRDHUP | EPOLLHUP | EPOLLERR | EPOLLPRI;
// EPOLLHUP is told whether asked for or not (a listening socket that others have shut down has it
// for ever): as an edge it is told once.
constexpr uint32_t kNoEvents = EPOLLET;

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> EpollEngine::Create(LoopCore& loop) {
  const int epoll = loop.sys().EpollCreate();
  if (epoll < 0) return ErrnoStatus(-epoll, "epoll_create1 for a loop", nullptr);
  std::unique_ptr<EpollEngine> engine(new EpollEngine(loop, epoll));
  if (absl::Status status = engine->HasReserve(); !status.ok()) return status;
  return engine;
}

EpollEngine::EpollEngine(LoopCore& loop, int epoll)
    : SocketEngine(loop),
      epoll_(epoll),
      events_max_(
          static_cast<int>(std::clamp<uint32_t>(loop.options().turn_events_max, 1, kEventsMax))),
      events_(static_cast<size_t>(events_max_)) {}

EpollEngine::~EpollEngine() { sys_.Close(epoll_); }

int EpollEngine::Wait(int64_t timeout_ns) {
  loop_.counters().syscalls.Add(1);
  const int count = timeout_ns == 0 ? Ask(0) : loop_.Sleep([&] { return Ask(timeout_ns); });
  if (count < 0) [[unlikely]]
    return WaitFailed(-count);
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) loop_.slots().Prefetch(Token(events_[i + 1].data.u64));
    Dispatch(events_[i]);
  }
  return count;
}

int EpollEngine::WaitFailed(int error) {
  loop_.DoubtAlarm();
  loop_.EngineFault(kind(), ErrnoStatus(error, "epoll_wait", nullptr).ToString());
  return 0;
}

int EpollEngine::Ask(int64_t timeout_ns) {
  return direct_ ? sys_.Sys::EpollWait(epoll_, events_.data(), events_max_, timeout_ns)
                 : sys_.EpollWait(epoll_, events_.data(), events_max_, timeout_ns);
}

void EpollEngine::Dispatch(const epoll_event& event) {
  const Token token(event.data.u64);
  Slot* const slot = loop_.slots().Find(token);
  if (slot == nullptr) return;  // freed by an earlier event of this batch
  switch (slot->kind()) {
    case SlotKind::kConnection: {
      auto* const connection = static_cast<Connection*>(slot->object);
      if (event.events & ~EPOLLOUT) slot->engine_word |= EpollBit::kReadable;
      if (event.events & kEndingEvents) slot->engine_word |= EpollBit::kEnding;
      if (event.events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
        connection->OnWritable();
      } else {
        connection->OnReady();
      }
      break;
    }
    case SlotKind::kAcceptor:
      AcceptBurst(token, event.events & EPOLLHUP);
      break;
    case SlotKind::kWatch:
      static_cast<Watch*>(slot->object)->OnReadable();
      break;
    case SlotKind::kFree:
      break;
  }
}

void EpollEngine::AcceptBurst(Token token, bool shut_down) {
  for (int i = 0; i < kAcceptBurst; ++i) {
    // The callback may have stopped or destroyed the listener.
    Slot* const slot = loop_.slots().Find(token);
    if (slot == nullptr || !(slot->engine_word & EpollBit::kAccepting)) return;
    auto& acceptor = *static_cast<Acceptor*>(slot->object);
    if (AcceptOnce(acceptor)) continue;
    // TCP says EINVAL then, Unix sockets EAGAIN for ever.
    if (shut_down) acceptor.OnAcceptFailed(EINVAL);
    return;
  }
}

absl::Status EpollEngine::Control(int op, int fd, uint32_t events, uint32_t slot,
                                  const char* what) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = loop_.slots().TokenOf(slot).bits();
  loop_.counters().syscalls.Add(1);
  const int result = sys_.EpollControl(epoll_, op, fd, &event);
  return result < 0 ? ErrnoStatus(-result, what, nullptr) : absl::OkStatus();
}

absl::Status EpollEngine::AddWatch(Watch& watch) {
  const uint32_t slot = loop_.slots().Take(SlotKind::kWatch, &watch);
  absl::Status status =
      Control(EPOLL_CTL_ADD, watch.fd, EPOLLIN | EPOLLET, slot, "epoll: watch a descriptor");
  if (!status.ok()) {
    loop_.slots().Free(slot);
    return status;
  }
  watch.slot = slot;
  watch.engine = this;
  return status;
}

void EpollEngine::RemoveWatch(uint32_t slot, int fd) {
  sys_.EpollControl(epoll_, EPOLL_CTL_DEL, fd, nullptr);
  loop_.slots().Free(slot);
}

void EpollEngine::OnRoom() {
  for (Token token : std::exchange(waiting_for_room_, {})) {
    Slot* const slot = loop_.slots().Find(token);
    if (slot == nullptr) continue;
    slot->engine_word &= ~EpollBit::kNeedsBuffer;
    static_cast<Connection*>(slot->object)->OnReady();
  }
}

// --- Listening ---

absl::Status EpollEngine::Add(Acceptor& acceptor) {
  acceptor.slot = loop_.slots().Take(SlotKind::kAcceptor, &acceptor);
  absl::Status status =
      Control(EPOLL_CTL_ADD, acceptor.fd, kNoEvents, acceptor.slot, "epoll: add listener");
  if (!status.ok()) loop_.slots().Free(acceptor.slot);
  return status;
}

void EpollEngine::Accept(Acceptor& acceptor) {
  Slot& slot = loop_.slots().at(acceptor.slot);
  if (slot.engine_word & EpollBit::kAccepting) return;
  slot.engine_word |= EpollBit::kAccepting;
  // Level-triggered: what waits in the backlog is reported again and again, however little a turn
  // takes.
  const absl::Status status =
      Control(EPOLL_CTL_MOD, acceptor.fd, EPOLLIN, acceptor.slot, "epoll: start accepting");
  if (!status.ok()) loop_.EngineFault(kind(), status.ToString());
}

void EpollEngine::StopAccepting(Acceptor& acceptor) {
  Slot& slot = loop_.slots().at(acceptor.slot);
  if (!(slot.engine_word & EpollBit::kAccepting)) return;
  slot.engine_word &= ~EpollBit::kAccepting;
  const absl::Status status =
      Control(EPOLL_CTL_MOD, acceptor.fd, kNoEvents, acceptor.slot, "epoll: stop accepting");
  if (!status.ok()) loop_.EngineFault(kind(), status.ToString());
}

void EpollEngine::Forget(Acceptor& acceptor) {
  Release(acceptor);
  sys_.Close(acceptor.fd);
}

bool EpollEngine::Release(Acceptor& acceptor) {
  sys_.EpollControl(epoll_, EPOLL_CTL_DEL, acceptor.fd, nullptr);
  loop_.slots().Free(acceptor.slot);
  return true;
}

// --- Connections ---

absl::Status EpollEngine::Attach(Connection& connection) {
  uint32_t events = kReadEvents;
  if (connection.state() == ConnectionState::kConnecting) {
    events |= EPOLLOUT;
    loop_.slots().at(connection.slot()).engine_word |= EpollBit::kOutWatched;
  }
  // Bytes that already wait raise the first edge at once (EPOLL_CTL_ADD with EPOLLET).
  return Control(EPOLL_CTL_ADD, connection.fd(), events, connection.slot(),
                 "epoll: add connection");
}

bool EpollEngine::Detach(Connection& connection) {
  loop_.counters().syscalls.Add(1);
  sys_.EpollControl(epoll_, EPOLL_CTL_DEL, connection.fd(), nullptr);
  return true;
}

bool EpollEngine::Pull(Connection& connection) {
  Slot& slot = loop_.slots().at(connection.slot());
  constexpr uint64_t kMask = EpollBit::kReadable | EpollBit::kNeedsBuffer;
  return (slot.engine_word & kMask) == EpollBit::kReadable && Receive(connection, slot);
}

bool EpollEngine::Receive(Connection& connection, Slot& slot) {
  switch (ReceiveOnce(connection)) {
    case Received::kNothing:
      slot.engine_word &= ~EpollBit::kReadable;
      return false;
    case Received::kSome:
      return true;
    case Received::kDrained:
      if (!(slot.engine_word & EpollBit::kEnding)) slot.engine_word &= ~EpollBit::kReadable;
      return true;
    case Received::kNoRoom:
      slot.engine_word |= EpollBit::kNeedsBuffer;
      waiting_for_room_.push_back(loop_.slots().TokenOf(connection.slot()));
      return false;
  }
  return false;
}

void EpollEngine::WantWrite(Connection& connection) {
  Slot& slot = loop_.slots().at(connection.slot());
  // Registered at the first need and kept: on a Unix socket it costs a wake-up for every read of
  // the peer (unix_write_space), on TCP nothing.
  if (slot.engine_word & EpollBit::kOutWatched) return;
  slot.engine_word |= EpollBit::kOutWatched;
  const absl::Status status = Control(EPOLL_CTL_MOD, connection.fd(), kReadEvents | EPOLLOUT,
                                      connection.slot(), "epoll: watch for writability");
  if (!status.ok()) connection.End(status, true);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
