#include "base/check.h"

#include <gtest/gtest.h>

namespace {

TEST(CheckDeathTest, SaysWhereAndWhat) {
  EXPECT_DEATH(PENSTOCK_CHECK(1 + 1 == 3, "sums are off"),
               "check_test.cc:[0-9]+: sums are off \\[1 \\+ 1 == 3\\]");
}

TEST(Check, ATrueConditionCostsOneEvaluation) {
  int evaluated = 0;
  PENSTOCK_CHECK(++evaluated > 0, "counted");
  EXPECT_EQ(evaluated, 1);
}

}  // namespace
