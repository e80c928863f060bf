// Deadlines: stream.h, StreamOptions and SetReadDeadline, SetWriteDeadline, SetIdleDeadline.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "absl/time/time.h"
#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

constexpr absl::Duration kShort = absl::Milliseconds(20);
// Long enough for a busy machine to keep up with, short enough to wait for.
const absl::Duration kMedium = absl::Milliseconds(IsSlow() ? 900 : 300);
// Never reached, unless a test hangs.
constexpr absl::Duration kLong = absl::Minutes(10);

class DeadlineTest : public Harness {
 protected:
  static StreamOptions Small() {
    StreamOptions options;
    options.send_buffer = options.receive_buffer = 16 * 1024;
    return options;
  }
};

TEST_P(DeadlineTest, AReadDeadlineEndsTheReadAndNotTheStream) {
  StreamOptions options;
  options.read_deadline = kShort;
  StreamPair pair = Pair({}, options);
  const absl::Time began = loop().now();
  const absl::Status first = Read(*pair.server).status();
  EXPECT_TRUE(IsDeadlineExceeded(first)) << first;
  EXPECT_GE(loop().now() - began, kShort);
  EXPECT_TRUE(IsDeadlineExceeded(Read(*pair.server).status())) << "each read has its own";
  EXPECT_EQ(loop().Snapshot().deadlines, 2u);
  pair.server->SetReadDeadline(absl::InfiniteDuration());
  Exchange(*pair.client, *pair.server, "usable");
  Exchange(*pair.server, *pair.client, "both ways");
}

TEST_P(DeadlineTest, AReadDeadlineCountsFromTheReadAndNotFromTheLastByte) {
  StreamPair pair = Pair();
  absl::Status ended = absl::UnknownError("none");
  // The longer one is for a machine that takes as long as the first over a few bytes.
  for (const absl::Duration limit : {kShort, kMedium}) {
    Exchange(*pair.client, *pair.server, "x");
    pair.server->SetReadDeadline(limit);
    // No read is pending: nothing runs out.
    Pass(limit + kShort);
    Fate read;
    const absl::Time began = loop().now();
    pair.server->ReadReady(read.OnRead());
    ASSERT_TRUE(Write(*pair.client, "in time").ok());
    ASSERT_TRUE(Drive([&] { return read.ended(); }));
    ended = read.status();
    if (ended.ok()) break;
    EXPECT_GE(loop().now() - began, limit);
    pair.server->SetReadDeadline(absl::InfiniteDuration());
    EXPECT_EQ(ReadUpTo(*pair.server, 7).data, "in time");
  }
  EXPECT_TRUE(ended.ok()) << ended;
}

TEST_P(DeadlineTest, BytesThatAreThereBeatADeadlineThatHasPassed) {
  StreamPair pair = Pair();
  ASSERT_TRUE(Write(*pair.client, "there already").ok());
  Settle();
  pair.server->SetReadDeadline(absl::Milliseconds(1));
  absl::StatusOr<std::string> data = Read(*pair.server);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_EQ(*data, "there already");
}

TEST_P(DeadlineTest, SetReadDeadlineRestartsAPendingRead) {
  StreamOptions options;
  options.read_deadline = kLong;
  StreamPair pair = Pair({}, options);
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  const absl::Time began = loop().now();
  pair.server->SetReadDeadline(kShort);
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(IsDeadlineExceeded(read.status())) << read.status();
  EXPECT_GE(loop().now() - began, kShort);
}

TEST_P(DeadlineTest, AnInfiniteReadDeadlineLiftsTheOneBefore) {
  StreamOptions options;
  options.read_deadline = kShort;
  StreamPair pair = Pair({}, options);
  Fate read;
  pair.server->ReadReady(read.OnRead());
  pair.server->SetReadDeadline(absl::InfiniteDuration());
  Pass(3 * kShort);
  EXPECT_FALSE(read.ended());
  ASSERT_TRUE(Write(*pair.client, "late is fine").ok());
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(read.status().ok()) << read.status();
}

