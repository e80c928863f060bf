#include "secure/sealed_stream.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/error.h"
#include "base/set_empty.h"
#include "buffer/block.h"
#include "engine/connection.h"
#include "secure/frame_sizes.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Callbacks and records one stream may have before the next one's turn (I9).
constexpr int kSealedSteps = 32;
// Bytes of records handed down at once, if one record is not larger: enough for one large send, and
// still in the processor's cache when that sends them.
constexpr size_t kBatchMax = 4 * kRecordFrameNative;
// While others wait for room in the pool: what is sealed lies in it until the peer takes it.
constexpr size_t kBatchMin = kRecordFrameGrpc;
// For comparison: what grpc-go's ALTS connections hold for their reads.
constexpr size_t kPinnedBuffer = 33'280;
// How long the end of a stream that was destroyed may take to leave.
constexpr absl::Duration kLingerMax = absl::Seconds(5);

}  // namespace

absl::StatusOr<StreamPtr> SealedStream::Create(SealLoop& seal_loop, StreamPtr&& below,
                                               HandshakeResult keys, BufferChain first) {
  const absl::StatusOr<FrameSizes> frames = ChooseFrameSizes(
      keys.mode,
      {.send_frame_max = keys.send_frame_max, .receive_frame_max = keys.receive_frame_max});
  if (!frames.ok()) return frames.status();
  keys.send_frame_max = frames->send_max;
  keys.receive_frame_max = frames->receive_max;
  const RecordSender us = keys.server ? RecordSender::kServer : RecordSender::kClient;
  const RecordSender them = keys.server ? RecordSender::kClient : RecordSender::kServer;
  absl::StatusOr<KeySchedule> send = KeySchedule::Create(keys.protocol, us, keys.send_key.view());
  if (!send.ok()) return send.status();
  absl::StatusOr<KeySchedule> receive =
      KeySchedule::Create(keys.protocol, them, keys.receive_key.view());
  if (!receive.ok()) return receive.status();
  auto* const stream = ::new (::operator new(sizeof(SealedStream))) SealedStream(
      seal_loop, std::move(below), keys, RecordCipher(seal_loop.contexts(), *std::move(send)),
      RecordCipher(seal_loop.contexts(), *std::move(receive)));
  if (Connection* const connection = stream->connection()) connection->AddLayer(*stream);
  stream->hungry_ = first.empty();
  while (!first.empty()) stream->opener_->Feed(first.PopFront());
  stream->UpdatePinned();
  // The end of the handshake may still be queued below, and count there: the first batch waits.
  if (stream->below_->stats().queued_bytes > 0) stream->SendBelow(BufferChain());
  return StreamPtr(stream);
}

SealedStream::SealedStream(SealLoop& seal_loop, StreamPtr below, const HandshakeResult& keys,
                           RecordCipher send, RecordCipher receive)
    : Deferred([](Deferred* node) { static_cast<SealedStream*>(node)->Service(); }),
      seal_loop_(&seal_loop),
      below_(std::move(below)),
      mode_(keys.mode),
      bounds_(below_->send_bounds()) {
  BufferPool& pool = seal_loop.core().pool();
  opener_.emplace(std::move(receive), pool, keys.mode, keys.receive_frame_max);
  sealer_.emplace(std::move(send), pool, keys.mode, keys.send_frame_max);
  seal_loop.Join(*this);
  if (below_->stats().pinned_read_size != 0) {
    pinned_buffer_ = pool.TryAllocate(kPinnedBuffer, BufferTag::kSeal);
  }
}

// --- The owner's side ---

void SealedStream::ReadReady(ReadCallback done) {
  if (seal_loop_ == nullptr) return;
  if (read_done_) [[unlikely]] {
    RefuseRead(std::move(done));
  } else {
    SetEmpty(read_done_, std::move(done));
  }
  MarkReady();
}

void SealedStream::CancelRead() {
  if (seal_loop_ == nullptr || !read_done_) return;
  read_cancelled_ = true;
  if (reading_below_) below_->CancelRead();
  MarkReady();
}

void SealedStream::Write(BufferChain data, DoneCallback done) {
  if (seal_loop_ == nullptr) return;
  if (write_side_ != WriteSide::kOpen || !write_end_.ok() || queued() + data.size() > bounds_.max)
      [[unlikely]] {
    RefuseWrite(data.size(), std::move(done));
  } else {
    written_ += data.size();
    plain_.Append(std::move(data));
    if (done) AddWrite(std::move(done));
  }
  MarkReady();
}

