#include "buffer/pool_cache.h"

#include <penstock/buffer.h>

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "buffer/pool_debug.h"
#include "testing/allocations.h"

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::BufferPool;
using penstock::BufferTag;
using penstock::PoolOptions;
using penstock::PoolStats;
using penstock::internal::AllocationsOnThisThread;
using penstock::internal::CanCountAllocations;
using penstock::internal::ClassOf;
using penstock::internal::kBlockSizes;
using penstock::internal::kPoolChecks;
using penstock::internal::PoolCache;
using penstock::internal::SetTag;

#if defined(__SANITIZE_THREAD__)
constexpr bool kSlow = true;
#else
constexpr bool kSlow = PENSTOCK_ASAN != 0;
#endif

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

TEST(PoolCache, ServesThePoolsCallsOnItsThread) {
  BufferPool pool;
  BufferPool other;
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  EXPECT_EQ(PoolCache::CurrentFor(&pool.core()), &cache);
  EXPECT_EQ(PoolCache::CurrentFor(&other.core()), nullptr);
  { const Buffer buffer = *pool.Allocate(4096); }
  { const Buffer buffer = *other.Allocate(4096); }
  EXPECT_GT(pool.Stats().cached, 0u);
  EXPECT_EQ(other.Stats().cached, 0u);
}

TEST(PoolCache, ScopesNestAndRestore) {
  BufferPool pool;
  BufferPool other;
  PoolCache outer(pool.core());
  PoolCache inner(other.core());
  EXPECT_EQ(penstock::internal::current_cache, nullptr);
  {
    const PoolCache::Scope scope(outer);
    {
      const PoolCache::Scope nested(inner);
      EXPECT_EQ(penstock::internal::current_cache, &inner);
      const PoolCache::Scope again(outer);
      EXPECT_EQ(penstock::internal::current_cache, &outer);
    }
    EXPECT_EQ(penstock::internal::current_cache, &outer);
    {
      const PoolCache::Parked parked(outer);
      EXPECT_EQ(penstock::internal::current_cache, nullptr);
      { const Buffer buffer = pool.TryAllocate(4096); }
      EXPECT_EQ(pool.Stats().cached, 0u);
    }
    EXPECT_EQ(penstock::internal::current_cache, &outer);
  }
  EXPECT_EQ(penstock::internal::current_cache, nullptr);
}

TEST(PoolCache, IsBoundedInEveryClass) {
  BufferPool pool;
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  for (const uint32_t size : kBlockSizes) {
    std::vector<Buffer> held;
    for (int i = 0; i < 200; ++i) held.push_back(cache.TryAllocate(size, BufferTag::kReceive));
    held.clear();
    const uint64_t cached = pool.Stats().classes[ClassOf(size)].cached;
    EXPECT_LE(cached, std::max<uint64_t>(std::min<uint64_t>(64 * size, 256 << 10), 2 * size))
        << size;
    EXPECT_GT(cached, 0u) << size;
    cache.Flush();
    EXPECT_EQ(pool.Stats().cached, 0u);
  }
  EXPECT_EQ(pool.Stats().live, 0u);
}

TEST(PoolCache, LargeBuffersAreNotKept) {
  BufferPool pool;
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  { const Buffer buffer = cache.TryAllocate(2 << 20, BufferTag::kReceive); }
  EXPECT_EQ(pool.Stats().mapped, 0u);
  EXPECT_EQ(pool.Stats().cached, 0u);
}

TEST(PoolCache, SecretBlocksAreWipedBeforeTheyAreKept) {
  BufferPool pool;
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  Buffer buffer = cache.TryAllocate(4096, BufferTag::kSeal);
  buffer.Extend(4096);
  std::memset(buffer.mutable_data(), 's', 4096);
  buffer.MarkSecret();
  const char* place = buffer.data();
  buffer.Reset();
  buffer = cache.TryAllocate(4096, BufferTag::kSeal);
  ASSERT_EQ(buffer.data(), place);
  buffer.Extend(4096);
  EXPECT_EQ(buffer.view(), std::string(4096, '\0'));
}

