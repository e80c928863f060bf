#include "engine/connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/error.h"
#include "base/set_empty.h"
#include "engine/loop_core.h"
#include "engine/send_bounds.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Callbacks and transfers one connection may have before the next one's turn (I9).
constexpr int kServiceSteps = 32;
// Bytes one flush may send before the next connection's turn (I9).
constexpr size_t kFlushBytesMax = 1 << 20;
// Parts of one vectored send. More gains nothing: a part is a block of some KiB.
constexpr size_t kSendParts = 64;

// Blocks of unread bytes a connection may hold before its engine stops receiving for it (I9).
constexpr size_t kUnreadBlocks = 64 * 1024;

constexpr uint32_t kReceiveStart = 16 * 1024;

uint32_t DeadlineMs(absl::Duration after) {
  // Never early: what does not fit, seven weeks, is never.
  const int64_t ms = absl::ToInt64Milliseconds(absl::Ceil(after, absl::Milliseconds(1)));
  return static_cast<uint32_t>(std::clamp<int64_t>(ms, 0, UINT32_MAX));
}

}  // namespace

Connection::Connection(LoopCore& loop, Engine& engine, int fd, const SocketAddress& peer,
                       const StreamOptions& options, std::shared_ptr<CloseObserver> observer)
    : TimerNode(&Connection::OnTimer),
      loop_(&loop),
      engine_(&engine),
      fd_(fd),
      over_tcp_(peer.family() == AF_INET || peer.family() == AF_INET6),
      pinned_engine_(options.pinned_engine),
      migratable_(options.migratable),
      receive_size_(std::min(kReceiveStart, options.receive_max)),
      receive_max_(options.receive_max),
      send_queue_high_(SendBoundsOf(options).high),
      send_queue_max_(SendBoundsOf(options).max),
      observer_(std::move(observer)),
      peer_(peer),
      read_deadline_ms_(DeadlineMs(options.read_deadline)),
      write_deadline_ms_(DeadlineMs(options.write_deadline)),
      idle_deadline_ms_(DeadlineMs(options.idle_deadline)),
      send_queue_low_(SendBoundsOf(options).low) {
  NoteDeadlines();
  if (has_deadlines_) active_at_ = loop.FreshTick();
}

// --- The owner's side ---

void Connection::ReadReady(ReadCallback&& done) {
  CheckThread();
  if (loop_ == nullptr) return;
  if (read_done_) [[unlikely]] {
    RefuseRead(std::move(done));
  } else {
    SetEmpty(read_done_, std::move(done));
    if (has_deadlines_ && read_deadline_ms_ != kNever) read_since_ = loop_->FreshTick();
  }
  MarkReady();
}

void Connection::RefuseRead(ReadCallback&& done) { extras().refused_reads.push(std::move(done)); }

void Connection::CancelRead() {
  CheckThread();
  if (loop_ == nullptr || !read_done_) return;
  read_cancelled_ = true;
  MarkReady();
}

void Connection::Write(BufferChain&& data, DoneCallback&& done) {
  CheckThread();
  if (loop_ == nullptr) return;
  if (!MayWrite(data)) [[unlikely]] {
    RefuseWrite(data.size(), std::move(done));
    return MarkReady();
  }
  const bool empty = data.empty();
  if (tx_.empty()) {
    if (has_deadlines_) write_since_ = 0;  // see ArmTimer
    tx_ = std::move(data);
  } else {
    tx_.Append(std::move(data));
  }
  if (done) {
    const uint64_t end = bytes_out_ + tx_.size();
    if (!first_write_.done) {
      first_write_.end = end;
      SetEmpty(first_write_.done, std::move(done));
    } else {
      QueueWrite({std::move(done), end, empty, absl::OkStatus()});
    }
  }
  MarkReady();
}

void Connection::NotifyWritable(DoneCallback&& done) {
  CheckThread();
  if (loop_ == nullptr) return;
  if (extras().writable_done) {
    AddRefusedWrite(std::move(done), Refusal("notify-writable", "one is pending already"));
  } else {
    extras().writable_done = std::move(done);
  }
  MarkReady();
}

