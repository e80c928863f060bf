// The controller by a clock and loads made up here: when it tries, what it makes of a trial, how
// long it believes that, the bound on switches, the fuse. What noise does is in
// engine_trial_test.cc and engine_controller_noise_test.cc.
#include "engine/engine_controller.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "testing/adapted_machine.h"

namespace penstock::internal {
namespace {

using testing::AdaptedMachine;

class EngineControllerTest : public testing::AdaptedMachineTest {};

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

// --- When it tries ---

TEST_F(EngineControllerTest, ALoadMustLast) {
  options_.sustain = 3;
  AdaptedMachine m = Make(EngineKind::kEpoll);
  for (int i = 0; i < 50; ++i) {
    m.open = i % 2 == 0 ? 10 : 1000;
    ASSERT_TRUE(None(m.Step()));
  }
  for (int i = 0; i < 50; ++i) {
    m.batch = i % 2 == 0 ? 5 : 50;
    ASSERT_TRUE(None(m.Step()));
  }
  m.open = 700;
  ASSERT_TRUE(None(m.Step())) << "much the same, for two ticks";
  m.open = 1000;
  const EngineController::Action action = m.Step();
  EXPECT_EQ(action.to, EngineKind::kUring);
  EXPECT_EQ(action.streams, 50u) << "5 % of 1000 go first";
  EXPECT_TRUE(
      m.Traced("epoll: 50.0 reads a turn, 40 % of a processor: a trial of uring begins, 50 "
               "of 1000 streams go first"));
}

TEST_F(EngineControllerTest, WhereNothingIsToBeSavedNothingIsTried) {
  AdaptedMachine few = Make(EngineKind::kEpoll);
  few.rate = 199;
  few.cost_epoll = 1e6;
  AdaptedMachine idle = Make(EngineKind::kEpoll);
  idle.cost_epoll = 240;  // 400,000 reads a second take 9.6 % of a processor
  AdaptedMachine gone = Make(EngineKind::kEpoll);
  gone.open = 0;
  for (int i = 0; i < 1000; ++i) {
    ASSERT_TRUE(None(few.Step()));
    ASSERT_TRUE(None(idle.Step()));
    ASSERT_TRUE(None(gone.Step()));
  }
  EXPECT_TRUE(few->trace().empty() && idle->trace().empty() && gone->trace().empty());
  idle.cost_epoll = 260;
  idle.Step();
  EXPECT_FALSE(None(idle.Step()));
}

// --- What it makes of a trial ---

TEST_F(EngineControllerTest, AGainIsKept) {
  AdaptedMachine m = Won();
  EXPECT_EQ(m.serving(), EngineKind::kUring);
  EXPECT_EQ(m->switches(), 1u) << "slices do not count";
  EXPECT_TRUE(m.Traced("uring serves some well: all 1000 streams change engine by turns"));
  EXPECT_TRUE(
      m.Traced("uring serves from now on: it takes 10.0 % less CPU for the same bytes "
               "(+-0.0 %, 8 pairs of slices), believed for 5m"));
  EXPECT_EQ(m->counts().trials, 1u);
  EXPECT_EQ(m->counts().kept, 1u);
  EXPECT_EQ(m->counts().returned, 0u);
}

TEST_F(EngineControllerTest, WithoutAGainTheEngineStays) {
  for (const double cost : {985., 1000., 1100.}) {
    AdaptedMachine m = Make(EngineKind::kEpoll);
    m.cost_uring = cost;
    ASSERT_TRUE(m.RunTrial());
    EXPECT_EQ(m->engine(), EngineKind::kEpoll);
    EXPECT_EQ(m.serving(), EngineKind::kEpoll);
    EXPECT_EQ(m->switches(), 0u);
    EXPECT_EQ(m->counts().kept, 0u);
    EXPECT_EQ(m->counts().returned, 1u);
    EXPECT_TRUE(m.Traced(cost < 1000    ? "epoll stays: uring takes 1.5 % less CPU"
                         : cost == 1000 ? "epoll stays: uring takes 0.0 % less CPU"
                                        : "epoll stays: uring takes 10.0 % more CPU"));
  }
}

TEST_F(EngineControllerTest, EnginesServeByTurns) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  std::string turns;  // of each tick of the trial: S, streams have just come, is not measured
  while (m->counts().returned == 0) {
    const bool trial = m->state() == AdaptState::kTrial;
    const char engine = m.serving() == EngineKind::kUring ? 'u' : 'e';
    const EngineController::Action action = m.Step();
    if (trial) turns += engine;
    if (trial && !None(action)) turns += ' ';
    ASSERT_LT(turns.size(), 100u);
  }
  EXPECT_EQ(turns, "uu eee uuu eee uuu eee uuu eee uu ") << "the first tick of each settles";
  EXPECT_EQ(m->counts().sweeps, 10u) << "there first, in each of 8 pairs, and back";
}

TEST_F(EngineControllerTest, WhatMovingCostsIsNotMeasured) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 900;
  m.cost_settling = 20'000;
  ASSERT_TRUE(m.RunTrial());
  EXPECT_TRUE(m.Traced("takes 10.0 % less CPU"));
}

