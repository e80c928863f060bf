// What a loop does when streams move: to its other engine, and from and to other loops; the rest of
// the loop is in loop_core.cc.
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "base/error.h"
#include "engine/loop_core.h"
#include "engine/loop_watches.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

absl::Status LoopCore::AdmitMove() {
  if (draining_) return absl::UnavailableError("the target loop is draining");
  return AdmitConnection();
}

void LoopCore::Join(Connection& connection) {
  Link(connection);
  counters_.open.Add(1);
  connection.CountEngine(1);
  connection.UpdatePinned();
  connection.ArmDeadlines();
}

void LoopCore::Leave(Connection& connection) {
  timers_.Cancel(connection);
  if (connection.busy_) counters_.busy.Sub(1);
  connection.busy_ = false;
  counters_.pinned_bytes.Sub(std::exchange(connection.pinned_, 0));
  counters_.open.Sub(1);
  connection.CountEngine(-1);
  slots_.Free(connection.slot_);
  Unlink(connection);
  const std::vector<LoopObserver*> observers = observers_;
  for (LoopObserver* observer : observers) observer->OnConnectionClosed();
}

uint64_t LoopCore::switches_ended() const {
  const MoveSweep* const sweep = sweeps_[static_cast<size_t>(MoveSweep::Sort::kSwitch)].get();
  return switches_begun_ - (sweep != nullptr && sweep->switches_all() ? 1 : 0);
}

absl::Status LoopCore::SwitchAll(EngineKind to, MoveSweep::Done done) {
  const absl::StatusOr<Engine*> engine = EngineFor(to);
  if (!engine.ok()) return engine.status();
  to = (*engine)->kind();
  // Before the sweep has come to its end: those that come meanwhile need not be looked for.
  if (std::exchange(default_, *engine) != *engine)
    engine_reason_ = "every stream was switched to it";
  ++switches_begun_;
  const std::vector<LoopObserver*> observers = observers_;
  auto sweep =
      std::make_unique<MoveSweep>(*this, to, connections_, MoveSweep::kAll, std::move(done));
  MoveSweep& begun = *sweep;
  BeginSweep(std::move(sweep));
  begun.SwitchListeners(observers);
  return absl::OkStatus();
}

absl::Status LoopCore::SwitchSome(EngineKind to, uint64_t streams, MoveSweep::Done done) {
  const absl::StatusOr<Engine*> engine = EngineFor(to);
  if (!engine.ok()) return engine.status();
  BeginSweep(std::make_unique<MoveSweep>(*this, (*engine)->kind(), connections_, streams,
                                         std::move(done)));
  return absl::OkStatus();
}

void LoopCore::MigrateAll(const LoopHandle& target, EngineKind engine, MoveSweep::Done done) {
  ++leaving_sweeps_;
  BeginSweep(std::make_unique<MoveSweep>(*this, engine, target, connections_, std::move(done)));
}

void LoopCore::BeginSweep(std::unique_ptr<MoveSweep> next) {
  std::unique_ptr<MoveSweep>& place = sweeps_[static_cast<size_t>(next->sort())];
  // An earlier one ends here, and tells so.
  if (place != nullptr) {
    place->Stop();
    Post([stopped = std::move(place)] { stopped->Tell(); });
  }
  place = std::move(next);
}

void LoopCore::EndSweep(MoveSweep& sweep) {
  const std::unique_ptr<MoveSweep> done = std::move(sweeps_[static_cast<size_t>(sweep.sort())]);
  if (done->switches_all() && done->engine() != primary_->kind()) {
    const absl::Status swapped = SwapPrimary();
    if (!swapped.ok()) EngineFault(secondary_->kind(), swapped.ToString());
  }
  if (done->sort() == MoveSweep::Sort::kRescue && !leaves_broken_later()) leave_failures_ = 0;
  done->Tell();
}

absl::Status LoopCore::SwapPrimary() {
  if (embedded_ || secondary_->broken()) return absl::OkStatus();
  auto timer = std::make_unique<TimerWatch>(*this);
  auto wake = std::make_unique<WakeWatch>();
  std::unique_ptr<EngineWatch> other;  // nothing is to be heard of one that is broken
  timer->fd = timer_watch_->fd;
  wake->fd = wake_watch_->fd;
  if (!primary_->broken()) {
    other = std::make_unique<EngineWatch>(*this);
    other->fd = primary_->fd();
    if (other->fd < 0) return ErrnoStatus(-other->fd, "eventfd to watch an engine by", nullptr);
  }
  const std::array<Watch*, 3> now = {timer.get(), wake.get(), other.get()};
  for (Watch* watch : now) {
    if (watch == nullptr) continue;
    const absl::Status status = secondary_->AddWatch(*watch);
    if (status.ok()) continue;
    for (Watch* added : now) {
      if (added != nullptr && added->engine != nullptr)
        secondary_->RemoveWatch(added->slot, added->fd);
    }
    return status;
  }
  const std::array<Watch*, 3> before = {timer_watch_.get(), wake_watch_.get(), engine_watch_.get()};
  for (const Watch* watch : before) {
    if (watch != nullptr) primary_->RemoveWatch(watch->slot, watch->fd);
  }
  timer_watch_ = std::move(timer);
  wake_watch_ = std::move(wake);
  engine_watch_ = std::move(other);
  std::swap(primary_, secondary_);
  DoubtAlarm();  // the other engine may have been about to tell of it
  primary_->StopNotifying();
  secondary_ready_ = true;  // what is due there already raises no event
  return absl::OkStatus();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
