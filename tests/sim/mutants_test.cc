// The simulation must see what it is there to see: each deliberately broken engine must be caught
// within a few hundred seeds.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>

#include "sim/scenario.h"
#include "testing/sanitized.h"

namespace penstock::testing {
namespace {

struct Mutant {
  const char* name;
  SimMutant mutant;
  const char* words;  // in one of the sentences that convict it
};

constexpr Mutant kMutants[] = {
    {"DropLateData", SimMutant::kDropLateData, "wrong bytes"},
    {"ResetAsEof", SimMutant::kResetAsEof, "end of stream"},
    {"EndOvertakes", SimMutant::kEndOvertakes, "end of stream after"},
    {"RepeatBytes", SimMutant::kRepeatBytes, "wrong bytes"},
    {"LoseWakeup", SimMutant::kLoseWakeup, "does not end"},
    {"LeakBuffer", SimMutant::kLeakBuffer, "pool"},
    {"SkipTerminal", SimMutant::kSkipTerminal, "wrong bytes"},
    {"TwoOwners", SimMutant::kTwoOwners, "wrong bytes"},
};

class SimMutants : public ::testing::TestWithParam<Mutant> {};

TEST_P(SimMutants, IsCaught) {
  if (kThreadSanitized) GTEST_SKIP() << kNoThreads;
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    const ScenarioResult result = Scenario({.seed = seed, .mutant = GetParam().mutant}).Run();
    for (const std::string& violation : result.violations) {
      if (violation.find(GetParam().words) != std::string::npos) return;
    }
  }
  FAIL() << "500 seeds did not see the mutant " << GetParam().name;
}

INSTANTIATE_TEST_SUITE_P(All, SimMutants, ::testing::ValuesIn(kMutants),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace penstock::testing
