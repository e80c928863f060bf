#include "rdma/completion_pump.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/error.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// --- FabricWatch ---

FabricWatch::LoopEnd::LoopEnd(FabricWatch& owner)
    : Deferred([](Deferred* node) {
        FabricWatch& watch = static_cast<LoopEnd*>(node)->watch;
        watch.Stop();
        watch.loop_ = nullptr;
      }),
      watch(owner) {}

FabricWatch::FabricWatch(LoopCore& loop, int descriptor) : loop_(&loop) { fd = descriptor; }

FabricWatch::~FabricWatch() { Stop(); }

absl::Status FabricWatch::Start() {
  const absl::StatusOr<Engine*> serving = loop_->EngineFor(EngineKind::kAuto);
  if (!serving.ok()) return serving.status();
  if (absl::Status status = (*serving)->AddWatch(*this); !status.ok()) return status;
  loop_->AtEnd(loop_end_);
  return absl::OkStatus();
}

void FabricWatch::Stop() {
  if (Engine* const watcher = std::exchange(engine, nullptr)) watcher->RemoveWatch(slot, fd);
}

// --- CompletionPump ---

CompletionPump::Again::Again(CompletionPump& owner)
    : Deferred([](Deferred* node) { static_cast<Again*>(node)->pump.Turn(); }), pump(owner) {}

CompletionPump::CompletionPump(LoopCore& loop, std::unique_ptr<FabricCq> cq, Options options)
    : FabricWatch(loop, cq->fd()),
      cq_(std::move(cq)),
      options_(std::move(options)),
      spin_max_ns_(absl::ToInt64Nanoseconds(options_.spin_max)),
      gap_max_ns_(std::min(spin_max_ns_, INT64_MAX / 16) * 4),
      gap_ns_(gap_max_ns_) {}

CompletionPump::~CompletionPump() {
  if (unacked_ > 0) cq_->AckEvents(unacked_);
}

absl::StatusOr<std::unique_ptr<CompletionPump>> CompletionPump::Create(LoopCore& loop,
                                                                       FabricDevice& device,
                                                                       Options options) {
  absl::StatusOr<std::unique_ptr<FabricCq>> cq = device.CreateCq(options.depth, 0);
  if (!cq.ok()) return cq.status();
  std::unique_ptr<CompletionPump> pump(
      new CompletionPump(loop, *std::move(cq), std::move(options)));
  if (absl::Status status = pump->Start(); !status.ok()) return status;
  if (const int error = pump->cq_->Arm()) return ErrnoStatus(-error, "arm completion queue");
  pump->armed_ = true;
  return pump;
}

uint32_t CompletionPump::AddSink(CompletionSink& sink) {
  if (free_sink_ == kIndexMask) {
    PENSTOCK_CHECK(sinks_.size() < kIndexMask, "too many endpoints on one device and loop");
    sinks_.push_back({&sink, 1, 0});
    return 1u << kIndexBits | static_cast<uint32_t>(sinks_.size() - 1);
  }
  const uint32_t index = free_sink_;
  SinkSlot& slot = sinks_[index];
  free_sink_ = slot.next_free;
  slot.sink = &sink;
  return slot.generation << kIndexBits | index;
}

void CompletionPump::RemoveSink(uint32_t number) {
  const uint32_t index = number & kIndexMask;
  SinkSlot& slot = sinks_[index];
  slot.sink = nullptr;
  slot.generation = (slot.generation + 1) & (UINT32_MAX >> kIndexBits);
  slot.next_free = free_sink_;
  free_sink_ = index;
}

void CompletionPump::OnReadable() {
  // It is armed once at a time: to ask for a second event would be a system call for nothing.
  const int events = cq_->TakeEvents(1);
  if (events < 0) return Lose(-events, "take events of a completion channel");
  if (events > 0) armed_ = false;
  stats_.events += static_cast<uint32_t>(events);
  unacked_ += static_cast<uint32_t>(events);
  if (unacked_ >= kAckBatch) cq_->AckEvents(std::exchange(unacked_, 0));
  Turn();
}

void CompletionPump::Look() {
  if (!lost_ && loop() != nullptr) loop()->Defer(again_);
}

