// The controller by a clock and loads made up here: bands, sustaining, trials, going back,
// dwelling, the bound on switches, the fuse.
#include "engine/engine_controller.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace penstock::internal {
namespace {

constexpr uint64_t kReads = 10'000;

// A second with `batch` reads a turn of `ns` CPU each.
LoadSample Load(double batch, double ns, uint64_t size = 100) {
  LoadSample sample;
  sample.span = absl::Seconds(1);
  sample.reads = kReads;
  sample.turns = static_cast<uint64_t>(static_cast<double>(kReads) / batch);
  sample.bytes = kReads * size;
  sample.cpu = absl::Nanoseconds(ns * static_cast<double>(kReads));
  sample.open = 1000;
  return sample;
}
LoadSample Idle() {
  LoadSample sample;
  sample.span = absl::Seconds(1);
  sample.open = 1000;
  return sample;
}

// One whose streams have all moved before the next tick.
class PromptController : public EngineController {
 public:
  using EngineController::EngineController;
  Action Tick(const LoadSample& sample) {
    const Action action = EngineController::Tick(sample);
    if (action.to != EngineKind::kAuto) {
      Ended({.moved = action.streams == 0 ? sample.open : action.streams});
    }
    return action;
  }
};

class EngineControllerTest : public ::testing::Test {
 protected:
  PromptController Make(EngineKind engine) { return PromptController(options_, engine); }
  static bool None(const EngineController::Action& action) {
    return action.to == EngineKind::kAuto;
  }
  // Ticks with that load until a trial has ended, at most `ticks`.
  static void RunTrial(PromptController& c, double batch, double before, double after) {
    ASSERT_FALSE(None(c.Tick(Load(batch, before)))) << "no canary";
    ASSERT_EQ(c.state(), AdaptState::kCanary);
    ASSERT_FALSE(None(c.Tick(Load(batch, before)))) << "no sweep";
    ASSERT_EQ(c.state(), AdaptState::kTrial);
    for (int i = 0; i < 5 && c.state() == AdaptState::kTrial; ++i) c.Tick(Load(batch, after));
    ASSERT_EQ(c.state(), AdaptState::kWatching);
  }
  static bool Traced(const EngineController& c, const std::string& words) {
    for (const std::string& line : c.trace()) {
      if (line.find(words) != std::string::npos) return true;
    }
    return false;
  }

  AdaptiveOptions options_;
};

TEST_F(EngineControllerTest, TheTable) {
  using S = AdaptState;
  const S rows[kAdaptStates][kAdaptEvents] = {
      // want, well, ill
      {S::kCanary, S::kWatching, S::kWatching},
      {S::kCanary, S::kTrial, S::kWatching},
      {S::kTrial, S::kWatching, S::kWatching},
  };
  for (size_t state = 0; state < kAdaptStates; ++state) {
    for (size_t event = 0; event < kAdaptEvents; ++event) {
      EXPECT_EQ(kAdaptTransitions[state][event], rows[state][event]);
    }
  }
}

TEST_F(EngineControllerTest, StaysWhileNothingSpeaksForTheOther) {
  for (EngineKind kind : {EngineKind::kEpoll, EngineKind::kUring}) {
    PromptController c = Make(kind);
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE(None(c.Tick(Load(5, 1000))));
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE(None(c.Tick(Idle())));
    EXPECT_TRUE(c.trace().empty());
  }
}

TEST_F(EngineControllerTest, TheLoadMustSpeakForSomeTicksInARow) {
  PromptController c = Make(EngineKind::kEpoll);
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(None(c.Tick(Load(20, 1000))));
    ASSERT_TRUE(None(c.Tick(Load(4, 1000))));
  }
  ASSERT_TRUE(None(c.Tick(Load(20, 1000))));
  const EngineController::Action action = c.Tick(Load(20, 1000));
  EXPECT_EQ(action.to, EngineKind::kUring);
  EXPECT_EQ(action.streams, 50u) << "5 % of 1000 go first";
}

TEST_F(EngineControllerTest, AStormIsAnsweredAtOnce) {
  PromptController c = Make(EngineKind::kEpoll);
  EXPECT_EQ(c.Tick(Load(100, 1000)).to, EngineKind::kUring);
}