TEST_P(DeadlineTest, AWriteDeadlineEndsTheStreamWhenQueuedBytesMakeNoProgress) {
  StreamOptions options = Small();
  options.write_deadline = kShort;
  StreamPair pair = Pair(options, Small());
  Fate write, later, read;
  const absl::Time began = loop().now();
  pair.client->ReadReady(read.OnRead());
  pair.client->Write(Chain(PatternBytes(1, 0, 1 << 20)), write.OnDone());
  pair.client->Write(Chain("later"), later.OnDone());
  ASSERT_TRUE(Drive([&] { return write.ended() && later.ended() && read.ended(); }));
  EXPECT_GE(loop().now() - began, kShort);
  for (const Fate* fate : {&write, &later, &read}) {
    EXPECT_TRUE(IsDeadlineExceeded(fate->status())) << fate->status();
    EXPECT_EQ(fate->runs(), 1);
  }
  EXPECT_TRUE(IsDeadlineExceeded(Write(*pair.client, "after")));
  EXPECT_TRUE(IsDeadlineExceeded(Read(*pair.client).status()));
  EXPECT_EQ(loop().Snapshot().deadlines, 1u);
  // The peer cannot take the part for the whole.
  const Received received = ReadToEnd(*pair.server);
  EXPECT_LT(received.data.size(), 1u << 20);
  EXPECT_TRUE(IsReset(received.end) || (is_unix() && IsEof(received.end))) << received.end;
}

TEST_P(DeadlineTest, AWriteDeadlineSparesAWriterThatMakesProgress) {
  StreamOptions options = Small();
  options.write_deadline = kMedium;
  StreamPair pair = Pair(options, Small());
  Fate write;
  pair.client->Write(Chain(PatternBytes(2, 0, 512 * 1024)), write.OnDone());
  // A reader that takes longer for the whole than the deadline, but never pauses that long.
  const absl::Time began = loop().now();
  size_t received = 0;
  while (received < 512 * 1024) {
    const Received some =
        ReadUpTo(*pair.server, std::min<size_t>(64 * 1024, 512 * 1024 - received));
    ASSERT_TRUE(some.end.ok()) << some.end;
    received += some.data.size();
    Pass(kMedium / 5);
    ASSERT_FALSE(write.ended() && !write.status().ok()) << write.status();
  }
  EXPECT_GT(loop().now() - began, kMedium);
  ASSERT_TRUE(Drive([&] { return write.ended(); }));
  EXPECT_TRUE(write.status().ok()) << write.status();
}

TEST_P(DeadlineTest, AWriteDeadlineDoesNotRunWhileNothingIsQueued) {
  StreamOptions options;
  options.write_deadline = kShort;
  StreamPair pair = Pair(options, {});
  Exchange(*pair.client, *pair.server, "x");
  Pass(3 * kShort);
  Exchange(*pair.client, *pair.server, "still open");
}

TEST_P(DeadlineTest, SetWriteDeadlineCountsFromNow) {
  StreamPair pair = Pair(Small(), Small());
  Fate write;
  pair.client->Write(Chain(PatternBytes(3, 0, 1 << 20)), write.OnDone());
  Pass(kShort);
  EXPECT_FALSE(write.ended());
  const absl::Time began = loop().now();
  pair.client->SetWriteDeadline(kShort);
  ASSERT_TRUE(Drive([&] { return write.ended(); }));
  EXPECT_TRUE(IsDeadlineExceeded(write.status())) << write.status();
  EXPECT_GE(loop().now() - began, kShort);
}

TEST_P(DeadlineTest, AnIdleDeadlineEndsTheStreamWhenNoByteMovesEitherWay) {
  StreamOptions options;
  options.idle_deadline = kShort;
  const absl::Time began = loop().now();
  StreamPair pair = Pair({}, options);
  Fate read;
  pair.server->ReadReady(read.OnRead());
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(IsDeadlineExceeded(read.status())) << read.status();
  EXPECT_GE(loop().now() - began, kShort);
  EXPECT_TRUE(IsDeadlineExceeded(Read(*pair.server).status()));
  EXPECT_TRUE(IsDeadlineExceeded(Write(*pair.server, "late")));
  EXPECT_EQ(read.runs(), 1);
  const absl::Status end = Read(*pair.client).status();
  EXPECT_TRUE(IsReset(end) || IsEof(end)) << end;
}

TEST_P(DeadlineTest, AnIdleDeadlineNeedsNoPendingOperation) {
  StreamOptions options;
  options.idle_deadline = kShort;
  StreamPair pair = Pair({}, options);
  const absl::Status end = Read(*pair.client).status();
  EXPECT_TRUE(IsReset(end) || IsEof(end)) << end;
  EXPECT_TRUE(IsDeadlineExceeded(Read(*pair.server).status()));
}

TEST_P(DeadlineTest, TrafficEitherWayPostponesAnIdleDeadline) {
  StreamOptions options;
  options.idle_deadline = kMedium;
  StreamPair pair = Pair({}, options);
  const absl::Time began = loop().now();
  bool inwards = true;
  while (loop().now() - began < 2 * kMedium) {
    Stream& from = inwards ? *pair.client : *pair.server;
    Stream& to = inwards ? *pair.server : *pair.client;
    Exchange(from, to, "a byte or two");
    inwards = !inwards;
    Pass(kMedium / 4);
  }
  Exchange(*pair.client, *pair.server, "still open");
}

