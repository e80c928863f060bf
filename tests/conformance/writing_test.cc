// The contract of writing: stream.h, "Writing", "Half close" and "Bounds".
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

// More than the kernel takes with SmallBuffers on a connection nobody reads.
constexpr size_t kTooMuch = 1 << 20;

class WritingTest : public Harness {};

TEST_P(WritingTest, EndsWhenTheKernelHasTakenTheLastByte) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  Fate write;
  pair.client->Write(Chain(PatternBytes(1, 0, 1 << 20)), write.OnDone());
  Settle();
  EXPECT_FALSE(write.ended()) << "the peer has read nothing";
  EXPECT_GT(pair.client->stats().queued_bytes, 0u);
  const Received received = ReadUpTo(*pair.server, 1 << 20);
  EXPECT_EQ(received.data.size(), 1u << 20);
  EXPECT_FALSE(FirstMismatch(received.data, 1, 0).has_value());
  ASSERT_TRUE(Drive([&] { return write.ended(); }));
  EXPECT_TRUE(write.status().ok()) << write.status();
  EXPECT_EQ(pair.client->stats().queued_bytes, 0u);
  EXPECT_EQ(pair.client->stats().bytes_out, 1u << 20);
}

TEST_P(WritingTest, NeverRunsInsideTheCallThatStartedIt) {
  StreamPair pair = Pair();
  Fate write, nothing, writable, shutdown, late;
  pair.client->Write(Chain("x"), write.OnDone());
  EXPECT_FALSE(write.ended());
  pair.client->Write(BufferChain(), nothing.OnDone());
  EXPECT_FALSE(nothing.ended());
  pair.client->NotifyWritable(writable.OnDone());
  EXPECT_FALSE(writable.ended());
  pair.client->ShutdownWrite(shutdown.OnDone());
  EXPECT_FALSE(shutdown.ended());
  pair.client->Write(Chain("late"), late.OnDone());
  EXPECT_FALSE(late.ended());
  ASSERT_TRUE(Drive([&] {
    return write.ended() && nothing.ended() && writable.ended() && shutdown.ended() && late.ended();
  }));
}

TEST_P(WritingTest, AreSentAndEndInTheOrderTheyWereStarted) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  constexpr int kWrites = 500;
  std::vector<int> ended;
  uint64_t offset = 0;
  for (int i = 0; i < kWrites; ++i) {
    // One byte up to several KiB.
    const size_t size = 1 + static_cast<size_t>(i) * 37 % 5000;
    pair.client->Write(Chain(PatternBytes(2, offset, size)), [&ended, i](absl::Status status) {
      EXPECT_TRUE(status.ok()) << status;
      ended.push_back(i);
    });
    offset += size;
  }
  const Received received = ReadUpTo(*pair.server, offset);
  EXPECT_EQ(received.data.size(), offset);
  EXPECT_FALSE(FirstMismatch(received.data, 2, 0).has_value());
  ASSERT_TRUE(Drive([&] { return ended.size() == kWrites; }));
  for (int i = 0; i < kWrites; ++i) ASSERT_EQ(ended[i], i);
}