TEST_F(EngineControllerTest, SlicesAreLongWhereSweepsAre) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  EXPECT_EQ(m->NextTick(), absl::Seconds(1));
  m.sweep_time = absl::Milliseconds(60);
  while (m->state() != AdaptState::kTrial) m.Step();
  EXPECT_EQ(m->NextTick(), absl::Milliseconds(50)) << "to settle";
  m.Step();
  EXPECT_EQ(m->NextTick(), absl::Milliseconds(120));
  m.sweep_time = absl::Milliseconds(2);
  for (int i = 0; i < 2; ++i) m.Step();
  EXPECT_EQ(m->NextTick(), absl::Milliseconds(50));
  m.sweep_time = absl::Milliseconds(700);
  for (int i = 0; i < 3; ++i) m.Step();
  EXPECT_EQ(m->NextTick(), absl::Seconds(1)) << "and never longer than a tick";
}

TEST_F(EngineControllerTest, ASliceGoesOnUntilThereAreReadsEnough) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.rate = 1000;  // 50 in a slice
  m.cost_epoll = 400'000;
  m.cost_uring = 360'000;
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->engine(), EngineKind::kUring);
  EXPECT_TRUE(m.Traced("10.0 % less"));
}

TEST_F(EngineControllerTest, ALoadThatVanishesProvesNothing) {
  AdaptedMachine m = Make(EngineKind::kUring);
  while (m->state() != AdaptState::kTrial) m.Step();
  m.rate = 0;
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->engine(), EngineKind::kUring);
  EXPECT_EQ(m.serving(), EngineKind::kUring);
  EXPECT_TRUE(m.Traced("uring stays: too few reads to tell, no trial with such a load for 30s"));
}

TEST_F(EngineControllerTest, APauseOfTheLoadEndsNoTrial) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 900;
  while (m->state() != AdaptState::kTrial) m.Step();
  for (int pause = 0; pause < 3; ++pause) {
    for (int i = 0; i < 5; ++i) m.Step();
    m.open = 0;
    m.rate = 0;
    for (int i = 0; i < 60; ++i) m.Step();  // three seconds
    m.open = 1000;
    m.rate = 400'000;
  }
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->engine(), EngineKind::kUring);
  EXPECT_TRUE(m.Traced("10.0 % less"));
}

TEST_F(EngineControllerTest, ATrialWhoseLoadBecomesAnotherProvesNothing) {
  for (const uint64_t open : {300, 3500}) {
    AdaptedMachine m = Make(EngineKind::kEpoll);
    m.cost_uring = 500;
    while (m->state() != AdaptState::kTrial) m.Step();
    m.open = open;
    ASSERT_TRUE(m.RunTrial());
    EXPECT_EQ(m->engine(), EngineKind::kEpoll);
    EXPECT_TRUE(m.Traced("epoll stays: the load is another"));
  }
}

