// EngineAdapter: has the engine serve a loop that serves it better, by measuring and not by belief.
//
// Off unless you make one; one for a loop. Once a tick it looks at the load: how many streams are
// open, and how many reads a turn of the loop delivers. When that has stayed alike for some ticks,
// and no verdict on such a load is at hand, a trial begins. A few streams go to the other engine
// first, old ones and new ones, to see whether it takes them. Then the two engines serve all
// streams by turns, for a slice of time each, and what is compared is the thread's CPU time for the
// bytes that were read and written, in pairs of neighbouring slices: what an engine cannot change,
// and what drifts meanwhile is the same for both. The trial goes on while the difference is within
// its noise, which is estimated from the spread of the pairs (src/engine/engine_trial.h has the
// model), and ends after `pairs_max` pairs at the latest, or with the pairs that it has
// (8 at least) when it has taken a minute. The engine that serves stays unless the other one saves
// `gain`. When for two ticks of slices streams, or an engine's reads a turn, are more than three
// times what they were, or less than a third, or the thread uses less than `busy`, the trial ends
// undecided, and none with such a load begins for `dwell`.
//
// A verdict is believed for loads of up to three times, or down to a third of, the same streams and
// reads a turn: for `dwell`, up to ten times as long the further it was from its noise, and twice
// as long each time that a trial finds the same again. When such a load comes back, its engine
// does, without a trial; of several verdicts the nearest counts. However the load changes, trials
// with their sweeps take a third of the time at most, but for half a minute and one trial more.
//
// Faults of the engine that is tried (LoopSnapshot::faults_epoll, faults_uring), which no peer
// causes, end a trial at once, and lead back also later, when it was won, whatever else is tried
// then; so do streams that it refuses, and slices in which the loop's turns came 20 ms later than
// before, once it has had five of them and twice as many as the other engine besides. Verdicts are
// then forgotten, and for `dwell`, twice that after the second time, and so on, nothing is tried. A
// loop with fewer than 200 reads in a tick, or whose thread uses less than `busy` of a processor,
// is left alone: there is nothing to save. So is one that has given its io_uring engine up: nothing
// is left to choose then, and a last line of the trace says so.
//
// Streams that are connecting when all go follow by themselves when they are open. Those that were
// on their way to another engine or loop just then are fetched by one more sweep when a trial has
// ended. Streams of StreamOptions::pinned_engine stay where they are; when no other may go either,
// a trial ends before it has begun. A SwitchAll of the program's own (penstock/move.h) ends a
// trial, too: what it chose serves, what was found is forgotten, and for `dwell` nothing else is
// tried. Every decision is a line in trace().
#ifndef PENSTOCK_ADAPTIVE_H_
#define PENSTOCK_ADAPTIVE_H_

#include <penstock/export.h>
#include <penstock/loop.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE

struct AdaptiveOptions {
  absl::Duration tick = absl::Seconds(1);  // an hour at most
  // Ticks in a row that must be alike before anything is decided.
  int sustain = 2;
  // Part of a processor that the loop's thread must use in each of them: from 0 to 1.
  double busy = 0.1;
  // Part of the streams that go first, and at least so many.
  double canary_part = 0.05;
  uint32_t canary_min = 8;
  // How long an engine serves in a trial before the other one has its turn, two slices with the
  // same one in a row; an hour at most; longer when there are few reads, or when all streams take
  // more than half of it to change engine. The time that they take, and as long as this after it,
  // is not measured.
  absl::Duration slice = absl::Milliseconds(50);
  // Pairs of slices after which a trial ends, whatever the noise; at least 8, before which nothing
  // is decided. A pair takes one sweep over all streams, and three slices. Fewer where those are
  // long: a trial of a minute ends with those that it has, once they are 8.
  int pairs_max = 72;
  // Part of the CPU time that the other engine must save.
  double gain = 0.02;
  // How long a verdict is believed at least, and at most; and how long nothing is tried after an
  // engine was ill, at first and at most.
  absl::Duration dwell = absl::Seconds(30);
  absl::Duration dwell_max = absl::Hours(1);
  // At most so many changes of the engine that last, in any such time; but one more away from an
  // engine at fault. The slices of trials do not count, nor does what fetches those that were left
  // behind: when none is left, no trial begins.
  int switches_max = 3;
  absl::Duration window = absl::Minutes(5);
  // Lines kept for trace(); the oldest go first. 0: none.
  size_t trace_max = 200;
};

// What an adapter has decided so far, by kind.
struct AdaptiveCounts {
  uint64_t trials = 0;    // begun: some streams were to go first
  uint64_t kept = 0;      // of these, won: the other engine serves from then on
  uint64_t returned = 0;  // of these, lost; or an engine at fault was left
  uint64_t recalled = 0;  // the load was one that the other engine had been found better for
  uint64_t held = 0;      // a trial or a switch was due, but not yet (a rest, switches_max)
  uint64_t adopted = 0;   // others had every stream switched
  uint64_t sweeps = 0;    // over all streams, there and back, in trials
};

namespace internal {
class LoopAdapter;
}  // namespace internal

// Loop's thread; must not outlive the loop.
class PENSTOCK_EXPORT EngineAdapter {
 public:
  // Makes both engines ready. Errors of Loop::EnableEngine: there is nothing to choose then.
  // InvalidArgument for options that contradict each other, and for a loop with
  // LoopOptions::busy_poll: the CPU time that its thread polls away hides what a read costs.
  static absl::StatusOr<std::unique_ptr<EngineAdapter>> Create(Loop& loop,
                                                               AdaptiveOptions options = {});
  ~EngineAdapter();
  EngineAdapter(const EngineAdapter&) = delete;
  EngineAdapter& operator=(const EngineAdapter&) = delete;

  // What was decided and why, oldest first, for a person to read.
  std::vector<std::string> trace() const;
  // Changes of the engine so far, without those within trials.
  uint64_t switches() const;
  AdaptiveCounts counts() const;

 private:
  explicit EngineAdapter(std::unique_ptr<internal::LoopAdapter> adapter);
  std::unique_ptr<internal::LoopAdapter> adapter_;
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ADAPTIVE_H_
