#include "testing/sim_engine.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/error.h"
#include "buffer/pool_cache.h"
#include "testing/sim_wire.h"

namespace penstock::testing {

using internal::Acceptor;
using internal::Connection;
using internal::ConnectionState;
using internal::ErrnoStatus;
using internal::SlotKind;
using internal::SocketSetup;
using internal::Watch;

namespace {

constexpr size_t kReceiveBytes = 16 * 1024;
// Buffers the simulated ring has.
constexpr size_t kLentMax = 32;

}  // namespace

SimEngine::SimEngine(internal::LoopCore& core, SimWorld& world, EngineKind kind, SimStyle style)
    : Engine(core),
      world_(world),
      kind_(kind),
      style_(style),
      fd_(world.OpenFd()),
      reserve_(world.OpenFd()) {}

SimEngine::~SimEngine() {
  ReleaseAll();
  world_.Forget(*this);
  if (reserve_ >= 0) world_.CloseFd(reserve_);
  if (fd_ >= 0) world_.CloseFd(fd_);
}

SimEngine::State& SimEngine::StateOf(uint32_t slot) {
  if (states_.size() <= slot) states_.resize(slot + 1);
  return states_[slot];
}

// --- The queue ---

void SimEngine::Queue(Event event) {
  State& state = StateOf(event.token.index());
  event.due_ns =
      std::max(state.last_due_ns, world_.now_ns() + world_.Delay(world_.faults().event_delay_max));
  state.last_due_ns = event.due_ns;
  event.sequence = sequence_++;
  if (event.bytes) ++lent_;
  const int64_t due = event.due_ns;
  queue_.push_back(std::move(event));
  // The descriptor becomes readable: for the loop's host, or the engine that watches this one.
  world_.At(due, [this, alive = std::weak_ptr<bool>(alive_)] {
    if (!alive.expired()) world_.RaiseFd(fd_, kSimIn);
  });
}

void SimEngine::QueueReady(Token token, uint32_t events) {
  if (events == 0 || released_) return;
  for (Event& event : queue_) {
    if (event.kind != Kind::kReady || event.token.bits() != token.bits()) continue;
    event.events |= events;
    return;
  }
  Queue(Event{.token = token, .kind = Kind::kReady, .events = events});
}

void SimEngine::QueueEnd(Token token, Op op, int64_t result) {
  StateOf(token.index()).kernel &= static_cast<uint8_t>(~op);
  Queue(Event{
      .token = token, .kind = Kind::kOperation, .op = op, .terminal = true, .result = result});
}

bool SimEngine::HasDue() const {
  return std::any_of(queue_.begin(), queue_.end(),
                     [this](const Event& event) { return event.due_ns <= world_.now_ns(); });
}

bool SimEngine::TakeDue(uint64_t before, Event* event) {
  const auto due = [&](const Event& e) {
    return e.due_ns <= world_.now_ns() && e.sequence < before;
  };
  auto found = std::find_if(queue_.begin(), queue_.end(), due);
  if (found == queue_.end()) return false;
  if (world_.random().Chance(world_.faults().reorder)) {
    const auto other =
        queue_.begin() + static_cast<ptrdiff_t>(world_.random().Below(queue_.size()));
    // Events of one socket keep their order: the oldest of that socket.
    if (due(*other)) {
      found = std::find_if(queue_.begin(), queue_.end(),
                           [&](const Event& e) { return e.token.index() == other->token.index(); });
    }
  }
  *event = std::move(*found);
  queue_.erase(found);
  if (event->bytes) --lent_;
  return true;
}

void SimEngine::AddSpurious() {
  const auto slot = static_cast<uint32_t>(world_.random().Below(loop_.slots().size()));
  const Slot& at = loop_.slots().at(slot);
  if (at.kind() == SlotKind::kFree || at.object == nullptr || StateOf(slot).leaving) return;
  if (at.kind() == SlotKind::kConnection) {
    auto* const connection = static_cast<Connection*>(at.object);
    if (connection->engine() != this || connection->state() > ConnectionState::kOpen) return;
    QueueReady(TokenOf(slot), static_cast<uint32_t>(world_.random().Between(1, 3)));
  } else if (at.kind() == SlotKind::kAcceptor && !completes() &&
             static_cast<Acceptor*>(at.object)->engine == this) {
    QueueReady(TokenOf(slot), kSimIn);
  }
}

int SimEngine::Wait(int64_t timeout_ns) {
  if (timeout_ns != 0 && !HasDue()) world_.Block(*this, timeout_ns);
  if (!released_ && world_.random().Chance(world_.faults().spurious)) AddSpurious();
  const uint64_t before = sequence_;
  const int limit = static_cast<int>(std::max<uint32_t>(loop_.options().turn_events_max, 1));
  int count = 0;
  Event event;
  while (count < limit && TakeDue(before, &event)) {
    ++count;
    Dispatch(event);
    event = Event();
  }
  return count;
}

void SimEngine::Dispatch(Event& event) {
  Slot* const slot = loop_.slots().Find(event.token);
  if (event.kind == Kind::kOperation && event.op == kAccept) return DispatchAccept(event, slot);
  if (slot == nullptr || slot->object == nullptr) return;
  world_.Note("event", event.token.index(), static_cast<uint64_t>(event.kind) << 8 | event.op,
              static_cast<uint64_t>(event.result) + event.events);
  if (slot->kind() == SlotKind::kWatch) return static_cast<Watch*>(slot->object)->OnReadable();
  if (event.kind == Kind::kReady) return DispatchReady(event, *slot);
  if (event.kind == Kind::kRefusal) return DispatchRefusal(event, *slot);
  if (event.op == kReceive) return DispatchReceive(event, *slot);
  DispatchPollWrite(event, *slot);
}

void SimEngine::DispatchReady(Event& event, Slot& slot) {
  if (slot.kind() == SlotKind::kAcceptor) return AcceptBurst(event.token);
  auto* const connection = static_cast<Connection*>(slot.object);
  State& state = StateOf(event.token.index());
  if (state.leaving || state.releasing) return;
  if (!completes() && (event.events & (kSimIn | kSimEnd))) state.readable = true;
  if (event.events & (kSimOut | kSimEnd)) {
    connection->OnWritable();
  } else {
    connection->OnReady();
  }
}

void SimEngine::DispatchReceive(Event& event, Slot& slot) {
  auto* const connection = static_cast<Connection*>(slot.object);
  State& state = StateOf(event.token.index());
  const bool late = state.cancelling & kReceive;
  if (event.terminal) {
    state.armed &= static_cast<uint8_t>(~kReceive);
    state.cancelling &= static_cast<uint8_t>(~kReceive);
  }
  const SimMutant mutant = world_.mutant();
  if (mutant == SimMutant::kDropLateData && late) event.bytes.Reset();
  if (state.leaving) {
    event.bytes.Reset();
    return Parted(*connection);
  }
  if (mutant == SimMutant::kLeakBuffer && event.bytes) leaked_.push_back(event.bytes.Share());
  if (mutant == SimMutant::kEndOvertakes && event.bytes &&
      (world_.wire().Ready(connection->fd()) & kSimEnd)) {
    connection->OnReceiveEnded(0);
  } else if (event.bytes) {
    internal::SetTag(event.bytes, BufferTag::kReceive);
    if (mutant == SimMutant::kRepeatBytes) {
      Buffer again = event.bytes.Share();
      again.TrimFront(again.size() - 1);
      connection->OnReceived(std::move(again));
    }
    connection->OnReceived(std::move(event.bytes));
  } else if (event.result == -ENOBUFS) {
    // The bytes are still in the socket; a plain receive takes them.
    loop_.counters().ring_exhausted.Add(1);
    state.readable = true;
  } else if (event.result <= 0 && event.result != -ECANCELED) {
    const bool hide = mutant == SimMutant::kResetAsEof;
    connection->OnReceiveEnded(hide ? 0 : static_cast<int>(-event.result));
  }
  state.releasing ? Parted(*connection) : connection->OnReady();
}

void SimEngine::DispatchPollWrite(Event& event, Slot& slot) {
  auto* const connection = static_cast<Connection*>(slot.object);
  State& state = StateOf(event.token.index());
  state.armed &= static_cast<uint8_t>(~kPollWrite);
  state.cancelling &= static_cast<uint8_t>(~kPollWrite);
  state.leaving || state.releasing ? Parted(*connection) : connection->OnWritable();
}

void SimEngine::DispatchAccept(Event& event, Slot* slot) {
  auto* const acceptor = slot == nullptr ? nullptr : static_cast<Acceptor*>(slot->object);
  State& state = StateOf(event.token.index());
  world_.Note("accepted", event.token.index(), static_cast<uint64_t>(event.result));
  if (event.terminal) {
    state.armed = 0;
    state.cancelling = 0;
  }
  if (acceptor == nullptr) {
    Discard(event);
    if (event.terminal) loop_.slots().Free(event.token.index());
    return;
  }
  if (event.terminal && state.accepting && (event.result >= 0 || event.result == -ECANCELED)) {
    Arm(event.token.index(), kAccept);
  }
  if (state.releasing) {
    if (event.terminal) {
      loop_.slots().Free(event.token.index());
      acceptor->OnReleased();
    }
    if (event.result >= 0) acceptor->OnAccepted(static_cast<int>(event.result), event.peer);
    return;
  }
  if (event.result == -ECANCELED) return;
  if (event.result < 0) return acceptor->OnAcceptFailed(static_cast<int>(-event.result));
  acceptor->OnAccepted(static_cast<int>(event.result), event.peer);
}

void SimEngine::DispatchRefusal(Event& event, Slot& slot) {
  State& state = StateOf(event.token.index());
  if (state.leaving || !state.releasing) return;
  state.releasing = false;
  static_cast<Connection*>(slot.object)->OnNotReleased();
}

void SimEngine::OnFdEvent(uint64_t bits, uint32_t events) {
  const Token token(bits);
  Slot* const slot = loop_.slots().Find(token);
  if (slot == nullptr || slot->object == nullptr) return;
  State& state = StateOf(token.index());
  if (slot->kind() == SlotKind::kWatch) {
    Queue(Event{.token = token, .kind = Kind::kWatch});
  } else if (world_.mutant() == SimMutant::kLoseWakeup && world_.random().Chance(100)) {
    return;
  } else if (completes()) {
    Progress(token);
  } else if (slot->kind() == SlotKind::kAcceptor) {
    if (state.accepting) QueueReady(token, kSimIn);
  } else if (!state.leaving) {
    QueueReady(token, state.watches_out ? events : events & ~uint32_t{kSimOut});
  }
}

// --- The kernel's half of the completion style ---

void SimEngine::Arm(uint32_t slot, Op op) {
  State& state = StateOf(slot);
  state.armed |= op;
  state.kernel |= op;
  Progress(TokenOf(slot));
}

void SimEngine::Cancel(uint32_t slot, Op op) {
  State& state = StateOf(slot);
  if (!(state.armed & op) || (state.cancelling & op)) return;
  state.cancelling |= op;
  const Token token = TokenOf(slot);
  world_.AtLeisure([this, token, op, alive = std::weak_ptr<bool>(alive_)] {
    if (alive.expired() || released_ || loop_.slots().Find(token) == nullptr) return;
    if (StateOf(token.index()).kernel & op) QueueEnd(token, op, -ECANCELED);
  });
}

void SimEngine::Progress(Token token) {
  Slot* const slot = loop_.slots().Find(token);
  if (slot == nullptr || slot->object == nullptr) return;
  if (slot->kind() == SlotKind::kAcceptor) {
    return ProgressAccept(token, *static_cast<Acceptor*>(slot->object));
  }
  auto& connection = *static_cast<Connection*>(slot->object);
  ProgressReceive(token, connection);
  if (!(StateOf(token.index()).kernel & kPollWrite)) return;
  if (world_.wire().Ready(connection.fd()) & kSimOut) {
    QueueEnd(token, kPollWrite, kSimOut);
  } else {
    world_.wire().WantRoom(connection.fd());
  }
}

void SimEngine::ProgressReceive(Token token, Connection& connection) {
  while (StateOf(token.index()).kernel & kReceive) {
    if (!(world_.wire().Ready(connection.fd()) & kSimIn)) return;
    SimRandom& random = world_.random();
    Buffer buffer;
    if (lent_ < kLentMax && !random.Chance(world_.faults().ring_exhausted)) {
      buffer = loop_.pool().TryAllocate(kReceiveBytes, BufferTag::kRing);
    }
    if (!buffer) return QueueEnd(token, kReceive, -ENOBUFS);
    // The socket may call back into Progress when bytes move up; the data must be queued first.
    const size_t size = std::min<size_t>(buffer.tailroom(), kReceiveBytes);
    StateOf(token.index()).kernel &= static_cast<uint8_t>(~kReceive);
    buffer.Extend(size);
    const int64_t result = world_.wire().Receive(connection.fd(), buffer.mutable_data(), size);
    if (result == -EAGAIN) {
      StateOf(token.index()).kernel |= kReceive;
      return;
    }
    if (result <= 0) return QueueEnd(token, kReceive, result);
    buffer.Truncate(static_cast<size_t>(result));
    const bool terminal = random.Chance(world_.faults().early_terminal);
    if (!terminal) StateOf(token.index()).kernel |= kReceive;
    Queue(Event{.token = token,
                .kind = Kind::kOperation,
                .op = kReceive,
                .terminal = terminal,
                .result = result,
                .bytes = std::move(buffer)});
  }
}

void SimEngine::ProgressAccept(Token token, Acceptor& acceptor) {
  while (StateOf(token.index()).kernel & kAccept) {
    SocketAddress peer;
    const int fd = world_.wire().Accept(acceptor.fd, &peer);
    if (fd == -EAGAIN) return;
    if (fd < 0) return QueueEnd(token, kAccept, fd);
    const bool terminal = world_.random().Chance(world_.faults().early_terminal);
    if (terminal) StateOf(token.index()).kernel &= static_cast<uint8_t>(~kAccept);
    Queue(Event{.token = token,
                .kind = Kind::kOperation,
                .op = kAccept,
                .terminal = terminal,
                .result = fd,
                .peer = peer});
  }
}

void SimEngine::Discard(Event& event) {
  if (event.kind == Kind::kOperation && event.op == kAccept && event.result >= 0) {
    world_.wire().Close(static_cast<int>(event.result), false);
  }
}

void SimEngine::ReleaseAll() {
  if (std::exchange(released_, true)) return;
  *alive_ = false;
  alive_.reset();
  for (Event& event : queue_) Discard(event);
  queue_.clear();
  internal::SlotTable& slots = loop_.slots();
  for (uint32_t i = 0; i < slots.size(); ++i) {
    if (!StateOf(i).leaving) continue;
    StateOf(i).leaving = false;
    Slot& slot = slots.at(i);
    if (slot.kind() == SlotKind::kConnection) {
      static_cast<Connection*>(slot.object)->OnDetached();
    } else if (slot.kind() == SlotKind::kAcceptor) {
      slots.Free(i);
    }
  }
}

// --- Watches and rooms ---

absl::Status SimEngine::AddWatch(Watch& watch) {
  watch.engine = this;
  watch.slot = loop_.slots().Take(SlotKind::kWatch, &watch);
  StateOf(watch.slot) = State();
  world_.WatchFd(watch.fd, this, TokenOf(watch.slot).bits());
  return absl::OkStatus();
}

void SimEngine::RemoveWatch(uint32_t slot, int fd) {
  world_.UnwatchFd(fd, this);
  loop_.slots().Free(slot);
}

void SimEngine::OnRoom() {
  for (Token token : std::exchange(waiting_for_room_, {})) {
    Slot* const slot = loop_.slots().Find(token);
    if (slot == nullptr || StateOf(token.index()).leaving) continue;
    StateOf(token.index()).needs_buffer = false;
    static_cast<Connection*>(slot->object)->OnReady();
  }
}

// --- Sockets ---

absl::StatusOr<int> SimEngine::OpenListener(const SocketAddress& address,
                                            const SocketSetup& setup) {
  if (address.family() == AF_UNSPEC) return absl::InvalidArgumentError("listen: no address");
  const int fd = world_.wire().Listen(address, setup.backlog, setup.reuse_port);
  if (fd < 0) return ErrnoStatus(-fd, "listen on", &address);
  return fd;
}

absl::StatusOr<int> SimEngine::OpenConnecting(const SocketAddress& address, const SocketAddress&,
                                              const SocketSetup&, bool* connected) {
  if (address.family() == AF_UNSPEC) return absl::InvalidArgumentError("connect: no address");
  const int fd = world_.wire().Connect(address);
  if (fd < 0) return ErrnoStatus(-fd, "open a socket to connect to", &address);
  *connected = false;
  return fd;
}

int SimEngine::ConnectResult(int fd) { return world_.wire().ConnectResult(fd); }

SocketAddress SimEngine::LocalAddress(int fd) { return world_.wire().LocalAddress(fd); }

void SimEngine::CloseSocket(int fd, bool reset) { world_.wire().Close(fd, reset); }

int64_t SimEngine::Send(Connection& connection, std::span<const iovec> parts) {
  return world_.wire().Send(connection.fd(), parts);
}

int SimEngine::Shutdown(Connection& connection, int how) {
  return world_.wire().Shutdown(connection.fd(), how);
}

// --- Connections ---

absl::Status SimEngine::Attach(Connection& connection) {
  const SimFaults& faults = world_.faults();
  const EngineKind fails = faults.attach_failure_of;
  if ((fails == EngineKind::kAuto || fails == kind_) &&
      world_.random().Chance(faults.attach_failure)) {
    return ErrnoStatus(ENOSPC, "watch the connection to", &connection.peer());
  }
  State& state = StateOf(connection.slot());
  state = State();
  const Token token = TokenOf(connection.slot());
  world_.WatchFd(connection.fd(), this, token.bits());
  state.watches_out = connection.state() == ConnectionState::kConnecting;
  if (!completes()) {
    const uint32_t events = world_.wire().Ready(connection.fd());
    QueueReady(token, state.watches_out ? events : events & ~uint32_t{kSimOut});
  }
  return absl::OkStatus();
}

bool SimEngine::Detach(Connection& connection) {
  State& state = StateOf(connection.slot());
  if (released_ || state.armed == 0) {
    world_.UnwatchFd(connection.fd(), this);
    return true;
  }
  state.leaving = true;
  Cancel(connection.slot(), kReceive);
  Cancel(connection.slot(), kPollWrite);
  return false;
}

bool SimEngine::Release(Connection& connection) {
  const SimMutant mutant = world_.mutant();
  State& state = StateOf(connection.slot());
  if (mutant == SimMutant::kTwoOwners && state.armed != 0) return true;
  if (!released_ && (state.armed & kReceive) && !(state.cancelling & kReceive) &&
      world_.random().Chance(world_.faults().cancel_refused)) {
    state.releasing = true;
    Cancel(connection.slot(), kPollWrite);
    RefuseRelease(TokenOf(connection.slot()));
    return false;
  }
  if (Detach(connection)) return true;
  state.leaving = false;
  state.releasing = true;
  return mutant == SimMutant::kSkipTerminal;
}

void SimEngine::RefuseRelease(Token token) {
  world_.At(world_.now_ns() + world_.Delay(world_.faults().event_delay_max),
            [this, token, alive = std::weak_ptr<bool>(alive_)] {
              if (alive.expired() || released_ || loop_.slots().Find(token) == nullptr) return;
              Queue(Event{.token = token, .kind = Kind::kRefusal});
            });
}

void SimEngine::Parted(Connection& connection) {
  State& state = StateOf(connection.slot());
  if (state.armed != 0) return;
  world_.UnwatchFd(connection.fd(), this);
  if (std::exchange(state.leaving, false)) return connection.OnDetached();
  connection.OnReleased();
}

bool SimEngine::WaitForRoom(Connection& connection) {
  loop_.WaitForRoom();
  StateOf(connection.slot()).needs_buffer = true;
  waiting_for_room_.push_back(TokenOf(connection.slot()));
  return false;
}

bool SimEngine::Pull(Connection& connection) {
  State& state = StateOf(connection.slot());
  if (!state.readable || state.needs_buffer || (state.armed & kReceive)) return false;
  const Token token = TokenOf(connection.slot());
  if (!completes() && world_.random().Chance(world_.faults().receive_again)) {
    state.readable = false;
    QueueReady(token, kSimIn);
    return false;
  }
  const size_t size = connection.receive_size();
  Buffer buffer = loop_.cache().TryAllocate(size, BufferTag::kReceive);
  if (!buffer) return WaitForRoom(connection);
  buffer.Extend(size);
  const int64_t result = world_.wire().Receive(connection.fd(), buffer.mutable_data(), size);
  const SimMutant mutant = world_.mutant();
  if (result == -EAGAIN) {
    state.readable = false;
    return false;
  }
  if (result <= 0) {
    connection.OnReceiveEnded(mutant == SimMutant::kResetAsEof ? 0 : static_cast<int>(-result));
    return true;
  }
  buffer.Truncate(static_cast<size_t>(result));
  if (mutant == SimMutant::kLeakBuffer) leaked_.push_back(buffer.Share());
  if (mutant == SimMutant::kEndOvertakes && (world_.wire().Ready(connection.fd()) & kSimEnd)) {
    connection.OnReceiveEnded(0);
    return true;
  }
  connection.AdaptReceiveSize(static_cast<size_t>(result));
  connection.OnReceived(std::move(buffer));
  return true;
}

void SimEngine::WantRead(Connection& connection) {
  const State& state = StateOf(connection.slot());
  if (!completes() || (state.armed & kReceive) || state.readable || state.needs_buffer) return;
  Arm(connection.slot(), kReceive);
}

void SimEngine::StopRead(Connection& connection) { Cancel(connection.slot(), kReceive); }

void SimEngine::WantWrite(Connection& connection) {
  world_.Note("want write", connection.slot());
  State& state = StateOf(connection.slot());
  if (completes()) {
    if (!(state.armed & kPollWrite)) Arm(connection.slot(), kPollWrite);
  } else if (!std::exchange(state.watches_out, true)) {
    QueueReady(TokenOf(connection.slot()), world_.wire().Ready(connection.fd()) & kSimOut);
  }
}

}  // namespace penstock::testing
