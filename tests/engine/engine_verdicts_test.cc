// What the controller believes of loads that it has tried, for how long, and what bounds its trials
// and its switches.
#include <gtest/gtest.h>

#include <cstdint>

#include "testing/adapted_machine.h"

namespace penstock::internal {
namespace {

using testing::AdaptedMachine;

class EngineVerdictsTest : public testing::AdaptedMachineTest {};

TEST_F(EngineVerdictsTest, AVerdictIsBelievedTwiceAsLongEachTimeItIsConfirmed) {
  options_.dwell = absl::Seconds(10);
  options_.dwell_max = absl::Seconds(500);
  AdaptedMachine m = Make(EngineKind::kEpoll);
  for (const int64_t believed : {100, 200, 400, 500, 500}) {
    ASSERT_TRUE(m.RunTrial()) << believed;
    EXPECT_NEAR(m.SecondsUntilTrial(), static_cast<double>(believed), 3) << m->trace().back();
  }
}

TEST_F(EngineVerdictsTest, AVerdictThatIsContradictedIsBelievedAsIfNew) {
  options_.dwell = absl::Seconds(10);
  AdaptedMachine m = Make(EngineKind::kEpoll);
  ASSERT_TRUE(m.RunTrial());
  EXPECT_NEAR(m.SecondsUntilTrial(), 100, 3);
  m.cost_uring = 900;
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->engine(), EngineKind::kUring);
  EXPECT_NEAR(m.SecondsUntilTrial(), 100, 3);
}

TEST_F(EngineVerdictsTest, AVerdictWithinItsNoiseIsBelievedForAShortTime) {
  options_.dwell = absl::Seconds(10);
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 985;
  m.spread = 0.1;
  ASSERT_TRUE(m.RunTrial());
  EXPECT_LT(m.SecondsUntilTrial(), 40) << m->trace().back();
}

TEST_F(EngineVerdictsTest, AnotherLoadIsTriedWhateverWasFoundOfThis) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  ASSERT_TRUE(m.RunTrial());
  m.open = 2500;
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(None(m.Step())) << "near to the one that was tried";
  m.open = 3500;
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->switches(), 0u) << "such trials take nothing from what may be switched";
  m.open = 1000;
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(None(m.Step())) << "still believed";
  m.batch = 1;
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->counts().trials, 3u);
}

TEST_F(EngineVerdictsTest, ALoadThatComesBackHasItsEngineWithoutATrial) {
  options_.switches_max = 100;
  AdaptedMachine m = Won();
  for (int i = 0; i < 20; ++i) m.Step();
  m.open = 1;
  m.batch = 1;
  m.cost_uring = 1200;
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->engine(), EngineKind::kEpoll);
  for (int i = 0; i < 4; ++i) {
    const bool many = i % 2 == 0;
    m.open = many ? 1000 : 1;
    m.batch = many ? 50 : 1;
    for (int tick = 0; tick < 3; ++tick) m.Step();
    EXPECT_EQ(m.serving(), many ? EngineKind::kUring : EngineKind::kEpoll);
  }
  EXPECT_EQ(m->counts().trials, 2u);
  EXPECT_EQ(m->counts().recalled, 4u);
  EXPECT_EQ(m->switches(), 6u);
  EXPECT_TRUE(m.Traced("uring serves from now on: a trial with such a load"));
}

// Each engine delivers the same load in turns of its own size.
TEST_F(EngineVerdictsTest, ALoadIsKnownAgainOnEitherEngine) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 900;
  m.batch = 200;
  m.batch_uring = 20;
  ASSERT_TRUE(m.RunTrial());
  ASSERT_EQ(m->engine(), EngineKind::kUring);
  for (int i = 0; i < 290; ++i) ASSERT_TRUE(None(m.Step())) << i;
}

TEST_F(EngineVerdictsTest, OfVerdictsThatAreNearTheNearestIsBelieved) {
  options_.switches_max = 100;
  AdaptedMachine m = Won();
  m.open = 3500;
  m.cost_uring = 1200;
  ASSERT_TRUE(m.RunTrial());
  ASSERT_EQ(m->engine(), EngineKind::kEpoll);
  m.open = 2500;
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(None(m.Step())) << "of 1000 another is believed";
  m.open = 1500;
  for (int i = 0; i < 3; ++i) m.Step();
  EXPECT_EQ(m.serving(), EngineKind::kUring);
  EXPECT_EQ(m->counts().trials, 2u);
}

// --- Trials that end undecided ---

TEST_F(EngineVerdictsTest, TrialsThatAreCutConfirmNothing) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 985;
  m.spread = 0.1;  // no trial ends within five seconds
  while (m.now() < absl::Minutes(20)) {
    m.open = absl::ToInt64Seconds(m.now()) / 5 % 2 == 0 ? 64 : 1000;
    m.Step();
  }
  EXPECT_GT(m->counts().trials, 10u);
  EXPECT_EQ(m->counts().kept, 0u);
  m.open = 1000;
  m.cost_uring = 900;
  ASSERT_LT(m.SecondsUntilTrial(), 60) << "the next dwell";
  ASSERT_TRUE(m.RunTrial());
  EXPECT_EQ(m->engine(), EngineKind::kUring);
}

