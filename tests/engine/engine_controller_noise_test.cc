// The controller on loads that are noisy, that climb and that swing, by the seed: it has the better
// engine serve almost always, and changes it seldom, whatever comes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <random>
#include <vector>

#include "testing/adapted_machine.h"
#include "testing/environment.h"

namespace penstock::internal {
namespace {

using testing::AdaptedMachine;

const auto kNoiseSeeds = static_cast<uint64_t>(Scaled(1000));
const uint64_t kNoiseSeedsLost = kNoiseSeeds / 100;

EngineKind OtherOf(EngineKind engine) {
  return engine == EngineKind::kUring ? EngineKind::kEpoll : EngineKind::kUring;
}

// --- One load ---

// How many of kNoiseSeeds trials have `better` serve, which the other takes `less` than in noise.
uint64_t ServedByTheBetter(EngineKind serving, EngineKind better, double less, double spread) {
  uint64_t right = 0;
  for (uint64_t seed = 1; seed <= kNoiseSeeds; ++seed) {
    AdaptedMachine m(AdaptiveOptions{}, serving, seed);
    (better == EngineKind::kUring ? m.cost_uring : m.cost_epoll) *= 1 - less;
    m.spread = spread;
    m.RunTrial();
    right += m->engine() == better ? 1 : 0;
  }
  return right;
}

TEST(EngineControllerNoise, TheBetterEngineServesInNineHundredAndNinetyOfAThousand) {
  for (const EngineKind serving : {EngineKind::kEpoll, EngineKind::kUring}) {
    for (const double spread : {0.05, 0.1}) {
      EXPECT_GE(ServedByTheBetter(serving, serving, 0.08, spread), kNoiseSeeds - kNoiseSeedsLost)
          << spread;
      EXPECT_GE(ServedByTheBetter(serving, OtherOf(serving), 0.08, spread),
                kNoiseSeeds - kNoiseSeedsLost)
          << spread;
    }
  }
}

// --- A ramp ---

struct Plateau {
  uint64_t open;
  double batch;
  double cost_uring;  // epoll's is 1000
};

// One that takes as many switches as may be made: what has been tried must have cost none.
const std::vector<Plateau> kRamp = {
    {1, 1, 1050}, {64, 30, 920}, {1000, 150, 800}, {64, 30, 920}, {1, 1, 1050}};

// How many plateaus end with more than 3 % above what the better engine takes.
int LostOnTheRamp(uint64_t seed, double spread) {
  AdaptedMachine m(AdaptiveOptions{}, EngineKind::kUring, seed);
  m.spread = spread;
  int lost = 0;
  for (const Plateau& plateau : kRamp) {
    m.open = plateau.open;
    m.batch = plateau.batch;
    m.cost_uring = plateau.cost_uring;
    const absl::Duration end = m.now() + absl::Seconds(30);
    while (m.now() < end) m.Step();
    const double cost = m->engine() == EngineKind::kUring ? m.cost_uring : m.cost_epoll;
    lost += cost > 1.03 * std::min(m.cost_uring, m.cost_epoll) ? 1 : 0;
  }
  EXPECT_LE(m->switches(), 3u) << "in 150 s, seed " << seed;
  return lost;
}

TEST(EngineControllerNoise, EachPlateauOfARampHasItsEngine) {
  uint64_t seeds_lost = 0;
  for (uint64_t seed = 1; seed <= kNoiseSeeds; ++seed)
    seeds_lost += LostOnTheRamp(seed, 0.04) > 0 ? 1 : 0;
  EXPECT_LE(seeds_lost, kNoiseSeedsLost);
}

// --- Oscillation ---

struct Swing {
  uint64_t most = 0;  // switches in any five minutes
  uint64_t switches = 0;
};

// An hour of a load that swings between two, of which everything is drawn.
Swing RunSwing(uint64_t seed, double difference_max) {
  std::mt19937_64 random(seed);
  const auto draw = [&](double least, double most) {
    return std::uniform_real_distribution<double>(least, most)(random);
  };
  AdaptedMachine m(AdaptiveOptions{}, seed % 2 == 0 ? EngineKind::kUring : EngineKind::kEpoll,
                   seed);
  const double costs[] = {1000 * (1 + draw(-difference_max, difference_max)),
                          1000 * (1 + draw(-difference_max, difference_max))};
  m.spread = draw(0, 0.1);
  const absl::Duration half_period = absl::Seconds(draw(1, 60));
  std::deque<std::pair<absl::Duration, uint64_t>> window;
  Swing swing;
  while (m.now() < absl::Hours(1)) {
    const bool high = static_cast<int64_t>(absl::FDivDuration(m.now(), half_period)) % 2 == 0;
    m.open = high ? 1000 : 1;
    m.batch = high ? 50 : 1;
    m.cost_uring = costs[high ? 1 : 0];
    m.Step();
    window.emplace_back(m.now(), m->switches());
    while (window.front().first + absl::Minutes(5) <= m.now()) window.pop_front();
    swing.most = std::max(swing.most, m->switches() - window.front().second);
  }
  swing.switches = m->switches();
  return swing;
}

TEST(EngineControllerNoise, ThreeSwitchesInFiveMinutesOfOscillationAtMost) {
  const auto kHours = static_cast<uint64_t>(Scaled(50));
  for (const double difference : {0.3, 0.08, 0.02}) {
    uint64_t switches = 0;
    for (uint64_t seed = 1; seed <= kHours; ++seed) {
      const Swing swing = RunSwing(seed, difference);
      EXPECT_LE(swing.most, 3u) << "seed " << seed << ", differences of up to " << difference;
      switches += swing.switches;
    }
    EXPECT_GT(switches, difference == 0.3 ? kHours : 0) << "it never switches at all";
  }
}

}  // namespace
}  // namespace penstock::internal
