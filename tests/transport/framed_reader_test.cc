#include <penstock/framed_reader.h>

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "testing/allocations.h"
#include "testing/fate.h"
#include "testing/pattern.h"
#include "testing/scripted_stream.h"

namespace penstock::internal {
namespace {

using namespace std::string_literals;

std::string Message(std::string_view body) {
  std::string wire(5, '\0');
  for (int i = 0; i < 4; ++i) wire[4 - i] = static_cast<char>(body.size() >> (8 * i));
  return absl::StrCat(wire, std::string(body));
}

class FramedReaderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    LoopOptions options;
    options.engine = EngineKind::kEpoll;
    absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
  }

  FramedReader& Make(const FrameFormat& format = FrameFormat::Grpc()) {
    auto stream = std::make_unique<ScriptedStream>(*loop_);
    stream_ = stream.get();
    reader_ = std::make_unique<FramedReader>(std::move(stream), format);
    return *reader_;
  }

  // Each outcome as a text: the body, or the code and message of the error.
  FramedReader::ReadCallback Note() {
    return [this](absl::StatusOr<Frame> frame) {
      notes_.push_back(frame.ok() ? frame->body.ToString() : frame.status().ToString());
    };
  }
  std::string Last() const { return notes_.empty() ? "nothing" : notes_.back(); }
  void Turn() { loop_->Poll(); }
  size_t live() const { return loop_->pool().Stats().live; }

  std::unique_ptr<Loop> loop_;
  ScriptedStream* stream_ = nullptr;
  std::vector<std::string> notes_;
  std::unique_ptr<FramedReader> reader_;
};

TEST_F(FramedReaderTest, ReadsTheHeadersOfGrpcAndHttp2) {
  const FrameFormat grpc = FrameFormat::Grpc();
  EXPECT_EQ(grpc.header_size, 5u);
  EXPECT_EQ(*grpc.body_size(std::string_view("\0\1\2\3\4", 5)), 0x01020304u);
  EXPECT_EQ(*grpc.body_size("\1\xff\xff\xff\xff"), 0xffffffffu);
  EXPECT_TRUE(absl::IsInvalidArgument(grpc.body_size("\2\1\1\1\1").status()));
  const FrameFormat http2 = FrameFormat::Http2();
  EXPECT_EQ(http2.header_size, 9u);
  EXPECT_EQ(http2.body_max, 16384u);
  EXPECT_EQ(*http2.body_size("\x01\x02\xf0_flag_id"), 0x0102f0u);
}

TEST_F(FramedReaderTest, AFormatThatIsNoneIsRefused) {
  for (const FrameFormat& format :
       {FrameFormat{}, FrameFormat{.header_size = 65, .body_size = FrameFormat::Grpc().body_size},
        FrameFormat{.header_size = 5}}) {
    Make(format).ReadFrame(Note());
    EXPECT_TRUE(notes_.empty());
    Turn();
    EXPECT_TRUE(Last().starts_with("FAILED_PRECONDITION: read a frame from 192.0.2.1:7: a format"))
        << Last();
    EXPECT_FALSE(stream_->reading());
    notes_.clear();
  }
}

TEST_F(FramedReaderTest, TheHeaderStandsInTheFrame) {
  FrameFormat format{.header_size = 64, .body_size = [](std::string_view header) {
                       return absl::StatusOr<uint64_t>(static_cast<uint8_t>(header[63]));
                     }};
  std::string header = PatternBytes(1, 0, 63) + '\3';
  Frame got;
  Make(format).ReadFrame([&](absl::StatusOr<Frame> frame) { got = *std::move(frame); });
  stream_->Give(header.substr(0, 40));
  // A header needs no block, however slowly it comes.
  EXPECT_EQ(live(), 0u);
  stream_->Give(header.substr(40) + "bod");
  EXPECT_EQ(got.header(), header);
  EXPECT_EQ(got.body.ToString(), "bod");
}