TEST_F(EngineControllerTest, LargeReadsDoNotSpeakForUring) {
  PromptController c = Make(EngineKind::kEpoll);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 1000, 16'384))));
}

TEST_F(EngineControllerTest, AGainIsKept) {
  PromptController c = Make(EngineKind::kEpoll);
  RunTrial(c, 100, 1000, 900);
  EXPECT_EQ(c.engine(), EngineKind::kUring);
  EXPECT_EQ(c.switches(), 1u);
  EXPECT_TRUE(Traced(c, "uring stays: 900 ns of CPU a read, 10.0 % less"));
  EXPECT_EQ(c.counts().trials, 1u);
  EXPECT_EQ(c.counts().kept, 1u);
  EXPECT_EQ(c.counts().returned, 0u);
}

TEST_F(EngineControllerTest, StreamsThatWereNotReadyFollowOnceWhenAGainIsKept) {
  EngineController c(options_, EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  c.Ended({.moved = 50});
  c.Tick(Load(100, 1000));
  c.Ended({.moved = 948});
  LoadSample won = Load(100, 800);
  won.open_uring = 998;
  won.open_epoll = 2;
  ASSERT_TRUE(None(c.Tick(won)));
  ASSERT_TRUE(None(c.Tick(won)));
  const EngineController::Action follow = c.Tick(won);
  EXPECT_EQ(follow.to, EngineKind::kUring);
  EXPECT_EQ(follow.streams, 0u) << "all that may";
  EXPECT_TRUE(Traced(c, "2 streams are on epoll still: those that may go follow"));
  c.Ended({.moved = 1});
  EXPECT_EQ(c.switches(), 1u);
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(None(c.Tick(won))) << "one may be pinned";
}

// Those of a trial that were between the engines when all went back.
TEST_F(EngineControllerTest, StreamsThatWereNotReadyFollowOnceWhenAllHaveGoneBack) {
  for (const bool fuse : {false, true}) {
    EngineController c(options_, EngineKind::kEpoll);
    c.Tick(Load(100, 1000));
    c.Ended({.moved = 50});
    LoadSample load = Load(100, 1000);
    if (fuse) {
      c.Tick(load);
      c.Ended({.moved = 950});
      load = Load(100, 800);
      load.open_uring = load.open;
      for (int i = 0; i < 3; ++i) ASSERT_TRUE(None(c.Tick(load)));
      ASSERT_EQ(c.engine(), EngineKind::kUring);
    }
    LoadSample bad = load;
    bad.faults_uring = 1;
    ASSERT_EQ(c.Tick(bad).to, EngineKind::kEpoll);
    load.open_uring = 3;
    load.open_epoll = load.open - 3;
    for (int i = 0; i < 3; ++i) ASSERT_TRUE(None(c.Tick(load))) << "the sweep has not ended";
    c.Ended({.moved = load.open_epoll});
    const uint64_t switches = c.switches();
    const EngineController::Action follow = c.Tick(load);
    EXPECT_EQ(follow.to, EngineKind::kEpoll);
    EXPECT_EQ(follow.streams, 0u) << "all that may";
    EXPECT_TRUE(Traced(c, "3 streams are on uring still: those that may go follow"));
    c.Ended({.moved = 2});
    EXPECT_EQ(c.switches(), switches);
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(None(c.Tick(load))) << "one may be pinned";
  }
}

TEST_F(EngineControllerTest, NobodyFollowsWhenOthersHaveSwitchedAllMeanwhile) {
  EngineController c(options_, EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  c.Ended({.moved = 50});
  LoadSample load = Load(100, 1000);
  load.faults_uring = 1;
  ASSERT_EQ(c.Tick(load).to, EngineKind::kEpoll);
  c.Ended({.moved = 47});
  c.Adopt(EngineKind::kEpoll);
  load.faults_uring = 0;
  load.open_uring = 3;
  load.open_epoll = load.open - 3;
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(None(c.Tick(load))) << "theirs is under way";
}

TEST_F(EngineControllerTest, NoGainGoesBack) {
  PromptController c = Make(EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  c.Tick(Load(100, 1000));
  EXPECT_TRUE(None(c.Tick(Load(100, 5000)))) << "the tick in which streams move is not measured";
  EXPECT_TRUE(None(c.Tick(Load(100, 980))));
  const EngineController::Action back = c.Tick(Load(100, 980));
  EXPECT_EQ(back.to, EngineKind::kEpoll);
  EXPECT_EQ(back.streams, 0u) << "all of them";
  EXPECT_EQ(c.engine(), EngineKind::kEpoll);
  EXPECT_EQ(c.switches(), 2u);
  EXPECT_TRUE(Traced(c, "back to epoll: 980 ns of CPU a read, 2.0 % less"));
  EXPECT_EQ(c.counts().trials, 1u);
  EXPECT_EQ(c.counts().kept, 0u);
  EXPECT_EQ(c.counts().returned, 1u);
}

TEST_F(EngineControllerTest, EachTrialThatFailsDoublesTheRest) {
  options_.switches_max = 1 << 20;
  PromptController c = Make(EngineKind::kEpoll);
  for (int64_t rest : {30, 60, 120, 240, 480, 960, 1920, 3600, 3600}) {
    RunTrial(c, 100, 1000, 1000);
    for (int64_t i = 1; i < rest; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 1000)))) << i;
  }
}

