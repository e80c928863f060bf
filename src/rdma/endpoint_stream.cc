#include "rdma/endpoint_stream.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/timer_wheel.h"
#include "engine/send_bounds.h"
#include "rdma/message_header.h"
#include "rdma/peer_link.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Callbacks one stream may have before the next one's turn (I9).
constexpr int kStreamSteps = 32;
// Bytes given to the endpoint and not yet taken by the peer's.
constexpr uint64_t kPostedMax = 512 * 1024;
constexpr uint32_t kSendsMax = 16;
// How long the end of a stream that was destroyed may take to leave.
constexpr absl::Duration kEndMax = absl::Seconds(5);

}  // namespace

StreamOverEndpoint::StreamOverEndpoint(std::unique_ptr<RdmaEndpoint> endpoint,
                                       const StreamOptions& options)
    : Deferred([](Deferred* node) { static_cast<StreamOverEndpoint*>(node)->Service(); }),
      core_(&endpoint->loop().core()),
      endpoint_(std::move(endpoint)),
      options_(options),
      loop_end_([](Deferred* node) { static_cast<LoopEnd*>(node)->stream.OnLoopEnd(); }, *this) {
  // Of an endpoint whose queue takes nothing the first message says so.
  const RdmaOptions& queue = PeerEndpoints::CoreOf(*endpoint_).options();
  posted_max_ = std::clamp<uint64_t>(queue.queue_bytes_max, 1, kPostedMax);
  sends_max_ = std::clamp<uint32_t>(queue.queue_operations_max, 1, kSendsMax);
  // Not before it is known how large a message the peer takes.
  endpoint_->NotifyOpen([this](absl::Status status) { OnOpened(status); });
  const SendBounds bounds = SendBoundsOf(options);
  options_.send_queue_low = bounds.low;
  options_.send_queue_high = bounds.high;
  options_.send_queue_max = bounds.max;
  timer_.emplace(core_->timers());
  core_->AtEnd(loop_end_);
  Restart(Limit::kIdle);
  ArmTimer();
}

// --- The owner's side ---

void StreamOverEndpoint::ReadReady(Stream::ReadCallback done) {
  if (core_ == nullptr) return;
  if (read_done_) {
    refused_reads_.push(std::move(done));
  } else {
    read_done_ = std::move(done);
    Restart(Limit::kRead);
  }
  MarkReady();
}

void StreamOverEndpoint::CancelRead() {
  if (core_ == nullptr || !read_done_) return;
  read_cancelled_ = true;
  MarkReady();
}

void StreamOverEndpoint::Write(BufferChain data, Stream::DoneCallback done) {
  if (core_ == nullptr) return;
  PendingWrite write;
  if (write_side_ != WriteSide::kOpen) {
    write.refusal = Refusal("write", "after ShutdownWrite");
  } else if (!write_end_.ok()) {
    write.refusal = write_end_;
  } else if (queued() + data.size() > options_.send_queue_max) {
    core_->counters().writes_refused.Add(1);
    write.refusal =
        Explain(absl::StatusCode::kResourceExhausted, "write to",
                absl::StrCat(data.size(), " bytes on top of ", queued(),
                             " queued exceed send_queue_max ", options_.send_queue_max));
  } else {
    if (queued() == 0) Restart(Limit::kWrite);
    written_ += data.size();
    unsent_.Append(std::move(data));
  }
  if (done) {
    write.end = written_;
    write.done = std::move(done);
    writes_.push(std::move(write));
  } else if (!write.refusal.ok() && write_end_.ok() && !data.empty()) {
    // Nobody would learn that bytes of the stream are missing.
    endpoint_->Abort();
    return Fail(std::move(write.refusal));
  }
  MarkReady();
}

void StreamOverEndpoint::NotifyWritable(Stream::DoneCallback done) {
  if (core_ == nullptr) return;
  if (writable_done_) {
    writes_.push({written_, std::move(done), Refusal("notify-writable", "one is pending already")});
  } else {
    writable_done_ = std::move(done);
  }
  MarkReady();
}

void StreamOverEndpoint::ShutdownWrite(Stream::DoneCallback done) {
  if (core_ == nullptr) return;
  if (write_side_ != WriteSide::kOpen) {
    if (done) {
      writes_.push({written_, std::move(done), Refusal("shutdown-write", "done already")});
    }
  } else {
    write_side_ = WriteSide::kShutdownQueued;
    shutdown_done_ = std::move(done);
  }
  MarkReady();
}