void SealedStream::NotifyWritable(DoneCallback done) {
  if (seal_loop_ == nullptr) return;
  if (extras().writable_done) {
    AddRefusedWrite(std::move(done), Refusal("notify-writable", "one is pending already"));
  } else {
    extras().writable_done = std::move(done);
  }
  MarkReady();
}

void SealedStream::ShutdownWrite(DoneCallback done) {
  if (seal_loop_ == nullptr) return;
  if (write_side_ != WriteSide::kOpen) {
    AddRefusedWrite(std::move(done), Refusal("shutdown-write", "done already"));
  } else {
    write_side_ = WriteSide::kShutdownQueued;
    if (done) extras().shutdown_done = std::move(done);
  }
  MarkReady();
}

void SealedStream::ShutdownRead() {
  if (seal_loop_ == nullptr || read_shut_) return;
  read_shut_ = true;
  if (read_end_.ok()) {
    read_end_ = absl::OutOfRangeError(
        absl::StrCat("read from ", peer().ToString(), ": given up by ShutdownRead"));
    below_->ShutdownRead();
  }
  MarkReady();
  DropReceived();
}

void SealedStream::Abort() {
  if (seal_loop_ == nullptr || (!read_end_.ok() && !write_end_.ok())) return;
  // The stream below has ended both ways: what is written later hears how.
  if (IsReset(read_end_) || IsDeadlineExceeded(read_end_)) return;
  read_end_ = write_end_ =
      absl::CancelledError(absl::StrCat("connection to ", peer().ToString(), ": aborted"));
  below_->Abort();
  MarkReady();
  // Destroyed last: releasing an external buffer runs the caller's code.
  const BufferChain unsent = plain_.Take();
  DropReceived();
}

StreamStats SealedStream::stats() const {
  StreamStats stats = below_->stats();
  stats.bytes_in = bytes_in_;
  stats.bytes_out = bytes_out_;
  stats.queued_bytes = queued();
  stats.sealed_pinned_bytes = plain_.block_bytes() + PinnedForReads();
  return stats;
}

// --- Ending ---

void SealedStream::Drop() {
  if (--holds_ > 0) return;
  this->~SealedStream();
  ::operator delete(this);
}

bool SealedStream::EndsInOrder() const {
  return seal_loop_ != nullptr && mode_ == RecordMode::kNative && write_end_.ok() &&
         written_ == bytes_out_ && write_side_ != WriteSide::kShut;
}

void SealedStream::ReleaseOwner() {
  // Destroyed last: a callback may own other streams, and releasing an external buffer runs the
  // caller's code.
  const Callbacks unrun = TakeCallbacks();
  Connection* const below = connection();
  const auto unmoved = below ? below->TakeMoveCallbacks() : Connection::MoveCallbacks();
  const BufferChain unsent = plain_.Take();
  released_ = true;
  if (EndsInOrder()) {
    // As a socket that is closed: everything was sent, so the peer may know that it was all.
    lingering_ = true;
    if (write_side_ == WriteSide::kOpen) write_side_ = WriteSide::kShutdownQueued;
    below_->SetWriteDeadline(kLingerMax);
    MarkReady();
    DropReceived();
    UpdatePinned();
    return;
  }
  DropReceived();
  UpdatePinned();
  if (written_ > bytes_out_ + batch_) below_->Abort();
  ReleaseBelow();
  Drop();
}

void SealedStream::ReleaseBelow() {
  if (below_ == nullptr) return;
  if (Connection* const connection = below_->connection()) connection->RemoveLayer(*this);
  below_ = nullptr;
}

void SealedStream::FinishLinger() {
  lingering_ = false;
  ReleaseBelow();
  Drop();
}

void SealedStream::Fail(absl::Status status) {
  if (read_end_.ok()) read_end_ = status;
  if (write_end_.ok()) write_end_ = std::move(status);
  below_->Abort();
}

// Releasing an external buffer runs the caller's code, which may destroy the stream.
void SealedStream::DropReceived() {
  Hold();
  pinned_buffer_.Reset();
  if (!opening_) opener_.reset();
  Drop();
}

// --- Work ---