TEST_F(EngineControllerTest, SaysOnceWhyALoadThatSpeaksIsHeldBack) {
  options_.dwell = absl::Seconds(30);
  options_.switches_max = 3;
  options_.window = absl::Minutes(5);
  PromptController c = Make(EngineKind::kEpoll);
  RunTrial(c, 100, 1000, 1000);
  const size_t before = c.trace().size();
  ASSERT_TRUE(None(c.Tick(Load(4, 1000)))) << "nothing speaks, so nothing is held back";
  EXPECT_EQ(c.trace().size(), before);
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 1000)))) << i;
  EXPECT_TRUE(Traced(c,
                     "epoll: 100.0 reads a turn speak for uring, but no trial begins for another "
                     "28s (dwell)"));
  EXPECT_TRUE(Traced(c,
                     "but 2 of at most 3 switches in 5m are made, and a trial may take two "
                     "(switches_max)"));
  EXPECT_EQ(c.trace().size(), before + 2) << "once each";
  EXPECT_EQ(c.counts().held, 2u);
}

TEST_F(EngineControllerTest, ATrialThatIsKeptRestsOnceWhateverFailedBefore) {
  options_.switches_max = 1 << 20;
  PromptController c = Make(EngineKind::kEpoll);
  for (const int64_t rest : {30, 60, 120}) {
    RunTrial(c, 100, 1000, 1000);
    for (int64_t i = 1; i < rest; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 1000)))) << i;
  }
  RunTrial(c, 100, 1000, 900);
  ASSERT_EQ(c.engine(), EngineKind::kUring);
  for (int i = 1; i < 30; ++i) ASSERT_TRUE(None(c.Tick(Load(1, 900)))) << i;
  RunTrial(c, 1, 900, 900);
}

TEST_F(EngineControllerTest, FewerThanFourSwitchesInFiveMinutesOfOscillation) {
  options_.dwell = absl::ZeroDuration();
  PromptController c = Make(EngineKind::kEpoll);
  uint64_t most = 0;
  std::deque<uint64_t> counts;
  for (int second = 0; second < 3600; ++second) {
    const bool high = second / 7 % 2 == 0;
    const bool uring = c.engine() == EngineKind::kUring;
    // Each engine is better where it is tried, so every trial is kept.
    const double ns = high == uring ? 800 : 1000;
    const double trial = c.state() == AdaptState::kTrial ? 700 : ns;
    c.Tick(Load(high ? 100 : 1, trial));
    counts.push_back(c.switches());
    if (counts.size() > 300) counts.pop_front();
    most = std::max(most, counts.back() - counts.front());
  }
  EXPECT_LE(most, 3u);
  EXPECT_GT(c.switches(), 5u) << "it never switches at all";
}

