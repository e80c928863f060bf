#include "testing/sim_world.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "buffer/pool_core.h"
#include "engine/loop_core.h"
#include "testing/sim_engine.h"
#include "testing/sim_wire.h"

namespace penstock::testing {
namespace {

// Turns at one instant of the clock after which a loop must be spinning.
constexpr uint64_t kSpinPolls = 20'000;
// Descriptors 0 to 2 belong to somebody else, as in a real process.
constexpr size_t kFirstFd = 3;

}  // namespace

// The system calls that are left when the engine is simulated: time, wake-ups and memory.
class SimWorld::SimSys : public internal::Sys {
 public:
  explicit SimSys(SimWorld& world) : world_(world) {}

  int64_t Now() override { return world_.now_ns(); }
  int64_t ThreadCpu() override { return world_.current_ == nullptr ? 0 : world_.current_->cpu_ns; }
  int EventFd() override { return world_.OpenFd(); }
  int TimerFd() override { return world_.OpenFd(); }
  int TimerFdSet(int fd, int64_t at_ns) override {
    world_.SetTimerFd(fd, at_ns);
    return 0;
  }
  int OpenReserve() override { return world_.OpenFd(); }
  int64_t Read(int, void*, size_t) override { return -EAGAIN; }
  int64_t Write(int fd, const void*, size_t size) override {
    world_.RaiseFd(fd, kSimIn);
    return static_cast<int64_t>(size);
  }
  // Of a socket: SO_LINGER, by a stream that ends between two loops (socket(7): close resets).
  int SetOption(int fd, int, int name, const void*, socklen_t) override {
    if (name == SO_LINGER) resets_ = fd;
    return 0;
  }
  int Close(int fd) override {
    if (world_.wire().IsSocket(fd)) {
      world_.wire().Close(fd, std::exchange(resets_, -1) == fd);
    } else {
      world_.CloseFd(fd);
    }
    return 0;
  }
  int Unlink(const char*) override { return 0; }
  void* Map(size_t size, int flags, int* error) override {
    if (!world_.random().Chance(world_.faults().map_failure)) return Sys::Map(size, flags, error);
    world_.Note("map fails", size);
    *error = -ENOMEM;
    return nullptr;
  }

