// Many bytes: both ways at once, through small buffers, over many streams, and through a pool that
// is too small (I5, I9).
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

class BulkTest : public Harness {
 protected:
  // Sends `total` bytes of a pattern both ways at once and checks every one.
  void BothWays(StreamPair pair, uint64_t total, size_t piece) {
    PatternWriter from_client(*pair.client, 1, total, piece);
    PatternWriter from_server(*pair.server, 2, total, piece);
    PatternReader at_server(std::move(pair.server), 1);
    PatternReader at_client(std::move(pair.client), 2);
    for (PatternReader* reader : {&at_server, &at_client}) reader->Start();
    for (PatternWriter* writer : {&from_client, &from_server}) writer->Start();
    ASSERT_TRUE(Drive([&] {
      return at_server.ended() && at_client.ended() && from_client.ended() && from_server.ended();
    })) << at_server.received()
        << " and " << at_client.received() << " received, " << from_client.queued() << " and "
        << from_server.queued() << " written, " << from_client.end() << ", " << from_server.end();
    for (PatternWriter* writer : {&from_client, &from_server}) {
      EXPECT_TRUE(writer->end().ok()) << writer->end();
    }
    for (PatternReader* reader : {&at_server, &at_client}) {
      EXPECT_EQ(reader->received(), total);
      EXPECT_TRUE(reader->intact());
      EXPECT_TRUE(IsEof(reader->end())) << reader->end();
    }
  }
};

TEST_P(BulkTest, SixtyFourMebibytesBothWaysThroughSmallSocketBuffers) {
  StreamOptions small;
  small.send_buffer = small.receive_buffer = 16 * 1024;
  BothWays(Pair(small, small), Scaled(64 << 20), 256 * 1024);
}

TEST_P(BulkTest, ThroughTheKernelsOwnBuffers) { BothWays(Pair(), Scaled(64 << 20), 64 * 1024); }

TEST_P(BulkTest, InPiecesOfOddSizes) { BothWays(Pair(), Scaled(4 << 20), 1013); }

TEST_P(BulkTest, OverManyStreamsAtOnce) {
  constexpr int kStreams = 50;
  const uint64_t total = Scaled(1 << 20);
  std::vector<std::unique_ptr<PatternReader>> readers;
  std::vector<std::unique_ptr<PatternWriter>> writers;
  std::vector<StreamPtr> clients;
  for (int i = 0; i < kStreams; ++i) {
    StreamPair pair = Pair();
    readers.push_back(std::make_unique<PatternReader>(std::move(pair.server), i));
    writers.push_back(std::make_unique<PatternWriter>(*pair.client, i, total));
    clients.push_back(std::move(pair.client));
  }
  for (auto& reader : readers) reader->Start();
  for (auto& writer : writers) writer->Start();
  ASSERT_TRUE(Drive(
      [&] { return std::ranges::all_of(readers, [](auto& reader) { return reader->ended(); }); }));
  for (auto& reader : readers) {
    EXPECT_EQ(reader->received(), total);
    EXPECT_TRUE(reader->intact());
    EXPECT_TRUE(IsEof(reader->end())) << reader->end();
  }
}

TEST_P(BulkTest, APoolThatIsTooSmallSlowsStreamsDownAndFailsNone) {
  constexpr int kStreams = 40;
  // Streams in the middle of a unit could otherwise wait for each other.
  const size_t bytes_max = (1 << 20) + 2 * kStreams * (environment().unit_max() - 1);
  LoopOptions options;
  options.pool_options.bytes_max = bytes_max;
  RemakeLoop(std::move(options));
  std::vector<StreamPair> pairs;
  for (int i = 0; i < kStreams; ++i) pairs.push_back(Pair());
  // Outside the pool, so that receiving alone competes for it.
  const std::string bytes = PatternBytes(3, 0, Scaled(1 << 20));
  std::vector<Fate> writes(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    pairs[i].client->Write(Buffer::FromExternal(bytes.data(), bytes.size(), [] {}),
                           writes[i].OnDone());
  }
  // Most readers hold on to what they get for a while, so that the pool runs dry.
  std::vector<uint64_t> received(kStreams);
  std::vector<Buffer> held;
  int ended = 0;
  std::function<void(int)> next = [&](int i) {
    pairs[i].server->ReadReady([&, i](absl::StatusOr<Buffer> data) {
      ASSERT_TRUE(data.ok()) << data.status();
      ASSERT_FALSE(FirstMismatch(data->view(), 3, received[i]).has_value());
      received[i] += data->size();
      held.push_back(*std::move(data));
      if (held.size() > 64) held.clear();
      if (received[i] < bytes.size()) {
        next(i);
      } else if (++ended == kStreams) {
        held.clear();
      }
    });
  };
  for (int i = 0; i < kStreams; ++i) next(i);
  // A dry pool waits for the holder: let go whenever nothing moves.
  while (ended < kStreams) {
    const uint64_t before = loop().Snapshot().bytes_in;
    Settle();
    held.clear();
    ASSERT_TRUE(Drive([&] { return ended == kStreams || loop().Snapshot().bytes_in > before; }));
  }
  ASSERT_TRUE(
      Drive([&] { return std::ranges::all_of(writes, [](Fate& w) { return w.ended(); }); }));
  for (Fate& write : writes) EXPECT_TRUE(write.status().ok()) << write.status();
  const PoolStats pool = loop().Snapshot().pool;
  EXPECT_LE(pool.high_water, bytes_max);
  EXPECT_EQ(loop().Snapshot().faults, 0u);
}

// The engine began to wait while it had no buffer at all, and had some when the bytes came.
TEST_P(BulkTest, BytesThatCameToADryPoolAreToldOfWhenThereIsRoom) {
  if (GetParam().name.ends_with("Tls")) GTEST_SKIP() << "a handshake needs room of its own";
  LoopOptions options;
  options.pool_options.bytes_max = 1 << 20;
  RemakeLoop(std::move(options));
  std::vector<Buffer> all;
  const auto drain = [&] {
    for (size_t size : {size_t{64} << 10, size_t{4} << 10, size_t{256}}) {
      while (Buffer block = loop().pool().TryAllocate(size)) all.push_back(std::move(block));
    }
  };
  drain();
  StreamPair pair = Pair();
  Fate read, write;
  pair.server->ReadReady(read.OnRead());
  Settle();
  all.clear();
  Settle();
  drain();
  const std::string bytes = "bytes that nobody will speak of twice";
  pair.client->Write(Buffer::FromExternal(bytes.data(), bytes.size(), [] {}), write.OnDone());
  Settle();
  all.clear();
  ASSERT_TRUE(Drive([&] { return read.ended() && write.ended(); }));
  EXPECT_TRUE(read.status().ok()) << read.status();
  EXPECT_TRUE(write.status().ok()) << write.status();
}

INSTANTIATE_TEST_SUITE_P(Environments, BulkTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Moving, BulkTest, ::testing::ValuesIn(MovingEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, BulkTest, ::testing::ValuesIn(SealedEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Rdma, BulkTest, ::testing::ValuesIn(RdmaStreamEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