void Connection::ShutdownWrite(DoneCallback&& done) {
  CheckThread();
  if (loop_ == nullptr) return;
  if (write_side_ != WriteSide::kOpen) {
    AddRefusedWrite(std::move(done), Refusal("shutdown-write", "done already"));
  } else {
    write_side_ = WriteSide::kShutdownQueued;
    if (done) extras().shutdown_done = std::move(done);
  }
  MarkReady();
}

void Connection::ShutdownRead() {
  CheckThread();
  if (loop_ == nullptr || read_shut_) return;
  read_shut_ = true;
  rx_.Clear();
  if (read_end_.ok()) {
    read_end_ = absl::OutOfRangeError(
        absl::StrCat("read from ", peer_.ToString(), ": given up by ShutdownRead"));
    if (state_ == ConnectionState::kOpen) {
      engine_->StopRead(*this);
      // ENOTCONN after a reset: there is nothing left to shut.
      engine_->Shutdown(*this, SHUT_RD);
    }
  }
  MarkReady();
}

void Connection::Abort() {
  CheckThread();
  if (loop_ == nullptr) return;
  rx_.Clear();
  // What was not read is gone, so its end must not be told either.
  if (alive()) read_end_ = write_end_ = absl::OkStatus();
  End(absl::CancelledError(absl::StrCat("connection to ", peer_.ToString(), ": aborted")), true);
}

void Connection::SetReadDeadline(absl::Duration after) {
  SetDeadline(read_deadline_ms_, read_since_, after);
}

void Connection::SetWriteDeadline(absl::Duration after) {
  SetDeadline(write_deadline_ms_, write_since_, after);
}

void Connection::SetIdleDeadline(absl::Duration after) {
  SetDeadline(idle_deadline_ms_, active_at_, after);
}

void Connection::SetDeadline(uint32_t& deadline_ms, uint64_t& since, absl::Duration after) {
  CheckThread();
  if (loop_ == nullptr) return;
  deadline_ms = DeadlineMs(after);
  NoteDeadlines();
  since = loop_->FreshTick();
  ArmDeadlines();
}

StreamStats Connection::stats() const {
  CheckThread();
  StreamStats stats;
  if (engine_ != nullptr) stats.engine = engine_->kind();
  stats.bytes_in = bytes_in_;
  stats.bytes_out = bytes_out_;
  stats.queued_bytes = tx_.size();
  stats.pinned_bytes = rx_.block_bytes() + tx_.block_bytes() + pinned_buffer_size();
  stats.pinned_read_size = pinned_reads_ ? receive_max_ : 0;
  return stats;
}

SocketAddress Connection::local() const {
  CheckThread();
  return fd_ >= 0 && engine_ != nullptr ? engine_->LocalAddress(fd_) : SocketAddress();
}

void Connection::ReleaseOwner() {
  CheckThread();
  // Destroyed last: a callback may own this very stream's handle, or others.
  const Callbacks unrun = TakeCallbacks();
  rx_.Clear();
  if (alive()) {
    Close(BytesLost());
  } else if (loop_ != nullptr) {
    UpdatePinned();
  }
  Drop();
}

void Connection::set_connect_done(DoneCallback done) {
  extras().connect_done = std::move(done);
  MarkReady();
}

void Connection::End(absl::Status status, bool reset) {
  if (loop_ == nullptr || !alive()) return;
  Hold();  // what Close drops may own the stream
  if (read_end_.ok()) read_end_ = status;
  if (write_end_.ok()) write_end_ = std::move(status);
  Close(reset);
  MarkReady();
  Drop();
}

void Connection::EndDrained() {
  End(absl::CancelledError(
          absl::StrCat("connection to ", peer_.ToString(), ": the loop was drained")),
      true);
}

// --- The engine's side ---

void Connection::OnReceived(Buffer&& bytes) {
  const size_t size = BufferAccess::Node(bytes)->size;
  bytes_in_ += size;
  if (has_deadlines_ && idle_deadline_ms_ != kNever) active_at_ = loop_->FreshTick();
  loop_->counters().receives.Add(1);
  loop_->counters().bytes_in.Add(size);
  if (!read_shut_) BufferAccess::Append(rx_, BufferAccess::Release(std::move(bytes)));
}

