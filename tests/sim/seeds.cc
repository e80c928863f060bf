#include "sim/seeds.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "testing/sanitized.h"

namespace penstock::testing {
namespace {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* const text = std::getenv(name);
  uint64_t value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

std::string Report(const SeedPlan& plan, uint64_t seed, const ScenarioResult& result) {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  std::string text = absl::StrCat(
      "seed ", seed, "; to run it again:\n  PENSTOCK_SIM_SEED=", seed, " PENSTOCK_SIM_TRACE=1 ",
      error ? "tests/penstock_sim_tests" : self.string(), " --gtest_filter=", plan.replay_test);
  for (const std::string& violation : result.violations) absl::StrAppend(&text, "\n  ", violation);
  return text;
}

}  // namespace

void RunSeeds(const SeedPlan& plan, uint64_t part) {
  const uint64_t seeds = FromEnvironment("PENSTOCK_SIM_SEEDS", kThreadSanitized ? plan.seeds_tsan
                                                               : kSanitized     ? plan.seeds_asan
                                                                                : plan.seeds);
  const uint64_t first = FromEnvironment("PENSTOCK_SIM_FIRST_SEED", 1);
  const uint64_t from = first + seeds * part / plan.parts;
  const uint64_t to = first + seeds * (part + 1) / plan.parts;
  int failed = 0;
  ScenarioResult sum;
  for (uint64_t seed = from; seed < to && failed < 3; ++seed) {
    const ScenarioResult result = Scenario(plan.story(seed)).Run();
    if (!result.violations.empty()) {
      ++failed;
      ADD_FAILURE() << Report(plan, seed, result);
    }
    sum.streams += result.streams;
    sum.bytes += result.bytes;
    sum.clean_ends += result.clean_ends;
    sum.resets += result.resets;
    sum.deadlines += result.deadlines;
    sum.refused_connects += result.refused_connects;
    sum.switches += result.switches;
    sum.swaps += result.swaps;
    sum.migrations += result.migrations;
    sum.migrations_failed += result.migrations_failed;
  }
  if (failed > 0 || to - from < 50) return;
  // The stories are not empty.
  EXPECT_GT(sum.streams, to - from);
  EXPECT_GT(sum.bytes, (to - from) * 1000);
  EXPECT_GT(sum.clean_ends, 0u);
  EXPECT_GT(sum.resets, 0u);
  EXPECT_GT(sum.deadlines, 0u);
  EXPECT_GT(sum.refused_connects, 0u);
  EXPECT_GT(sum.switches, (to - from) / 4);
  EXPECT_GT(sum.migrations, (to - from) / 4);
  if (to - from < 200) return;
  EXPECT_GT(sum.migrations_failed, 0u);
  EXPECT_GT(sum.swaps, 0u);
}

void ReplaySeed(const SeedPlan& plan) {
  const uint64_t seed = FromEnvironment("PENSTOCK_SIM_SEED", 1);
  ScenarioOptions story = plan.story(seed);
  story.tracing = FromEnvironment("PENSTOCK_SIM_TRACE", 0) != 0;
  const ScenarioResult result = Scenario(story).Run();
  EXPECT_TRUE(result.violations.empty()) << Report(plan, seed, result);
}

void CompareStories(const SeedPlan& plan) {
  for (uint64_t seed = 1; seed <= (kThreadSanitized ? 5 : 50); ++seed) {
    const ScenarioResult once = Scenario(plan.story(seed)).Run();
    const ScenarioResult again = Scenario(plan.story(seed)).Run();
    EXPECT_EQ(once.trace_hash, again.trace_hash) << "seed " << seed;
    EXPECT_NE(once.trace_hash, Scenario(plan.story(seed + 1)).Run().trace_hash) << "seed " << seed;
  }
}

}  // namespace penstock::testing