 private:
  SimWorld& world_;
  int resets_ = -1;
};

SimWorld::SimWorld(uint64_t seed)
    : random_(seed),
      descriptors_(kFirstFd, Descriptor{.open = true}),
      sys_(std::make_unique<SimSys>(*this)),
      wire_(std::make_unique<SimWire>(*this)) {}

SimWorld::~SimWorld() = default;

absl::StatusOr<std::unique_ptr<Loop>> SimWorld::NewLoop(LoopOptions options, SimStyle style) {
  if (options.engine == EngineKind::kAuto) options.engine = EngineKind::kSimulated;
  if (!options.log) options.log = [](LogSeverity, std::string_view, int, std::string_view) {};
  loops_.push_back(std::make_unique<LoopRecord>());
  LoopRecord* const record = loops_.back().get();
  internal::LoopCore::Seams seams;
  seams.sys = sys_.get();
  seams.engines = [this, record, style](
                      internal::LoopCore& core,
                      EngineKind kind) -> absl::StatusOr<std::unique_ptr<internal::Engine>> {
    SimStyle chosen = style;
    if (kind == EngineKind::kEpoll) chosen = SimStyle::kReadiness;
    if (kind == EngineKind::kUring) chosen = SimStyle::kCompletion;
    auto engine = std::make_unique<SimEngine>(core, *this, kind, chosen);
    record->core = &core;
    ++record->engines;
    if (engine->fd() < 0) return internal::ErrnoStatus(-engine->fd(), "open an engine", nullptr);
    return engine;
  };
  absl::StatusOr<std::unique_ptr<Loop>> loop =
      internal::LoopCore::CreateLoop(std::move(options), std::move(seams));
  if (loop.ok()) {
    record->loop = loop->get();
    record->poll = true;
  }
  return loop;
}

std::unique_ptr<BufferPool> SimWorld::NewPool(PoolOptions options) {
  return internal::PoolCore::MakePool(options, *sys_);
}

bool SimWorld::Run(const std::function<bool()>& until, absl::Duration limit) {
  const int64_t end = now_ns_ + absl::ToInt64Nanoseconds(limit);
  while (!until()) {
    if (!Step(end) || !errors_.empty()) return until();
  }
  return true;
}

void SimWorld::Drive(Loop& loop) {
  LoopRecord* const record = RecordOf(loop);
  record->running = true;
  LoopRecord* const before = std::exchange(current_, record);
  loop.Run();
  current_ = before;
  record->running = false;
  record->poll = true;
}

void SimWorld::At(int64_t at_ns, Action action) {
  events_.push(Event{std::max(at_ns, now_ns_), sequence_++, std::move(action)});
}

void SimWorld::After(absl::Duration delay, Action action) {
  At(now_ns_ + absl::ToInt64Nanoseconds(delay), std::move(action));
}

void SimWorld::Touch(const Loop& loop) {
  if (LoopRecord* const record = RecordOf(loop)) record->poll = true;
}

bool SimWorld::Busy(const Loop& loop) const {
  const LoopRecord* const record = RecordOf(loop);
  return record != nullptr && record->running;
}

void SimWorld::Spend(absl::Duration cpu) { current_->cpu_ns += absl::ToInt64Nanoseconds(cpu); }

SimWorld::LoopRecord* SimWorld::RecordOf(const Loop& loop) const {
  for (const auto& record : loops_) {
    if (record->loop == &loop) return record.get();
  }
  return nullptr;
}

void SimWorld::Note(std::string_view what, uint64_t a, uint64_t b, uint64_t c) {
  for (const char ch : what) trace_hash_ = (trace_hash_ ^ static_cast<uint8_t>(ch)) * 0x100000001b3;
  for (const uint64_t n : {static_cast<uint64_t>(now_ns_), a, b, c}) {
    trace_hash_ = SimMix(trace_hash_ ^ n);
  }
  if (!tracing_) return;
  std::fprintf(stderr, "%11.6f ms  %.*s %llu %llu %llu\n",
               static_cast<double>(now_ns_ - 1'000'000'000) / 1e6, static_cast<int>(what.size()),
               what.data(), static_cast<unsigned long long>(a), static_cast<unsigned long long>(b),
               static_cast<unsigned long long>(c));
}

int64_t SimWorld::Delay(int64_t max_ns) {
  return max_ns <= 0 ? 0 : static_cast<int64_t>(random_.Below(static_cast<uint64_t>(max_ns) + 1));
}

// --- Time and threads ---

bool SimWorld::Step(int64_t limit_ns) {
  if (PollLoops()) {
    if (++polls_since_move_ <= kSpinPolls) return true;
    Error("a loop spins: it has had work for 20000 turns without time passing");
    return false;
  }
  polls_since_move_ = 0;
  if (events_.empty() || events_.top().at_ns > limit_ns) {
    if (limit_ns != kNever) now_ns_ = std::max(now_ns_, limit_ns);
    return false;
  }
  now_ns_ = events_.top().at_ns;
  TakeActions();
  return true;
}

void SimWorld::TakeActions() {
  while (!events_.empty() && events_.top().at_ns <= now_ns_) {
    Action action = std::move(events_.top().action);
    events_.pop();
    action();
  }
}

void SimWorld::Pass(absl::Duration time) {
  now_ns_ += absl::ToInt64Nanoseconds(time);
  TakeActions();
}

void SimWorld::HoldCancels(bool on) {
  holds_ = on;
  while (!on && HasHeld()) TakeHeld();
}

void SimWorld::AtLeisure(Action cancel) {
  if (holds_) return held_.push_back(std::move(cancel));
  At(now_ns_ + Delay(faults_.event_delay_max), std::move(cancel));
}

void SimWorld::TakeHeld() {
  Action cancel = std::move(held_.front());
  held_.pop_front();
  cancel();
}

bool SimWorld::HasTurn(const Loop& loop) const {
  const LoopRecord* const record = RecordOf(loop);
  return record != nullptr && (record->poll || HasDue(*record));
}

bool SimWorld::HasDue(const LoopRecord& record) {
  return static_cast<const SimEngine&>(record.core->primary()).HasDue();
}

void SimWorld::TakeTurn(const Loop& loop) { PollLoop(*RecordOf(loop)); }

bool SimWorld::PollLoops() {
  if (loops_.empty()) return false;
  bool polled = false;
  const size_t first = random_.Below(loops_.size());
  for (size_t i = 0; i < loops_.size(); ++i) {
    polled |= PollLoop(*loops_[(first + i) % loops_.size()]);
  }
  return polled;
}

bool SimWorld::PollLoop(LoopRecord& record) {
  if (record.loop == nullptr || record.running || record.stalled_until_ns > now_ns_) return false;
  if (!record.poll && !HasDue(record)) return false;
  if (random_.Chance(faults_.loop_stall)) {
    record.stalled_until_ns = now_ns_ + 1 + Delay(faults_.stall_max);
    At(record.stalled_until_ns, [] {});
    return false;
  }
  record.poll = false;
  record.running = true;
  LoopRecord* const before = std::exchange(current_, &record);
  const bool more = record.loop->Poll();
  current_ = before;
  record.running = false;
  record.poll |= more;
  return true;
}

void SimWorld::Block(SimEngine& engine, int64_t timeout_ns) {
  LoopRecord* record = nullptr;
  for (const auto& candidate : loops_) {
    if (candidate->core == &engine.core() && &candidate->core->primary() == &engine) {
      record = candidate.get();
    }
  }
  if (record == nullptr) return;  // a second engine never waits
  const int64_t end = timeout_ns < 0 ? kNever : now_ns_ + timeout_ns;
  const bool was_running = std::exchange(record->running, true);
  while (!engine.HasDue() && now_ns_ < end && Step(end)) {
  }
  record->running = was_running;
  if (!engine.HasDue() && end == kNever && record->loop != nullptr) {
    Error("a loop sleeps and nothing can wake it");
    record->loop->Stop();
  }
}

void SimWorld::Forget(SimEngine& engine) {
  for (const auto& record : loops_) {
    if (record->core != &engine.core() || --record->engines > 0) continue;
    record->core = nullptr;
    record->loop = nullptr;
  }
}

// --- Descriptors ---

int SimWorld::OpenFd() {
  if (open_fds_ >= faults_.descriptors_max) return -EMFILE;
  ++open_fds_;
  for (size_t fd = kFirstFd; fd < descriptors_.size(); ++fd) {
    if (descriptors_[fd].open) continue;
    descriptors_[fd].open = true;
    return static_cast<int>(fd);
  }
  descriptors_.push_back(Descriptor{.open = true});
  return static_cast<int>(descriptors_.size() - 1);
}

void SimWorld::CloseFd(int fd) {
  if (fd < static_cast<int>(kFirstFd) || static_cast<size_t>(fd) >= descriptors_.size() ||
      !descriptors_[static_cast<size_t>(fd)].open) {
    return Error(absl::StrCat("close of descriptor ", fd, ", which is not open"));
  }
  Descriptor& descriptor = descriptors_[static_cast<size_t>(fd)];
  --open_fds_;
  descriptor.open = false;
  descriptor.watcher = nullptr;
  ++descriptor.timer_sequence;
}

void SimWorld::WatchFd(int fd, SimWatcher* watcher, uint64_t token) {
  descriptors_[static_cast<size_t>(fd)].watcher = watcher;
  descriptors_[static_cast<size_t>(fd)].token = token;
}

void SimWorld::UnwatchFd(int fd, const SimWatcher* watcher) {
  if (fd < 0 || descriptors_[static_cast<size_t>(fd)].watcher != watcher) return;
  descriptors_[static_cast<size_t>(fd)].watcher = nullptr;
}

void SimWorld::RaiseFd(int fd, uint32_t events) {
  if (fd < 0 || static_cast<size_t>(fd) >= descriptors_.size()) return;
  const Descriptor& descriptor = descriptors_[static_cast<size_t>(fd)];
  if (descriptor.watcher != nullptr) descriptor.watcher->OnFdEvent(descriptor.token, events);
}

void SimWorld::SetTimerFd(int fd, int64_t at_ns) {
  const uint64_t sequence = ++descriptors_[static_cast<size_t>(fd)].timer_sequence;
  if (at_ns == 0) return;
  At(at_ns, [this, fd, sequence] {
    if (descriptors_[static_cast<size_t>(fd)].timer_sequence == sequence) RaiseFd(fd, kSimIn);
  });
}

}  // namespace penstock::testing
