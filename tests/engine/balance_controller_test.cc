// The balancer's rules by loads made up here: who gives to whom, sustaining, what halves the
// difference, resting when nothing could go, loops that do not tell.
#include "engine/balance_controller.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace penstock::internal {
namespace {

using Busy = BalanceController::Busy;
using Action = BalanceController::Action;
using Kind = Action::Kind;

class BalanceControllerTest : public ::testing::Test {
 protected:
  BalanceController Make() { return BalanceController(options_); }
  // Ticks with that load until something is asked for; how many that took, 0 for never.
  static int TicksUntil(BalanceController& c, const std::vector<Busy>& loops, Kind kind,
                        Action* action = nullptr) {
    for (int i = 1; i <= 1000; ++i) {
      c.Pass(absl::Seconds(1));
      const Action asked = c.Tick(loops);
      if (asked.kind == kind) {
        if (action != nullptr) *action = asked;
        return i;
      }
      EXPECT_EQ(asked.kind, Kind::kNone) << "at tick " << i;
    }
    return 0;
  }

  BalanceOptions options_;
};

TEST_F(BalanceControllerTest, TheTable) {
  using S = BalanceState;
  const S rows[kBalanceStates][kBalanceEvents] = {
      {S::kObserving, S::kWatching, S::kWatching},
      {S::kMoving, S::kWatching, S::kObserving},
      {S::kMoving, S::kMoving, S::kWatching},
  };
  for (size_t state = 0; state < kBalanceStates; ++state) {
    for (size_t event = 0; event < kBalanceEvents; ++event) {
      EXPECT_EQ(kBalanceTransitions[state][event], rows[state][event]) << state << " " << event;
    }
  }
}

TEST_F(BalanceControllerTest, TheBusiestGivesTheLeastBusyHalfOfWhatTheyDifferBy) {
  BalanceController c = Make();
  const std::vector<Busy> loops = {0.5, 0.9, 0.3, 0.4};
  EXPECT_EQ(TicksUntil(c, loops, Kind::kObserve), 3);
  Action action;
  EXPECT_EQ(TicksUntil(c, loops, Kind::kMove, &action), 1);
  EXPECT_EQ(action.from, 1u);
  EXPECT_EQ(action.to, 2u);
  EXPECT_NEAR(action.part, 0.3 / 0.9, 1e-9);
  EXPECT_EQ(c.state(), BalanceState::kMoving);
  EXPECT_EQ(c.Tick(loops).kind, Kind::kNone) << "one decision at a time";
  c.Ended({.moved = 12}, 0.31);
  EXPECT_EQ(c.moves(), 12u);
  ASSERT_EQ(c.trace().size(), 1u);
  EXPECT_EQ(
      c.trace().front(),
      "4s loop 1 is busy for 90 % of the time and loop 2 for 30 %, for 4 ticks: 12 streams with "
      "31 % of its traffic go");
  EXPECT_EQ(TicksUntil(c, loops, Kind::kObserve), 3) << "watched anew after a move";
}

TEST_F(BalanceControllerTest, ADifferenceThatDoesNotLastMovesNothing) {
  BalanceController c = Make();
  const std::vector<Busy> apart = {0.9, 0.1};
  const std::vector<Busy> near = {0.6, 0.4};
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(c.Tick(apart).kind, Kind::kNone);
    EXPECT_EQ(c.Tick(apart).kind, Kind::kNone);
    EXPECT_EQ(c.Tick(near).kind, Kind::kNone);
  }
  // Nor one that ends while the traffic is looked at.
  EXPECT_EQ(TicksUntil(c, apart, Kind::kObserve), 3);
  EXPECT_EQ(c.Tick(near).kind, Kind::kNone);
  EXPECT_EQ(c.state(), BalanceState::kWatching);
  ASSERT_EQ(c.trace().size(), 1u) << "what had begun";
  EXPECT_EQ(c.trace().front(),
            "3s streams of loop 0 were looked at, but it is not much busier than another any more: "
            "none goes");
  EXPECT_EQ(c.counts().held, 1u);
}

