// EngineController: decides when a loop changes engine: samples in, actions out. Sans-I/O: it reads
// no clock and moves nothing; LoopAdapter feeds it and does what it says. One thread.
//
//     Watching ─want─► Canary ─well─► Trial ─well─► Watching, on the engine that was found better
//        ▲                └─────── ill ──┴──► all go back, and Watching
//
// In the trial the engines serve by turns, a slice each: B | A A | B B | A ..., with a sweep over
// all streams at each bar. Two slices between which a bar lies are a pair of EngineTrial.
//
// The fuse: faults of the engine that is tried, and later, also while another trial goes on, of the
// one that was found better, lead back. Nothing else that goes wrong does: what peers and networks
// do is no engine's fault. Once one is lost for good nothing is tried any more.
#ifndef PENSTOCK_ENGINE_ENGINE_CONTROLLER_H_
#define PENSTOCK_ENGINE_ENGINE_CONTROLLER_H_

#include <penstock/adaptive.h>
#include <penstock/export.h>
#include <penstock/loop.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/engine_trial.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// What happened since the last one.
struct LoadSample {
  absl::Duration span;
  absl::Duration cpu;    // of the loop's thread
  absl::Duration delay;  // how late it came: how long others wait for their turn
  uint64_t reads = 0;
  uint64_t turns = 0;
  uint64_t bytes = 0;  // read and written
  // Of each engine.
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
  kWant,  // a load about which nothing is known
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
  // When the next one is due, after a Tick or Ended.
  absl::Duration NextTick() const;
  // What became of an action, once for each, `since` the last tick, whose time begins anew.
  void Ended(const MoveCount& count, absl::Duration since);
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
  // A tick, or a slice, with fewer of them says nothing; a slice then goes on.
  static constexpr uint64_t kReadsMin = 200;

  static EngineKind Opposite(EngineKind engine) {
    return engine == EngineKind::kUring ? EngineKind::kEpoll : EngineKind::kUring;
  }
  static bool Alike(double a, double b);
  static double ReadsOfTurn(uint64_t reads, uint64_t turns);
  static size_t SideOf(EngineKind engine) { return engine == EngineKind::kUring ? 1 : 0; }

  static std::string Name(EngineKind engine);
  // To the second: enough for a person.
  static std::string About(absl::Duration time);

  // By which loads are told apart.
  struct Load {
    double open = 0;
    double batch = 0;  // reads a turn; engines deliver the same load in different ones
    bool Near(const Load& other) const;
    double Distance(const Load& other) const;  // 1: none
  };
  // What a trial found, or that it ended undecided, for loads that are near to the one it met, as
  // the engine that serves delivers it.
  struct Verdict {
    std::array<Load, 2> loads;  // by SideOf
    EngineKind better;          // kAuto: undecided
    absl::Duration found;
    absl::Duration until;
    int confirmed;  // trials in a row that found the same, but for the first
    bool decided() const { return better != EngineKind::kAuto; }
  };
  // Of a trial, on one engine.
  struct Side {
    uint64_t reads = 0;
    uint64_t turns = 0;
    double batch = 0;  // reads a turn of its first slice
    double cost = 0;   // of a byte in its last slice, in ns of CPU
    int late = 0;      // slices
  };
  struct Trial {
    EngineTrial test;
    Load load;
    absl::Duration began;
    EngineKind on = EngineKind::kAuto;  // the one whose turn it is
    absl::Duration slice;
    LoadSample sum = {};             // of the slice that goes on: what adds up
    bool settles = true;             // streams have just come
    bool half = false;               // a pair has its first slice
    absl::Duration unlike = {};      // how long the load has been another
    std::array<Side, 2> sides = {};  // by SideOf

    Side& SideOn(EngineKind engine) { return sides[SideOf(engine)]; }
    // To what all streams took to change engine.
    void FitSlice(absl::Duration sweep, const AdaptiveOptions& options);
  };

