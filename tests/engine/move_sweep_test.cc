// SwitchAll on a loop that runs: the engine that waits changes as well, and nothing that can wake
// the loop is lost. What it does to streams is in tests/conformance/switch_test.cc.
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>

#include <array>
#include <cstdint>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "base/sys.h"
#include "engine/loop_core.h"
#include "testing/environment.h"
#include "testing/harness.h"

namespace penstock::internal {
namespace {

EngineKind OtherOf(EngineKind kind) {
  return kind == EngineKind::kEpoll ? EngineKind::kUring : EngineKind::kEpoll;
}

class MoveSweepTest : public ::testing::TestWithParam<EngineKind> {
 protected:
  void SetUp() override {
    if (const std::string why = MissingEngine(); !why.empty()) GTEST_SKIP() << why;
    LoopOptions options;
    options.engine = GetParam();
    loop_ = Loop::Create(std::move(options)).value();
    thread_ = std::thread([this] { loop_->Run(); });
  }
  void TearDown() override {
    if (loop_ == nullptr) return;
    On([this] { streams_.clear(); });
    loop_->Stop();
    thread_.join();
    EXPECT_EQ(loop_->Snapshot().faults, 0u);
  }

  void On(absl::AnyInvocable<void() &&> what) {
    std::promise<void> done;
    loop_->Post([&] {
      std::move(what)();
      done.set_value();
    });
    done.get_future().wait();
  }
  // The engine that the loop then has.
  EngineKind SwitchTo(EngineKind to) {
    std::promise<void> done;
    On([&] {
      const absl::Status begun = SwitchAll(*loop_, to, [&](MoveCount count) {
        EXPECT_EQ(count.failed, 0u);
        done.set_value();
      });
      EXPECT_TRUE(begun.ok()) << begun;
    });
    done.get_future().wait();
    EngineKind engine = EngineKind::kAuto;
    On([&] { engine = loop_->engine(); });
    return engine;
  }

  std::unique_ptr<Loop> loop_;
  std::thread thread_;
  std::vector<StreamPtr> streams_;
};

TEST_P(MoveSweepTest, TheOtherEngineWaitsAndIsWokenByPostsTimersAndStreams) {
  std::promise<void> connected;
  std::unique_ptr<Listener> listener;
  On([&] {
    ListenOptions options;
    listener = Listener::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), options,
                                [](StreamPtr stream) { EchoForever(std::move(stream)); })
                   .value();
    Connect(*loop_, listener->address(), {}, [&](absl::StatusOr<StreamPtr> stream) {
      streams_.push_back(std::move(stream).value());
      connected.set_value();
    });
  });
  connected.get_future().wait();
  EngineKind engine = GetParam();
  for (int i = 0; i < Scaled(50); ++i) {
    engine = OtherOf(engine);
    ASSERT_EQ(SwitchTo(engine), engine);
    std::promise<std::string> answer;
    On([&] {
      Stream& stream = *streams_.front();
      EXPECT_EQ(stream.stats().engine, engine);
      stream.Write(loop_->pool().Copy("ping").value());
      stream.ReadReady([&](absl::StatusOr<Buffer> data) {
        answer.set_value(data.ok() ? std::string(data->view()) : data.status().ToString());
      });
    });
    EXPECT_EQ(answer.get_future().get(), "ping");
    // Asleep in the new engine, the loop is woken by its timer.
    std::promise<void> fired;
    std::unique_ptr<Timer> timer;
    On([&] {
      timer = std::make_unique<Timer>(*loop_);
      timer->Arm(absl::Milliseconds(2), [&] { fired.set_value(); });
    });
    fired.get_future().wait();
    On([&] { timer = nullptr; });
  }
  On([&] { listener = nullptr; });
}

TEST_P(MoveSweepTest, AnEmptyLoopSwitchesAndStops) {
  EXPECT_EQ(SwitchTo(OtherOf(GetParam())), OtherOf(GetParam()));
}

TEST_P(MoveSweepTest, ToTheEngineItHasIsDoneAtOnce) { EXPECT_EQ(SwitchTo(GetParam()), GetParam()); }

