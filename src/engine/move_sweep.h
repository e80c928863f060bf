// MoveSweep: has one engine serve every connection and listener of a loop, or another loop every
// connection that may leave this one; a bounded number in a turn (I9).
//
// Owned by its loop, one of each sort at a time; its thread. Connections that come while it runs
// are not visited: those of a switch begin on the new engine, for the listeners switch first. Those
// that are connecting stay where they are.
#ifndef PENSTOCK_ENGINE_MOVE_SWEEP_H_
#define PENSTOCK_ENGINE_MOVE_SWEEP_H_

#include <penstock/export.h>
#include <penstock/loop.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/functional/any_invocable.h"
#include "engine/deferred.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Connection;
class LoopCore;

class MoveSweep : private Deferred {
 public:
  using Done = absl::AnyInvocable<void(MoveCount) &&>;

  static constexpr uint64_t kAll = UINT64_MAX;

  // Both begin in a later turn, at `first`, the head of the loop's list. A switch of at most
  // `streams`.
  MoveSweep(LoopCore& loop, EngineKind to, Connection* first, uint64_t streams, Done done);
  // To another loop, and engine `to` of it.
  MoveSweep(LoopCore& loop, EngineKind to, const LoopHandle& target, Connection* first, Done done);
  ~MoveSweep() { Stop(); }

  // Begins no more moves.
  void Stop();
  // Runs `done`, which is otherwise destroyed unrun.
  void Tell();
  // `connection` leaves the loop's list.
  void OnUnlink(const Connection& connection);

  bool leaves_loop() const { return target_.has_value(); }
  bool switches_all() const { return !leaves_loop() && all_; }
  EngineKind engine() const { return to_; }

 private:
  class Tally;

  void Run();
  void BeginNoMore();
  bool Concerns(const Connection& connection) const;

  LoopCore& loop_;
  const EngineKind to_;
  const std::optional<LoopHandle> target_;
  Connection* next_;
  const bool all_ = true;
  bool begun_all_ = false;
  uint64_t left_ = kAll;  // moves to begin
  std::shared_ptr<Tally> tally_;
  Done done_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_MOVE_SWEEP_H_
