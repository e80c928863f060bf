#include <penstock/framed_reader.h>

#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/fifo.h"
#include "buffer/compact_chain.h"
#include "engine/connection.h"
#include "engine/deferred.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace {

using internal::Deferred;
using internal::LoopCore;

// Frames delivered in a row before others get their turn (I9).
constexpr int kFramesInARow = 32;

uint64_t BigEndian(std::string_view bytes) {
  uint64_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<uint8_t>(byte);
  return value;
}

absl::StatusOr<uint64_t> GrpcBodySize(std::string_view header) {
  if (const auto flag = static_cast<uint8_t>(header[0]); flag > 1) {
    return absl::InvalidArgumentError(absl::StrCat("compressed flag ", int{flag}, " in a header"));
  }
  return BigEndian(header.substr(1));
}

absl::StatusOr<uint64_t> Http2BodySize(std::string_view header) {
  return BigEndian(header.substr(0, 3));
}

}  // namespace

FrameFormat FrameFormat::Grpc(size_t body_max) { return {5, GrpcBodySize, body_max}; }

FrameFormat FrameFormat::Http2(size_t body_max) { return {9, Http2BodySize, body_max}; }

// Stays where it is: the stream's callback and the loop's lists point at it.
//
// What it calls (callbacks, whoever lent external memory that is released) may destroy the reader.
// It then lets go of everything but held_, which may be at work, and lives until the last Busy has
// gone: whoever called out looks at dropped_ before it goes on.
class FramedReader::Core final : private internal::Layer {
 public:
  Core(StreamPtr stream, const FrameFormat& format);
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  // The reader has gone.
  void Drop();

  void ReadFrame(ReadCallback&& done);
  void CancelRead();
  Stream& stream() const { return *stream_; }
  size_t pinned_bytes() const { return held_.pinned_bytes() + pinned_buffer_.block_size(); }

 private:
  // What the loop is to run.
  struct Hook : Deferred {
    Hook(Run run, Core& core) : Deferred(run), core(core) {}
    Core& core;
  };
  // Around all that may call out.
  class Busy {
   public:
    explicit Busy(Core& core) : core_(core) { ++core_.busy_; }
    ~Busy() {
      if (--core_.busy_ == 0 && core_.dropped_) delete &core_;
    }
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;

   private:
    Core& core_;
  };

  ~Core();

  bool InFrame() const { return header_filled_ > 0; }
  bool FrameReady() const {
    return InFrame() && header_filled_ == format_.header_size && held_.size() >= body_size_;
  }
  // Something can be delivered without a byte more from the stream.
  bool HasWork() const {
    return !refused_.empty() ||
           (done_ && !reading_ && (cancelled_ || FrameReady() || !once_.ok() || !end_.ok()));
  }
  void OnRead(absl::StatusOr<Buffer> bytes);
  void OnStreamEnd(absl::Status status);
  void OnLoopEnd();
  void OnLeave() override;
  absl::Status OnJoin(LoopCore& loop) override;
  void OnLost() override;
  void TakeHeader();
  Frame TakeFrame();
  void End(absl::Status status);
  // Delivers what there is, boundedly.
  void Run();
  // One delivery; false when there was none to make.
  bool Step();
  void Deliver(absl::StatusOr<Frame> result);
  // Sees to it that what is pending goes on, and that what waits holds little.
  void Settle();
  void UpdatePinned();
  void GiveUpMemory();
  absl::Status Explain(absl::StatusCode code, std::string_view reason) const;

  StreamPtr stream_;
  const FrameFormat format_;
  LoopCore* loop_;  // null when it has gone
  ReadCallback done_;
  internal::Fifo<ReadCallback> refused_;
  absl::Status once_;  // not OK: how the stream's read ended, though it may go on
  absl::Status end_;   // not OK: how it all ended

  std::array<char, FrameFormat::kHeaderMax> header_;
  size_t header_filled_ = 0;
  size_t body_size_ = 0;         // once the header is whole
  internal::CompactChain held_;  // what follows the header
  size_t pinned_ = 0;            // as the loop's figures have it
  Buffer pinned_buffer_;         // StreamOptions::pinned_reads
  bool reading_ = false;         // the stream has a read of ours
  bool pinned_reads_ = false;
  bool cancelled_ = false;
  bool dropped_ = false;
  int busy_ = 0;
  Hook turn_;
  Hook loop_end_;
};

