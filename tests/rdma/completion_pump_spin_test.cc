// How a completion pump waits for more without sleeping, and when it stops.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gtest/gtest.h"
#include "testing/pump_kit.h"

namespace penstock::internal {
namespace {

using testing::Errand;
using testing::FakeCall;

class CompletionPumpSpinTest : public testing::PumpTest {};

TEST_P(CompletionPumpSpinTest, WhatASpinningTurnFindsIsActedOnBeforeTheLoopLooksElsewhere) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(50);
  Begin(std::move(options));
  if (IsSkipped()) return;
  uint64_t polls_by_then = 0;
  Errand errand([&] {
    recorder_.words.push_back(0);
    polls_by_then = pump_->stats().polls;
  });
  recorder_.then = [&] { loop_->core().DeferSoon(errand); };
  Brisk();
  // In the middle of a turn's looks: it has no more of them before somebody acts.
  int polls = 0;
  fabric_.set_on_call([&](FakeCall call) {
    if (call == FakeCall::kPoll && ++polls == 10) {
      Write(2);
      Deliver();
    }
  });
  size_t at_wait = 0;
  sys_.on_wait = [&] { at_wait = recorder_.words.size(); };
  recorder_.words.clear();
  const uint64_t before = pump_->stats().polls;
  EXPECT_TRUE(loop_->Poll());
  EXPECT_EQ(recorder_.words, (std::vector<uint32_t>{2, 0}));
  EXPECT_LE(polls_by_then, before + 12);
  if (GetParam() == EngineKind::kEpoll) {
    EXPECT_EQ(at_wait, 2u);
  }
}

TEST_P(CompletionPumpSpinTest, AnswersAreLookedForInTheSameStepButNotForEver) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(50);
  Begin(std::move(options));
  if (IsSkipped()) return;
  Brisk();
  // A peer that answers at once, for ever.
  Errand answer([&] {
    Write(2);
    Deliver();
  });
  recorder_.then = [&] { loop_->core().DeferSoon(answer); };
  size_t at_wait = 0;
  sys_.on_wait = [&] { at_wait = recorder_.words.size(); };
  recorder_.words.clear();
  Write(2);
  Deliver();
  EXPECT_TRUE(loop_->Poll());
  EXPECT_EQ(recorder_.words.size(), CompletionPump::kStepMax);
  if (GetParam() == EngineKind::kEpoll) {
    EXPECT_EQ(at_wait, CompletionPump::kStepMax);
  }
  recorder_.words.clear();
  EXPECT_TRUE(loop_->Poll());
  EXPECT_EQ(recorder_.words.size(), CompletionPump::kStepMax);
}

// Who waits for one send after the other asks for a turn of the pump from inside it.
TEST_P(CompletionPumpSpinTest, WhoWaitsForSendsDoesNotMakeAStepLonger) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(50);
  options.send_depth = 64;
  Begin(std::move(options));
  if (IsSkipped()) return;
  pump_->AwaitSends();
  Brisk();
  recorder_.then = [&] {
    pump_->ForgetSends();
    pump_->AwaitSends();
    Write(2);
    Deliver();
  };
  for (int turn = 0; turn < 3; ++turn) {
    recorder_.words.clear();
    if (turn == 0) {
      Write(2);
      Deliver();
    }
    loop_->Poll();
    EXPECT_GT(recorder_.words.size(), 0u);
    EXPECT_LE(recorder_.words.size(), CompletionPump::kTurnMax + CompletionPump::kStepMax);
  }
}

TEST_P(CompletionPumpSpinTest, AnEndThatWakesNobodyIsNotLookedBehindTwice) {
  CompletionPump::Options options;
  options.spin_max = absl::Milliseconds(50);
  Begin(std::move(options));
  if (IsSkipped()) return;
  Brisk();
  recorder_.words.clear();
  Write(2);
  Deliver();
  const uint64_t spins = pump_->stats().spins;
  loop_->Poll();
  EXPECT_EQ(recorder_.words.size(), 1u);
  EXPECT_EQ(pump_->stats().spins - spins, 1u);
}

