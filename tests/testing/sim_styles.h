// Both styles of the simulated engine, for tests that are to hold over each.
#ifndef PENSTOCK_TESTS_TESTING_SIM_STYLES_H_
#define PENSTOCK_TESTS_TESTING_SIM_STYLES_H_

#include <string>

#include <gtest/gtest.h>

#include "testing/sim_world.h"

namespace penstock::testing {

inline auto SimStyles() { return ::testing::Values(SimStyle::kReadiness, SimStyle::kCompletion); }

inline std::string SimStyleName(const ::testing::TestParamInfo<SimStyle>& info) {
  return info.param == SimStyle::kReadiness ? "Readiness" : "Completion";
}

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_SIM_STYLES_H_
