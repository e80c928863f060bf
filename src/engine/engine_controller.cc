#include "engine/engine_controller.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// A tick with fewer reads says nothing about what a read costs.
constexpr uint64_t kReadsMin = 200;
// A trial that makes others wait this much longer is ill.
constexpr absl::Duration kDelayMax = absl::Milliseconds(20);
// Ticks that an action may take. One that takes longer has met a kernel that does not let go.
constexpr int kTicksMoving = 8;
// Ticks that what a read cost before a trial is the average of.
constexpr size_t kTicksKept = 8;

std::string Name(EngineKind kind) { return std::string(EngineKindName(kind)); }

double NsOfRead(absl::Duration cpu, uint64_t reads) {
  return absl::ToDoubleNanoseconds(cpu) / static_cast<double>(std::max<uint64_t>(reads, 1));
}

double ReadsOfTurn(const LoadSample& sample) {
  return static_cast<double>(sample.reads) /
         static_cast<double>(std::max<uint64_t>(sample.turns, 1));
}

}  // namespace

EngineController::EngineController(const AdaptiveOptions& options, EngineKind engine)
    : options_(options), engine_(engine), dwell_(options.dwell) {}

absl::Status EngineController::Check(const AdaptiveOptions& o) {
  const auto bad = [](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("adaptive options: ", what));
  };
  if (o.tick <= absl::ZeroDuration() || o.tick > absl::Hours(1)) {
    return bad("tick must be positive, and an hour at most");
  }
  if (!(o.down >= 0 && o.down < o.up)) return bad("down must be below up, and not negative");
  if (!(o.up_at_once >= o.up)) return bad("up_at_once must not be below up");
  if (o.sustain < 1) return bad("sustain must be at least 1");
  if (!(o.canary_part >= 0 && o.canary_part <= 1)) return bad("canary_part must be from 0 to 1");
  if (o.trial < 1) return bad("trial must be at least 1");
  if (!(o.gain >= 0 && o.gain < 1)) return bad("gain must be from 0 to below 1");
  if (o.dwell < absl::ZeroDuration() || o.dwell_max < o.dwell) {
    return bad("dwell must not be negative, nor above dwell_max");
  }
  if (o.switches_max < 2)
    return bad("switches_max must be at least 2: a trial goes there and back");
  if (o.window <= absl::ZeroDuration()) return bad("window must be positive");
  return absl::OkStatus();
}

EngineController::Action EngineController::Tick(const LoadSample& sample) {
  now_ += sample.span;
  if (sample.uring_lost) Resign();
  if (resigned_) return {};
  while (!swept_at_.empty() && swept_at_.front() + options_.window <= now_) swept_at_.pop_front();
  switch (state_) {
    case AdaptState::kWatching:
      return Watch(sample);
    case AdaptState::kCanary:
      return Canary(sample);
    case AdaptState::kTrial:
      return Trial(sample);
  }
  return {};
}

bool EngineController::Speaks(const LoadSample& sample) const {
  // Without a stream there is nobody to try with, whatever has just gone did.
  if (sample.reads < kReadsMin || sample.open == 0) return false;
  const double batch = ReadsOfTurn(sample);
  if (engine_ == EngineKind::kUring) return batch <= options_.down;
  return batch >= options_.up && sample.bytes / sample.reads <= options_.large_read;
}

bool EngineController::MayTry(const LoadSample& sample) {
  const bool rests = now_ < rest_until_;
  // There, and perhaps back.
  const bool spent = static_cast<int>(swept_at_.size()) + 2 > options_.switches_max;
  if (!rests && !spent) return true;
  const AdaptHold hold = rests ? AdaptHold::kRest : AdaptHold::kSwitches;
  if (std::exchange(hold_told_, hold) != hold) NoteHold(hold, ReadsOfTurn(sample));
  return false;
}

void EngineController::NoteHold(AdaptHold hold, double batch) {
  ++counts_.held;
  const std::string wish =
      absl::StrFormat("%s: %.1f reads a turn speak for %s, ", Name(engine_), batch, Name(other()));
  if (hold == AdaptHold::kRest) {
    return Note(absl::StrCat(wish, "but no trial begins for another ",
                             absl::FormatDuration(rest_until_ - now_), " (dwell)"));
  }
  Note(absl::StrCat(wish, "but ", swept_at_.size(), " of at most ", options_.switches_max,
                    " switches in ", absl::FormatDuration(options_.window),
                    " are made, and a trial may take two (switches_max)"));
}

