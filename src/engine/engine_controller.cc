#include "engine/engine_controller.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Ticks that an action may take. One that takes longer has met a kernel that does not let go.
constexpr int kTicksMoving = 8;
// Loads are near when streams, and reads a turn, are in such a proportion at most.
constexpr double kNear = 3;
// Verdicts kept; the oldest go first.
constexpr size_t kVerdictsMax = 16;
// Trials are for loads that last. Where loads are ever new, trials, from the first stream that goes
// to the verdict, take one part in so many of the time; but so much, and one more, at once.
constexpr int kTrialShare = 3;
constexpr absl::Duration kTrialsAtOnce = absl::Seconds(30);
// A verdict is believed longer the further it was from its noise.
constexpr double kBeliefMax = 10;

// Of the greater to the lesser of two that are above 0.
double Ratio(double a, double b) { return std::max(a / b, b / a); }

}  // namespace

bool EngineController::Alike(double a, double b) { return a <= kNear * b && b <= kNear * a; }

double EngineController::ReadsOfTurn(uint64_t reads, uint64_t turns) {
  return static_cast<double>(reads) / static_cast<double>(std::max<uint64_t>(turns, 1));
}

std::string EngineController::Name(EngineKind engine) {
  return std::string(EngineKindName(engine));
}

std::string EngineController::About(absl::Duration time) {
  return absl::FormatDuration(absl::Trunc(time, absl::Seconds(1)));
}

EngineController::EngineController(const AdaptiveOptions& options, EngineKind engine)
    : options_(options), engine_(engine), credit_(kTrialsAtOnce), dwell_(options.dwell) {}

absl::Status EngineController::Check(const AdaptiveOptions& o) {
  const auto bad = [](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("adaptive options: ", what));
  };
  if (o.tick <= absl::ZeroDuration() || o.tick > absl::Hours(1)) {
    return bad("tick must be positive, and an hour at most");
  }
  if (o.sustain < 1) return bad("sustain must be at least 1");
  if (!(o.busy >= 0 && o.busy <= 1)) return bad("busy must be from 0 to 1");
  if (!(o.canary_part >= 0 && o.canary_part <= 1)) return bad("canary_part must be from 0 to 1");
  if (o.slice <= absl::ZeroDuration() || o.slice > absl::Hours(1)) {
    return bad("slice must be positive, and an hour at most");
  }
  if (o.pairs_max < static_cast<int>(EngineTrial::kPairsMin)) {
    return bad("pairs_max must be at least 8");
  }
  if (!(o.gain >= 0 && o.gain < 1)) return bad("gain must be from 0 to below 1");
  if (o.dwell < absl::ZeroDuration() || o.dwell_max < o.dwell) {
    return bad("dwell must not be negative, nor above dwell_max");
  }
  if (o.switches_max < 1) return bad("switches_max must be at least 1");
  if (o.window <= absl::ZeroDuration()) return bad("window must be positive");
  return absl::OkStatus();
}

EngineController::Action EngineController::Tick(const LoadSample& sample) {
  now_ += sample.span;
  credit_ = std::min(credit_ + sample.span / kTrialShare, kTrialsAtOnce);
  if (sample.uring_lost) Resign();
  if (resigned_) return {};
  if (const uint64_t faults = sample.FaultsOf(engine_); won_ && faults > 0) return BlowFuse(faults);
  while (!switched_at_.empty() && switched_at_.front() + options_.window <= now_) {
    switched_at_.pop_front();
  }
  switch (state_) {
    case AdaptState::kWatching:
      return Watch(sample);
    case AdaptState::kCanary:
      return TickCanary(sample);
    case AdaptState::kTrial:
      return TickTrial(sample);
  }
  return {};
}

absl::Duration EngineController::NextTick() const {
  if (!trial_.has_value() || moving_to_ != EngineKind::kAuto) return options_.tick;
  return trial_->settles ? options_.slice : trial_->slice;
}

bool EngineController::Load::Near(const Load& other) const {
  return Alike(open, other.open) && Alike(batch, other.batch);
}

double EngineController::Load::Distance(const Load& other) const {
  return Ratio(open, other.open) * Ratio(batch, other.batch);
}

EngineController::Action EngineController::Watch(const LoadSample& sample) {
  if (StillMoving()) return {};
  if (std::exchange(follow_, false)) {
    if (const Action follow = Follow(sample); follow.to != EngineKind::kAuto) return follow;
  }
  if (!Lasts(sample)) return {};
  delay_before_ = sample.delay;
  if (const Verdict* verdict = Believed(); verdict != nullptr) {
    return verdict->better == other() ? Recall(*verdict) : Action{};
  }
  const bool held = Held(TrialRests(), absl::StrCat("a trial of ", Name(other()), " is due"));
  return held ? Action{} : BeginTrial(sample);
}

