#include "buffer/pool_core.h"

#include <penstock/buffer.h>

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "buffer/memory_sys.h"
#include "buffer/pool_cache.h"

namespace {

using penstock::Buffer;
using penstock::BufferPool;
using penstock::BufferTag;
using penstock::RoomWaiter;
using penstock::internal::MemorySys;
using penstock::internal::PoolCache;
using penstock::internal::PoolCore;

class Waiter : public RoomWaiter {
 public:
  void OnRoom() override {
    told.fetch_add(1);
    if (then) then();
  }
  std::atomic<int> told{0};
  std::function<void()> then;
};

// A pool of 1 MiB, of which nothing is left but what `spare` gives up.
class FullPool : public ::testing::Test {
 protected:
  FullPool() {
    for (int i = 0; i < 16; ++i) held_.push_back(pool_.TryAllocate(65536));
  }
  ~FullPool() override { pool_.ForgetRoom(&waiter_); }

  BufferPool pool_{{.bytes_max = 1 << 20}};
  std::vector<Buffer> held_;
  Waiter waiter_;
};

TEST_F(FullPool, TellsOnceWhenABlockComesBack) {
  ASSERT_FALSE(pool_.TryAllocate(65536));
  EXPECT_TRUE(pool_.NotifyRoom(&waiter_));
  EXPECT_TRUE(pool_.NotifyRoom(&waiter_));
  EXPECT_EQ(waiter_.told, 0);
  held_.pop_back();
  EXPECT_EQ(waiter_.told, 1);
  held_.pop_back();
  EXPECT_EQ(waiter_.told, 1);
  EXPECT_TRUE(pool_.TryAllocate(65536));
}

TEST_F(FullPool, TellsEveryWaiter) {
  Waiter other;
  ASSERT_FALSE(pool_.TryAllocate(65536));
  pool_.NotifyRoom(&waiter_);
  pool_.NotifyRoom(&other);
  held_.pop_back();
  EXPECT_EQ(waiter_.told, 1);
  EXPECT_EQ(other.told, 1);
}

TEST_F(FullPool, TellsAtOnceWhenRoomCameBeforeItWasAsked) {
  ASSERT_FALSE(pool_.TryAllocate(65536));
  held_.pop_back();
  EXPECT_TRUE(pool_.NotifyRoom(&waiter_));
  EXPECT_EQ(waiter_.told, 1);
}

TEST_F(FullPool, WaitsUntilTheLeastOfTheRefusedFits) {
  held_.pop_back();
  const Buffer last = pool_.TryAllocate(32768);
  const Buffer more = pool_.TryAllocate(16384);
  Buffer small = pool_.TryAllocate(8192);
  Buffer smaller = pool_.TryAllocate(8192);
  ASSERT_FALSE(pool_.TryAllocate(65536));
  ASSERT_FALSE(pool_.TryAllocate(16384));
  pool_.NotifyRoom(&waiter_);
  small.Reset();
  EXPECT_EQ(waiter_.told, 0);
  smaller.Reset();
  EXPECT_EQ(waiter_.told, 1);
}

TEST_F(FullPool, AForgottenWaiterIsNotTold) {
  ASSERT_FALSE(pool_.TryAllocate(65536));
  pool_.NotifyRoom(&waiter_);
  pool_.ForgetRoom(&waiter_);
  held_.clear();
  EXPECT_EQ(waiter_.told, 0);
}

TEST_F(FullPool, AWaiterMayUseThePoolAndForgetItself) {
  Buffer got;
  waiter_.then = [&] {
    got = pool_.TryAllocate(65536);
    EXPECT_FALSE(pool_.TryAllocate(65536));
    pool_.NotifyRoom(&waiter_);
    pool_.ForgetRoom(&waiter_);
  };
  ASSERT_FALSE(pool_.TryAllocate(65536));
  pool_.NotifyRoom(&waiter_);
  held_.pop_back();
  EXPECT_TRUE(got);
  EXPECT_EQ(waiter_.told, 1);
}

TEST_F(FullPool, AWaiterMayAskAgain) {
  std::vector<Buffer> got;
  waiter_.then = [&] {
    Buffer buffer = pool_.TryAllocate(65536);
    if (buffer) got.push_back(std::move(buffer));
    if (!pool_.TryAllocate(65536)) pool_.NotifyRoom(&waiter_);
  };
  ASSERT_FALSE(pool_.TryAllocate(65536));
  pool_.NotifyRoom(&waiter_);
  while (!held_.empty()) held_.pop_back();
  EXPECT_EQ(waiter_.told, 16);
  EXPECT_EQ(got.size(), 16u);
  pool_.ForgetRoom(&waiter_);
}

TEST_F(FullPool, AWaiterMayUseTheCacheThatIsBeingFilled) {
  {
    PoolCache cache(pool_.core());
    const PoolCache::Scope scope(cache);
    held_.resize(13);  // the cache keeps what comes back
    std::thread([this] {
      EXPECT_FALSE(pool_.TryAllocate(4096));
      EXPECT_TRUE(pool_.NotifyRoom(&waiter_));
    }).join();
    Buffer inside;
    waiter_.then = [&] { inside = pool_.TryAllocate(200); };
    const Buffer outside = pool_.TryAllocate(200);
    EXPECT_TRUE(outside);
    EXPECT_TRUE(inside);
    EXPECT_EQ(waiter_.told, 1);
    held_.clear();
  }
  std::vector<Buffer> all;
  while (Buffer buffer = pool_.TryAllocate(65536)) all.push_back(std::move(buffer));
  EXPECT_EQ(all.size(), 16u) << "blocks were lost";
}

TEST_F(FullPool, ForgettingWaitsForACallOnAnotherThread) {
  std::atomic<bool> inside{false};
  std::atomic<bool> go_on{false};
  std::atomic<bool> finished{false};
  waiter_.then = [&] {
    inside = true;
    while (!go_on) std::this_thread::yield();
    finished = true;
  };
  ASSERT_FALSE(pool_.TryAllocate(65536));
  pool_.NotifyRoom(&waiter_);
  std::thread releaser([&] { held_.pop_back(); });
  while (!inside) std::this_thread::yield();
  bool was_finished = false;
  std::thread forgetter([&] {
    pool_.ForgetRoom(&waiter_);
    was_finished = finished;
  });
  go_on = true;
  forgetter.join();
  releaser.join();
  EXPECT_TRUE(was_finished);
  waiter_.then = nullptr;
}

TEST(PoolCore, SaysWhenWaitingIsInVain) {
  MemorySys sys;
  sys.fail_map = 1;
  sys.fail_map_on = true;
  const auto pool = PoolCore::MakePool({}, sys);
  Waiter waiter;
  ASSERT_FALSE(pool->TryAllocate(4096));
  EXPECT_FALSE(pool->NotifyRoom(&waiter));
  EXPECT_EQ(waiter.told, 0);
  pool->ForgetRoom(&waiter);
}

TEST(PoolCore, AKernelsRefusalEndsWithAnyBlockThatComesBack) {
  MemorySys sys;
  const auto pool = PoolCore::MakePool({}, sys);
  Buffer held = pool->TryAllocate(4096);
  sys.fail_map = sys.maps + 1;
  sys.fail_map_on = true;
  Waiter waiter;
  ASSERT_FALSE(pool->TryAllocate(65536));
  EXPECT_FALSE(pool->NotifyRoom(&waiter));  // other holders may never give theirs back
  held.Reset();
  EXPECT_EQ(waiter.told, 1);
  // The emptied slab needs only new metadata, but the kernel refuses that too.
  ASSERT_FALSE(pool->TryAllocate(65536));
  EXPECT_FALSE(pool->NotifyRoom(&waiter));
  sys.fail_map_on = false;
  EXPECT_TRUE(pool->TryAllocate(65536));
  pool->ForgetRoom(&waiter);
}

TEST(PoolCore, ARequestAboveTheLimitStarvesNobody) {
  BufferPool pool({.bytes_max = 1 << 20});
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  Buffer held = pool.TryAllocate(4096);
  ASSERT_FALSE(pool.TryAllocate(2 << 20));
  Waiter waiter;
  pool.NotifyRoom(&waiter);
  held.Reset();
  // Told when all that can come back has.
  EXPECT_EQ(waiter.told, 1);
  EXPECT_FALSE(pool.core().starved());
}

TEST(PoolCore, RefusalTakesTheCallersCacheFirst) {
  BufferPool pool({.bytes_max = 1 << 20});
  PoolCache cache(pool.core());
  const PoolCache::Scope scope(cache);
  { const Buffer small = pool.TryAllocate(4096); }
  ASSERT_GT(pool.Stats().cached, 0u);
  EXPECT_TRUE(pool.TryAllocate(1 << 20));
  EXPECT_EQ(pool.Stats().refused, 0u);
}

TEST(PoolCore, RefusalTakesTheCachesOfSleepingLoops) {
  BufferPool pool({.bytes_max = 1 << 20});
  PoolCache cache(pool.core());
  {
    const PoolCache::Scope scope(cache);
    { const Buffer small = pool.TryAllocate(4096); }
    std::thread([&] { EXPECT_FALSE(pool.TryAllocate(1 << 20)); }).join();
    const PoolCache::Parked parked(cache);
    std::thread([&] { EXPECT_TRUE(pool.TryAllocate(1 << 20)); }).join();
    EXPECT_EQ(pool.Stats().cached, 0u);
  }
  {
    const PoolCache::Scope scope(cache);
    { const Buffer small = pool.TryAllocate(4096); }
  }
  EXPECT_GT(pool.Stats().cached, 0u);
  EXPECT_TRUE(pool.TryAllocate(1 << 20));
  EXPECT_EQ(pool.Stats().cached, 0u);
}

TEST(PoolCore, BlocksOfABusyLoopReachTheStarved) {
  BufferPool pool({.bytes_max = 1 << 20});
  PoolCache cache(pool.core());
  Waiter waiter;
  {
    const PoolCache::Scope scope(cache);
    std::vector<Buffer> held;
    for (int i = 0; i < 15; ++i) held.push_back(cache.TryAllocate(65536, BufferTag::kReceive));
    std::thread([&] {
      EXPECT_FALSE(pool.TryAllocate(1 << 19));
      EXPECT_TRUE(pool.NotifyRoom(&waiter));
    }).join();
    while (held.size() > 8) held.pop_back();
    EXPECT_EQ(waiter.told, 1);
    EXPECT_TRUE(pool.TryAllocate(1 << 19));
  }
}

TEST(PoolCore, ALoopThatGoesToSleepHandsItsCacheToTheStarved) {
  for (const bool parks : {false, true}) {
    BufferPool pool({.bytes_max = 1 << 20});
    PoolCache cache(pool.core());
    Waiter waiter;
    {
      const PoolCache::Scope scope(cache);
      { const Buffer small = pool.TryAllocate(4096); }
      std::thread([&] {
        EXPECT_FALSE(pool.TryAllocate(1 << 20));
        EXPECT_TRUE(pool.NotifyRoom(&waiter));
      }).join();
      EXPECT_EQ(waiter.told, 0);
      if (parks) {
        const PoolCache::Parked parked(cache);
        EXPECT_EQ(waiter.told, 1);
      }
    }
    EXPECT_EQ(waiter.told, 1);
    EXPECT_TRUE(pool.TryAllocate(1 << 20));
  }
}

// Loops that share a pool too small for both: each takes what it can, gives all up when refused and
// waits to be told. A lost call hangs the test.
TEST(PoolCore, LoopsThatStarveEachOtherGoOn) {
  constexpr int kRounds = 2000;
  constexpr int kLoops = 3;
  BufferPool pool({.bytes_max = 1 << 20});
  std::vector<std::thread> loops;
  for (int i = 0; i < kLoops; ++i) {
    loops.emplace_back([&pool, i] {
      PoolCache cache(pool.core());
      Waiter waiter;
      for (int round = 0; round < kRounds; ++round) {
        const PoolCache::Scope scope(cache);
        std::vector<Buffer> held;
        bool refused = false;
        for (int j = 0; j < 12 + i && !refused; ++j) {
          held.push_back(cache.TryAllocate(j % 3 == 0 ? 16384 : 65536, BufferTag::kReceive));
          refused = !held.back();
        }
        held.clear();
        if (!refused) continue;
        const int told = waiter.told;
        if (!pool.NotifyRoom(&waiter)) continue;
        const PoolCache::Parked parked(cache);
        while (waiter.told == told) std::this_thread::yield();
      }
      pool.ForgetRoom(&waiter);
    });
  }
  for (std::thread& loop : loops) loop.join();
  EXPECT_EQ(pool.Stats().live, 0u);
  EXPECT_EQ(pool.Stats().cached, 0u);
  EXPECT_LE(pool.Stats().high_water, 1u << 20);
}

TEST(PoolCore, TrimTakesTheCachesThatItCan) {
  BufferPool pool;
  PoolCache own(pool.core());
  PoolCache parked(pool.core());
  {
    const PoolCache::Scope scope(parked);
    { const Buffer buffer = pool.TryAllocate(4096); }
  }
  const PoolCache::Scope scope(own);
  { const Buffer buffer = pool.TryAllocate(4096); }
  EXPECT_GT(pool.Stats().cached, 0u);
  pool.Trim();
  EXPECT_EQ(pool.Stats().cached, 0u);
  EXPECT_EQ(pool.Stats().mapped, 0u);
  EXPECT_FALSE(pool.core().starved());
}

TEST(PoolCoreDeathTest, AllCachesGoBeforeThePool) {
  EXPECT_DEATH(
      {
        auto pool = std::make_unique<BufferPool>();
        auto* cache = new PoolCache(pool->core());
        pool = nullptr;
        delete cache;
      },
      "before a loop that uses it");
}

}  // namespace