EngineController::Action EngineController::Watch(const LoadSample& sample) {
  if (const uint64_t faults = sample.FaultsOf(engine_); won_ && faults > 0) return BlowFuse(faults);
  const bool moving = StillMoving();
  if (!moving && std::exchange(follow_, false)) {
    if (const Action follow = Follow(sample); follow.to != EngineKind::kAuto) return follow;
  }
  if (sample.reads >= kReadsMin) delay_before_ = sample.delay;
  if (!Speaks(sample)) {
    Forget();
    return {};
  }
  if (++speaks_ > static_cast<int>(kTicksKept)) {
    before_reads_ -= before_reads_ / kTicksKept;
    before_cpu_ -= before_cpu_ / kTicksKept;
  }
  before_reads_ += sample.reads;
  before_cpu_ += sample.cpu;
  before_each_.push_back(NsOfRead(sample.cpu, sample.reads));
  if (before_each_.size() > kTicksKept) before_each_.pop_front();
  const double batch = ReadsOfTurn(sample);
  const bool at_once = engine_ == EngineKind::kEpoll && batch >= options_.up_at_once;
  if ((speaks_ < options_.sustain && !at_once) || moving || !MayTry(sample)) return {};
  before_ns_ = NsOfRead(before_cpu_, before_reads_);
  before_best_ns_ = *std::min_element(before_each_.begin(), before_each_.end());
  open_before_ = sample.open;
  const auto part = static_cast<uint64_t>(static_cast<double>(sample.open) * options_.canary_part);
  const uint64_t streams = std::max<uint64_t>({part, options_.canary_min, 1});
  Note(absl::StrFormat(
      "%s: %.1f reads a turn for %d ticks, %.0f ns of CPU each: %s may do better, %d of %d streams "
      "go first",
      Name(engine_), batch, speaks_, before_ns_, Name(other()), std::min(streams, sample.open),
      sample.open));
  Forget();
  ++counts_.trials;
  Apply(AdaptEvent::kWant);
  return Begin(other(), streams);
}

bool EngineController::StillMoving() {
  if (moving_to_ == EngineKind::kAuto) return false;
  if (++ticks_moved_ <= kTicksMoving) return true;
  trouble_ = absl::StrCat("streams are still on their way after ", kTicksMoving, " ticks");
  moving_to_ = EngineKind::kAuto;
  return false;
}

std::string EngineController::Late(const LoadSample& sample) const {
  if (sample.delay <= delay_before_ + kDelayMax) return "";
  return absl::StrCat("turns come ", absl::FormatDuration(sample.delay), " late");
}

EngineController::Action EngineController::Canary(const LoadSample& sample) {
  if (const uint64_t faults = sample.FaultsOf(other()); faults > 0) {
    return GoBack(absl::StrCat(faults, " engine faults"));
  }
  if (StillMoving()) return {};
  if (none_went_) return GiveUp(trouble_);
  if (!trouble_.empty()) return GoBack(trouble_);
  if (const std::string late = Late(sample); !late.empty()) return GoBack(late);
  Apply(AdaptEvent::kWell);
  measured_ = -1;
  trial_reads_ = 0;
  trial_cpu_ = absl::ZeroDuration();
  trial_worst_ns_ = 0;
  Note(absl::StrCat(Name(other()), " serves some well: all ", sample.open, " streams follow"));
  return SwitchAll(other());
}

EngineController::Action EngineController::Trial(const LoadSample& sample) {
  if (const uint64_t faults = sample.FaultsOf(other()); faults > 0) {
    return GoBack(absl::StrCat(faults, " engine faults"));
  }
  if (StillMoving()) return {};
  if (!trouble_.empty()) return GoBack(trouble_);
  if (++measured_ == 0) return {};  // streams moved in this one
  if (const std::string late = Late(sample); !late.empty()) return GoBack(late);
  trial_reads_ += sample.reads;
  trial_cpu_ += sample.cpu;
  trial_worst_ns_ = std::max(trial_worst_ns_, NsOfRead(sample.cpu, sample.reads));
  if (measured_ < options_.trial) return {};
  if (trial_reads_ < kReadsMin) return GoBack("too few reads to tell");
  if (sample.open > 2 * open_before_ || sample.open < open_before_ / 2) {
    return GoBack(
        absl::StrCat("the load is another, ", sample.open, " streams instead of ", open_before_));
  }
  const double ns = NsOfRead(trial_cpu_, trial_reads_);
  const double gain = 1 - ns / before_ns_;
  const std::string found =
      absl::StrFormat("%.0f ns of CPU a read, %.1f %% %s", ns, 100 * std::max(gain, -gain),
                      gain >= 0 ? "less" : "more");
  if (gain < options_.gain) return GoBack(found);
  // Ticks that differ by more than the engines do tell nothing about those.
  if (trial_worst_ns_ > before_best_ns_)
    return GoBack(absl::StrCat(found, ", but not in every tick"));
  Apply(AdaptEvent::kWell);
  ++counts_.kept;
  engine_ = other();
  won_ = true;
  Rest(false);
  Note(absl::StrCat(Name(engine_), " stays: ", found));
  return Follow(sample);
}

