#include "common/move_figures.h"

#include <cmath>
#include <numeric>

namespace examples {

void MoveFigures::Add(const penstock::LoopSnapshot& loop) {
  switches_to_epoll += loop.switches_to_epoll;
  switches_to_uring += loop.switches_to_uring;
  listener_switches += loop.listener_switches;
  listener_switches_refused += loop.listener_switches_refused;
  loop_moves += loop.moves_in;
  moves_out += loop.moves_out;
  moves_back += loop.moves_back;
  for (size_t i = 0; i < refused.size(); ++i) {
    refused[i] += std::accumulate(loop.moves_refused_by[i].begin(), loop.moves_refused_by[i].end(),
                                  uint64_t{0});
  }
  stranded += loop.stranded;
  late_completions += loop.late_completions;
  bytes_carried += loop.bytes_carried;
  for (size_t i = 0; i < pauses.size(); ++i) pauses[i] += loop.move_pauses[i];
}

double MoveFigures::PauseUs(double fraction) const {
  const uint64_t count = std::accumulate(pauses.begin(), pauses.end(), uint64_t{0});
  const double wanted = fraction * static_cast<double>(count);
  double below = 0;
  for (size_t i = 0; i < pauses.size(); ++i) {
    const auto here = static_cast<double>(pauses[i]);
    if (here > 0 && below + here >= wanted) {
      const double low = i == 0 ? 0 : std::ldexp(1.0, static_cast<int>(i) - 1);
      const double high = std::ldexp(1.0, static_cast<int>(i));
      return low + (high - low) * (wanted - below) / here;
    }
    below += here;
  }
  return 0;
}

void MoveFigures::AddTo(JsonLine& line) const {
  const auto refusals = [this](penstock::MoveDirection direction) {
    return refused[static_cast<size_t>(direction)];
  };
  line.Add("engine_switches", engine_switches())
      .Add("switches_to_epoll", switches_to_epoll)
      .Add("switches_to_uring", switches_to_uring)
      .Add("listener_switches", listener_switches)
      .Add("listener_switches_refused", listener_switches_refused)
      .Add("loop_moves", loop_moves)
      .Add("moves_out", moves_out)
      .Add("moves_back", moves_back)
      .Add("refused_to_epoll", refusals(penstock::MoveDirection::kToEpoll))
      .Add("refused_to_uring", refusals(penstock::MoveDirection::kToUring))
      .Add("refused_out", refusals(penstock::MoveDirection::kOut))
      .Add("refused_in", refusals(penstock::MoveDirection::kIn))
      .Add("stranded", stranded)
      .Add("pause_p50_us", PauseUs(0.5))
      .Add("pause_p99_us", PauseUs(0.99))
      .Add("late_completions", late_completions)
      .Add("bytes_carried", bytes_carried);
}

}  // namespace examples
