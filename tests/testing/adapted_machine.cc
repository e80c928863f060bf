#include "testing/adapted_machine.h"

#include <algorithm>
#include <utility>

namespace penstock::testing {

internal::LoadSample AdaptedMachine::Sample() {
  const bool uring = serving_ == EngineKind::kUring;
  const double seconds = absl::ToDoubleSeconds(controller_.NextTick());
  internal::LoadSample sample;
  sample.span = controller_.NextTick();
  sample.reads = static_cast<uint64_t>(rate * seconds);
  const double size = uring && batch_uring > 0 ? batch_uring : batch;
  sample.turns = static_cast<uint64_t>(static_cast<double>(sample.reads) / size);
  sample.bytes = sample.reads * 100;
  double cost = uring ? cost_uring : cost_epoll;
  if (std::exchange(settles_, false) && cost_settling > 0) cost = cost_settling;
  cost *= std::max(1 + spread * normal_(random_), 0.1);
  sample.cpu = absl::Nanoseconds(cost * static_cast<double>(sample.reads));
  sample.delay = delay;
  sample.faults_epoll = faults_epoll;
  sample.faults_uring = faults_uring;
  sample.open = open;
  const uint64_t left = std::min(behind, open);
  sample.open_uring = uring ? open - left : left;
  sample.open_epoll = open - sample.open_uring;
  sample.uring_lost = lost;
  return sample;
}

AdaptedMachine::Action AdaptedMachine::Step() {
  const internal::LoadSample sample = Sample();
  now_ += sample.span;
  const Action action = controller_.Tick(sample);
  if (action.to == EngineKind::kAuto) return action;
  if (action.streams == 0) {
    serving_ = action.to;
    settles_ = true;
  }
  if (!tells) return action;
  const uint64_t asked = action.streams == 0 ? open : std::min(action.streams, open);
  now_ += sweep_time;
  controller_.Ended({.moved = asked - std::min(refused, asked), .failed = refused}, sweep_time);
  return action;
}

bool AdaptedMachine::RunTrial() {
  const auto ended = [this] { return controller_.counts().kept + controller_.counts().returned; };
  const uint64_t before = ended();
  for (int i = 0; i < 10'000 && ended() == before; ++i) Step();
  return ended() != before;
}

double AdaptedMachine::SecondsUntilTrial() {
  const absl::Duration before = now_;
  const uint64_t trials = controller_.counts().trials;
  for (int i = 0; i < 100'000 && controller_.counts().trials == trials; ++i) Step();
  return absl::ToDoubleSeconds(now_ - before);
}

bool AdaptedMachine::Traced(const std::string& words) const {
  for (const std::string& line : controller_.trace()) {
    if (line.find(words) != std::string::npos) return true;
  }
  return false;
}

}  // namespace penstock::testing