EngineController::Action EngineController::Follow(const LoadSample& sample) {
  const uint64_t left = sample.OpenOn(other());
  if (left == 0) return {};
  Note(absl::StrCat(left, " streams are on ", Name(other()), " still: those that may go follow"));
  return Begin(engine_, 0);
}

EngineController::Action EngineController::GoBack(const std::string& why) {
  ++counts_.returned;
  Apply(AdaptEvent::kIll);
  Rest(true);
  Note(absl::StrCat("back to ", Name(engine_), ": ", why, "; no trial for ",
                    absl::FormatDuration(rest_until_ - now_)));
  follow_ = true;
  return SwitchAll(engine_);
}

void EngineController::Resign() {
  if (std::exchange(resigned_, true)) return;
  engine_ = EngineKind::kEpoll;
  Apply(AdaptEvent::kIll);
  moving_to_ = EngineKind::kAuto;  // the loop itself moves what is left there
  Note("uring has failed for good: epoll stays, and no trial begins any more");
}

EngineController::Action EngineController::GiveUp(const std::string& why) {
  ++counts_.returned;
  Apply(AdaptEvent::kIll);
  Rest(true);
  Note(absl::StrCat(Name(engine_), " stays: ", why, "; no trial for ",
                    absl::FormatDuration(rest_until_ - now_)));
  return {};
}

void EngineController::Adopt(EngineKind engine) {
  follow_ = false;  // theirs takes the place of what would
  if (engine == engine_ && state_ == AdaptState::kWatching) return;
  ++counts_.adopted;
  Apply(AdaptEvent::kIll);  // whatever was tried, they undo
  engine_ = engine;
  won_ = false;
  moving_to_ = EngineKind::kAuto;
  Rest(false);
  Note(absl::StrCat(Name(engine_), " serves: others had every stream switched to it; no trial for ",
                    absl::FormatDuration(rest_until_ - now_)));
}

EngineController::Action EngineController::BlowFuse(uint64_t faults) {
  ++counts_.returned;
  const EngineKind at_fault = engine_;
  engine_ = other();
  won_ = false;
  Rest(true);
  Note(absl::StrCat("back to ", Name(engine_), ": ", faults, " engine faults of ", Name(at_fault),
                    ", which a trial was won by; no trial for ",
                    absl::FormatDuration(rest_until_ - now_)));
  follow_ = true;
  return SwitchAll(engine_);
}

EngineController::Action EngineController::SwitchAll(EngineKind to) {
  swept_at_.push_back(now_);
  ++switches_;
  return Begin(to, 0);
}

EngineController::Action EngineController::Begin(EngineKind to, uint64_t streams) {
  moving_to_ = to;
  ticks_moved_ = 0;
  trouble_.clear();
  none_went_ = false;
  return {to, streams};
}

void EngineController::Ended(const MoveCount& count) {
  if (moving_to_ == EngineKind::kAuto) return;
  const std::string to = Name(std::exchange(moving_to_, EngineKind::kAuto));
  const std::string what = absl::StrCat(count.moved, " streams are now on ", to, ", ", count.failed,
                                        " were refused, ", count.ended, " ended meanwhile");
  Note(what);
  none_went_ = state_ == AdaptState::kCanary && count.moved + count.failed == 0;
  if (none_went_) trouble_ = count.ended == 0 ? "no stream may go" : what;
  // Some that stay tell of a limit that others will meet; a trial of half of them measures both.
  if (count.failed > 0) trouble_ = what;
}

void EngineController::Failed(const absl::Status& why) {
  moving_to_ = EngineKind::kAuto;
  trouble_ = why.ToString();
  if (state_ == AdaptState::kWatching) Note(absl::StrCat("no stream could be moved: ", trouble_));
}

void EngineController::Rest(bool failed) {
  if (!failed) dwell_ = options_.dwell;
  rest_until_ = now_ + dwell_;
  if (failed) dwell_ = std::min(dwell_ * 2, options_.dwell_max);
  hold_told_ = AdaptHold::kNone;
  Forget();
}

void EngineController::Forget() {
  speaks_ = 0;
  before_reads_ = 0;
  before_cpu_ = absl::ZeroDuration();
  before_each_.clear();
}

void EngineController::Note(const std::string& line) {
  trace_.push_back(absl::StrCat(absl::FormatDuration(now_), " ", line));
  if (trace_.size() > options_.trace_max) trace_.pop_front();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
