// How streams end: stream.h, "Destroying", Abort, and the ends that come from the peer.
#include <sys/socket.h>

#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/harness.h"
#include "testing/pattern.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

class EndingTest : public Harness {
 protected:
  // A Unix socket has no reset: its peer sees one only if it had sent bytes that were never read
  // (unix(7); af_unix.c, unix_release_sock), and the end of the stream otherwise: which a sealed
  // stream may know to have come too early.
  bool IsAbortive(const absl::Status& status) const {
    return IsReset(status) || (is_unix() && (IsEof(status) || absl::IsDataLoss(status)));
  }

  // A stream whose peer is a plain socket.
  StreamPtr StreamToPlainSocket(PlainSocket* peer, StreamOptions options = {}) {
    ListenOptions listen;
    listen.stream = options;
    std::unique_ptr<Listener> listener = Listen(listen);
    *peer = PlainSocket::Connect(listener->address());
    EXPECT_TRUE(Drive([this] { return !accepted().empty(); }));
    StreamPtr stream = std::move(accepted().front());
    accepted().pop_front();
    return stream;
  }
};

TEST_P(EndingTest, AnOrderlyEndIsNotAReset) {
  StreamPair pair = Pair();
  Exchange(*pair.client, *pair.server, "all of it");
  pair.client.reset();
  EXPECT_TRUE(IsEof(Read(*pair.server).status()));
}

