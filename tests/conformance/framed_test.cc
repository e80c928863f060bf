// The framed reader over every engine: frames cut anywhere, ends anywhere, and what it pins.
#include <penstock/framed_reader.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

std::string Message(std::string_view body) {
  std::string header(5, '\0');
  for (int i = 0; i < 4; ++i) header[4 - i] = static_cast<char>(body.size() >> (8 * i));
  return absl::StrCat(header, std::string(body));
}

// Reads frames for ever and keeps their bodies.
class Collector {
 public:
  explicit Collector(FramedReader& reader) : reader_(reader) { Next(); }
  const std::vector<std::string>& bodies() const { return bodies_; }
  const absl::Status& end() const { return end_; }

 private:
  void Next() {
    reader_.ReadFrame([this](absl::StatusOr<Frame> frame) {
      EXPECT_EQ(depth_++, 0) << "a callback inside another";
      if (frame.ok()) {
        bodies_.push_back(frame->body.ToString());
        Next();
      } else {
        end_ = frame.status();
      }
      --depth_;
    });
  }

  FramedReader& reader_;
  std::vector<std::string> bodies_;
  absl::Status end_;
  int depth_ = 0;
};

class FramedTest : public Harness {
 protected:
  // The peer's end, and a reader of ours.
  struct Ends {
    StreamPtr peer;
    std::unique_ptr<FramedReader> reader;
  };
  Ends MakeEnds(FrameFormat format = FrameFormat::Grpc()) {
    StreamPair pair = Pair();
    return {std::move(pair.client), std::make_unique<FramedReader>(std::move(pair.server), format)};
  }

  absl::StatusOr<std::string> ReadOne(FramedReader& reader) {
    absl::StatusOr<std::string> result = absl::UnknownError("not yet");
    bool ended = false, inside = true;
    reader.ReadFrame([&](absl::StatusOr<Frame> frame) {
      EXPECT_FALSE(inside) << "a callback inside ReadFrame";
      ended = true;
      if (frame.ok()) {
        result = frame->body.ToString();
      } else {
        result = frame.status();
      }
    });
    inside = false;
    if (!Drive([&] { return ended; })) return absl::InternalError("the read hangs");
    return result;
  }

  // Sealed streams count other bytes, and take longer.
  bool sealed() { return environment().unit_max() > 1; }

  // Sends `bytes` and runs the loop until they have come; they are `total` then.
  void Send(Ends& ends, std::string_view bytes, uint64_t total) {
    Fate written;
    ends.peer->Write(Chain(bytes), written.OnDone());
    if (sealed()) return Settle();
    ASSERT_TRUE(
        Drive([&] { return written.ended() && ends.reader->stream().stats().bytes_in == total; }));
  }

  // What all layers hold while `received` bytes of a frame have come.
  void ExpectLittle(const FramedReader& reader, size_t received) {
    const LoopSnapshot now = loop().Snapshot();
    const size_t allowed = received <= 5 + 16 ? 0 : std::max<size_t>(256, 2 * received);
    EXPECT_LE(reader.pinned_bytes(), allowed) << "with " << received << " bytes received";
    EXPECT_EQ(now.framed_pinned_bytes, reader.pinned_bytes());
    EXPECT_EQ(now.pinned_bytes + now.sealed_pinned_bytes, 0u);
    EXPECT_EQ(now.pool.live, reader.pinned_bytes());
  }
};

// Of streams that leave to the kernel what nobody reads: endpoints keep it, up to their credits.
class FramedMemoryTest : public FramedTest {};

TEST_P(FramedTest, ASplitAtAnyByteChangesNothing) {
  const std::vector<std::string> bodies = {"", "hello", PatternBytes(1, 0, 90)};
  std::string wire;
  for (const std::string& body : bodies) wire += Message(body);
  Ends ends = MakeEnds();
  Collector collector(*ends.reader);
  std::vector<std::string> expected;
  for (size_t split = 0; split <= wire.size(); ++split) {
    ends.peer->Write(Chain(wire.substr(0, split)));
    Settle();
    size_t whole = 0, at = 0;
    while (whole < 3 && at + 5 + bodies[whole].size() <= split) at += 5 + bodies[whole++].size();
    ASSERT_EQ(collector.bodies().size(), expected.size() + whole) << "split at " << split;
    ExpectLittle(*ends.reader, split - at);
    ends.peer->Write(Chain(wire.substr(split)));
    Settle();
    expected.insert(expected.end(), bodies.begin(), bodies.end());
    ASSERT_EQ(collector.bodies(), expected) << "split at " << split;
    ExpectLittle(*ends.reader, 0);
  }
  EXPECT_TRUE(collector.end().ok());
}