TEST_F(EngineControllerTest, AFaultEndsATrialAtOnce) {
  PromptController c = Make(EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  LoadSample bad = Load(100, 500);
  bad.faults_uring = 2;
  EXPECT_EQ(c.Tick(bad).to, EngineKind::kEpoll);
  EXPECT_TRUE(Traced(c, "2 engine faults"));
}

TEST_F(EngineControllerTest, FaultsOfTheEngineThatServesAreNotTheTrialsDoing) {
  PromptController c = Make(EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  LoadSample bad = Load(100, 1000);
  bad.faults_epoll = 2;
  EXPECT_EQ(c.Tick(bad).to, EngineKind::kUring);
  EXPECT_EQ(c.state(), AdaptState::kTrial);
}

TEST_F(EngineControllerTest, AFaultAfterATrialWasWonBlowsTheFuse) {
  PromptController c = Make(EngineKind::kEpoll);
  LoadSample bad = Load(100, 1000);
  bad.faults_epoll = 9;
  RunTrial(c, 100, 1000, 900);
  ASSERT_EQ(c.engine(), EngineKind::kUring);
  EXPECT_TRUE(None(c.Tick(bad))) << "those of an engine that serves nobody say nothing";
  bad.faults_epoll = 0;
  bad.faults_uring = 1;
  EXPECT_EQ(c.Tick(bad).to, EngineKind::kEpoll);
  EXPECT_EQ(c.engine(), EngineKind::kEpoll);
  EXPECT_EQ(c.state(), AdaptState::kWatching);
  EXPECT_TRUE(Traced(c, "back to epoll: 1 engine faults of uring, which a trial was won by"));
  EXPECT_EQ(c.counts().kept, 1u);
  EXPECT_EQ(c.counts().returned, 1u);
  for (int i = 0; i < 29; ++i) ASSERT_TRUE(None(c.Tick(bad))) << "it rests, and blows once";
}

TEST_F(EngineControllerTest, TheFirstEngineHasNoFuse) {
  PromptController c = Make(EngineKind::kEpoll);
  LoadSample bad = Load(5, 1000);
  bad.faults_epoll = 100;
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(None(c.Tick(bad)));
  EXPECT_TRUE(c.trace().empty());
}

TEST_F(EngineControllerTest, StreamsThatAreRefusedEndATrial) {
  EngineController canary(options_, EngineKind::kEpoll);
  canary.Tick(Load(100, 1000));
  canary.Ended({.moved = 47, .failed = 2, .ended = 1});
  EXPECT_TRUE(Traced(canary, "47 streams are now on uring, 2 were refused, 1 ended meanwhile"));
  EXPECT_EQ(canary.Tick(Load(100, 1000)).to, EngineKind::kEpoll);
  EXPECT_TRUE(Traced(canary, "back to epoll: 47 streams are now on uring, 2 were refused"));

  EngineController all(options_, EngineKind::kEpoll);
  all.Tick(Load(100, 1000));
  all.Ended({.moved = 50});
  ASSERT_EQ(all.Tick(Load(100, 1000)).to, EngineKind::kUring);
  all.Ended({.moved = 900, .failed = 50});
  EXPECT_EQ(all.Tick(Load(100, 500)).to, EngineKind::kEpoll);
  all.Ended({.moved = 900, .failed = 1});
  EXPECT_TRUE(Traced(all, "900 streams are now on epoll, 1 were refused"));
  EXPECT_TRUE(None(all.Tick(Load(100, 1000)))) << "there is nowhere else to go back to";
}

TEST_F(EngineControllerTest, NothingIsMeasuredWhileStreamsAreOnTheirWay) {
  EngineController c(options_, EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  c.Ended({.moved = 50});
  ASSERT_EQ(c.Tick(Load(100, 1000)).to, EngineKind::kUring);
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 9000)))) << i;
  c.Ended({.moved = 1000});
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 800)))) << i;
  EXPECT_TRUE(Traced(c, "uring stays: 800 ns"));
}

