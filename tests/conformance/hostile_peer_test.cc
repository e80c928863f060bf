// Peers that drip, flood, stall, reset or send urgent bytes cost their own connection and no other.
#include <sys/socket.h>

#include <algorithm>
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

class HostilePeerTest : public Harness {
 protected:
  void SetUp() override {
    Harness::SetUp();
    if (IsSkipped()) return;
    if (!environment().has_kernel()) GTEST_SKIP() << "needs plain sockets as peers";
    listener_ = Listen();
  }

  void TearDown() override {
    listener_.reset();
    Harness::TearDown();
  }

  PlainSocket Peer() { return PlainSocket::Connect(listener_->address()); }

  StreamPtr Accept() {
    EXPECT_TRUE(Drive([this] { return !accepted().empty(); }));
    StreamPtr stream = std::move(accepted().front());
    accepted().pop_front();
    return stream;
  }

  // A good peer that is served while others misbehave.
  void ExpectService() {
    PlainSocket peer = Peer();
    StreamPtr stream = Accept();
    ASSERT_EQ(peer.Send("ping"), 4);
    EXPECT_EQ(ReadUpTo(*stream, 4).data, "ping");
    ASSERT_TRUE(Write(*stream, "pong").ok());
    int end = 0;
    EXPECT_EQ(peer.ReceiveAll(&end), "pong");
  }

 private:
  std::unique_ptr<Listener> listener_;
};

TEST_P(HostilePeerTest, OneThatDripsIsReadByteByByte) {
  PlainSocket peer = Peer();
  StreamPtr stream = Accept();
  const std::string bytes = PatternBytes(1, 0, 500);
  for (size_t i = 0; i < bytes.size(); ++i) {
    ASSERT_EQ(peer.Send(bytes.substr(i, 1)), 1);
    absl::StatusOr<std::string> data = Read(*stream);
    ASSERT_TRUE(data.ok()) << data.status();
    ASSERT_EQ(*data, bytes.substr(i, 1));
    if (i % 100 == 0) ExpectService();
  }
}

TEST_P(HostilePeerTest, OneThatDripsMeetsTheReadDeadlineNoLater) {
  PlainSocket peer = Peer();
  StreamPtr stream = Accept();
  stream->SetReadDeadline(absl::Milliseconds(20));
  ASSERT_EQ(peer.Send("x"), 1);
  EXPECT_TRUE(Read(*stream).ok());
  EXPECT_TRUE(IsDeadlineExceeded(Read(*stream).status()));
  ExpectService();
}

TEST_P(HostilePeerTest, OneThatFloodsDoesNotStarveOthers) {
  PlainSocket flood = Peer();
  StreamPtr flooded = Accept();
  PatternReader reader(std::move(flooded), 2);
  reader.Start();
  uint64_t sent = 0;
  const auto top_up = [&] {
    const int64_t taken = flood.Send(PatternBytes(2, sent, 64 * 1024));
    if (taken > 0) sent += static_cast<uint64_t>(taken);
  };
  PlainSocket peer = Peer();
  StreamPtr stream = Accept();
  for (int round = 0; round < 20; ++round) {
    Fate read;
    stream->ReadReady(read.OnRead());
    ASSERT_EQ(peer.Send("ping"), 4);
    // With the flood topped up before every turn, the other is still served within a few.
    int turns = 0;
    for (; turns < 100 && !read.ended(); ++turns) {
      top_up();
      loop().Poll();
    }
    EXPECT_LT(turns, 100);
    ASSERT_TRUE(Drive([&] { return read.ended(); }));
  }
  ASSERT_TRUE(Drive([&] { return reader.received() == sent; }));
  EXPECT_TRUE(reader.intact());
  flood.Close();
  ASSERT_TRUE(Drive([&] { return reader.ended(); }));
}

TEST_P(HostilePeerTest, OneThatFloodsAStreamNobodyReadsIsHeldBackByTheKernel) {
  PlainSocket flood = Peer();
  StreamPtr stream = Accept();
  const std::string piece(64 * 1024, 'f');
  int64_t sent = 0;
  for (int i = 0; i < 100'000; ++i) {
    const int64_t taken = flood.Send(piece);
    if (taken < 0) break;
    sent += taken;
    loop().Poll();
  }
  Settle();
  EXPECT_LT(sent, int64_t{64} << 20);
  EXPECT_LE(stream->stats().pinned_bytes, 256u * 1024);
  ExpectService();
}

TEST_P(HostilePeerTest, ThoseThatResetAtOnceCostOnlyThemselves) {
  for (int i = 0; i < Scaled(300); ++i) Peer().Reset();
  // Those the kernel had already accepted arrive, and say what became of them.
  Settle();
  while (!accepted().empty()) {
    const absl::Status end = Read(*accepted().front()).status();
    EXPECT_TRUE(IsReset(end) || IsEof(end)) << end;
    accepted().pop_front();
  }
  ExpectService();
}