TEST_P(EndingTest, DestroyingAfterTheLastWriteEndsInOrder) {
  StreamPair pair = Pair();
  const std::string bytes = PatternBytes(1, 0, 100'000);
  Fate write;
  pair.client->Write(Chain(bytes), write.OnDone());
  ASSERT_TRUE(Drive([&] { return write.ended(); }));
  pair.client.reset();
  const Received received = ReadToEnd(*pair.server);
  EXPECT_EQ(received.data, bytes);
  EXPECT_TRUE(IsEof(received.end)) << received.end;
}

TEST_P(EndingTest, DestroyingWithQueuedBytesIsAResetToThePeerAndNeverTheWhole) {
  StreamOptions small;
  small.send_buffer = small.receive_buffer = 16 * 1024;
  StreamPair pair = Pair(small, small);
  // Bytes of the peer that nobody reads make even a Unix socket say reset.
  ASSERT_TRUE(Write(*pair.server, "unread").ok());
  pair.client->Write(Chain(PatternBytes(2, 0, 1 << 20)));
  Settle();
  ASSERT_GT(pair.client->stats().queued_bytes, 0u);
  pair.client.reset();
  const Received received = ReadToEnd(*pair.server);
  EXPECT_LT(received.data.size(), 1u << 20);
  EXPECT_FALSE(FirstMismatch(received.data, 2, 0).has_value()) << "what arrives is a prefix";
  EXPECT_TRUE(IsAbortive(received.end)) << received.end;
}

// stream.h, "Destroying": where the peer has sent nothing that lies unread, a Unix socket cannot
// say that it was cut short; a sealed stream's reader knows.
TEST_P(EndingTest, DestroyingAUnixStreamWithQueuedBytesLeavesItsPeerAPrefix) {
  if (!environment().has_kernel() || !is_unix()) GTEST_SKIP() << "about Unix sockets";
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  pair.client->Write(Chain(PatternBytes(2, 0, 1 << 20)));
  Settle();
  ASSERT_GT(pair.client->stats().queued_bytes, 0u);
  pair.client.reset();
  const Received received = ReadToEnd(*pair.server);
  EXPECT_GT(received.data.size(), 0u);
  EXPECT_LT(received.data.size(), 1u << 20);
  EXPECT_FALSE(FirstMismatch(received.data, 2, 0).has_value());
  EXPECT_TRUE(IsEof(received.end) || absl::IsDataLoss(received.end)) << received.end;
}

TEST_P(EndingTest, AbortIsAResetToThePeer) {
  StreamPair pair = Pair();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  pair.client->Abort();
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(IsAbortive(read.status())) << read.status();
  EXPECT_EQ(read.runs(), 1);
}

TEST_P(EndingTest, AbortEndsPendingAndLaterOperationsWithCancelled) {
  StreamOptions small;
  small.send_buffer = small.receive_buffer = 16 * 1024;
  StreamPair pair = Pair(small, small);
  Fate read, write, writable, shutdown;
  pair.client->ReadReady(read.OnRead());
  pair.client->Write(Chain(PatternBytes(3, 0, 1 << 20)), write.OnDone());
  pair.client->NotifyWritable(writable.OnDone());
  pair.client->ShutdownWrite(shutdown.OnDone());
  Settle();
  pair.client->Abort();
  EXPECT_FALSE(read.ended()) << "not inside Abort";
  ASSERT_TRUE(
      Drive([&] { return read.ended() && write.ended() && writable.ended() && shutdown.ended(); }));
  for (const Fate* fate : {&read, &write, &writable, &shutdown}) {
    EXPECT_TRUE(IsCancelled(fate->status())) << fate->status();
    EXPECT_EQ(fate->runs(), 1);
  }
  EXPECT_TRUE(IsCancelled(Read(*pair.client).status()));
  Fate later;
  pair.client->NotifyWritable(later.OnDone());
  ASSERT_TRUE(Drive([&] { return later.ended(); }));
  EXPECT_TRUE(IsCancelled(later.status())) << later.status();
}

TEST_P(EndingTest, AWriteAfterAbortEndsWithCancelled) {
  StreamPair pair = Pair();
  pair.client->Abort();
  EXPECT_TRUE(IsCancelled(Write(*pair.client, "late")));
  pair.client->Abort();
  EXPECT_TRUE(IsCancelled(Write(*pair.client, "later")));
}

TEST_P(EndingTest, AbortHoldsNoMemory) {
  StreamOptions small;
  small.send_buffer = small.receive_buffer = 16 * 1024;
  StreamPair pair = Pair(small, small);
  pair.client->Write(Chain(PatternBytes(4, 0, 1 << 20)));
  ASSERT_TRUE(Write(*pair.server, "unread").ok());
  Settle();
  pair.client->Abort();
  // The server's may have begun to receive what nobody reads there.
  ASSERT_TRUE(Drive([&] { return pair.client->stats().pinned_bytes == 0; }));
  EXPECT_EQ(pair.client->stats().sealed_pinned_bytes, 0u);
}

TEST_P(EndingTest, AStreamMayAbortItselfInItsCallback) {
  StreamPair pair = Pair();
  bool ended = false;
  Fate later;
  pair.server->ReadReady([&](absl::StatusOr<Buffer> data) {
    EXPECT_TRUE(data.ok());
    pair.server->ReadReady(later.OnRead());
    pair.server->Abort();
    ended = true;
  });
  pair.client->Write(Chain("x"));
  ASSERT_TRUE(Drive([&] { return ended && later.ended(); }));
  EXPECT_TRUE(IsCancelled(later.status())) << later.status();
}

TEST_P(EndingTest, AResetByThePeerArrivesOnceAndIsRepeated) {
  if (!environment().has_kernel()) GTEST_SKIP() << "needs a plain socket as the peer";
  PlainSocket peer;
  StreamPtr stream = StreamToPlainSocket(&peer);
  // Unread bytes make a close a reset on Unix sockets as well.
  ASSERT_TRUE(Write(*stream, "never read").ok());
  Fate read;
  stream->ReadReady(read.OnRead());
  Settle();
  peer.Reset();
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(IsReset(read.status())) << read.status();
  EXPECT_EQ(read.runs(), 1);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(IsReset(Read(*stream).status()));
  EXPECT_TRUE(IsReset(Write(*stream, "x")));
  EXPECT_EQ(loop().Snapshot().peer_resets, 1u);
}

TEST_P(EndingTest, AResetComesAfterTheBytesBeforeIt) {
  if (!environment().has_kernel()) GTEST_SKIP() << "needs a plain socket as the peer";
  if (!is_unix()) GTEST_SKIP() << "TCP itself drops what was not read when a reset comes";
  PlainSocket peer;
  StreamPtr stream = StreamToPlainSocket(&peer);
  ASSERT_TRUE(Write(*stream, "never read").ok());
  const std::string bytes = PatternBytes(5, 0, 50'000);
  ASSERT_EQ(peer.Send(bytes), 50'000);
  peer.Close();
  const Received received = ReadToEnd(*stream);
  EXPECT_EQ(received.data, bytes);
  EXPECT_TRUE(IsReset(received.end)) << received.end;
}

TEST_P(EndingTest, BytesTheLibraryTookBeforeAResetAreDelivered) {
  if (!environment().has_kernel()) GTEST_SKIP() << "needs a plain socket as the peer";
  PlainSocket peer;
  StreamPtr stream = StreamToPlainSocket(&peer);
  ASSERT_TRUE(Write(*stream, "never read").ok());
  uint64_t received = 0;
  Fate last;
  stream->ReadReady([&](absl::StatusOr<Buffer> data) {
    ASSERT_TRUE(data.ok()) << data.status();
    received = data->size();
    peer.Reset();
    stream->ReadReady(last.OnRead());
  });
  Settle();
  ASSERT_EQ(peer.Send("in order"), 8);
  ASSERT_TRUE(Drive([&] { return last.ended(); }));
  EXPECT_EQ(received, 8u);
  EXPECT_TRUE(IsReset(last.status())) << last.status();
}

TEST_P(EndingTest, AResetAfterTheEndOfTheStreamDoesNotUndoIt) {
  if (!environment().has_kernel()) GTEST_SKIP() << "needs a plain socket as the peer";
  PlainSocket peer;
  StreamPtr stream = StreamToPlainSocket(&peer);
  ASSERT_EQ(peer.Send("all"), 3);
  peer.ShutdownWrite();
  const Received received = ReadToEnd(*stream);
  EXPECT_EQ(received.data, "all");
  EXPECT_TRUE(IsEof(received.end)) << received.end;
  peer.Reset();
  Settle();
  EXPECT_TRUE(IsEof(Read(*stream).status())) << "the bytes that came were all there were";
}

TEST_P(EndingTest, AResetWhileWritingEndsTheWriteAndTheRead) {
  if (!environment().has_kernel()) GTEST_SKIP() << "needs a plain socket as the peer";
  StreamOptions small;
  small.send_buffer = 16 * 1024;
  PlainSocket peer;
  StreamPtr stream = StreamToPlainSocket(&peer, small);
  peer.SetOption(SOL_SOCKET, SO_RCVBUF, 16 * 1024);
  Fate write, read;
  stream->Write(Chain(PatternBytes(6, 0, 8 << 20)), write.OnDone());
  stream->ReadReady(read.OnRead());
  Settle();
  EXPECT_FALSE(write.ended());
  peer.Reset();
  ASSERT_TRUE(Drive([&] { return write.ended() && read.ended(); }));
  EXPECT_TRUE(IsReset(write.status())) << write.status();
  EXPECT_TRUE(IsReset(read.status()))
      << "a reset met by a send is one for reads as well: " << read.status();
  EXPECT_EQ(write.runs(), 1);
  EXPECT_EQ(read.runs(), 1);
}

TEST_P(EndingTest, WritingToAPeerThatHasLeftFailsAndRaisesNoSignal) {
  if (!environment().has_kernel()) GTEST_SKIP() << "needs a plain socket as the peer";
  PlainSocket peer;
  StreamPtr stream = StreamToPlainSocket(&peer);
  peer.Close();
  Settle();
  // The first bytes may still be taken before the answer comes.
  absl::Status status = Write(*stream, "anybody?");
  for (int i = 0; i < 100 && status.ok(); ++i) {
    Settle();
    status = Write(*stream, "anybody?");
  }
  EXPECT_TRUE(IsReset(status)) << status;
}

TEST_P(EndingTest, AStreamMayDestroyAnotherInACallback) {
  StreamPair first = Pair();
  StreamPair second = Pair();
  Fate read;
  second.server->ReadReady(read.OnRead());
  bool ended = false;
  first.server->ReadReady([&](absl::StatusOr<Buffer>) {
    second.server.reset();
    ended = true;
  });
  // Both have something to do in the same turn.
  Fate one, two;
  first.client->Write(Chain("x"), one.OnDone());
  second.client->Write(Chain("y"), two.OnDone());
  ASSERT_TRUE(Drive([&] { return ended && read.ended() && one.ended() && two.ended(); }));
  EXPECT_EQ(read.runs() + read.dropped(), 1);
}

TEST_P(EndingTest, DestroyingAStreamMayDestroyOthersThroughItsCallbacks) {
  std::vector<StreamPair> pairs;
  for (int i = 0; i < 10; ++i) pairs.push_back(Pair());
  // Each pending read owns the next stream.
  for (int i = 8; i >= 0; --i) {
    pairs[i].server->ReadReady(
        [next = std::move(pairs[i + 1].server)](absl::StatusOr<Buffer>) { FAIL(); });
  }
  Settle();
  pairs[0].server.reset();
  for (StreamPair& pair : pairs) {
    EXPECT_TRUE(IsEof(Read(*pair.client).status()));
  }
}

TEST_P(EndingTest, AStreamMayOutliveItsLoop) {
  StreamPair pair = Pair();
  Exchange(*pair.client, *pair.server, "while it lived");
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  TakeLoop().reset();
  EXPECT_EQ(read.runs(), 0);
  EXPECT_EQ(read.dropped(), 1);
  // No call does anything any more, and the callbacks given to them are destroyed unrun.
  Fate late, write, shutdown, writable;
  pair.server->ReadReady(late.OnRead());
  pair.server->Write(BufferChain(), write.OnDone());
  pair.server->ShutdownWrite(shutdown.OnDone());
  pair.server->NotifyWritable(writable.OnDone());
  for (const Fate* fate : {&late, &write, &shutdown, &writable}) {
    EXPECT_EQ(fate->runs(), 0);
    EXPECT_EQ(fate->dropped(), 1);
  }
  pair.server->CancelRead();
  pair.server->ShutdownRead();
  pair.server->Abort();
  pair.server->SetReadDeadline(absl::Seconds(1));
  pair.server->SetWriteDeadline(absl::Seconds(1));
  pair.server->SetIdleDeadline(absl::Seconds(1));
  EXPECT_EQ(pair.server->stats().queued_bytes, 0u);
  EXPECT_EQ(pair.server->stats().bytes_in, 14u);
}

TEST_P(EndingTest, ALoopThatEndsWithQueuedBytesClosesAbortively) {
  if (!environment().has_kernel()) GTEST_SKIP() << "needs a plain socket as the peer";
  StreamOptions small;
  small.send_buffer = 16 * 1024;
  PlainSocket peer;
  StreamPtr stream = StreamToPlainSocket(&peer, small);
  ASSERT_EQ(peer.Send("unread"), 6);
  stream->Write(Chain(PatternBytes(7, 0, 8 << 20)));
  Settle();
  ASSERT_GT(stream->stats().queued_bytes, 0u);
  TakeLoop().reset();
  int end = -1;
  const std::string received = peer.ReceiveAll(&end);
  EXPECT_LT(received.size(), size_t{8} << 20);
  EXPECT_FALSE(FirstMismatch(received, 7, 0).has_value());
  EXPECT_EQ(end, ECONNRESET);
}

TEST_P(EndingTest, ALoopThatEndsWithIdleStreamsClosesThemInOrder) {
  if (!environment().has_kernel()) GTEST_SKIP() << "needs a plain socket as the peer";
  PlainSocket peer;
  StreamPtr stream = StreamToPlainSocket(&peer);
  Fate read;
  stream->ReadReady(read.OnRead());
  Settle();
  TakeLoop().reset();
  int end = -1;
  EXPECT_EQ(peer.ReceiveAll(&end), "");
  EXPECT_EQ(end, 0);
  EXPECT_EQ(read.dropped(), 1);
}

TEST_P(EndingTest, NamesAndFiguresBelongToTheStream) {
  StreamPair pair = Pair();
  EXPECT_EQ(pair.client->peer(), pair.server->local());
  if (!is_unix()) {
    EXPECT_EQ(pair.server->peer(), pair.client->local());
    EXPECT_NE(pair.client->local().port(), 0);
  }
  Exchange(*pair.client, *pair.server, "12345");
  EXPECT_EQ(pair.client->stats().bytes_out, 5u);
  EXPECT_EQ(pair.server->stats().bytes_in, 5u);
  if (environment().moves()) return;
  EXPECT_EQ(pair.client->stats().engine, environment().connect_engine());
  EXPECT_EQ(pair.server->stats().engine, environment().listen_engine());
}

INSTANTIATE_TEST_SUITE_P(Environments, EndingTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Moving, EndingTest, ::testing::ValuesIn(MovingEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, EndingTest, ::testing::ValuesIn(SealedEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Rdma, EndingTest, ::testing::ValuesIn(RdmaStreamEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