void StreamOverEndpoint::ShutdownRead() {
  if (core_ == nullptr || read_shut_) return;
  read_shut_ = true;
  if (read_end_.ok()) {
    read_end_ = Explain(absl::StatusCode::kOutOfRange, "read from", "given up by ShutdownRead");
  }
  MarkReady();
  const BufferChain unread = std::exchange(unread_, {});
}

void StreamOverEndpoint::Abort() {
  if (core_ == nullptr || (!read_end_.ok() && !write_end_.ok())) return;
  endpoint_->Abort();
  const BufferChain unread = std::exchange(unread_, {});
  read_end_ = absl::OkStatus();
  Fail(Explain(absl::StatusCode::kCancelled, "connection to", "aborted"));
}

StreamStats StreamOverEndpoint::stats() const {
  StreamStats stats;
  if (core_ != nullptr) stats.engine = endpoint_->loop().engine();
  stats.bytes_in = bytes_in_;
  stats.bytes_out = bytes_out_;
  stats.queued_bytes = queued();
  stats.pinned_bytes = unsent_.block_bytes() + unread_.block_bytes();
  return stats;
}

// --- Ending ---

StreamOverEndpoint::Callbacks StreamOverEndpoint::TakeCallbacks() {
  Callbacks taken;
  taken.read_done = std::exchange(read_done_, nullptr);
  taken.refused_reads = std::exchange(refused_reads_, {});
  taken.writes = std::exchange(writes_, {});
  if (next_write_.has_value()) taken.writes.push(*std::exchange(next_write_, std::nullopt));
  taken.shutdown_done = std::exchange(shutdown_done_, nullptr);
  taken.writable_done = std::exchange(writable_done_, nullptr);
  taken.unsent = std::exchange(unsent_, {});
  taken.unread = std::exchange(unread_, {});
  return taken;
}

void StreamOverEndpoint::Release() {
  released_ = true;
  const bool all_sent = core_ != nullptr && write_end_.ok() && written_ == bytes_out_ &&
                        write_side_ != WriteSide::kShut;
  const Callbacks unrun = TakeCallbacks();
  if (!all_sent) {
    if (written_ > bytes_out_) endpoint_->Abort();
    Deferred::Cancel();
    timer_.reset();
    return;
  }
  // As a socket that is closed: everything was sent, so the peer may know that it was all.
  self_ = shared_from_this();
  if (write_side_ != WriteSide::kEndSent) write_side_ = WriteSide::kShutdownQueued;
  timer_->Arm(TimerWheel::DeadlineTick(core_->sys().Now(), kEndMax), [this] { FinishLinger(); });
  if (!in_service_) Pump();
}

void StreamOverEndpoint::FinishLinger() {
  Deferred::Cancel();
  const auto self = std::exchange(self_, nullptr);
  timer_.reset();
}

void StreamOverEndpoint::OnLoopEnd() {
  const auto self = shared_from_this();
  const Callbacks unrun = TakeCallbacks();
  Deferred::Cancel();
  timer_.reset();
  core_ = nullptr;
  self_ = nullptr;
}

void StreamOverEndpoint::Fail(absl::Status status) {
  if (read_end_.ok()) read_end_ = status;
  if (write_end_.ok()) write_end_ = std::move(status);
  const BufferChain unsent = std::exchange(unsent_, {});
  if (released_) return FinishLinger();
  MarkReady();
}

// --- Turns ---

void StreamOverEndpoint::MarkReady() {
  if (core_ != nullptr && !in_service_ && !released_) core_->Defer(*this);
}

void StreamOverEndpoint::Service() {
  if (in_service_ || core_ == nullptr || released_) return;
  const auto self = shared_from_this();
  in_service_ = true;
  int steps = kStreamSteps;
  while (steps > 0 && Step()) --steps;
  if (core_ != nullptr) Settle();
  in_service_ = false;
  if (HasCallbacks()) MarkReady();
}

bool StreamOverEndpoint::HasCallbacks() const {
  const bool read =
      read_done_ && (read_cancelled_ || read_timed_out_ || !unread_.empty() || !read_end_.ok());
  const bool write =
      next_write_.has_value() &&
      (!next_write_->refusal.ok() || next_write_->end <= bytes_out_ || !write_end_.ok());
  return read || write || !refused_reads_.empty() ||
         (!next_write_.has_value() && !writes_.empty()) ||
         (writable_done_ && (!write_end_.ok() || queued() <= options_.send_queue_low)) ||
         (shutdown_done_ && (!write_end_.ok() || write_side_ == WriteSide::kShut));
}

