// Many seeds of the simulation, and one of them again: see docs/testing.md.
#include "sim/seeds.h"

#include <gtest/gtest.h>

namespace penstock::testing {
namespace {

const SeedPlan& Plan() {
  static const SeedPlan plan{
      .seeds = 10'000,
      .seeds_asan = 2'000,
      .seeds_tsan = 200,
      .parts = 20,
      .replay_test = "Sim.Replay",
      .story = [](uint64_t seed) { return ScenarioOptions{.seed = seed}; },
  };
  return plan;
}

class SimSeeds : public ::testing::TestWithParam<uint64_t> {};

TEST_P(SimSeeds, HoldTheContract) { RunSeeds(Plan(), GetParam()); }

INSTANTIATE_TEST_SUITE_P(Parts, SimSeeds, ::testing::Range<uint64_t>(0, Plan().parts));

TEST(Sim, SameSeedIsTheSameStory) { CompareStories(Plan()); }

TEST(Sim, Replay) { ReplaySeed(Plan()); }

}  // namespace
}  // namespace penstock::testing
