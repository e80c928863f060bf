// Trials of engines by costs made up here: what noise of each kind does to the verdict, and how
// long it takes.
#include "engine/engine_trial.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>

#include "testing/environment.h"

namespace penstock::internal {
namespace {

constexpr double kTrialGain = 0.02;
constexpr size_t kTrialPairsMax = 72;
const auto kTrialSeeds = static_cast<uint64_t>(Scaled(1000));

// Slices on one engine after the other, in pairs as EngineController makes them.
struct TrialNoise {
  double saving = 0;    // of the engine that is tried
  double spread = 0;    // of one slice, as a part of what it costs
  double drift = 0;     // what a slice costs more than the one before, as a part
  double outliers = 0;  // part of the slices that cost three times as much
};

struct TrialEnd {
  bool saves;
  size_t pairs;
};

TrialEnd RunNoisy(const TrialNoise& noise, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, noise.spread);
  std::bernoulli_distribution outlier(noise.outliers);
  double level = 1;
  const auto slice = [&](double cost) {
    level *= 1 + noise.drift;
    const double around = std::max(1 + normal(random), 0.1);
    return cost * level * around * (outlier(random) ? 3 : 1);
  };
  EngineTrial trial(kTrialGain, kTrialPairsMax);
  for (bool tried_first = true; trial.Judge() == TrialVerdict::kOpen; tried_first = !tried_first) {
    const double first = slice(tried_first ? 1 - noise.saving : 1);
    const double second = slice(tried_first ? 1 : 1 - noise.saving);
    trial.Add(tried_first ? second : first, tried_first ? first : second);
  }
  return {trial.Judge() == TrialVerdict::kSaves, trial.pairs()};
}

// How many of kTrialSeeds trials end so.
uint64_t EndsThatSave(const TrialNoise& noise) {
  uint64_t saves = 0;
  for (uint64_t seed = 1; seed <= kTrialSeeds; ++seed) saves += RunNoisy(noise, seed).saves ? 1 : 0;
  return saves;
}

TEST(EngineTrial, TheBetterEngineIsFoundInNoise) {
  for (const double spread : {0.05, 0.1}) {
    EXPECT_GE(EndsThatSave({.saving = 0.08, .spread = spread}), kTrialSeeds * 99 / 100) << spread;
    EXPECT_LE(EndsThatSave({.saving = -0.08, .spread = spread}), kTrialSeeds / 100) << spread;
  }
}

TEST(EngineTrial, SlicesInWhichTheMachineStoodStillDecideNothing) {
  const TrialNoise noise = {.spread = 0.05, .outliers = 0.05};
  for (const double saving : {0.08, -0.08}) {
    TrialNoise one = noise;
    one.saving = saving;
    const uint64_t saves = EndsThatSave(one);
    EXPECT_GE(saving > 0 ? saves : kTrialSeeds - saves, kTrialSeeds * 99 / 100) << saving;
  }
}

TEST(EngineTrial, DriftOfTheLoadIsTheSameForBoth) {
  for (const double drift : {0.05, -0.05}) {
    EXPECT_GE(EndsThatSave({.saving = 0.08, .spread = 0.05, .drift = drift}),
              kTrialSeeds * 99 / 100);
    EXPECT_LE(EndsThatSave({.saving = -0.01, .spread = 0.02, .drift = drift}), kTrialSeeds / 100);
  }
}

TEST(EngineTrial, EnginesThatAreAlikeAreSeldomTakenForBetter) {
  for (const double spread : {0.02, 0.05, 0.1}) {
    EXPECT_LE(EndsThatSave({.saving = 0, .spread = spread}), kTrialSeeds / 10) << spread;
  }
}

TEST(EngineTrial, WithoutNoiseItEndsAtOnceAndInNoiseLater) {
  EXPECT_EQ(RunNoisy({.saving = 0.08}, 1).pairs, EngineTrial::kPairsMin);
  EXPECT_EQ(RunNoisy({.saving = 0}, 1).pairs, EngineTrial::kPairsMin);
  const TrialNoise noisy = {.saving = 0.08, .spread = 0.1};
  size_t most = 0, pairs = 0;
  for (uint64_t seed = 1; seed <= kTrialSeeds; ++seed) {
    const size_t taken = RunNoisy(noisy, seed).pairs;
    most = std::max(most, taken);
    pairs += taken;
  }
  EXPECT_LE(most, kTrialPairsMax);
  EXPECT_GT(most, 5 * EngineTrial::kPairsMin);
  EXPECT_GT(pairs / kTrialSeeds, 2 * EngineTrial::kPairsMin);
}

TEST(EngineTrial, AGainIsKeptFromWhatWasAskedForOn) {
  EXPECT_FALSE(RunNoisy({.saving = 0.019}, 1).saves);
  EXPECT_TRUE(RunNoisy({.saving = 0.021}, 1).saves);
}

TEST(EngineTrial, TellsWhatItFoundAndHowSurely) {
  EngineTrial sure(kTrialGain, kTrialPairsMax);
  EngineTrial unsure(kTrialGain, kTrialPairsMax);
  for (int i = 0; i < 20; ++i) {
    sure.Add(1000, 900);
    unsure.Add(1000, i % 2 == 0 ? 800 : 1000);
  }
  EXPECT_NEAR(sure.saving(), 0.1, 1e-9);
  EXPECT_NEAR(sure.error(), 0, 1e-9);
  EXPECT_EQ(sure.confidence(), 10);
  EXPECT_NEAR(unsure.saving(), 1 - std::sqrt(0.8), 1e-9);
  EXPECT_GT(unsure.error(), 0.02);
  EXPECT_LT(unsure.confidence(), 4);
  EXPECT_EQ(unsure.pairs(), 20u);
}

}  // namespace
}  // namespace penstock::internal
