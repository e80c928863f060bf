// What buffers cost: taking and giving one back with a loop's cache and without, returning it from
// another thread, and gathering and cutting chains. malloc stands beside as the reference.
#include <benchmark/benchmark.h>
#include <penstock/buffer.h>
#include <sys/uio.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

#include "buffer/pool_cache.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr int64_t kSizes[] = {64, 1024, 16 * 1024, 64 * 1024};

void Sizes(benchmark::internal::Benchmark* bench) {
  for (int64_t size : kSizes) bench->Arg(size);
}

// The path of every receive: inside a loop's turn, from its cache.
void BM_Cached(benchmark::State& state) {
  BufferPool pool;
  PoolCache cache(pool.core());
  PoolCache::Scope scope(cache);
  for (auto _ : state) {
    Buffer buffer = pool.TryAllocate(state.range(0));
    benchmark::DoNotOptimize(buffer.data());
  }
}
BENCHMARK(BM_Cached)->Apply(Sizes);

// A thread that runs no loop: under the pool's lock.
void BM_Locked(benchmark::State& state) {
  BufferPool pool;
  for (auto _ : state) {
    Buffer buffer = pool.TryAllocate(state.range(0));
    benchmark::DoNotOptimize(buffer.data());
  }
}
BENCHMARK(BM_Locked)->Apply(Sizes);

void BM_Malloc(benchmark::State& state) {
  for (auto _ : state) {
    void* memory = malloc(state.range(0));
    benchmark::DoNotOptimize(memory);
    free(memory);
  }
}
BENCHMARK(BM_Malloc)->Apply(Sizes);

// More buffers held at once than a cache keeps, as when many connections burst: per buffer.
void BM_Burst(benchmark::State& state) {
  constexpr size_t kHeld = 1024;
  BufferPool pool;
  PoolCache cache(pool.core());
  PoolCache::Scope scope(cache);
  std::vector<Buffer> held(kHeld);
  for (auto _ : state) {
    for (Buffer& buffer : held) buffer = pool.TryAllocate(state.range(0));
    for (Buffer& buffer : held) buffer.Reset();
  }
  state.SetItemsProcessed(state.iterations() * kHeld);
}
BENCHMARK(BM_Burst)->Arg(1024)->Arg(16 * 1024);

// Buffers taken through a cache here and dropped on another thread, a batch at a time: per buffer.
void BM_ReturnAcross(benchmark::State& state) {
  constexpr size_t kBatch = 64;
  BufferPool pool;
  PoolCache cache(pool.core());
  PoolCache::Scope scope(cache);
  std::array<Buffer, kBatch> batch;
  std::atomic<int> turn{0};  // 0: fill, 1: drop, 2: end
  std::thread other([&] {
    for (;;) {
      int now = turn.load(std::memory_order_acquire);
      if (now == 2) return;
      if (now == 0) {
        std::this_thread::yield();
        continue;
      }
      for (Buffer& buffer : batch) buffer.Reset();
      turn.store(0, std::memory_order_release);
    }
  });
  for (auto _ : state) {
    for (Buffer& buffer : batch) buffer = pool.TryAllocate(state.range(0));
    turn.store(1, std::memory_order_release);
    while (turn.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  }
  turn.store(2, std::memory_order_release);
  other.join();
  state.SetItemsProcessed(state.iterations() * kBatch);
}
BENCHMARK(BM_ReturnAcross)->Arg(1024)->UseRealTime();

// A second window onto a block, and its end.
void BM_Share(benchmark::State& state) {
  BufferPool pool;
  PoolCache cache(pool.core());
  PoolCache::Scope scope(cache);
  Buffer buffer = pool.TryAllocate(1024);
  buffer.Extend(1024);
  for (auto _ : state) benchmark::DoNotOptimize(buffer.Share().data());
}
BENCHMARK(BM_Share);

// Gathers buffers, describes them for writev(2), and takes them off as a socket would that accepts
// half of the rest each time.
void BM_Gather(benchmark::State& state) {
  constexpr size_t kPiece = 512;
  BufferPool pool;
  PoolCache cache(pool.core());
  PoolCache::Scope scope(cache);
  std::array<iovec, 64> parts;
  for (auto _ : state) {
    BufferChain chain;
    for (int64_t i = 0; i < state.range(0); ++i) {
      Buffer buffer = pool.TryAllocate(kPiece);
      buffer.Extend(kPiece);
      chain.Append(std::move(buffer));
    }
    while (!chain.empty()) {
      benchmark::DoNotOptimize(chain.FillIovec(parts));
      chain.TrimFront((chain.size() + 1) / 2);
    }
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Gather)->Arg(1)->Arg(16)->Arg(64);

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
