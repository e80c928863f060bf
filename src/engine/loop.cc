#include <penstock/loop.h>

#include <thread>
#include <utility>

#include "base/check.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE

bool LoopHandle::Post(absl::AnyInvocable<void() &&> task) const {
  return mailbox_ != nullptr && mailbox_->Push(std::move(task));
}

absl::StatusOr<std::unique_ptr<Loop>> Loop::Create(LoopOptions options) {
  return internal::LoopCore::CreateLoop(std::move(options), {});
}

Loop::Loop(std::unique_ptr<internal::LoopCore> core) : core_(std::move(core)) {}

Loop::~Loop() = default;

void Loop::Run() { core_->Run(); }
void Loop::Stop() { core_->Stop(); }
void Loop::Drain(absl::Duration grace) { core_->Drain(grace); }
bool Loop::draining() const { return core_->draining(); }
bool Loop::drained() const { return core_->drained(); }
int Loop::fd() const { return core_->fd(); }
bool Loop::Poll() { return core_->Poll(); }
void Loop::Post(absl::AnyInvocable<void() &&> task) { core_->Post(std::move(task)); }
LoopHandle Loop::handle() { return core_->handle(); }
EngineKind Loop::engine() const { return core_->default_engine(); }
const std::string& Loop::engine_reason() const { return core_->engine_reason(); }
absl::Status Loop::EnableEngine(EngineKind kind) { return core_->EngineFor(kind).status(); }
BufferPool& Loop::pool() { return core_->pool(); }
absl::Time Loop::now() const { return absl::UnixEpoch() + absl::Nanoseconds(core_->now_ns()); }
bool Loop::InLoopThread() const { return core_->InLoopThread(); }
LoopSnapshot Loop::Snapshot() const { return core_->Snapshot(); }

Timer::Timer(Loop& loop)
    : core_(loop.core()), timer_(std::make_unique<internal::CallbackTimer>(core_.timers())) {}

Timer::~Timer() = default;

void Timer::Arm(absl::Duration after, absl::AnyInvocable<void() &&> fire) {
  // A fresh reading: the turn's time may be old, and a timer never fires early.
  timer_->Arm(internal::TimerWheel::DeadlineTick(core_.sys().Now(), after), std::move(fire));
  core_.Touch();
}

void Timer::Cancel() { timer_->Cancel(); }
bool Timer::armed() const { return timer_->armed(); }

PENSTOCK_END_NAMESPACE