TEST_F(EngineControllerTest, AMoveThatDoesNotEndIsNotWaitedForForEver) {
  EngineController c(options_, EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 1000)))) << i;
  EXPECT_EQ(c.Tick(Load(100, 1000)).to, EngineKind::kEpoll);
  EXPECT_TRUE(Traced(c, "back to epoll: streams are still on their way after 8 ticks"));
}

TEST_F(EngineControllerTest, AnEngineThatCannotBeHadEndsATrial) {
  EngineController c(options_, EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  c.Failed(absl::ResourceExhaustedError("no descriptor"));
  EXPECT_EQ(c.Tick(Load(100, 1000)).to, EngineKind::kEpoll);
  EXPECT_TRUE(Traced(c, "back to epoll: RESOURCE_EXHAUSTED: no descriptor"));
  c.Failed(absl::ResourceExhaustedError("no descriptor"));
  EXPECT_TRUE(Traced(c, "no stream could be moved: RESOURCE_EXHAUSTED: no descriptor"));
}

TEST_F(EngineControllerTest, LateTurnsEndACanary) {
  PromptController c = Make(EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  LoadSample late = Load(100, 500);
  late.delay = absl::Milliseconds(200);
  EXPECT_EQ(c.Tick(late).to, EngineKind::kEpoll);
}

TEST_F(EngineControllerTest, LateTurnsEndATrial) {
  PromptController c = Make(EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  ASSERT_FALSE(None(c.Tick(Load(100, 1000))));
  ASSERT_TRUE(None(c.Tick(Load(100, 500)))) << "streams move";
  ASSERT_EQ(c.state(), AdaptState::kTrial);
  LoadSample late = Load(100, 500);
  late.delay = absl::Milliseconds(21);
  EXPECT_EQ(c.Tick(late).to, EngineKind::kEpoll);
  EXPECT_TRUE(Traced(c, "back to epoll: turns come 21ms late"));
}

TEST_F(EngineControllerTest, ATrialInWhichNoStreamMovesEnds) {
  EngineController c(options_, EngineKind::kEpoll);
  ASSERT_EQ(c.Tick(Load(100, 1000)).to, EngineKind::kUring);
  c.Ended({});
  EXPECT_TRUE(None(c.Tick(Load(100, 500)))) << "there is nothing to take back";
  EXPECT_EQ(c.state(), AdaptState::kWatching);
  EXPECT_EQ(c.engine(), EngineKind::kEpoll);
  EXPECT_EQ(c.switches(), 0u);
  EXPECT_TRUE(Traced(c, "epoll stays: no stream may go; no trial for 30s"));
  for (int i = 1; i < 30; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 1000)))) << i;
  EXPECT_EQ(c.Tick(Load(100, 1000)).to, EngineKind::kUring);
  c.Ended({.ended = 3});
  EXPECT_TRUE(None(c.Tick(Load(100, 500))));
  EXPECT_TRUE(Traced(c, "epoll stays: 0 streams are now on uring, 0 were refused, 3 ended"));
  EXPECT_EQ(c.counts().trials, 2u);
  EXPECT_EQ(c.counts().returned, 2u);
}

TEST_F(EngineControllerTest, ASweepForWhichNoStreamIsLeftIsNoTrouble) {
  EngineController c(options_, EngineKind::kEpoll);
  c.Tick(Load(100, 1000));
  c.Ended({.moved = 8});
  ASSERT_EQ(c.Tick(Load(100, 1000)).to, EngineKind::kUring);
  c.Ended({});
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 800)))) << i;
  EXPECT_TRUE(Traced(c, "uring stays: 800 ns"));
}

TEST_F(EngineControllerTest, AdoptsTheEngineThatOthersChose) {
  PromptController c = Make(EngineKind::kEpoll);
  c.Adopt(EngineKind::kEpoll);
  EXPECT_TRUE(c.trace().empty()) << "it serves already";
  EXPECT_EQ(c.counts().adopted, 0u);
  c.Adopt(EngineKind::kUring);
  EXPECT_EQ(c.counts().adopted, 1u);
  EXPECT_EQ(c.engine(), EngineKind::kUring);
  EXPECT_TRUE(Traced(c, "uring serves: others had every stream switched to it; no trial for 30s"));
  for (int i = 0; i < 29; ++i) ASSERT_TRUE(None(c.Tick(Load(1, 1000)))) << i;
  RunTrial(c, 1, 1000, 900);
  EXPECT_EQ(c.engine(), EngineKind::kEpoll);
}

