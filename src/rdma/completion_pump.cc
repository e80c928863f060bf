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

CompletionPump::Queue::Queue(CompletionPump& owner, LoopCore& loop, std::unique_ptr<FabricCq> made)
    : FabricWatch(loop, made->fd()), pump(owner), cq(std::move(made)) {}

CompletionPump::Queue::~Queue() {
  Stop();
  if (unacked > 0) cq->AckEvents(unacked);
}

absl::Status CompletionPump::Queue::Begin() {
  if (absl::Status status = Start(); !status.ok()) return status;
  if (const int error = cq->Arm()) return ErrnoStatus(-error, "arm completion queue");
  armed = true;
  return absl::OkStatus();
}

// The event itself is taken when the queue is to be armed again.
void CompletionPump::Queue::OnReadable() {
  event_waits = true;
  pump.Turn();
}

CompletionPump::CompletionPump(LoopCore& loop, std::unique_ptr<FabricCq> cq, Options options)
    : queue_(*this, loop, std::move(cq)),
      options_(std::move(options)),
      spin_max_ns_(absl::ToInt64Nanoseconds(options_.spin_max)),
      gap_max_ns_(std::min(spin_max_ns_, INT64_MAX / 16) * 4),
      gap_ns_(gap_max_ns_) {}

CompletionPump::~CompletionPump() = default;