TEST_F(EngineControllerTest, SoDoesOneWithOtherReadsATurn) {
  for (const double batch : {5., 500.}) {
    AdaptedMachine m = Make(EngineKind::kEpoll);
    m.cost_uring = 500;
    m.batch_uring = 20;  // engines deliver the same load in different ones
    while (m->state() != AdaptState::kTrial) m.Step();
    for (int i = 0; i < 6; ++i) m.Step();
    m.batch = batch;
    m.batch_uring = batch * 2 / 5;
    ASSERT_TRUE(m.RunTrial());
    EXPECT_EQ(m->engine(), EngineKind::kEpoll);
    EXPECT_TRUE(m.Traced("epoll stays: the load is another")) << m->trace().back();
    m.batch = 50;
    m.batch_uring = 20;
    EXPECT_NEAR(m.SecondsUntilTrial(), 30, 3) << "it was of this load";
  }
}

TEST_F(EngineControllerTest, SoDoesOneThatIsBusyNoMore) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 500;
  while (m->state() != AdaptState::kTrial) m.Step();
  for (int i = 0; i < 6; ++i) m.Step();
  m.rate = 40'000;
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->engine(), EngineKind::kEpoll);
  EXPECT_TRUE(m.Traced("epoll stays: the load is another")) << m->trace().back();
}

TEST_F(EngineControllerTest, AnEngineThatTakesLessThanIsWorthATrialIsKept) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_epoll = 260;  // a tenth of a processor, and a little
  m.cost_uring = 130;
  m.spread = 0.3;  // so that it takes longer than two ticks of slices
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->engine(), EngineKind::kUring) << m->trace().back();
}

// --- Streams that stay behind, engines at fault ---

TEST_F(EngineControllerTest, StreamsThatWereNotReadyFollowOnceWhenATrialHasEnded) {
  for (const double cost : {900., 1100.}) {
    AdaptedMachine m = Make(EngineKind::kEpoll);
    m.cost_uring = cost;
    m.behind = 2;
    ASSERT_TRUE(m.RunTrial());
    const EngineKind stays = m->engine();
    EXPECT_EQ(stays, cost < 1000 ? EngineKind::kUring : EngineKind::kEpoll);
    const uint64_t switches = m->switches();
    EngineController::Action follow = m.Step();
    EXPECT_EQ(follow.to, stays);
    EXPECT_EQ(follow.streams, 0u) << "all that may";
    EXPECT_TRUE(m.Traced("still: those that may go follow"));
    EXPECT_EQ(m->switches(), switches);
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(None(m.Step())) << "one may be pinned";
  }
}

TEST_F(EngineControllerTest, NobodyFollowsWhenOthersHaveSwitchedAllMeanwhile) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 1100;
  m.behind = 2;
  ASSERT_TRUE(m.RunTrial());
  m->Adopt(EngineKind::kEpoll);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(None(m.Step())) << "theirs is under way";
}

TEST_F(EngineControllerTest, AFaultEndsATrialAtOnce) {
  for (const AdaptState at : {AdaptState::kCanary, AdaptState::kTrial}) {
    AdaptedMachine m = Make(EngineKind::kEpoll);
    while (m->state() != at) m.Step();
    m.faults_uring = 2;
    EXPECT_EQ(m.Step().to, EngineKind::kEpoll);
    EXPECT_TRUE(m.Traced("back to epoll: 2 engine faults; no trial for 30s"));
    EXPECT_EQ(m->state(), AdaptState::kWatching);
  }
}

TEST_F(EngineControllerTest, EachIllnessDoublesTheRest) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  for (const int64_t rest : {30, 60, 120, 240, 480, 960, 1920, 3600, 3600}) {
    m.faults_uring = 0;
    while (m->state() != AdaptState::kTrial) m.Step();
    m.faults_uring = 1;
    m.Step();
    EXPECT_NEAR(m.SecondsUntilTrial(), static_cast<double>(rest), 2);
  }
}

