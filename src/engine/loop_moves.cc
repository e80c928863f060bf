// What a loop does when streams move: to its other engine, and from and to other loops; the rest of
// the loop is in loop_core.cc.
#include <memory>
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

absl::Status LoopCore::SwitchAll(EngineKind to, MoveSweep::Done done) {
  const absl::StatusOr<Engine*> engine = EngineFor(to);
  if (!engine.ok()) return engine.status();
  to = (*engine)->kind();
  const std::vector<LoopObserver*> observers = observers_;
  for (LoopObserver* observer : observers) observer->OnSwitchAll(to);
  BeginSweep(switch_sweep_, std::make_unique<MoveSweep>(*this, to, connections_, MoveSweep::kAll,
                                                        std::move(done)));
  return absl::OkStatus();
}

absl::Status LoopCore::SwitchSome(EngineKind to, uint64_t streams, MoveSweep::Done done) {
  const absl::StatusOr<Engine*> engine = EngineFor(to);
  if (!engine.ok()) return engine.status();
  BeginSweep(switch_sweep_, std::make_unique<MoveSweep>(*this, (*engine)->kind(), connections_,
                                                        streams, std::move(done)));
  return absl::OkStatus();
}

void LoopCore::LeaveBroken() {
  // Of a kind that needs no ring.
  constexpr EngineKind kTo = EngineKind::kEpoll;
  if (const absl::StatusOr<Engine*> other = EngineFor(kTo); !other.ok()) {
    EngineFault(kTo, other.status().ToString());
    return ForEachConnection([&](Connection& c) { c.End(other.status(), true); });
  }
  if (primary_->broken()) {
    SwapPrimary();
    engine_reason_ = "io_uring has failed";
  }
  const std::vector<LoopObserver*> observers = observers_;
  for (LoopObserver* observer : observers) observer->OnSwitchAll(kTo);
  ForEachConnection([](Connection& c) { c.LeaveBroken(kTo); });
}

void LoopCore::MigrateAll(const LoopHandle& target, EngineKind engine, MoveSweep::Done done) {
  ++leaving_sweeps_;
  BeginSweep(migrate_sweep_,
             std::make_unique<MoveSweep>(*this, engine, target, connections_, std::move(done)));
}

void LoopCore::BeginSweep(std::unique_ptr<MoveSweep>& place, std::unique_ptr<MoveSweep> next) {
  // An earlier one ends here, and tells so.
  if (place != nullptr) {
    place->Stop();
    Post([stopped = std::move(place)] { stopped->Tell(); });
  }
  place = std::move(next);
}

void LoopCore::EndSweep(MoveSweep& sweep) {
  const std::unique_ptr<MoveSweep> done =
      std::move(sweep.leaves_loop() ? migrate_sweep_ : switch_sweep_);
  if (done->switches_all() && done->engine() != primary_->kind()) SwapPrimary();
  done->Tell();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