void Connection::OnReceiveEnded(int error) {
  if (!read_end_.ok()) return;
  if (error == 0) {
    // A reset that a send has met is not seen again by receives: they report a plain end (tcp.c
    // hands sk_err out once). It stays a reset here.
    read_end_ = IsReset(write_end_) ? write_end_
                                    : absl::OutOfRangeError(absl::StrCat(
                                          "read from ", peer_.ToString(), ": end of stream"));
    return;
  }
  read_end_ = ErrnoStatus(error, "read from", &peer_);
  if (IsReset(read_end_)) {
    if (!IsReset(write_end_)) loop_->counters().peer_resets.Add(1);  // else a send has counted it
  } else if (absl::IsResourceExhausted(read_end_) || absl::IsInternal(read_end_)) {
    loop_->Fault(read_end_.ToString());  // the rest may be the network's doing (icmp(7))
  }
  // What is queued cannot be sent any more; Step drops it, where releasing it may run the caller's
  // code.
  if (write_end_.ok()) write_end_ = read_end_;
}

void Connection::OnWritable() {
  write_blocked_ = false;
  if (state_ == ConnectionState::kConnecting) connect_ready_ = true;
  Service();
}

void Connection::OnDetached() {
  engine_->CloseSocket(fd_, close_reset_);
  fd_ = -1;
  Apply(ConnectionEvent::kDetached);
  loop_->OnClosed(*this);
  if (observer_) std::exchange(observer_, nullptr)->OnConnectionClosed();
  Drop();
}

// --- The loop's side ---

void Connection::Serve() {
  Hold();
  in_service_ = true;
  int steps = kServiceSteps;
  while (steps > 0 && Step()) --steps;
  in_service_ = false;
  Settle();
  if (steps == 0) MarkReady();
  Drop();
}

bool Connection::Step() {
  if (state_ == ConnectionState::kConnecting) return FinishConnect();
  if (!tx_.empty()) {
    if (!write_end_.ok()) {
      tx_.Clear();
    } else if (!write_blocked_) {
      Flush();
    }
  }
  if (write_side_ == WriteSide::kShutdownQueued && tx_.empty()) FinishShutdown();
  // Each gets its turn: neither a flood of bytes nor a writer that feeds itself keeps the others
  // out.
  const bool wrote = RunWriteDone();
  const bool read = RunReadDone();
  const bool more = extras_ != nullptr && RunExtras();
  // What a write's callback has begun to read has just been looked for.
  return read || more || (wrote && HasMore());
}

bool Connection::FinishConnect() {
  if (!connect_ready_) return false;
  connect_ready_ = false;
  const int error = engine_->ConnectResult(fd_);
  if (error == EINPROGRESS) {
    engine_->WantWrite(*this);
    return false;
  }
  if (error == 0) {
    Apply(ConnectionEvent::kConnected);
    if (has_deadlines_ && idle_deadline_ms_ != kNever) active_at_ = loop_->FreshTick();
    if (follows_) Move(EngineKind::kAuto, nullptr, nullptr);
  } else {
    End(ErrnoStatus(error, "connect to", &peer_), false);
  }
  return true;
}

void Connection::Flush() {
  size_t sent_now = 0;
  int error = 0;
  while (!tx_.empty() && sent_now < kFlushBytesMax) {  // Settle puts the rest on the ready list
    iovec parts[kSendParts];
    const size_t count = BufferAccess::FillIovec(tx_, parts);
    const int64_t sent = engine_->Send(*this, {parts, count});
    if (sent == -EAGAIN || sent == 0) {
      write_blocked_ = true;
      engine_->WantWrite(*this);
      break;
    }
    if (sent < 0) {
      error = static_cast<int>(-sent);
      break;
    }
    sent_now += static_cast<size_t>(sent);
    if (static_cast<size_t>(sent) == tx_.size()) {
      tx_.Clear();
    } else {
      tx_.TrimFront(static_cast<size_t>(sent));
    }
  }
  if (sent_now > 0) {
    bytes_out_ += sent_now;
    if (has_deadlines_) write_since_ = 0;  // see ArmTimer
    if (has_deadlines_ && idle_deadline_ms_ != kNever) active_at_ = loop_->FreshTick();
    loop_->counters().bytes_out.Add(sent_now);
  }
  if (error != 0) FailSending(error, "write to");
}