bool EngineController::Lasts(const LoadSample& sample) {
  const bool counts =
      sample.reads >= kReadsMin && sample.open > 0 && sample.cpu >= options_.busy * sample.span;
  const Load load = {static_cast<double>(sample.open), ReadsOfTurn(sample.reads, sample.turns)};
  alike_ = !counts ? 0 : load.Near(load_) ? alike_ + 1 : 1;
  load_ = load;
  return alike_ >= options_.sustain;
}

const EngineController::Verdict* EngineController::Believed() const {
  const Verdict* nearest = nullptr;
  double least = 0;
  for (const Verdict& verdict : verdicts_) {
    const Load& load = verdict.loads[SideOf(engine_)];
    if (now_ >= verdict.until || !load_.Near(load)) continue;
    const double distance = load_.Distance(load);
    if (nearest != nullptr && distance > least) continue;
    nearest = &verdict;  // of those as near the newest
    least = distance;
  }
  return nearest;
}

absl::Duration EngineController::TrialRests() const {
  const absl::Duration owed = -credit_ * kTrialShare;
  return std::max({rest_until_ - now_, owed, absl::ZeroDuration()});
}

bool EngineController::Held(absl::Duration rest, const std::string& wish) {
  const bool rests = rest > absl::ZeroDuration();
  const bool spent = switched_at_.size() >= static_cast<size_t>(options_.switches_max);
  if (!rests && !spent) return false;
  if (std::exchange(rests ? rest_told_ : spent_told_, true)) return true;
  ++counts_.held;
  Note(absl::StrCat(
      Name(engine_), ": ", wish,
      rests ? absl::StrCat(", but none begins for another ", About(rest))
            : absl::StrCat(", but ", switched_at_.size(), " of at most ", options_.switches_max,
                           " switches in ", absl::FormatDuration(options_.window), " are made")));
  return true;
}

EngineController::Action EngineController::Recall(const Verdict& verdict) {
  if (Held(absl::ZeroDuration(), absl::StrCat("such a load is better served by ", Name(other()))))
    return {};
  engine_ = verdict.better;
  won_ = true;
  ++counts_.recalled;
  Note(absl::StrCat(Name(engine_), " serves from now on: a trial with such a load ",
                    About(now_ - verdict.found), " ago has found it better"));
  return Switch(engine_);
}

EngineController::Action EngineController::BeginTrial(const LoadSample& sample) {
  trial_.emplace(Trial{
      .test = EngineTrial(options_.gain, static_cast<size_t>(options_.pairs_max)),
      .load = load_,
      .began = now_,
      .slice = options_.slice,
  });
  const auto part = static_cast<uint64_t>(static_cast<double>(sample.open) * options_.canary_part);
  const uint64_t streams = std::max<uint64_t>({part, options_.canary_min, 1});
  Note(absl::StrFormat(
      "%s: %.1f reads a turn, %.0f %% of a processor: a trial of %s begins, %d of %d streams go "
      "first",
      Name(engine_), load_.batch, 100 * absl::FDivDuration(sample.cpu, sample.span), Name(other()),
      std::min(streams, sample.open), sample.open));
  ++counts_.trials;
  Apply(AdaptEvent::kWant);
  return Begin(other(), streams);
}

absl::Duration EngineController::Learn(EngineKind better, double confidence) {
  Verdict learnt = {.loads = {trial_->load, trial_->load},
                    .better = better,
                    .found = now_,
                    .until = {},
                    .confirmed = 0};
  for (size_t i = 0; i < learnt.loads.size(); ++i) {
    const Side& side = trial_->sides[i];
    // One that is undecided may have met another load as well, which is not what it was of.
    if (learnt.decided() && side.turns > 0)
      learnt.loads[i].batch = ReadsOfTurn(side.reads, side.turns);
  }
  // What was found of such a load before is confirmed, or wrong; a trial that found nothing takes
  // the place of such ones alone.
  for (auto it = verdicts_.begin(); it != verdicts_.end();) {
    const bool same = it->loads[0].Near(learnt.loads[0]) || it->loads[1].Near(learnt.loads[1]);
    const bool replaced = same && (learnt.decided() || !it->decided());
    if (replaced && learnt.decided() && it->better == better) learnt.confirmed = it->confirmed + 1;
    it = replaced ? verdicts_.erase(it) : it + 1;
  }
  absl::Duration belief = options_.dwell * std::clamp(confidence, 1., kBeliefMax);
  for (int i = 0; i < learnt.confirmed && belief < options_.dwell_max; ++i) belief *= 2;
  belief = std::min(belief, options_.dwell_max);
  learnt.until = now_ + belief;
  verdicts_.push_back(learnt);
  if (verdicts_.size() > kVerdictsMax) verdicts_.pop_front();
  return belief;
}

