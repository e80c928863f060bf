#include "engine/loop_core.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/engine_choice.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Connections served from the ready list in one turn (I9); the list goes on in the next.
constexpr int kReadyMax = 1024;
constexpr size_t kTimersMax = 4096;
// How long a loop going away waits for the kernel to give operations back before it says so.
constexpr int64_t kCloseWaitNs = 1'000'000'000;

}  // namespace

// Wakes the loop when another thread has posted. The eventfd is never read: each write is a new
// edge, and its counter takes 2^64 - 2 of them (eventfd(2)).
class LoopCore::WakeWatch : public Watch {
 public:
  void OnReadable() override {}
};

// Makes fd() readable when a timer is due, for a loop that is embedded in another.
class LoopCore::TimerWatch : public Watch {
 public:
  void OnReadable() override {}
};

// Runs the secondary engine when the primary sees its descriptor readable.
class LoopCore::EngineWatch : public Watch {
 public:
  explicit EngineWatch(LoopCore& core) : core_(core) {}
  void OnReadable() override { core_.secondary_ready_ = true; }

 private:
  LoopCore& core_;
};

// Makes this loop's cache the calling thread's for the length of a turn.
struct LoopCore::TurnScope {
  explicit TurnScope(LoopCore& core) : scope(core.cache_) {
    core.thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  }
  PoolCache::Scope scope;
};

absl::StatusOr<std::unique_ptr<Loop>> LoopCore::CreateLoop(LoopOptions options, Seams seams) {
  auto core = std::make_unique<LoopCore>(std::move(options), std::move(seams));
  if (absl::Status status = core->Start(); !status.ok()) return status;
  LoopCore* const raw = core.get();
  std::unique_ptr<Loop> loop(new Loop(std::move(core)));
  raw->loop_ = loop.get();
  return loop;
}

LoopCore::LoopCore(LoopOptions options, Seams seams)
    : options_(std::move(options)),
      sys_(seams.sys != nullptr ? *seams.sys : RealSys()),
      make_engine_(seams.engines ? std::move(seams.engines) : MakeEngine),
      own_pool_(options_.pool != nullptr ? nullptr
                                         : std::make_unique<BufferPool>(options_.pool_options)),
      pool_(options_.pool != nullptr ? options_.pool : own_pool_.get()),
      cache_(pool_->core()),
      mailbox_(std::make_shared<Mailbox>([this] { WriteWake(); })),
      timers_(TimerWheel::TickAt(sys_.Now())) {
  if (!options_.log) options_.log = LogToStderr;
}

absl::Status LoopCore::Start() {
  UpdateNow();
  thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  wake_fd_ = sys_.EventFd();
  if (wake_fd_ < 0) return ErrnoStatus(-wake_fd_, "eventfd for a loop", nullptr);
  if (absl::Status status = ChoosePrimary(); !status.ok()) return status;
  wake_watch_ = std::make_unique<WakeWatch>();
  wake_watch_->fd = wake_fd_;
  return primary_->AddWatch(*wake_watch_);
}

absl::Status LoopCore::ChoosePrimary() {
  absl::StatusOr<EngineKind> asked = RequestedEngine(options_.engine);
  if (!asked.ok()) return asked.status();
  const bool automatic = *asked == EngineKind::kAuto;
  const EngineKind first = automatic ? EngineKind::kUring : *asked;
  absl::Status missing;
  if (automatic) missing = UringFitsAuto(sys_);
  if (missing.ok()) {
    absl::StatusOr<std::unique_ptr<Engine>> engine = make_engine_(*this, first);
    if (engine.ok()) {
      primary_ = *std::move(engine);
      engine_reason_ = automatic ? "io_uring available" : "requested";
      return absl::OkStatus();
    }
    missing = engine.status();
  }
  // Only absence is answered by the other engine; exhaustion is the caller's to know.
  if (!automatic || !absl::IsUnimplemented(missing)) return missing;
  absl::StatusOr<std::unique_ptr<Engine>> engine = make_engine_(*this, EngineKind::kEpoll);
  if (!engine.ok()) return engine.status();
  primary_ = *std::move(engine);
  engine_reason_ = std::string(missing.message());
  Log(LogSeverity::kInfo, absl::StrCat("epoll engine: ", engine_reason_));
  return absl::OkStatus();
}

