// Sealed streams that change threads: keys, counters, half-opened records and cipher contexts go
// from one loop's thread to the next while bytes flow. TSan judges the hand-over (I4), the tags of
// the records and the pattern the bytes (I5, I8).
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/seal.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/environment.h"
#include "testing/hop_kit.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

struct SealedHop {
  EngineKind engine;
  RecordMode mode;
};

class SealedThreadsTest : public ::testing::TestWithParam<SealedHop> {
 protected:
  void SetUp() override {
    if (const std::string why = MissingEngine(GetParam().engine); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_P(SealedThreadsTest, StreamsHopAndEveryRecordOpens) {
  constexpr size_t kStreams = 4;
  const RecordMode mode = GetParam().mode;
  std::atomic<uint64_t> hops{0};
  LoopThreads threads(3, GetParam().engine);
  std::vector<std::unique_ptr<Hopper>> hoppers;
  std::unique_ptr<Listener> listener;
  threads.On(0, [&] {
    const auto begin = [&](absl::StatusOr<StreamPtr> sealed) {
      ASSERT_TRUE(sealed.ok()) << sealed.status();
      hoppers.push_back(std::make_unique<Hopper>(threads, *std::move(sealed), hops));
      hoppers.back()->Next();
    };
    listener =
        Listener::Listen(threads.loop(0), *SocketAddress::Parse("127.0.0.1:0"), {},
                         [mode, begin](StreamPtr stream) {
                           Seal(std::move(stream),
                                InstantHandshaker({.mode = mode, .server = true}), {}, begin);
                         })
            .value();
  });
  std::vector<PingPong> clients(kStreams);
  for (size_t i = 0; i < kStreams; ++i) {
    PingPong& client = clients[i];
    client.seed = i;
    client.total = static_cast<uint64_t>(Scaled(1'500'000));
    const auto begin = [&client](absl::StatusOr<StreamPtr> sealed) {
      if (!sealed.ok()) return client.intact.set_value(false);
      client.stream = *std::move(sealed);
      client.Send();
      client.Next();
    };
    threads.On(i, [&, i] {
      Connect(threads.loop(i), listener->address(), {},
              [&client, mode, begin](absl::StatusOr<StreamPtr> stream) {
                if (!stream.ok()) return client.intact.set_value(false);
                Seal(*std::move(stream), InstantHandshaker({.mode = mode}), {}, begin);
              });
    });
  }
  for (PingPong& client : clients) EXPECT_TRUE(client.intact.get_future().get());
  uint64_t stranded = 0, moved = 0;
  for (size_t i = 0; i < threads.size(); ++i) {
    stranded += threads.loop(i).Snapshot().stranded;
    moved += threads.loop(i).Snapshot().moves_in;
  }
  EXPECT_EQ(stranded, 0u);
  EXPECT_GT(moved, 50u);
  threads.On(0, [&] { listener = nullptr; });
  threads.Stop();
  EXPECT_GT(hops.load(), 50u);
}

INSTANTIATE_TEST_SUITE_P(Modes, SealedThreadsTest,
                         ::testing::Values(SealedHop{EngineKind::kEpoll, RecordMode::kNative},
                                           SealedHop{EngineKind::kEpoll, RecordMode::kGrpc},
                                           SealedHop{EngineKind::kUring, RecordMode::kNative},
                                           SealedHop{EngineKind::kUring, RecordMode::kGrpc}),
                         [](const auto& info) {
                           const bool native = info.param.mode == RecordMode::kNative;
                           return std::string(EngineKindName(info.param.engine)) +
                                  (native ? "Native" : "Grpc");
                         });

}  // namespace
}  // namespace penstock::internal
