// How a LoopCore drains; the rest of the loop is in loop_core.cc.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void LoopCore::Drain(absl::Duration grace) {
  const int64_t until = TimerWheel::DeadlineNs(sys_.Now(), grace);
  if (draining_) {
    if (!drain_over_) drain_until_ns_ = std::min(drain_until_ns_, until);
    return Touch();  // a host waits by the longer one
  }
  draining_ = true;
  away_->Await();
  drain_until_ns_ = until;
  const std::vector<LoopObserver*> observers = observers_;
  for (LoopObserver* observer : observers) observer->OnDrain();
  Post([] {});  // so that a loop with nothing open ends its wait
}

bool LoopCore::FinishDrain() {
  const bool empty = Empty();
  if (now_ns() >= drain_until_ns_) PassDrainLimit();
  return empty && !HasWork();
}

void LoopCore::PassDrainLimit() {
  if (drain_over_) {
    kernel_given_up_ = true;
    drain_until_ns_ = INT64_MAX;
    return;
  }
  drain_over_ = true;  // once: nothing is admitted any more
  drain_until_ns_ = sys_.Now() + kCloseWaitNs;
  ForEachConnection([](Connection& c) { c.EndDrained(); });
  RunReady();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