TEST_F(EngineControllerTest, FaultsOfTheEngineThatServesAreNotTheTrialsDoing) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 900;
  m.faults_epoll = 2;
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->engine(), EngineKind::kUring);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(None(m.Step())) << "of one that serves nobody";
}

TEST_F(EngineControllerTest, AFaultAfterATrialWasWonBlowsTheFuse) {
  AdaptedMachine m = Won();
  m.faults_uring = 1;
  EXPECT_EQ(m.Step().to, EngineKind::kEpoll);
  EXPECT_EQ(m->engine(), EngineKind::kEpoll);
  EXPECT_EQ(m->state(), AdaptState::kWatching);
  EXPECT_TRUE(m.Traced("back to epoll: 1 engine faults of uring, which was found better"));
  EXPECT_EQ(m->counts().kept, 1u);
  EXPECT_EQ(m->counts().returned, 1u);
  EXPECT_EQ(m->switches(), 2u);
  for (int i = 0; i < 29; ++i) ASSERT_TRUE(None(m.Step())) << "it rests, and nothing is recalled";
}

TEST_F(EngineControllerTest, TheFuseIsNotBoundByTheSwitches) {
  options_.switches_max = 1;
  AdaptedMachine m = Won();
  m.faults_uring = 1;
  EXPECT_EQ(m.Step().to, EngineKind::kEpoll);
  EXPECT_EQ(m->switches(), 2u);
}

TEST_F(EngineControllerTest, TheFuseIsInWhileAnotherTrialGoesOn) {
  for (const AdaptState at : {AdaptState::kCanary, AdaptState::kTrial}) {
    AdaptedMachine m = Won();
    m.open = 64;
    while (m->state() != at) m.Step();
    m.faults_uring = 1;
    EXPECT_EQ(m.Step().to, EngineKind::kEpoll);
    EXPECT_EQ(m->state(), AdaptState::kWatching);
    EXPECT_EQ(m->engine(), EngineKind::kEpoll);
    EXPECT_EQ(m.serving(), EngineKind::kEpoll);
    EXPECT_TRUE(m.Traced("back to epoll: 1 engine faults of uring, which was found better"));
    for (int i = 0; i < 29; ++i) ASSERT_TRUE(None(m.Step())) << "it rests";
  }
}

TEST_F(EngineControllerTest, TheFirstEngineHasNoFuse) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.rate = 100;
  m.faults_epoll = 100;
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(None(m.Step()));
  EXPECT_TRUE(m->trace().empty());
}

TEST_F(EngineControllerTest, StreamsThatAreRefusedEndATrial) {
  AdaptedMachine canary = Make(EngineKind::kEpoll);
  canary.Step();
  canary.refused = 2;
  canary.Step();
  EXPECT_TRUE(canary.Traced("48 streams are now on uring, 2 were refused, 0 ended meanwhile"));
  EXPECT_EQ(canary.Step().to, EngineKind::kEpoll);
  EXPECT_TRUE(canary.Traced("back to epoll: 48 streams are now on uring, 2 were refused"));

  AdaptedMachine all = Make(EngineKind::kEpoll);
  while (all->state() != AdaptState::kCanary) all.Step();
  all.refused = 50;
  ASSERT_EQ(all.Step().to, EngineKind::kUring);
  EXPECT_EQ(all.Step().to, EngineKind::kEpoll);
  EXPECT_TRUE(all.Traced("950 streams are now on epoll, 50 were refused"));
  EXPECT_TRUE(None(all.Step())) << "there is nowhere else to go back to";
}