bool StreamOverEndpoint::Step() {
  if (released_) return false;
  bool did = RunWrite();
  did |= RunRead();
  did |= RunRest();
  return did;
}

bool StreamOverEndpoint::RunWrite() {
  if (!next_write_.has_value()) {
    if (writes_.empty()) return false;
    next_write_ = writes_.pop();
  }
  absl::Status status = next_write_->refusal;
  if (status.ok() && bytes_out_ < next_write_->end) {
    if (write_end_.ok()) return false;
    status = write_end_;
  }
  Stream::DoneCallback done = std::move(next_write_->done);
  next_write_.reset();
  std::move(done)(std::move(status));
  return true;
}

bool StreamOverEndpoint::RunRead() {
  if (!read_done_) return false;
  if (!unread_.empty() && !read_cancelled_) {
    Buffer piece = unread_.PopFront();
    bytes_in_ += piece.size();
    Restart(Limit::kIdle);
    Deliver(std::move(piece));
  } else if (read_cancelled_) {
    Deliver(Explain(absl::StatusCode::kCancelled, "read from", "cancelled by CancelRead"));
  } else if (!read_end_.ok()) {
    Deliver(read_end_);
  } else if (read_timed_out_) {
    Deliver(Explain(absl::StatusCode::kDeadlineExceeded, "read from",
                    absl::StrCat("no byte for ", absl::FormatDuration(options_.read_deadline))));
  } else {
    return false;
  }
  return true;
}

void StreamOverEndpoint::Deliver(absl::StatusOr<Buffer> result) {
  read_cancelled_ = read_timed_out_ = false;
  Stream::ReadCallback done = std::exchange(read_done_, nullptr);
  std::move(done)(std::move(result));
}

bool StreamOverEndpoint::RunRest() {
  if (released_) return false;
  if (shutdown_done_ && (!write_end_.ok() || write_side_ == WriteSide::kShut)) {
    Stream::DoneCallback done = std::exchange(shutdown_done_, nullptr);
    std::move(done)(write_end_);
    return true;
  }
  if (writable_done_ && (!write_end_.ok() || queued() <= options_.send_queue_low)) {
    Stream::DoneCallback done = std::exchange(writable_done_, nullptr);
    std::move(done)(write_end_);
    return true;
  }
  if (refused_reads_.empty()) return false;
  Stream::ReadCallback done = refused_reads_.pop();
  std::move(done)(Refusal("read", "one is pending already"));
  return true;
}

void StreamOverEndpoint::Settle() {
  if (released_) return Pump();
  Pump();
  if (read_done_ && unread_.empty() && read_end_.ok() && !receiving_) {
    receiving_ = true;
    endpoint_->Receive(
        [this](absl::StatusOr<BufferChain> message) { OnReceived(std::move(message)); });
  }
  ArmTimer();
}

// --- The endpoint ---

void StreamOverEndpoint::Pump() {
  if (!write_end_.ok() || piece_max_ == 0) return;
  // Few at a time: what is written meanwhile goes together, and no queue of the endpoint fills.
  while (!unsent_.empty() && sends_out_ < sends_max_) {
    const uint64_t size = std::min<uint64_t>({unsent_.size(), piece_max_, posted_max_});
    if (posted_ - bytes_out_ + size > posted_max_) break;
    BufferChain piece = unsent_.SplitFront(size);
    posted_ += size;
    ++sends_out_;
    endpoint_->Send(std::move(piece), [this, size](absl::Status status) { OnSent(size, status); });
  }
  if (write_side_ == WriteSide::kShutdownQueued && unsent_.empty() && sends_out_ < sends_max_) {
    write_side_ = WriteSide::kEndSent;
    endpoint_->Send(BufferChain(), [this](absl::Status status) { OnEndSent(status); });
  }
}

void StreamOverEndpoint::OnOpened(const absl::Status& status) {
  if (!status.ok()) return EndWrites(status);
  const uint32_t peers = PeerEndpoints::CoreOf(*endpoint_).peer_message_max();
  piece_max_ = std::min<uint64_t>(peers, kStreamPieceMax);
  if (released_) return Pump();
  Service();
}