TEST_F(EngineControllerTest, WhatOthersChooseEndsATrial) {
  for (const EngineKind chosen : {EngineKind::kEpoll, EngineKind::kUring}) {
    EngineController c(options_, EngineKind::kEpoll);
    c.Tick(Load(100, 1000));
    c.Ended({.moved = 50});
    ASSERT_EQ(c.Tick(Load(100, 1000)).to, EngineKind::kUring);
    ASSERT_EQ(c.state(), AdaptState::kTrial);
    c.Adopt(chosen);
    EXPECT_EQ(c.state(), AdaptState::kWatching);
    EXPECT_EQ(c.engine(), chosen);
    const size_t lines = c.trace().size();
    c.Ended({.moved = 7});
    EXPECT_EQ(c.trace().size(), lines) << "its own sweep ended when theirs began";
    for (int i = 0; i < 9; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 9000)))) << i;
  }
}

TEST_F(EngineControllerTest, ALoadThatVanishesProvesNothing) {
  PromptController c = Make(EngineKind::kUring);
  c.Tick(Load(1, 1000));
  c.Tick(Load(1, 1000));
  ASSERT_EQ(c.state(), AdaptState::kCanary);
  c.Tick(Idle());
  for (int i = 0; i < 4 && c.state() == AdaptState::kTrial; ++i) c.Tick(Idle());
  EXPECT_EQ(c.engine(), EngineKind::kUring);
  EXPECT_TRUE(Traced(c, "too few reads"));
}

TEST_F(EngineControllerTest, WithoutAStreamNothingIsTried) {
  PromptController c = Make(EngineKind::kEpoll);
  LoadSample gone = Load(100, 1000);  // all have closed at the end of the tick
  gone.open = 0;
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(None(c.Tick(gone)));
}

TEST_F(EngineControllerTest, ATrialWhoseLoadBecomesAnotherProvesNothing) {
  for (const uint64_t open : {400, 2500}) {
    PromptController c = Make(EngineKind::kEpoll);
    c.Tick(Load(100, 1000));
    c.Tick(Load(100, 1000));
    LoadSample other = Load(100, 500);
    other.open = open;
    for (int i = 0; i < 4 && c.state() == AdaptState::kTrial; ++i) c.Tick(other);
    EXPECT_EQ(c.engine(), EngineKind::kEpoll);
    EXPECT_TRUE(Traced(c, "the load is another"));
  }
}

// One tick of the noise that a shared machine makes would decide a trial by chance.
TEST_F(EngineControllerTest, WhatAReadCostBeforeIsAnAverage) {
  options_.sustain = 4;
  PromptController c = Make(EngineKind::kEpoll);
  for (const double ns : {1000., 1000., 1000.}) ASSERT_TRUE(None(c.Tick(Load(20, ns))));
  RunTrial(c, 20, /*before=*/1400, /*after=*/1080);
  EXPECT_TRUE(Traced(c, "1100 ns of CPU each"));
  EXPECT_TRUE(Traced(c, "back to epoll: 1080 ns of CPU a read, 1.8 % less"));
}

TEST_F(EngineControllerTest, TicksThatDifferAmongThemselvesProveNothing) {
  PromptController c = Make(EngineKind::kEpoll);
  c.Tick(Load(20, 1000));
  c.Tick(Load(20, 1300));
  c.Tick(Load(20, 1300));
  ASSERT_EQ(c.state(), AdaptState::kTrial);
  c.Tick(Load(20, 5000));  // streams move
  c.Tick(Load(20, 800));
  EXPECT_EQ(c.Tick(Load(20, 1010)).to, EngineKind::kEpoll);
  EXPECT_TRUE(Traced(c, "905 ns of CPU a read, 21.3 % less, but not in every tick"));
}

