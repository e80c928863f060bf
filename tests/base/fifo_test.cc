#include "base/fifo.h"

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <random>

namespace penstock::internal {
namespace {

TEST(Fifo, HandsElementsOutInTheOrderTheyCame) {
  std::mt19937 random(7);
  Fifo<std::unique_ptr<int>> fifo;
  std::deque<int> model;
  for (int i = 0; i < 10'000; ++i) {
    if (model.empty() || random() % 100 < (i < 5'000 ? 60u : 40u)) {
      fifo.push(std::make_unique<int>(i));
      model.push_back(i);
    } else {
      EXPECT_EQ(*fifo.pop(), model.front());
      model.pop_front();
    }
    ASSERT_EQ(fifo.size(), model.size());
    ASSERT_EQ(fifo.empty(), model.empty());
  }
}

TEST(Fifo, LetsGoOfAnElementWhenItLeaves) {
  Fifo<std::shared_ptr<int>> fifo;
  auto element = std::make_shared<int>(1);
  fifo.push(element);
  EXPECT_EQ(element.use_count(), 2);
  fifo.pop();
  EXPECT_EQ(element.use_count(), 1);
}

}  // namespace
}  // namespace penstock::internal
