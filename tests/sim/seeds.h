// Seeds: runs many stories of the simulation, or one of them again, and reports what is wrong with
// the command that tells it again.
//
// PENSTOCK_SIM_SEEDS and PENSTOCK_SIM_FIRST_SEED choose how many and which; PENSTOCK_SIM_SEED and
// PENSTOCK_SIM_TRACE are for one.
#ifndef PENSTOCK_TESTS_SIM_SEEDS_H_
#define PENSTOCK_TESTS_SIM_SEEDS_H_

#include <cstdint>
#include <functional>
#include <string>

#include "sim/scenario.h"

namespace penstock::testing {

struct SeedPlan {
  // Seeds, and how many of them when AddressSanitizer sees more in each and takes ten times as
  // long, and when ThreadSanitizer, which takes longer still, has one thread to look at.
  uint64_t seeds = 0;
  uint64_t seeds_asan = 0;
  uint64_t seeds_tsan = 0;
  uint64_t parts = 1;
  // The test that runs one seed again.
  std::string replay_test;
  std::function<ScenarioOptions(uint64_t seed)> story;
};

// Runs part `part` of the plan; adds a failure for each of the first seeds that went wrong, and
// when the stories are empty.
void RunSeeds(const SeedPlan& plan, uint64_t part);
// Runs the one that the environment names.
void ReplaySeed(const SeedPlan& plan);
// Runs some twice: the same seed is the same story, and another one another.
void CompareStories(const SeedPlan& plan);

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_SIM_SEEDS_H_