TEST_F(FramedReaderTest, AManyFramedBufferIsDeliveredInBoundedSteps) {
  Make();
  std::string wire;
  for (int i = 0; i < 1000; ++i) wire += Message(absl::StrCat("frame ", i));
  int depth = 0, frames = 0;
  std::function<void()> next = [&] {
    reader_->ReadFrame([&](absl::StatusOr<Frame> frame) {
      EXPECT_EQ(++depth, 1) << "a callback inside another";
      EXPECT_EQ(frame->body.ToString(), absl::StrCat("frame ", frames));
      ++frames;
      next();
      --depth;
    });
  };
  next();
  stream_->Give(wire);
  while (frames < 1000) {
    const int before = frames;
    Turn();
    ASSERT_GT(frames, before);
    ASSERT_LE(frames, before + 32);
  }
  // One block carried them all, and it has gone.
  EXPECT_EQ(live(), 0u);
  EXPECT_EQ(stream_->reads(), 2);
}

TEST_F(FramedReaderTest, AnOversizeLengthIsRefusedWithItsHeaderAndTakesNoMemory) {
  Make(FrameFormat::Grpc(1000)).ReadFrame(Note());
  stream_->Give(Message(std::string(1000, 'x')) + Message(std::string(1001, 'x')).substr(0, 4));
  EXPECT_EQ(Last(), std::string(1000, 'x'));
  const uint64_t high = loop_->pool().Stats().high_water;
  reader_->ReadFrame(Note());
  stream_->Give("\xe9");
  EXPECT_EQ(Last(),
            "RESOURCE_EXHAUSTED: read a frame from 192.0.2.1:7: a body of 1001 bytes is announced, "
            "body_max is 1000");
  EXPECT_EQ(loop_->pool().Stats().high_water, high);
  EXPECT_EQ(live(), 0u);
  // For ever, and without asking the stream again.
  const int reads = stream_->reads();
  for (int i = 0; i < 2; ++i) {
    notes_.clear();
    reader_->ReadFrame(Note());
    EXPECT_TRUE(notes_.empty());
    Turn();
    EXPECT_TRUE(Last().starts_with("RESOURCE_EXHAUSTED"));
  }
  EXPECT_EQ(stream_->reads(), reads);
}

TEST_F(FramedReaderTest, ABadHeaderEndsTheReadingAfterTheFramesBeforeIt) {
  Make().ReadFrame(Note());
  stream_->Give(Message("good") + "\7....and more");
  EXPECT_EQ(Last(), "good");
  EXPECT_EQ(reader_->pinned_bytes(), 0u);
  for (int i = 0; i < 2; ++i) {
    reader_->ReadFrame(Note());
    Turn();
    EXPECT_EQ(Last(),
              "INVALID_ARGUMENT: read a frame from 192.0.2.1:7: compressed flag 7 in a "
              "header");
  }
}

TEST_F(FramedReaderTest, ADeadlineOrAForeignCancelLosesNothingAndDoesNotStick) {
  Make().ReadFrame(Note());
  const std::string wire = Message("in pieces");
  size_t at = 0;
  for (const absl::Status& status :
       {absl::DeadlineExceededError("late"), absl::CancelledError("not by us")}) {
    stream_->Give(wire.substr(at, 4));
    at += 4;
    stream_->End(status);
    EXPECT_EQ(Last(), status.ToString());
    reader_->ReadFrame(Note());
  }
  stream_->Give(wire.substr(at));
  EXPECT_EQ(Last(), "in pieces");
}

TEST_F(FramedReaderTest, OtherEndsStickAndGiveMemoryUp) {
  Make().ReadFrame(Note());
  stream_->Give(Message(std::string(3000, 'x')).substr(0, 2000));
  EXPECT_GE(reader_->pinned_bytes(), 1995u);
  EXPECT_EQ(loop_->Snapshot().framed_pinned_bytes, reader_->pinned_bytes());
  stream_->End(absl::UnavailableError("reset"));
  EXPECT_EQ(Last(), "UNAVAILABLE: reset");
  EXPECT_EQ(live(), 0u);
  EXPECT_EQ(loop_->Snapshot().framed_pinned_bytes, 0u);
  notes_.clear();
  reader_->ReadFrame(Note());
  Turn();
  EXPECT_EQ(Last(), "UNAVAILABLE: reset");
  EXPECT_FALSE(stream_->reading());
}

