#include "engine/uring_engine.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr unsigned kSubmissions = 256;
// Completions the kernel may post before we look: at least four for each submission (a multishot
// operation posts many), or it falls back to a slower overflow list.
constexpr unsigned kCompletions = 4096;

// A piece this large is better received into one hot buffer.
constexpr size_t kLargePiece = 8 * 1024;
// So many large (small) pieces in a row make a connection change its strategy.
constexpr uint8_t kRunToChange = 8;
// A cancel that found nothing while its target is armed is repeated this often by token, then by
// descriptor (seen on 6.11: the operation lived and its token was not found).
constexpr uint8_t kCancelByToken = 4;
constexpr uint8_t kCancelMax = 100;

// The engine word of a slot.
struct Word {
  uint8_t armed = 0;       // operations the kernel holds, a bit each
  uint8_t cancelling = 0;  // of these, told to end
  uint8_t flags = 0;
  uint8_t run = 0;      // pieces in a row that speak for the other strategy
  uint8_t cancels = 0;  // repeated
  uint8_t unused[3] = {};
};
static_assert(sizeof(Word) == sizeof(uint64_t));

struct UringBit {
  static constexpr uint8_t kReadable = 1;      // bytes or an end may wait for a plain recv
  static constexpr uint8_t kEnding = 2;        // an end is near: a short receive proves nothing
  static constexpr uint8_t kPollStrategy = 4;  // poll, then receive
  static constexpr uint8_t kPollOnly = 8;      // for good
  static constexpr uint8_t kLeaving = 16;      // detaching, or its acceptor forgotten
  static constexpr uint8_t kNeedsBuffer = 32;  // on waiting_for_room_
  static constexpr uint8_t kAccepting = 64;    // an acceptor that takes connections
};

Word WordOf(const Slot& slot) { return std::bit_cast<Word>(slot.engine_word); }

// Changes the word of a slot in place.
class WordRef {
 public:
  explicit WordRef(Slot& slot) : slot_(slot), word_(WordOf(slot)) {}
  ~WordRef() { slot_.engine_word = std::bit_cast<uint64_t>(word_); }
  Word* operator->() { return &word_; }

 private:
  Slot& slot_;
  Word word_;
};

void SetFlag(Slot& slot, uint8_t flag) { WordRef(slot)->flags |= flag; }
void ClearFlag(Slot& slot, uint8_t flag) { WordRef(slot)->flags &= static_cast<uint8_t>(~flag); }
bool HasFlag(const Slot& slot, uint8_t flag) { return WordOf(slot).flags & flag; }

constexpr uint8_t BitOf(RingOp op) { return static_cast<uint8_t>(1u << static_cast<unsigned>(op)); }
static_assert(static_cast<unsigned>(RingOp::kWatch) < 8);

// A cancel's token is its target's with this bit in the operation.
constexpr uint8_t kCancelBit = 0x80;

Token WithOp(const SlotTable& slots, uint32_t slot, RingOp op, uint8_t extra = 0) {
  return slots.TokenOf(slot, static_cast<uint8_t>(op) | extra);
}

constexpr uint32_t kReadPoll = POLLIN | POLLRDHUP | POLLPRI;

}  // namespace

UringEngine::UringEngine(LoopCore& loop) : SocketEngine(loop), buffers_(loop.sys()) {}

