// MoveSweep: has one engine serve every connection and listener of a loop, or what a broken engine
// has left behind, or another loop every connection that may leave this one; a bounded number in a
// turn (I9).
//
// Owned by its loop, one of each sort at a time; its thread. Connections that come while it runs
// are not visited. When all switch, listeners switch first, and who comes or connects without
// asking for an engine begins on the new one; those that are connecting follow, uncounted, when
// they are open. A switch of some leaves those alone; of a broken engine's, LoopCore ends them. One
// that is between engines goes where it was going.
#ifndef PENSTOCK_ENGINE_MOVE_SWEEP_H_
#define PENSTOCK_ENGINE_MOVE_SWEEP_H_

#include <penstock/export.h>
#include <penstock/loop.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "engine/deferred.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Connection;
class LoopCore;
class LoopObserver;

// For a listener that is told to switch: what it reports to, once, with OK when it has. Destroyed
// unrun, for the listener has gone or was told otherwise, it counts as neither. May be empty.
using ListenerSwitched = absl::AnyInvocable<void(const absl::Status&) &&>;
using BeginListenerSwitch = absl::FunctionRef<ListenerSwitched()>;

class MoveSweep : private Deferred {
 public:
  using Done = absl::AnyInvocable<void(MoveCount) &&>;
  enum class Sort : uint8_t {
    kSwitch,   // to the loop's other engine
    kRescue,   // from an engine that is broken, pinned ones too
    kMigrate,  // to another loop
  };

  static constexpr uint64_t kAll = UINT64_MAX;

  // All begin in a later turn, at `first`, the head of the loop's list. A switch of at most
  // `streams`.
  MoveSweep(LoopCore& loop, EngineKind to, Connection* first, uint64_t streams, Done done);
  // To another loop, and engine `to` of it.
  MoveSweep(LoopCore& loop, EngineKind to, const LoopHandle& target, Connection* first, Done done);
  // A rescue, which ends with the first connection that is refused: LoopCore tries again later.
  MoveSweep(LoopCore& loop, EngineKind to, Connection* first);
  ~MoveSweep() { Stop(); }

  // Begins no more moves.
  void Stop();
  // Runs `done`, which is otherwise destroyed unrun.
  void Tell();
  // `connection` leaves the loop's list.
  void OnUnlink(const Connection& connection);
  // Has `listeners` switch, and counts what becomes of them. This may be gone afterwards.
  void SwitchListeners(const std::vector<LoopObserver*>& listeners);

  Sort sort() const { return sort_; }
  bool switches_all() const { return sort_ == Sort::kSwitch && all_; }
  EngineKind engine() const { return to_; }

 private:
  class Tally;

  MoveSweep(LoopCore& loop, Sort sort, EngineKind to, std::optional<LoopHandle> target,
            Connection* first, uint64_t streams, Done done);

  void Run();
  // Has it move if it is one of those that do.
  void Visit(Connection& connection);
  void BeginNoMore();
  bool Concerns(const Connection& connection) const;

  LoopCore& loop_;
  const Sort sort_;
  const EngineKind to_;
  const std::optional<LoopHandle> target_;
  Connection* next_;
  const bool all_;
  bool begun_all_ = false;
  uint64_t left_;  // moves to begin
  std::shared_ptr<Tally> tally_;
  Done done_;
};

inline constexpr size_t kMoveSweepSorts = 3;

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_MOVE_SWEEP_H_
