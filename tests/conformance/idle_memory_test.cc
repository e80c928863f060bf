// I1: an idle stream holds no buffer, from its first moment; and what the snapshot says about it.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

class IdleMemoryTest : public Harness {
 protected:
  // `count` pairs; the servers echo.
  std::vector<StreamPtr> Clients(int count) {
    std::unique_ptr<Listener> listener = Listen();
    std::vector<StreamPtr> clients;
    for (int i = 0; i < count; ++i) {
      absl::StatusOr<StreamPtr> client = ConnectTo(listener->address(), Connecting());
      EXPECT_TRUE(client.ok()) << client.status();
      if (!client.ok()) break;
      clients.push_back(*std::move(client));
      ExpectEmpty();
      EXPECT_TRUE(Drive([this] { return !accepted().empty(); }));
      ExpectEmpty();
      EchoForever(std::move(accepted().front()));
      accepted().pop_front();
    }
    return clients;
  }

  void ExpectEmpty() {
    const LoopSnapshot now = loop().Snapshot();
    EXPECT_EQ(now.pool.live, 0u);
    EXPECT_EQ(now.pinned_bytes, 0u);
    EXPECT_EQ(now.sealed_pinned_bytes, 0u);
    EXPECT_EQ(now.idle, now.open);
  }
};

TEST_P(IdleMemoryTest, AThousandIdleStreamsHoldNothingFromAcceptOnAndAfterTraffic) {
  const int count = Scaled(1000);
  std::vector<StreamPtr> clients = Clients(count);
  ASSERT_EQ(clients.size(), static_cast<size_t>(count));
  EXPECT_EQ(loop().Snapshot().open, 2u * count);
  // Every server waits for bytes.
  Settle();
  ExpectEmpty();
  for (int round = 0; round < 2; ++round) {
    for (StreamPtr& client : clients) {
      Exchange(*client, *client, PatternBytes(1, 0, round == 0 ? 100 : 16 * 1024));
    }
    Settle();
    ExpectEmpty();
  }
  // All at once, so that every one of them has bytes waiting at some moment.
  std::vector<Fate> writes(clients.size());
  for (size_t i = 0; i < clients.size(); ++i) {
    clients[i]->Write(Chain("all together"), writes[i].OnDone());
  }
  for (StreamPtr& client : clients) {
    EXPECT_EQ(ReadUpTo(*client, 12).data, "all together");
  }
  Settle();
  ExpectEmpty();
}

TEST_P(IdleMemoryTest, PinnedBytesShowWhatAStreamHolds) {
  StreamOptions small;
  small.send_buffer = small.receive_buffer = 16 * 1024;
  StreamPair pair = Pair(small, small);
  EXPECT_EQ(loop().Snapshot().idle, 2u);
  pair.client->Write(Chain(PatternBytes(2, 0, 1 << 20)));
  Settle();
  const LoopSnapshot busy = loop().Snapshot();
  EXPECT_GT(busy.pinned_bytes, 0u);
  EXPECT_LT(busy.idle, busy.open);
  const StreamStats client = pair.client->stats();
  EXPECT_GE(client.pinned_bytes + client.sealed_pinned_bytes, client.queued_bytes);
  EXPECT_EQ(busy.sealed_pinned_bytes,
            client.sealed_pinned_bytes + pair.server->stats().sealed_pinned_bytes);
  EXPECT_EQ(ReadUpTo(*pair.server, 1 << 20).data.size(), 1u << 20);
  Settle();
  EXPECT_EQ(pair.client->stats().pinned_bytes, 0u);
  EXPECT_EQ(pair.server->stats().pinned_bytes, 0u);
  EXPECT_EQ(pair.client->stats().sealed_pinned_bytes, 0u);
  EXPECT_EQ(pair.server->stats().sealed_pinned_bytes, 0u);
  ExpectEmpty();
}

TEST_P(IdleMemoryTest, BytesNobodyReadsStayInTheKernel) {
  if (GetParam().name == "UringTls") GTEST_SKIP() << "io_uring goes on after what a handshake read";
  StreamPair pair = Pair();
  Fate write;
  pair.client->Write(Chain(PatternBytes(3, 0, 16 << 20)), write.OnDone());
  Settle();
  EXPECT_FALSE(write.ended());
  // A stream that is not read takes at most one receive ahead of its reader.
  EXPECT_LE(pair.server->stats().pinned_bytes, 256u * 1024);
  EXPECT_EQ(pair.server->stats().sealed_pinned_bytes, 0u);
  EXPECT_EQ(ReadUpTo(*pair.server, 16 << 20).data.size(), size_t{16} << 20);
  ASSERT_TRUE(Drive([&] { return write.ended(); }));
}

TEST_P(IdleMemoryTest, ASlowReaderBoundsWhatIsHeldForIt) {
  StreamPair pair = Pair();
  // The writer keeps one piece of 64 KiB in flight, the reader takes one buffer at a time.
  const uint64_t total = IsSlow() ? 4 << 20 : 32 << 20;
  PatternWriter writer(*pair.client, 4, total);
  writer.Start();
  uint64_t received = 0, most = 0;
  while (received < total) {
    absl::StatusOr<std::string> data = Read(*pair.server);
    ASSERT_TRUE(data.ok()) << data.status();
    ASSERT_FALSE(FirstMismatch(*data, 4, received).has_value());
    received += data->size();
    most = std::max(most, loop().Snapshot().pool.live);
  }
  EXPECT_LE(most, 1u << 20);
  ASSERT_TRUE(Drive([&] { return writer.ended(); }));
  EXPECT_TRUE(writer.end().ok()) << writer.end();
}

TEST_P(IdleMemoryTest, UnusedPoolMemoryGoesBackAfterIdleTrim) {
  LoopOptions options;
  options.idle_trim = absl::Milliseconds(20);
  RemakeLoop(std::move(options));
  StreamPair pair = Pair();
  Exchange(*pair.client, *pair.server, PatternBytes(5, 0, 8 << 20));
  ASSERT_TRUE(Drive([this] { return loop().Snapshot().pool.cached == 0; }))
      << loop().Snapshot().pool.cached << " bytes stay cached";
  const PoolStats& pool = loop().Snapshot().pool;
  EXPECT_EQ(pool.live, 0u);
  // What is left serves the ring of an io_uring engine.
  EXPECT_LE(pool.mapped, size_t{8} << 20);
  Exchange(*pair.client, *pair.server, "and it still works");
}

INSTANTIATE_TEST_SUITE_P(Environments, IdleMemoryTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, IdleMemoryTest, ::testing::ValuesIn(SealedEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