void SealedStream::MarkReady() {
#ifndef NDEBUG
  PENSTOCK_CHECK(seal_loop_->core().MayUse(), "a stream used off its loop's thread");
#endif
  if (!in_service_) seal_loop_->core().Defer(*this);
}

void SealedStream::Service() {
  if (in_service_) return;
  Hold();
  in_service_ = true;
  int steps = kSealedSteps;
  while (steps > 0 && Step()) --steps;
  in_service_ = false;  // what a buffer's release in Settle asks for gets a turn of its own
  Settle();
  if (steps == 0 && !released_) MarkReady();
  Drop();
}

bool SealedStream::Step() {
  if (released_) return false;
  if (!write_end_.ok()) {
    const BufferChain unsent = plain_.Take();
    if (write_side_ == WriteSide::kShutdownQueued) FinishShutdown(write_end_);
  }
  // Each gets its turn: neither a flood of records nor a writer that feeds itself keeps the others
  // out.
  const bool wrote = RunWriteDone();
  const bool read = RunReadDone();
  const bool more = extras_ != nullptr && RunExtras();
  return more || ((wrote || read) && HasMore());
}

bool SealedStream::RunWriteDone() {
  if (!first_write_.done) return false;
  absl::Status status;
  if (!first_write_.refusal.ok()) [[unlikely]] {
    status = std::exchange(first_write_.refusal, absl::OkStatus());
  } else if (bytes_out_ < first_write_.end) {
    if (write_end_.ok()) return false;
    status = write_end_;
  }
  DoneCallback done = std::move(first_write_.done);  // leaves it empty
  if (extras_ != nullptr) [[unlikely]]
    UnqueueWrite();
  std::move(done)(std::move(status));
  return true;
}

template <typename Work>
auto SealedStream::WithOpener(Work work) {
  opening_ = true;
  const absl::Cleanup done = [this] {
    opening_ = false;
    if (released_ || !read_end_.ok()) [[unlikely]]
      DropOpener();
  };
  return work(*opener_);
}

void SealedStream::DropOpener() {
  opener_.reset();
  if (released_) UpdatePinned();  // whoever called does no more
}

void SealedStream::DropSealer() { sealer_.reset(); }

bool SealedStream::RunReadDone() {
  if (!read_done_ || read_waits()) return false;
  if (hungry_ || read_cancelled_ || !read_end_.ok()) [[unlikely]]
    return RunReadEnded();
  Buffer bytes;
  switch (Open(bytes)) {
    case RecordOpener::Result::kData:
      bytes_in_ += BufferAccess::Node(bytes)->size;
      Deliver(std::move(bytes));
      return true;
    case RecordOpener::Result::kAgain:
      return true;
    case RecordOpener::Result::kNoRoom:
      seal_loop_->WaitForRoom(*this);
      return false;
    default:
      return !released_ && RunReadEnded();
  }
}

bool SealedStream::RunReadEnded() {
  if (read_cancelled_) {
    if (reading_below_) return false;  // what it brings comes first
    Deliver(absl::CancelledError(
        absl::StrCat("read from ", peer().ToString(), ": cancelled by CancelRead")));
    return true;
  }
  if (read_end_.ok() && hungry_ && wire_ended_) {
    absl::Status end = WithOpener([](RecordOpener& opener) { return opener.OnWireEnd(); });
    if (released_) return false;
    if (read_end_.ok()) read_end_ = Explain(end, "read from");
  }
  if (!read_end_.ok()) {
    Deliver(read_end_);
  } else if (!read_below_.ok()) {
    Deliver(read_below_);
  } else {
    return false;
  }
  return true;
}

RecordOpener::Result SealedStream::Open(Buffer& bytes) {
  const RecordOpener::Result result =
      WithOpener([&bytes](RecordOpener& opener) { return opener.Next(bytes); });
  if (!opener_.has_value()) return RecordOpener::Result::kNeedMore;
  seal_loop_->OnUse();
  if (result == RecordOpener::Result::kData) [[likely]] {
    hungry_ = opener_->drained();
    return result;
  }
  return OpenedNothing(result);
}