TEST(MoveSweepHost, AHostThatWatchesTheLoopsDescriptorKeepsIt) {
  if (const std::string why = MissingEngine(); !why.empty()) GTEST_SKIP() << why;
  LoopOptions options;
  options.engine = EngineKind::kEpoll;
  std::unique_ptr<Loop> loop = Loop::Create(std::move(options)).value();
  const int fd = loop->fd();
  bool done = false;
  ASSERT_TRUE(SwitchAll(*loop, EngineKind::kUring, [&](MoveCount) { done = true; }).ok());
  Loop* const loops[] = {loop.get()};
  ASSERT_TRUE(DriveLoops(loops, [&] { return done; }));
  EXPECT_EQ(loop->core().primary().kind(), EngineKind::kEpoll);
  EXPECT_EQ(loop->fd(), fd);
  EXPECT_EQ(loop->engine(), EngineKind::kUring) << "who comes begins there all the same";
}

// Two loops on the test's thread, with streams on the first; its time stands still.
class MoveSweepToALoop : public ::testing::Test {
 protected:
  static constexpr size_t kStreams = 200;

  void SetUp() override {
    from_ = Make();
    to_ = Make();
    ListenOptions listening;
    ConnectOptions connecting;
    listening.stream.migratable = connecting.stream.migratable = true;
    const auto keep = [this](StreamPtr stream) { streams_.push_back(std::move(stream)); };
    const auto listener =
        Listener::Listen(*from_, *SocketAddress::Parse("127.0.0.1:0"), listening, keep).value();
    for (size_t i = 0; i < kStreams / 2; ++i) {
      Connect(*from_, listener->address(), connecting,
              [&](absl::StatusOr<StreamPtr> stream) { keep(std::move(stream).value()); });
    }
    ASSERT_TRUE(DriveLoops(from(), [this] { return streams_.size() == kStreams; }));
  }
  void TearDown() override { streams_.clear(); }

  std::span<Loop* const> from() {
    both_ = {from_.get(), to_.get()};
    return {both_.data(), 1};
  }
  std::span<Loop* const> both() {
    both_ = {from_.get(), to_.get()};
    return both_;
  }
  // The first loop sends what it may; how many those are.
  uint64_t Sends() {
    const uint64_t before = from_->Snapshot().moves_out;
    SettleLoops(from());  // nobody takes what is sent
    return from_->Snapshot().moves_out - before;
  }
  void TakeAll() {
    ASSERT_TRUE(DriveLoops({both().data() + 1, 1}, [this] {
      return to_->Snapshot().moves_in == from_->Snapshot().moves_out;
    }));
  }

  class StillSys : public Sys {
   public:
    int64_t Now() override { return now_ns; }
    int64_t now_ns = Sys::Now();
  };
  std::unique_ptr<Loop> Make() {
    LoopOptions options;
    options.pool = &pool_;
    return LoopCore::CreateLoop(std::move(options), {.sys = &sys_, .engines = {}}).value();
  }

  StillSys sys_;
  BufferPool pool_;
  std::unique_ptr<Loop> from_, to_;
  std::vector<StreamPtr> streams_;
  std::array<Loop*, 2> both_{};
};

// What is on its way waits for what went before it.
TEST_F(MoveSweepToALoop, HasFewStreamsOnTheirWayAtOnce) {
  uint64_t moved = 0;
  MigrateAll(*from_, to_->handle(), [&](MoveCount count) { moved = count.moved; });
  EXPECT_EQ(Sends(), 8u);
  EXPECT_EQ(from_->Snapshot().open, kStreams - 8);
  TakeAll();
  EXPECT_EQ(Sends(), 8u);
  ASSERT_TRUE(DriveLoops(both(), [&] { return moved != 0; }));
  EXPECT_EQ(moved, kStreams);
  EXPECT_EQ(to_->Snapshot().open, kStreams);
}

TEST_F(MoveSweepToALoop, HasMoreWhereTheOtherLoopIsSlow) {
  bool done = false;
  MigrateAll(*from_, to_->handle(), [&](MoveCount) { done = true; });
  EXPECT_EQ(Sends(), 8u);
  for (const uint64_t next : {16u, 32u, 32u}) {
    sys_.now_ns += 2'000'000;
    TakeAll();
    EXPECT_EQ(Sends(), next);
  }
  TakeAll();
  EXPECT_EQ(Sends(), 8u) << "it is slow no more";
  ASSERT_TRUE(DriveLoops(both(), [&] { return done; }));
  EXPECT_EQ(to_->Snapshot().open, kStreams);
}

INSTANTIATE_TEST_SUITE_P(Engines, MoveSweepTest,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         [](const auto& info) { return std::string(EngineKindName(info.param)); });

}  // namespace
}  // namespace penstock::internal