TEST_F(EngineVerdictsTest, ATrialThatIsCutIsNotRecalled) {
  options_.dwell = absl::Minutes(5);
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 900;
  while (m->state() != AdaptState::kTrial) m.Step();
  m.rate = 0;
  ASSERT_TRUE(m.RunTrial());
  m.rate = 400'000;
  m.open = 64;
  ASSERT_TRUE(m.RunTrial());
  ASSERT_EQ(m->engine(), EngineKind::kUring);
  m.open = 1000;
  for (int i = 0; i < 60; ++i) ASSERT_TRUE(None(m.Step())) << "nothing is known of it";
  EXPECT_EQ(m->counts().recalled, 0u);
  EXPECT_LT(m.SecondsUntilTrial(), 300);
}

// --- What bounds trials ---

TEST_F(EngineVerdictsTest, ATrialThatTakesLongEndsWithThePairsThatItHas) {
  options_.slice = absl::Seconds(2);
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.cost_uring = 970;
  m.spread = 0.1;
  while (m->state() == AdaptState::kWatching) m.Step();
  const absl::Duration start = m.now();
  ASSERT_TRUE(m.RunTrial());
  EXPECT_GT(m.now() - start, absl::Seconds(59)) << "not within its noise before";
  EXPECT_LT(m.now() - start, absl::Seconds(70));
  EXPECT_TRUE(m.Traced("pairs of slices), believed for")) << m->trace().back();
}

TEST_F(EngineVerdictsTest, SlowTrialsAndTheirSweepsTakeHalfOfTheTimeAtMostAsWell) {
  for (const double rate : {300., 400'000.}) {
    AdaptedMachine m = Make(EngineKind::kEpoll);
    m.rate = rate;
    m.cost_epoll = m.cost_uring = 4e8 / rate;
    m.spread = 0.3;
    m.sweep_time = absl::Milliseconds(rate > 1000 ? 400 : 0);
    absl::Duration in_trial;
    while (m.now() < absl::Hours(1)) {
      const absl::Duration before = m.now();
      const uint64_t ended = m->counts().returned + m->counts().kept;
      m.Step();
      if (m->state() != AdaptState::kWatching) in_trial += m.now() - before;
      if (m->counts().returned + m->counts().kept > ended) {
        m.open = m.open > 1'000'000 ? 1 : m.open * 4;  // as soon as one has ended, another
      }
    }
    EXPECT_GT(m->counts().trials, 10u) << rate;
    EXPECT_LE(in_trial, absl::Hours(1) / 3 + absl::Minutes(2)) << rate;
  }
}

TEST_F(EngineVerdictsTest, TrialsTakeHalfOfTheTimeAtMost) {
  AdaptedMachine m = Make(EngineKind::kEpoll);
  m.spread = 0.1;
  m.cost_uring = 985;
  const absl::Duration start = m.now();
  absl::Duration in_trial;
  for (uint64_t open = 1; m.now() - start < absl::Minutes(10);) {
    const absl::Duration before = m.now();
    const uint64_t trials = m->counts().trials;
    m.Step();
    if (m->state() != AdaptState::kWatching) in_trial += m.now() - before;
    if (m->counts().trials != trials) open = open > 1'000'000 ? 1 : open * 4;
    if (m->state() == AdaptState::kWatching) m.open = open;  // as soon as one has ended, another
  }
  EXPECT_GT(m->counts().trials, 10u);
  EXPECT_LE(in_trial, absl::Minutes(10) / 2);
  EXPECT_GT(m->counts().held, 0u);
  EXPECT_TRUE(m.Traced("is due, but none begins for another"));
}

TEST_F(EngineVerdictsTest, OnceSwitchesAreSpentNothingIsTriedAndTheTraceSaysSoOnce) {
  options_.switches_max = 1;
  AdaptedMachine m = Won();
  const size_t before = m->trace().size();
  m.open = 1;
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(None(m.Step())) << i;
  EXPECT_EQ(m->trace().size(), before + 1) << "once";
  EXPECT_TRUE(
      m.Traced("uring: a trial of epoll is due, but 1 of at most 1 switches in 5m are made"));
  EXPECT_EQ(m->counts().held, 1u);
  for (int i = 0; i < 200; ++i) m.Step();
  EXPECT_EQ(m->counts().trials, 2u) << "five minutes later it is tried";
}

TEST_F(EngineVerdictsTest, ARecallCountsAndIsHeldAsWell) {
  options_.switches_max = 2;
  AdaptedMachine m = Won();
  for (int i = 0; i < 20; ++i) m.Step();
  m.open = 1;
  m.cost_uring = 1200;
  ASSERT_TRUE(m.RunTrial());
  ASSERT_EQ(m->engine(), EngineKind::kEpoll);
  m.open = 1000;
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(None(m.Step())) << i;
  EXPECT_TRUE(
      m.Traced("epoll: such a load is better served by uring, but 2 of at most 2 switches"));
  EXPECT_EQ(m->counts().held, 1u);
}

}  // namespace
}  // namespace penstock::internal