TEST_P(HostilePeerTest, ThoseThatResetInTheMiddleCostOnlyThemselves) {
  std::vector<PlainSocket> peers;
  // More than the kernel takes for a peer that does not read.
  const std::string bytes = PatternBytes(3, 0, 16 << 20);
  std::vector<Fate> reads(100), writes(100);
  std::vector<StreamPtr> streams;
  for (int i = 0; i < 100; ++i) {
    peers.push_back(Peer());
    streams.push_back(Accept());
    streams[i]->Write(Buffer::FromExternal(bytes.data(), bytes.size(), [] {}), writes[i].OnDone());
    streams[i]->ReadReady(reads[i].OnRead());
    Settle();
    if (i % 2 == 0) {
      ASSERT_EQ(peers[i].Send("half a requ"), 11);
    }
    if (i % 3 == 0) loop().Poll();
    peers[i].Reset();
  }
  ASSERT_TRUE(Drive([&] {
    return std::ranges::all_of(reads, [](Fate& f) { return f.ended(); }) &&
           std::ranges::all_of(writes, [](Fate& f) { return f.ended(); });
  }));
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(reads[i].runs(), 1);
    EXPECT_EQ(writes[i].runs(), 1);
    EXPECT_FALSE(writes[i].status().ok()) << "so much to a peer that read nothing";
    EXPECT_TRUE(reads[i].status().ok() || IsReset(reads[i].status())) << reads[i].status();
  }
  ExpectService();
}

TEST_P(HostilePeerTest, OneThatNeverReadsMeetsTheWriteDeadline) {
  PlainSocket peer = Peer();
  StreamPtr stream = Accept();
  stream->SetWriteDeadline(absl::Milliseconds(20));
  EXPECT_TRUE(IsDeadlineExceeded(Write(*stream, PatternBytes(4, 0, 32 << 20))));
  ExpectService();
}

TEST_P(HostilePeerTest, OneThatStallsKeepsWhatWasWrittenToItAndNothingElse) {
  PlainSocket peer = Peer();
  StreamPtr stream = Accept();
  // More than the kernel takes, and no deadline to end it.
  const std::string bytes = PatternBytes(6, 0, 16 << 20);
  Fate write, read;
  stream->Write(Buffer::FromExternal(bytes.data(), bytes.size(), [] {}), write.OnDone());
  stream->ReadReady(read.OnRead());
  for (int i = 0; i < 3; ++i) ExpectService();
  EXPECT_FALSE(write.ended());
  EXPECT_FALSE(read.ended());
  EXPECT_FALSE(stream->writable());
  Settle();  // nor does it cost the loop turns: this ends
  peer.Reset();
  ASSERT_TRUE(Drive([&] { return write.ended() && read.ended(); }));
  EXPECT_FALSE(write.status().ok());
  ExpectService();
}

TEST_P(HostilePeerTest, UrgentBytesDoNotStallAStream) {
  if (is_unix()) GTEST_SKIP() << "urgent bytes are TCP's here";
  PlainSocket peer = Peer();
  StreamPtr stream = Accept();
  // The urgent byte is out of band and not part of the stream (tcp(7)): the others are, and recv
  // stops short at its mark.
  const std::string before = PatternBytes(5, 0, 1000);
  const std::string after = PatternBytes(5, 1000, 1000);
  for (int order = 0; order < 2; ++order) {
    Fate read;
    if (order == 0) {
      stream->ReadReady(read.OnRead());
      Settle();
    }
    ASSERT_EQ(peer.Send(before), 1000);
    ASSERT_EQ(peer.Send("!", MSG_OOB), 1);
    ASSERT_EQ(peer.Send(after), 1000);
    std::string received;
    if (order == 0) {
      ASSERT_TRUE(Drive([&] { return read.ended(); }));
      ASSERT_TRUE(read.status().ok()) << read.status();
      received = read.data();
    }
    received += ReadUpTo(*stream, 2000 - received.size()).data;
    EXPECT_EQ(received, before + after);
  }
  peer.ShutdownWrite();
  EXPECT_TRUE(IsEof(Read(*stream).status()));
}

TEST_P(HostilePeerTest, ManyUrgentBytesCostNothingElse) {
  if (is_unix()) GTEST_SKIP() << "urgent bytes are TCP's here";
  PlainSocket peer = Peer();
  StreamPtr stream = Accept();
  std::string received;
  for (int i = 0; i < 50; ++i) {
    ASSERT_EQ(peer.Send("a"), 1);
    ASSERT_EQ(peer.Send("!", MSG_OOB), 1);
    if (i % 5 == 0) received += ReadUpTo(*stream, 1).data;
  }
  peer.ShutdownWrite();
  const Received rest = ReadToEnd(*stream);
  received += rest.data;
  EXPECT_TRUE(IsEof(rest.end)) << rest.end;
  EXPECT_EQ(std::ranges::count(received, 'a'), 50);
  ExpectService();
}

TEST_P(HostilePeerTest, OneThatOnlySendsAnEndIsSeenWithAndWithoutARead) {
  PlainSocket first = Peer();
  StreamPtr reading = Accept();
  PlainSocket second = Peer();
  StreamPtr waiting = Accept();
  Fate read;
  reading->ReadReady(read.OnRead());
  Settle();
  first.Close();
  second.Close();
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(IsEof(read.status())) << read.status();
  EXPECT_TRUE(IsEof(Read(*waiting).status()));
}

INSTANTIATE_TEST_SUITE_P(Environments, HostilePeerTest, ::testing::ValuesIn(KernelEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