TEST(PoolCache, CountsLiveAndCachedExactly) {
  BufferPool pool;
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  std::vector<Buffer> held;
  for (int i = 0; i < 100; ++i) held.push_back(cache.TryAllocate(4096, BufferTag::kReceive));
  PoolStats stats = pool.Stats();
  EXPECT_EQ(stats.live, 100u * 4096);
  EXPECT_EQ(stats.classes[ClassOf(4096)].live, stats.live);
  EXPECT_EQ(stats.high_water, stats.live + stats.cached);
  SetTag(held[0], BufferTag::kRing);
  SetTag(held[1], BufferTag::kSeal);
  std::thread([&] { SetTag(held[2], BufferTag::kSeal); }).join();
  stats = pool.Stats();
  EXPECT_EQ(stats.live, 99u * 4096);
  EXPECT_EQ(stats.ring, 4096u);
  EXPECT_EQ(stats.live_by_tag[static_cast<size_t>(BufferTag::kSeal)], 2u * 4096);
  EXPECT_EQ(stats.live_by_tag[static_cast<size_t>(BufferTag::kReceive)], 97u * 4096);
  EXPECT_EQ(stats.classes[ClassOf(4096)].live, 100u * 4096);
  held.clear();
  stats = pool.Stats();
  EXPECT_EQ(stats.live, 0u);
  EXPECT_EQ(stats.ring, 0u);
  cache.Flush();
  EXPECT_EQ(pool.Stats().cached, 0u);
}

// Neither is asked for so often that it would be looked at by and by; and what its cache asks the
// pool for serves another tag.
TEST(PoolCache, AShortPeakByWhichThePoolGrowsIsSeen) {
  constexpr uint64_t kBlocks = 400;
  BufferPool pool;
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  std::vector<Buffer> held;
  for (const uint64_t blocks : {kBlocks, 2 * kBlocks}) {
    const BufferTag tag = blocks == kBlocks ? BufferTag::kSeal : BufferTag::kFrame;
    for (uint64_t i = 0; i < blocks; ++i) {
      held.push_back(cache.TryAllocate(4096, i % 32 == 0 ? BufferTag::kReceive : tag));
    }
    held.clear();
  }
  const auto high = pool.Stats().high_water_by_tag;
  // As much as the cache keeps, 256 KiB, may have come back before anybody looked; and one in 32 is
  // the other's.
  for (const auto& [tag, blocks] :
       {std::pair(BufferTag::kSeal, kBlocks), std::pair(BufferTag::kFrame, 2 * kBlocks)}) {
    EXPECT_GE(high[static_cast<size_t>(tag)], blocks * 31 / 32 * 4096 - (256 << 10));
    EXPECT_LE(high[static_cast<size_t>(tag)], blocks * 4096);
  }
}

TEST(PoolCache, RefillsSeeTheHighWaterOfATagAndRefusalsCountForIt) {
  constexpr uint64_t kBlocks = 1000;
  BufferPool pool({.bytes_max = kBlocks * 4096});
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  std::vector<Buffer> held;
  for (uint64_t i = 0; i < kBlocks; ++i) held.push_back(cache.TryAllocate(4096, BufferTag::kSeal));
  EXPECT_FALSE(cache.TryAllocate(4096, BufferTag::kFrame));
  EXPECT_FALSE(cache.TryAllocate(4096, BufferTag::kSeal));
  held.clear();
  const PoolStats stats = pool.Stats();
  EXPECT_EQ(stats.high_water_by_tag[static_cast<size_t>(BufferTag::kSeal)], kBlocks * 4096)
      << "the refusal has looked";
  EXPECT_EQ(stats.high_water_by_tag[static_cast<size_t>(BufferTag::kFrame)], 0u);
  EXPECT_EQ(stats.refused_by_tag[static_cast<size_t>(BufferTag::kSeal)], 1u);
  EXPECT_EQ(stats.refused_by_tag[static_cast<size_t>(BufferTag::kFrame)], 1u);
}

TEST(PoolCache, SetTagLeavesExternalMemoryAlone) {
  Buffer buffer = Buffer::FromExternal("text", 4, nullptr);
  SetTag(buffer, BufferTag::kSeal);
  EXPECT_EQ(buffer.view(), "text");
}