// One turn: drain, then go on next turn; or arm, look once more, and sleep.
void CompletionPump::Turn() {
  if (lost_ || loop() == nullptr) return;
  again_.Cancel();
  // Where it is armed still, an event that nobody has taken yet tells of what is not found now.
  for (bool armed = armed_;; armed = true) {
    const int found = Drain(kTurnMax);
    if (found < 0) return Lose(-found, "poll a completion queue");
    if (Spin(found > 0)) {
      ++stats_.spins;
      LookOn(static_cast<uint32_t>(found));
      if (!lost_) loop()->Defer(again_);
      return;
    }
    if (found > 0) return loop()->Defer(again_);
    if (armed) break;
    if (!Arm()) return;
  }
  ++stats_.sleeps;
}

bool CompletionPump::Arm() {
  const int error = cq_->Arm();
  if (error != 0) Lose(-error, "arm completion queue");
  armed_ = error == 0;
  return armed_;
}

// A turn of the loop costs a system call and a look some nanoseconds, so one that spins looks more
// than once, while nobody has anything to do. It is over in microseconds all the same (I9).
void CompletionPump::LookOn(uint32_t taken) {
  const uint32_t before = taken;
  for (int looks = 0; looks < kLooksPerSpin && taken < kTurnMax && !loop()->HasReady(); ++looks) {
    const int found = Drain(kTurnMax - taken);
    if (found < 0) return Lose(-found, "poll a completion queue");
    taken += static_cast<uint32_t>(found);
  }
  if (taken > before) Spin(true);
}

int CompletionPump::Drain(uint32_t max) {
  uint32_t taken = 0;
  while (taken < max) {
    const size_t room = std::min<size_t>(batch_.size(), max - taken);
    const int count = cq_->Poll({batch_.data(), room});
    ++stats_.polls;
    if (count < 0) return count;
    for (int i = 0; i < count; ++i) Dispatch(batch_[static_cast<size_t>(i)]);
    taken += static_cast<uint32_t>(count);
    if (static_cast<size_t>(count) < room) {
      ++stats_.empties;
      break;
    }
  }
  return static_cast<int>(taken);
}

void CompletionPump::Dispatch(const FabricCompletion& completion) {
  ++stats_.completions;
  const uint32_t number = static_cast<uint32_t>(completion.id >> 32);
  const uint32_t index = number & kIndexMask;
  if (index < sinks_.size()) {
    const SinkSlot& slot = sinks_[index];
    if (slot.sink != nullptr && slot.generation == number >> kIndexBits) {
      return slot.sink->OnCompletion(static_cast<uint32_t>(completion.id), completion);
    }
  }
  ++stats_.late;
}

// The longest gap and no mean: what has been sent is acknowledged soon, its answer comes later, and
// that is what is waited for. Each arrival forgets some of it, so a pause counts for a few.
bool CompletionPump::Spin(bool found) {
  if (spin_max_ns_ == 0) return false;
  const int64_t now_ns = loop()->now_ns();
  if (found) {
    const int64_t gap_ns = std::min(now_ns - std::exchange(arrival_ns_, now_ns), gap_max_ns_);
    gap_ns_ = std::max(gap_ns, gap_ns_ - gap_ns_ / 8);
    const int64_t budget_ns = 2 * gap_ns_ <= spin_max_ns_ ? 2 * gap_ns_ : 0;
    stats_.spin_budget = absl::Nanoseconds(budget_ns);
    spin_until_ns_ = now_ns + budget_ns;
  }
  if (now_ns < spin_until_ns_) return true;
  stats_.spin_budget = absl::ZeroDuration();
  return false;
}

void CompletionPump::Lose(int error, const char* operation) {
  if (std::exchange(lost_, true)) return;
  if (options_.on_lost) options_.on_lost(ErrnoStatus(error, operation));
}

// --- DeviceWatch ---

absl::StatusOr<std::unique_ptr<DeviceWatch>> DeviceWatch::Create(LoopCore& loop,
                                                                 FabricDevice& device,
                                                                 OnEvent on_event) {
  std::unique_ptr<DeviceWatch> watch(new DeviceWatch(loop, device, std::move(on_event)));
  if (absl::Status status = watch->Start(); !status.ok()) return status;
  return watch;
}

void DeviceWatch::OnReadable() {
  FabricEvent event;
  while (device_.TakeEvent(&event)) on_event_(event);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
