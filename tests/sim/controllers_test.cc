// Adapters and balancers at work on simulated loops: the clock, both engines and what a read costs
// the processor are made up, so what they decide and do is the same in every run. Their rules alone
// are in tests/engine.
#include <gtest/gtest.h>
#include <penstock/adaptive.h>
#include <penstock/balance.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <penstock/stream.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "engine/loop_core.h"
#include "testing/sanitized.h"
#include "testing/sim_world.h"

namespace penstock::testing {
namespace {

// Streams of one loop whose peers, on a loop of their own, send them a little every 10 ms.
class Controlled : public ::testing::Test {
 protected:
  Controlled() {
    pool_ = world_.NewPool({});
    peers_ = NewLoop({});
  }
  ~Controlled() override {
    beats_ = false;
    streams_.clear();
    peers_streams_.clear();
  }

  std::unique_ptr<Loop> NewLoop(LoopOptions options) {
    options.pool = pool_.get();
    options.engine = EngineKind::kEpoll;
    return *world_.NewLoop(std::move(options));
  }

  // `count` more streams of `loop`, of which the peers of busy ones send.
  void Open(Loop& loop, int count, bool busy, StreamOptions options = {}) {
    const size_t before = streams_.size();
    ListenOptions listening;
    listening.stream = options;
    const auto listener = *Listener::Listen(loop, *SocketAddress::Parse("10.0.0.1:0"), listening,
                                            [this](StreamPtr stream) {
                                              streams_.push_back(std::move(stream));
                                              Read(streams_.back().get());
                                            });
    for (int i = 0; i < count; ++i) {
      Connect(*peers_, listener->address(), {}, [this, busy](absl::StatusOr<StreamPtr> stream) {
        peers_streams_.push_back({*std::move(stream), busy});
      });
    }
    world_.Touch(*peers_);
    const auto open = [&] { return streams_.size() == before + static_cast<size_t>(count); };
    ASSERT_TRUE(world_.Run(open, absl::Seconds(60)));
    if (!std::exchange(beats_, true)) Beat();
  }

  void RunFor(absl::Duration time) {
    world_.Run([] { return false; }, time);
    EXPECT_TRUE(world_.errors().empty()) << world_.errors().front();
  }
  template <typename Condition>
  bool RunUntil(Condition condition, absl::Duration limit = absl::Minutes(2)) {
    const bool held = world_.Run(condition, limit);
    EXPECT_TRUE(world_.errors().empty()) << world_.errors().front();
    return held;
  }

  // What one read costs on either engine; on every loop. 4,500 of them a second are half a
  // processor's work.
  absl::Duration cost_epoll_ = absl::Microseconds(100);
  absl::Duration cost_uring_ = absl::Microseconds(100);
  uint64_t reads_ = 0;

  SimWorld world_{1};
  std::unique_ptr<BufferPool> pool_;
  std::unique_ptr<Loop> peers_;
  std::vector<StreamPtr> streams_;

 private:
  struct Peer {
    StreamPtr stream;
    bool busy;
  };

  void Read(Stream* stream) {
    stream->ReadReady([this, stream](absl::StatusOr<Buffer> data) {
      if (!data.ok()) return;
      ++reads_;
      world_.Spend(stream->stats().engine == EngineKind::kUring ? cost_uring_ : cost_epoll_);
      Read(stream);
    });
  }
  void Beat() {
    if (!beats_) return;
    for (const Peer& peer : peers_streams_) {
      if (peer.busy) peer.stream->Write(*pool_->Copy("a little"));
    }
    world_.Touch(*peers_);
    world_.After(absl::Milliseconds(10), [this] { Beat(); });
  }

  std::vector<Peer> peers_streams_;
  bool beats_ = false;
};

bool Traced(const std::vector<std::string>& trace, const std::string& words) {
  return std::any_of(trace.begin(), trace.end(), [&](const std::string& line) {
    return line.find(words) != std::string::npos;
  });
}

std::string Joined(const std::vector<std::string>& trace) {
  std::string all;
  for (const std::string& line : trace) all += line + "\n";
  return all;
}

// --- Engines ---

class SimAdapter : public Controlled {
 protected:
  static constexpr int kBusy = 40;
  static constexpr int kPinned = 5;
  static constexpr int kIdle = 300;

  void SetUp() override { loop_ = NewLoop({}); }
  void TearDown() override { adapter_ = nullptr; }