absl::Status UringEngine::FitsAuto(Sys& sys) {
  absl::StatusOr<UringFeatures> features = ProbeUring(sys);
  if (!features.ok()) return features.status();
  const auto lacks = [](const char* what) {
    return absl::UnimplementedError(absl::StrCat("io_uring: no ", what));
  };
  if (!features->defer_taskrun) return lacks("DEFER_TASKRUN (kernel 6.1)");
  if (!features->multishot_accept) return lacks("multishot accept (kernel 5.19)");
  if (!features->buffer_ring) return lacks("buffer rings (kernel 5.19)");
  if (!features->multishot_receive) return lacks("multishot receive (kernel 6.0)");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Engine>> UringEngine::Create(LoopCore& loop) {
  std::unique_ptr<UringEngine> engine(new UringEngine(loop));
  if (absl::Status status = engine->Start(); !status.ok()) return status;
  return engine;
}

absl::Status UringEngine::Start() {
  absl::StatusOr<UringFeatures> features = ProbeUring(sys_);
  if (!features.ok()) return features.status();
  features_ = *features;
  const uint32_t flags = SetupFlags(features_) | IORING_SETUP_R_DISABLED;
  if (absl::Status s = SetUpRing(sys_, kSubmissions, kCompletions, flags, &ring_); !s.ok()) {
    return s;
  }
  made_ = true;
  if (!features_.multishot_receive) return absl::OkStatus();
  const uint32_t wanted = std::clamp<uint32_t>(loop_.options().ring_buffers_max, 8, 32768);
  return buffers_.Register(&ring_, std::bit_ceil(wanted));
}

UringEngine::~UringEngine() { ReleaseAll(); }

void UringEngine::ReleaseAll() {
  if (!std::exchange(made_, false)) return;
  // Closing the ring cancels what is armed; nothing runs on our behalf any more, so lent buffers
  // and descriptors are ours again.
  io_uring_queue_exit(&ring_);
  SlotTable& slots = loop_.slots();
  for (uint32_t i = 0; i < slots.size(); ++i) {
    Slot& slot = slots.at(i);
    if (slot.kind() == SlotKind::kConnection) {
      auto* const connection = static_cast<Connection*>(slot.object);
      if (connection->engine() == this && HasFlag(slot, UringBit::kLeaving))
        connection->OnDetached();
    } else if (slot.kind() == SlotKind::kAcceptor && HasFlag(slot, UringBit::kLeaving)) {
      FinishForget(i);
    }
  }
}

// --- Submitting ---

void UringEngine::Submit(const Submission& submission) {
  if (backlog_.empty()) {
    if (io_uring_sqe* const sqe = io_uring_get_sqe(&ring_)) return Prepare(sqe, submission);
  }
  backlog_.push_back(submission);
}

void UringEngine::SubmitBacklog() {
  size_t done = 0;
  while (done < backlog_.size()) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) {
      loop_.counters().syscalls.Add(1);
      if (io_uring_submit(&ring_) <= 0) break;
      sqe = io_uring_get_sqe(&ring_);
      if (sqe == nullptr) break;
    }
    Prepare(sqe, backlog_[done++]);
  }
  backlog_.erase(backlog_.begin(), backlog_.begin() + static_cast<ptrdiff_t>(done));
}

