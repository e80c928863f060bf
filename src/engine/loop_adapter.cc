#include "engine/loop_adapter.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/status/status.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

LoopAdapter::LoopAdapter(LoopCore& loop, const AdaptiveOptions& options, EngineKind engine)
    : loop_(loop), controller_(options, engine), timer_(loop.timers()), last_(Read()) {
  loop_.AddObserver(this);
  Arm();
}

LoopAdapter::~LoopAdapter() { loop_.RemoveObserver(this); }

void LoopAdapter::OnSwitchAll(EngineKind to, BeginListenerSwitch) {
  // Away from a lost engine the loop goes by itself; the next tick tells of that.
  if (!acts_ && !loop_.HasLost(EngineKind::kUring)) controller_.Adopt(to);
}

LoopAdapter::Reading LoopAdapter::Read() const {
  const LoopCounters& counters = loop_.counters();
  Reading now;
  now.now_ns = loop_.sys().Now();
  now.cpu_ns = loop_.sys().ThreadCpu();
  now.reads = counters.receives.value();
  now.turns = counters.turns.value();
  now.bytes = counters.bytes_in.value() + counters.bytes_out.value();
  now.faults_epoll = counters.faults_epoll.value();
  now.faults_uring = counters.faults_uring.value();
  return now;
}

void LoopAdapter::Arm() {
  const absl::Duration tick = controller_.NextTick();
  due_ns_ = last_.now_ns + absl::ToInt64Nanoseconds(tick);
  timer_.Arm(TimerWheel::DeadlineTick(last_.now_ns, tick), [this] { Tick(); });
}

void LoopAdapter::Tick() {
  const Reading now = Read();
  LoadSample sample;
  sample.span = absl::Nanoseconds(now.now_ns - last_.now_ns);
  sample.cpu = absl::Nanoseconds(now.cpu_ns - last_.cpu_ns);
  sample.delay = absl::Nanoseconds(std::max<int64_t>(now.now_ns - due_ns_, 0));
  sample.reads = now.reads - last_.reads;
  sample.turns = now.turns - last_.turns;
  sample.bytes = now.bytes - last_.bytes;
  sample.faults_epoll = now.faults_epoll - last_.faults_epoll;
  sample.faults_uring = now.faults_uring - last_.faults_uring;
  sample.open = loop_.counters().open.value();
  sample.uring_lost = loop_.HasLost(EngineKind::kUring);
  sample.open_uring = loop_.counters().open_uring.value();
  sample.open_epoll = sample.open - sample.open_uring;
  last_ = now;
  Do(controller_.Tick(sample));
  Arm();
}

void LoopAdapter::Do(const EngineController::Action& action) {
  if (action.to == EngineKind::kAuto) return;
  // The sweep of an earlier action, whose place this one takes, is told of as well.
  auto done = [self = std::weak_ptr(self_), number = ++actions_](MoveCount count) {
    const auto adapter = self.lock();
    if (adapter != nullptr && (*adapter)->actions_ == number) (*adapter)->Ended(count);
  };
  acts_ = true;
  const absl::Status begun = Begin(action, std::move(done));
  acts_ = false;
  if (begun.ok()) return;
  loop_.Fault(begun.ToString());
  controller_.Failed(begun);
}

void LoopAdapter::Ended(const MoveCount& count) {
  Reading now = Read();
  controller_.Ended(count, absl::Nanoseconds(now.now_ns - last_.now_ns));
  // What moving cost is not measured, but its faults are for the next tick.
  now.faults_epoll = last_.faults_epoll;
  now.faults_uring = last_.faults_uring;
  last_ = now;
  Arm();
}

absl::Status LoopAdapter::Begin(const EngineController::Action& action, MoveSweep::Done done) {
  if (action.streams == 0) return loop_.SwitchAll(action.to, std::move(done));
  return loop_.SwitchSome(action.to, action.streams, std::move(done));
}

}  // namespace internal

absl::StatusOr<std::unique_ptr<EngineAdapter>> EngineAdapter::Create(Loop& loop,
                                                                     AdaptiveOptions options) {
  if (absl::Status status = internal::EngineController::Check(options); !status.ok()) return status;
  if (loop.core().options().busy_poll > absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        "adaptive: the loop has a LoopOptions::busy_poll, and the CPU time that it polls away "
        "hides "
        "what a read costs");
  }
  const EngineKind engine = loop.engine();
  for (EngineKind kind : {EngineKind::kEpoll, EngineKind::kUring}) {
    if (absl::Status status = loop.EnableEngine(kind); !status.ok()) return status;
  }
  return std::unique_ptr<EngineAdapter>(
      new EngineAdapter(std::make_unique<internal::LoopAdapter>(loop.core(), options, engine)));
}

EngineAdapter::EngineAdapter(std::unique_ptr<internal::LoopAdapter> adapter)
    : adapter_(std::move(adapter)) {}

EngineAdapter::~EngineAdapter() = default;

std::vector<std::string> EngineAdapter::trace() const {
  const auto& lines = adapter_->controller().trace();
  return {lines.begin(), lines.end()};
}

uint64_t EngineAdapter::switches() const { return adapter_->controller().switches(); }

AdaptiveCounts EngineAdapter::counts() const { return adapter_->controller().counts(); }

PENSTOCK_END_NAMESPACE