TEST_P(FramedMemoryTest, ADripPinsTwiceWhatCame) {
  const std::string body = PatternBytes(2, 0, sealed() ? 300 : Scaled(4000));
  const std::string wire = Message(body);
  Ends ends = MakeEnds();
  Collector collector(*ends.reader);
  ExpectLittle(*ends.reader, 0);
  for (size_t i = 0; i < wire.size(); ++i) {
    Send(ends, wire.substr(i, 1), i + 1);
    ExpectLittle(*ends.reader, i + 1 == wire.size() ? 0 : i + 1);
    ASSERT_FALSE(HasFailure()) << "after byte " << i;
  }
  EXPECT_EQ(collector.bodies(), std::vector<std::string>{body});
}

TEST_P(FramedTest, AnEndOfStreamAtAnyByteIsToldForWhatItIs) {
  const std::string wire = Message("ab") + Message("") + Message("xyz");
  for (size_t end = 0; end <= wire.size(); ++end) {
    Ends ends = MakeEnds();
    ends.peer->Write(Chain(wire.substr(0, end)));
    ASSERT_TRUE(Shutdown(*ends.peer).ok());
    const size_t whole = (end >= 7) + (end >= 12) + (end >= 20);
    const bool boundary = end == 0 || end == 7 || end == 12 || end == 20;
    for (size_t i = 0; i < whole; ++i) {
      const absl::StatusOr<std::string> body = ReadOne(*ends.reader);
      ASSERT_TRUE(body.ok()) << body.status();
    }
    for (int again = 0; again < 2; ++again) {
      const absl::Status status = ReadOne(*ends.reader).status();
      EXPECT_EQ(IsEof(status), boundary) << "after " << end << " bytes: " << status;
      EXPECT_EQ(absl::IsDataLoss(status), !boundary) << "after " << end << " bytes: " << status;
    }
    ExpectLittle(*ends.reader, 0);
    // Writing goes on.
    Exchange(ends.reader->stream(), *ends.peer, "still here");
  }
}

TEST_P(FramedTest, AThousandFramesInOneSegment) {
  std::vector<std::string> bodies;
  std::string wire;
  for (int i = 0; i < 1000; ++i) {
    bodies.push_back(PatternBytes(3, i, i % 23));
    wire += Message(bodies.back());
  }
  Ends ends = MakeEnds();
  Collector collector(*ends.reader);
  ends.peer->Write(Chain(wire));
  ASSERT_TRUE(Drive([&] { return collector.bodies().size() == 1000; }));
  EXPECT_EQ(collector.bodies(), bodies);
  Settle();
  ExpectLittle(*ends.reader, 0);
}

TEST_P(FramedTest, OneFrameInAThousandSegments) {
  const int segments = sealed() ? 100 : Scaled(1000);
  const std::string body = PatternBytes(4, 0, segments * 17 - 5);
  const std::string wire = Message(body);
  Ends ends = MakeEnds();
  Collector collector(*ends.reader);
  for (int i = 0; i < segments; ++i) {
    Send(ends, wire.substr(i * 17, 17), (i + 1) * 17);
    ExpectLittle(*ends.reader, i + 1 == segments ? 0 : (i + 1) * 17);
    ASSERT_FALSE(HasFailure()) << "after segment " << i;
  }
  EXPECT_EQ(collector.bodies(), std::vector<std::string>{body});
}

TEST_P(FramedTest, FramesOfAnySizeComeThroughWhole) {
  std::mt19937 random(5);
  const int count = Scaled(300);
  std::vector<std::string> bodies;
  std::string wire;
  for (int i = 0; i < count; ++i) {
    const size_t size = random() % (size_t{1} << (random() % 18));
    bodies.push_back(PatternBytes(5, wire.size(), size));
    wire += Message(bodies.back());
  }
  Ends ends = MakeEnds();
  Collector collector(*ends.reader);
  Fate written;
  ends.peer->Write(Chain(wire), written.OnDone());
  ASSERT_TRUE(Drive([&] { return collector.bodies().size() == bodies.size() && written.ended(); }));
  EXPECT_TRUE(collector.bodies() == bodies);
  Settle();
  ExpectLittle(*ends.reader, 0);
}