void Connection::FailSending(int error, std::string_view operation) {
  write_end_ = ErrnoStatus(error, operation, &peer_);
  tx_.Clear();
  if (IsReset(write_end_)) {
    loop_->counters().peer_resets.Add(1);
  } else {
    // The peer does not know yet: two ends that wait for each other's end would wait for ever.
    loop_->Fault(write_end_.ToString());
    End(write_end_, true);
  }
}

void Connection::FinishShutdown() {
  write_side_ = WriteSide::kShut;
  if (write_end_.ok() && state_ == ConnectionState::kOpen) {
    if (const int error = engine_->Shutdown(*this, SHUT_WR); error < 0) {
      FailSending(-error, "shutdown-write to");
    }
  }
  if (extras_ != nullptr && extras_->shutdown_done) {
    AddRefusedWrite(std::exchange(extras_->shutdown_done, nullptr), write_end_);
  }
}

bool Connection::RunWriteDone() {
  if (!first_write_.done) return false;
  if (!first_write_.refusal.ok()) [[unlikely]]
    return RunWriteFailed();
  if (bytes_out_ < first_write_.end) return !write_end_.ok() && RunWriteFailed();
  DoneCallback done = std::move(first_write_.done);  // leaves it empty
  if (extras_ != nullptr) UnqueueWrite();
  std::move(done)(absl::OkStatus());
  return true;
}

bool Connection::RunWriteFailed() {
  absl::Status failure = std::exchange(first_write_.refusal, absl::OkStatus());
  if (failure.ok()) failure = write_end_;
  DoneCallback done = std::move(first_write_.done);
  if (extras_ != nullptr) UnqueueWrite();
  std::move(done)(std::move(failure));
  return true;
}

bool Connection::RunReadDone() {
  if (!read_done_) return false;
  if (read_cancelled_) [[unlikely]]
    return RunReadFailed();
  if (rx_.empty()) {
    if (!read_end_.ok() || state_ != ConnectionState::kOpen) return RunReadFailed();
    engine_->Pull(*this);
    if (rx_.empty()) return (!read_end_.ok() || read_timed_out_) && RunReadFailed();
  }
  read_timed_out_ = false;
  ReadCallback done = std::move(read_done_);  // leaves it empty
  std::move(done)(BufferAccess::PopFront(rx_));
  return true;
}

bool Connection::RunReadFailed() {
  absl::Status failure;
  if (read_cancelled_) {
    failure = absl::CancelledError(
        absl::StrCat("read from ", peer_.ToString(), ": cancelled by CancelRead"));
  } else if (!read_end_.ok()) {
    failure = read_end_;
  } else if (read_timed_out_) {
    failure = absl::DeadlineExceededError(
        absl::StrCat("read from ", peer_.ToString(), ": no byte for ", read_deadline_ms_, " ms"));
  } else {
    return false;
  }
  read_cancelled_ = false;
  read_timed_out_ = false;
  ReadCallback done = std::move(read_done_);
  std::move(done)(std::move(failure));
  return true;
}

bool Connection::RunExtras() {
  if (extras_->connect_done && state_ != ConnectionState::kConnecting) {
    DoneCallback done = std::exchange(extras_->connect_done, nullptr);
    FreeExtras();
    std::move(done)(state_ == ConnectionState::kOpen ? absl::OkStatus() : write_end_);
    return true;
  }
  if (extras_->writable_done && (!write_end_.ok() || tx_.size() <= send_queue_low_)) {
    DoneCallback done = std::exchange(extras_->writable_done, nullptr);
    std::move(done)(write_end_);
    return true;
  }
  if (!extras_->refused_reads.empty()) {
    ReadCallback done = extras_->refused_reads.pop();
    std::move(done)(Refusal("read", "one is pending already"));
    return true;
  }
  return false;
}

