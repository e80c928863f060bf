// The io_uring engine's dealings with listeners and connections; uring_engine.cc has the ring.
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "engine/connection.h"
#include "engine/loop_core.h"
#include "engine/uring_engine.h"
#include "engine/uring_word.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// A piece this large is better received into one hot buffer.
constexpr size_t kLargePiece = 8 * 1024;
// What the kernel is to let go of has one to two of these for it, and stays otherwise.
constexpr absl::Duration kReleaseRound = absl::Milliseconds(500);

// So many large (small) pieces in a row make a connection change its strategy.
constexpr uint8_t kRunToChange = 8;

}  // namespace

// --- Listening ---

absl::Status UringEngine::Add(Acceptor& acceptor) {
  if (broken_) return GivenUp();
  acceptor.slot = loop_.slots().Take(SlotKind::kAcceptor, &acceptor);
  return absl::OkStatus();
}

void UringEngine::Accept(Acceptor& acceptor) {
  Slot& slot = loop_.slots().at(acceptor.slot);
  SetFlag(slot, UringBit::kAccepting);
  // One that is being cancelled is armed again by its terminal completion.
  if (!(UringWordOf(slot).armed & BitOf(RingOp::kAccept))) {
    Arm(acceptor.slot, RingOp::kAccept, acceptor.fd);
  }
}

void UringEngine::StopAccepting(Acceptor& acceptor) {
  ClearFlag(loop_.slots().at(acceptor.slot), UringBit::kAccepting);
  Cancel(acceptor.slot, RingOp::kAccept);
}

void UringEngine::Forget(Acceptor& acceptor) {
  Slot& slot = loop_.slots().at(acceptor.slot);
  // The armed operation keeps the socket alive: end listening here and now.
  sys_.Shutdown(acceptor.fd, SHUT_RD);
  if (made_ && UringWordOf(slot).armed != 0) {
    SetFlag(slot, UringBit::kLeaving);
    ClearFlag(slot, UringBit::kAccepting);
    slot.object = nullptr;
    Cancel(acceptor.slot, RingOp::kAccept);
    // Kept open until the accept has ended: one that is not submitted yet goes by the number, which
    // another socket could have by then.
    forgotten_.push_back({acceptor.slot, acceptor.fd});
  } else {
    loop_.slots().Free(acceptor.slot);
    sys_.Close(acceptor.fd);
  }
}

bool UringEngine::Release(Acceptor& acceptor) {
  Slot& slot = loop_.slots().at(acceptor.slot);
  if (made_ && UringWordOf(slot).armed != 0) {
    ClearFlag(slot, UringBit::kAccepting);
    AwaitRelease(slot);
    Cancel(acceptor.slot, RingOp::kAccept);
    return false;
  }
  loop_.slots().Free(acceptor.slot);
  return true;
}

void UringEngine::FinishForget(uint32_t slot) {
  const auto it = std::find_if(forgotten_.begin(), forgotten_.end(),
                               [slot](const Forgotten& f) { return f.slot == slot; });
  sys_.Close(it->fd);
  forgotten_.erase(it);
  loop_.slots().Free(slot);
}

void UringEngine::OrphanAcceptor(uint32_t index) {
  Slot& slot = loop_.slots().at(index);
  auto* const acceptor = static_cast<Acceptor*>(slot.object);
  if (acceptor == nullptr) return FinishForget(index);  // others forget at once
  if (acceptor->engine != this) return;
  const bool releasing = HasFlag(slot, UringBit::kReleasing);
  slot.engine_word = 0;
  if (!releasing) return;
  loop_.slots().Free(index);
  acceptor->OnReleased();
}

void UringEngine::OnAccept(const Completion& completion, Slot& slot) {
  const bool terminal = !(completion.flags & IORING_CQE_F_MORE);
  const uint32_t index = completion.token.index();
  if (terminal) Disarm(slot, RingOp::kAccept);
  auto* const acceptor = static_cast<Acceptor*>(slot.object);
  if (acceptor == nullptr) {
    // Reset, as what is left in the backlog is.
    if (features_.multishot_accept && completion.result >= 0) CloseSocket(completion.result, true);
    if (terminal) FinishForget(index);
    return;
  }
  const int result = completion.result;
  // Before the callbacks, which may destroy the acceptor. A failure is the acceptor's to answer.
  if (terminal && HasFlag(slot, UringBit::kAccepting) && (result >= 0 || result == -ECANCELED)) {
    Arm(index, RingOp::kAccept, acceptor->fd);
  }
  if (HasFlag(slot, UringBit::kReleasing)) return OnLateAccept(completion, *acceptor);
  if (result == -ECANCELED) return;
  if (!features_.multishot_accept && result > 0) return AcceptBurst(completion.token);
  if (result < 0) return acceptor->OnAcceptFailed(-result);
  acceptor->OnAccepted(result, PeerAddress(result));
}

