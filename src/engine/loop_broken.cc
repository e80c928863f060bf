// What a loop does when the kernel no longer serves an engine of its (Engine::broken): the other
// one takes what that had. When that cannot be done now, for want of a descriptor or of memory,
// what is left waits, and it is tried again later.
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/loop_core.h"
#include "engine/loop_watches.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Of a kind that needs no ring.
constexpr EngineKind kRefuge = EngineKind::kEpoll;

// Between two tries, doubled each time up to the second.
constexpr absl::Duration kRetryMin = absl::Milliseconds(10);
constexpr absl::Duration kRetryMax = absl::Seconds(1);

}  // namespace

bool LoopCore::HasLost(EngineKind kind) const {
  for (const Engine* engine : {primary_.get(), secondary_.get()}) {
    if (engine != nullptr && engine->kind() == kind && engine->broken()) return true;
  }
  return false;
}

void LoopCore::OnEngineBroken() {
  Post([this] {
    ForEachConnection([](Connection& c) { c.EndIfConnectingByBroken(); });
    LeaveBroken();
  });
}

void LoopCore::LeaveBroken() {
  leave_retry_.Cancel();
  if (const absl::Status left = TryLeaveBroken(); !left.ok()) LeaveBrokenLater(left);
  if (EngineFor(kRefuge).ok()) {
    BeginSweep(std::make_unique<MoveSweep>(*this, kRefuge, connections_));
  }
}

void LoopCore::LeaveBrokenLater(const absl::Status& why) {
  if (leave_retry_.armed()) return;
  // It may go on for long.
  if (std::has_single_bit(++leave_failures_)) {
    EngineFault(kRefuge, absl::StrCat("what the failed engine served waits for ",
                                      std::string(EngineKindName(kRefuge)), ": ", why.ToString()));
  }
  LeaveBrokenAgain();
}

void LoopCore::LeaveBrokenAgain() {
  if (leave_retry_.armed()) return;
  const absl::Duration after =
      std::min(kRetryMin * (1 << std::min(leave_failures_, 10u)), kRetryMax);
  leave_retry_.Arm(TimerWheel::DeadlineTick(sys_.Now(), after), [this] { LeaveBroken(); });
}

absl::Status LoopCore::TryLeaveBroken() {
  const absl::StatusOr<Engine*> refuge = EngineFor(kRefuge);
  if (!refuge.ok()) {
    engine_reason_ = absl::StrCat("io_uring has failed, and there is no epoll: ",
                                  std::string(refuge.status().message()));
    return refuge.status();
  }
  absl::Status status;
  if (default_->broken()) {
    default_ = *refuge;
    engine_reason_ = "io_uring has failed";
  }
  if (primary_->broken()) status = SwapPrimary();
  status.Update(MoveWatches(**refuge));
  const std::vector<LoopObserver*> observers = observers_;
  for (LoopObserver* observer : observers) {
    observer->OnSwitchAll(kRefuge, [] { return ListenerSwitched(); });
  }
  return status;
}

// The loop's own it looks at itself for as long as nobody else does: see WaitForOwn.
absl::Status LoopCore::MoveWatches(Engine& to) {
  absl::Status status;
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    auto* const watch = slots_.at(i).kind() == SlotKind::kWatch
                            ? static_cast<Watch*>(slots_.at(i).object)
                            : nullptr;
    if (watch == nullptr || !watch->engine->broken() || watch == timer_watch_.get() ||
        watch == wake_watch_.get() || watch == engine_watch_.get()) {
      continue;
    }
    Engine& from = *watch->engine;
    const absl::Status added = to.AddWatch(*watch);
    if (added.ok()) from.RemoveWatch(i, watch->fd);
    status.Update(added);
  }
  return status;
}

int LoopCore::WaitForOwn(int64_t timeout_ns) {
  std::array<pollfd, 3> own{{{.fd = timer_watch_->fd, .events = POLLIN, .revents = 0},
                             {.fd = wake_watch_->fd, .events = POLLIN, .revents = 0},
                             {.fd = -1, .events = POLLIN, .revents = 0}}};
  if (secondary_ != nullptr) own[2].fd = secondary_->fd();
  counters_.syscalls.Add(1);
  const int ready = timeout_ns == 0
                        ? sys_.Poll(own.data(), own.size(), 0)
                        : Sleep([&] { return sys_.Poll(own.data(), own.size(), timeout_ns); });
  if (ready < 0) {
    DoubtAlarm();
    return 0;
  }
  // These stay readable until they are read; edges are what engines wait for.
  uint64_t count;
  if (own[0].revents != 0) {
    sys_.Read(own[0].fd, &count, sizeof count);
    timer_watch_->OnReadable();
  }
  if (own[1].revents != 0) sys_.Read(own[1].fd, &count, sizeof count);
  if (own[2].revents != 0) secondary_ready_ = true;
  return ready;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
