// LoopAdapter: what an EngineAdapter is inside: samples its loop at each tick, asks the controller,
// and moves streams as that says.
//
// Owned by the user, on the loop's thread; goes before the loop. Sweeps that it began go on without
// it.
#ifndef PENSTOCK_ENGINE_LOOP_ADAPTER_H_
#define PENSTOCK_ENGINE_LOOP_ADAPTER_H_

#include <penstock/adaptive.h>
#include <penstock/export.h>

#include <cstdint>
#include <memory>

#include "base/timer_wheel.h"
#include "engine/engine_controller.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class LoopAdapter : private LoopObserver {
 public:
  LoopAdapter(LoopCore& loop, const AdaptiveOptions& options, EngineKind engine);
  ~LoopAdapter() override;
  LoopAdapter(const LoopAdapter&) = delete;
  LoopAdapter& operator=(const LoopAdapter&) = delete;

  const EngineController& controller() const { return controller_; }

 private:
  // Figures that only grow, when they were last looked at.
  struct Reading {
    int64_t now_ns = 0;
    int64_t cpu_ns = 0;
    uint64_t reads = 0;
    uint64_t turns = 0;
    uint64_t bytes = 0;
    uint64_t faults_epoll = 0;
    uint64_t faults_uring = 0;
  };

  void OnConnectionClosed() override {}
  void OnDrain() override {}
  // Of sweeps that are not its own.
  void OnSwitchAll(EngineKind to, BeginListenerSwitch begin) override;
  void OnLoopGone() override {}

  Reading Read() const;
  void Arm();
  void Tick();
  void Do(const EngineController::Action& action);
  // What it had done is, and time is measured anew.
  void Ended(const MoveCount& count);
  absl::Status Begin(const EngineController::Action& action, MoveSweep::Done done);

  LoopCore& loop_;
  EngineController controller_;
  CallbackTimer timer_;
  Reading last_;
  int64_t due_ns_ = 0;
  uint64_t actions_ = 0;
  bool acts_ = false;  // the sweep that is begun is its own
  // For actions that end when this has gone.
  const std::shared_ptr<LoopAdapter*> self_ = std::make_shared<LoopAdapter*>(this);
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_LOOP_ADAPTER_H_
