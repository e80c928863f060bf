// Many seeds of the simulation, and one of them again: see docs/testing.md.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "sim/scenario.h"
#include "testing/sanitized.h"

namespace penstock::testing {
namespace {

constexpr uint64_t kSeeds = kSanitized ? 2'000 : 10'000;
constexpr uint64_t kParts = 20;

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* const text = std::getenv(name);
  uint64_t value = 0;
  return text != nullptr && absl::SimpleAtoi(text, &value) ? value : otherwise;
}

std::string Report(uint64_t seed, const ScenarioResult& result) {
  std::string text = absl::StrCat("seed ", seed, "; to run it again:\n  ", ReplayCommand(seed));
  for (const std::string& violation : result.violations) absl::StrAppend(&text, "\n  ", violation);
  return text;
}

class SimSeeds : public ::testing::TestWithParam<uint64_t> {};

TEST_P(SimSeeds, HoldTheContract) {
  const uint64_t seeds = FromEnvironment("PENSTOCK_SIM_SEEDS", kSeeds);
  const uint64_t first = FromEnvironment("PENSTOCK_SIM_FIRST_SEED", 1);
  const uint64_t from = first + seeds * GetParam() / kParts;
  const uint64_t to = first + seeds * (GetParam() + 1) / kParts;
  int failed = 0;
  ScenarioResult sum;
  for (uint64_t seed = from; seed < to && failed < 3; ++seed) {
    const ScenarioResult result = Scenario({.seed = seed}).Run();
    if (!result.violations.empty()) {
      ++failed;
      ADD_FAILURE() << Report(seed, result);
    }
    sum.streams += result.streams;
    sum.bytes += result.bytes;
    sum.clean_ends += result.clean_ends;
    sum.resets += result.resets;
    sum.deadlines += result.deadlines;
    sum.refused_connects += result.refused_connects;
    sum.switches += result.switches;
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
}

INSTANTIATE_TEST_SUITE_P(Parts, SimSeeds, ::testing::Range<uint64_t>(0, kParts));

TEST(Sim, SameSeedIsTheSameStory) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    const ScenarioResult once = Scenario({.seed = seed}).Run();
    const ScenarioResult again = Scenario({.seed = seed}).Run();
    EXPECT_EQ(once.trace_hash, again.trace_hash) << "seed " << seed;
    EXPECT_NE(once.trace_hash, Scenario({.seed = seed + 1}).Run().trace_hash) << "seed " << seed;
  }
}

TEST(Sim, Replay) {
  const uint64_t seed = FromEnvironment("PENSTOCK_SIM_SEED", 1);
  const bool tracing = FromEnvironment("PENSTOCK_SIM_TRACE", 0) != 0;
  const ScenarioResult result = Scenario({.seed = seed, .tracing = tracing}).Run();
  EXPECT_TRUE(result.violations.empty()) << Report(seed, result);
}

}  // namespace
}  // namespace penstock::testing
