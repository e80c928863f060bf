// SwitchSweep: has one engine serve every connection and listener of a loop, a bounded number in a
// turn (I9).
//
// Owned by its loop, one at a time; its thread. Connections that come while it runs begin on the
// new engine, for the listeners switch first; those that are connecting stay where they are.
#ifndef PENSTOCK_ENGINE_SWITCH_SWEEP_H_
#define PENSTOCK_ENGINE_SWITCH_SWEEP_H_

#include <penstock/export.h>
#include <penstock/loop.h>

#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "engine/deferred.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Connection;
class LoopCore;

class SwitchSweep : private Deferred {
 public:
  using Done = absl::AnyInvocable<void(SwitchCount) &&>;
  static constexpr uint64_t kAll = UINT64_MAX;

  // Begins in a later turn, at `first`, the head of the loop's list; moves at most `streams`.
  SwitchSweep(LoopCore& loop, EngineKind to, Connection* first, uint64_t streams, Done done);
  ~SwitchSweep() { Stop(); }

  // Begins no more moves.
  void Stop();
  // Runs `done`, which is otherwise destroyed unrun.
  void Tell();
  // `connection` leaves the loop's list.
  void OnUnlink(const Connection& connection);

 private:
  // What the moves report to, which may outlive the sweep.
  struct Tally {
    SwitchCount count;
    uint64_t under_way = 0;
    SwitchSweep* sweep = nullptr;
  };

  class Ticket;

  void Run();
  void FinishIfDone();

  LoopCore& loop_;
  const EngineKind to_;
  Connection* next_;
  const bool all_;
  uint64_t left_;  // moves to begin
  std::shared_ptr<Tally> tally_;
  Done done_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_SWITCH_SWEEP_H_