absl::StatusOr<std::unique_ptr<CompletionPump>> CompletionPump::Create(LoopCore& loop,
                                                                       FabricDevice& device,
                                                                       Options options) {
  absl::StatusOr<std::unique_ptr<FabricCq>> cq = device.CreateCq(options.depth, 0);
  if (!cq.ok()) return cq.status();
  std::unique_ptr<CompletionPump> pump(
      new CompletionPump(loop, *std::move(cq), std::move(options)));
  if (absl::Status status = pump->queue_.Begin(); !status.ok()) return status;
  if (pump->options_.send_depth == 0) return pump;
  absl::StatusOr<std::unique_ptr<FabricCq>> sends = device.CreateCq(pump->options_.send_depth, 0);
  if (!sends.ok()) return sends.status();
  pump->sends_ = std::make_unique<Queue>(*pump, loop, *std::move(sends));
  if (absl::Status status = pump->sends_->Start(); !status.ok()) return status;
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

void CompletionPump::Look() {
  if (!lost_ && loop() != nullptr) loop()->Defer(again_);
}

void CompletionPump::AwaitSends() {
  if (std::exchange(sends_awaited_, true) || !sends_ || sends_->asleep()) return;
  if (!lost_ && loop() != nullptr) loop()->DeferSoon(again_);
}

// One turn: drain, then go on next turn; or arm, look once more, and sleep.
void CompletionPump::Turn() {
  if (lost_ || loop() == nullptr) return;
  again_.Cancel();
  if (stepped_ > 0) loop()->FreshTick();  // the turn has gone on since it asked for the time
  // Where it is armed still, an event that nobody has taken yet tells of what is not found now.
  for (bool may_sleep = asleep();; may_sleep = true) {
    const int found = Drain(kTurnMax);
    if (found < 0) return Lose(-found, "poll a completion queue");
    if (Spin(std::exchange(came_, false) || found > 0)) {
      ++stats_.spins;
      return TurnAgain(LookOn(static_cast<uint32_t>(found)));
    }
    stepped_ = 0;
    if (found > 0) return loop()->Defer(again_);
    if (may_sleep) break;
    if (!Rest(queue_) || (sends_ && sends_awaited_ && !Rest(*sends_))) return;
  }
  ++stats_.sleeps;
}

bool CompletionPump::Rest(Queue& queue) {
  if (std::exchange(queue.event_waits, false)) {
    // It is armed once at a time: to ask for a second event would be a system call for nothing.
    const int events = queue.cq->TakeEvents(1);
    if (events < 0) {
      Lose(-events, "take events of a completion channel");
      return false;
    }
    if (events > 0) queue.armed = false;
    stats_.events += static_cast<uint32_t>(events);
    queue.unacked += static_cast<uint32_t>(events);
    if (queue.unacked >= kAckBatch) queue.cq->AckEvents(std::exchange(queue.unacked, 0));
  }
  if (queue.armed) return true;
  const int error = queue.cq->Arm();
  if (error != 0) Lose(-error, "arm completion queue");
  queue.armed = error == 0;
  return queue.armed;
}

// A turn of the loop costs a system call and a look some nanoseconds, so one that spins looks more
// than once, while nobody has anything to do. It is over in microseconds all the same (I9).
uint32_t CompletionPump::LookOn(uint32_t taken) {
  const uint32_t before = taken;
  for (int looks = 1; looks <= kLooksPerSpin && taken < kTurnMax && !loop()->HasReady(); ++looks) {
    const bool glance = looks % kLooksPerGlance == 0;
    if (glance && loop()->sys().Now() >= spin_until_ns_) break;
    const uint32_t room = kTurnMax - taken;
    bool all;
    const int found = glance || sends_awaited_ ? Drain(room) : DrainOne(room, &all);
    if (found < 0) {
      Lose(-found, "poll a completion queue");
      break;
    }
    taken += static_cast<uint32_t>(found);
  }
  came_ = taken > before;
  return taken;
}

// Behind those whom what was taken has woken. When it woke nobody, all looks are spent, and the
// loop's other descriptors have waited long enough.
void CompletionPump::TurnAgain(uint32_t taken) {
  if (lost_) return;
  again_.Cancel();  // AwaitSends may have asked for it, before them and in this step
  stepped_ += taken;
  if (taken > 0 && stepped_ < kStepMax && loop()->HasReady()) return loop()->DeferSoon(again_);
  stepped_ = 0;
  loop()->Defer(again_);
}

// What has come goes before the ends of sends, which are looked for when nothing has, or the next
// time.
int CompletionPump::Drain(uint32_t max) {
  bool all = false;
  int taken = DrainOne(max, &all);
  if (taken < 0) return taken;
  if (sends_) {
    sends_due_ = taken > 0 && !sends_due_;
    if (sends_due_) return taken;
    const int ended = DrainSends(max - static_cast<uint32_t>(taken), &all);
    if (ended < 0) return ended;
    taken += ended;
  }
  if (all) ++stats_.empties;
  return taken;
}

// A batch of them; `all` afterwards: both queues are empty, and everything is told.
int CompletionPump::DrainSends(uint32_t max, bool* all) {
  if (ended_count_ == 0) {
    const int count = sends_->cq->Poll(ended_);
    if (count <= 0) return count;
    ended_count_ = static_cast<size_t>(count);
    ended_due_ = stats_.completions + options_.depth;
  }
  // What had come before they ended. Nothing else is told meanwhile, so after `depth` all of it is,
  // though the queue may never be found empty.
  const int taken = DrainOne(max, all);
  if (taken < 0 || (!*all && stats_.completions < ended_due_)) return taken;
  *all = *all && ended_count_ < ended_.size();
  const size_t ended = std::exchange(ended_count_, 0);
  for (size_t i = 0; i < ended; ++i) Dispatch(ended_[i]);
  return taken + static_cast<int>(ended);
}

int CompletionPump::DrainOne(uint32_t max, bool* all) {
  uint32_t taken = 0;
  for (*all = false; taken < max && !*all;) {
    const size_t room = std::min<size_t>(batch_.size(), max - taken);
    const int count = queue_.cq->Poll({batch_.data(), room});
    ++stats_.polls;
    if (count < 0) return count;
    for (int i = 0; i < count; ++i) Dispatch(batch_[static_cast<size_t>(i)]);
    taken += static_cast<uint32_t>(count);
    *all = static_cast<size_t>(count) < room;
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
