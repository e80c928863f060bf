// Streams that change threads: each loop runs on its own, and streams hop from one to the next
// while bytes flow and others post to them. TSan judges the hand-over (I4), the pattern the bytes
// (I5).
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/move.h>

#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/environment.h"
#include "testing/hop_kit.h"

namespace penstock::internal {
namespace {

class MigrateThreadsTest : public ::testing::TestWithParam<EngineKind> {
 protected:
  void SetUp() override {
    if (const std::string why = MissingEngine(GetParam()); !why.empty()) GTEST_SKIP() << why;
  }
};

TEST_P(MigrateThreadsTest, StreamsHopAndLoseNothing) {
  constexpr int kStreams = 6;
  const uint64_t total = Scaled(3'000'000);
  LoopThreads threads(3, GetParam());
  Hoppers hoppers(threads);
  std::vector<PingPong> clients(kStreams);
  for (size_t i = 0; i < clients.size(); ++i) {
    clients[i].seed = i;
    clients[i].total = total;
    clients[i].Start(threads, i, hoppers.address());
  }
  for (PingPong& client : clients) EXPECT_TRUE(client.intact.get_future().get());
  uint64_t stranded = 0, carried = 0;
  for (size_t i = 0; i < threads.size(); ++i) {
    stranded += threads.loop(i).Snapshot().stranded;
    carried += threads.loop(i).Snapshot().moves_in;
  }
  EXPECT_EQ(stranded, 0u);
  EXPECT_GT(carried, 100u);
  hoppers.StopListening();
  threads.Stop();
  EXPECT_GT(hoppers.hops(), 100u);
}

TEST_P(MigrateThreadsTest, WhatIsPostedToAStreamKeepsItsOrderAcrossMoves) {
  constexpr int kPosters = 4;
  const int tasks = Scaled(2000);
  LoopThreads threads(3, GetParam());
  StreamPtr stream;
  std::unique_ptr<StreamMailbox> mailbox;
  std::unique_ptr<Listener> listener;
  std::vector<StreamPtr> accepted;
  std::promise<void> connected;
  threads.On(0, [&] {
    listener = Listener::Listen(threads.loop(0), *SocketAddress::Parse("127.0.0.1:0"), {},
                                [&](StreamPtr peer) { accepted.push_back(std::move(peer)); })
                   .value();
    Connect(threads.loop(0), listener->address(), {}, [&](absl::StatusOr<StreamPtr> made) {
      stream = *std::move(made);
      mailbox = std::make_unique<StreamMailbox>(*stream);
      connected.set_value();
    });
  });
  connected.get_future().wait();
  const StreamHandle handle = mailbox->handle();

  // Of the thread that has the stream.
  std::vector<int> last(kPosters, -1);
  uint64_t ran = 0, wrong_thread = 0, out_of_order = 0, hops = 0;
  bool posting = true;
  std::promise<void> done, settled;
  std::function<void(absl::Status)> hop = [&](absl::Status status) {
    EXPECT_TRUE(status.ok()) << status;
    if (!posting) return settled.set_value();
    Migrate(*stream, threads.loop(++hops).handle(), hop);
  };
  handle.Post([&](Stream&) { hop(absl::OkStatus()); });
  std::vector<std::thread> posters;
  for (int poster = 0; poster < kPosters; ++poster) {
    posters.emplace_back([&, poster] {
      for (int i = 0; i < tasks; ++i) {
        EXPECT_TRUE(handle.Post([&, poster, i](Stream& at) {
          if (!at.loop().InLoopThread()) ++wrong_thread;
          if (last[static_cast<size_t>(poster)] != i - 1) ++out_of_order;
          last[static_cast<size_t>(poster)] = i;
          if (++ran < static_cast<uint64_t>(kPosters) * static_cast<uint64_t>(tasks)) return;
          posting = false;
          done.set_value();
        }));
      }
    });
  }
  for (std::thread& poster : posters) poster.join();
  done.get_future().wait();
  settled.get_future().wait();
  std::promise<void> closed;
  handle.Post([&](Stream&) {
    mailbox = nullptr;
    stream = nullptr;
    closed.set_value();
  });
  closed.get_future().wait();
  EXPECT_EQ(wrong_thread, 0u);
  EXPECT_EQ(out_of_order, 0u);
  EXPECT_GT(hops, 0u);
  EXPECT_FALSE(handle.Post([](Stream&) {})) << "the mailbox is gone";
  threads.On(0, [&] {
    listener = nullptr;
    accepted.clear();
  });
}

TEST_P(MigrateThreadsTest, LoopsThatStopInTheMiddleLeaveNothingBehind) {
  for (int round = 0; round < Scaled(20); ++round) {
    LoopThreads threads(2, GetParam());
    Hoppers hoppers(threads);
    PingPong client;
    client.total = UINT64_MAX;
    client.Start(threads, 1, hoppers.address());
    while (hoppers.hops() < 3) std::this_thread::yield();
    hoppers.StopListening();
    threads.Stop();
  }
}

// Drains that meet streams before, in and after their hops, and each other.
TEST_P(MigrateThreadsTest, LoopsThatDrainInTheMiddleEndEveryStreamOnce) {
  constexpr int kStreams = 4;
  for (int round = 0; round < Scaled(20); ++round) {
    LoopThreads threads(3, GetParam());
    Hoppers hoppers(threads, /*may_be_refused=*/true);
    std::vector<PingPong> clients(kStreams);
    for (size_t i = 0; i < clients.size(); ++i) {
      clients[i].total = UINT64_MAX;
      clients[i].Start(threads, i, hoppers.address());
    }
    while (hoppers.hops() < 20) std::this_thread::yield();
    hoppers.StopListening();
    threads.Drain(absl::Milliseconds(round % 3));
    for (size_t i = 0; i < threads.size(); ++i) {
      const LoopSnapshot now = threads.loop(i).Snapshot();
      EXPECT_EQ(now.open + now.connecting + now.closing, 0u);
      EXPECT_EQ(now.stranded, 0u);
    }
    for (const auto& hopper : hoppers.all()) EXPECT_LE(hopper->ends, 1);
    threads.Stop();
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, MigrateThreadsTest,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         [](const auto& info) { return std::string(EngineKindName(info.param)); });

}  // namespace
}  // namespace penstock::internal
