// Any bytes in any pieces, with cancels and deadlines between them, come out of a framed reader as
// the frames that a plain walk over the bytes finds, and it holds no more than it may.
#include <penstock/framed_reader.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "testing/scripted_stream.h"

namespace penstock::internal {
namespace {

constexpr size_t kBodyMax = 2 * 1024;

absl::StatusOr<uint64_t> BodySize(std::string_view header) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(header[header.size() - i]); };
  if (header[0] == '\x7f') return absl::InvalidArgumentError("bad header");
  return at(1) + (header.size() > 1 ? (at(2) & 0x3f) << 8 : 0);
}

void Expect(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "framed reader: %s\n", what);
  std::abort();
}

// The input: bytes of the stream from the front, choices from the back.
class Session {
 public:
  Session(Loop& loop, std::string_view input) : loop_(loop), wire_(input) {
    const FrameFormat format{
        .header_size = 1 + Choice() % FrameFormat::kHeaderMax,
        .body_size = BodySize,
        .body_max = kBodyMax,
    };
    header_size_ = format.header_size;
    auto stream = std::make_unique<ScriptedStream>(loop);
    stream_ = stream.get();
    reader_ = std::make_unique<FramedReader>(std::move(stream), format);
  }

  void Run() {
    while (!wire_.empty()) Step();
    const auto ended = [this] {
      return !end_.ok() && !IsCancelled(end_) && !IsDeadlineExceeded(end_);
    };
    for (int i = 0; i < 10'000 && !ended(); ++i) {
      Read();
      if (stream_->reading()) {
        stream_->End(stream_->cancelled() ? absl::CancelledError("cancelled")
                                          : absl::OutOfRangeError("end of stream"));
      }
      loop_.Poll();
      CheckBound();
    }
    Compare();
    reader_.reset();
    Expect(loop_.pool().Stats().live == 0, "it kept a buffer");
  }

 private:
  uint8_t Choice() {
    if (wire_.empty()) return 0;
    const auto choice = static_cast<uint8_t>(wire_.back());
    wire_.remove_suffix(1);
    return choice;
  }

  void Read() {
    if (pending_) return;
    pending_ = true;
    reader_->ReadFrame([this](absl::StatusOr<Frame> frame) {
      pending_ = false;
      if (!frame.ok()) {
        end_ = frame.status();
        return;
      }
      frames_.push_back(std::string(frame->header()) + frame->body.ToString());
      delivered_ += frames_.back().size();
      if (Choice() % 4 != 0) Read();
    });
    Expect(pending_, "it called back inside ReadFrame");
  }

  void Step() {
    switch (const uint8_t choice = Choice(); choice % 8) {
      case 0:
        reader_->CancelRead();
        break;
      case 1:
        if (stream_->reading()) stream_->End(absl::DeadlineExceededError("late"));
        break;
      case 2:
        loop_.Poll();
        Expect(loop_.pool().Stats().live <= reader_->pinned_bytes(), "it holds more than it says");
        break;
      default:
        Read();
        if (stream_->cancelled() && choice % 16 == 3) {
          stream_->End(absl::CancelledError("cancelled"));
        } else if (stream_->reading()) {
          Give(choice % 8 == 7 ? Choice() * 64 : choice / 8);
        } else {
          loop_.Poll();
        }
    }
    CheckBound();
  }

  // As a receive leaves them: in a block of any size.
  void Give(size_t size) {
    size = std::clamp<size_t>(size, 1, wire_.size());
    if (wire_.empty()) return;
    Buffer bytes = *loop_.pool().Allocate(std::max<size_t>(size, Choice() * 300));
    size = std::min(size, wire_.size());
    if (size == 0) return;
    bytes.Extend(size);
    wire_.copy(bytes.mutable_data(), size);
    given_ += wire_.substr(0, size);
    wire_.remove_prefix(size);
    stream_->End(std::move(bytes));
  }

  void CheckBound() {
    const size_t pinned = reader_->pinned_bytes();
    if (!stream_->reading()) return;
    // It waits, with what came of one frame.
    const size_t part = given_.size() - delivered_;
    Expect(pinned <= std::max<size_t>(256, 2 * part), "it pins more than twice what came");
    Expect(pinned == 0 || part > header_size_ + 16, "it pins a block for a header");
  }

  void Compare() {
    std::string_view left = given_;
    size_t frame = 0;
    absl::StatusCode end = absl::StatusCode::kOutOfRange;
    while (!left.empty()) {
      const size_t header = std::min(header_size_, left.size());
      end = absl::StatusCode::kDataLoss;
      if (header < header_size_) break;
      const absl::StatusOr<uint64_t> body = BodySize(left.substr(0, header));
      if (!body.ok() || *body > kBodyMax) {
        end = body.ok() ? absl::StatusCode::kResourceExhausted : body.status().code();
        break;
      }
      if (left.size() < header + *body) break;
      Expect(frame < frames_.size(), "a frame is missing");
      Expect(frames_[frame++] == left.substr(0, header + *body), "a frame differs");
      left.remove_prefix(header + *body);
      end = absl::StatusCode::kOutOfRange;
    }
    Expect(frame == frames_.size(), "there is a frame too many");
    Expect(end_.code() == end, "it ended for another reason");
  }

  Loop& loop_;
  std::string_view wire_;
  size_t header_size_ = 0;
  std::string given_;
  size_t delivered_ = 0;
  std::vector<std::string> frames_;
  absl::Status end_;
  bool pending_ = false;
  ScriptedStream* stream_ = nullptr;
  std::unique_ptr<FramedReader> reader_;
};

}  // namespace
}  // namespace penstock::internal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::unique_ptr<penstock::Loop> loop = [] {
    penstock::LoopOptions options;
    options.engine = penstock::EngineKind::kEpoll;
    return *penstock::Loop::Create(std::move(options));
  }();
  penstock::internal::Session session(*loop, {reinterpret_cast<const char*>(data), size});
  session.Run();
  return 0;
}