TEST_F(BalanceControllerTest, AnotherBusiestLoopBeginsAnew) {
  BalanceController c = Make();
  EXPECT_EQ(c.Tick(std::vector<Busy>{0.9, 0.1}).kind, Kind::kNone);
  EXPECT_EQ(c.Tick(std::vector<Busy>{0.9, 0.1}).kind, Kind::kNone);
  EXPECT_EQ(TicksUntil(c, {0.1, 0.9}, Kind::kObserve), 3);
  EXPECT_TRUE(c.trace().empty());
  // And while the traffic of one is looked at.
  EXPECT_EQ(TicksUntil(c, {0.9, 0.1}, Kind::kObserve), 3);
  ASSERT_EQ(c.trace().size(), 1u);
  EXPECT_EQ(c.trace().front(),
            "4s streams of loop 1 were looked at, but loop 0 is the busiest: none goes");
}

TEST_F(BalanceControllerTest, SaysThatTheOneItLookedAtIsLeftOut) {
  BalanceController c = Make();
  EXPECT_EQ(TicksUntil(c, {0.9, 0.1}, Kind::kObserve), 3);
  EXPECT_EQ(c.Tick(std::vector<Busy>{std::nullopt, 0.1}).kind, Kind::kNone);
  ASSERT_EQ(c.trace().size(), 1u);
  EXPECT_EQ(c.trace().front(),
            "3s streams of loop 0 were looked at, but it is left out now: none goes");
}

TEST_F(BalanceControllerTest, SaysOnceInARestWhyADifferenceIsNotAnswered) {
  options_.rest = 10;
  BalanceController c = Make();
  const std::vector<Busy> loops = {0.9, 0.1};
  ASSERT_EQ(TicksUntil(c, loops, Kind::kObserve), 3);
  for (const size_t rests : {1u, 2u}) {
    ASSERT_EQ(TicksUntil(c, loops, Kind::kMove), 1);
    c.Ended({}, 0);
    EXPECT_GT(TicksUntil(c, loops, Kind::kObserve), 3);
    EXPECT_EQ(c.trace().size(), 2 * rests) << "what came of it, and that it rests";
    EXPECT_EQ(c.counts().held, rests);
  }
  EXPECT_EQ(c.trace()[1],
            "7s loop 0 is busy for 90 % of the time and loop 1 for 10 %, for 3 ticks, but no "
            "stream is asked for another 7 ticks (rest)");
}

TEST_F(BalanceControllerTest, TellsOfLoopsThatAreLeftOut) {
  BalanceController c = Make();
  c.Pass(absl::Seconds(90));
  c.LeaveOut(2, BalanceAbsence::kPolls);
  c.LeaveOut(0, BalanceAbsence::kLate);
  c.TakeIn(0);
  c.LeaveOut(0, BalanceAbsence::kGone);
  ASSERT_EQ(c.trace().size(), 4u);
  EXPECT_NE(c.trace()[0].find("1m30s loop 2 is left out: it has a LoopOptions::busy_poll"),
            std::string::npos);
  EXPECT_EQ(c.trace()[1], "1m30s loop 0 is left out: it does not come to answer");
  EXPECT_EQ(c.trace()[2], "1m30s loop 0 answers again");
  EXPECT_EQ(c.trace()[3], "1m30s loop 0 is left out: it has gone");
}

TEST_F(BalanceControllerTest, RestsLongerEachTimeNothingCouldGo) {
  options_.rest = 10;
  options_.rest_max = 35;
  BalanceController c = Make();
  const std::vector<Busy> loops = {0.9, 0.1};
  ASSERT_EQ(TicksUntil(c, loops, Kind::kObserve), 3);
  for (const int rest : {10, 20, 35, 35}) {
    ASSERT_EQ(TicksUntil(c, loops, Kind::kMove), 1);
    c.Ended({}, 0);
    EXPECT_EQ(TicksUntil(c, loops, Kind::kObserve), rest);
  }
  EXPECT_EQ(c.moves(), 0u);
  EXPECT_NE(c.trace().back().find("rest"), std::string::npos);
  EXPECT_NE(c.trace()[c.trace().size() - 2].find("none is asked for 35 ticks"), std::string::npos);
  ASSERT_EQ(TicksUntil(c, loops, Kind::kMove), 1);
  c.Ended({.moved = 1}, 0.1);
  EXPECT_EQ(TicksUntil(c, loops, Kind::kObserve), 3) << "what could go ends the rests";
  EXPECT_EQ(c.counts().none, 4u);
  EXPECT_EQ(c.counts().moved, 1u);
}

