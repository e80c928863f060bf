#include "base/fd.h"

#include <cerrno>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace penstock::internal {
namespace {

class RecordingSys : public Sys {
 public:
  int Close(int fd) override {
    closed.push_back(fd);
    return 0;
  }
  std::vector<int> closed;
};

TEST(UniqueFd, ClosesOnceThroughTheSeam) {
  RecordingSys sys;
  {
    UniqueFd fd(sys, 1000);
    EXPECT_TRUE(fd);
    EXPECT_EQ(fd.get(), 1000);
  }
  EXPECT_EQ(sys.closed, std::vector<int>({1000}));
}

TEST(UniqueFd, MovingLeavesTheSourceEmpty) {
  RecordingSys sys;
  {
    UniqueFd first(sys, 1000);
    UniqueFd second(std::move(first));
    EXPECT_FALSE(first);
    UniqueFd third(sys, 1001);
    third = std::move(second);
    EXPECT_EQ(third.get(), 1000);
    EXPECT_EQ(sys.closed, std::vector<int>({1001}));
  }
  EXPECT_EQ(sys.closed, std::vector<int>({1001, 1000}));
}

TEST(UniqueFd, ReleaseHandsTheDescriptorOver) {
  RecordingSys sys;
  {
    UniqueFd fd(sys, 1000);
    EXPECT_EQ(fd.Release(), 1000);
    EXPECT_EQ(fd.get(), -1);
  }
  EXPECT_TRUE(sys.closed.empty());
}

TEST(UniqueFd, AnEmptyOneClosesNothing) {
  RecordingSys sys;
  { UniqueFd fd(sys, -ENFILE); }
  { UniqueFd fd; }
  EXPECT_TRUE(sys.closed.empty());
}

}  // namespace
}  // namespace penstock::internal