RecordOpener::Result SealedStream::OpenedNothing(RecordOpener::Result result) {
  if (result == RecordOpener::Result::kEnd) {
    // Bytes after the end that have come with it are an error, not an end.
    Buffer nothing;
    result = WithOpener([&nothing](RecordOpener& opener) { return opener.Next(nothing); });
    if (!opener_.has_value()) return RecordOpener::Result::kNeedMore;
  }
  switch (result) {
    case RecordOpener::Result::kNeedMore:
      hungry_ = true;
      break;
    case RecordOpener::Result::kEnd:
      read_end_ =
          absl::OutOfRangeError(absl::StrCat("read from ", peer().ToString(), ": end of stream"));
      break;
    case RecordOpener::Result::kError:
      Fail(Explain(opener_->status(), "read from"));
      break;
    default:
      break;
  }
  if (!read_end_.ok()) opener_.reset();
  return result;
}

void SealedStream::Deliver(absl::StatusOr<Buffer>&& result) {
  read_cancelled_ = false;
  if (!read_below_.ok()) [[unlikely]]
    read_below_ = absl::OkStatus();
  ReadCallback done = std::move(read_done_);  // leaves it empty
  std::move(done)(std::move(result));
}

bool SealedStream::RunExtras() {
  if (extras_->writable_done && (!write_end_.ok() || queued() <= bounds_.low)) {
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

void SealedStream::Settle() {
  if (released_ && !lingering_) return;
  const bool sending = write_end_.ok();
  if (!plain_.empty() || write_side_ == WriteSide::kShutdownQueued) Pump();
  if (!write_end_.ok() || write_side_ >= WriteSide::kEndSent) [[unlikely]]
    DropSealer();
  if (lingering_ && !write_end_.ok()) return FinishLinger();
  if (sending && !write_end_.ok()) seal_loop_->core().Defer(*this);  // those who wait hear of it
  if (released_) return;
  if (extras_ != nullptr) WatchExtras();
  const bool at_rest = !read_done_ || hungry_;
  if (at_rest && opener_.has_value() && opener_->holds_bytes() &&
      (!pinned_buffer_ || opener_->pinned_bytes() > kPinnedBuffer)) {
    WithOpener([](RecordOpener& opener) { opener.Rest(); });
    if (released_) return;
  }
  if (read_done_ && read_waits() && !reading_below_) {
    reading_below_ = true;
    below_->ReadReady([this](absl::StatusOr<Buffer>&& data) { OnReadBelow(std::move(data)); });
  }
  UpdatePinned();
}

// --- The stream below ---

void SealedStream::OnReadBelow(absl::StatusOr<Buffer>&& data) {
  reading_below_ = false;
  if (!data.ok()) [[unlikely]]
    return OnReadBelowEnded(data.status());
  if (opener_.has_value()) {  // else reading has ended: nobody wants it
    opener_->Feed(*std::move(data));
    hungry_ = false;
  }
  Service();
}

void SealedStream::OnReadBelowEnded(const absl::Status& end) {
  Hold();
  if (!opener_.has_value()) {
    // Reading has ended already.
  } else if (IsEof(end)) {
    wire_ended_ = true;
  } else if (GoesOnAfter(end)) {
    read_below_ = end;
  } else {
    // What this stream failed by itself, and aborted the one below for, stays the reason.
    if (read_end_.ok()) read_end_ = end;
    DropReceived();
  }
  Service();
  Drop();
}

bool SealedStream::GoesOnAfter(const absl::Status& end) const {
  if (IsCancelled(end)) return read_cancelled_;
  // A deadline may end one read, or the stream below.
  const Connection* const connection = below_->connection();
  return IsDeadlineExceeded(end) &&
         (connection == nullptr || connection->state() == ConnectionState::kOpen);
}

void SealedStream::Pump() {
  if (writing_below_ || !write_end_.ok()) return;
  if (write_side_ == WriteSide::kEndSent || write_side_ == WriteSide::kShut) return;
  BufferChain wire;
  if (!plain_.empty()) SealQueued(wire);
  if (released_ && !lingering_) return;  // by what releasing a sealed buffer ran
  const bool end = write_side_ == WriteSide::kShutdownQueued && plain_.empty() && write_end_.ok() &&
                   SealEnd(wire);
  if (!write_end_.ok()) return;
  if (!wire.empty()) SendBelow(std::move(wire));
  if (end) {
    write_side_ = WriteSide::kEndSent;
    below_->ShutdownWrite([this](absl::Status status) { OnShutBelow(std::move(status)); });
  }
}

void SealedStream::SealQueued(BufferChain& wire) {
  const size_t batch_max = seal_loop_->core().waiting_for_room()
                               ? kBatchMin
                               : std::max<size_t>(kBatchMax, sealer_->frame_max());
  // The stream below takes a batch whole or not at all, and the end record may join it.
  const size_t room_below = bounds_.max - std::min(bounds_.max, kRecordOverhead);
  // Taken out, for releasing what was sealed may run code that writes more.
  BufferChain plain = plain_.TakeFront(batch_max);
  const size_t before = plain.size();
  const RecordSealer::Result result = sealer_->Seal(plain, wire, std::min(batch_max, room_below));
  seal_loop_->OnUse();
  batch_ = before - plain.size();
  if (released_) return;
  plain_.Prepend(std::move(plain));
  // What was sealed has left without room; but nobody shall take more than a little while others
  // need some to receive.
  if (sealer_->short_of_room()) seal_loop_->WaitForRoom(*this);
  if (result == RecordSealer::Result::kError) Fail(Explain(sealer_->status(), "write to"));
}

// True when the direction may be shut after `wire`.
bool SealedStream::SealEnd(BufferChain& wire) {
  if (mode_ == RecordMode::kGrpc) return true;
  const RecordSealer::Result result = sealer_->SealEnd(wire);
  seal_loop_->OnUse();
  if (result == RecordSealer::Result::kError) Fail(Explain(sealer_->status(), "write to"));
  return result == RecordSealer::Result::kSealed;
}

void SealedStream::SendBelow(BufferChain wire) {
  writing_below_ = true;
  below_->Write(std::move(wire),
                [this](absl::Status&& status) { OnWrittenBelow(std::move(status)); });
}

void SealedStream::OnWrittenBelow(absl::Status&& status) {
  writing_below_ = false;
  const uint64_t sent = std::exchange(batch_, 0);
  if (status.ok()) {
    bytes_out_ += sent;
  } else if (write_end_.ok()) {
    write_end_ = std::move(status);
  }
  if (lingering_ && !write_end_.ok()) return FinishLinger();
  Service();
}

void SealedStream::OnShutBelow(absl::Status status) {
  if (lingering_) return FinishLinger();
  if (write_end_.ok()) write_end_ = status;
  FinishShutdown(write_end_);
  Service();
}

void SealedStream::FinishShutdown(absl::Status status) {
  write_side_ = WriteSide::kShut;
  if (extras_ != nullptr && extras_->shutdown_done) {
    AddRefusedWrite(std::exchange(extras_->shutdown_done, nullptr), std::move(status));
  }
}

// --- Helpers ---

SealedStream::Callbacks SealedStream::TakeCallbacks() {
  if (extras_ != nullptr && seal_loop_ != nullptr)
    seal_loop_->core().timers().Cancel(extras_->rest);
  return Callbacks{std::exchange(read_done_, nullptr), std::exchange(first_write_, {}),
                   std::move(extras_)};
}

void SealedStream::AddWrite(DoneCallback&& done) {
  if (first_write_.done) return QueueWrite({written_, std::move(done), absl::OkStatus()});
  first_write_.end = written_;
  SetEmpty(first_write_.done, std::move(done));
}

absl::Status SealedStream::Refusal(std::string_view operation, std::string_view reason) const {
  return absl::FailedPreconditionError(absl::StrCat(std::string(operation), " on connection to ",
                                                    peer().ToString(), ": ", std::string(reason)));
}

absl::Status SealedStream::Explain(const absl::Status& status, std::string_view operation) const {
  absl::Status explained(status.code(), absl::StrCat(std::string(operation), " ", peer().ToString(),
                                                     ": ", std::string(status.message())));
  return IsUnauthenticatedEof(status) ? AsUnauthenticatedEof(std::move(explained)) : explained;
}

uint64_t SealedStream::QueuedBehind(uint64_t waiting) const {
  // The part of the batch that the stream below has already passed on is no longer queued.
  return waiting - batch_ + std::min(batch_, below_->stats().queued_bytes);
}

void SealedStream::CountPinned() {
  if (seal_loop_ == nullptr) return;
  const uint64_t pinned = plain_.block_bytes() + PinnedForReads();
  if (pinned == pinned_) return;
  seal_loop_->core().counters().sealed_pinned_bytes.Add(pinned - std::exchange(pinned_, pinned));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