TEST_P(FramedTest, ACrowdOfHalfFramesHoldsLittleAndIdleOnesNothing) {
  const size_t count = Scaled(100);
  std::vector<Ends> crowd;
  std::vector<std::unique_ptr<Collector>> collectors;
  std::unique_ptr<Listener> listener = Listen();
  for (size_t i = 0; i < count; ++i) {
    absl::StatusOr<StreamPtr> peer = ConnectTo(listener->address(), Connecting());
    ASSERT_TRUE(peer.ok()) << peer.status();
    ASSERT_TRUE(Drive([this] { return !accepted().empty(); }));
    crowd.push_back({*std::move(peer), std::make_unique<FramedReader>(std::move(accepted().front()),
                                                                      FrameFormat::Grpc())});
    accepted().pop_front();
    collectors.push_back(std::make_unique<Collector>(*crowd.back().reader));
  }
  const auto expect_live = [&](uint64_t most) {
    Settle();
    const LoopSnapshot now = loop().Snapshot();
    EXPECT_LE(now.pool.live, most);
    EXPECT_EQ(now.framed_pinned_bytes, now.pool.live);
    EXPECT_EQ(now.pinned_bytes, 0u);
  };
  const std::string body = PatternBytes(6, 0, 4'000'000);
  const std::string wire = Message(body);
  expect_live(0);
  // Of each a header that announces megabytes and 16 bytes, then one more, then a block full.
  for (Ends& ends : crowd) ends.peer->Write(Chain(wire.substr(0, 21)));
  expect_live(0);
  for (Ends& ends : crowd) ends.peer->Write(Chain(wire.substr(21, 1)));
  expect_live(256 * count);
  for (Ends& ends : crowd) ends.peer->Write(Chain(wire.substr(22, 3000 - 22)));
  expect_live(2 * 3000 * count);
  crowd[0].peer->Write(Chain(wire.substr(3000)));
  ASSERT_TRUE(Drive([&] { return !collectors[0]->bodies().empty(); }));
  EXPECT_TRUE(collectors[0]->bodies()[0] == body);
  expect_live(2 * 3000 * (count - 1));
  collectors.clear();
  crowd.clear();
  expect_live(0);
}