absl::StatusOr<Engine*> LoopCore::EngineFor(EngineKind kind) {
  if (kind == EngineKind::kAuto || kind == primary_->kind()) return primary_.get();
  if (secondary_ != nullptr && kind == secondary_->kind()) return secondary_.get();
  if (secondary_ != nullptr) {
    return absl::UnimplementedError(absl::StrCat("a loop hosts two engines and has both; not ",
                                                 std::string(EngineKindName(kind))));
  }
  absl::StatusOr<std::unique_ptr<Engine>> engine = make_engine_(*this, kind);
  if (!engine.ok()) return engine.status();
  auto watch = std::make_unique<EngineWatch>(*this);
  watch->fd = (*engine)->fd();
  if (absl::Status status = primary_->AddWatch(*watch); !status.ok()) return status;
  secondary_ = *std::move(engine);
  engine_watch_ = std::move(watch);
  return secondary_.get();
}

// --- Turns ---

void LoopCore::Run() {
  TurnScope scope(*this);
  while (!stop_.exchange(false, std::memory_order_acquire)) {
    Turn(-1);
    if (draining_ && FinishDrain()) break;
  }
}

void LoopCore::Stop() {
  stop_.store(true, std::memory_order_release);
  Post([] {});
}

bool LoopCore::Poll() {
  TurnScope scope(*this);
  Turn(0);
  if (draining_) FinishDrain();
  if (HasWork()) return true;
  ArmTimerFd();
  if (!mailbox_->PrepareToSleep()) return true;
  // Asleep as far as posters know: their wake-up makes fd() readable, and the next turn ends it.
  return false;
}

void LoopCore::Turn(int64_t timeout_ns) {
  mailbox_->FinishSleep();
  counters_.turns.Add(1);
  tasks_left_ = RunTasks();
  RunTimers();
  RunReady();
  timeout_ns = HasWork() ? 0 : WaitTime(timeout_ns);
  int events = 0;
  if (timeout_ns != 0 && options_.busy_poll > absl::ZeroDuration()) {
    events = WaitBusily(&timeout_ns);
  }
  if (events == 0) events = Wait(timeout_ns);
  TrimWhenIdle(events);
}

int LoopCore::Wait(int64_t timeout_ns) {
  if (secondary_ != nullptr && secondary_->HasUnsubmitted()) secondary_ready_ = true;
  if (secondary_ready_) timeout_ns = 0;
  // Posters write a wake-up only between these two (eventfd costs them 11 us when we sleep).
  if (timeout_ns != 0 && !mailbox_->PrepareToSleep()) timeout_ns = 0;
  int events = primary_->Wait(timeout_ns);
  if (timeout_ns != 0) mailbox_->FinishSleep();
  UpdateNow();
  if (std::exchange(secondary_ready_, false)) {
    events += secondary_->Wait(0);
    // What it left undone makes its descriptor readable again only with a new event.
    secondary_ready_ = secondary_->HasUnsubmitted();
  }
  if (room_.exchange(false, std::memory_order_acquire)) {
    waiting_for_room_ = false;
    primary_->OnRoom();
    if (secondary_ != nullptr) secondary_->OnRoom();
  }
  return events;
}

int LoopCore::WaitBusily(int64_t* timeout_ns) {
  const int64_t began = sys_.Now();
  const int64_t busy_ns = absl::ToInt64Nanoseconds(options_.busy_poll);
  const int64_t limit = *timeout_ns < 0 ? busy_ns : std::min(busy_ns, *timeout_ns);
  do {
    const int events = Wait(0);
    if (events > 0 || HasWork() || mailbox_->has_work()) {
      *timeout_ns = 0;
      return events;
    }
  } while (now_ns_ - began < limit);
  *timeout_ns = WaitTime(*timeout_ns);
  return 0;
}

bool LoopCore::RunTasks() {
  const size_t ran = mailbox_->Drain(options_.turn_tasks_max);
  counters_.tasks.Add(ran);
  return ran == options_.turn_tasks_max;
}

void LoopCore::RunTimers() {
  counters_.timers.Set(timers_.armed());
  if (timers_.armed() == 0) return;
  UpdateNow();
  counters_.timers_fired.Add(timers_.Advance(now_tick_, kTimersMax));
}

void LoopCore::RunReady() {
  for (int i = 0; i < kReadyMax && ready_head_ != nullptr; ++i) {
    Connection& connection = *ready_head_;
    ready_head_ = connection.next_ready_;
    if (ready_head_ == nullptr) ready_tail_ = nullptr;
    connection.next_ready_ = nullptr;
    connection.ready_ = false;
    connection.Service();
    connection.Drop();
  }
}

void LoopCore::PushReady(Connection& connection) {
  if (ready_tail_ != nullptr) {
    ready_tail_->next_ready_ = &connection;
  } else {
    ready_head_ = &connection;
  }
  ready_tail_ = &connection;
}

void LoopCore::UpdateNow() {
  now_ns_ = sys_.Now();
  now_tick_ = TimerWheel::TickAt(now_ns_);
}