TEST_P(DeadlineTest, SetIdleDeadlineReplacesAndRestarts) {
  StreamPair pair = Pair();
  pair.server->SetIdleDeadline(kShort);
  pair.server->SetIdleDeadline(absl::InfiniteDuration());
  Pass(3 * kShort);
  Exchange(*pair.client, *pair.server, "still open");
  const absl::Time began = loop().now();
  pair.server->SetIdleDeadline(kShort);
  EXPECT_TRUE(IsDeadlineExceeded(Read(*pair.server).status()));
  EXPECT_GE(loop().now() - began, kShort);
}

TEST_P(DeadlineTest, AbortOfAStreamThatADeadlineHasEndedLeavesItAsItEnded) {
  StreamPair pair = Pair();
  pair.server->SetIdleDeadline(absl::ZeroDuration());
  EXPECT_TRUE(IsDeadlineExceeded(Read(*pair.server).status()));
  pair.server->Abort();
  EXPECT_TRUE(IsDeadlineExceeded(Read(*pair.server).status()));
  EXPECT_TRUE(IsDeadlineExceeded(Write(*pair.server, "late")));
}

TEST_P(DeadlineTest, ANegativeDeadlineCountsAsZero) {
  for (const absl::Duration negative : {-absl::Milliseconds(1), -absl::InfiniteDuration()}) {
    StreamPair pair = Pair(Small(), Small());
    Fate read, write;
    pair.client->ReadReady(read.OnRead());
    pair.client->SetReadDeadline(negative);
    ASSERT_TRUE(Drive([&] { return read.ended(); }));
    EXPECT_TRUE(IsDeadlineExceeded(read.status())) << read.status();
    pair.client->Write(Chain(PatternBytes(4, 0, 1 << 20)), write.OnDone());
    Settle();
    EXPECT_FALSE(write.ended());
    pair.client->SetWriteDeadline(negative);
    ASSERT_TRUE(Drive([&] { return write.ended(); }));
    EXPECT_TRUE(IsDeadlineExceeded(write.status())) << write.status();
    StreamPair idle = Pair();
    idle.server->SetIdleDeadline(negative);
    EXPECT_TRUE(IsDeadlineExceeded(Read(*idle.server).status()));
  }
}

// The last one that counts is 49.7 days.
TEST_P(DeadlineTest, FromTheLargestOnTheyCountAsInfinite) {
  constexpr absl::Duration kInfinite = absl::Milliseconds((int64_t{1} << 32) - 1);
  constexpr absl::Duration kLargest = absl::Milliseconds((int64_t{1} << 32) - 2);
  for (const absl::Duration never : {kInfinite, absl::Hours(1'000'000), absl::InfiniteDuration()}) {
    StreamOptions options;
    options.read_deadline = options.write_deadline = options.idle_deadline = never;
    StreamPair pair = Pair({}, options);
    Fate read;
    pair.server->ReadReady(read.OnRead());
    Settle();
    EXPECT_EQ(loop().Snapshot().timers, 0u) << never;
    pair.server->SetReadDeadline(never);
    pair.server->SetWriteDeadline(never);
    pair.server->SetIdleDeadline(never);
    Settle();
    EXPECT_EQ(loop().Snapshot().timers, 0u) << never;
    pair.server->SetReadDeadline(kLargest);
    Settle();
    EXPECT_GT(loop().Snapshot().timers, 0u);
    EXPECT_FALSE(read.ended());
  }
}

TEST_P(DeadlineTest, AStreamMayBeDestroyedInACallbackThatADeadlineRuns) {
  StreamOptions options;
  options.idle_deadline = kShort;
  StreamPair pair = Pair({}, options);
  bool ended = false;
  pair.server->ReadReady([&](absl::StatusOr<Buffer> data) {
    EXPECT_TRUE(IsDeadlineExceeded(data.status()));
    pair.server.reset();
    ended = true;
  });
  ASSERT_TRUE(Drive([&] { return ended; }));
}

TEST_P(DeadlineTest, AStreamDestroyedBeforeItsDeadlineLeavesNoTimer) {
  StreamOptions options;
  options.read_deadline = options.write_deadline = options.idle_deadline = kLong;
  StreamPair pair = Pair(options, options);
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  EXPECT_GT(loop().Snapshot().timers, 0u);
  pair.server.reset();
  pair.client.reset();
  Settle();
  EXPECT_EQ(loop().Snapshot().timers, 0u);
}

INSTANTIATE_TEST_SUITE_P(Engines, DeadlineTest, ::testing::ValuesIn(AllEngines()), EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, DeadlineTest, ::testing::ValuesIn(SealedEngines()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
