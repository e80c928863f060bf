// What the moves of several loops came to: the sum of their snapshots.
#ifndef PENSTOCK_EXAMPLES_COMMON_MOVE_FIGURES_H_
#define PENSTOCK_EXAMPLES_COMMON_MOVE_FIGURES_H_

#include <penstock/snapshot.h>

#include <array>
#include <cstdint>

#include "common/json.h"

namespace examples {

struct MoveFigures {
  void Add(const penstock::LoopSnapshot& loop);
  // The pause that `fraction` of all stayed within, in us, as far as buckets of powers of two can
  // tell: evenly spread inside a bucket. Zero when there is none.
  double PauseUs(double fraction) const;
  void AddTo(JsonLine& line) const;

  uint64_t engine_switches() const { return switches_to_epoll + switches_to_uring; }

  uint64_t switches_to_epoll = 0;
  uint64_t switches_to_uring = 0;
  uint64_t listener_switches = 0;
  uint64_t listener_switches_refused = 0;
  uint64_t loop_moves = 0;  // that have arrived
  uint64_t moves_out = 0;
  uint64_t moves_back = 0;  // of these
  std::array<uint64_t, penstock::kMoveDirections> refused{};
  uint64_t stranded = 0;
  uint64_t late_completions = 0;
  uint64_t bytes_carried = 0;
  std::array<uint64_t, penstock::kPauseBuckets> pauses{};
};

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_MOVE_FIGURES_H_