  void Adapt() {
    absl::StatusOr<std::unique_ptr<EngineAdapter>> made = EngineAdapter::Create(*loop_, options_);
    ASSERT_TRUE(made.ok()) << made.status();
    adapter_ = *std::move(made);
    StreamOptions pinned;
    pinned.pinned_engine = true;
    Open(*loop_, kPinned, true, pinned);
    Open(*loop_, kIdle, false);
    Open(*loop_, kBusy, true);
  }
  uint64_t OnUring() const { return loop_->Snapshot().open_uring; }
  // From the loop, to a peer that says nothing.
  void StartConnect(StreamPtr& stream) {
    if (listener_ == nullptr) {
      listener_ = *Listener::Listen(*peers_, *SocketAddress::Parse("10.0.0.2:0"), {},
                                    [this](StreamPtr s) { streams_.push_back(std::move(s)); });
    }
    Connect(*loop_, listener_->address(), {},
            [&stream](absl::StatusOr<StreamPtr> made) { stream = *std::move(made); });
    world_.Touch(*loop_);
  }
  // One that connects from now on, and is open only when the trace has `words`, is then on
  // `engine`.
  void ExpectLateFollows(const std::string& words, EngineKind engine) {
    StreamPtr late;
    world_.faults().wire_delay_max = 25'000'000'000;
    StartConnect(late);
    world_.faults().wire_delay_max = 0;
    ASSERT_TRUE(RunUntil([&] { return Says(words); })) << Trace();
    ASSERT_EQ(late, nullptr) << "it was to take longer";
    ASSERT_TRUE(RunUntil([&] { return late != nullptr; }));
    RunFor(absl::Seconds(1));
    EXPECT_EQ(late->stats().engine, engine) << Trace();
  }
  bool Says(const std::string& words) const { return Traced(adapter_->trace(), words); }
  std::string Trace() const { return Joined(adapter_->trace()); }