int64_t LoopCore::WaitTime(int64_t limit_ns) const {
  int64_t wait = limit_ns;
  const auto consider = [&wait, this](int64_t at_ns) {
    const int64_t left = std::max<int64_t>(0, at_ns - now_ns_);
    if (wait < 0 || left < wait) wait = left;
  };
  if (limit_ns == 0) return 0;
  const uint64_t tick = timers_.NextTick();
  if (tick != TimerWheel::kNever) consider(TimerWheel::NsOfTick(tick));
  if (draining_) consider(drain_until_ns_);
  if (!trimmed_) consider(quiet_since_ns_ + absl::ToInt64Nanoseconds(options_.idle_trim));
  return wait;
}

void LoopCore::TrimWhenIdle(int events) {
  if (events > 0 || HasWork()) {
    quiet_since_ns_ = now_ns_;
    trimmed_ = options_.idle_trim == absl::InfiniteDuration();
    return;
  }
  if (trimmed_ || now_ns_ - quiet_since_ns_ < absl::ToInt64Nanoseconds(options_.idle_trim)) return;
  trimmed_ = true;
  primary_->Trim();
  if (secondary_ != nullptr) secondary_->Trim();
  slots_.Trim();
  cache_.Flush();
  pool_->Trim();
}

void LoopCore::ArmTimerFd() {
  const int64_t wait = WaitTime(-1);
  if (timer_watch_ == nullptr) {
    if (wait < 0) return;
    const int fd = sys_.TimerFd();
    if (fd < 0) return Fault(ErrnoStatus(-fd, "timerfd for a loop", nullptr).ToString());
    timer_watch_ = std::make_unique<TimerWatch>();
    timer_watch_->fd = fd;
    if (absl::Status status = primary_->AddWatch(*timer_watch_); !status.ok()) {
      return Fault(status.ToString());
    }
  }
  const int64_t at = wait < 0 ? 0 : std::max<int64_t>(1, now_ns_ + wait);
  if (at == timer_fd_at_ns_) return;
  timer_fd_at_ns_ = at;
  sys_.TimerFdSet(timer_watch_->fd, at);
}

void LoopCore::WriteWake() {
  const uint64_t one = 1;
  sys_.Write(wake_fd_, &one, sizeof one);
}

void LoopCore::OnRoom() {
  room_.store(true, std::memory_order_release);
  Post([] {});
}

void LoopCore::WaitForRoom() {
  counters_.buffer_waits.Add(1);
  if (std::exchange(waiting_for_room_, true)) return;
  pool_->NotifyRoom(this);
}

// --- Connections ---

absl::Status LoopCore::AdmitConnection() {
  const uint64_t count = counters_.open.value() + counters_.connecting.value();
  if (!draining_ && count < options_.connections_max) return absl::OkStatus();
  counters_.connections_refused.Add(1);
  return absl::ResourceExhaustedError(
      draining_ ? std::string("the loop is draining")
                : absl::StrCat("the loop has its connections_max of ", options_.connections_max));
}

absl::StatusOr<Connection*> LoopCore::NewConnection(Engine& engine, int fd,
                                                    const SocketAddress& peer,
                                                    const StreamOptions& options, bool open,
                                                    std::shared_ptr<CloseObserver> observer) {
  auto* const connection = new Connection(*this, engine, fd, peer, options, std::move(observer));
  connection->next_ = connections_;
  if (connections_ != nullptr) connections_->previous_ = connection;
  connections_ = connection;
  connection->slot_ = slots_.Take(SlotKind::kConnection, connection);
  counters_.connecting.Add(1);
  connection->Hold();  // the engine's
  if (open) connection->Apply(ConnectionEvent::kConnected);
  if (absl::Status status = engine.Attach(*connection); !status.ok()) {
    connection->observer_ = nullptr;
    connection->Apply(ConnectionEvent::kEnd);
    connection->OnDetached();
    connection->Drop();
    return status;
  }
  if (!open) engine.WantWrite(*connection);
  connection->ArmDeadlines();
  return connection;
}

void LoopCore::OnClosed(Connection& connection) {
  slots_.Free(connection.slot_);
  counters_.closed.Add(1);
  trimmed_ = false;
  for (LoopObserver* observer : observers_) observer->OnConnectionClosed();
}

void LoopCore::Unlink(Connection& connection) {
  if (connection.previous_ != nullptr) {
    connection.previous_->next_ = connection.next_;
  } else {
    connections_ = connection.next_;
  }
  if (connection.next_ != nullptr) connection.next_->previous_ = connection.previous_;
}

// --- Ending ---

