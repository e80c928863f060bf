#include "engine/balance_controller.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

absl::Status BalanceController::Check(const BalanceOptions& o) {
  const auto bad = [](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("balance options: ", what));
  };
  if (o.tick <= absl::ZeroDuration() || o.tick > absl::Hours(1)) {
    return bad("tick must be positive, and an hour at most");
  }
  if (!(o.difference > 0 && o.difference < 1)) return bad("difference must be between 0 and 1");
  if (o.sustain < 1) return bad("sustain must be at least 1");
  if (o.streams_max < 1) return bad("streams_max must be at least 1");
  if (o.observed_max < 1) return bad("observed_max must be at least 1");
  if (o.rest < 1 || o.rest_max < o.rest)
    return bad("rest must be at least 1, and at most rest_max");
  return absl::OkStatus();
}

std::optional<BalanceController::Pair> BalanceController::Differing(
    std::span<const Busy> loops) const {
  std::optional<Pair> pair;
  for (size_t i = 0; i < loops.size(); ++i) {
    if (!loops[i].has_value()) continue;
    if (!pair.has_value()) pair = Pair{i, i, 0};
    if (*loops[i] > *loops[pair->from]) pair->from = i;
    if (*loops[i] < *loops[pair->to]) pair->to = i;
  }
  if (!pair.has_value()) return std::nullopt;
  pair->difference = *loops[pair->from] - *loops[pair->to];
  if (pair->difference <= options_.difference) return std::nullopt;
  return pair;
}

BalanceController::Action BalanceController::Tick(std::span<const Busy> loops) {
  ++tick_;
  if (state_ == BalanceState::kMoving) return {};
  const std::optional<Pair> pair = Differing(loops);
  if (!pair.has_value() || (differed_ > 0 && pair->from != from_)) {
    if (state_ == BalanceState::kObserving) NoteEven(pair, loops[from_].has_value());
    differed_ = 0;
    Apply(BalanceEvent::kEven);
  }
  if (!pair.has_value()) return {};
  from_ = pair->from;
  ++differed_;
  if (state_ == BalanceState::kWatching) {
    if (differed_ < options_.sustain) return {};
    if (tick_ < rest_until_) {
      NoteRest(*pair, loops);
      return {};
    }
    Apply(BalanceEvent::kDiffer);
    return {Action::Kind::kObserve, pair->from, pair->to, 0};
  }
  Apply(BalanceEvent::kDiffer);
  const double busy = *loops[pair->from];
  why_ = Told(*pair, loops);
  differed_ = 0;
  return {Action::Kind::kMove, pair->from, pair->to, pair->difference / 2 / busy};
}

std::string BalanceController::Told(const Pair& pair, std::span<const Busy> loops) const {
  return absl::StrFormat(
      "loop %d is busy for %.0f %% of the time and loop %d for %.0f %%, for %d ticks", pair.from,
      100 * *loops[pair.from], pair.to, 100 * *loops[pair.to], differed_);
}

void BalanceController::NoteEven(const std::optional<Pair>& pair, bool judged) {
  ++counts_.held;
  const std::string now = !judged            ? "it is left out now"
                          : pair.has_value() ? absl::StrFormat("loop %d is the busiest", pair->from)
                                             : "it is not much busier than another any more";
  Note(absl::StrFormat("streams of loop %d were looked at, but %s: none goes", from_, now));
}

void BalanceController::NoteRest(const Pair& pair, std::span<const Busy> loops) {
  if (std::exchange(rest_told_, true)) return;
  ++counts_.held;
  Note(absl::StrFormat("%s, but no stream is asked for another %d ticks (rest)", Told(pair, loops),
                       rest_until_ - tick_));
}

void BalanceController::Ended(const MoveCount& streams, double part) {
  Apply(BalanceEvent::kEnded);
  moves_ += streams.moved;
  const std::string others =
      streams.failed + streams.ended == 0
          ? ""
          : absl::StrFormat(" (%d were refused, %d ended)", streams.failed, streams.ended);
  if (streams.moved > 0) {
    ++counts_.moved;
    rest_ = 0;
    return Note(absl::StrFormat("%s: %d streams with %.0f %% of its traffic go%s", why_,
                                streams.moved, 100 * part, others));
  }
  ++counts_.none;
  Note(absl::StrFormat(
      "%s: no stream may go, is small enough or is taken%s; none is asked for %d ticks", why_,
      others, Rest()));
}

void BalanceController::GaveUp(int ticks, bool begun) {
  ++counts_.given_up;
  Apply(BalanceEvent::kEnded);
  Note(absl::StrFormat("%s: after %d ticks %s; none is asked for %d ticks", why_, ticks,
                       begun ? "streams are still on their way, and nothing waits for them"
                             : "the loop has not come to it, and none goes",
                       Rest()));
}

void BalanceController::Late(const MoveCount& streams) {
  moves_ += streams.moved;
  if (streams.moved > 0) Note(absl::StrFormat("%d streams have arrived after all", streams.moved));
}

int BalanceController::Rest() {
  rest_ = rest_ == 0 ? options_.rest : std::min(2 * rest_, options_.rest_max);
  rest_until_ = tick_ + static_cast<uint64_t>(rest_);
  rest_told_ = false;
  return rest_;
}

void BalanceController::LeaveOut(size_t loop, BalanceAbsence why) {
  constexpr std::array<const char*, kBalanceAbsences> kWhy = {
      "it has a LoopOptions::busy_poll, and is on a CPU whatever it has to do",
      "it does not come to answer", "it has gone"};
  Note(absl::StrFormat("loop %d is left out: %s", loop, kWhy[static_cast<size_t>(why)]));
}

void BalanceController::TakeIn(size_t loop) {
  Note(absl::StrFormat("loop %d answers again", loop));
}

void BalanceController::Note(std::string_view line) {
  trace_.push_back(absl::StrFormat("%s %s", absl::FormatDuration(now_), line));
  if (trace_.size() > options_.trace_max) trace_.pop_front();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