TEST_F(FramedReaderTest, AnEndInsideAFrameNamesWhatIsMissing) {
  Make().ReadFrame(Note());
  stream_->Give(Message("whole").substr(0, 3));
  stream_->End(absl::OutOfRangeError("end of stream"));
  EXPECT_EQ(Last(),
            "DATA_LOSS: read a frame from 192.0.2.1:7: the stream ended after 3 bytes of a header "
            "of 5 (end of stream)");
  Make().ReadFrame(Note());
  stream_->Give(Message("whole").substr(0, 7));
  stream_->End(absl::OutOfRangeError("end of stream"));
  EXPECT_EQ(Last(),
            "DATA_LOSS: read a frame from 192.0.2.1:7: the stream ended after 2 bytes of a body of "
            "5 (end of stream)");
  Make().ReadFrame(Note());
  stream_->Give(Message("whole"));
  reader_->ReadFrame(Note());
  stream_->End(absl::OutOfRangeError("end of stream"));
  EXPECT_EQ(Last(), "OUT_OF_RANGE: end of stream");
}

TEST_F(FramedReaderTest, ACancelThatBytesOvertakeStillEndsTheRead) {
  Make();
  reader_->CancelRead();  // nothing is pending
  reader_->ReadFrame(Note());
  EXPECT_TRUE(stream_->reading());
  reader_->CancelRead();
  EXPECT_TRUE(stream_->cancelled());
  EXPECT_TRUE(notes_.empty());
  // Another one is refused meanwhile, and must not let the cancelled one end too soon.
  reader_->ReadFrame(Note());
  Turn();
  ASSERT_EQ(notes_.size(), 1u);
  EXPECT_EQ(Last(), "FAILED_PRECONDITION: read a frame from 192.0.2.1:7: one is pending already");
  stream_->Give(Message("kept"));
  ASSERT_EQ(notes_.size(), 2u);
  EXPECT_EQ(Last(), "CANCELLED: read a frame from 192.0.2.1:7: cancelled by CancelRead");
  reader_->ReadFrame(Note());
  Turn();
  EXPECT_EQ(Last(), "kept");
}

TEST_F(FramedReaderTest, ACancelOfAReadWhoseFrameIsAtHandLeavesTheFrame) {
  Make().ReadFrame(Note());
  stream_->Give(Message("one") + Message("two"));
  reader_->ReadFrame(Note());
  reader_->CancelRead();
  EXPECT_EQ(Last(), "one");
  Turn();
  EXPECT_TRUE(Last().starts_with("CANCELLED")) << Last();
  reader_->ReadFrame(Note());
  Turn();
  EXPECT_EQ(Last(), "two");
}