  AdaptiveOptions options_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<EngineAdapter> adapter_;
  std::unique_ptr<Listener> listener_;
};

TEST_F(SimAdapter, TriesOnFewThenOnAllAndKeepsWhatSaves) {
  cost_uring_ = absl::Microseconds(70);
  Adapt();
  ASSERT_TRUE(RunUntil([&] { return Says("serves some well"); })) << Trace();
  EXPECT_TRUE(Says("17 streams are now on uring, 0 were refused, 0 ended meanwhile")) << Trace();
  EXPECT_TRUE(Says("17 of 345 streams go first")) << "5 %: " << Trace();
  ASSERT_TRUE(RunUntil([&] { return Says("uring serves from now on"); })) << Trace();
  EXPECT_TRUE(Says("it takes 26.7 % less CPU for the same bytes (+-0.0 %, 8 pairs")) << Trace();
  EXPECT_EQ(OnUring(), uint64_t{kBusy + kIdle}) << "all but those that are pinned";
  for (int i = 0; i < kPinned; ++i) {
    EXPECT_EQ(streams_[static_cast<size_t>(i)]->stats().engine, EngineKind::kEpoll);
  }
  EXPECT_EQ(loop_->engine(), EngineKind::kUring) << "it waits now as well";
  EXPECT_EQ(adapter_->switches(), 1u);
  const uint64_t reads = reads_;
  RunFor(absl::Seconds(1));
  EXPECT_GE(reads_ - reads, 100u * (kBusy + kPinned)) << "what every peer has sent";
}

TEST_F(SimAdapter, SomeThatAreBusyGoFirstWhoeverCameLast) {
  absl::StatusOr<std::unique_ptr<EngineAdapter>> made = EngineAdapter::Create(*loop_, options_);
  ASSERT_TRUE(made.ok()) << made.status();
  adapter_ = *std::move(made);
  Open(*loop_, kBusy, true);
  Open(*loop_, kIdle, false);
  ASSERT_TRUE(RunUntil([&] { return Says("17 streams are now on uring"); })) << Trace();
  EXPECT_EQ(OnUring(), 17u) << "5 % of 340";
  const auto busy_there = std::count_if(
      streams_.begin(), streams_.begin() + kBusy,
      [](const StreamPtr& stream) { return stream->stats().engine == EngineKind::kUring; });
  EXPECT_EQ(busy_there, 2) << "as many of all as go";
}

TEST_F(SimAdapter, IdleStreamsMoveInSlices) {
  cost_uring_ = absl::Microseconds(70);
  Adapt();
  LoopSnapshot last = loop_->Snapshot();
  uint64_t most = 0, slices = 0;
  ASSERT_TRUE(RunUntil([&] {
    const LoopSnapshot now = loop_->Snapshot();
    const uint64_t moved = now.switches_to_uring - last.switches_to_uring;
    const uint64_t turns = std::max<uint64_t>(now.turns - last.turns, 1);
    most = std::max(most, (moved + turns - 1) / turns);
    slices += moved > 0 ? 1 : 0;
    last = now;
    return Says("uring serves from now on");
  }));
  EXPECT_LE(most, 64u) << "in one turn";
  EXPECT_GE(slices, 5u);
}

TEST_F(SimAdapter, AStreamThatWasConnectingFollows) {
  cost_uring_ = absl::Microseconds(70);
  Adapt();
  ASSERT_TRUE(RunUntil([&] { return Says("go first"); })) << Trace();
  ExpectLateFollows("uring serves from now on", EngineKind::kUring);
  EXPECT_EQ(adapter_->switches(), 1u);
}

TEST_F(SimAdapter, AStreamThatWasConnectingFollowsBack) {
  Adapt();
  ASSERT_TRUE(RunUntil([&] { return Says("by turns"); })) << Trace();
  RunFor(absl::Milliseconds(10));
  ExpectLateFollows("epoll stays", EngineKind::kEpoll);
  EXPECT_EQ(loop_->Snapshot().open_uring, 0u);
}

// Its host watches the descriptor of the engine that waits, which therefore stays; all else is as
// on any other loop.
TEST_F(SimAdapter, ServesALoopThatAHostWatchesAsWell) {
  const int watched = loop_->fd();
  cost_uring_ = absl::Microseconds(70);
  Adapt();
  ASSERT_TRUE(RunUntil([&] { return Says("uring serves from now on"); })) << Trace();
  EXPECT_EQ(OnUring(), uint64_t{kBusy + kIdle});
  EXPECT_EQ(loop_->fd(), watched);
  EXPECT_EQ(loop_->core().primary().kind(), EngineKind::kEpoll);
  EXPECT_EQ(loop_->engine(), EngineKind::kUring);
  StreamPtr late;
  StartConnect(late);
  ASSERT_TRUE(RunUntil([&] { return late != nullptr; }));
  EXPECT_EQ(late->stats().engine, EngineKind::kUring) << "new streams begin on the new one";
  const uint64_t reads = reads_;
  RunFor(absl::Seconds(1));
  EXPECT_GE(reads_ - reads, 100u * (kBusy + kPinned)) << "what every peer has sent";
  // And when the load no longer speaks for it.
  loop_->core().EngineFault(EngineKind::kUring, "made up");
  RunFor(absl::Seconds(3));
  EXPECT_EQ(OnUring(), 0u) << Trace();
  EXPECT_EQ(late->stats().engine, EngineKind::kEpoll);
  EXPECT_EQ(loop_->engine(), EngineKind::kEpoll);
}

TEST_F(SimAdapter, StaysWithoutAGainAndBelievesThat) {
  if (kThreadSanitized) GTEST_SKIP() << kNoThreads;
  Adapt();
  ASSERT_TRUE(RunUntil([&] { return Says("epoll stays"); })) << Trace();
  EXPECT_TRUE(Says("uring takes 0.0 % less CPU for the same bytes")) << Trace();
  RunFor(absl::Seconds(2));
  EXPECT_EQ(OnUring(), 0u);
  EXPECT_EQ(loop_->engine(), EngineKind::kEpoll);
  const uint64_t sweeps = adapter_->counts().sweeps;
  RunFor(absl::Minutes(4));
  EXPECT_EQ(adapter_->counts().sweeps, sweeps) << Trace();
  EXPECT_EQ(adapter_->switches(), 0u);
  RunFor(absl::Minutes(2));
  EXPECT_EQ(adapter_->counts().trials, 2u) << "after five minutes it looks again";
}

TEST_F(SimAdapter, AFaultOfTheEngineThatIsTriedEndsTheTrial) {
  cost_uring_ = absl::Microseconds(50);
  Adapt();
  ASSERT_TRUE(RunUntil([&] { return Says("go first"); }));
  RunFor(absl::Milliseconds(100));
  loop_->core().EngineFault(EngineKind::kUring, "made up");
  RunFor(absl::Seconds(3));
  EXPECT_TRUE(Says("back to epoll: 1 engine faults")) << Trace();
  EXPECT_EQ(OnUring(), 0u);
}

TEST_F(SimAdapter, AFaultAfterATrialWasWonBlowsTheFuse) {
  cost_uring_ = absl::Microseconds(70);
  Adapt();
  ASSERT_TRUE(RunUntil([&] { return Says("uring serves from now on"); })) << Trace();
  loop_->core().EngineFault(EngineKind::kUring, "made up");
  RunFor(absl::Seconds(3));
  EXPECT_TRUE(Says("back to epoll: 1 engine faults of uring, which was found better")) << Trace();
  EXPECT_EQ(OnUring(), 0u);
  EXPECT_EQ(adapter_->switches(), 2u);
}

TEST_F(SimAdapter, WhatIsNoEnginesFaultBlowsNoFuse) {
  cost_uring_ = absl::Microseconds(70);
  Adapt();
  // Sends that the network refuses count as faults of the loop.
  const auto fault = [&] { loop_->core().Fault("made up"); };
  ASSERT_TRUE(RunUntil([&] { return Says("go first"); }));
  fault();
  ASSERT_TRUE(RunUntil([&] { return Says("all 345 streams change engine by turns"); })) << Trace();
  fault();
  ASSERT_TRUE(RunUntil([&] { return Says("uring serves from now on"); })) << Trace();
  fault();
  RunFor(absl::Seconds(10));
  EXPECT_EQ(OnUring(), uint64_t{kBusy + kIdle}) << Trace();
}

TEST_F(SimAdapter, StreamsThatAreRefusedEndTheTrial) {
  cost_uring_ = absl::Microseconds(70);
  Adapt();
  ASSERT_TRUE(RunUntil([&] { return Says("go first"); }));
  // Every other one by chance; some the old engine does not take again, either.
  world_.faults().attach_failure = 500;
  ASSERT_TRUE(RunUntil([&] { return Says("streams are now on uring"); })) << Trace();
  world_.faults().attach_failure = 0;
  EXPECT_FALSE(Says(" 0 were refused")) << Trace();
  ASSERT_TRUE(RunUntil([&] { return Says("back to epoll"); }, absl::Seconds(3))) << Trace();
  EXPECT_FALSE(Says("by turns")) << "those that were tried first are all that were";
  RunFor(absl::Seconds(3));
  EXPECT_EQ(OnUring(), 0u);
}

TEST_F(SimAdapter, TriesNothingWhenNoStreamMayGo) {
  cost_uring_ = absl::Microseconds(70);
  absl::StatusOr<std::unique_ptr<EngineAdapter>> made = EngineAdapter::Create(*loop_, options_);
  ASSERT_TRUE(made.ok()) << made.status();
  adapter_ = *std::move(made);
  StreamOptions pinned;
  pinned.pinned_engine = true;
  Open(*loop_, kBusy, true, pinned);
  ASSERT_TRUE(RunUntil([&] { return Says("epoll stays: no stream may go"); })) << Trace();
  RunFor(absl::Seconds(10));
  EXPECT_EQ(adapter_->switches(), 0u) << Trace();
  EXPECT_EQ(loop_->engine(), EngineKind::kEpoll);
}

TEST_F(SimAdapter, LeavesWhatTheProgramHasSwitchedItself) {
  Adapt();
  ASSERT_TRUE(SwitchAll(*loop_, EngineKind::kUring, [](MoveCount) {}).ok());
  EXPECT_TRUE(Says("uring serves: others had every stream switched to it")) << Trace();
  RunFor(absl::Minutes(2));
  EXPECT_EQ(OnUring(), uint64_t{kBusy + kIdle}) << Trace();
  EXPECT_EQ(loop_->engine(), EngineKind::kUring);
  EXPECT_EQ(adapter_->counts().trials, 1u) << "once it has rested";
  EXPECT_EQ(adapter_->switches(), 0u) << "and epoll saves nothing";
}

TEST_F(SimAdapter, ASwitchOfTheProgramEndsATrial) {
  cost_uring_ = absl::Microseconds(70);
  Adapt();
  ASSERT_TRUE(RunUntil([&] { return Says("by turns"); })) << Trace();
  ASSERT_TRUE(SwitchAll(*loop_, EngineKind::kEpoll, [](MoveCount) {}).ok());
  EXPECT_TRUE(Says("epoll serves: others had every stream switched to it")) << Trace();
  RunFor(absl::Seconds(20));
  EXPECT_EQ(OnUring(), 0u) << Trace();
  EXPECT_FALSE(Says("uring serves from now on")) << Trace();
}

TEST_F(SimAdapter, MayGoWhileItsSweepIsUnderWay) {
  cost_uring_ = absl::Microseconds(70);
  Adapt();
  ASSERT_TRUE(RunUntil([&] { return Says("by turns"); }));
  adapter_ = nullptr;
  RunFor(absl::Seconds(5));
  EXPECT_EQ(OnUring(), uint64_t{kBusy + kIdle}) << "what has begun goes on";
}

// --- Loops ---

class SimBalancer : public Controlled {
 protected:
  void SetUp() override {
    cost_epoll_ = absl::Milliseconds(1);
    busy_ = NewLoop({});
  }
  void TearDown() override { balancer_ = nullptr; }

