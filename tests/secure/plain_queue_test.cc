#include "secure/plain_queue.h"

#include <gtest/gtest.h>
#include <penstock/buffer.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>

namespace penstock::internal {
namespace {

// Bytes in pieces of random sizes, several to a block: what a writer has that cuts what it got.
BufferChain Pieces(BufferPool& pool, std::mt19937& random, std::string& text) {
  BufferChain chain;
  Buffer block = *pool.Allocate(4096);
  block.Extend(block.tailroom());
  for (size_t i = 0; i < block.size(); ++i) {
    block.mutable_data()[i] = static_cast<char>('a' + (text.size() + i) % 26);
  }
  text += block.view();
  BufferChain rest;
  rest.Append(std::move(block));
  while (!rest.empty()) {
    chain.Append(rest.SplitFront(std::min<size_t>(rest.size(), 1 + random() % 1500)));
  }
  return chain;
}

TEST(PlainQueueTest, KeepsOrderAndCountsBlocksWhateverIsPutAndTaken) {
  BufferPool pool;
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    PlainQueue queue;
    std::string expected, taken;
    BufferChain written;
    for (int step = 0; step < 500; ++step) {
      if (random() % 3 == 0) {
        written.Append(Pieces(pool, random, expected));
      } else if (random() % 2 == 0 && !written.empty()) {
        // A write ends anywhere, also within a block.
        queue.Append(written.SplitFront(1 + random() % written.size()));
      } else {
        const size_t wanted = random() % 6000;
        BufferChain front = queue.TakeFront(wanted);
        EXPECT_TRUE(front.size() >= wanted || queue.empty());
        BufferChain used = front.SplitFront(random() % (front.size() + 1));
        taken += used.ToString();
        queue.Prepend(std::move(front));
      }
      BufferChain all = queue.Take();
      const size_t blocks = all.block_bytes();
      EXPECT_EQ(queue.block_bytes(), 0u);
      queue.Append(std::move(all));
      ASSERT_EQ(queue.block_bytes(), blocks) << "seed " << seed << ", step " << step;
    }
    taken += queue.Take().ToString();
    EXPECT_EQ(taken + written.ToString(), expected) << "seed " << seed;
  }
}

TEST(PlainQueueTest, NeighboursOfOneBlockCountItOnce) {
  BufferPool pool;
  Buffer block = *pool.Allocate(1000);
  block.Extend(1000);
  const size_t size = block.block_size();
  BufferChain chain;
  chain.Append(std::move(block));
  PlainQueue queue;
  queue.Append(chain.SplitFront(300));
  queue.Append(chain.SplitFront(300));
  queue.Append(std::move(chain));
  EXPECT_EQ(queue.block_bytes(), size);
  const BufferChain front = queue.TakeFront(1);
  EXPECT_EQ(front.size(), 300u);
  EXPECT_EQ(queue.block_bytes(), size) << "the rest still holds the block";
  queue.TakeFront(700).Clear();
  EXPECT_EQ(queue.block_bytes(), 0u);
  EXPECT_TRUE(queue.empty());
}

}  // namespace
}  // namespace penstock::internal