TEST_F(EngineControllerTest, NothingIsMeasuredWhileStreamsAreOnTheirWay) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 900;
  while (m->state() != AdaptState::kTrial) m.Step();
  m.tells = false;
  while (None(m.Step())) {
  }
  m.cost_epoll = m.cost_uring = 9000;
  EXPECT_EQ(m->NextTick(), absl::Seconds(1)) << "until it is told of";
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(None(m.Step())) << i;
  m.cost_epoll = 1000;
  m.cost_uring = 900;
  m.tells = true;
  m->Ended({.moved = 1000}, absl::ZeroDuration());
  ASSERT_TRUE(m.RunTrial());
  EXPECT_TRUE(m.Traced("uring serves from now on: it takes 10.0 % less"));
}

TEST_F(EngineControllerTest, AMoveThatDoesNotEndIsNotWaitedForForEver) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.tells = false;
  m.Step();
  ASSERT_EQ(m.Step().to, EngineKind::kUring);
  for (int i = 0; i < 8; ++i) ASSERT_TRUE(None(m.Step())) << i;
  EXPECT_EQ(m.Step().to, EngineKind::kEpoll);
  EXPECT_TRUE(m.Traced("back to epoll: streams are still on their way after 8 ticks"));
}

TEST_F(EngineControllerTest, AnEngineThatCannotBeHadEndsATrial) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.tells = false;
  m.Step();
  m.Step();
  m->Failed(absl::ResourceExhaustedError("no descriptor"));
  EXPECT_EQ(m.Step().to, EngineKind::kEpoll);
  EXPECT_TRUE(m.Traced("back to epoll: RESOURCE_EXHAUSTED: no descriptor"));
  m->Failed(absl::ResourceExhaustedError("no descriptor"));
  EXPECT_TRUE(m.Traced("no stream could be moved: RESOURCE_EXHAUSTED: no descriptor"));
}

TEST_F(EngineControllerTest, SomeMoreLateSlicesEndATrial) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  while (m->state() != AdaptState::kTrial) m.Step();
  int late = 0;
  while (m->state() == AdaptState::kTrial) {
    m.delay = absl::Milliseconds(m.serving() == EngineKind::kUring ? 21 : 0);
    m.Step();
    ASSERT_LT(++late, 20);
  }
  EXPECT_TRUE(m.Traced("back to epoll: turns come 21ms late"));
  EXPECT_EQ(m.serving(), EngineKind::kEpoll);
}

TEST_F(EngineControllerTest, AHostThatIsLateWithBothEndsNoTrial) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 900;
  while (m->state() != AdaptState::kTrial) m.Step();
  m.delay = absl::Milliseconds(200);
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->engine(), EngineKind::kUring);
}

TEST_F(EngineControllerTest, ATrialInWhichNoStreamMovesEnds) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.tells = false;
  m.Step();
  ASSERT_EQ(m.Step().to, EngineKind::kUring);
  m->Ended({}, absl::ZeroDuration());
  EXPECT_TRUE(None(m.Step())) << "there is nothing to take back";
  EXPECT_EQ(m->state(), AdaptState::kWatching);
  EXPECT_EQ(m->engine(), EngineKind::kEpoll);
  EXPECT_TRUE(m.Traced("epoll stays: no stream may go; no trial for 30s"));
  while (None(m.Step())) {
  }
  m->Ended({.ended = 3}, absl::ZeroDuration());
  EXPECT_TRUE(None(m.Step()));
  EXPECT_TRUE(m.Traced("epoll stays: 0 streams are now on uring, 0 were refused, 3 ended"));
  EXPECT_EQ(m->counts().trials, 2u);
  EXPECT_EQ(m->counts().returned, 2u);
  EXPECT_EQ(m->counts().sweeps, 0u);
}

// --- What others do ---

TEST_F(EngineControllerTest, AdoptsTheEngineThatOthersChose) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m->Adopt(EngineKind::kEpoll);
  EXPECT_TRUE(m->trace().empty()) << "it serves already";
  EXPECT_EQ(m->counts().adopted, 0u);
  m->Adopt(EngineKind::kUring);
  EXPECT_EQ(m->counts().adopted, 1u);
  EXPECT_EQ(m->engine(), EngineKind::kUring);
  EXPECT_TRUE(m.Traced("uring serves: others had every stream switched to it; no trial for 30s"));
  EXPECT_NEAR(m.SecondsUntilTrial(), 30, 1);
}

