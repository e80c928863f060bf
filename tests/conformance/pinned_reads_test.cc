// The off switch of ready reads: each layer holds a buffer from its birth on, for comparison; and
// without it none does.
#include <penstock/framed_reader.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

constexpr uint32_t kReceiveMax = 16 * 1024;
// What a sealed stream holds, which is a size class of the pool.
constexpr uint64_t kSealed = 33'280;

class PinnedReadsTest : public Harness {
 protected:
  void TearDown() override {
    ::unsetenv("PENSTOCK_PINNED_READS");
    Harness::TearDown();
  }

  static StreamOptions Options(bool pinned) {
    StreamOptions options;
    options.receive_max = kReceiveMax;
    options.pinned_reads = pinned;
    return options;
  }

  bool sealed() { return environment().unit_max() > 1; }

  // By as many streams, half as many readers, and the streams' seals where there are any.
  void ExpectPinned(uint64_t streams, uint64_t each) {
    const LoopSnapshot now = loop().Snapshot();
    const uint64_t by_seals = sealed() && each > 0 ? streams * kSealed : 0;
    EXPECT_EQ(now.pinned_bytes, streams * each);
    EXPECT_EQ(now.framed_pinned_bytes, streams / 2 * each);
    EXPECT_EQ(now.sealed_pinned_bytes, by_seals);
    EXPECT_EQ(now.pool.live, (streams + streams / 2) * each + by_seals);
    EXPECT_EQ(now.idle, now.open);
  }

  // A thousand idle pairs with framed readers above the servers, before and after traffic.
  void Run(bool pinned, StreamOptions options) {
    const int count = Scaled(sealed() ? 100 : 1000);
    const uint64_t each = pinned ? kReceiveMax : 0;
    ListenOptions listening;
    listening.stream = options;
    std::unique_ptr<Listener> listener = Listen(listening);
    std::vector<StreamPtr> clients;
    std::vector<FramedReader> readers;
    for (int i = 0; i < count; ++i) {
      absl::StatusOr<StreamPtr> client = ConnectTo(listener->address(), Connecting(options));
      ASSERT_TRUE(client.ok()) << client.status();
      clients.push_back(*std::move(client));
      ASSERT_TRUE(Drive([this] { return !accepted().empty(); }));
      readers.emplace_back(std::move(accepted().front()), FrameFormat::Grpc());
      accepted().pop_front();
      EXPECT_EQ(readers.back().pinned_bytes(), each);
      EXPECT_EQ(readers.back().stream().stats().pinned_bytes, each);
      EXPECT_EQ(readers.back().stream().stats().pinned_read_size, each);
      EXPECT_EQ(readers.back().stream().stats().sealed_pinned_bytes,
                sealed() && pinned ? kSealed : 0);
    }
    ExpectPinned(2 * count, each);
    // Bytes that stay within the held buffer, and bytes that take it along.
    for (const size_t size : {100u, 3000u}) {
      for (int i = 0; i < count; ++i) {
        std::string got;
        readers[i].ReadFrame([&](absl::StatusOr<Frame> frame) { got = frame->body.ToString(); });
        std::string wire(5, '\0');
        wire[3] = static_cast<char>(size >> 8);
        wire[4] = static_cast<char>(size);
        ASSERT_TRUE(Write(*clients[i], wire + PatternBytes(i, 0, size)).ok());
        ASSERT_TRUE(Drive([&] { return !got.empty(); }));
        ASSERT_EQ(got, PatternBytes(i, 0, size));
      }
      Settle();
      ExpectPinned(2 * count, each);
    }
    // The end of the stream, and the end of the connections.
    EXPECT_TRUE(Shutdown(*clients[0]).ok());
    absl::Status end;
    readers[0].ReadFrame([&](absl::StatusOr<Frame> frame) { end = frame.status(); });
    ASSERT_TRUE(Drive([&] { return !end.ok(); }));
    EXPECT_TRUE(IsEof(end)) << end;
    readers.clear();
    clients.clear();
    Settle();
    ExpectPinned(0, 0);
  }
};

TEST_P(PinnedReadsTest, OnAThousandIdleConnectionsPinABufferInEachLayer) {
  Run(true, Options(true));
}

TEST_P(PinnedReadsTest, TheEnvironmentTurnsItOn) {
  ::setenv("PENSTOCK_PINNED_READS", "1", 1);
  RemakeLoop({});
  Run(true, Options(false));
}

TEST_P(PinnedReadsTest, OffTheyPinNothing) {
  ::setenv("PENSTOCK_PINNED_READS", "0", 1);
  RemakeLoop({});
  Run(false, Options(false));
}

TEST_P(PinnedReadsTest, AnotherValueInTheEnvironmentIsRefused) {
  ::setenv("PENSTOCK_PINNED_READS", "yes", 1);
  const absl::Status refused = environment().NewLoop({}).status();
  EXPECT_EQ(refused.ToString(),
            "INVALID_ARGUMENT: environment PENSTOCK_PINNED_READS: 'yes' is neither 0 nor 1");
}

TEST_P(PinnedReadsTest, WithoutRoomForABufferTheStreamReadsWhenThereIsSome) {
  if (sealed()) GTEST_SKIP() << "a sealed stream needs room of its own";
  LoopOptions options;
  options.pool_options.bytes_max = 1 << 20;
  RemakeLoop(std::move(options));
  std::vector<Buffer> all;
  while (Buffer block = loop().pool().TryAllocate(4096)) all.push_back(std::move(block));
  StreamPair pair = Pair(Options(true), Options(true));
  EXPECT_EQ(pair.server->stats().pinned_bytes, 0u);
  // A write in memory of its own, so that it needs no room.
  const std::string text = PatternBytes(7, 0, 9000);
  Fate write, read;
  pair.client->Write(Buffer::FromExternal(text.data(), text.size(), [] {}), write.OnDone());
  pair.server->ReadReady(read.OnRead());
  Settle();
  EXPECT_FALSE(read.ended());
  all.clear();
  ASSERT_TRUE(Drive([&] { return read.ended() && write.ended(); }));
  EXPECT_EQ(read.data(), text.substr(0, read.data().size()));
  EXPECT_EQ(pair.server->stats().pinned_bytes, kReceiveMax);
}

INSTANTIATE_TEST_SUITE_P(Engines, PinnedReadsTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);

// The engines that serve both ends, in native mode, and one in the other mode.
std::vector<EnvironmentCase> OneSealedEach() {
  std::vector<EnvironmentCase> some;
  for (const EnvironmentCase& which : SealedEngines()) {
    if (which.name == "EpollNative" || which.name == "UringNative" || which.name == "EpollGrpc") {
      some.push_back(which);
    }
  }
  return some;
}
INSTANTIATE_TEST_SUITE_P(Sealed, PinnedReadsTest, ::testing::ValuesIn(OneSealedEach()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