void UringEngine::OnLateAccept(const Completion& completion, Acceptor& acceptor) {
  const int result = completion.result;
  const bool accepted = features_.multishot_accept && result >= 0;
  if (!(completion.flags & IORING_CQE_F_MORE)) {
    // Before the connection is reported, which may end the acceptor.
    loop_.slots().Free(completion.token.index());
    const SocketAddress peer = accepted ? PeerAddress(result) : SocketAddress();
    acceptor.OnReleased();
    if (accepted) acceptor.OnAccepted(result, peer);
  } else if (accepted) {
    acceptor.OnAccepted(result, PeerAddress(result));
  }
}

void UringEngine::AcceptBurst(Token token) {
  for (int i = 0; i < kAcceptBurst; ++i) {
    Slot* const slot = loop_.slots().Find(token);
    if (slot == nullptr || slot->object == nullptr || !HasFlag(*slot, UringBit::kAccepting)) return;
    if (!AcceptOnce(*static_cast<Acceptor*>(slot->object))) return;
  }
  // More may wait, and a poll reports only what is new: look again by arming anew.
  Slot* const slot = loop_.slots().Find(token);
  if (slot != nullptr && slot->object != nullptr) Cancel(token.index(), RingOp::kAccept);
}

// --- Connections ---

absl::Status UringEngine::Attach(Connection& connection) {
  if (broken_) return GivenUp();
  // A lent buffer must not hold more than the stream takes at once, nor replace one of its own.
  const bool poll_only = !features_.multishot_receive || !connection.over_tcp() ||
                         connection.receive_max() < BufferRing::kBufferSize ||
                         connection.pinned_reads();
  if (poll_only)
    SetFlag(loop_.slots().at(connection.slot()), UringBit::kPollStrategy | UringBit::kPollOnly);
  return absl::OkStatus();
}

bool UringEngine::Detach(Connection& connection) { return Part(connection, UringBit::kLeaving); }

bool UringEngine::Release(Connection& connection) { return Part(connection, UringBit::kReleasing); }

bool UringEngine::Part(Connection& connection, uint8_t how) {
  Slot& slot = loop_.slots().at(connection.slot());
  if (!made_ || UringWordOf(slot).armed == 0) return true;
  if (how == UringBit::kReleasing) {
    AwaitRelease(slot);
  } else {
    SetFlag(slot, how);
  }
  for (RingOp op : {RingOp::kReceive, RingOp::kPollRead, RingOp::kPollWrite}) {
    Cancel(connection.slot(), op);
  }
  return false;
}

void UringEngine::Parted(Connection& connection, Slot& slot) {
  if (UringWordOf(slot).armed != 0) return;
  if (HasFlag(slot, UringBit::kLeaving)) {
    connection.OnDetached();
  } else {
    connection.OnReleased();
  }
}

void UringEngine::OrphanConnection(Connection& connection, Slot& slot) {
  const UringWord word = UringWordOf(slot);
  UringWordRef(slot)->armed = 0;
  if (word.flags & UringBit::kLeaving) return connection.OnDetached();
  if ((word.armed & BitOf(RingOp::kReceive)) && receives_lost_) {
    return connection.End(absl::DataLossError("io_uring: the ring has failed, and bytes with it"),
                          true);
  }
  if (word.flags & UringBit::kReleasing) connection.OnReleased();
}

void UringEngine::AwaitRelease(Slot& slot) {
  {
    UringWordRef word(slot);
    word->flags |= UringBit::kReleasing;
    word->round = release_round_;
  }
  if (!release_timer_.armed()) ArmReleaseTimer();
}

void UringEngine::ArmReleaseTimer() {
  release_timer_.Arm(TimerWheel::DeadlineTick(sys_.Now(), kReleaseRound),
                     [this] { LookAtReleases(); });
}

void UringEngine::LookAtReleases() {
  // The kernel may not have been told yet. A ring that cannot be entered has a bound of its own.
  if (enter_failures_ != 0) return ArmReleaseTimer();
  bool others = false;
  for (uint32_t i = 0; i < loop_.slots().size(); ++i) {
    Slot* const slot = Releasing(i);
    if (slot == nullptr) continue;
    if (UringWordOf(*slot).round != release_round_) {
      Keep(*slot);
    } else {
      others = true;
    }
  }
  release_round_ ^= 1;
  if (others && !release_timer_.armed()) ArmReleaseTimer();
}

Slot* UringEngine::Releasing(uint32_t index) {
  Slot& slot = loop_.slots().at(index);
  if (slot.object == nullptr) return nullptr;
  const Engine* engine = nullptr;
  if (slot.kind() == SlotKind::kConnection) {
    engine = static_cast<Connection*>(slot.object)->engine();
  } else if (slot.kind() == SlotKind::kAcceptor) {
    engine = static_cast<Acceptor*>(slot.object)->engine;
  }
  const bool waits =
      engine == this && HasFlag(slot, UringBit::kReleasing) && !HasFlag(slot, UringBit::kLeaving);
  return waits ? &slot : nullptr;
}

