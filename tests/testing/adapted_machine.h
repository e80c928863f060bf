// AdaptedMachine: a loop that is a few figures, with an EngineController of its own: what a read
// costs on either engine, how much of it is noise, and what becomes of streams that are to move.
// Steps by the controller's own ticks; the same seed always tells the same story.
#ifndef PENSTOCK_TESTS_TESTING_ADAPTED_MACHINE_H_
#define PENSTOCK_TESTS_TESTING_ADAPTED_MACHINE_H_

#include <penstock/adaptive.h>
#include <penstock/loop.h>

#include <cstdint>
#include <random>
#include <string>

#include <gtest/gtest.h>

#include "absl/time/time.h"
#include "engine/engine_controller.h"

namespace penstock::testing {

class AdaptedMachine {
 public:
  using Action = internal::EngineController::Action;

  AdaptedMachine(const AdaptiveOptions& options, EngineKind engine, uint64_t seed = 1)
      : random_(seed), controller_(options, engine), serving_(engine) {}

  // The load, from the next step on.
  uint64_t open = 1000;
  double rate = 400'000;     // reads a second
  double batch = 50;         // reads a turn
  double batch_uring = 0;    // on io_uring; 0: the same
  double cost_epoll = 1000;  // ns of CPU a read
  double cost_uring = 1000;
  double cost_settling = 0;  // in the first step after streams have moved; 0: the same
  double spread = 0;         // of a step's costs, as a part of them
  absl::Duration delay;
  uint64_t faults_epoll = 0;  // in each step
  uint64_t faults_uring = 0;
  bool lost = false;
  // Streams that move.
  uint64_t behind = 0;   // of those that were to, that stay
  uint64_t refused = 0;  // of each sweep
  absl::Duration sweep_time;
  bool tells = true;  // how a sweep has ended

  // One tick, and what the controller wants then, which is done before the next.
  Action Step();
  // Steps until the trial that goes on, or the next, has ended; false: none has.
  bool RunTrial();
  // Steps until one begins.
  double SecondsUntilTrial();

  bool Traced(const std::string& words) const;
  // The engine that has the streams.
  EngineKind serving() const { return serving_; }
  absl::Duration now() const { return now_; }
  internal::EngineController* operator->() { return &controller_; }

 private:
  internal::LoadSample Sample();

  std::mt19937_64 random_;
  std::normal_distribution<double> normal_;
  internal::EngineController controller_;
  EngineKind serving_;
  bool settles_ = false;
  absl::Duration now_;
};

// Tests make theirs with `options_`.
class AdaptedMachineTest : public ::testing::Test {
 protected:
  AdaptedMachine Make(EngineKind engine) { return AdaptedMachine(options_, engine); }
  // One on which io_uring is better by a tenth, and serves after a trial.
  AdaptedMachine Won() {
    AdaptedMachine m = Make(EngineKind::kEpoll);
    m.cost_uring = 900;
    EXPECT_TRUE(m.RunTrial());
    EXPECT_EQ(m->engine(), EngineKind::kUring);
    return m;
  }
  static bool None(const AdaptedMachine::Action& action) { return action.to == EngineKind::kAuto; }

  AdaptiveOptions options_;
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_ADAPTED_MACHINE_H_