void LoopCore::Drain(absl::Duration grace) {
  if (draining_) return;
  draining_ = true;
  drain_until_ns_ = now_ns_ + absl::ToInt64Nanoseconds(std::min(grace, absl::Hours(24 * 365)));
  const std::vector<LoopObserver*> observers = observers_;
  for (LoopObserver* observer : observers) observer->OnDrain();
  Post([] {});  // so that a loop with nothing open ends its wait
}

bool LoopCore::FinishDrain() {
  const bool empty = counters_.open.value() + counters_.connecting.value() == 0;
  if (!empty && now_ns_ >= drain_until_ns_) {
    for (Connection* c = connections_; c != nullptr; c = c->next_) {
      c->End(absl::CancelledError(
                 absl::StrCat("connection to ", c->peer().ToString(), ": the loop was drained")),
             true);
    }
    RunReady();
  }
  return empty && !HasWork();
}

void LoopCore::AddObserver(LoopObserver* observer) { observers_.push_back(observer); }

void LoopCore::RemoveObserver(LoopObserver* observer) { std::erase(observers_, observer); }

LoopCore::~LoopCore() {
  mailbox_->Close();
  if (primary_ != nullptr) CloseEverything();
  pool_->ForgetRoom(this);
  secondary_ = nullptr;
  primary_ = nullptr;
  if (timer_watch_ != nullptr) sys_.Close(timer_watch_->fd);
  if (wake_fd_ >= 0) sys_.Close(wake_fd_);
}

void LoopCore::CloseEverything() {
  const bool own_thread = InLoopThread();
  TurnScope scope(*this);
  const std::vector<LoopObserver*> observers = std::exchange(observers_, {});
  for (LoopObserver* observer : observers) observer->OnLoopGone();
  // Destroying callbacks may destroy other connections: start over after each.
  for (Connection* c = connections_; c != nullptr;) {
    if (c->alive() || c->has_callbacks()) {
      c->EndWithLoop();
      c = connections_;
    } else {
      c = c->next_;
    }
  }
  RunReady();
  // The kernel gives back what it holds: operations own their buffers until then (I2). A ring
  // answers only the thread that ran it; from another one the engines let go the hard way.
  const int64_t give_up = sys_.Now() + kCloseWaitNs;
  while (own_thread && counters_.closing.value() > 0 && sys_.Now() < give_up) {
    primary_->Wait(1'000'000);
    if (secondary_ != nullptr) secondary_->Wait(0);
    RunReady();
  }
  primary_->ReleaseAll();
  if (secondary_ != nullptr) secondary_->ReleaseAll();
  for (Connection* c = connections_; c != nullptr; c = c->next_) c->loop_ = nullptr;
}

// --- Figures ---

bool LoopCore::InLoopThread() const {
  return thread_.load(std::memory_order_relaxed) == std::this_thread::get_id();
}

LoopSnapshot LoopCore::Snapshot() const {
  const LoopCounters& c = counters_;
  LoopSnapshot s;
  s.connecting = c.connecting.value();
  s.open = c.open.value();
  s.closing = c.closing.value();
  s.idle = s.open - std::min(s.open, c.busy.value());
  s.pinned_bytes = c.pinned_bytes.value();
  s.listeners = c.listeners.value();
  s.listeners_paused = c.listeners_paused.value();
  s.accepted = c.accepted.value();
  s.connected = c.connected.value();
  s.closed = c.closed.value();
  s.bytes_in = c.bytes_in.value();
  s.bytes_out = c.bytes_out.value();
  s.turns = c.turns.value();
  s.tasks = c.tasks.value();
  s.timers_fired = c.timers_fired.value();
  s.syscalls = c.syscalls.value();
  s.sqes = c.sqes.value();
  s.cqes = c.cqes.value();
  s.wakeups = mailbox_->wakeups();
  s.buffer_waits = c.buffer_waits.value();
  s.ring_exhausted = c.ring_exhausted.value();
  s.accept_errors = c.accept_errors.value();
  s.fd_exhausted = c.fd_exhausted.value();
  s.connections_refused = c.connections_refused.value();
  s.writes_refused = c.writes_refused.value();
  s.peer_resets = c.peer_resets.value();
  s.deadlines = c.deadlines.value();
  s.faults = c.faults.value();
  s.timers = c.timers.value();
  s.pool = pool_->Stats();
  return s;
}

void LoopCore::Log(LogSeverity severity, std::string_view message, const char* file, int line) {
  options_.log(severity, file, line, message);
}

void LoopCore::Fault(std::string_view message, const char* file, int line) {
  counters_.faults.Add(1);
  Log(LogSeverity::kWarning, message, file, line);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