void UringEngine::Keep(Slot& slot) {
  {
    // What is armed stays so. When it ends after all, it is armed again like any other.
    UringWordRef word(slot);
    word->flags &= static_cast<uint8_t>(~UringBit::kReleasing);
    word->cancelling = 0;
    word->cancels = 0;
  }
  if (slot.kind() == SlotKind::kConnection) {
    static_cast<Connection*>(slot.object)->OnNotReleased();
  } else {
    static_cast<Acceptor*>(slot.object)->OnNotReleased();
  }
}

void UringEngine::CannotCancel(uint32_t index) {
  if (Slot* const releasing = Releasing(index)) return Keep(*releasing);
  Slot& slot = loop_.slots().at(index);
  if (slot.object == nullptr || HasFlag(slot, UringBit::kLeaving)) {
    return loop_.EngineFault(
        kind(), "io_uring: an operation cannot be cancelled; what has it stays closing");
  }
  {
    // Of a paused listener, of a stream that nobody reads: told to end again when it is next to.
    UringWordRef word(slot);
    word->cancelling = 0;
    word->cancels = 0;
  }
  loop_.EngineFault(
      kind(), "io_uring: an operation cannot be cancelled, and goes on; what it brings waits");
}

bool UringEngine::MayUseRing(const Slot& slot) const {
  return !HasFlag(slot, UringBit::kPollStrategy) && buffers_.lent() > 0;
}

RingOp UringEngine::ReceiveOp(const Slot& slot) const {
  // A receive from an empty ring fails at once, bytes or no bytes, and would be armed for ever.
  const bool polls =
      HasFlag(slot, UringBit::kPollStrategy) || buffers_.starved() || buffers_.lent() == 0;
  return polls ? RingOp::kPollRead : RingOp::kReceive;
}

void UringEngine::WantRead(Connection& connection) {
  Slot& slot = loop_.slots().at(connection.slot());
  const UringWord word = UringWordOf(slot);
  // Whatever is armed, even if it is being cancelled, must end first: two receives would reorder.
  if (word.armed & (BitOf(RingOp::kReceive) | BitOf(RingOp::kPollRead))) return;
  if (word.flags & (UringBit::kReadable | UringBit::kNeedsBuffer)) return;
  Arm(connection.slot(), ReceiveOp(slot), connection.fd());
}

void UringEngine::StopRead(Connection& connection) { Cancel(connection.slot(), RingOp::kReceive); }

void UringEngine::WantWrite(Connection& connection) {
  const Slot& slot = loop_.slots().at(connection.slot());
  if (UringWordOf(slot).armed & BitOf(RingOp::kPollWrite)) return;
  Arm(connection.slot(), RingOp::kPollWrite, connection.fd());
}

bool UringEngine::Pull(Connection& connection) {
  Slot& slot = loop_.slots().at(connection.slot());
  const UringWord word = UringWordOf(slot);
  if ((word.flags & (UringBit::kReadable | UringBit::kNeedsBuffer)) != UringBit::kReadable)
    return false;
  return !(word.armed & BitOf(RingOp::kReceive)) && Receive(connection, slot);
}

bool UringEngine::Receive(Connection& connection, Slot& slot) {
  const uint64_t before = connection.bytes_in();
  const Received outcome = ReceiveOnce(connection);
  ChooseStrategy(slot, connection, connection.bytes_in() - before);
  switch (outcome) {
    case Received::kNothing:
      ClearFlag(slot, UringBit::kReadable);
      return false;
    case Received::kSome:
      return true;
    case Received::kDrained:
      if (!HasFlag(slot, UringBit::kEnding)) ClearFlag(slot, UringBit::kReadable);
      return true;
    case Received::kNoRoom:
      if (MayUseRing(slot)) {
        // The kernel has buffers of ours: let it use one. A poll that was armed while it had none
        // must end first, for it does not tell again of bytes that it has told of.
        ClearFlag(slot, UringBit::kReadable);
        Cancel(connection.slot(), RingOp::kPollRead);
        return false;
      }
      SetFlag(slot, UringBit::kNeedsBuffer);
      waiting_for_room_.push_back(loop_.slots().TokenOf(connection.slot()));
      return false;
  }
  return false;
}

