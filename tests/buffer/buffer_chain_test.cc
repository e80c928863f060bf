#include <penstock/buffer.h>

#include <array>
#include <random>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "buffer/chain_model.h"

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::BufferPool;
using penstock::internal::ChainModel;

TEST(BufferChain, QueuesInOrder) {
  BufferPool pool;
  BufferChain chain(*pool.Copy("b"));
  chain.Append(*pool.Copy("c"));
  chain.Prepend(*pool.Copy("a"));
  EXPECT_EQ(chain.ToString(), "abc");
  EXPECT_EQ(chain.size(), 3u);
  EXPECT_EQ(chain.buffer_count(), 3u);
  EXPECT_EQ(chain.front(), "a");
  BufferChain other(*pool.Copy("d"));
  chain.Append(std::move(other));
  EXPECT_TRUE(other.empty());  // NOLINT: moved from on purpose
  EXPECT_EQ(other.size(), 0u);
  other.Append(*pool.Copy("x"));
  EXPECT_EQ(other.ToString(), "x");
  EXPECT_EQ(chain.PopFront().view(), "a");
  EXPECT_EQ(chain.ToString(), "bcd");
}

TEST(BufferChain, EmptyBuffersAreDroppedNotQueued) {
  BufferPool pool;
  BufferChain chain(pool.TryAllocate(100));
  EXPECT_TRUE(chain.empty());
  chain.Append(pool.TryAllocate(100));
  chain.Append(Buffer());
  chain.Append(BufferChain());
  chain.Prepend(pool.TryAllocate(100));
  EXPECT_EQ(chain.buffer_count(), 0u);
  EXPECT_EQ(pool.Stats().live, 0u);
}

TEST(BufferChain, AnEmptyOneIsHarmless) {
  BufferChain chain;
  EXPECT_EQ(chain.front(), "");
  EXPECT_FALSE(chain.PopFront());
  EXPECT_TRUE(chain.SplitFront(0).empty());
  chain.TrimFront(0);
  chain.Clear();
  std::array<iovec, 2> parts;
  EXPECT_EQ(chain.FillIovec(parts), 0u);
  std::array<char, 2> bytes;
  EXPECT_EQ(chain.CopyTo(bytes), 0u);
  EXPECT_EQ(chain.ToString(), "");
  EXPECT_EQ(chain.block_bytes(), 0u);
}

TEST(BufferChain, MovesLeaveNothingBehind) {
  BufferPool pool;
  BufferChain first(*pool.Copy("first"));
  BufferChain second(*pool.Copy("second"));
  second = std::move(first);
  EXPECT_EQ(second.ToString(), "first");
  EXPECT_TRUE(first.empty());  // NOLINT: moved from on purpose
  EXPECT_EQ(pool.Stats().live, 256u);
  BufferChain& alias = second;
  second = std::move(alias);
  EXPECT_EQ(second.ToString(), "first");
  BufferChain third(std::move(second));
  EXPECT_EQ(third.size(), 5u);
}

TEST(BufferChain, DroppingItGivesTheBlocksBack) {
  BufferPool pool;
  {
    BufferChain chain;
    for (int i = 0; i < 10; ++i) chain.Append(*pool.Copy("x"));
    EXPECT_EQ(chain.block_bytes(), 2560u);
    EXPECT_EQ(pool.Stats().live, 2560u);
    chain.Clear();
    EXPECT_TRUE(chain.empty());
    EXPECT_EQ(pool.Stats().live, 0u);
    chain.Append(*pool.Copy("y"));
  }
  EXPECT_EQ(pool.Stats().live, 0u);
}

TEST(BufferChain, BlockBytesCountsNeighboursOnOneBlockOnce) {
  BufferPool pool;
  Buffer rest = *pool.Copy("abcdef");
  BufferChain chain(rest.SplitFront(2));
  chain.Append(rest.SplitFront(2));
  chain.Append(*pool.Copy(std::string(300, 'x')));
  chain.Append(std::move(rest));
  EXPECT_EQ(chain.block_bytes(), 256u + 512u + 256u);
}

TEST(BufferChain, GathersWithoutCopying) {
  BufferPool pool;
  Buffer first = *pool.Copy("first");
  Buffer second = *pool.Copy("second");
  const char* first_data = first.data();
  const char* second_data = second.data();
  BufferChain chain(std::move(first));
  chain.Append(std::move(second));
  std::array<iovec, 4> parts;
  ASSERT_EQ(chain.FillIovec(parts), 2u);
  EXPECT_EQ(parts[0].iov_base, first_data);
  EXPECT_EQ(parts[0].iov_len, 5u);
  EXPECT_EQ(parts[1].iov_base, second_data);
  EXPECT_EQ(chain.FillIovec(std::span(parts).first(1)), 1u);
}

TEST(BufferChain, CopyToStopsAtTheShorterAndConsumesNothing) {
  BufferPool pool;
  BufferChain chain(*pool.Copy("abc"));
  chain.Append(*pool.Copy("def"));
  std::string out(4, '.');
  EXPECT_EQ(chain.CopyTo(out), 4u);
  EXPECT_EQ(out, "abcd");
  out.assign(8, '.');
  EXPECT_EQ(chain.CopyTo(out), 6u);
  EXPECT_EQ(out, "abcdef..");
  EXPECT_EQ(chain.size(), 6u);
}

// The owner of external memory may use the chain that just gave it up.
TEST(BufferChain, AReleaseMayComeBackToTheChain) {
  BufferPool pool;
  BufferChain chain;
  std::string seen;
  const auto external = [&] {
    return Buffer::FromExternal("xyz", 3, [&] {
      seen += chain.ToString() + ";";
      if (!chain.empty()) chain.TrimFront(1);
    });
  };
  chain.Append(external());
  chain.Append(*pool.Copy("abc"));
  chain.TrimFront(4);
  EXPECT_EQ(seen, "bc;");
  EXPECT_EQ(chain.ToString(), "c");
  chain.Prepend(external());
  chain.Prepend(external());
  chain.Clear();
  EXPECT_EQ(seen, "bc;;;");
  EXPECT_EQ(pool.Stats().live, 0u);
}

TEST(BufferChainDeathTest, BoundsAreCheckedInEveryBuild) {
  BufferPool pool;
  BufferChain chain(*pool.Copy("123"));
  EXPECT_DEATH(chain.TrimFront(4), "beyond the chain");
  EXPECT_DEATH(chain.SplitFront(4), "beyond the chain");
}

TEST(BufferChain, AgreesWithAModelOfStrings) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    std::mt19937 random(seed);
    BufferPool pool;
    ChainModel model(pool, [&](size_t bound) {
      return std::uniform_int_distribution<size_t>(0, bound - 1)(random);
    });
    for (int i = 0; i < 150; ++i) ASSERT_EQ(model.Step(), "") << "seed " << seed << " step " << i;
    ASSERT_EQ(model.End(), "") << "seed " << seed;
  }
}

}  // namespace