TEST(PoolCache, CountsStayRightWhenACacheGoes) {
  BufferPool pool;
  Buffer survivor;
  auto cache = std::make_unique<PoolCache>(pool.core());
  {
    const PoolCache::Scope scope(*cache);
    survivor = cache->TryAllocate(4096, BufferTag::kReceive);
    { const Buffer returned = cache->TryAllocate(4096, BufferTag::kReceive); }
  }
  cache = nullptr;
  EXPECT_EQ(pool.Stats().live, 4096u);
  EXPECT_EQ(pool.Stats().cached, 0u);
  survivor.Reset();
  EXPECT_EQ(pool.Stats().live, 0u);
}

// A million buffers are taken on one loop and dropped on another: blocks come round, none is lost.
void ReturnAcrossThreads(bool other_has_cache, const PoolOptions& options) {
  constexpr size_t kRingSize = 256;
  const int count = kSlow ? 50'000 : 200'000;
  BufferPool pool(options);
  std::array<Buffer, kRingSize> ring;
  std::atomic<size_t> written{0};
  std::atomic<size_t> read{0};
  uint64_t sum = 0;
  std::thread other([&] {
    std::optional<PoolCache> cache;
    std::optional<PoolCache::Scope> scope;
    if (other_has_cache) scope.emplace(cache.emplace(pool.core()));
    for (int i = 0; i < count; ++i) {
      const size_t at = read.load(std::memory_order_relaxed);
      while (written.load(std::memory_order_acquire) == at) std::this_thread::yield();
      Buffer buffer = std::move(ring[at % kRingSize]);
      sum += static_cast<unsigned char>(buffer.view()[0]);
      buffer.Reset();
      read.store(at + 1, std::memory_order_release);
    }
  });
  {
    PoolCache cache(pool.core());
    const PoolCache::Scope scope(cache);
    for (int i = 0; i < count; ++i) {
      const size_t at = written.load(std::memory_order_relaxed);
      while (at - read.load(std::memory_order_acquire) == kRingSize) std::this_thread::yield();
      Buffer buffer = cache.TryAllocate(4096, BufferTag::kReceive);
      while (!buffer) {
        std::this_thread::yield();
        buffer = cache.TryAllocate(4096, BufferTag::kReceive);
      }
      buffer.Extend(1);
      *buffer.mutable_data() = 1;
      ring[at % kRingSize] = std::move(buffer);
      written.store(at + 1, std::memory_order_release);
    }
    other.join();
  }
  EXPECT_EQ(sum, static_cast<uint64_t>(count));
  const PoolStats stats = pool.Stats();
  EXPECT_EQ(stats.live, 0u);
  EXPECT_EQ(stats.cached, 0u);
  EXPECT_EQ(stats.live_by_tag[static_cast<size_t>(BufferTag::kReceive)], 0u);
  // The ring, both caches, and a batch on its way.
  EXPECT_LE(stats.high_water, (kRingSize + 2 * 64 + 32) * 4096);
  EXPECT_LE(stats.mapped, penstock::internal::kSlabSize);
}

TEST(PoolCache, ReturnsFromAnotherLoopDoNotGrowThePool) { ReturnAcrossThreads(true, {}); }

TEST(PoolCache, ReturnsFromAPlainThreadDoNotGrowThePool) { ReturnAcrossThreads(false, {}); }

TEST(PoolCache, ReturnsAcrossLoopsUnderATightLimit) {
  ReturnAcrossThreads(true, {.bytes_max = 100 * 4096});
}

// Windows onto one block are dropped on two threads at once: the block goes back once.
TEST(PoolCache, LastWindowsRace) {
  const int count = kSlow ? 2'000 : 10'000;
  BufferPool pool;
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  std::atomic<int> round{0};
  std::atomic<int> done{0};
  Buffer theirs;
  std::thread other([&] {
    PoolCache other_cache(pool.core());
    const PoolCache::Scope other_scope(other_cache);
    for (int i = 1; i <= count; ++i) {
      while (round.load(std::memory_order_acquire) != i) std::this_thread::yield();
      Buffer mine = std::move(theirs);
      done.store(i, std::memory_order_release);
      const Buffer part = mine.SplitFront(1);
      mine.Reset();
    }
  });
  for (int i = 1; i <= count; ++i) {
    Buffer mine = *pool.Copy("bytes");
    theirs = mine.Share();
    round.store(i, std::memory_order_release);
    while (done.load(std::memory_order_acquire) != i) std::this_thread::yield();
    mine.Reset();
  }
  other.join();
  EXPECT_EQ(pool.Stats().live, 0u);
}