TEST_F(FramedReaderTest, UnreadFramesOfALargeBlockMoveToASmallOne) {
  Make().ReadFrame(Note());
  Buffer block = *loop_->pool().Allocate(64 * 1024);
  const std::string wire = Message(std::string(60'000, 'a')) + Message("b") + Message("c");
  block.Extend(wire.size());
  wire.copy(block.mutable_data(), wire.size());
  stream_->End(std::move(block));
  EXPECT_EQ(reader_->pinned_bytes(), 0u) << "seven bytes and a header";
  for (const char* body : {"b", "c"}) {
    reader_->ReadFrame(Note());
    Turn();
    EXPECT_EQ(Last(), body);
  }
}

TEST_F(FramedReaderTest, BodiesAreWindowsOntoWhatCame) {
  Buffer block = *loop_->pool().Copy(Message(std::string(500, 'a')) + Message("tail"));
  const char* const place = block.data();
  std::vector<ptrdiff_t> places;
  const auto note = [&](absl::StatusOr<Frame> frame) {
    places.push_back(frame->body.front().data() - place);
  };
  Make().ReadFrame([&](absl::StatusOr<Frame> frame) {
    note(std::move(frame));
    reader_->ReadFrame(note);
  });
  stream_->End(std::move(block));
  EXPECT_EQ(places, (std::vector<ptrdiff_t>{5, 510}));
}

TEST_F(FramedReaderTest, MayBeDestroyedInItsCallbackWithFramesAtHand) {
  Make().ReadFrame([this](absl::StatusOr<Frame>) { reader_.reset(); });
  stream_->Give(Message("one") + Message("two"));
  EXPECT_EQ(reader_, nullptr);
  // In a deferred delivery, too, and by the callback that owns it.
  Make().ReadFrame(Note());
  stream_->Give(Message("one") + Message("two"));
  FramedReader& reader = *reader_;
  reader.ReadFrame([owned = std::move(reader_)](absl::StatusOr<Frame>) mutable { owned.reset(); });
  Turn();
  EXPECT_EQ(live(), 0u);
  EXPECT_EQ(loop_->Snapshot().framed_pinned_bytes, 0u);
}

TEST_F(FramedReaderTest, ALoopThatGoesFirstDropsCallbacksAndBytes) {
  int dropped = 0;
  const auto counted = [&dropped] {
    return std::shared_ptr<void>(nullptr, [&dropped](void*) { ++dropped; });
  };
  // One waits for the stream and owns its reader, one for a deferred delivery.
  FramedReader& owned = Make();
  owned.ReadFrame([mine = std::move(reader_), count = counted()](absl::StatusOr<Frame>) {});
  Make().ReadFrame(Note());
  stream_->Give(Message("one") + Message(std::string(100, 'x')));
  reader_->ReadFrame([count = counted()](absl::StatusOr<Frame>) { FAIL(); });
  reader_->ReadFrame([count = counted()](absl::StatusOr<Frame>) { FAIL(); });
  EXPECT_GT(reader_->pinned_bytes(), 0u);
  loop_.reset();
  EXPECT_EQ(dropped, 3);
  EXPECT_EQ(reader_->pinned_bytes(), 0u);
  reader_->ReadFrame([count = counted()](absl::StatusOr<Frame>) { FAIL(); });
  EXPECT_EQ(dropped, 4);
  reader_->CancelRead();
  EXPECT_EQ(notes_.size(), 1u);
}

// Wherever received bytes are let go of, whoever lent them may destroy the reader.
TEST_F(FramedReaderTest, ReleasingWhatCameMayDestroyTheReader) {
  struct Story {
    const char* what;
    std::string ours;                    // comes first, in a block of the pool
    std::string lent;                    // comes next, in external memory
    std::function<void()> then = [] {};  // ends it
    FrameFormat format = FrameFormat::Grpc(1000);
  };
  const std::string half = Message(std::string(500, 'x')).substr(0, 300);
  const Story stories[] = {
      {"an empty buffer", "", ""},
      {"a part of a header", "", "\0\0"s},
      {"a header", "", half.substr(0, 5)},
      {"the end of a header", half.substr(0, 3), half.substr(3, 2)},
      {"a header behind an empty frame", Message("").substr(0, 4), "\0"s + half.substr(0, 5)},
      {"a header that cannot be", "", "\7...."},
      {"a header that announces too much", "", Message(std::string(1001, 'x')).substr(0, 20)},
      {"a body that rests inline", half.substr(0, 10), "x"},
      {"a body that rests in a block", "", Message(std::string(600, 'x')) + half.substr(0, 100)},
      {"a body that rests among others", half.substr(0, 20), half.substr(20, 10),
       [&] { stream_->Give(half.substr(30, 1)); }},
      {"a whole frame", "", Message("whole") + half.substr(0, 2)},
      {"a stream that fails", "", half, [this] { stream_->End(absl::UnavailableError("reset")); }},
      {"a stream that ends", "", half, [this] { stream_->End(absl::OutOfRangeError("end")); }},
      {"a loop that goes", "", half, [this] { loop_.reset(); }},
  };
  for (const Story& story : stories) {
    SCOPED_TRACE(story.what);
    SetUp();
    bool released = false;
    Fate read;
    Make(story.format).ReadFrame([note = Note(), done = read.OnEvent()](auto frame) mutable {
      std::move(done)();
      std::move(note)(std::move(frame));
    });
    if (!story.ours.empty()) stream_->Give(story.ours);
    stream_->End(Buffer::FromExternal(story.lent.data(), story.lent.size(), [&] {
      released = true;
      reader_.reset();
    }));
    if (reader_ != nullptr) story.then();
    EXPECT_TRUE(released);
    EXPECT_EQ(reader_, nullptr);
    EXPECT_EQ(read.runs() + read.dropped(), 1);
    if (loop_ == nullptr) continue;
    EXPECT_EQ(live(), 0u);
    EXPECT_EQ(loop_->Snapshot().framed_pinned_bytes, 0u);
    Turn();
  }
}

// They may also call it; nothing runs inside what is under way.
TEST_F(FramedReaderTest, ReleasingWhatCameMayReadAndCancel) {
  const std::string body(500, 'x');
  const std::string wire = Message(body);
  // Part of a header; the header; a frame, and of the next so much that it moves to a block.
  for (const std::string& lent :
       {wire.substr(0, 2), wire.substr(0, 5), wire + wire.substr(0, 99)}) {
    SCOPED_TRACE(lent.size());
    notes_.clear();
    Make().ReadFrame(Note());
    std::vector<std::string> expected;
    if (lent.size() > 5) expected = {body};
    bool released = false;
    stream_->End(Buffer::FromExternal(lent.data(), lent.size(), [&] {
      released = true;
      EXPECT_EQ(notes_, expected);
      reader_->ReadFrame(Note());  // one too many, unless the frame was delivered
      reader_->CancelRead();
      EXPECT_EQ(notes_, expected);
    }));
    ASSERT_TRUE(released);
    Turn();
    ASSERT_EQ(notes_.size(), 2u);
    EXPECT_TRUE(notes_[expected.size()].starts_with("CANCELLED")) << notes_[expected.size()];
    EXPECT_FALSE(stream_->reading());
    reader_->ReadFrame(Note());
    stream_->Give(wire.substr(lent.size() % wire.size()));
    EXPECT_EQ(Last(), body);
  }
}

TEST_F(FramedReaderTest, AMoveKeepsWhatIsPending) {
  Make().ReadFrame(Note());
  FramedReader moved = std::move(*reader_);
  reader_.reset();
  stream_->Give(Message("after the move"));
  EXPECT_EQ(Last(), "after the move");
}

TEST_F(FramedReaderTest, AllocatesNothingPerFrame) {
  if (!CanCountAllocations()) GTEST_SKIP() << "a sanitizer replaces operator new";
  Make();
  std::string wire;
  for (int i = 0; i < 40; ++i) wire += Message(std::string(1 + i * 37 % 500, 'x'));
  uint64_t frames = 0;
  std::function<void()> next = [&] {
    reader_->ReadFrame([&](absl::StatusOr<Frame>) {
      ++frames;
      next();
    });
  };
  next();
  // In pieces that cut frames anywhere: half of them rest in blocks of their own.
  const auto feed = [&](int rounds) {
    for (size_t at = 0; at < rounds * wire.size();) {
      if (!stream_->reading()) {
        Turn();
        continue;
      }
      const size_t size = std::min<size_t>(1 + at * 7919 % 4000, wire.size() - at % wire.size());
      stream_->Give(std::string_view(wire).substr(at % wire.size(), size));
      at += size;
    }
  };
  feed(20);
  const uint64_t frames_before = frames;
  const int64_t before = AllocationsOnThisThread();
  feed(200);
  EXPECT_EQ(AllocationsOnThisThread() - before, 0);
  EXPECT_EQ(frames - frames_before, 200u * 40);
}

}  // namespace
}  // namespace penstock::internal
