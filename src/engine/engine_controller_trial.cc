// The steps of a trial; what leads to one, and what is known after it, is in engine_controller.cc.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/engine_controller.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Ticks that a slice waits for reads, and that a load may be another before it counts as one: a
// pause of those who ask ends no trial.
constexpr int kTicksQuiet = 5;
constexpr int kTicksOther = 2;
// A trial that has taken so long ends with the pairs that it has, if they are
// EngineTrial::kPairsMin.
constexpr absl::Duration kTrialMax = absl::Minutes(1);
// A slice is late when the loop comes to its end so much later than it came to a tick before the
// trial. The host of a virtual machine can do that to any slice, so it takes many more of the one
// that is tried: more than chance makes of the same for both.
constexpr absl::Duration kDelayMax = absl::Milliseconds(20);
constexpr int kLateMore = 5;
// A slice lasts so many times as long as all streams took to change engine, for most of which they
// were served: a sweep goes along with the load.
constexpr int kSlicesOfSweep = 2;

}  // namespace

void EngineController::Trial::FitSlice(absl::Duration sweep, const AdaptiveOptions& options) {
  slice = std::max(options.slice, std::min(kSlicesOfSweep * sweep, options.tick));
}

EngineController::Action EngineController::TickCanary(const LoadSample& sample) {
  if (const uint64_t faults = sample.FaultsOf(other()); faults > 0) {
    return GoBack(absl::StrCat(faults, " engine faults"));
  }
  if (StillMoving()) return {};
  if (none_went_) return GiveUp(trouble_);
  if (!trouble_.empty()) return GoBack(trouble_);
  Apply(AdaptEvent::kWell);
  Note(absl::StrCat(Name(other()), " serves some well: all ", sample.open,
                    " streams change engine by turns"));
  return Sweep(other());
}

EngineController::Action EngineController::TickTrial(const LoadSample& sample) {
  if (const uint64_t faults = sample.FaultsOf(other()); faults > 0) {
    return GoBack(absl::StrCat(faults, " engine faults"));
  }
  if (StillMoving()) return {};
  if (!trouble_.empty()) return GoBack(trouble_);
  if (std::exchange(trial_->settles, false)) return {};
  if (const std::string late = Late(sample); !late.empty()) return GoBack(late);
  LoadSample& sum = trial_->sum;
  sum.span += sample.span;
  sum.cpu += sample.cpu;
  sum.reads += sample.reads;
  sum.turns += sample.turns;
  sum.bytes += sample.bytes;
  if (sum.reads >= kReadsMin) return EndSlice(sample);
  return sum.span < kTicksQuiet * options_.tick ? Action{} : EndUndecided("too few reads to tell");
}

std::string EngineController::Late(const LoadSample& sample) {
  if (sample.delay <= delay_before_ + kDelayMax) return "";
  ++trial_->SideOn(trial_->on).late;
  const int others = trial_->SideOn(engine_).late;
  if (trial_->SideOn(other()).late < 2 * others + kLateMore) return "";
  return absl::StrCat("turns come ", absl::FormatDuration(sample.delay), " late");
}