void Connection::Settle() {
  if (state_ == ConnectionState::kOpen && read_end_.ok()) {
    if (rx_.empty()) {
      if (read_done_) engine_->WantRead(*this);
    } else if (rx_.block_bytes() >= std::max<size_t>(receive_max_, kUnreadBlocks)) {
      engine_->StopRead(*this);
    }
  }
  if (state_ == ConnectionState::kOpen && !tx_.empty() && !write_blocked_) MarkReady();
  UpdatePinned();
  ArmDeadlines();
}

void Connection::EndWithLoop() {
  Hold();
  {
    const Callbacks unrun = TakeCallbacks();
    if (alive()) Close(BytesLost());
    rx_.Clear();
    UpdatePinned();
  }
  Drop();
}

// --- Helpers ---

void Connection::CheckThread() const {
#ifndef NDEBUG
  PENSTOCK_CHECK(loop_ == nullptr || loop_->MayUse(), "a stream used off its loop's thread");
#endif
}

void Connection::Destroy() {
  if (loop_ != nullptr) loop_->Unlink(*this);
  delete this;
}

Connection::Extras& Connection::extras() {
  if (extras_ == nullptr) extras_ = std::make_unique<Extras>();
  return *extras_;
}

void Connection::FreeExtras() {
  if (extras_ == nullptr || pinned_reads_) return;
  const Extras& rare = *extras_;
  if (rare.more_writes.empty() && rare.refused_reads.empty() && rare.move_ends.empty() &&
      !rare.writable_done && !rare.shutdown_done && !rare.connect_done) {
    extras_ = nullptr;
  }
}

Connection::Callbacks Connection::TakeCallbacks() {
  return Callbacks{std::exchange(read_done_, nullptr), std::exchange(first_write_, {}),
                   std::move(extras_), std::move(parcel_)};
}

void Connection::BecomeReady() {
  ready_ = true;
  Hold();
  loop_->PushReady(*this);
}

void Connection::Close(bool reset) {
  close_reset_ = reset;
  Apply(ConnectionEvent::kEnd);
  loop_->timers().Cancel(*this);
  EndMove();
  // Destroyed last: releasing an external buffer runs the caller's code.
  const BufferChain unsent = std::move(tx_);
  if (extras_ != nullptr) extras_->pinned_buffer.Reset();
  UpdatePinned();
  if (engine_->Detach(*this)) OnDetached();
}

void Connection::CountPinned() {
  const bool empty = rx_.empty() && tx_.empty();
  LoopCounters& counters = loop_->counters();
  const bool busy = !empty && state_ == ConnectionState::kOpen;
  if (busy && !busy_) counters.busy.Add(1);
  if (!busy && busy_) counters.busy.Sub(1);
  busy_ = busy;
  const uint64_t pinned = (empty ? 0 : rx_.block_bytes() + tx_.size()) + pinned_buffer_size();
  counters.pinned_bytes.Add(pinned - std::exchange(pinned_, pinned));
}

absl::Status Connection::Refusal(std::string_view operation, std::string_view reason) const {
  return absl::FailedPreconditionError(absl::StrCat(std::string(operation), " on connection to ",
                                                    peer_.ToString(), ": ", std::string(reason)));
}

// --- State ---

void Connection::Apply(ConnectionEvent event) {
  const ConnectionState before = state_;
  state_ = kConnectionTransitions[static_cast<size_t>(before)][static_cast<size_t>(event)];
  if (state_ == before) return;
  LoopCounters& counters = loop_->counters();
  Counter* const gauges[] = {&counters.connecting, &counters.open, &counters.closing, nullptr};
  if (Counter* gauge = gauges[static_cast<size_t>(before)]) gauge->Sub(1);
  if (Counter* gauge = gauges[static_cast<size_t>(state_)]) gauge->Add(1);
  if (before == ConnectionState::kOpen) CountEngine(-1);
  if (state_ == ConnectionState::kOpen) CountEngine(1);
}

void Connection::CountEngine(int by) {
  if (engine_->kind() != EngineKind::kUring) return;
  Counter& count = loop_->counters().open_uring;
  by > 0 ? count.Add(1) : count.Sub(1);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