TEST_P(FramedMemoryTest, WhatNobodyReadsStaysInTheKernel) {
  if (GetParam().name == "UringTls") GTEST_SKIP() << "io_uring goes on after what a handshake read";
  Ends ends = MakeEnds();
  ends.peer->Write(Chain(Message("one") + Message(PatternBytes(7, 0, 10'000)) + Message("three")));
  Settle();
  ExpectLittle(*ends.reader, 0);
  for (const std::string& body : {std::string("one"), PatternBytes(7, 0, 10'000)}) {
    const absl::StatusOr<std::string> got = ReadOne(*ends.reader);
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(*got, body);
  }
  Settle();
  // The last frame has come along, and rests without a block.
  ExpectLittle(*ends.reader, 0);
  EXPECT_EQ(*ReadOne(*ends.reader), "three");
}

TEST_P(FramedTest, CancelsAndDeadlinesLoseNothing) {
  Ends ends = MakeEnds();
  const std::string body = PatternBytes(8, 0, 1000);
  const std::string wire = Message(body);
  size_t at = 0;
  for (const size_t size : {3u, 2u, 500u}) {
    ends.peer->Write(Chain(wire.substr(at, size)));
    at += size;
    absl::Status end;
    ends.reader->ReadFrame([&](absl::StatusOr<Frame> frame) { end = frame.status(); });
    Settle();
    EXPECT_TRUE(end.ok());
    ends.reader->CancelRead();
    EXPECT_TRUE(end.ok()) << "cancelled inside CancelRead";
    ASSERT_TRUE(Drive([&] { return !end.ok(); }));
    EXPECT_TRUE(IsCancelled(end)) << end;
    ends.reader->stream().SetReadDeadline(absl::Milliseconds(5));
    end = ReadOne(*ends.reader).status();
    EXPECT_TRUE(IsDeadlineExceeded(end)) << end;
    ends.reader->stream().SetReadDeadline(absl::InfiniteDuration());
    ExpectLittle(*ends.reader, at);
  }
  ends.peer->Write(Chain(wire.substr(at)));
  EXPECT_EQ(*ReadOne(*ends.reader), body);
}

TEST_P(FramedTest, AResetInsideAFrameEndsItForGood) {
  Ends ends = MakeEnds();
  ends.peer->Write(Chain(Message(PatternBytes(9, 0, 1000)).substr(0, 600)));
  absl::Status end;
  ends.reader->ReadFrame([&](absl::StatusOr<Frame> frame) { end = frame.status(); });
  Settle();
  ExpectLittle(*ends.reader, 600);
  ends.peer->Abort();
  ASSERT_TRUE(Drive([&] { return !end.ok(); }));
  // A Unix socket knows no reset: there it is an end inside a frame.
  EXPECT_TRUE(IsReset(end) || (is_unix() && absl::IsDataLoss(end))) << end;
  ExpectLittle(*ends.reader, 0);
  EXPECT_EQ(ReadOne(*ends.reader).status(), end);
}

TEST_P(FramedTest, AnOversizeFrameIsRefusedAndCanBeAnswered) {
  Ends ends = MakeEnds(FrameFormat::Grpc(1000));
  ends.peer->Write(Chain(Message("fits") + Message(PatternBytes(10, 0, 100'000))));
  EXPECT_EQ(*ReadOne(*ends.reader), "fits");
  for (int again = 0; again < 2; ++again) {
    const absl::Status refused = ReadOne(*ends.reader).status();
    EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
    EXPECT_EQ(ends.reader->pinned_bytes(), 0u);
  }
  Exchange(ends.reader->stream(), *ends.peer, "too large");
  ends.reader->stream().Abort();
}

TEST_P(FramedTest, MayBeDestroyedByAnyOfItsCallbacks) {
  const std::string wire = Message("one") + Message("two") + Message(std::string(500, 'x'));
  for (int at = 1; at <= 4; ++at) {
    Ends ends = MakeEnds();
    ends.peer->Write(Chain(wire));
    ASSERT_TRUE(Shutdown(*ends.peer).ok());
    int callbacks = 0;
    std::function<void()> next = [&] {
      ends.reader->ReadFrame([&](absl::StatusOr<Frame>) {
        if (++callbacks == at) {
          ends.reader.reset();
        } else {
          next();
        }
      });
    };
    next();
    ASSERT_TRUE(Drive([&] { return ends.reader == nullptr; }));
    EXPECT_EQ(callbacks, at);
    ends.peer = nullptr;  // which may have received how this side ends
    Settle();
    EXPECT_EQ(loop().Snapshot().pool.live, 0u);
  }
}

TEST_P(FramedTest, MayOutliveItsLoopWithFramesAtHand) {
  Ends ends = MakeEnds();
  ends.peer->Write(Chain(Message("one") + Message(std::string(500, 'x')) + Message("three")));
  EXPECT_EQ(*ReadOne(*ends.reader), "one");
  EXPECT_GT(ends.reader->pinned_bytes(), 0u);
  Fate pending;
  ends.reader->ReadFrame(
      [done = pending.OnEvent()](absl::StatusOr<Frame>) mutable { std::move(done)(); });
  TakeLoop().reset();
  EXPECT_EQ(pending.runs(), 0);
  EXPECT_EQ(pending.dropped(), 1);
  EXPECT_EQ(ends.reader->pinned_bytes(), 0u);
  Fate late;
  ends.reader->ReadFrame(
      [done = late.OnEvent()](absl::StatusOr<Frame>) mutable { std::move(done)(); });
  EXPECT_EQ(late.dropped(), 1);
}

INSTANTIATE_TEST_SUITE_P(Environments, FramedTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Moving, FramedTest, ::testing::ValuesIn(MovingEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, FramedTest, ::testing::ValuesIn(SealedEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Rdma, FramedTest, ::testing::ValuesIn(RdmaStreamEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Environments, FramedMemoryTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Moving, FramedMemoryTest, ::testing::ValuesIn(MovingEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, FramedMemoryTest, ::testing::ValuesIn(SealedEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