  EngineKind other() const { return Opposite(engine_); }
  void Apply(AdaptEvent event) {
    state_ = kAdaptTransitions[static_cast<size_t>(state_)][static_cast<size_t>(event)];
  }

  Action Watch(const LoadSample& sample);
  // Whether the load has been worth a decision for long enough.
  bool Lasts(const LoadSample& sample);
  // What is believed of the load that lasts, or of the nearest to it; null: nothing.
  const Verdict* Believed() const;
  // Has the engine serve that `verdict` says is better.
  Action Recall(const Verdict& verdict);
  Action BeginTrial(const LoadSample& sample);
  // How long none may begin; 0: one may.
  absl::Duration TrialRests() const;
  // If something holds a wish, the trace says so: once after each decision, however long it does.
  bool Held(absl::Duration rests, const std::string& wish);

  Action TickCanary(const LoadSample& sample);
  Action TickTrial(const LoadSample& sample);
  Action EndSlice(const LoadSample& sample);
  // Whether the slice that has ended, on a loop with `open` streams, had another load than the one
  // that the trial is of.
  bool IsAnother(const LoadSample& slice, uint64_t open) const;
  // Those who wait for their turn wait longer with the engine that is tried: how it is said.
  std::string Late(const LoadSample& sample);
  // The trial ends, and with it the one that serves is known.
  Action Win();
  Action Lose();
  // Without a verdict: nothing is known of this load for a while.
  Action EndUndecided(const std::string& why);
  Action Conclude();
  std::string Found() const;
  // How long it is believed. kAuto: the trial ended undecided.
  absl::Duration Learn(EngineKind better, double confidence);
  // Its time is charged. No trial: nothing.
  void EndTrial();

  // The engine that is tried is ill, or could not be had.
  Action GoBack(const std::string& why);
  // The same when no stream has gone yet.
  Action GiveUp(const std::string& why);
  // The engine that was found better is at fault.
  Action BlowFuse(uint64_t faults);
  // There is nothing left to choose.
  void Resign();
  // Nothing is known any more, and for `dwell_` nothing is tried.
  void Rest(bool ill);

  // Whether the streams of the last action are still on their way; not for ever.
  bool StillMoving();
  Action Begin(EngineKind to, uint64_t streams);
  // A change that lasts.
  Action Switch(EngineKind to);
  // One of a trial.
  Action Sweep(EngineKind to);
  // Has those follow that were on their way elsewhere when all went to engine_.
  Action Follow(const LoadSample& sample);
  // What lasted and what held it up begins anew.
  void Decided();
  void Note(const std::string& line);

  const AdaptiveOptions options_;
  EngineKind engine_;
  AdaptState state_ = AdaptState::kWatching;
  std::optional<Trial> trial_;  // in kCanary and kTrial
  bool resigned_ = false;
  bool won_ = false;  // engine_ is one that was found better: the fuse is in
  // Of the last action: where to, when it began, ticks until it ended, and, not empty, why a trial
  // must not go on.
  EngineKind moving_to_ = EngineKind::kAuto;
  absl::Duration moving_since_;
  int ticks_moved_ = 0;
  std::string trouble_;
  bool none_went_ = false;  // of those that were to go first
  bool follow_ = false;     // when all have gone to engine_
  absl::Duration now_;      // since the controller was made
  absl::Duration rest_until_;
  absl::Duration credit_;  // how long trials may take before others must wait
  absl::Duration dwell_;
  bool rest_told_ = false;  // since the last decision, why nothing more is done
  bool spent_told_ = false;
  Load load_;      // in the last tick
  int alike_ = 0;  // ticks in a row with such a load, since the last decision
  absl::Duration delay_before_;
  std::deque<Verdict> verdicts_;            // the oldest first
  std::deque<absl::Duration> switched_at_;  // in the window
  uint64_t switches_ = 0;
  AdaptiveCounts counts_;
  std::deque<std::string> trace_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_ENGINE_CONTROLLER_H_
