// LoopBalancer: evens out the load of several loops, by giving streams of the busiest one to the
// least busy one.
//
// Off unless you make one; one for a group of loops, each on a thread of its own. Once a tick every
// loop tells what part of the time its thread was on a CPU. When the busiest and the least busy one
// have differed for some ticks, the traffic of the busiest one's streams is looked at for a tick;
// then those that carry most go, as many as halve the difference. A stream that alone carries more
// than that stays, since it would only carry the load elsewhere. After that the loops are watched
// for as many ticks again, so no stream goes back and forth.
//
// A loop that is too late to answer within a tick counts as busy all the time; after 8 such ticks,
// and when it has gone, it is left out. So is one with LoopOptions::busy_poll, whose thread is on a
// CPU whether it has anything to do or not. Moves that a loop has not begun within 8 ticks are
// called off, and those that have not ended by then are waited for no longer.
//
// Only streams of StreamOptions::migratable go; what Migrate (penstock/move.h) asks of those who
// own them holds for these moves too. Every decision is a line in trace(), as is a loop that is
// left out or answers again; each begins with the time, to a tick, since the balancer was made.
#ifndef PENSTOCK_BALANCE_H_
#define PENSTOCK_BALANCE_H_

#include <penstock/export.h>
#include <penstock/loop.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE

struct BalanceOptions {
  absl::Duration tick = absl::Seconds(1);  // an hour at most
  // By how much two loops must differ, in parts of the time that a thread is on a CPU, and for how
  // many ticks in a row.
  double difference = 0.25;
  int sustain = 3;
  // Streams that go at once, at most, and connections of a loop that are looked at for it.
  uint32_t streams_max = 256;
  uint32_t observed_max = 8192;
  // When no stream could go, or none arrived, nothing is tried for `rest` ticks, twice that after
  // the second such time, and so on up to `rest_max`.
  int rest = 10;
  int rest_max = 600;
  // Lines kept for trace(); the oldest go first. 0: none.
  size_t trace_max = 200;
};

// What a balancer has decided so far, by what came of it.
struct BalanceCounts {
  uint64_t moved = 0;     // streams went
  uint64_t none = 0;      // none may go, is small enough or was taken
  uint64_t given_up = 0;  // not begun, or not ended, within 8 ticks
  uint64_t held = 0;      // nothing was asked for: loops differ in a rest, or did so no more
};

namespace internal {
class LoopBalance;
}  // namespace internal

// Belongs to the loop that it is made with, on whose thread all its calls are made; must not
// outlive it. The loops that it balances may come to their end at any time.
class PENSTOCK_EXPORT LoopBalancer {
 public:
  // `home`, which may be one of `loops`, keeps the time. InvalidArgument for fewer than two loops,
  // for one that is there twice or is none, and for options that make no sense.
  static absl::StatusOr<std::unique_ptr<LoopBalancer>> Create(Loop& home,
                                                              std::vector<LoopHandle> loops,
                                                              BalanceOptions options = {});
  // Begins no more moves; those under way end as they would have.
  ~LoopBalancer();
  LoopBalancer(const LoopBalancer&) = delete;
  LoopBalancer& operator=(const LoopBalancer&) = delete;

  // Begins no more moves, and calls `stopped`, in a later turn, when none is under way: then the
  // loops may be drained. Once. A stream that has left for a loop which is not run is under way
  // until that runs again or is destroyed.
  void Stop(absl::AnyInvocable<void() &&> stopped);

  // What was decided and why, oldest first, for a person to read. Loops are numbered from 0.
  std::vector<std::string> trace() const;
  // Streams that have arrived, so far.
  uint64_t moves() const;
  BalanceCounts counts() const;

 private:
  explicit LoopBalancer(std::shared_ptr<internal::LoopBalance> balance);
  std::shared_ptr<internal::LoopBalance> balance_;
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BALANCE_H_