TEST_P(WritingTest, AChainOfManyBuffersArrivesWhole) {
  StreamPair pair = Pair();
  BufferChain chain;
  for (uint64_t i = 0; i < 3000; ++i) chain.Append(Chain(PatternBytes(3, i * 7, 7)));
  Fate write;
  pair.client->Write(std::move(chain), write.OnDone());
  const Received received = ReadUpTo(*pair.server, 21'000);
  EXPECT_EQ(received.data.size(), 21'000u);
  EXPECT_FALSE(FirstMismatch(received.data, 3, 0).has_value());
  ASSERT_TRUE(Drive([&] { return write.ended(); }));
  EXPECT_TRUE(write.status().ok());
}

TEST_P(WritingTest, AnEmptyChainEndsOkInItsTurn) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  Fate large, empty;
  pair.client->Write(Chain(PatternBytes(4, 0, 1 << 20)), large.OnDone());
  pair.client->Write(BufferChain(), empty.OnDone());
  Settle();
  EXPECT_FALSE(empty.ended()) << "it overtook the write before it";
  EXPECT_EQ(ReadUpTo(*pair.server, 1 << 20).data.size(), 1u << 20);
  ASSERT_TRUE(Drive([&] { return empty.ended(); }));
  EXPECT_TRUE(large.ended());
  EXPECT_TRUE(empty.status().ok()) << empty.status();
}

TEST_P(WritingTest, NeedsNoCallback) {
  StreamPair pair = Pair();
  pair.client->Write(Chain("no "));
  pair.client->Write(Chain("callback"));
  pair.client->ShutdownWrite();
  EXPECT_EQ(ReadToEnd(*pair.server).data, "no callback");
}

TEST_P(WritingTest, ExternalMemoryIsReleasedWhenTheKernelHasTakenIt) {
  StreamPair pair = Pair();
  const std::string text = PatternBytes(5, 0, 5000);
  int released = 0;
  Fate write;
  pair.client->Write(Buffer::FromExternal(text.data(), text.size(), [&] { ++released; }),
                     write.OnDone());
  EXPECT_EQ(ReadUpTo(*pair.server, text.size()).data, text);
  ASSERT_TRUE(Drive([&] { return write.ended(); }));
  EXPECT_EQ(released, 1);
}

TEST_P(WritingTest, AStreamMayBeDestroyedInItsWriteCallback) {
  StreamPair pair = Pair();
  bool ended = false;
  Fate later;
  pair.client->Write(Chain("x"), [&](absl::Status) {
    pair.client.reset();
    ended = true;
  });
  pair.client->Write(Chain("y"), later.OnDone());
  ASSERT_TRUE(Drive([&] { return ended && later.ended(); }));
  EXPECT_EQ(later.runs() + later.dropped(), 1);
}

TEST_P(WritingTest, PendingWritesAreDestroyedUnrunWithTheirStream) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  Fate first, second, writable, shutdown;
  pair.client->Write(Chain(PatternBytes(6, 0, 1 << 20)), first.OnDone());
  pair.client->Write(Chain("more"), second.OnDone());
  pair.client->NotifyWritable(writable.OnDone());
  pair.client->ShutdownWrite(shutdown.OnDone());
  Settle();
  pair.client.reset();
  Settle();
  for (const Fate* fate : {&first, &second, &writable, &shutdown}) {
    EXPECT_EQ(fate->runs(), 0);
    EXPECT_EQ(fate->dropped(), 1);
  }
}

TEST_P(WritingTest, IsRefusedBeyondSendQueueMaxWithoutTouchingTheStream) {
  StreamOptions options = SmallBuffers();
  options.send_queue_max = 1 << 20;
  StreamPair pair = Pair(options, SmallBuffers());
  Fate taken, refused, filling;
  pair.client->Write(Chain(PatternBytes(7, 0, 1 << 20)), taken.OnDone());
  Settle();
  const size_t room = (1 << 20) - pair.client->stats().queued_bytes;
  ASSERT_LT(room, 1u << 20);
  pair.client->Write(Chain(PatternBytes(7, 0, room + 1)), refused.OnDone());
  pair.client->Write(Chain(PatternBytes(7, 1 << 20, room)), filling.OnDone());
  const Received received = ReadUpTo(*pair.server, (1 << 20) + room);
  EXPECT_FALSE(FirstMismatch(received.data, 7, 0).has_value());
  ASSERT_TRUE(Drive([&] { return taken.ended() && refused.ended() && filling.ended(); }));
  EXPECT_TRUE(taken.status().ok()) << taken.status();
  EXPECT_TRUE(filling.status().ok()) << filling.status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status())) << refused.status();
  EXPECT_EQ(loop().Snapshot().writes_refused, 1u);
  Exchange(*pair.client, *pair.server, "the stream is whole");
}

TEST_P(WritingTest, ARefusalThatNobodyHearsEndsTheStream) {
  StreamOptions options = SmallBuffers();
  options.send_queue_max = 1 << 20;
  StreamPair pair = Pair(options, SmallBuffers());
  Fate taken;
  pair.client->Write(Chain(PatternBytes(7, 0, 1 << 20)), taken.OnDone());
  pair.client->Write(Chain(PatternBytes(7, 1 << 20, 1 << 20)));
  ASSERT_TRUE(Drive([&] { return taken.ended(); }));
  EXPECT_TRUE(absl::IsResourceExhausted(taken.status())) << taken.status();
  EXPECT_TRUE(absl::IsResourceExhausted(Write(*pair.client, "later")));
  EXPECT_TRUE(absl::IsResourceExhausted(Read(*pair.client).status()));
  const Received received = ReadToEnd(*pair.server);
  EXPECT_TRUE(is_unix() || !IsEof(received.end)) << "the stream looks whole";
  EXPECT_FALSE(FirstMismatch(received.data, 7, 0).has_value());
}

