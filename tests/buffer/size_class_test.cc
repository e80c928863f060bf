#include "buffer/size_class.h"

#include <algorithm>
#include <cstddef>

#include <gtest/gtest.h>

namespace {

using penstock::internal::ClassOf;
using penstock::internal::kBlockSizeMax;
using penstock::internal::kBlockSizes;

TEST(SizeClass, SizesAscend) {
  EXPECT_TRUE(std::is_sorted(kBlockSizes.begin(), kBlockSizes.end()));
}

TEST(SizeClass, IsTheSmallestThatFits) {
  size_t expected = 0;
  for (size_t size = 0; size <= kBlockSizeMax; ++size) {
    if (size > kBlockSizes[expected]) ++expected;
    ASSERT_EQ(ClassOf(size), expected) << size;
  }
}

TEST(SizeClass, ARecordAndItsHeaderWasteLittle) {
  EXPECT_EQ(kBlockSizes[ClassOf(16384 + 24)], 16896u);
  EXPECT_EQ(kBlockSizes[ClassOf(32768 + 24)], 33280u);
  EXPECT_EQ(kBlockSizes[ClassOf(65536 + 24)], 66048u);
}

}  // namespace
