// LoopBalance: what a LoopBalancer is inside: asks every loop once a tick, feeds the controller,
// and has streams go as that says.
//
// Lives on the thread of its home loop; held by the LoopBalancer, and for the length of a task by
// the tasks that bring answers home. What it asks of a loop runs there, and knows the loop alone.
#ifndef PENSTOCK_ENGINE_LOOP_BALANCE_H_
#define PENSTOCK_ENGINE_LOOP_BALANCE_H_

#include <penstock/balance.h>
#include <penstock/export.h>
#include <penstock/loop.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "base/timer_wheel.h"
#include "engine/balance_controller.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class LoopBalance : public std::enable_shared_from_this<LoopBalance> {
 public:
  LoopBalance(LoopCore& home, std::vector<LoopHandle> loops, const BalanceOptions& options);

  void Start() { Arm(); }
  void Stop(absl::AnyInvocable<void() &&> stopped);
  const BalanceController& controller() const { return controller_; }

 private:
  struct Reading {
    int64_t now_ns = 0;
    int64_t cpu_ns = 0;
  };
  struct Member {
    LoopHandle loop;
    bool asked = false;  // and no answer yet
    bool told = false;   // since the last tick
    bool known = false;  // `last` is set
    Reading last;
    double busy = 0;
  };
  // Of one loop and one decision; its thread's, but for the reference count.
  struct Traffic;
  // The moves of one decision; goes with the last of them, on whatever thread.
  struct Batch;

  void Arm();
  void Tick();
  void Ask(size_t index);
  void OnAnswer(size_t index, const Reading& reading);
  void Observe(const BalanceController::Action& action);
  void Move(const BalanceController::Action& action);
  void OnEnded(const MoveCount& streams, double part);
  void TellIfStill();

  LoopCore& home_;
  const LoopHandle home_handle_;
  const BalanceOptions options_;
  std::vector<Member> members_;
  BalanceController controller_;
  CallbackTimer timer_;
  std::shared_ptr<Traffic> traffic_;
  bool moving_ = false;
  bool stopping_ = false;
  absl::AnyInvocable<void() &&> stopped_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_LOOP_BALANCE_H_
