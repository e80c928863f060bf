// The contract of reading: stream.h, "Callbacks" and "Reading".
#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

class ReadingTest : public Harness {};

TEST_P(ReadingTest, EndsWithAtLeastOneByteAsSoonAsThereAreAny) {
  StreamPair pair = Pair();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  EXPECT_FALSE(read.ended());
  ASSERT_TRUE(Write(*pair.client, "x").ok());
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(read.status().ok()) << read.status();
  EXPECT_EQ(read.data(), "x");
}

TEST_P(ReadingTest, NeverRunsInsideTheCallThatStartedIt) {
  StreamPair pair = Pair();
  ASSERT_TRUE(Write(*pair.client, "already there").ok());
  Settle();
  Fate first, second;
  pair.server->ReadReady(first.OnRead());
  EXPECT_FALSE(first.ended());
  pair.server->ReadReady(second.OnRead());
  EXPECT_FALSE(second.ended()) << "not even to refuse";
  ASSERT_TRUE(Drive([&] { return first.ended() && second.ended(); }));
}

TEST_P(ReadingTest, AReadStartedInACallbackDoesNotRunInsideIt) {
  StreamPair pair = Pair();
  Fate written;
  pair.client->Write(Chain(PatternBytes(1, 0, 200'000)), written.OnDone());
  int depth = 0, deepest = 0;
  size_t received = 0;
  std::function<void()> next = [&] {
    pair.server->ReadReady([&](absl::StatusOr<Buffer> data) {
      deepest = std::max(deepest, ++depth);
      ASSERT_TRUE(data.ok()) << data.status();
      received += data->size();
      if (received < 200'000) next();
      --depth;
    });
  };
  next();
  ASSERT_TRUE(Drive([&] { return received == 200'000; }));
  EXPECT_EQ(deepest, 1);
}

TEST_P(ReadingTest, RunsOnTheThreadOfTheLoop) {
  StreamPair pair = Pair();
  bool on_loop = false;
  bool ended = false;
  pair.server->ReadReady([&](absl::StatusOr<Buffer>) {
    on_loop = pair.server->loop().InLoopThread();
    ended = true;
  });
  ASSERT_TRUE(Write(*pair.client, "x").ok());
  ASSERT_TRUE(Drive([&] { return ended; }));
  EXPECT_TRUE(on_loop);
  EXPECT_EQ(&pair.server->loop(), &loop());
}

TEST_P(ReadingTest, ASecondReadIsRefusedAndTheFirstGoesOn) {
  StreamPair pair = Pair();
  Fate first, second;
  pair.server->ReadReady(first.OnRead());
  pair.server->ReadReady(second.OnRead());
  ASSERT_TRUE(Drive([&] { return second.ended(); }));
  EXPECT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
  EXPECT_FALSE(first.ended());
  ASSERT_TRUE(Write(*pair.client, "for the first").ok());
  ASSERT_TRUE(Drive([&] { return first.ended(); }));
  EXPECT_EQ(first.data(), "for the first");
  EXPECT_EQ(first.runs() + second.runs(), 2);
}

TEST_P(ReadingTest, BytesThatWaitedAreDeliveredInOrder) {
  StreamPair pair = Pair();
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(Write(*pair.client, std::string(100, 'a' + i)).ok());
  const Received received = ReadUpTo(*pair.server, 1000);
  ASSERT_EQ(received.data.size(), 1000u);
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(received.data[i], 'a' + i / 100) << "at " << i;
}

TEST_P(ReadingTest, TheBufferIsTheCallbacksToKeep) {
  StreamPair pair = Pair();
  std::vector<Buffer> kept;
  std::string sent;
  for (int i = 0; i < 50; ++i) {
    const std::string message = PatternBytes(2, sent.size(), 1000);
    bool ended = false;
    pair.server->ReadReady([&](absl::StatusOr<Buffer> data) {
      ASSERT_TRUE(data.ok()) << data.status();
      kept.push_back(*std::move(data));
      ended = true;
    });
    ASSERT_TRUE(Write(*pair.client, message).ok());
    ASSERT_TRUE(Drive([&] { return ended; }));
    sent += message;
    // A message may arrive in pieces.
    size_t size = 0;
    for (const Buffer& buffer : kept) size += buffer.size();
    while (size < sent.size()) {
      ended = false;
      pair.server->ReadReady([&](absl::StatusOr<Buffer> data) {
        ASSERT_TRUE(data.ok()) << data.status();
        size += data->size();
        kept.push_back(*std::move(data));
        ended = true;
      });
      ASSERT_TRUE(Drive([&] { return ended; }));
    }
  }
  std::string got;
  for (const Buffer& buffer : kept) got += buffer.view();
  EXPECT_EQ(got, sent);
  EXPECT_GT(loop().Snapshot().pool.live, 0u);
}

TEST_P(ReadingTest, ABufferMayOutliveItsStream) {
  StreamPair pair = Pair();
  Buffer kept;
  bool ended = false;
  pair.server->ReadReady([&](absl::StatusOr<Buffer> data) {
    ASSERT_TRUE(data.ok()) << data.status();
    kept = *std::move(data);
    ended = true;
    pair.server.reset();
  });
  ASSERT_TRUE(Write(*pair.client, "kept").ok());
  ASSERT_TRUE(Drive([&] { return ended; }));
  pair.client.reset();
  Settle();
  EXPECT_EQ(kept.view(), "kept");
}

TEST_P(ReadingTest, NoReceiveIsLargerThanReceiveMax) {
  if (!environment().has_kernel()) GTEST_SKIP() << "simulated completions are of one size";
  StreamOptions options;
  options.receive_max = 8 * 1024;
  StreamPair pair = Pair({}, options);
  Fate written;
  pair.client->Write(Chain(PatternBytes(3, 0, 1 << 20)), written.OnDone());
  size_t received = 0;
  while (received < (1 << 20)) {
    absl::StatusOr<std::string> data = Read(*pair.server);
    ASSERT_TRUE(data.ok()) << data.status();
    EXPECT_LE(data->size(), 8u * 1024);
    ASSERT_FALSE(FirstMismatch(*data, 3, received).has_value());
    received += data->size();
  }
  ASSERT_TRUE(Drive([&] { return written.ended(); }));
}

TEST_P(ReadingTest, CancelReadEndsAPendingReadWithCancelled) {
  StreamPair pair = Pair();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  pair.server->CancelRead();
  EXPECT_FALSE(read.ended()) << "not inside CancelRead";
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(IsCancelled(read.status())) << read.status();
  EXPECT_EQ(read.runs(), 1);
}

TEST_P(ReadingTest, CancelReadLosesNoByte) {
  StreamPair pair = Pair();
  PatternWriter writer(*pair.client, 4, 300'000, 1000);
  writer.Start();
  std::string received;
  int cancelled = 0;
  for (;;) {
    Fate read;
    pair.server->ReadReady(read.OnRead());
    // A different moment of the stream each time: some cancels meet bytes, some do not.
    for (int turn = cancelled % 3; turn > 0; --turn) loop().Poll();
    pair.server->CancelRead();
    ASSERT_TRUE(Drive([&] { return read.ended(); }));
    ASSERT_EQ(read.runs(), 1);
    if (IsCancelled(read.status())) {
      ++cancelled;
    } else if (read.status().ok()) {
      received += read.data();
    } else {
      EXPECT_TRUE(IsEof(read.status())) << read.status();
      break;
    }
    if (cancelled % 3 == 0) {
      absl::StatusOr<std::string> data = Read(*pair.server);
      if (!data.ok()) {
        EXPECT_TRUE(IsEof(data.status())) << data.status();
        break;
      }
      received += *data;
    }
  }
  EXPECT_GT(cancelled, 0);
  EXPECT_EQ(received.size(), 300'000u);
  EXPECT_FALSE(FirstMismatch(received, 4, 0).has_value());
}

TEST_P(ReadingTest, CancelReadWithoutAReadHasNoEffect) {
  StreamPair pair = Pair();
  pair.server->CancelRead();
  Settle();
  Exchange(*pair.client, *pair.server, "still open");
  pair.server->CancelRead();
  Exchange(*pair.client, *pair.server, "and still");
}

TEST_P(ReadingTest, AReadCanFollowACancelledOne) {
  StreamPair pair = Pair();
  for (int i = 0; i < 20; ++i) {
    Fate read;
    pair.server->ReadReady(read.OnRead());
    if (i % 2 == 0) Settle();
    pair.server->CancelRead();
    ASSERT_TRUE(Drive([&] { return read.ended(); }));
    ASSERT_TRUE(IsCancelled(read.status())) << read.status();
  }
  Exchange(*pair.client, *pair.server, "after twenty cancels");
}

TEST_P(ReadingTest, TheEndOfTheStreamComesAfterTheLastByteAndIsRepeated) {
  StreamPair pair = Pair();
  ASSERT_TRUE(Write(*pair.client, "the last bytes").ok());
  ASSERT_TRUE(Shutdown(*pair.client).ok());
  Settle();
  const Received received = ReadToEnd(*pair.server);
  EXPECT_EQ(received.data, "the last bytes");
  EXPECT_TRUE(IsEof(received.end)) << received.end;
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(IsEof(Read(*pair.server).status()));
  }
}

TEST_P(ReadingTest, APendingReadMeetsTheEndOfTheStreamOnce) {
  StreamPair pair = Pair();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  ASSERT_TRUE(Shutdown(*pair.client).ok());
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(IsEof(read.status())) << read.status();
  Settle();
  EXPECT_EQ(read.runs(), 1);
}

TEST_P(ReadingTest, ErrorsNameThePeer) {
  StreamPair pair = Pair();
  ASSERT_TRUE(Shutdown(*pair.client).ok());
  const absl::Status end = Read(*pair.server).status();
  EXPECT_NE(end.message().find(pair.server->peer().ToString()), std::string::npos) << end;
}

TEST_P(ReadingTest, AStreamMayBeDestroyedInItsReadCallback) {
  StreamPair pair = Pair();
  bool ended = false;
  pair.server->ReadReady([&](absl::StatusOr<Buffer> data) {
    EXPECT_TRUE(data.ok());
    pair.server.reset();
    ended = true;
  });
  ASSERT_TRUE(Write(*pair.client, "x").ok());
  ASSERT_TRUE(Drive([&] { return ended; }));
  EXPECT_TRUE(IsEof(Read(*pair.client).status()) || IsReset(Read(*pair.client).status()));
}

TEST_P(ReadingTest, APendingReadIsDestroyedUnrunWithItsStream) {
  StreamPair pair = Pair();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  pair.server.reset();
  Settle();
  EXPECT_EQ(read.runs(), 0);
  EXPECT_EQ(read.dropped(), 1);
}

TEST_P(ReadingTest, AClosureMayOwnTheStreamThatRunsIt) {
  StreamPair pair = Pair();
  EchoForever(std::move(pair.server));
  for (int i = 0; i < 5; ++i) Exchange(*pair.client, *pair.client, "around and back");
  // The closure lets the stream go when the stream ends, and the peer sees that.
  ASSERT_TRUE(Shutdown(*pair.client).ok());
  EXPECT_TRUE(IsEof(Read(*pair.client).status()));
}

TEST_P(ReadingTest, AClosureThatOwnsItsStreamGoesWithTheLoop) {
  StreamPair pair = Pair();
  Fate witness;
  Stream& in = *pair.server;
  in.ReadReady([stream = std::move(pair.server), seen = witness.OnRead()](
                   absl::StatusOr<Buffer> data) mutable { std::move(seen)(std::move(data)); });
  Settle();
  TakeLoop().reset();
  EXPECT_EQ(witness.runs(), 0);
  EXPECT_EQ(witness.dropped(), 1);
}

TEST_P(ReadingTest, ShutdownReadDropsWhatWasReceivedAndEndsLaterReads) {
  StreamPair pair = Pair();
  ASSERT_TRUE(Write(*pair.client, "not wanted").ok());
  Settle();
  pair.server->ShutdownRead();
  EXPECT_TRUE(IsEof(Read(*pair.server).status()));
  EXPECT_EQ(pair.server->stats().pinned_bytes, 0u);
}

TEST_P(ReadingTest, ShutdownReadEndsAPendingRead) {
  StreamPair pair = Pair();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  pair.server->ShutdownRead();
  EXPECT_FALSE(read.ended());
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(IsEof(read.status())) << read.status();
  EXPECT_EQ(read.runs(), 1);
}

TEST_P(ReadingTest, WhatComesAfterShutdownReadIsNotTaken) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  pair.server->ShutdownRead();
  Settle();
  const uint64_t before = pair.server->stats().bytes_in;
  Fate write;
  pair.client->Write(Chain(PatternBytes(1, 0, 8 << 20)), write.OnDone());
  Settle();
  EXPECT_EQ(pair.server->stats().bytes_in, before);
  EXPECT_EQ(pair.server->stats().pinned_bytes, 0u);
  EXPECT_EQ(pair.server->stats().sealed_pinned_bytes, 0u);
  EXPECT_TRUE(IsEof(Read(*pair.server).status()));
  if (is_unix()) {
    // unix(7) sockets tell the peer, whose sends end with EPIPE.
    ASSERT_TRUE(Drive([&] { return write.ended(); }));
    EXPECT_TRUE(IsReset(write.status())) << write.status();
    return;
  }
  EXPECT_FALSE(write.ended()) << "the peer stops when the kernel's buffers are full";
  Exchange(*pair.server, *pair.client, "the other way");
  pair.server.reset();
  ASSERT_TRUE(Drive([&] { return write.ended(); }));
  EXPECT_TRUE(IsReset(write.status())) << write.status();
}

TEST_P(ReadingTest, WritingGoesOnAfterShutdownRead) {
  StreamPair pair = Pair();
  pair.server->ShutdownRead();
  Exchange(*pair.server, *pair.client, "one way");
  ASSERT_TRUE(Shutdown(*pair.server).ok());
  EXPECT_TRUE(IsEof(Read(*pair.client).status()));
}

INSTANTIATE_TEST_SUITE_P(Environments, ReadingTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Moving, ReadingTest, ::testing::ValuesIn(MovingEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, ReadingTest, ::testing::ValuesIn(SealedEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Rdma, ReadingTest, ::testing::ValuesIn(RdmaStreamEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
