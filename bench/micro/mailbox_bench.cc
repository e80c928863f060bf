// What it costs to leave a task for a loop, apart from waking its thread.
#include <benchmark/benchmark.h>

#include <atomic>
#include <cstdint>
#include <thread>

#include "base/mailbox.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Pushes a batch and runs it, on one thread. Per task.
void BM_PushDrain(benchmark::State& state) {
  Mailbox mailbox([] {});
  int64_t ran = 0;
  for (auto _ : state) {
    for (int64_t i = 0; i < state.range(0); ++i) mailbox.Push([&ran] { ++ran; });
    mailbox.Drain(SIZE_MAX);
  }
  if (ran != state.iterations() * state.range(0)) state.SkipWithError("a task did not run");
  state.SetItemsProcessed(ran);
}
BENCHMARK(BM_PushDrain)->Arg(1)->Arg(64);

// Pushes from another thread than the one that drains, which never sleeps.
void BM_PushAcross(benchmark::State& state) {
  Mailbox mailbox([] {});
  std::atomic<bool> stop{false};
  int64_t ran = 0;
  std::thread owner([&] {
    while (!stop.load(std::memory_order_acquire)) mailbox.Drain(SIZE_MAX);
    mailbox.Drain(SIZE_MAX);
  });
  for (auto _ : state) mailbox.Push([&ran] { ++ran; });
  stop.store(true, std::memory_order_release);
  owner.join();
  if (ran != state.iterations()) state.SkipWithError("a task did not run");
  state.SetItemsProcessed(ran);
}
BENCHMARK(BM_PushAcross)->UseRealTime();

// Asks whether a thread may sleep and wakes up again: what every blocking wait of a loop adds.
void BM_SleepGuard(benchmark::State& state) {
  Mailbox mailbox([] {});
  for (auto _ : state) {
    benchmark::DoNotOptimize(mailbox.PrepareToSleep());
    mailbox.FinishSleep();
  }
}
BENCHMARK(BM_SleepGuard);

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
