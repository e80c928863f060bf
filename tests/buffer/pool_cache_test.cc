#include "buffer/pool_cache.h"

#include <penstock/buffer.h>

#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "base/sys.h"

namespace {

using penstock::Buffer;
using penstock::BufferPool;
using penstock::BufferTag;
using penstock::PoolStats;
using penstock::internal::PoolCache;

TEST(PoolCache, HandsOutTheBlockUsedLast) {
  BufferPool pool;
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  Buffer first = cache.TryAllocate(4096, BufferTag::kReceive);
  Buffer second = cache.TryAllocate(4096, BufferTag::kReceive);
  const char* warm = first.data();
  second.Reset();
  first.Reset();
  EXPECT_EQ(cache.TryAllocate(4000, BufferTag::kReceive).data(), warm);
}

TEST(PoolCache, CountsLiveAndCachedExactly) {
  BufferPool pool;
  PoolCache cache(pool.core());
  {
    const PoolCache::Scope scope(cache);
    std::vector<Buffer> held;
    for (int i = 0; i < 100; ++i) held.push_back(cache.TryAllocate(4096, BufferTag::kReceive));
    EXPECT_EQ(pool.Stats().live, 100u * 4096);
    penstock::internal::SetTag(held[0], BufferTag::kRing);
    EXPECT_EQ(pool.Stats().live, 99u * 4096);
    EXPECT_EQ(pool.Stats().ring, 4096u);
    held.clear();
    EXPECT_EQ(pool.Stats().live, 0u);
    EXPECT_EQ(pool.Stats().ring, 0u);
    EXPECT_LE(pool.Stats().cached, 64u * 4096);
    EXPECT_GT(pool.Stats().cached, 0u);
    cache.Flush();
    EXPECT_EQ(pool.Stats().cached, 0u);
  }
}

}  // namespace
