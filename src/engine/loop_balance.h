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
  ~LoopBalance();

  void Start() { Arm(); }
  void Stop(absl::AnyInvocable<void() &&> stopped);
  const BalanceController& controller() const { return controller_; }

 private:
  struct Reading {
    int64_t now_ns = 0;
    int64_t cpu_ns = 0;
    bool polls = false;  // before it sleeps: cpu_ns says nothing
  };
  struct Member {
    // Once a tick.
    BalanceController::Busy TakeBusy();

    LoopHandle loop;
    std::weak_ptr<Reading> asked;  // until the answer has come, or the loop has gone
    bool told = false;             // since the last tick
    bool known = false;            // `last` is set
    bool left_out = false;         // for good
    int late = 0;                  // ticks in a row without an answer
    Reading last;
    double busy = 0;
  };
  // Of one loop and one decision; its thread's, but for the reference count.
  struct Traffic;
  // The moves of one decision; goes with the last of them, on whatever thread.
  struct Batch;
  // One decision, which the loop begins or the balancer takes back, whoever is first.
  struct Order;

  void Arm();
  void Tick();
  void Do(const BalanceController::Action& action);
  void Ask(size_t index);
  // For good.
  void LeaveOut(size_t index, BalanceAbsence why);
  std::vector<BalanceController::Busy> TakeBusy();
  void OnAnswer(size_t index, const Reading& reading);
  // Whether the loop began to count what streams carry less than a whole tick ago, or has not yet.
  bool AwaitsTraffic(const std::vector<BalanceController::Busy>& busy);
  void Observe(const BalanceController::Action& action);
  void Move(const BalanceController::Action& action);
  void OnEnded(const std::shared_ptr<Order>& order, const MoveCount& streams, double part);
  // No more of the order begins. True: nothing had.
  bool TakeBack();
  // Goes on without an order that takes too long.
  void GiveUpWhenLate();
  void TellIfStill();

  LoopCore& home_;
  const LoopHandle home_handle_;
  const BalanceOptions options_;
  std::vector<Member> members_;
  BalanceController controller_;
  CallbackTimer timer_;
  int64_t ticked_at_ns_;
  std::shared_ptr<Traffic> traffic_;
  std::weak_ptr<void> observing_;  // until the loop has begun to, or has gone
  size_t observed_ = 0;
  bool observes_late_ = false;    // at the last tick it had not begun
  std::shared_ptr<Order> order_;  // that the controller waits for
  int order_ticks_ = 0;
  int under_way_ = 0;  // orders, those that nobody waits for included
  bool stopping_ = false;
  absl::AnyInvocable<void() &&> stopped_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_LOOP_BALANCE_H_
