#include <penstock/version.h>

#include <string>

#include <gtest/gtest.h>

namespace {

TEST(Version, TextMatchesTheHeaders) {
  const std::string expected = std::to_string(PENSTOCK_VERSION_MAJOR) + "." +
                               std::to_string(PENSTOCK_VERSION_MINOR) + "." +
                               std::to_string(PENSTOCK_VERSION_PATCH);
  EXPECT_EQ(penstock::Version(), expected);
}

}  // namespace
