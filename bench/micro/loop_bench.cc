// What a loop costs by itself: a turn with nothing to do, a posted task, a timer, and waking a loop
// that sleeps, or one that polls before it sleeps.
#include <benchmark/benchmark.h>
#include <penstock/loop.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "absl/time/time.h"
#include "engines.h"

namespace penstock_bench {
namespace {

void BM_EmptyTurn(benchmark::State& state) {
  auto loop = MakeLoop(state);
  if (loop == nullptr) return;
  for (auto _ : state) loop->Poll();
}
BENCHMARK(BM_EmptyTurn)->Apply([](auto* bench) { EachEngine(bench, {0}); });

// Tasks posted and run on the loop's own thread, so many a turn. Per task.
void BM_PostOwnThread(benchmark::State& state) {
  auto loop = MakeLoop(state);
  if (loop == nullptr) return;
  int64_t ran = 0;
  for (auto _ : state) {
    for (int64_t i = 0; i < state.range(1); ++i) loop->Post([&ran] { ++ran; });
    while (ran % state.range(1) != 0 || loop->Poll()) {
    }
  }
  while (loop->Poll()) {
  }
  if (ran != state.iterations() * state.range(1)) state.SkipWithError("a task did not run");
  state.SetItemsProcessed(ran);
}
BENCHMARK(BM_PostOwnThread)->Apply([](auto* bench) { EachEngine(bench, {1, 64}); });

// Arms and cancels a timer through the public class.
void BM_TimerArmCancel(benchmark::State& state) {
  auto loop = MakeLoop(state);
  if (loop == nullptr) return;
  penstock::Timer timer(*loop);
  for (auto _ : state) {
    timer.Arm(absl::Seconds(30), [] {});
    timer.Cancel();
  }
}
BENCHMARK(BM_TimerArmCancel)->Apply([](auto* bench) { EachEngine(bench, {0}); });

using Clock = std::chrono::steady_clock;

void SpinUntil(Clock::time_point until) {
  while (Clock::now() < until) {
  }
}

// Posts to a loop on another thread and waits, polling, until the task has run. The loop has been
// idle for kPause by then: asleep, unless its busy_poll (the second argument, in us) is longer.
// `caller_ns` is what Post itself took, most of it the kernel's wake-up.
void BM_Wake(benchmark::State& state) {
  constexpr std::chrono::microseconds kPause{100};
  penstock::LoopOptions options;
  options.busy_poll = absl::Microseconds(state.range(1));
  auto loop = MakeLoop(state, std::move(options));
  if (loop == nullptr) return;
  std::thread runner([&loop] { loop->Run(); });
  std::chrono::nanoseconds in_post{0};
  std::atomic<bool> ran{false};
  for (auto _ : state) {
    SpinUntil(Clock::now() + kPause);
    ran.store(false, std::memory_order_relaxed);
    Clock::time_point start = Clock::now();
    loop->Post([&ran] { ran.store(true, std::memory_order_release); });
    Clock::time_point posted = Clock::now();
    while (!ran.load(std::memory_order_acquire)) std::this_thread::yield();
    Clock::time_point end = Clock::now();
    in_post += posted - start;
    state.SetIterationTime(std::chrono::duration<double>(end - start).count());
  }
  loop->Stop();
  runner.join();
  state.counters["caller_ns"] =
      benchmark::Counter(static_cast<double>(in_post.count()), benchmark::Counter::kAvgIterations);
}
BENCHMARK(BM_Wake)->Apply([](auto* bench) { EachEngine(bench, {0, 1000}); }) -> UseManualTime();

}  // namespace
}  // namespace penstock_bench
