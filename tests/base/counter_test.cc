#include "base/counter.h"

#include <thread>

#include <gtest/gtest.h>

namespace penstock::internal {
namespace {

TEST(Counter, AddsSubtractsAndSets) {
  Counter counter;
  EXPECT_EQ(counter.value(), 0u);
  counter.Add();
  counter.Add(10);
  counter.Sub();
  EXPECT_EQ(counter.value(), 10u);
  counter.Sub(4);
  EXPECT_EQ(counter.value(), 6u);
  counter.Set(100);
  EXPECT_EQ(counter.value(), 100u);
}

TEST(Counter, AnotherThreadMayReadMeanwhile) {
  constexpr uint64_t kLast = 100'000;
  Counter counter;
  std::thread owner([&counter] {
    for (uint64_t i = 0; i < kLast; ++i) counter.Add();
  });
  uint64_t seen = 0;
  while (seen < kLast) {
    const uint64_t now = counter.value();
    ASSERT_GE(now, seen);
    seen = now;
  }
  owner.join();
  EXPECT_EQ(counter.value(), kLast);
}

}  // namespace
}  // namespace penstock::internal