TEST_F(BalanceControllerTest, WhatIsGivenUpRestsAndMayArriveLate) {
  options_.rest = 10;
  BalanceController c = Make();
  const std::vector<Busy> loops = {0.9, 0.1};
  ASSERT_EQ(TicksUntil(c, loops, Kind::kObserve), 3);
  for (const bool begun : {false, true}) {
    ASSERT_EQ(TicksUntil(c, loops, Kind::kMove), 1);
    c.GaveUp(8, begun);
    EXPECT_EQ(c.state(), BalanceState::kWatching);
    EXPECT_NE(c.trace().back().find(begun ? "after 8 ticks streams are still on their way"
                                          : "after 8 ticks the loop has not come to it"),
              std::string::npos)
        << c.trace().back();
    EXPECT_EQ(TicksUntil(c, loops, Kind::kObserve), begun ? 20 : 10);
  }
  c.Late({});
  EXPECT_EQ(c.trace().size(), 4u) << "nobody has arrived";
  c.Late({.moved = 3});
  EXPECT_NE(c.trace().back().find(" 3 streams have arrived after all"), std::string::npos);
  EXPECT_EQ(c.moves(), 3u);
  EXPECT_EQ(c.counts().given_up, 2u);
}

TEST_F(BalanceControllerTest, LoopsThatDoNotTellCountForNothing) {
  BalanceController c = Make();
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(c.Tick(std::vector<Busy>{std::nullopt, std::nullopt}).kind, Kind::kNone);
    EXPECT_EQ(c.Tick(std::vector<Busy>{std::nullopt, 0.9}).kind, Kind::kNone);
  }
  Action action;
  EXPECT_EQ(TicksUntil(c, {std::nullopt, 0.2, 0.9}, Kind::kObserve, &action), 3);
  EXPECT_EQ(action.from, 2u);
  EXPECT_EQ(action.to, 1u);
}

TEST_F(BalanceControllerTest, KeepsABoundedTrace) {
  options_.trace_max = 5;
  options_.rest = options_.rest_max = 1;
  BalanceController c = Make();
  for (int i = 0; i < 20; ++i) {
    ASSERT_NE(TicksUntil(c, {0.9, 0.1}, Kind::kObserve), 0);
    ASSERT_NE(TicksUntil(c, {0.9, 0.1}, Kind::kMove), 0);
    c.Ended({.moved = static_cast<uint64_t>(i)}, 0);
  }
  ASSERT_EQ(c.trace().size(), 5u);
  EXPECT_NE(c.trace().back().find("19 streams"), std::string::npos);
}

TEST_F(BalanceControllerTest, RefusesOptionsThatMakeNoSense) {
  const auto refused = [](auto change) {
    BalanceOptions options;
    change(options);
    return absl::IsInvalidArgument(BalanceController::Check(options));
  };
  EXPECT_TRUE(BalanceController::Check({}).ok());
  EXPECT_TRUE(refused([](BalanceOptions& o) { o.tick = absl::ZeroDuration(); }));
  EXPECT_TRUE(refused([](BalanceOptions& o) { o.tick = absl::InfiniteDuration(); }));
  EXPECT_TRUE(refused([](BalanceOptions& o) { o.difference = 0; }));
  EXPECT_TRUE(refused([](BalanceOptions& o) { o.difference = 1; }));
  EXPECT_TRUE(refused([](BalanceOptions& o) { o.sustain = 0; }));
  EXPECT_TRUE(refused([](BalanceOptions& o) { o.streams_max = 0; }));
  EXPECT_TRUE(refused([](BalanceOptions& o) { o.observed_max = 0; }));
  EXPECT_TRUE(refused([](BalanceOptions& o) { o.rest = 0; }));
  EXPECT_TRUE(refused([](BalanceOptions& o) { o.rest_max = o.rest - 1; }));
}

}  // namespace
}  // namespace penstock::internal