void UringEngine::Prepare(io_uring_sqe* sqe, const Submission& s) {
  switch (s.op) {
    case RingOp::kReceive:
      io_uring_prep_recv_multishot(sqe, s.fd, nullptr, 0, 0);
      sqe->flags |= IOSQE_BUFFER_SELECT;
      sqe->buf_group = BufferRing::kGroup;
      break;
    case RingOp::kPollRead:
      io_uring_prep_poll_multishot(sqe, s.fd, kReadPoll);
      break;
    case RingOp::kPollWrite:
      io_uring_prep_poll_add(sqe, s.fd, POLLOUT);
      break;
    case RingOp::kAccept:
      if (features_.multishot_accept) {
        io_uring_prep_multishot_accept(sqe, s.fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      } else {
        io_uring_prep_poll_multishot(sqe, s.fd, POLLIN);
      }
      break;
    case RingOp::kWatch:
      io_uring_prep_poll_multishot(sqe, s.fd, POLLIN);
      break;
    case RingOp::kCancel:
      if (s.fd >= 0) {
        io_uring_prep_cancel_fd(sqe, s.fd, IORING_ASYNC_CANCEL_ALL);
      } else {
        io_uring_prep_cancel64(sqe, s.target, 0);
      }
      break;
    case RingOp::kNone:
      io_uring_prep_nop(sqe);
      break;
  }
  sqe->user_data = s.token;
  loop_.counters().sqes.Add(1);
}

bool UringEngine::HasUnsubmitted() const {
  return !enabled_ || !backlog_.empty() || io_uring_sq_ready(&ring_) > 0;
}

void UringEngine::Arm(uint32_t slot, RingOp op, int fd) {
  WordRef(loop_.slots().at(slot))->armed |= BitOf(op);
  Submit({op, fd, WithOp(loop_.slots(), slot, op).bits()});
}

void UringEngine::Cancel(uint32_t slot, RingOp op) {
  Slot& s = loop_.slots().at(slot);
  const Word word = WordOf(s);
  if (!(word.armed & BitOf(op)) || (word.cancelling & BitOf(op))) return;
  WordRef(s)->cancelling |= BitOf(op);
  Submit({RingOp::kCancel, -1, WithOp(loop_.slots(), slot, op, kCancelBit).bits(),
          WithOp(loop_.slots(), slot, op).bits()});
}

void UringEngine::Disarm(Slot& slot, RingOp op) {
  WordRef word(slot);
  word->armed &= static_cast<uint8_t>(~BitOf(op));
  word->cancelling &= static_cast<uint8_t>(~BitOf(op));
  word->cancels = 0;
}

// --- Waiting ---

int UringEngine::Wait(int64_t timeout_ns) {
  if (!enabled_) {
    enabled_ = true;
    if (const int r = EnableRing(&ring_); r < 0) {
      loop_.Fault(ErrnoStatus(-r, "io_uring: enable the ring", nullptr).ToString());
    }
  }
  if (features_.multishot_receive) buffers_.Refill(loop_.cache());
  SubmitBacklog();
  if (io_uring_cq_ready(&ring_) > 0) timeout_ns = 0;
  const int result = Enter(timeout_ns);
  if (result < 0 && result != -ETIME && result != -EINTR && result != -EAGAIN && result != -EBUSY) {
    loop_.Fault(ErrnoStatus(-result, "io_uring_enter", nullptr).ToString());
  }
  return DispatchCompletions();
}

int UringEngine::Enter(int64_t timeout_ns) {
  if (const int refused = sys_.RingEnter(); refused < 0) return refused;
  loop_.counters().syscalls.Add(1);
  if (timeout_ns == 0) return io_uring_submit_and_get_events(&ring_);
  if (timeout_ns < 0) return io_uring_submit_and_wait(&ring_, 1);
  io_uring_cqe* cqe = nullptr;
  __kernel_timespec timeout{.tv_sec = timeout_ns / 1'000'000'000,
                            .tv_nsec = timeout_ns % 1'000'000'000};
  return io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &timeout, nullptr);
}

int UringEngine::DispatchCompletions() {
  constexpr unsigned kBatch = 64;
  const int limit = static_cast<int>(std::max<uint32_t>(loop_.options().turn_events_max, 1));
  int dispatched = 0;
  while (dispatched < limit) {
    io_uring_cqe* cqes[kBatch];
    Completion batch[kBatch];
    const unsigned wanted = std::min<unsigned>(kBatch, static_cast<unsigned>(limit - dispatched));
    const unsigned count = io_uring_peek_batch_cqe(&ring_, cqes, wanted);
    if (count == 0) break;
    for (unsigned i = 0; i < count; ++i) {
      batch[i] = {Token(cqes[i]->user_data), cqes[i]->res, cqes[i]->flags};
    }
    // Callbacks may submit: the queue's head moves on before any of them runs.
    io_uring_cq_advance(&ring_, count);
    loop_.counters().cqes.Add(count);
    for (unsigned i = 0; i < count; ++i) {
      const auto op = static_cast<RingOp>(batch[i].token.op() & ~kCancelBit);
      sys_.RingCompletion(batch[i].token.op() & kCancelBit ? RingOp::kCancel : op, &batch[i].result,
                          &batch[i].flags);
      Dispatch(batch[i]);
    }
    dispatched += static_cast<int>(count);
  }
  return dispatched;
}

void UringEngine::ShowCompletion(Completion& completion) {
  const bool cancel = completion.token.op() & kCancelBit;
  const auto op = static_cast<RingOp>(completion.token.op());
  sys_.RingCompletion(cancel ? RingOp::kCancel : op, &completion.result, &completion.flags);
}

void UringEngine::Dispatch(const Completion& completion) {
  if (completion.token.op() & kCancelBit) return OnCancelled(completion);
  Slot* const slot = loop_.slots().Find(completion.token);
  if (slot == nullptr) {
    // Slots live until the terminal completion, so this is a fault of ours; keep the books
    // straight.
    loop_.Fault("io_uring: a completion for a slot that has gone");
    return DropBuffer(completion);
  }
  switch (static_cast<RingOp>(completion.token.op())) {
    case RingOp::kReceive:
      return OnReceive(completion, *slot);
    case RingOp::kPollRead:
    case RingOp::kPollWrite:
      return OnPoll(completion, *slot);
    case RingOp::kAccept:
      return OnAccept(completion, *slot);
    case RingOp::kWatch:
      return OnWatch(completion, *slot);
    case RingOp::kCancel:
    case RingOp::kNone:
      return;
  }
}

void UringEngine::OnCancelled(const Completion& completion) {
  if (completion.result >= 0) return;
  const auto op = static_cast<RingOp>(completion.token.op() & ~kCancelBit);
  Slot* const slot = loop_.slots().Find(completion.token);
  if (slot == nullptr || !(WordOf(*slot).cancelling & BitOf(op))) return;
  // ENOENT, EALREADY: the target was ending or being run just then. Its terminal completion is on
  // the way, or it lives on and must be told again.
  WordRef word(*slot);
  if (++word->cancels > kCancelMax) return;
  int by_fd = -1;
  if (word->cancels > kCancelByToken && slot->kind() == SlotKind::kConnection) {
    by_fd = static_cast<Connection*>(slot->object)->fd();
  }
  const Token target(completion.token.index(), completion.token.generation(),
                     static_cast<uint8_t>(op));
  Submit({RingOp::kCancel, by_fd, completion.token.bits(), target.bits()});
}

// --- Watches ---

absl::Status UringEngine::AddWatch(Watch& watch) {
  watch.slot = loop_.slots().Take(SlotKind::kWatch, &watch);
  Arm(watch.slot, RingOp::kWatch, watch.fd);
  return absl::OkStatus();
}

void UringEngine::RemoveWatch(Watch& watch) {
  SetFlag(loop_.slots().at(watch.slot), UringBit::kLeaving);
  Cancel(watch.slot, RingOp::kWatch);
}

void UringEngine::OnWatch(const Completion& completion, Slot& slot) {
  auto* const watch = static_cast<Watch*>(slot.object);
  const bool leaving = HasFlag(slot, UringBit::kLeaving);
  if (!(completion.flags & IORING_CQE_F_MORE)) {
    Disarm(slot, RingOp::kWatch);
    if (leaving) return loop_.slots().Free(completion.token.index());
    Arm(completion.token.index(), RingOp::kWatch, watch->fd);
  }
  if (!leaving && completion.result > 0) watch->OnReadable();
}

// --- Listening ---

absl::Status UringEngine::Add(Acceptor& acceptor) {
  acceptor.slot = loop_.slots().Take(SlotKind::kAcceptor, &acceptor);
  return absl::OkStatus();
}

void UringEngine::Accept(Acceptor& acceptor) {
  Slot& slot = loop_.slots().at(acceptor.slot);
  SetFlag(slot, UringBit::kAccepting);
  // One that is being cancelled is armed again by its terminal completion.
  if (!(WordOf(slot).armed & BitOf(RingOp::kAccept))) {
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
  if (made_ && WordOf(slot).armed != 0) {
    SetFlag(slot, UringBit::kLeaving);
    ClearFlag(slot, UringBit::kAccepting);
    slot.object = nullptr;
    Cancel(acceptor.slot, RingOp::kAccept);
  } else {
    loop_.slots().Free(acceptor.slot);
  }
  sys_.Close(acceptor.fd);
}

void UringEngine::FinishForget(uint32_t slot) { loop_.slots().Free(slot); }

void UringEngine::OnAccept(const Completion& completion, Slot& slot) {
  const bool terminal = !(completion.flags & IORING_CQE_F_MORE);
  const uint32_t index = completion.token.index();
  if (terminal) Disarm(slot, RingOp::kAccept);
  auto* const acceptor = static_cast<Acceptor*>(slot.object);
  if (acceptor == nullptr) {
    if (features_.multishot_accept && completion.result >= 0) sys_.Close(completion.result);
    if (terminal) FinishForget(index);
    return;
  }
  const int result = completion.result;
  // Before the callbacks, which may destroy the acceptor. A failure is the acceptor's to answer.
  if (terminal && HasFlag(slot, UringBit::kAccepting) && (result >= 0 || result == -ECANCELED)) {
    Arm(index, RingOp::kAccept, acceptor->fd);
  }
  if (result == -ECANCELED) return;
  if (!features_.multishot_accept && result > 0) return AcceptBurst(completion.token);
  if (result < 0) return acceptor->OnAcceptFailed(-result);
  acceptor->OnAccepted(result, PeerAddress(result));
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
  const bool poll_only = !features_.multishot_receive || !IsTcp(connection.peer().family());
  if (poll_only)
    SetFlag(loop_.slots().at(connection.slot()), UringBit::kPollStrategy | UringBit::kPollOnly);
  return absl::OkStatus();
}

bool UringEngine::Detach(Connection& connection) {
  Slot& slot = loop_.slots().at(connection.slot());
  if (!made_ || WordOf(slot).armed == 0) return true;
  SetFlag(slot, UringBit::kLeaving);
  for (RingOp op : {RingOp::kReceive, RingOp::kPollRead, RingOp::kPollWrite}) {
    Cancel(connection.slot(), op);
  }
  return false;
}

RingOp UringEngine::ReceiveOp(const Slot& slot) const {
  const bool polls = HasFlag(slot, UringBit::kPollStrategy) || buffers_.starved();
  return polls ? RingOp::kPollRead : RingOp::kReceive;
}

void UringEngine::WantRead(Connection& connection) {
  Slot& slot = loop_.slots().at(connection.slot());
  const Word word = WordOf(slot);
  // Whatever is armed, even if it is being cancelled, must end first: two receives would reorder.
  if (word.armed & (BitOf(RingOp::kReceive) | BitOf(RingOp::kPollRead))) return;
  if (word.flags & (UringBit::kReadable | UringBit::kNeedsBuffer)) return;
  Arm(connection.slot(), ReceiveOp(slot), connection.fd());
}

void UringEngine::StopRead(Connection& connection) { Cancel(connection.slot(), RingOp::kReceive); }

void UringEngine::WantWrite(Connection& connection) {
  const Slot& slot = loop_.slots().at(connection.slot());
  if (WordOf(slot).armed & BitOf(RingOp::kPollWrite)) return;
  Arm(connection.slot(), RingOp::kPollWrite, connection.fd());
}

bool UringEngine::Pull(Connection& connection) {
  Slot& slot = loop_.slots().at(connection.slot());
  const Word word = WordOf(slot);
  if ((word.flags & (UringBit::kReadable | UringBit::kNeedsBuffer)) != UringBit::kReadable)
    return false;
  if (word.armed & BitOf(RingOp::kReceive)) return false;
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
      SetFlag(slot, UringBit::kNeedsBuffer);
      waiting_for_room_.push_back(loop_.slots().TokenOf(connection.slot()));
      return false;
  }
  return false;
}

void UringEngine::ChooseStrategy(Slot& slot, Connection& connection, size_t received) {
  WordRef word(slot);
  if ((word->flags & UringBit::kPollOnly) || received == 0) return;
  const bool polls = word->flags & UringBit::kPollStrategy;
  if ((received >= kLargePiece) == polls) {
    word->run = 0;
    return;
  }
  if (++word->run < kRunToChange) return;
  word->run = 0;
  word->flags ^= UringBit::kPollStrategy;
  const RingOp old_op = polls ? RingOp::kPollRead : RingOp::kReceive;
  if (!(word->armed & BitOf(old_op)) || (word->cancelling & BitOf(old_op))) return;
  word->cancelling |= BitOf(old_op);
  Submit({RingOp::kCancel, -1, WithOp(loop_.slots(), connection.slot(), old_op, kCancelBit).bits(),
          WithOp(loop_.slots(), connection.slot(), old_op).bits()});
}

void UringEngine::OnPoll(const Completion& completion, Slot& slot) {
  const auto op = static_cast<RingOp>(completion.token.op());
  auto* const connection = static_cast<Connection*>(slot.object);
  if (!(completion.flags & IORING_CQE_F_MORE)) Disarm(slot, op);
  if (HasFlag(slot, UringBit::kLeaving)) {
    if (WordOf(slot).armed == 0) connection->OnDetached();
    return;
  }
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
  if (HasFlag(slot, UringBit::kLeaving)) {
    DropBuffer(completion);
    if (WordOf(slot).armed == 0) connection->OnDetached();
    return;
  }
  // A terminal completion may carry bytes, so the result is looked at first (completion queue
  // full).
  if (completion.result > 0) {
    connection->OnReceived(TakeReceived(completion));
    ChooseStrategy(slot, *connection, static_cast<size_t>(completion.result));
  } else {
    DropBuffer(completion);
    switch (-completion.result) {
      case 0:
        connection->OnReceiveEnded(0);
        break;
      case ENOBUFS:
        // The bytes are still in the socket: a plain receive takes them, and more buffers are lent.
        loop_.counters().ring_exhausted.Add(1);
        buffers_.Grow();
        SetFlag(slot, UringBit::kReadable);
        break;
      case ECANCELED:
      case EINTR:
      case EAGAIN:
        break;  // armed again when the connection still wants to read
      default:
        connection->OnReceiveEnded(-completion.result);
    }
  }
  connection->OnReady();
}

Buffer UringEngine::TakeReceived(const Completion& completion) {
  const auto id = static_cast<uint16_t>(completion.flags >> IORING_CQE_BUFFER_SHIFT);
  const auto size = static_cast<size_t>(completion.result);
  if (size <= kCopyMax) {
    if (Buffer small = loop_.cache().TryAllocate(size, BufferTag::kReceive)) {
      std::memcpy(small.mutable_data(), buffers_.Peek(id), size);
      NodeExtend(*BufferAccess::Node(small), size);
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
  if (features_.multishot_receive && features_.defer_taskrun && io_uring_cq_ready(&ring_) == 0) {
    buffers_.Trim();
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
