// What the timer wheel costs: re-arming, as every read and write does that has a deadline, and
// firing, among few and among a million armed timers.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "base/timer_wheel.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr uint64_t kMinute = 60'000;  // ticks
constexpr size_t kUnbounded = SIZE_MAX;

struct Node : TimerNode {
  Node() : TimerNode([](TimerNode*) {}) {}
};

// `count` nodes armed at random within a minute from tick 0.
class ArmedWheel {
 public:
  explicit ArmedWheel(size_t count) : wheel_(0), nodes_(new Node[count]), count_(count) { Arm(); }
  ~ArmedWheel() {
    for (size_t i = 0; i < count_; ++i) wheel_.Cancel(nodes_[i]);
  }

  void Arm() {
    std::uniform_int_distribution<uint64_t> delay(1, kMinute);
    for (size_t i = 0; i < count_; ++i) wheel_.Schedule(nodes_[i], now_ + delay(random_));
  }
  void Elapse(uint64_t ticks) { now_ += ticks; }

  TimerWheel& wheel() { return wheel_; }
  Node& node(size_t i) { return nodes_[i]; }
  size_t count() const { return count_; }
  uint64_t now() const { return now_; }
  std::mt19937& random() { return random_; }

 private:
  std::mt19937 random_{1};
  TimerWheel wheel_;
  uint64_t now_ = 0;
  std::unique_ptr<Node[]> nodes_;
  size_t count_;
};

// Moves a random armed timer to a minute from now, and time on by a tick for every thousand.
void BM_Rearm(benchmark::State& state) {
  ArmedWheel armed(state.range(0));
  std::uniform_int_distribution<size_t> pick(0, armed.count() - 1);
  std::vector<uint32_t> order(1 << 16);
  for (uint32_t& index : order) index = static_cast<uint32_t>(pick(armed.random()));
  size_t step = 0;
  for (auto _ : state) {
    armed.wheel().Schedule(armed.node(order[step % order.size()]), armed.now() + kMinute);
    if (++step % 1000 == 0) {
      armed.Elapse(1);
      armed.wheel().Advance(armed.now(), kUnbounded);
    }
  }
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK(BM_Rearm)->Arg(1)->Arg(1000)->Arg(1'000'000);

// Arms and cancels one timer, as an operation does that ends before its deadline.
void BM_ArmCancel(benchmark::State& state) {
  ArmedWheel armed(state.range(0));
  Node node;
  uint64_t after = 1;
  for (auto _ : state) {
    armed.wheel().Schedule(node, after);
    armed.wheel().Cancel(node);
    after = after % kMinute + 97;
  }
}
BENCHMARK(BM_ArmCancel)->Arg(0)->Arg(1'000'000);

// Fires every one of the armed timers, tick by tick; per timer, moves between levels included.
void BM_FireAll(benchmark::State& state) {
  ArmedWheel armed(state.range(0));
  for (auto _ : state) {
    for (uint64_t tick = 0; tick < kMinute; ++tick) {
      armed.Elapse(1);
      armed.wheel().Advance(armed.now(), kUnbounded);
    }
    if (armed.wheel().armed() != 0) state.SkipWithError("a timer did not fire");
    state.PauseTiming();
    armed.Arm();
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(armed.count()));
}
BENCHMARK(BM_FireAll)->Arg(1000)->Arg(1'000'000)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
