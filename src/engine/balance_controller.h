// BalanceController: decides which loop gives streams to which: loads in, actions out. Sans-I/O: it
// reads no clock and moves nothing; LoopBalance feeds it and does what it says. One thread.
//
// Watching ─differ─► Observing ─differ─► Moving ─ended─► Watching
//    ▲                   └───── even ──────┘ (nothing could go: it rests)
#ifndef PENSTOCK_ENGINE_BALANCE_CONTROLLER_H_
#define PENSTOCK_ENGINE_BALANCE_CONTROLLER_H_

#include <penstock/balance.h>
#include <penstock/export.h>
#include <penstock/loop.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

enum class BalanceState : uint8_t { kWatching, kObserving, kMoving };
inline constexpr size_t kBalanceStates = 3;

enum class BalanceEvent : uint8_t {
  kDiffer,  // the loops have differed for long enough
  kEven,    // they do no more, or others do
  kEnded,   // every move has ended
};
inline constexpr size_t kBalanceEvents = 3;

inline constexpr std::array<std::array<BalanceState, kBalanceEvents>, kBalanceStates>
    kBalanceTransitions = {{
        /* kWatching  */ {BalanceState::kObserving, BalanceState::kWatching,
                          BalanceState::kWatching},
        /* kObserving */
        {BalanceState::kMoving, BalanceState::kWatching, BalanceState::kObserving},
        /* kMoving    */ {BalanceState::kMoving, BalanceState::kMoving, BalanceState::kWatching},
    }};

// Why a loop is left out.
enum class BalanceAbsence : uint8_t {
  kPolls,  // LoopOptions::busy_poll: it is on a CPU whatever it has to do
  kLate,   // no answer for some ticks
  kGone,
};
inline constexpr size_t kBalanceAbsences = 3;

class BalanceController {
 public:
  // Part of the tick that a loop's thread was on a CPU; none of a loop that did not tell.
  using Busy = std::optional<double>;
  struct Action {
    enum class Kind : uint8_t {
      kNone,
      kObserve,  // note how much each stream of `from` has carried
      kMove,     // give streams that carried `part` of the traffic since then to `to`
    };
    Kind kind = Kind::kNone;
    size_t from = 0;
    size_t to = 0;
    double part = 0;
  };

  explicit BalanceController(const BalanceOptions& options) : options_(options) {}
  // InvalidArgument names the option.
  static absl::Status Check(const BalanceOptions& options);

  // A tick has come, so long after the one before.
  void Pass(absl::Duration span) { now_ += span; }
  // Then, with all loops; not while their streams are waited for.
  Action Tick(std::span<const Busy> loops);
  // What became of kMove: so many streams have arrived, with that part of the loop's traffic;
  // others were refused, or have ended on their way.
  void Ended(const MoveCount& streams, double part);
  // Nothing waits for it any more after so many ticks: the loop has `begun` it, or has not come to
  // it and now never will. What arrives after all counts by Late.
  void GaveUp(int ticks, bool begun);
  void Late(const MoveCount& streams);

  // `loop` tells nothing from now on, and the trace why; or it tells again.
  void LeaveOut(size_t loop, BalanceAbsence why);
  void TakeIn(size_t loop);

  BalanceState state() const { return state_; }
  uint64_t moves() const { return moves_; }
  const BalanceCounts& counts() const { return counts_; }
  const std::deque<std::string>& trace() const { return trace_; }

 private:
  struct Pair {
    size_t from = 0;
    size_t to = 0;
    double difference = 0;
  };

  void Apply(BalanceEvent event) {
    state_ = kBalanceTransitions[static_cast<size_t>(state_)][static_cast<size_t>(event)];
  }
  // The busiest and the least busy loop, when they differ by enough.
  std::optional<Pair> Differing(std::span<const Busy> loops) const;
  std::string Told(const Pair& pair, std::span<const Busy> loops) const;
  // Those that differed long enough do no more, or `pair` does, or the one that was looked at
  // cannot be judged any more: nothing comes of what was begun.
  void NoteEven(const std::optional<Pair>& pair, bool judged);
  // Once in each rest.
  void NoteRest(const Pair& pair, std::span<const Busy> loops);
  // None is asked for some ticks, more each time in a row; how many.
  int Rest();
  void Note(std::string_view line);

  const BalanceOptions options_;
  BalanceState state_ = BalanceState::kWatching;
  absl::Duration now_;  // since the controller was made
  uint64_t tick_ = 0;
  uint64_t rest_until_ = 0;
  bool rest_told_ = false;
  int rest_ = 0;      // ticks of the last rest, 0 after a move
  int differed_ = 0;  // ticks in a row
  size_t from_ = 0;
  std::string why_;  // of the move under way
  uint64_t moves_ = 0;
  BalanceCounts counts_;
  std::deque<std::string> trace_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_BALANCE_CONTROLLER_H_
