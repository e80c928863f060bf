#include "engine/uring_engine.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/connection.h"
#include "engine/loop_core.h"
#include "engine/uring_word.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr unsigned kSubmissions = 256;
// Completions the kernel may post before we look: at least four for each submission (a multishot
// operation posts many), or it falls back to a slower overflow list.
constexpr unsigned kCompletions = 4096;
// At most this part of the pool is lent to the kernel: the rest is for plain receives and for
// users.
constexpr size_t kRingShare = 4;

// A cancel that found nothing while its target is armed is repeated this often by token, then by
// descriptor (seen on 6.11: the operation lived and its token was not found).
constexpr uint8_t kCancelByToken = 4;
constexpr uint8_t kCancelMax = 100;

// Watches that fail in a row, without one that tells of something, before they are given up.
constexpr uint32_t kWatchFailuresMax = 16;

// io_uring_enter that fails so often in a row, and for so long, will not work again.
constexpr uint32_t kEnterFailuresMax = 16;
constexpr int64_t kEnterPatienceNs = 1'000'000'000;
// The same when what it lacks may come back.
constexpr int64_t kEnterPatienceLongNs = 60'000'000'000;
// Between two of them, when the loop has nothing else to do.
constexpr int64_t kEnterPauseNs = 2'000'000;

// Memory, and room for completions (io_uring_enter(2)).
bool MayPass(int error) { return error == EAGAIN || error == EBUSY || error == ENOMEM; }

constexpr uint32_t kReadPoll = POLLIN | POLLRDHUP | POLLPRI;

}  // namespace

UringEngine::UringEngine(LoopCore& loop)
    : SocketEngine(loop),
      enter_retry_(loop.timers()),
      release_timer_(loop.timers()),
      buffers_(loop.sys()) {}

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
  if (absl::Status status = HasReserve(); !status.ok()) return status;
  absl::StatusOr<UringFeatures> features = ProbeUring(sys_);
  if (!features.ok()) return features.status();
  features_ = *features;
  const uint32_t flags = SetupFlags(features_) | IORING_SETUP_R_DISABLED;
  if (absl::Status s = SetUpRing(sys_, kSubmissions, kCompletions, flags, &ring_); !s.ok()) {
    return s;
  }
  made_ = true;
  if (!features_.multishot_receive) return absl::OkStatus();
  const uint32_t most = std::clamp<uint32_t>(loop_.options().ring_buffers_max, 8, 32768);
  const absl::Status lent =
      buffers_.Register(&ring_, most, loop_.pool().core().options().bytes_max / kRingShare);
  if (lent.ok() || absl::IsResourceExhausted(lent)) return lent;
  // The kernel has them, as the self-test saw, and gives this ring none.
  features_.multishot_receive = false;
  loop_.Log(LogSeverity::kWarning, absl::StrCat("io_uring: plain receives: ", lent.message()));
  return absl::OkStatus();
}

UringEngine::~UringEngine() { ReleaseAll(); }