void StreamOverEndpoint::OnSent(uint64_t size, const absl::Status& status) {
  --sends_out_;
  if (!status.ok()) return EndWrites(status);
  bytes_out_ += size;
  Restart(Limit::kIdle);
  Restart(Limit::kWrite);
  Service();
}

void StreamOverEndpoint::EndWrites(const absl::Status& status) {
  if (write_end_.ok()) write_end_ = status;
  const BufferChain unsent = std::exchange(unsent_, {});
  if (released_) return FinishLinger();
  Service();
}

void StreamOverEndpoint::OnEndSent(const absl::Status& status) {
  if (released_) return FinishLinger();
  if (status.ok()) {
    write_side_ = WriteSide::kShut;
  } else if (write_end_.ok()) {
    write_end_ = status;
  }
  Service();
}

void StreamOverEndpoint::OnReceived(absl::StatusOr<BufferChain> message) {
  receiving_ = false;
  if (released_ || !read_end_.ok()) return;
  if (IsEof(message.status())) {
    // Its stream has not said that this was all.
    read_end_ = Explain(absl::StatusCode::kUnavailable, "read from",
                        "the endpoint was closed before the end of the stream");
  } else if (!message.ok()) {
    read_end_ = message.status();
  } else if (message->empty()) {
    read_end_ = Explain(absl::StatusCode::kOutOfRange, "read from", "end of stream");
  } else {
    unread_ = *std::move(message);
  }
  Service();
}

// --- Deadlines ---

absl::Duration& StreamOverEndpoint::After(Limit limit) {
  switch (limit) {
    case Limit::kRead:
      return options_.read_deadline;
    case Limit::kWrite:
      return options_.write_deadline;
    default:
      return options_.idle_deadline;
  }
}

bool StreamOverEndpoint::Runs(Limit limit) const {
  switch (limit) {
    case Limit::kRead:
      return read_done_ != nullptr;
    case Limit::kWrite:
      return queued() > 0;
    default:
      return read_end_.ok() || write_end_.ok();
  }
}

void StreamOverEndpoint::Restart(Limit limit) {
  since_ns_[static_cast<size_t>(limit)] = core_->sys().Now();
}

int64_t StreamOverEndpoint::DeadlineNs(Limit limit) {
  return TimerWheel::DeadlineNs(since_ns_[static_cast<size_t>(limit)], After(limit));
}

void StreamOverEndpoint::SetDeadline(Limit limit, absl::Duration after) {
  if (core_ == nullptr) return;
  After(limit) = after;
  Restart(limit);
  MarkReady();
}

void StreamOverEndpoint::ArmTimer() {
  int64_t next = INT64_MAX;
  for (const Limit limit : {Limit::kRead, Limit::kWrite, Limit::kIdle}) {
    if (Runs(limit)) next = std::min(next, DeadlineNs(limit));
  }
  if (next == INT64_MAX) return timer_->Cancel();
  timer_->Arm(TimerWheel::TickAtOrAfter(next), [this] { CheckDeadlines(); });
}

void StreamOverEndpoint::CheckDeadlines() {
  const int64_t now = core_->sys().Now();
  const auto passed = [&](Limit limit) { return Runs(limit) && now >= DeadlineNs(limit); };
  const bool write = passed(Limit::kWrite);
  if (write || passed(Limit::kIdle)) {
    core_->counters().deadlines.Add(1);
    endpoint_->Abort();
    Fail(Explain(absl::StatusCode::kDeadlineExceeded, "connection to",
                 write ? "queued bytes made no progress" : "no byte either way"));
  } else if (passed(Limit::kRead)) {
    core_->counters().deadlines.Add(1);
    read_timed_out_ = true;
    MarkReady();
  } else {
    ArmTimer();
  }
}

absl::Status StreamOverEndpoint::Refusal(std::string_view operation,
                                         std::string_view reason) const {
  return Explain(absl::StatusCode::kFailedPrecondition,
                 absl::StrCat(std::string(operation), " on connection to"), reason);
}

absl::Status StreamOverEndpoint::Explain(absl::StatusCode code, std::string_view operation,
                                         std::string_view reason) const {
  const SocketAddress peer = endpoint_->peer();
  return PeerStatus(code, operation, &peer, reason);
}

}  // namespace internal

StreamPtr AsStream(std::unique_ptr<RdmaEndpoint> endpoint, const StreamOptions& options) {
  return std::make_unique<internal::EndpointStream>(std::move(endpoint), options);
}

PENSTOCK_END_NAMESPACE