TEST_F(EngineControllerTest, WhatAReadCostLongAgoIsForgotten) {
  options_.dwell = options_.dwell_max = absl::Seconds(100);
  options_.switches_max = 100;
  PromptController c = Make(EngineKind::kEpoll);
  RunTrial(c, 20 * 5, 3000, 3000);
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 3000))));
  for (int i = 0; i < 49; ++i) ASSERT_TRUE(None(c.Tick(Load(100, 1000))));
  ASSERT_FALSE(None(c.Tick(Load(100, 1000))));
  EXPECT_TRUE(Traced(c, " 100 ticks, 100")) << c.trace().back();
}

TEST_F(EngineControllerTest, TheTraceIsBounded) {
  options_.trace_max = 5;
  options_.dwell = absl::ZeroDuration();
  options_.switches_max = 1 << 20;
  PromptController c = Make(EngineKind::kEpoll);
  for (int i = 0; i < 1000; ++i) c.Tick(Load(100, 1000));
  EXPECT_EQ(c.trace().size(), 5u);
}

TEST_F(EngineControllerTest, ATraceMayBeNone) {
  options_.trace_max = 0;
  PromptController c = Make(EngineKind::kEpoll);
  RunTrial(c, 100, 1000, 900);
  EXPECT_TRUE(c.trace().empty());
}

TEST_F(EngineControllerTest, OptionsThatContradictThemselvesAreNamed) {
  EXPECT_TRUE(EngineController::Check(options_).ok());
  const auto refused = [this](auto change, const std::string& word) {
    AdaptiveOptions o = options_;
    change(o);
    const absl::Status status = EngineController::Check(o);
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_NE(std::string(status.message()).find(word), std::string::npos) << status;
  };
  refused([](AdaptiveOptions& o) { o.tick = absl::ZeroDuration(); }, "tick");
  refused([](AdaptiveOptions& o) { o.tick = absl::InfiniteDuration(); }, "tick");
  refused([](AdaptiveOptions& o) { o.down = o.up; }, "down");
  refused([](AdaptiveOptions& o) { o.up_at_once = 1; }, "up_at_once");
  refused([](AdaptiveOptions& o) { o.sustain = 0; }, "sustain");
  refused([](AdaptiveOptions& o) { o.canary_part = 2; }, "canary_part");
  refused([](AdaptiveOptions& o) { o.trial = 0; }, "trial");
  refused([](AdaptiveOptions& o) { o.gain = 1; }, "gain");
  refused([](AdaptiveOptions& o) { o.dwell_max = absl::ZeroDuration(); }, "dwell");
  refused([](AdaptiveOptions& o) { o.switches_max = 1; }, "switches_max");
  refused([](AdaptiveOptions& o) { o.window = absl::ZeroDuration(); }, "window");
}

TEST_F(EngineControllerTest, NothingIsTriedOnceIoUringIsLost) {
  for (const int ticks : {0, 2, 3}) {  // watching, in the canary, in the trial
    PromptController c = Make(EngineKind::kEpoll);
    for (int i = 0; i < ticks; ++i) c.Tick(Load(20, 1000));
    ASSERT_EQ(c.state(), ticks == 0   ? AdaptState::kWatching
                         : ticks == 2 ? AdaptState::kCanary
                                      : AdaptState::kTrial);
    const uint64_t before = c.switches();
    LoadSample lost = Load(100, 1000);
    lost.uring_lost = true;
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE(None(c.Tick(lost)));
    EXPECT_EQ(c.engine(), EngineKind::kEpoll);
    EXPECT_EQ(c.state(), AdaptState::kWatching);
    EXPECT_EQ(c.switches(), before);
    EXPECT_NE(c.trace().back().find("uring has failed for good"), std::string::npos);
  }
}

TEST_F(EngineControllerTest, IoUringThatServedAndIsLostIsLeft) {
  PromptController c = Make(EngineKind::kUring);
  LoadSample lost = Load(1, 1000);
  lost.uring_lost = true;
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(None(c.Tick(lost)));
  EXPECT_EQ(c.engine(), EngineKind::kEpoll);
  EXPECT_EQ(c.trace().size(), 1u);
}

}  // namespace
}  // namespace penstock::internal