  void Balance(LoopOptions other = {}) {
    other_ = NewLoop(std::move(other));
    absl::StatusOr<std::unique_ptr<LoopBalancer>> made =
        LoopBalancer::Create(*peers_, {busy_->handle(), other_->handle()}, options_);
    ASSERT_TRUE(made.ok()) << made.status();
    balancer_ = *std::move(made);
  }
  void OpenBusy(bool migratable) {
    StreamOptions options;
    options.migratable = migratable;
    Open(*busy_, 8, true, options);
  }
  uint64_t There() const { return other_->Snapshot().open; }
  bool Says(const std::string& words) const { return Traced(balancer_->trace(), words); }
  std::string Trace() const { return Joined(balancer_->trace()); }

  BalanceOptions options_;
  std::unique_ptr<Loop> busy_;
  std::unique_ptr<Loop> other_;
  std::unique_ptr<LoopBalancer> balancer_;
};

TEST_F(SimBalancer, EvensTwoLoopsOutOnceAndLeavesThemInPeace) {
  if (kThreadSanitized) GTEST_SKIP() << kNoThreads;
  Balance();
  OpenBusy(true);
  ASSERT_TRUE(RunUntil([&] { return balancer_->moves() > 0; })) << Trace();
  EXPECT_TRUE(Says("loop 0 is busy for 80 % of the time and loop 1 for 0 %")) << Trace();
  EXPECT_TRUE(Says("4 streams with 50 % of its traffic go")) << Trace();
  EXPECT_EQ(There(), 4u);
  RunFor(absl::Minutes(5));
  EXPECT_EQ(balancer_->moves(), 4u) << "nothing goes back and forth";
  const uint64_t reads = reads_;
  RunFor(absl::Seconds(1));
  EXPECT_GE(reads_ - reads, 800u) << "what every peer has sent";
}

TEST_F(SimBalancer, StreamsThatMayNotGoStayAndItRestsLongerEachTime) {
  Balance();
  OpenBusy(false);
  ASSERT_TRUE(RunUntil([&] { return Says("none is asked for 10 ticks"); })) << Trace();
  ASSERT_TRUE(RunUntil([&] { return Says("none is asked for 20 ticks"); })) << Trace();
  ASSERT_TRUE(RunUntil([&] { return Says("none is asked for 40 ticks"); })) << Trace();
  EXPECT_EQ(There(), 0u);
}

TEST_F(SimBalancer, AtMostSoManyGoAtOnce) {
  options_.streams_max = 2;
  Balance();
  OpenBusy(true);
  ASSERT_TRUE(RunUntil([&] { return balancer_->moves() > 0; })) << Trace();
  EXPECT_TRUE(Says("2 streams with 25 % of its traffic go")) << Trace();
  EXPECT_EQ(There(), 2u);
}

TEST_F(SimBalancer, AtMostSoManyAreLookedAt) {
  options_.observed_max = 3;
  Balance();
  OpenBusy(true);
  ASSERT_TRUE(RunUntil([&] { return balancer_->moves() > 0; })) << Trace();
  EXPECT_TRUE(Says("3 streams with 38 % of its traffic go")) << Trace();
  EXPECT_EQ(There(), 3u);
}

TEST_F(SimBalancer, TellsOfStreamsThatAreRefused) {
  LoopOptions full;
  full.connections_max = 3;
  Balance(std::move(full));
  OpenBusy(true);
  ASSERT_TRUE(RunUntil([&] { return balancer_->moves() > 0; })) << Trace();
  EXPECT_TRUE(Says("3 streams with 38 % of its traffic go (1 were refused, 0 ended)")) << Trace();
  EXPECT_EQ(There(), 3u);
  constexpr auto kIn = static_cast<size_t>(MoveDirection::kIn);
  constexpr auto kNoRoom = static_cast<size_t>(MoveRefusal::kNoRoom);
  EXPECT_EQ(other_->Snapshot().moves_refused_by[kIn][kNoRoom], 1u);
}

TEST_F(SimBalancer, TakesUpWhatAChangedLoadAsks) {
  Balance();
  OpenBusy(true);
  ASSERT_TRUE(RunUntil([&] { return There() == 4; }));
  StreamOptions options;
  options.migratable = true;
  Open(*other_, 8, true, options);
  ASSERT_TRUE(RunUntil([&] { return Says("loop 1 is busy"); }, absl::Minutes(5))) << Trace();
  EXPECT_GT(busy_->Snapshot().moves_in, 0u);
}

}  // namespace
}  // namespace penstock::testing