EngineController::Action EngineController::EndSlice(const LoadSample& sample) {
  Trial& trial = *trial_;
  const LoadSample sum = std::exchange(trial.sum, {});
  Side& side = trial.SideOn(trial.on);
  const double batch = ReadsOfTurn(sum.reads, sum.turns);
  if (side.batch == 0) side.batch = batch;
  // One that waited for reads is a pause, which ends no trial by itself.
  const bool another = IsAnother(sum, sample.open);
  trial.unlike = another ? trial.unlike + std::min(sum.span, options_.tick) : absl::ZeroDuration();
  if (trial.unlike >= kTicksOther * options_.tick) {
    return EndUndecided(absl::StrFormat(
        "the load is another, %d streams instead of %.0f, %.1f reads a turn instead of %.1f, %.0f "
        "%% of a processor",
        sample.open, trial.load.open, batch, side.batch,
        100 * absl::FDivDuration(sum.cpu, sum.span)));
  }
  side.reads += sum.reads;
  side.turns += sum.turns;
  // A thread that reads takes some time, and gets a byte or the end.
  side.cost = std::max(absl::ToDoubleNanoseconds(sum.cpu), 1.) /
              static_cast<double>(std::max<uint64_t>(sum.bytes, 1));
  trial.half = !trial.half;
  if (trial.half) return Sweep(Opposite(trial.on));
  trial.test.Add(trial.SideOn(engine_).cost, trial.SideOn(other()).cost);
  // Slices of loads that come in bursts, or on an engine that takes less than what is worth a
  // trial, are unlike by turns, and all count; but when the trial is decided the load must be what
  // it was.
  if (another) return {};
  switch (trial.test.Judge(now_ - trial.began >= kTrialMax)) {
    case TrialVerdict::kOpen:
      return {};
    case TrialVerdict::kSaves:
      return Win();
    case TrialVerdict::kDoesNot:
      return Lose();
  }
  return {};
}

bool EngineController::IsAnother(const LoadSample& slice, uint64_t open) const {
  const Side& side = trial_->sides[SideOf(trial_->on)];
  return !Alike(static_cast<double>(open), trial_->load.open) ||
         !Alike(ReadsOfTurn(slice.reads, slice.turns), side.batch) ||
         slice.cpu < options_.busy * slice.span;
}

std::string EngineController::Found() const {
  const EngineTrial& test = trial_->test;
  return absl::StrFormat("takes %.1f %% %s CPU for the same bytes (+-%.1f %%, %d pairs of slices)",
                         100 * std::abs(test.saving()), test.saving() >= 0 ? "less" : "more",
                         100 * test.error(), test.pairs());
}

EngineController::Action EngineController::Win() {
  const std::string found = Found();
  const absl::Duration belief = Learn(other(), trial_->test.confidence());
  ++counts_.kept;
  engine_ = other();
  won_ = true;
  switched_at_.push_back(now_);
  ++switches_;
  Note(absl::StrCat(Name(engine_), " serves from now on: it ", found, ", believed for ",
                    About(belief)));
  return Conclude();
}

EngineController::Action EngineController::Lose() {
  const absl::Duration belief = Learn(engine_, trial_->test.confidence());
  ++counts_.returned;
  Note(absl::StrCat(Name(engine_), " stays: ", Name(other()), " ", Found(), ", believed for ",
                    About(belief)));
  return Conclude();
}

EngineController::Action EngineController::EndUndecided(const std::string& why) {
  const absl::Duration belief = Learn(EngineKind::kAuto, 0);
  ++counts_.returned;
  Note(absl::StrCat(Name(engine_), " stays: ", why, ", no trial with such a load for ",
                    About(belief)));
  return Conclude();
}

EngineController::Action EngineController::Conclude() {
  const EngineKind on = trial_->on;
  dwell_ = options_.dwell;
  Decided();
  follow_ = true;
  const Action last = on == engine_ ? Action{} : Sweep(engine_);
  Apply(AdaptEvent::kWell);
  EndTrial();
  return last;
}

EngineController::Action EngineController::Sweep(EngineKind to) {
  trial_->on = to;
  trial_->settles = true;
  ++counts_.sweeps;
  return Begin(to, 0);
}

EngineController::Action EngineController::GoBack(const std::string& why) {
  ++counts_.returned;
  ++counts_.sweeps;
  Apply(AdaptEvent::kIll);
  Rest(true);
  Note(absl::StrCat("back to ", Name(engine_), ": ", why, "; no trial for ",
                    About(rest_until_ - now_)));
  follow_ = true;
  return Begin(engine_, 0);
}

EngineController::Action EngineController::GiveUp(const std::string& why) {
  ++counts_.returned;
  Apply(AdaptEvent::kIll);
  Rest(true);
  Note(absl::StrCat(Name(engine_), " stays: ", why, "; no trial for ", About(rest_until_ - now_)));
  return {};
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