TEST(PoolCache, SpareNodesComeRound) {
  BufferPool pool;
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  Buffer buffer = *pool.Copy("shared");
  std::vector<Buffer> shares(1000);
  const auto share_all = [&] {
    for (Buffer& share : shares) share = buffer.Share();
    for (Buffer& share : shares) ASSERT_EQ(share.view(), "shared");
  };
  share_all();
  // Half is dropped on this loop, half on a thread without one.
  for (size_t i = 0; i < 500; ++i) shares[i].Reset();
  std::thread([&] { shares.clear(); }).join();
  shares.resize(1000);
  const int64_t before = AllocationsOnThisThread();
  share_all();
  EXPECT_EQ(AllocationsOnThisThread(), before);
  EXPECT_EQ(pool.Stats().live, 256u);
}

// What a loop does with the bytes of a request.
void HandleOneRequest(PoolCache& cache, size_t size) {
  Buffer buffer = cache.TryAllocate(size, BufferTag::kReceive);
  buffer.Extend(size);
  BufferChain chain(buffer.SplitFront(size / 2));
  chain.Append(buffer.Share());
  chain.Append(std::move(buffer));
  BufferChain head = chain.SplitFront(size / 4);
  head.TrimFront(1);
  chain.TrimFront(size / 2);
  std::array<iovec, 4> parts;
  ASSERT_GT(chain.FillIovec(parts), 0u);
}

TEST(PoolCache, TheSteadyStateAllocatesNothing) {
  if (!CanCountAllocations()) GTEST_SKIP() << "the sanitizer's allocator cannot be counted";
  BufferPool pool;
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  std::vector<Buffer> burst(300);
  const auto work = [&](int rounds) {
    for (int i = 0; i < rounds; ++i) {
      HandleOneRequest(cache, i % 2 == 0 ? 4096 : 16384);
      if (i % 1000 != 0) continue;
      for (Buffer& buffer : burst) buffer = pool.TryAllocate(1024);
      for (Buffer& buffer : burst) buffer.Reset();
    }
  };
  work(1001);
  const int64_t before = AllocationsOnThisThread();
  work(100'000);
  EXPECT_EQ(AllocationsOnThisThread(), before);
}

TEST(PoolCache, ThreadsWithoutALoopAllocateNothingEither) {
  if (!CanCountAllocations()) GTEST_SKIP() << "the sanitizer's allocator cannot be counted";
  BufferPool pool;
  const auto work = [&] {
    Buffer buffer = pool.TryAllocate(4096);
    buffer.Extend(100);
    const Buffer front = buffer.SplitFront(50);
  };
  work();
  const int64_t before = AllocationsOnThisThread();
  for (int i = 0; i < 1000; ++i) work();
  EXPECT_EQ(AllocationsOnThisThread(), before);
}

TEST(PoolCache, StatsMayBeTakenFromAnyThread) {
  BufferPool pool;
  std::atomic<bool> stop{false};
  std::thread loop([&] {
    PoolCache cache(pool.core());
    while (!stop) {
      const PoolCache::Scope scope(cache);
      std::array<Buffer, 100> held;
      for (Buffer& buffer : held) buffer = cache.TryAllocate(4096, BufferTag::kReceive);
    }
  });
  for (int i = 0; i < 2000; ++i) {
    const PoolStats stats = pool.Stats();
    ASSERT_LE(stats.live, 100u * 4096);
    ASSERT_LE(stats.cached, 64u * 4096);
    if (i % 10 == 0) pool.Trim();
  }
  stop = true;
  loop.join();
  EXPECT_EQ(pool.Stats().live, 0u);
}

TEST(PoolCacheDeathTest, IsUsedInsideItsScopeOnly) {
  BufferPool pool;
  PoolCache cache(pool.core());
  EXPECT_DEATH(cache.TryAllocate(4096, BufferTag::kReceive), "outside its scope");
  EXPECT_DEATH(cache.Flush(), "outside its scope");
}

}  // namespace