EngineController::Action EngineController::Follow(const LoadSample& sample) {
  const uint64_t left = sample.OpenOn(other());
  if (left == 0) return {};
  Note(absl::StrCat(left, " streams are on ", Name(other()), " still: those that may go follow"));
  return Begin(engine_, 0);
}

void EngineController::Resign() {
  if (std::exchange(resigned_, true)) return;
  engine_ = EngineKind::kEpoll;
  Apply(AdaptEvent::kIll);
  EndTrial();
  moving_to_ = EngineKind::kAuto;  // the loop itself moves what is left there
  Note("uring has failed for good: epoll stays, and no trial begins any more");
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
                    About(rest_until_ - now_)));
}

EngineController::Action EngineController::BlowFuse(uint64_t faults) {
  ++counts_.returned;
  Apply(AdaptEvent::kIll);  // another may be under way
  const EngineKind at_fault = engine_;
  engine_ = other();
  won_ = false;
  Rest(true);
  Note(absl::StrCat("back to ", Name(engine_), ": ", faults, " engine faults of ", Name(at_fault),
                    ", which was found better; no trial for ", About(rest_until_ - now_)));
  return Switch(engine_);
}

EngineController::Action EngineController::Switch(EngineKind to) {
  switched_at_.push_back(now_);
  ++switches_;
  Decided();
  follow_ = true;
  return Begin(to, 0);
}

EngineController::Action EngineController::Begin(EngineKind to, uint64_t streams) {
  moving_to_ = to;
  moving_since_ = now_;
  ticks_moved_ = 0;
  trouble_.clear();
  none_went_ = false;
  return {to, streams};
}

bool EngineController::StillMoving() {
  if (moving_to_ == EngineKind::kAuto) return false;
  if (++ticks_moved_ <= kTicksMoving) return true;
  trouble_ = absl::StrCat("streams are still on their way after ", kTicksMoving, " ticks");
  moving_to_ = EngineKind::kAuto;
  return false;
}

void EngineController::Ended(const MoveCount& count, absl::Duration since) {
  now_ += since;
  if (moving_to_ == EngineKind::kAuto) return;
  const std::string to = Name(std::exchange(moving_to_, EngineKind::kAuto));
  const std::string what = absl::StrCat(count.moved, " streams are now on ", to, ", ", count.failed,
                                        " were refused, ", count.ended, " ended meanwhile");
  // Those of a trial's slices are too many to be told of.
  if (state_ != AdaptState::kTrial || count.failed > 0) Note(what);
  none_went_ = state_ == AdaptState::kCanary && count.moved + count.failed == 0;
  if (none_went_) trouble_ = count.ended == 0 ? "no stream may go" : what;
  // Some that stay tell of a limit that others will meet; a trial of half of them measures both.
  if (count.failed > 0) trouble_ = what;
  if (trial_.has_value()) trial_->FitSlice(now_ - moving_since_, options_);
}

void EngineController::Failed(const absl::Status& why) {
  moving_to_ = EngineKind::kAuto;
  trouble_ = why.ToString();
  if (state_ == AdaptState::kWatching) Note(absl::StrCat("no stream could be moved: ", trouble_));
}

void EngineController::Rest(bool ill) {
  if (!ill) dwell_ = options_.dwell;
  rest_until_ = now_ + dwell_;
  if (ill) dwell_ = std::min(dwell_ * 2, options_.dwell_max);
  verdicts_.clear();
  EndTrial();
  Decided();
}

void EngineController::EndTrial() {
  if (!trial_.has_value()) return;
  credit_ -= now_ - trial_->began;
  trial_.reset();
}

void EngineController::Decided() {
  alike_ = 0;
  rest_told_ = false;
  spent_told_ = false;
}

void EngineController::Note(const std::string& line) {
  const absl::Duration at = absl::Trunc(now_, absl::Milliseconds(1));
  trace_.push_back(absl::StrCat(absl::FormatDuration(at), " ", line));
  if (trace_.size() > options_.trace_max) trace_.pop_front();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