TEST_P(CompletionPumpSpinTest, WhatComesInAStepThatGoesOnIsTimedAnew) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(50);
  Begin(std::move(options));
  if (IsSkipped()) return;
  Brisk();
  // Each answer takes as long as the beats before, though the turn has begun before all of them.
  int answers = 0;
  Errand answer([&] {
    if (++answers > 8) return;
    sys_.now_ns += 10'000;
    Write(2);
    Deliver();
  });
  recorder_.then = [&] { loop_->core().DeferSoon(answer); };
  recorder_.words.clear();
  Write(2);
  Deliver();
  loop_->Poll();
  EXPECT_EQ(recorder_.words.size(), 9u);
  EXPECT_GE(pump_->stats().spin_budget, absl::Microseconds(20));
  EXPECT_LE(pump_->stats().spin_budget, absl::Microseconds(21));
}

TEST_P(CompletionPumpSpinTest, AnAnswerThatComesLaterThanItsAcknowledgementIsWaitedFor) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(200);
  Begin(std::move(options));
  if (IsSkipped()) return;
  const auto arrive = [&](int64_t gap_ns) {
    for (int64_t left = gap_ns; left > 0; left -= 500) {
      sys_.now_ns += 500;
      loop_->Poll();
    }
    Write(1);
    Deliver();
    loop_->Poll();
  };
  for (int i = 0; i < 50; ++i) {
    arrive(500);
    arrive(40'000);
  }
  const PumpStats before = pump_->stats();
  for (int i = 0; i < 10; ++i) {
    arrive(500);
    arrive(40'000);
  }
  EXPECT_EQ(pump_->stats().sleeps, before.sleeps);
  EXPECT_EQ(pump_->stats().events, before.events);
}

TEST_P(CompletionPumpSpinTest, BriskTrafficIsPolledForAndPausesAreNot) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(50);
  Begin(std::move(options));
  if (IsSkipped()) return;
  const auto beat = [&](int64_t gap_ns) {
    sys_.now_ns += gap_ns;
    Write(1);
    Deliver();
    loop_->Poll();
  };
  // Far apart: sleeps each time.
  for (int i = 0; i < 10; ++i) beat(10'000'000);
  EXPECT_EQ(pump_->stats().spins, 0u);
  EXPECT_EQ(pump_->stats().spin_budget, absl::ZeroDuration());
  // Ten microseconds apart: awake until the next comes, so that no event is needed.
  for (int i = 0; i < 50; ++i) beat(10'000);
  EXPECT_GT(pump_->stats().spins, 10u);
  const uint64_t events = pump_->stats().events;
  for (int i = 0; i < 10; ++i) beat(10'000);
  EXPECT_EQ(pump_->stats().events, events);
  EXPECT_GE(pump_->stats().spin_budget, absl::Microseconds(20));
  EXPECT_LE(pump_->stats().spin_budget, absl::Microseconds(21));
  // A turn that waits so looks many times, for a turn costs a system call.
  const PumpStats before = pump_->stats();
  EXPECT_TRUE(loop_->Poll());
  EXPECT_EQ(pump_->stats().spins, before.spins + 1);
  EXPECT_GT(pump_->stats().polls, before.polls + 10);
  // Idle: after its budget it sleeps.
  sys_.now_ns += 25'000;
  Settle();
  EXPECT_FALSE(loop_->Poll());
  EXPECT_EQ(pump_->stats().spin_budget, absl::ZeroDuration());
  Write(2);
  Deliver();
  loop_->Poll();
  EXPECT_EQ(recorder_.words.back(), 2u);
}

TEST_P(CompletionPumpSpinTest, ASpinEndsWhenItsTimeHasPassed) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(50);
  Begin(std::move(options));
  if (IsSkipped()) return;
  Brisk();
  ASSERT_GE(pump_->stats().spin_budget, absl::Microseconds(20));
  // Each look takes a microsecond: twenty are due, and fewer than sixty are made.
  fabric_.set_on_call([&](FakeCall call) { sys_.now_ns += call == FakeCall::kPoll ? 1'000 : 0; });
  const uint64_t before = pump_->stats().polls;
  loop_->Poll();
  EXPECT_GE(pump_->stats().polls, before + 20);
  EXPECT_LT(pump_->stats().polls, before + 60);
}

INSTANTIATE_TEST_SUITE_P(, CompletionPumpSpinTest, testing::kPumpEngines, testing::PumpEngineName);

}  // namespace
}  // namespace penstock::internal
