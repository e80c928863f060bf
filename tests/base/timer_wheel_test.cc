#include "base/timer_wheel.h"

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace penstock::internal {
namespace {

constexpr size_t kUnlimited = std::numeric_limits<size_t>::max();

// Records the order in which it and its siblings fire.
struct Recorder : TimerNode {
  explicit Recorder(std::vector<Recorder*>& log) : TimerNode(&Recorder::Run), log(log) {}
  static void Run(TimerNode* node) {
    auto* self = static_cast<Recorder*>(node);
    EXPECT_FALSE(self->armed());
    self->log.push_back(self);
  }
  std::vector<Recorder*>& log;
};

TEST(TimerWheel, FiresAtItsTickAndNotBefore) {
  for (const uint64_t start : {uint64_t{0}, uint64_t{63}, uint64_t{64}, uint64_t{4095}}) {
    for (const uint64_t after : {0, 1, 62, 63, 64, 65, 127, 128, 4032, 4095, 4096, 262144}) {
      TimerWheel wheel(start);
      std::vector<Recorder*> log;
      Recorder node(log);
      wheel.Schedule(node, start + after);
      EXPECT_TRUE(node.armed());
      EXPECT_EQ(wheel.armed(), 1u);
      if (after > 0) {
        wheel.Advance(start + after - 1, kUnlimited);
        EXPECT_TRUE(log.empty()) << start << "+" << after;
        EXPECT_EQ(wheel.NextTick(), start + after);
      }
      EXPECT_EQ(wheel.Advance(start + after, kUnlimited), 1u);
      EXPECT_EQ(log.size(), 1u) << start << "+" << after;
      EXPECT_FALSE(node.armed());
      EXPECT_EQ(wheel.armed(), 0u);
      EXPECT_EQ(wheel.NextTick(), TimerWheel::kNever);
    }
  }
}

TEST(TimerWheel, EveryCascadeBoundaryKeepsTheExactTick) {
  std::vector<uint64_t> around;
  for (size_t level = 0; level < TimerWheel::kLevels; ++level) {
    const uint64_t span = uint64_t{1} << (level * TimerWheel::kSlotBits);
    for (const uint64_t tick : {span - 1, span, span + 1, 63 * span, 64 * span - 1}) {
      if (tick < TimerWheel::kLastTick) around.push_back(tick);
    }
  }
  for (const uint64_t start : around) {
    TimerWheel wheel(start);
    std::vector<Recorder*> log;
    std::deque<Recorder> nodes;
    std::multimap<uint64_t, Recorder*> expected;
    for (const uint64_t tick : around) {
      if (tick < start) continue;
      Recorder& node = nodes.emplace_back(log);
      wheel.Schedule(node, tick);
      expected.emplace(tick, &node);
    }
    // Driven by its own NextTick alone, it visits each deadline exactly.
    size_t waits = 0;
    for (uint64_t next; (next = wheel.NextTick()) != TimerWheel::kNever;) {
      ASSERT_LE(next, expected.begin()->first);
      wheel.Advance(next, kUnlimited);
      ASSERT_GT(wheel.NextTick(), next);
      for (Recorder* fired : std::exchange(log, {})) {
        ASSERT_EQ(fired->tick(), next);
        ASSERT_EQ(expected.begin()->first, next);
        expected.erase(expected.begin());
      }
      ++waits;
    }
    EXPECT_TRUE(expected.empty());
    EXPECT_LE(waits, around.size() * TimerWheel::kLevels);
  }
}

TEST(TimerWheel, AFarDeadlineCostsAtMostSixWaitsBeforeItsOwn) {
  std::mt19937_64 random(20);
  for (int round = 0; round < 1000; ++round) {
    const uint64_t start = random() >> (23 + random() % 40);
    TimerWheel wheel(start);
    std::vector<Recorder*> log;
    Recorder node(log);
    wheel.Schedule(node, start + (random() >> (23 + random() % 40)));
    int waits = 0;
    while (log.empty()) {
      wheel.Advance(wheel.NextTick(), kUnlimited);
      ++waits;
    }
    ASSERT_LE(waits, 7);
  }
}

TEST(TimerWheel, PastTicksFireInTheNextAdvance) {
  TimerWheel wheel(1000);
  std::vector<Recorder*> log;
  Recorder node(log);
  wheel.Schedule(node, 5);
  EXPECT_EQ(wheel.NextTick(), 1000u);
  EXPECT_EQ(wheel.Advance(1000, kUnlimited), 1u);
  wheel.Schedule(node, 1000);  // that tick is over
  EXPECT_EQ(wheel.Advance(1000, kUnlimited), 0u);
  EXPECT_EQ(wheel.Advance(1001, kUnlimited), 1u);
}

TEST(TimerWheel, AClockThatStandsOrStepsBackFiresNothing) {
  TimerWheel wheel(1000);
  std::vector<Recorder*> log;
  Recorder node(log);
  wheel.Schedule(node, 1010);
  EXPECT_EQ(wheel.Advance(1005, kUnlimited), 0u);
  EXPECT_EQ(wheel.Advance(1005, kUnlimited), 0u);
  EXPECT_EQ(wheel.Advance(900, kUnlimited), 0u);
  EXPECT_EQ(wheel.NextTick(), 1010u);
  EXPECT_EQ(wheel.Advance(1010, kUnlimited), 1u);
}

TEST(TimerWheel, ReschedulingMovesTheNode) {
  TimerWheel wheel(0);
  std::vector<Recorder*> log;
  Recorder node(log);
  wheel.Schedule(node, 10);
  wheel.Schedule(node, 100'000);
  EXPECT_EQ(wheel.armed(), 1u);
  EXPECT_EQ(wheel.Advance(99'999, kUnlimited), 0u);
  wheel.Schedule(node, 100'001);
  wheel.Schedule(node, 100'001);
  EXPECT_EQ(wheel.Advance(100'000, kUnlimited), 0u);
  EXPECT_EQ(wheel.Advance(100'001, kUnlimited), 1u);
}

TEST(TimerWheel, CancelledNodesNeverFire) {
  TimerWheel wheel(0);
  std::vector<Recorder*> log;
  Recorder near(log);
  Recorder far(log);
  wheel.Schedule(near, 10);
  wheel.Schedule(far, 1'000'000);
  wheel.Cancel(near);
  wheel.Cancel(far);
  wheel.Cancel(far);
  EXPECT_EQ(wheel.armed(), 0u);
  EXPECT_EQ(wheel.NextTick(), TimerWheel::kNever);
  EXPECT_EQ(wheel.Advance(2'000'000, kUnlimited), 0u);
}

TEST(TimerWheel, WhatIsCancelledCountsUntilItsTimeHasCome) {
  TimerWheel wheel(0);
  std::vector<Recorder*> log;
  Recorder soon(log), later(log);
  wheel.Schedule(soon, 10);
  wheel.Schedule(later, 40);
  wheel.Cancel(soon);
  EXPECT_EQ(wheel.NextTick(), 10u);
  EXPECT_EQ(wheel.Advance(9, kUnlimited), 0u);
  EXPECT_EQ(wheel.NextTick(), 10u);
  EXPECT_EQ(wheel.Advance(10, kUnlimited), 0u);
  EXPECT_EQ(wheel.NextTick(), 40u);
  // Not once nothing is left.
  wheel.Cancel(later);
  wheel.Schedule(later, 50);
  EXPECT_EQ(wheel.NextTick(), 50u);
  wheel.Cancel(later);
}

TEST(TimerWheel, TheLastTickIsNeverReached) {
  TimerWheel wheel(0);
  std::vector<Recorder*> log;
  Recorder node(log);
  wheel.Schedule(node, TimerWheel::kNever);
  EXPECT_EQ(node.tick(), TimerWheel::kLastTick);
  EXPECT_EQ(wheel.Advance(TimerWheel::kLastTick - 1, kUnlimited), 0u);
  wheel.Cancel(node);
}

TEST(TimerWheel, TheBudgetBoundsEveryCallAndKeepsTheOrder) {
  TimerWheel wheel(0);
  std::vector<Recorder*> log;
  std::deque<Recorder> nodes;
  for (int i = 0; i < 1000; ++i) {
    wheel.Schedule(nodes.emplace_back(log), 5000 + i % 10);
  }
  size_t fired = 0;
  int calls = 0;
  while (wheel.NextTick() <= 6000) {
    const size_t now = wheel.Advance(6000, 7);
    ASSERT_LE(now, 7u);
    fired += now;
    ++calls;
  }
  EXPECT_EQ(fired, 1000u);
  EXPECT_GE(calls, 1000 / 7);
  EXPECT_TRUE(std::is_sorted(log.begin(), log.end(),
                             [](Recorder* a, Recorder* b) { return a->tick() < b->tick(); }));
}

TEST(TimerWheel, ABudgetSpentInTheMiddleOfACascadeLosesNothing) {
  for (size_t budget = 1; budget < 20; ++budget) {
    TimerWheel wheel(0);
    std::vector<Recorder*> log;
    std::deque<Recorder> nodes;
    for (int i = 0; i < 50; ++i) wheel.Schedule(nodes.emplace_back(log), 4096 + (i * 37) % 4096);
    Recorder early(log);
    bool scheduled = false;
    while (wheel.NextTick() <= 9000) {
      wheel.Advance(9000, budget);
      // Into the range that is still being spread over the lower levels.
      if (!std::exchange(scheduled, true)) wheel.Schedule(early, 4100);
    }
    ASSERT_EQ(log.size(), 51u);
    ASSERT_TRUE(std::is_sorted(log.begin(), log.end(),
                               [](Recorder* a, Recorder* b) { return a->tick() < b->tick(); }));
  }
}

// Runs any function when it fires.
struct Scripted : TimerNode {
  explicit Scripted(std::function<void()> action = {})
      : TimerNode(&Scripted::Run), action(std::move(action)) {}
  static void Run(TimerNode* node) {
    auto* self = static_cast<Scripted*>(node);
    ++self->fired;
    if (self->action) self->action();
  }
  std::function<void()> action;
  int fired = 0;
};

TEST(TimerWheel, ACallbackMayCancelOthersOfItsOwnTick) {
  TimerWheel wheel(0);
  Scripted second;
  Scripted third;
  Scripted first([&] { wheel.Cancel(second); });
  wheel.Schedule(first, 10);
  wheel.Schedule(second, 10);
  wheel.Schedule(third, 10);
  EXPECT_EQ(wheel.Advance(10, kUnlimited), 2u);
  EXPECT_EQ(first.fired, 1);
  EXPECT_EQ(second.fired, 0);
  EXPECT_EQ(third.fired, 1);
}

TEST(TimerWheel, ACallbackMayMoveOthersOfItsOwnTick) {
  TimerWheel wheel(0);
  Scripted second;
  Scripted first([&] { wheel.Schedule(second, 20); });
  wheel.Schedule(first, 10);
  wheel.Schedule(second, 10);
  EXPECT_EQ(wheel.Advance(19, kUnlimited), 1u);
  EXPECT_EQ(second.fired, 0);
  EXPECT_EQ(wheel.NextTick(), 20u);
  EXPECT_EQ(wheel.Advance(20, kUnlimited), 1u);
}

TEST(TimerWheel, ACallbackThatArmsAgainAtOnceWaitsForTheNextTick) {
  TimerWheel wheel(0);
  Scripted node;
  node.action = [&] { wheel.Schedule(node, 0); };
  wheel.Schedule(node, 10);
  EXPECT_EQ(wheel.Advance(10, kUnlimited), 1u);
  EXPECT_EQ(wheel.NextTick(), 11u);
  EXPECT_EQ(wheel.Advance(10, kUnlimited), 0u);
  EXPECT_EQ(wheel.Advance(13, kUnlimited), 3u);
  wheel.Cancel(node);
}

TEST(TimerWheel, ACallbackMayDestroyItselfAndOthers) {
  TimerWheel wheel(0);
  auto first = std::make_unique<Scripted>();
  auto second = std::make_unique<Scripted>();
  first->action = [&] {
    wheel.Cancel(*second);
    second.reset();
    first.reset();
  };
  wheel.Schedule(*first, 10);
  wheel.Schedule(*second, 10);
  EXPECT_EQ(wheel.Advance(10, kUnlimited), 1u);
  EXPECT_EQ(first, nullptr);
  EXPECT_EQ(wheel.armed(), 0u);
}

TEST(TimerWheelDeathTest, AnArmedNodeMustNotBeDestroyed) {
  EXPECT_DEATH(
      {
        TimerWheel wheel(0);
        Scripted node;
        wheel.Schedule(node, 10);
      },
      "armed timer node");
}

// Random schedules, cancels and advances against a sorted map of what should fire when.
class Model {
 public:
  explicit Model(uint64_t seed) : random_(seed), now_(random_() >> (24 + random_() % 40)) {
    wheel_.emplace(now_);
    for (int i = 0; i < 200; ++i) nodes_.emplace_back(log_);
  }
  ~Model() {
    for (Recorder& node : nodes_) wheel_->Cancel(node);
  }

  void Step() {
    Recorder& node = nodes_[random_() % nodes_.size()];
    switch (random_() % 4) {
      case 0:
      case 1:
        Schedule(node, now_ + (random_() >> (24 + random_() % 40)));
        break;
      case 2:
        wheel_->Cancel(node);
        Forget(node);
        break;
      case 3:
        Advance();
        break;
    }
    ASSERT_EQ(wheel_->armed(), expected_.size());
    const uint64_t next = wheel_->NextTick();
    if (expected_.empty()) {
      ASSERT_EQ(next, TimerWheel::kNever);
    } else {
      ASSERT_LE(next, std::max(expected_.begin()->first, now_ + 1));
    }
  }

 private:
  void Forget(Recorder& node) {
    for (auto it = expected_.begin(); it != expected_.end(); ++it) {
      if (it->second == &node) {
        expected_.erase(it);
        return;
      }
    }
  }

  void Schedule(Recorder& node, uint64_t tick) {
    Forget(node);
    tick = std::min(std::max(tick, now_ + (advanced_ ? 1 : 0)), TimerWheel::kLastTick);
    wheel_->Schedule(node, tick);
    expected_.emplace(tick, &node);
  }

  void Advance() {
    uint64_t to = now_ + (random_() >> (24 + random_() % 40));
    if (random_() % 2 == 0 && !expected_.empty()) to = std::max(now_, expected_.begin()->first);
    to = std::min(to, TimerWheel::kLastTick - 1);
    now_ = to;
    advanced_ = true;
    const size_t budget = 1 + random_() % 50;
    do {
      ASSERT_LE(wheel_->Advance(to, budget), budget);
    } while (wheel_->NextTick() <= to);
    uint64_t last = 0;
    for (Recorder* fired : std::exchange(log_, {})) {
      ASSERT_GE(fired->tick(), last);
      last = fired->tick();
      ASSERT_LE(last, to);
      const auto [begin, end] = expected_.equal_range(last);
      const auto it = std::find_if(begin, end, [&](auto& entry) { return entry.second == fired; });
      ASSERT_NE(it, end);
      expected_.erase(it);
    }
    ASSERT_TRUE(expected_.empty() || expected_.begin()->first > to);
  }

  std::mt19937_64 random_;
  uint64_t now_;
  bool advanced_ = false;
  std::vector<Recorder*> log_;
  std::optional<TimerWheel> wheel_;
  std::deque<Recorder> nodes_;
  std::multimap<uint64_t, Recorder*> expected_;
};

TEST(TimerWheel, AgreesWithASortedMap) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    Model model(seed);
    for (int step = 0; step < 500; ++step) {
      model.Step();
      if (HasFatalFailure()) return;
    }
  }
}

TEST(TimerWheel, AMillionTimers) {
  constexpr size_t kCount = 1'000'000;
  TimerWheel wheel(12345);
  std::mt19937_64 random(7);
  static uint64_t fired_sum;
  fired_sum = 0;
  std::deque<TimerNode> nodes;
  uint64_t scheduled_sum = 0;
  for (size_t i = 0; i < kCount; ++i) {
    TimerNode& node = nodes.emplace_back([](TimerNode* node) { fired_sum += node->tick(); });
    const uint64_t tick = 12345 + random() % 600'000;  // ten minutes
    wheel.Schedule(node, tick);
    if (i % 4 == 0) {
      wheel.Cancel(node);
    } else {
      scheduled_sum += tick;
    }
  }
  EXPECT_EQ(wheel.armed(), kCount * 3 / 4);
  size_t fired = 0;
  for (uint64_t now = 12345; wheel.armed() > 0; now = wheel.NextTick()) {
    fired += wheel.Advance(now, 1000);
  }
  EXPECT_EQ(fired, kCount * 3 / 4);
  EXPECT_EQ(fired_sum, scheduled_sum);
}

TEST(TimerWheel, TicksAreRoundedSoThatNothingIsEarly) {
  EXPECT_EQ(TimerWheel::TickAt(1'999'999), 1u);
  EXPECT_EQ(TimerWheel::TickAtOrAfter(1'000'001), 2u);
  EXPECT_EQ(TimerWheel::TickAtOrAfter(2'000'000), 2u);
  EXPECT_EQ(TimerWheel::NsOfTick(3), 3'000'000);
  constexpr int64_t kNeverNs = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(TimerWheel::DeadlineNs(500, absl::Nanoseconds(7)), 507);
  EXPECT_EQ(TimerWheel::DeadlineNs(500, absl::Nanoseconds(1) / 4), 501);
  EXPECT_EQ(TimerWheel::DeadlineNs(500, -absl::Hours(1)), 500);
  EXPECT_EQ(TimerWheel::DeadlineNs(500, -absl::InfiniteDuration()), 500);
  EXPECT_EQ(TimerWheel::DeadlineNs(500, absl::Nanoseconds(kNeverNs - 501)), kNeverNs - 1);
  EXPECT_EQ(TimerWheel::DeadlineNs(500, absl::Nanoseconds(kNeverNs - 499)), kNeverNs);
  EXPECT_EQ(TimerWheel::DeadlineNs(500, absl::Hours(1e9)), kNeverNs);
  EXPECT_EQ(TimerWheel::DeadlineNs(500, absl::InfiniteDuration()), kNeverNs);
  EXPECT_EQ(TimerWheel::DeadlineTick(500'000, absl::Milliseconds(1)), 2u);
  EXPECT_EQ(TimerWheel::DeadlineTick(2'000'000, absl::Milliseconds(1)), 3u);
  EXPECT_EQ(TimerWheel::DeadlineTick(2'000'000, absl::Nanoseconds(1) / 4), 3u);
  EXPECT_EQ(TimerWheel::DeadlineTick(2'000'000, -absl::Seconds(1)), 2u);
  EXPECT_EQ(TimerWheel::DeadlineTick(2'000'000, absl::InfiniteDuration()), TimerWheel::kLastTick);
  EXPECT_EQ(TimerWheel::DeadlineTick(2'000'000, absl::Hours(1e9)), TimerWheel::kLastTick);
}

TEST(CallbackTimer, RunsItsCallbackOnce) {
  TimerWheel wheel(0);
  int ran = 0;
  CallbackTimer timer(wheel);
  EXPECT_FALSE(timer.armed());
  timer.Arm(5, [&] { ran += 1; });
  timer.Arm(10, [&] { ran += 10; });
  EXPECT_TRUE(timer.armed());
  wheel.Advance(9, kUnlimited);
  EXPECT_EQ(ran, 0);
  wheel.Advance(100, kUnlimited);
  EXPECT_EQ(ran, 10);
  EXPECT_FALSE(timer.armed());
}

TEST(CallbackTimer, ItsCallbackMayArmItAgainOrDestroyIt) {
  TimerWheel wheel(0);
  int ran = 0;
  auto timer = std::make_unique<CallbackTimer>(wheel);
  timer->Arm(5, [&] {
    ++ran;
    timer->Arm(8, [&] {
      ++ran;
      timer.reset();
      ++ran;  // what the callback holds lives until it returns
    });
  });
  wheel.Advance(100, kUnlimited);
  EXPECT_EQ(ran, 3);
  EXPECT_EQ(timer, nullptr);
}

TEST(CallbackTimer, CancellingDestroysTheCallback) {
  TimerWheel wheel(0);
  auto held = std::make_shared<int>(1);
  CallbackTimer timer(wheel);
  timer.Arm(5, [held] { FAIL(); });
  timer.Cancel();
  EXPECT_EQ(held.use_count(), 1);
  {
    CallbackTimer other(wheel);
    other.Arm(6, [held] { FAIL(); });
  }
  EXPECT_EQ(held.use_count(), 1);
  wheel.Advance(100, kUnlimited);
}

}  // namespace
}  // namespace penstock::internal
