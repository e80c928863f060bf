// What a loop does when streams move: to its other engine, and from and to other loops; the rest of
// the loop is in loop_core.cc.
#include <utility>
#include <vector>

#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

absl::Status LoopCore::AdmitMove() {
  if (draining_) return absl::UnavailableError("the target loop is draining");
  return AdmitConnection();
}

void LoopCore::Join(Connection& connection) {
  Link(connection);
  counters_.open.Add(1);
  connection.UpdatePinned();
  connection.ArmDeadlines();
}

void LoopCore::Leave(Connection& connection) {
  timers_.Cancel(connection);
  if (connection.busy_) counters_.busy.Sub(1);
  connection.busy_ = false;
  counters_.pinned_bytes.Sub(std::exchange(connection.pinned_, 0));
  counters_.open.Sub(1);
  slots_.Free(connection.slot_);
  Unlink(connection);
  const std::vector<LoopObserver*> observers = observers_;
  for (LoopObserver* observer : observers) observer->OnConnectionClosed();
}

absl::Status LoopCore::SwitchAll(EngineKind to, SwitchSweep::Done done) {
  const absl::StatusOr<Engine*> engine = EngineFor(to);
  if (!engine.ok()) return engine.status();
  to = (*engine)->kind();
  const std::vector<LoopObserver*> observers = observers_;
  for (LoopObserver* observer : observers) observer->OnSwitchAll(to);
  BeginSweep(to, SwitchSweep::kAll, std::move(done));
  return absl::OkStatus();
}

absl::Status LoopCore::SwitchSome(EngineKind to, uint64_t streams) {
  const absl::StatusOr<Engine*> engine = EngineFor(to);
  if (!engine.ok()) return engine.status();
  BeginSweep((*engine)->kind(), streams, nullptr);
  return absl::OkStatus();
}

void LoopCore::BeginSweep(EngineKind to, uint64_t streams, SwitchSweep::Done done) {
  // An earlier one ends here, and tells so.
  if (sweep_ != nullptr) {
    sweep_->Stop();
    Post([stopped = std::move(sweep_)] { stopped->Tell(); });
  }
  sweep_ = std::make_unique<SwitchSweep>(*this, to, connections_, streams, std::move(done));
}

void LoopCore::EndSweep(EngineKind to, bool all) {
  // Not here, where an engine may be in its wait.
  Post([this, to, all, done = std::move(sweep_)] {
    if (all && to != primary_->kind()) SwapPrimary();
    done->Tell();
  });
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