TEST_P(WritingTest, AWriteAfterShutdownWriteThatNobodyHearsEndsTheStream) {
  StreamPair pair = Pair();
  ASSERT_TRUE(Shutdown(*pair.client).ok());
  pair.client->Write(BufferChain());
  Exchange(*pair.server, *pair.client, "an empty one harms nothing");
  pair.client->Write(Chain("after"));
  EXPECT_TRUE(absl::IsFailedPrecondition(Read(*pair.client).status()));
}

TEST_P(WritingTest, WritableIsFalseAboveTheHighWatermarkAndNotifiedAtTheLowOne) {
  StreamOptions options = SmallBuffers();
  options.send_queue_low = 10'000;
  options.send_queue_high = 100'000;
  StreamPair pair = Pair(options, SmallBuffers());
  EXPECT_EQ(pair.client->send_bounds().low, 10'000u);
  EXPECT_EQ(pair.client->send_bounds().high, 100'000u);
  EXPECT_EQ(pair.client->send_bounds().max, options.send_queue_max);
  EXPECT_TRUE(pair.client->writable());
  pair.client->Write(Chain(PatternBytes(8, 0, 100'000)));
  EXPECT_TRUE(pair.client->writable()) << "at the high watermark, not above it";
  pair.client->Write(Chain(PatternBytes(8, 100'000, 900'000)));
  EXPECT_FALSE(pair.client->writable());
  uint64_t queued = 0;
  bool ended = false;
  absl::Status status;
  pair.client->NotifyWritable([&](absl::Status how) {
    status = how;
    queued = pair.client->stats().queued_bytes;
    ended = true;
  });
  Settle();
  EXPECT_FALSE(ended);
  EXPECT_EQ(ReadUpTo(*pair.server, 1'000'000).data.size(), 1'000'000u);
  ASSERT_TRUE(Drive([&] { return ended; }));
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_LE(queued, 10'000u);
  EXPECT_TRUE(pair.client->writable());
}

TEST_P(WritingTest, NotifyWritableRunsInALaterTurnWhenTheQueueIsLow) {
  StreamPair pair = Pair();
  Fate writable;
  pair.client->NotifyWritable(writable.OnDone());
  EXPECT_FALSE(writable.ended());
  ASSERT_TRUE(Drive([&] { return writable.ended(); }));
  EXPECT_TRUE(writable.status().ok()) << writable.status();
}

TEST_P(WritingTest, OneNotifyWritableMayBePending) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  pair.client->Write(Chain(PatternBytes(9, 0, 1 << 20)));
  Fate first, second;
  pair.client->NotifyWritable(first.OnDone());
  pair.client->NotifyWritable(second.OnDone());
  // The refusal need not wait for the bytes, but comes no later than they do.
  EXPECT_EQ(ReadUpTo(*pair.server, 1 << 20).data.size(), 1u << 20);
  ASSERT_TRUE(Drive([&] { return first.ended() && second.ended(); }));
  EXPECT_TRUE(first.status().ok()) << first.status();
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
}

TEST_P(WritingTest, NotifyWritableEndsWithTheErrorThatEndedSending) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  Fate write, writable;
  pair.client->Write(Chain(PatternBytes(10, 0, kTooMuch)), write.OnDone());
  pair.client->NotifyWritable(writable.OnDone());
  Settle();
  EXPECT_FALSE(writable.ended());
  pair.server->Abort();
  ASSERT_TRUE(Drive([&] { return write.ended() && writable.ended(); }));
  EXPECT_TRUE(IsReset(write.status())) << write.status();
  EXPECT_TRUE(IsReset(writable.status())) << writable.status();
}

TEST_P(WritingTest, FailsForThisAndAllLaterWritesOnceSendingHasFailed) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  Fate first, second;
  pair.client->Write(Chain(PatternBytes(11, 0, kTooMuch)), first.OnDone());
  pair.client->Write(Chain("after"), second.OnDone());
  Settle();
  pair.server.reset();
  ASSERT_TRUE(Drive([&] { return first.ended() && second.ended(); }));
  EXPECT_TRUE(IsReset(first.status())) << first.status();
  EXPECT_TRUE(IsReset(second.status())) << second.status();
  EXPECT_TRUE(IsReset(Write(*pair.client, "later")));
  EXPECT_TRUE(IsReset(Shutdown(*pair.client)));
  EXPECT_EQ(first.runs(), 1);
  EXPECT_EQ(second.runs(), 1);
  EXPECT_EQ(pair.client->stats().queued_bytes, 0u);
}

TEST_P(WritingTest, ShutdownWriteEndsTheStreamAfterWhatIsQueued) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  Fate shutdown;
  pair.client->Write(Chain(PatternBytes(12, 0, 1 << 20)));
  pair.client->ShutdownWrite(shutdown.OnDone());
  Settle();
  EXPECT_FALSE(shutdown.ended());
  const Received received = ReadToEnd(*pair.server);
  EXPECT_EQ(received.data.size(), 1u << 20);
  EXPECT_FALSE(FirstMismatch(received.data, 12, 0).has_value());
  EXPECT_TRUE(IsEof(received.end)) << received.end;
  ASSERT_TRUE(Drive([&] { return shutdown.ended(); }));
  EXPECT_TRUE(shutdown.status().ok()) << shutdown.status();
}

TEST_P(WritingTest, ReadingGoesOnAfterShutdownWrite) {
  StreamPair pair = Pair();
  ASSERT_TRUE(Shutdown(*pair.client).ok());
  EXPECT_TRUE(IsEof(Read(*pair.server).status()));
  Exchange(*pair.server, *pair.client, PatternBytes(13, 0, 100'000));
  ASSERT_TRUE(Shutdown(*pair.server).ok());
  EXPECT_TRUE(IsEof(Read(*pair.client).status()));
}

TEST_P(WritingTest, FailsWithFailedPreconditionAfterShutdownWrite) {
  StreamPair pair = Pair();
  Fate queued;
  pair.client->Write(Chain("before"), queued.OnDone());
  pair.client->ShutdownWrite();
  EXPECT_TRUE(absl::IsFailedPrecondition(Write(*pair.client, "after")));
  EXPECT_TRUE(absl::IsFailedPrecondition(Shutdown(*pair.client)));
  EXPECT_TRUE(queued.status().ok()) << queued.status();
  EXPECT_EQ(ReadToEnd(*pair.server).data, "before");
}

TEST_P(WritingTest, BothSidesMayHalfCloseAtOnce) {
  StreamPair pair = Pair();
  Fate client, server;
  pair.client->Write(Chain("from the client"));
  pair.server->Write(Chain("from the server"));
  pair.client->ShutdownWrite(client.OnDone());
  pair.server->ShutdownWrite(server.OnDone());
  EXPECT_EQ(ReadToEnd(*pair.client).data, "from the server");
  EXPECT_EQ(ReadToEnd(*pair.server).data, "from the client");
  ASSERT_TRUE(Drive([&] { return client.ended() && server.ended(); }));
  EXPECT_TRUE(client.status().ok()) << client.status();
  EXPECT_TRUE(server.status().ok()) << server.status();
}

TEST_P(WritingTest, AStreamMayBeDestroyedInItsShutdownAndWritableCallbacks) {
  StreamPair pair = Pair();
  int ended = 0;
  pair.client->Write(Chain("last words"));
  pair.client->ShutdownWrite([&](absl::Status) {
    pair.client.reset();
    ++ended;
  });
  pair.server->NotifyWritable([&](absl::Status) { ++ended; });
  ASSERT_TRUE(Drive([&] { return ended == 2; }));
  EXPECT_EQ(ReadToEnd(*pair.server).data, "last words");
  pair.server->NotifyWritable([&](absl::Status) {
    pair.server.reset();
    ++ended;
  });
  ASSERT_TRUE(Drive([&] { return ended == 3; }));
}

INSTANTIATE_TEST_SUITE_P(Environments, WritingTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Moving, WritingTest, ::testing::ValuesIn(MovingEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, WritingTest, ::testing::ValuesIn(SealedEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Rdma, WritingTest, ::testing::ValuesIn(RdmaStreamEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