void UringEngine::ReleaseAll() {
  const bool closing = made_;
  CloseRing();
  if (notify_fd_ >= 0) sys_.Close(std::exchange(notify_fd_, -1));
  if (!closing) return;
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

// Closing the ring cancels what is armed; nothing runs on our behalf any more, so lent buffers and
// descriptors are ours again.
void UringEngine::CloseRing() {
  if (std::exchange(made_, false)) io_uring_queue_exit(&ring_);
}

int UringEngine::fd() {
  if (made_ && !features_.defer_taskrun) return ring_.ring_fd;
  if (notify_fd_ >= 0) return notify_fd_;
  const int event = sys_.EventFd();
  if (!made_) return notify_fd_ = event;  // of a broken one, which tells nothing
  const int result = event < 0 ? event : RegisterNotify(event);
  if (result < 0) {
    if (event >= 0) sys_.Close(event);
    return result;
  }
  notify_fd_ = event;
  const uint64_t one = 1;
  sys_.Write(notify_fd_, &one, sizeof one);  // for what is due already
  return notify_fd_;
}

// --- Submitting ---

void UringEngine::Submit(const Submission& submission) {
  loop_.Touch();
  if (!made_) return;
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
      if (EnterRefusal() < 0) break;
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
  // What could not enter must try again, or nobody would look for what the kernel has meanwhile.
  return made_ && !enter_retry_.armed() &&
         (!enabled_ || enter_failures_ != 0 || !backlog_.empty() || io_uring_sq_ready(&ring_) > 0);
}

void UringEngine::Arm(uint32_t slot, RingOp op, int fd) {
  UringWordRef(loop_.slots().at(slot))->armed |= BitOf(op);
  Submit({op, fd, WithOp(loop_.slots(), slot, op).bits()});
}

void UringEngine::Cancel(uint32_t slot, RingOp op) {
  Slot& s = loop_.slots().at(slot);
  const UringWord word = UringWordOf(s);
  if (!(word.armed & BitOf(op)) || (word.cancelling & BitOf(op))) return;
  UringWordRef(s)->cancelling |= BitOf(op);
  Submit({RingOp::kCancel, -1, WithOp(loop_.slots(), slot, op, kCancelBit).bits(),
          WithOp(loop_.slots(), slot, op).bits()});
}

void UringEngine::Disarm(Slot& slot, RingOp op) {
  UringWordRef word(slot);
  word->armed &= static_cast<uint8_t>(~BitOf(op));
  word->cancelling &= static_cast<uint8_t>(~BitOf(op));
  word->cancels = 0;
}

// --- Waiting ---

int UringEngine::Wait(int64_t timeout_ns) {
  if (!made_) [[unlikely]] {
    // As events: a wake-up that was read here must end a busy poll.
    return loop_.WaitForOwn(timeout_ns);
  }
  if (!enabled_ && !Enable(timeout_ns != 0)) [[unlikely]]
    return 0;
  if (features_.multishot_receive) {
    if (!loop_.waiting_for_room()) {
      buffers_.Refill(loop_.cache());
      if (buffers_.starved()) loop_.WaitForRoom();
    }
    buffers_.Publish();
  }
  if (notify_fd_ >= 0) RenewNotify();
  if (!backlog_.empty()) [[unlikely]]
    SubmitBacklog();
  if (io_uring_cq_ready(&ring_) > 0) timeout_ns = 0;
  if (const int result = Enter(timeout_ns); result < 0) [[unlikely]] {
    EnterFailed(-result, timeout_ns != 0);
  } else if (HasDropped()) [[unlikely]] {
    GiveUp(EBADR);
  } else if (enter_failures_ != 0) {
    enter_failures_ = 0;
    enter_retry_.Cancel();
  }
  return made_ ? DispatchCompletions() : 0;
}

bool UringEngine::Enable(bool may_sleep) {
  const int result = EnableRing(sys_, ring_);
  enabled_ = result >= 0;
  if (!enabled_) EnterFailed(-result, may_sleep);
  return enabled_;
}

void UringEngine::EnterFailed(int error, bool may_sleep) {
  loop_.DoubtAlarm();
  if (error == EINTR) return;
  if (error == ETIME) {
    enter_failures_ = 0;
    return;
  }
  if (error == EBADR) return GiveUp(error);
  const int64_t now = sys_.Now();
  if (enter_failures_++ == 0) failing_since_ns_ = now;
  const int64_t patience = MayPass(error) ? kEnterPatienceLongNs : kEnterPatienceNs;
  if (enter_failures_ >= kEnterFailuresMax && now - failing_since_ns_ >= patience) {
    return GiveUp(error);
  }
  // Of those two alone the first ones say nothing; and it may fail in every turn.
  const bool common = error == EAGAIN || error == EBUSY;
  if (std::has_single_bit(enter_failures_) && (!common || enter_failures_ >= kEnterFailuresMax)) {
    loop_.EngineFault(kind(), ErrnoStatus(error, EnterCall(), nullptr).ToString());
  }
  // The first is tried again at once: what has completed may have been all that was in its way.
  if (enter_failures_ == 1) return;
  if (&loop_.primary() != this) {
    enter_retry_.Arm(TimerWheel::DeadlineTick(now, absl::Nanoseconds(kEnterPauseNs)),
                     [this] { loop_.LookAtSecondary(); });
  } else if (may_sleep) {
    loop_.WaitForOwn(kEnterPauseNs);
  }
}

void UringEngine::GiveUp(int error) {
  const bool withdrawn = buffers_.Withdraw(&ring_);
  // What has completed is there, and no receive completes any more: a DEFER_TASKRUN ring completes
  // none outside of that call, and others find no buffer. Only what did not fit was not told.
  while (DispatchCompletions() > 0) {
  }
  const bool dropped = error == EBADR;
  receives_lost_ =
      dropped || io_uring_cq_has_overflow(&ring_) || (!withdrawn && !features_.defer_taskrun);
  CloseRing();
  broken_ = true;
  enter_retry_.Cancel();
  release_timer_.Cancel();
  if (withdrawn) buffers_.TakeAllBack();
  backlog_.clear();
  const std::string how = dropped ? std::string("the kernel has dropped a completion")
                                  : absl::StrCat(enter_failures_, " times in a row");
  loop_.EngineFault(kind(),
                    absl::StrCat(ErrnoStatus(error, EnterCall(), nullptr).ToString(), ": ", how,
                                 "; the ring is given up, and epoll takes its streams"));
  // First of all: what follows runs callbacks.
  loop_.OnEngineBroken();
  for (uint32_t i = 0; i < loop_.slots().size(); ++i) Orphan(i);
}

absl::Status UringEngine::GivenUp() {
  return absl::UnavailableError("io_uring: the ring was given up");
}

void UringEngine::Orphan(uint32_t index) {
  Slot& slot = loop_.slots().at(index);
  if (slot.kind() == SlotKind::kConnection) {
    auto* const connection = static_cast<Connection*>(slot.object);
    if (connection->engine() == this) OrphanConnection(*connection, slot);
  } else if (slot.kind() == SlotKind::kWatch) {
    // Those of others have nothing here. One without an object was removed while it was armed.
    slot.engine_word = 0;
    if (slot.object == nullptr) loop_.slots().Free(index);
  } else if (slot.kind() == SlotKind::kAcceptor) {
    OrphanAcceptor(index);
  }
}

int UringEngine::EnterRefusal() { return direct_ ? 0 : sys_.RingEnter(); }

int UringEngine::Enter(int64_t timeout_ns) {
  if (const int refused = EnterRefusal(); refused < 0) return refused;
  loop_.counters().syscalls.Add(1);
  if (timeout_ns == 0) return io_uring_submit_and_get_events(&ring_);
  if (timeout_ns > 0) return EnterFor(timeout_ns);
  const PoolCache::Parked parked(loop_.cache());
  return io_uring_submit_and_wait(&ring_, 1);
}

int UringEngine::EnterFor(int64_t timeout_ns) {
  const PoolCache::Parked parked(loop_.cache());
  io_uring_cqe* cqe = nullptr;
  __kernel_timespec timeout{.tv_sec = timeout_ns / 1'000'000'000,
                            .tv_nsec = timeout_ns % 1'000'000'000};
  return io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &timeout, nullptr);
}

int UringEngine::DispatchCompletions() {
  const int limit = static_cast<int>(std::max<uint32_t>(loop_.options().turn_events_max, 1));
  int dispatched = 0;
  for (; dispatched < limit; ++dispatched) {
    const unsigned head = *ring_.cq.khead;
    const unsigned tail = io_uring_smp_load_acquire(ring_.cq.ktail);
    if (head == tail) {
      // What did not fit waits in the kernel until we ask.
      if (!io_uring_cq_has_overflow(&ring_)) break;
      if (EnterRefusal() < 0) break;
      loop_.counters().syscalls.Add(1);
      if (io_uring_get_events(&ring_) < 0 || io_uring_cq_ready(&ring_) == 0) break;
    }
    if (tail - head > 1) loop_.slots().Prefetch(Token(CompletionAt(head + 1).user_data));
    const io_uring_cqe& cqe = CompletionAt(head);
    Completion completion{Token(cqe.user_data), cqe.res, cqe.flags};
    // Callbacks may submit: the queue's head moves on before they run.
    io_uring_cq_advance(&ring_, 1);
    if (!direct_) ShowCompletion(completion);
    Dispatch(completion);
  }
  loop_.counters().cqes.Add(static_cast<uint64_t>(dispatched));
  return dispatched;
}

void UringEngine::ShowCompletion(Completion& completion) {
  const bool cancel = completion.token.op() & kCancelBit;
  const auto op = static_cast<RingOp>(completion.token.op() & ~kCancelBit);
  sys_.RingCompletion(cancel ? RingOp::kCancel : op, &completion.result, &completion.flags);
}

void UringEngine::Dispatch(const Completion& completion) {
  if (completion.token.op() & kCancelBit) return OnCancelled(completion);
  Slot* const slot = loop_.slots().Find(completion.token);
  if (slot == nullptr) [[unlikely]] {
    // Slots live until the terminal completion, so this is a fault of ours; keep the books
    // straight.
    loop_.EngineFault(kind(), "io_uring: a completion for a slot that has gone");
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
  if (slot == nullptr || !(UringWordOf(*slot).cancelling & BitOf(op))) return;
  // ENOENT, EALREADY: the target was ending or being run just then. Its terminal completion is on
  // the way, or it lives on and must be told again.
  // Written back at once: what gives up changes the word itself.
  const uint8_t cancels = ++UringWordRef(*slot)->cancels;
  if (cancels > kCancelMax) return CannotCancel(completion.token.index());
  int by_fd = -1;
  if (cancels > kCancelByToken && slot->kind() == SlotKind::kConnection) {
    by_fd = static_cast<Connection*>(slot->object)->fd();
  }
  const Token target(completion.token.index(), completion.token.generation(),
                     static_cast<uint8_t>(op));
  Submit({RingOp::kCancel, by_fd, completion.token.bits(), target.bits()});
}

// --- Watches ---

absl::Status UringEngine::AddWatch(Watch& watch) {
  if (broken_) return GivenUp();
  watch.engine = this;
  watch.slot = loop_.slots().Take(SlotKind::kWatch, &watch);
  watch.failures = 0;
  Arm(watch.slot, RingOp::kWatch, watch.fd);
  return absl::OkStatus();
}

void UringEngine::RemoveWatch(uint32_t slot, int) {
  Slot& s = loop_.slots().at(slot);
  // One that was given up has no poll; otherwise the slot is free when that has ended.
  if (!made_ || !(UringWordOf(s).armed & BitOf(RingOp::kWatch))) return loop_.slots().Free(slot);
  s.object = nullptr;
  Cancel(slot, RingOp::kWatch);
}

int UringEngine::RegisterNotify(int event) {
  return sys_.RingRegister(ring_.ring_fd, IORING_REGISTER_EVENTFD, &event, 1);
}

void UringEngine::UnregisterNotify() {
  sys_.RingRegister(ring_.ring_fd, IORING_UNREGISTER_EVENTFD, nullptr, 0);
}

void UringEngine::RenewNotify() {
  uint64_t count;
  sys_.Read(notify_fd_, &count, sizeof count);
  loop_.counters().syscalls.Add(3);
  // After the read: what is signalled to the new registration is not taken back by it.
  UnregisterNotify();
  if (const int result = RegisterNotify(notify_fd_); result < 0) {
    loop_.EngineFault(kind(),
                      ErrnoStatus(-result, "io_uring: an eventfd for fd()", nullptr).ToString());
    const uint64_t one = 1;
    sys_.Write(notify_fd_, &one, sizeof one);  // the host comes back, and so do we
  }
}

void UringEngine::StopNotifying() {
  if (notify_fd_ < 0) return;
  if (made_) UnregisterNotify();
  sys_.Close(std::exchange(notify_fd_, -1));
}

void UringEngine::OnWatch(const Completion& completion, Slot& slot) {
  auto* const watch = static_cast<Watch*>(slot.object);
  if (watch == nullptr) {
    if (!(completion.flags & IORING_CQE_F_MORE)) loop_.slots().Free(completion.token.index());
    return;
  }
  if (completion.result < 0 && completion.result != -ECANCELED) {
    Disarm(slot, RingOp::kWatch);
    const bool again = ++watch->failures < kWatchFailuresMax;
    // What has become readable meanwhile is told of as soon as it is armed.
    if (again) Arm(completion.token.index(), RingOp::kWatch, watch->fd);
    loop_.EngineFault(
        kind(),
        absl::StrCat(
            ErrnoStatus(-completion.result, "io_uring: watch a descriptor", nullptr).ToString(),
            again ? ""
                  : "; given up, for it fails every time: what is posted may not wake the loop"));
    return;
  }
  watch->failures = 0;
  if (!(completion.flags & IORING_CQE_F_MORE)) {
    Disarm(slot, RingOp::kWatch);
    Arm(completion.token.index(), RingOp::kWatch, watch->fd);
  }
  watch->OnReadable();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