void UringEngine::ChooseStrategy(Slot& slot, Connection& connection, size_t received) {
  const bool large = received >= kLargePiece;
  const UringWord now = UringWordOf(slot);
  const bool polls = now.flags & UringBit::kPollStrategy;
  // The usual: a piece like the last, and the strategy for such.
  if (now.run == 0 && now.large == large && polls == large) [[likely]]
    return;
  {
    UringWordRef word(slot);
    if ((word->flags & UringBit::kPollOnly) || received == 0) return;
    // A little behind a large piece is what did not fit, and speaks for neither.
    if (std::exchange(word->large, large) && !large) return;
    if (large == polls) {
      word->run = 0;
      return;
    }
    if (++word->run < kRunToChange) return;
    word->run = 0;
    word->flags ^= UringBit::kPollStrategy;
  }
  Cancel(connection.slot(), polls ? RingOp::kPollRead : RingOp::kReceive);
}

void UringEngine::OnPoll(const Completion& completion, Slot& slot) {
  const auto op = static_cast<RingOp>(completion.token.op());
  auto* const connection = static_cast<Connection*>(slot.object);
  if (!(completion.flags & IORING_CQE_F_MORE)) Disarm(slot, op);
  if (HasFlag(slot, UringBit::kParting)) return Parted(*connection, slot);
  if (op == RingOp::kPollWrite) return connection->OnWritable();
  if (completion.result != -ECANCELED) {
    SetFlag(slot, UringBit::kReadable);
    // An error of the poll itself leaves the plain receive to find out.
    if (completion.result < 0 || (completion.result & (POLLRDHUP | POLLHUP | POLLERR | POLLPRI))) {
      SetFlag(slot, UringBit::kEnding);
    }
  }
  connection->OnReady();
}

void UringEngine::OnReceive(const Completion& completion, Slot& slot) {
  auto* const connection = static_cast<Connection*>(slot.object);
  const bool terminal = !(completion.flags & IORING_CQE_F_MORE);
  if (terminal) Disarm(slot, RingOp::kReceive);
  if (HasFlag(slot, UringBit::kParting)) return OnLateReceive(completion, slot);
  // A terminal completion may carry bytes, so the result is looked at first (completion queue
  // full).
  if (completion.result > 0) {
    connection->OnReceived(TakeReceived(completion));
    ChooseStrategy(slot, *connection, static_cast<size_t>(completion.result));
  } else {
    OnReceiveFailed(completion, slot);
  }
  connection->OnReady();
}

void UringEngine::OnLateReceive(const Completion& completion, Slot& slot) {
  auto* const connection = static_cast<Connection*>(slot.object);
  if (HasFlag(slot, UringBit::kLeaving)) {
    DropBuffer(completion);
  } else if (completion.result > 0) {
    // Received before the kernel saw the cancel; dropping it would lose bytes of the stream (I5).
    loop_.counters().late_completions.Add(1);
    connection->OnReceived(TakeReceived(completion));
  } else {
    OnReceiveFailed(completion, slot);
  }
  Parted(*connection, slot);
}

void UringEngine::OnReceiveFailed(const Completion& completion, Slot& slot) {
  auto* const connection = static_cast<Connection*>(slot.object);
  DropBuffer(completion);
  switch (-completion.result) {
    case 0:
      return connection->OnReceiveEnded(0);
    case ENOBUFS:
      // The bytes are still in the socket: a plain receive takes them, and more buffers are lent.
      loop_.counters().ring_exhausted.Add(1);
      buffers_.Grow();
      return SetFlag(slot, UringBit::kReadable);
    case ECANCELED:
    case EINTR:
    case EAGAIN:
      return;  // armed again when the connection still wants to read
    default:
      return connection->OnReceiveEnded(-completion.result);
  }
}

Buffer UringEngine::TakeReceived(const Completion& completion) {
  const auto id = static_cast<uint16_t>(completion.flags >> IORING_CQE_BUFFER_SHIFT);
  const auto size = static_cast<size_t>(completion.result);
  if (size <= kCopyMax) {
    if (Buffer small = CopySmall(buffers_.Peek(id), size)) {
      buffers_.Relend(id);
      return small;
    }
  }
  return buffers_.Take(id, size);
}

void UringEngine::DropBuffer(const Completion& completion) {
  if (!(completion.flags & IORING_CQE_F_BUFFER)) return;
  buffers_.Relend(static_cast<uint16_t>(completion.flags >> IORING_CQE_BUFFER_SHIFT));
}

void UringEngine::OnRoom() {
  for (Token token : std::exchange(waiting_for_room_, {})) {
    Slot* const slot = loop_.slots().Find(token);
    if (slot == nullptr || HasFlag(*slot, UringBit::kLeaving)) continue;
    ClearFlag(*slot, UringBit::kNeedsBuffer);
    static_cast<Connection*>(slot->object)->OnReady();
  }
}

void UringEngine::Trim() {
  if (!made_ || !features_.multishot_receive || !features_.defer_taskrun) return;
  if (io_uring_cq_ready(&ring_) > 0 || loop_.pool().core().HasPinner()) return;
  buffers_.Trim();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