FramedReader::Core::Core(StreamPtr stream, const FrameFormat& format)
    : stream_(std::move(stream)),
      format_(format),
      loop_(&stream_->loop().core()),
      turn_([](Deferred* hook) { static_cast<Hook*>(hook)->core.Run(); }, *this),
      loop_end_([](Deferred* hook) { static_cast<Hook*>(hook)->core.OnLoopEnd(); }, *this) {
  if (format_.header_size < 1 || format_.header_size > FrameFormat::kHeaderMax ||
      format_.body_size == nullptr) {
    end_ = Explain(absl::StatusCode::kFailedPrecondition,
                   absl::StrCat("a format needs a header of 1 to ", FrameFormat::kHeaderMax,
                                " bytes and a body_size function"));
  }
  loop_->AtEnd(loop_end_);
  if (internal::Connection* const connection = stream_->connection()) connection->AddLayer(*this);
  if (const uint32_t size = stream_->stats().pinned_read_size; size > 0) {
    pinned_buffer_ = loop_->pool().TryAllocate(size, BufferTag::kFrame);
    pinned_reads_ = true;
    UpdatePinned();
  }
}

FramedReader::Core::~Core() = default;

void FramedReader::Core::Drop() {
  const Busy busy(*this);
  dropped_ = true;
  if (internal::Connection* const connection = stream_->connection()) {
    connection->RemoveLayer(*this);
  }
  turn_.Cancel();
  loop_end_.Cancel();
  if (loop_ != nullptr) loop_->counters().framed_pinned_bytes.Sub(std::exchange(pinned_, 0));
  loop_ = nullptr;
  pinned_buffer_.Reset();
  const internal::Fifo<ReadCallback> refused = std::move(refused_);
  const ReadCallback done = std::exchange(done_, nullptr);
  const StreamPtr stream = std::move(stream_);
}

void FramedReader::Core::ReadFrame(ReadCallback&& done) {
  if (loop_ == nullptr) return;
  if (done_) {
    refused_.push(std::move(done));
  } else {
    done_ = std::move(done);
  }
  const Busy busy(*this);
  if (busy_ == 1) Settle();
}

void FramedReader::Core::CancelRead() {
  if (!done_ || loop_ == nullptr) return;
  cancelled_ = true;
  const Busy busy(*this);
  if (reading_) {
    stream_->CancelRead();
  } else if (busy_ == 1) {
    Settle();
  }
}

void FramedReader::Core::OnRead(absl::StatusOr<Buffer> bytes) {
  const Busy busy(*this);
  reading_ = false;
  if (!bytes.ok()) {
    OnStreamEnd(bytes.status());
  } else {
    held_.Append(*std::move(bytes));
    if (!dropped_) TakeHeader();
  }
  if (!dropped_) Run();
}

void FramedReader::Core::OnStreamEnd(absl::Status status) {
  if (IsCancelled(status) || IsDeadlineExceeded(status)) {
    // If the stream has ended this way it will say so again.
    once_ = std::move(status);
  } else if (IsEof(status) && InFrame()) {
    const std::string part =
        header_filled_ < format_.header_size
            ? absl::StrCat(header_filled_, " bytes of a header of ", format_.header_size)
            : absl::StrCat(held_.size(), " bytes of a body of ", body_size_);
    End(Explain(absl::StatusCode::kDataLoss,
                absl::StrCat("the stream ended after ", part, " (", status.message(), ")")));
  } else {
    End(std::move(status));
  }
}

void FramedReader::Core::OnLoopEnd() {
  const Busy busy(*this);
  turn_.Cancel();
  GiveUpMemory();
  loop_ = nullptr;
  // Destroyed last: a callback may own the reader.
  const internal::Fifo<ReadCallback> refused = std::move(refused_);
  const ReadCallback done = std::exchange(done_, nullptr);
}

void FramedReader::Core::OnLeave() {
  turn_.Cancel();
  loop_end_.Cancel();
  loop_->counters().framed_pinned_bytes.Sub(std::exchange(pinned_, 0));
  loop_ = nullptr;
}

absl::Status FramedReader::Core::OnJoin(LoopCore& loop) {
  loop_ = &loop;
  loop_->AtEnd(loop_end_);
  UpdatePinned();
  if (HasWork()) loop_->Defer(turn_);
  return absl::OkStatus();
}

void FramedReader::Core::OnLost() {
  const Busy busy(*this);
  held_.Clear();
  pinned_buffer_.Reset();
  // Destroyed last: a callback may own the reader.
  const internal::Fifo<ReadCallback> refused = std::move(refused_);
  const ReadCallback done = std::exchange(done_, nullptr);
}

