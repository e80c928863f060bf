// Mover: keeps the streams of a loop moving, to show that nothing is lost by it: to the loop's
// other engine at one interval, and to the next loop at another.
//
// Belongs to its loop's thread, where it is made and destroyed; Start and Stop may be called from
// any. Its loop must be run by Loop::Run, and streams change loops only with
// StreamOptions::migratable.
#ifndef PENSTOCK_EXAMPLES_COMMON_MOVER_H_
#define PENSTOCK_EXAMPLES_COMMON_MOVER_H_

#include <penstock/adaptive.h>
#include <penstock/loop.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"

namespace examples {

// From the beginning of one round to the next, or longer when a round takes longer. Zero: never.
struct MoveIntervals {
  absl::Duration switch_every;
  absl::Duration move_every;
  bool adaptive = false;  // each loop chooses its engine by measuring
};

// What the adapter of a loop has decided.
struct Decisions {
  penstock::AdaptiveCounts counts;
  std::string last;  // and why, for a person to read; empty: nothing yet
};

class Mover {
 public:
  Mover(penstock::Loop& loop, MoveIntervals intervals);
  Mover(const Mover&) = delete;
  Mover& operator=(const Mover&) = delete;

  // Makes both engines ready, if streams are to change them. Loop's thread, before Start.
  absl::Status Prepare();
  // Streams that change loops go to `next`.
  void Start(penstock::LoopHandle next);
  // Begins no more rounds, tells on stderr what was decided with `adaptive`, and calls `stopped` on
  // the loop's thread when nothing is on its way.
  void Stop(absl::AnyInvocable<void() &&> stopped);
  // With `adaptive`, also after Stop. Loop's thread.
  Decisions decisions() const;

 private:
  void ArmSwitch(absl::Duration after);
  void ArmMigrate(absl::Duration after);
  void SwitchRound();
  void MigrateRound();
  void TellIfStill();

  penstock::Loop& loop_;
  const penstock::LoopHandle handle_;
  const MoveIntervals intervals_;
  penstock::LoopHandle next_;
  penstock::Timer switch_timer_;
  penstock::Timer migrate_timer_;
  std::unique_ptr<penstock::EngineAdapter> adapter_;
  Decisions last_decisions_;  // of one that has gone
  bool switching_ = false;
  bool switch_fails_ = false;  // the last round could not begin
  bool migrating_ = false;
  bool stopping_ = false;
  absl::AnyInvocable<void() &&> stopped_;
};

// Stops all of them, and then calls `stopped`, on the thread of whichever was last: no stream is
// between two loops then, and they may be drained.
void StopMovers(const std::vector<Mover*>& movers, absl::AnyInvocable<void()> stopped);

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_MOVER_H_
