#include <penstock/buffer.h>

#include <algorithm>
#include <array>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "buffer/pool_cache.h"

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::BufferPool;
using penstock::BufferTag;
using penstock::internal::PoolCache;

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

TEST(BufferChainDeathTest, BoundsAreCheckedInEveryBuild) {
  BufferPool pool;
  BufferChain chain(*pool.Copy("123"));
  EXPECT_DEATH(chain.TrimFront(4), "beyond the chain");
  EXPECT_DEATH(chain.SplitFront(4), "beyond the chain");
}

// Random operations on a few chains, beside a model of strings.
class ChainModel {
 public:
  explicit ChainModel(uint32_t seed) : random_(seed), cache_(pool_.core()) {}

  void Run(int steps) {
    const PoolCache::Scope scope(cache_);
    for (int i = 0; i < steps; ++i) {
      Step();
      Check();
      if (testing::Test::HasFatalFailure()) return;
    }
    for (BufferChain& chain : chains_) chain.Clear();
    EXPECT_EQ(pool_.Stats().live, 0u);
  }

 private:
  static constexpr size_t kChains = 3;

  size_t Below(size_t bound) {
    return std::uniform_int_distribution<size_t>(0, bound - 1)(random_);
  }

  Buffer RandomBuffer(std::string* text) {
    const size_t size = Below(4) == 0 ? 0 : 1 + Below(Below(2) == 0 ? 8 : 700);
    text->clear();
    for (size_t i = 0; i < size; ++i) text->push_back(static_cast<char>('a' + Below(26)));
    Buffer buffer = *pool_.Copy(*text);
    if (Below(3) == 0) {
      const size_t cut = Below(size + 1);
      buffer.TrimFront(cut);
      text->erase(0, cut);
    }
    if (Below(3) == 0) {
      const size_t kept = Below(text->size() + 1);
      buffer.Truncate(kept);
      text->resize(kept);
    }
    return Below(3) == 0 ? buffer.Share() : std::move(buffer);
  }

  void Step() {
    const size_t i = Below(kChains);
    const size_t j = (i + 1 + Below(kChains - 1)) % kChains;
    BufferChain& chain = chains_[i];
    std::string& text = texts_[i];
    std::string piece;
    switch (Below(9)) {
      case 0:
      case 1:
        chain.Append(RandomBuffer(&piece));
        text += piece;
        break;
      case 2:
        chain.Prepend(RandomBuffer(&piece));
        text.insert(0, piece);
        break;
      case 3:
        chain.Append(std::move(chains_[j]));
        text += std::exchange(texts_[j], {});
        break;
      case 4: {
        const size_t n = Below(text.size() + 1);
        chains_[j].Append(chain.SplitFront(n));
        texts_[j] += text.substr(0, n);
        text.erase(0, n);
        break;
      }
      case 5: {
        const size_t n = Below(text.size() + 1);
        chain.TrimFront(n);
        text.erase(0, n);
        break;
      }
      case 6: {
        const Buffer front = chain.PopFront();
        ASSERT_EQ(front.view(), std::string_view(text).substr(0, front.size()));
        ASSERT_EQ(front.empty(), text.empty());
        text.erase(0, front.size());
        break;
      }
      case 7: {
        Buffer front = chain.PopFront();
        const size_t n = Below(front.size() + 1);
        Buffer head = front.SplitFront(n);
        chain.Prepend(std::move(front));
        chain.Prepend(std::move(head));
        break;
      }
      case 8:
        if (Below(8) == 0) {
          chain.Clear();
          text.clear();
        }
        break;
    }
  }

  void Check() {
    for (size_t i = 0; i < kChains; ++i) {
      const BufferChain& chain = chains_[i];
      ASSERT_EQ(chain.size(), texts_[i].size());
      ASSERT_EQ(chain.empty(), texts_[i].empty());
      ASSERT_EQ(chain.ToString(), texts_[i]);
      ASSERT_EQ(chain.front().empty(), chain.empty());
      std::vector<iovec> parts(chain.buffer_count() + 1);
      ASSERT_EQ(chain.FillIovec(parts), chain.buffer_count());
      std::string gathered;
      for (size_t p = 0; p < chain.buffer_count(); ++p) {
        gathered.append(static_cast<const char*>(parts[p].iov_base), parts[p].iov_len);
      }
      ASSERT_EQ(gathered, texts_[i]);
    }
  }

  std::mt19937 random_;
  BufferPool pool_;
  PoolCache cache_;
  std::array<BufferChain, kChains> chains_;
  std::array<std::string, kChains> texts_;
};

TEST(BufferChain, AgreesWithAModelOfStrings) {
  for (uint32_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    ChainModel(seed).Run(150);
    ASSERT_FALSE(HasFailure());
  }
}

}  // namespace