void FramedReader::Core::TakeHeader() {
  if (header_filled_ == format_.header_size) return;
  const size_t size = std::min(format_.header_size - header_filled_, held_.size());
  held_.CopyTo(std::span(header_).subspan(header_filled_, size));
  header_filled_ += size;
  held_.TrimFront(size);
  if (dropped_ || header_filled_ < format_.header_size) return;
  absl::StatusOr<uint64_t> body_size = format_.body_size({header_.data(), header_filled_});
  if (!body_size.ok()) {
    return End(Explain(body_size.status().code(), std::string(body_size.status().message())));
  }
  if (*body_size > format_.body_max) {
    return End(Explain(absl::StatusCode::kResourceExhausted,
                       absl::StrCat("a body of ", *body_size, " bytes is announced, body_max is ",
                                    format_.body_max)));
  }
  body_size_ = static_cast<size_t>(*body_size);
}

Frame FramedReader::Core::TakeFrame() {
  Frame frame;
  frame.header_bytes = header_;
  frame.header_size = static_cast<uint8_t>(header_filled_);
  frame.body = held_.SplitFront(body_size_, loop_->pool(), BufferTag::kFrame);
  header_filled_ = 0;
  TakeHeader();
  return frame;
}

void FramedReader::Core::End(absl::Status status) {
  end_ = std::move(status);
  header_filled_ = 0;
  held_.Clear();
}

void FramedReader::Core::Run() {
  const Busy busy(*this);
  for (int step = 0; step < kFramesInARow; ++step) {
    const bool did = Step();
    if (dropped_) return;
    if (!did) break;
  }
  Settle();
}

bool FramedReader::Core::Step() {
  if (done_ && cancelled_ && !reading_) {
    once_ = absl::OkStatus();
    Deliver(Explain(absl::StatusCode::kCancelled, "cancelled by CancelRead"));
  } else if (done_ && FrameReady()) {
    Frame frame = TakeFrame();
    if (!dropped_) Deliver(std::move(frame));
  } else if (done_ && !once_.ok()) {
    Deliver(std::exchange(once_, absl::OkStatus()));
  } else if (done_ && !end_.ok()) {
    Deliver(end_);
  } else if (!refused_.empty()) {
    ReadCallback done = refused_.pop();
    std::move(done)(Explain(absl::StatusCode::kFailedPrecondition, "one is pending already"));
  } else {
    return false;
  }
  return true;
}

void FramedReader::Core::Deliver(absl::StatusOr<Frame> result) {
  cancelled_ = false;  // it was of the read that ends
  ReadCallback done = std::exchange(done_, nullptr);
  std::move(done)(std::move(result));
}

void FramedReader::Core::Settle() {
  if (loop_ == nullptr) return;
  if (!pinned_reads_ && !HasWork()) held_.Rest(loop_->pool(), BufferTag::kFrame);
  if (dropped_) return;
  if (HasWork()) {
    loop_->Defer(turn_);
  } else if (done_ && !reading_) {
    reading_ = true;
    stream_->ReadReady([this](absl::StatusOr<Buffer> bytes) { OnRead(std::move(bytes)); });
  }
  UpdatePinned();
}

void FramedReader::Core::UpdatePinned() {
  const size_t pinned = pinned_bytes();
  if (pinned == pinned_) return;
  loop_->counters().framed_pinned_bytes.Add(pinned - std::exchange(pinned_, pinned));
}

void FramedReader::Core::GiveUpMemory() {
  held_.Clear();
  if (dropped_) return;
  pinned_buffer_.Reset();
  UpdatePinned();
}

absl::Status FramedReader::Core::Explain(absl::StatusCode code, std::string_view reason) const {
  const SocketAddress peer = stream_->peer();
  return internal::PeerStatus(code, "read a frame from", &peer, reason);
}

FramedReader::FramedReader(StreamPtr stream, const FrameFormat& format)
    : core_(new Core(std::move(stream), format)) {}

FramedReader::~FramedReader() = default;
FramedReader::FramedReader(FramedReader&& other) noexcept = default;
FramedReader& FramedReader::operator=(FramedReader&& other) noexcept = default;

void FramedReader::Drop::operator()(Core* core) const { core->Drop(); }

void FramedReader::ReadFrame(ReadCallback done) { core_->ReadFrame(std::move(done)); }
void FramedReader::CancelRead() { core_->CancelRead(); }
Stream& FramedReader::stream() const { return core_->stream(); }
size_t FramedReader::pinned_bytes() const { return core_->pinned_bytes(); }

PENSTOCK_END_NAMESPACE
