// EngineController: decides when a loop changes engine: samples in, actions out. Sans-I/O: it reads
// no clock and moves nothing; LoopAdapter feeds it and does what it says. One thread.
//
// Watching ─want─► Canary ─well─► Trial ─gain─► Watching on the other engine
//    ▲                └──── ill, fault ──┴─ none, fault ──► back, and Watching
//
// The fuse: faults of the engine that is tried, and later of the one that a trial was won by, lead
// back. Nothing else that goes wrong does: what peers and networks do is no engine's fault. Once
// one is lost for good nothing is tried any more.
#ifndef PENSTOCK_ENGINE_ENGINE_CONTROLLER_H_
#define PENSTOCK_ENGINE_ENGINE_CONTROLLER_H_

#include <penstock/adaptive.h>
#include <penstock/export.h>
#include <penstock/loop.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// What happened in one tick.
struct LoadSample {
  absl::Duration span;
  absl::Duration cpu;    // of the loop's thread
  absl::Duration delay;  // how late the tick came: how long others wait for their turn
  uint64_t reads = 0;
  uint64_t turns = 0;
  uint64_t bytes = 0;  // read
  // Of each engine, since the last tick.
  uint64_t faults_epoll = 0;
  uint64_t faults_uring = 0;
  uint64_t open = 0;  // now
  // Of these, by each engine.
  uint64_t open_epoll = 0;
  uint64_t open_uring = 0;
  // The loop has given its io_uring engine up for good, and epoll serves its streams.
  bool uring_lost = false;

  uint64_t OpenOn(EngineKind engine) const {
    return engine == EngineKind::kUring ? open_uring : open_epoll;
  }
  uint64_t FaultsOf(EngineKind engine) const {
    return engine == EngineKind::kUring ? faults_uring : faults_epoll;
  }
};

enum class AdaptState : uint8_t { kWatching, kCanary, kTrial };
inline constexpr size_t kAdaptStates = 3;

enum class AdaptEvent : uint8_t {
  kWant,  // the load speaks for the other engine
  kWell,  // a step of the trial went well
  kIll,   // it did not
};
inline constexpr size_t kAdaptEvents = 3;

inline constexpr std::array<std::array<AdaptState, kAdaptEvents>, kAdaptStates> kAdaptTransitions =
    {{
        /* kWatching */ {AdaptState::kCanary, AdaptState::kWatching, AdaptState::kWatching},
        /* kCanary   */ {AdaptState::kCanary, AdaptState::kTrial, AdaptState::kWatching},
        /* kTrial    */ {AdaptState::kTrial, AdaptState::kWatching, AdaptState::kWatching},
    }};

// Why a load that speaks for the other engine does not lead to a trial now.
enum class AdaptHold : uint8_t { kNone, kRest, kSwitches };

class EngineController {
 public:
  struct Action {
    EngineKind to = EngineKind::kAuto;  // kAuto: nothing to do
    uint64_t streams = 0;               // at most so many; 0: all
  };

  // `engine`: kEpoll or kUring, which serves the loop.
  EngineController(const AdaptiveOptions& options, EngineKind engine);
  // InvalidArgument names the option.
  static absl::Status Check(const AdaptiveOptions& options);

  Action Tick(const LoadSample& sample);
  // What became of an action: once for each, before it the next tick measures nothing.
  void Ended(const MoveCount& count);
  // It could not begin.
  void Failed(const absl::Status& why);
  // Others than this have every stream switched to `engine`, which serves the loop from now on.
  void Adopt(EngineKind engine);

  EngineKind engine() const { return engine_; }  // the one that was decided for
  AdaptState state() const { return state_; }
  uint64_t switches() const { return switches_; }
  const AdaptiveCounts& counts() const { return counts_; }
  const std::deque<std::string>& trace() const { return trace_; }

 private:
  EngineKind other() const {
    return engine_ == EngineKind::kUring ? EngineKind::kEpoll : EngineKind::kUring;
  }
  void Apply(AdaptEvent event) {
    state_ = kAdaptTransitions[static_cast<size_t>(state_)][static_cast<size_t>(event)];
  }
  Action Watch(const LoadSample& sample);
  // Whether the streams of the last action are still on their way; not for ever.
  bool StillMoving();
  // Not empty: those who wait for their turn wait too long since the trial began, so long.
  std::string Late(const LoadSample& sample) const;
  Action Canary(const LoadSample& sample);
  Action Trial(const LoadSample& sample);
  // Whether the load speaks for the other engine.
  bool Speaks(const LoadSample& sample) const;
  // If not, the trace says why: once after each trial, however long the load goes on to speak.
  bool MayTry(const LoadSample& sample);
  void NoteHold(AdaptHold hold, double batch);
  Action Begin(EngineKind to, uint64_t streams);
  Action SwitchAll(EngineKind to);
  Action GoBack(const std::string& why);
  // There is nothing left to choose.
  void Resign();
  // The same when no stream has gone yet.
  Action GiveUp(const std::string& why);
  // Has those follow that were on their way elsewhere when all went to engine_.
  Action Follow(const LoadSample& sample);
  // The engine that a trial was won by is at fault.
  Action BlowFuse(uint64_t faults);
  void Rest(bool failed);
  void Forget();
  void Note(const std::string& line);

  const AdaptiveOptions options_;
  EngineKind engine_;
  AdaptState state_ = AdaptState::kWatching;
  bool resigned_ = false;
  bool won_ = false;  // engine_ is one that a trial was won by: the fuse is in
  // Of the last action: where to, ticks until it ended, and, not empty, why a trial must not go on.
  EngineKind moving_to_ = EngineKind::kAuto;
  int ticks_moved_ = 0;
  std::string trouble_;
  bool none_went_ = false;  // of those that were to go first
  bool follow_ = false;     // when all have gone back
  absl::Duration now_;      // since the controller was made
  absl::Duration rest_until_;
  absl::Duration dwell_;
  AdaptHold hold_told_ = AdaptHold::kNone;  // since the last trial
  int speaks_ = 0;  // ticks in a row in which the load spoke for the other engine
  // In these ticks, the latest of them: what a read costs on the engine that serves.
  uint64_t before_reads_ = 0;
  absl::Duration before_cpu_;
  std::deque<double> before_each_;  // ns
  absl::Duration delay_before_;
  // When the trial began: of a read on average, and in the best of these ticks.
  double before_ns_ = 0;
  double before_best_ns_ = 0;
  uint64_t open_before_ = 0;
  int measured_ = 0;  // ticks of the trial; the first is not counted
  uint64_t trial_reads_ = 0;
  double trial_worst_ns_ = 0;
  absl::Duration trial_cpu_;
  std::deque<absl::Duration> swept_at_;  // in the window
  uint64_t switches_ = 0;
  AdaptiveCounts counts_;
  std::deque<std::string> trace_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_ENGINE_CONTROLLER_H_