TEST_F(EngineControllerTest, WhatOthersChooseUndoesWhatWasFound) {
  AdaptedMachine m = Won();
  for (int i = 0; i < 20; ++i) m.Step();
  m->Adopt(EngineKind::kEpoll);
  EXPECT_NEAR(m.SecondsUntilTrial(), 30, 1) << "nothing is recalled";
}

TEST_F(EngineControllerTest, WhatOthersChooseEndsATrial) {
  for (const EngineKind chosen : {EngineKind::kEpoll, EngineKind::kUring}) {
    AdaptedMachine m = Make(EngineKind::kEpoll);
    while (m->state() != AdaptState::kTrial) m.Step();
    m->Adopt(chosen);
    EXPECT_EQ(m->state(), AdaptState::kWatching);
    EXPECT_EQ(m->engine(), chosen);
    EXPECT_EQ(m->NextTick(), absl::Seconds(1));
    const size_t lines = m->trace().size();
    m->Ended({.moved = 7}, absl::ZeroDuration());
    EXPECT_EQ(m->trace().size(), lines) << "its own sweep ended when theirs began";
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(None(m.Step())) << i;
  }
}

TEST_F(EngineControllerTest, NothingIsTriedOnceIoUringIsLost) {
  for (const AdaptState at : {AdaptState::kWatching, AdaptState::kCanary, AdaptState::kTrial}) {
    AdaptedMachine m = Make(EngineKind::kEpoll);
    while (m->state() != at) m.Step();
    m.lost = true;
    for (int i = 0; i < 1000; ++i) ASSERT_TRUE(None(m.Step()));
    EXPECT_EQ(m->engine(), EngineKind::kEpoll);
    EXPECT_EQ(m->state(), AdaptState::kWatching);
    EXPECT_EQ(m->switches(), 0u);
    EXPECT_NE(m->trace().back().find("uring has failed for good"), std::string::npos);
  }
}

TEST_F(EngineControllerTest, IoUringThatServedAndIsLostIsLeft) {
  AdaptedMachine m = Make(EngineKind::kUring);
  m.lost = true;
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(None(m.Step()));
  EXPECT_EQ(m->engine(), EngineKind::kEpoll);
  EXPECT_EQ(m->trace().size(), 1u);
}

// --- Options ---

TEST_F(EngineControllerTest, TheTraceIsBounded) {
  options_.trace_max = 5;
  options_.dwell = absl::ZeroDuration();
  AdaptedMachine m = Make(EngineKind::kEpoll);
  for (int i = 0; i < 1000; ++i) m.Step();
  EXPECT_EQ(m->trace().size(), 5u);
}

TEST_F(EngineControllerTest, ATraceMayBeNone) {
  options_.trace_max = 0;
  EXPECT_TRUE(Won()->trace().empty());
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
  refused([](AdaptiveOptions& o) { o.sustain = 0; }, "sustain");
  refused([](AdaptiveOptions& o) { o.busy = 1.1; }, "busy");
  refused([](AdaptiveOptions& o) { o.canary_part = 2; }, "canary_part");
  refused([](AdaptiveOptions& o) { o.slice = absl::ZeroDuration(); }, "slice");
  refused([](AdaptiveOptions& o) { o.slice = absl::InfiniteDuration(); }, "slice");
  refused([](AdaptiveOptions& o) { o.pairs_max = 7; }, "pairs_max");
  refused([](AdaptiveOptions& o) { o.gain = 1; }, "gain");
  refused([](AdaptiveOptions& o) { o.dwell_max = absl::ZeroDuration(); }, "dwell");
  refused([](AdaptiveOptions& o) { o.switches_max = 0; }, "switches_max");
  refused([](AdaptiveOptions& o) { o.window = absl::ZeroDuration(); }, "window");
}

}  // namespace
}  // namespace penstock::internal
