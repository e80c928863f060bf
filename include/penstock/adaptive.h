// EngineAdapter: has the engine serve a loop that serves it better, by measuring and not by belief.
//
// Off unless you make one; one for a loop. Once a tick it looks at how many reads a turn of the
// loop delivers: many at once are what io_uring is good at, few are what epoll is good at. When
// that speaks for the other engine for some ticks it tries: a few streams first, old ones and new
// ones, then all of them for some ticks, and compares the thread's CPU time for each read with what
// it was before, on average over the ticks that led to the trial. It keeps the other engine only
// for a gain, and only when no tick of the trial was worse than the best before; otherwise it goes
// back, and waits before it tries again, twice as long each further time. Streams that are
// connecting when all go follow by themselves when they are open. Those that were on their way to
// another engine or loop just then are fetched by one more sweep, when a trial is kept and when all
// have gone back. Faults of the engine that is tried
// (LoopSnapshot::faults_epoll, faults_uring), which no peer causes, end a trial at once, and lead
// back also later, when it was won; so do streams that it refuses, and a delay of the loop's turns
// that grows by 20 ms during a trial. A tick with fewer than 200 reads says nothing: on a quieter
// loop it never acts. Nor does it when the loop has given its io_uring engine up: nothing is left
// to choose then, and a last line of the trace says so.
//
// Streams of StreamOptions::pinned_engine stay where they are; when no other may go either, a trial
// ends before it has begun. A SwitchAll of the program's own (penstock/move.h) ends a trial, too:
// what it chose serves, and for `dwell` nothing else is tried. Every decision is a line in trace().
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
  // Reads delivered in a turn of the loop, on average over a tick: from `up` on io_uring may do
  // better, up to `down` epoll may. In between neither is tried.
  double up = 8;
  double down = 2;
  // At once, without waiting for `sustain` ticks.
  double up_at_once = 64;
  int sustain = 2;
  // Reads of more bytes than this on average do not speak for io_uring.
  uint32_t large_read = 8 * 1024;
  // Part of the streams that go first, and at least so many.
  double canary_part = 0.05;
  uint32_t canary_min = 8;
  // Ticks of a trial that are measured; the one in which streams move is not.
  int trial = 2;
  // Part of the CPU time for a read that a trial must save to be kept.
  double gain = 0.03;
  // After a trial none begins for `dwell`, twice that after the second that failed, and so on.
  absl::Duration dwell = absl::Seconds(30);
  absl::Duration dwell_max = absl::Hours(1);
  // At most so many sweeps over all streams, there and back, in any such time; but one more away
  // from an engine at fault. What fetches those that were left behind does not count.
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
  uint64_t held = 0;      // a load spoke for the other engine, but not yet (dwell, switches_max)
  uint64_t adopted = 0;   // others had every stream switched
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
  // Sweeps over all streams so far, there and back.
  uint64_t switches() const;
  AdaptiveCounts counts() const;

 private:
  explicit EngineAdapter(std::unique_ptr<internal::LoopAdapter> adapter);
  std::unique_ptr<internal::LoopAdapter> adapter_;
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ADAPTIVE_H_
