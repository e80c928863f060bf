#include "engine/loop_core.h"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "buffer/size_class.h"
#include "engine/engine_choice.h"
#include "engine/loop_watches.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Connections served from the ready list in one turn (I9); the list goes on in the next.
constexpr int kReadyMax = 1024;
constexpr size_t kTimersMax = 4096;
constexpr size_t kDeferredMax = 1024;
constexpr absl::Duration kRoomRetry = absl::Milliseconds(10);
constexpr absl::Duration kRoomPatience = absl::Milliseconds(250);

}  // namespace

// Makes this loop's cache the calling thread's, and the time stand still, for the length of a turn.
struct LoopCore::TurnScope {
  explicit TurnScope(LoopCore& loop)
      : core(loop), before(loop.thread_.load(std::memory_order_relaxed)), scope(loop.cache_) {
    core.thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    core.last_thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
    core.in_turn_ = true;
  }
  ~TurnScope() {
    core.thread_.store(before, std::memory_order_relaxed);
    core.in_turn_ = false;
    core.ForgetNow();
  }
  LoopCore& core;
  std::thread::id before;
  PoolCache::Scope scope;
};

namespace {

absl::Status CheckOptions(const LoopOptions& options) {
  const auto bad = [](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("loop options: ", what));
  };
  if (options.turn_events_max < 1) return bad("turn_events_max must be at least 1");
  if (options.turn_tasks_max < 1) return bad("turn_tasks_max must be at least 1");
  if (options.connections_max < 1) return bad("connections_max must be at least 1");
  if (options.pool == nullptr && options.pool_options.bytes_max < kBlockSizes[0]) {
    return bad("pool_options.bytes_max must be at least 256, the smallest block");
  }
  if (options.busy_poll < absl::ZeroDuration()) return bad("busy_poll must not be negative");
  if (options.idle_trim < absl::ZeroDuration()) return bad("idle_trim must not be negative");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Loop>> LoopCore::CreateLoop(LoopOptions options, Seams seams) {
  if (absl::Status status = CheckOptions(options); !status.ok()) return status;
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
                                         : PoolCore::MakePool(options_.pool_options, sys_)),
      pool_(options_.pool != nullptr ? options_.pool : own_pool_.get()),
      cache_(pool_->core()),
      mailbox_(std::make_shared<Mailbox>([this] { WriteWake(); })),
      timers_(TimerWheel::TickAt(sys_.Now())),
      room_retry_(timers_),
      leave_retry_(timers_) {
  if (!options_.log) options_.log = LogToStderr;
}

absl::Status LoopCore::Start() {
  last_thread_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  absl::StatusOr<bool> pinned_reads = PinnedReadsByEnvironment();
  if (!pinned_reads.ok()) return pinned_reads.status();
  pinned_reads_ = *pinned_reads;
  wake_fd_ = sys_.EventFd();
  if (wake_fd_ < 0) return ErrnoStatus(-wake_fd_, "eventfd for a loop", nullptr);
  if (absl::Status status = ChoosePrimary(); !status.ok()) return status;
  const int timer_fd = sys_.TimerFd();
  if (timer_fd < 0) return ErrnoStatus(-timer_fd, "timerfd for a loop", nullptr);
  timer_watch_ = std::make_unique<TimerWatch>(*this);
  timer_watch_->fd = timer_fd;
  if (absl::Status status = primary_->AddWatch(*timer_watch_); !status.ok()) return status;
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
      default_ = primary_.get();
      engine_reason_ = automatic                              ? "io_uring available"
                       : options_.engine == EngineKind::kAuto ? "requested by PENSTOCK_ENGINE"
                                                              : "requested";
      return absl::OkStatus();
    }
    missing = engine.status();
  }
  // Only absence is answered by the other engine; exhaustion is the caller's to know.
  if (!automatic || !absl::IsUnimplemented(missing)) return missing;
  absl::StatusOr<std::unique_ptr<Engine>> engine = make_engine_(*this, EngineKind::kEpoll);
  if (!engine.ok()) return engine.status();
  primary_ = *std::move(engine);
  default_ = primary_.get();
  engine_reason_ = std::string(missing.message());
  Log(LogSeverity::kInfo, absl::StrCat("epoll engine: ", engine_reason_));
  return absl::OkStatus();
}

absl::StatusOr<Engine*> LoopCore::EngineFor(EngineKind kind) {
  if (kind == EngineKind::kAuto) {
    if (!default_->broken()) return default_;
    return EngineFor(EngineKind::kEpoll);  // until LeaveBroken has come to it there may be none
  }
  for (Engine* engine : {primary_.get(), secondary_.get()}) {
    if (engine == nullptr || engine->kind() != kind) continue;
    if (!engine->broken()) return engine;
    return absl::UnavailableError(
        absl::StrCat("the loop's ", std::string(EngineKindName(kind)), " engine has failed"));
  }
  if (secondary_ != nullptr) {
    return absl::UnimplementedError(absl::StrCat("a loop hosts two engines and has both; not ",
                                                 std::string(EngineKindName(kind))));
  }
  absl::StatusOr<std::unique_ptr<Engine>> engine = make_engine_(*this, kind);
  if (!engine.ok()) return engine.status();
  if (!primary_->broken()) {
    auto watch = std::make_unique<EngineWatch>(*this);
    watch->fd = (*engine)->fd();
    if (watch->fd < 0)
      return ErrnoStatus(-watch->fd, "eventfd to watch a second engine by", nullptr);
    if (absl::Status status = primary_->AddWatch(*watch); !status.ok()) return status;
    engine_watch_ = std::move(watch);
  }
  secondary_ = *std::move(engine);
  return secondary_.get();
}

// --- Turns ---

void LoopCore::Run() {
  TurnScope scope(*this);
  while (!TakeStop()) {
    Turn(true);
    if (!draining_ || !FinishDrain()) continue;
    // One turn more for the streams that others had sent by now: it sends them back.
    if (std::exchange(moves_ended_, true)) break;
    mailbox_->EndMoves();
    if (!mailbox_->has_work()) break;
  }
}

void LoopCore::Stop() {
  stoppers_.fetch_add(1, std::memory_order_relaxed);
  // From here on Run may return and the loop go; its destructor waits for the wake-up.
  stop_.store(true, std::memory_order_release);
  WriteWake();
  stoppers_.fetch_sub(1, std::memory_order_release);
}

bool LoopCore::Poll() {
  TurnScope scope(*this);
  Turn(false);
  if (draining_) FinishDrain();
  // Asleep as far as posters know: their wake-up makes fd() readable, and the next turn ends it.
  const bool unsubmitted =
      primary_->HasUnsubmitted() || (secondary_ != nullptr && secondary_->HasUnsubmitted());
  if (HasWork() || events_left_ || secondary_ready_ || unsubmitted || !ArmWakeTimer()) return true;
  if (primary_->broken())
    return true;  // the descriptor that its host watches tells nothing any more
  asleep_ = mailbox_->PrepareToSleep();
  return !asleep_;
}

void LoopCore::Turn(bool may_sleep) {
  if (asleep_) {
    asleep_ = false;
    mailbox_->FinishSleep();
  }
  touched_ = false;
  ForgetNow();
  counters_.turns.Add(1);
  tasks_left_ = mailbox_->has_work() && RunTasks();
  if (HasReady()) RunReady();
  may_sleep = may_sleep && !HasWork() && !(draining_ && Empty());
  int events = 0;
  if (may_sleep && options_.busy_poll > absl::ZeroDuration()) events = WaitBusily();
  if (events == 0) events = Wait(may_sleep && !HasWork());
  events_left_ = events >= static_cast<int>(options_.turn_events_max);
  // After the wait: bytes that came in time are seen before the deadline that waits for them.
  RunTimers();
  if (trim_at_ns_ == INT64_MAX) {
    BeginQuietWatch();
  } else if (alarm_) {
    TrimWhenQuiet();
  }
}

int LoopCore::Wait(bool may_sleep) {
  if (secondary_ != nullptr && secondary_->HasUnsubmitted()) secondary_ready_ = true;
  may_sleep = may_sleep && !secondary_ready_ && ArmWakeTimer();
  // Posters write a wake-up only between these two (eventfd costs them 11 us when we sleep).
  may_sleep = may_sleep && mailbox_->PrepareToSleep();
  ForgetNow();  // what the events of this wait do happens after it
  int events = primary_->Wait(may_sleep ? -1 : 0);
  if (may_sleep) mailbox_->FinishSleep();
  if (secondary_ready_) {
    const int more = secondary_->Wait(0);
    events += more;
    // Its descriptor tells only of new events, so go on until it has none left.
    secondary_ready_ = more > 0 || secondary_->HasUnsubmitted();
  }
  return events;
}

void LoopCore::TakeUpRoom() {
  waiting_for_room_ = false;
  room_retry_.Cancel();
  primary_->OnRoom();
  if (secondary_ != nullptr) secondary_->OnRoom();
  if (attachment_ != nullptr) attachment_->OnRoom();
}

int LoopCore::WaitBusily() {
  const int64_t until = TimerWheel::DeadlineNs(now_ns(), options_.busy_poll);
  int events = 0;
  do {
    events = Wait(false);
  } while (events == 0 && !HasWork() && !mailbox_->has_work() &&
           now_ns() < std::min(until, NextWake()));
  return events;
}

bool LoopCore::RunTasks() {
  const size_t ran = mailbox_->Drain(options_.turn_tasks_max);
  counters_.tasks.Add(ran);
  return ran == options_.turn_tasks_max;
}

void LoopCore::RunTimers() {
  counters_.timers.Set(timers_.armed());
  // Nothing is due while an alarm is set for the first of them: such a turn reads no clock.
  if (AlarmCovers(NextTimer()) && timer_watch_->failures == 0) return;
  counters_.timers_fired.Add(timers_.Advance(now_tick(), kTimersMax));
}

void LoopCore::RunReady() {
  // Before the connections, so that what it has them do is done in the same turn.
  deferred_.Run(kDeferredMax);
  // Those that come back while the list is served wait for the next turn.
  const Connection* const last = ready_tail_;
  bool more = last != nullptr;
  for (int i = 0; more && i < kReadyMax; ++i) {
    Connection& connection = *ready_head_;
    more = &connection != last;
    ready_head_ = connection.next_ready_;
    if (ready_head_ == nullptr) ready_tail_ = nullptr;
    connection.next_ready_ = nullptr;
    connection.ready_ = false;
    connection.Service();
    connection.Drop();
  }
}

void LoopCore::PushReady(Connection& connection) {
  Touch();
  if (ready_tail_ != nullptr) {
    ready_tail_->next_ready_ = &connection;
  } else {
    ready_head_ = &connection;
  }
  ready_tail_ = &connection;
}

int64_t LoopCore::NextWake() const {
  int64_t at = NextTimer();
  if (draining_) at = std::min(at, drain_until_ns_);
  at = std::min(at, trim_at_ns_);
  return at;
}

bool LoopCore::ArmWakeTimer() {
  counters_.timers.Set(timers_.armed());
  const int64_t at = NextWake();
  // A time limit on every wait would cost a kernel timer each; this one is set only when something
  // is due earlier than it. Too early an alarm is a turn for nothing.
  return AlarmCovers(at) || SetWakeTimer(at);
}

bool LoopCore::SetWakeTimer(int64_t at) {
  if (at <= now_ns()) {
    alarm_ = true;  // as if it had been set in time
    return false;
  }
  counters_.syscalls.Add(1);
  const bool set = sys_.TimerFdSet(timer_watch_->fd, at) == 0;
  timer_at_ns_ = set ? at : 0;
  return set;
}

uint64_t LoopCore::Traffic() const {
  return counters_.bytes_in.value() + counters_.bytes_out.value() + counters_.closed.value();
}

// Once a period while there is traffic, and not once a turn: nothing here reads the clock until the
// alarm comes.
void LoopCore::BeginQuietWatch() {
  if (Traffic() == traffic_seen_ || options_.idle_trim == absl::InfiniteDuration()) return;
  traffic_seen_ = Traffic();
  trim_at_ns_ = TimerWheel::DeadlineNs(now_ns(), options_.idle_trim);
}

void LoopCore::TrimWhenQuiet() {
  alarm_ = false;
  if (now_ns() < trim_at_ns_) return;
  if (Traffic() != traffic_seen_) {
    traffic_seen_ = Traffic();
    trim_at_ns_ = TimerWheel::DeadlineNs(now_ns(), options_.idle_trim);
    return;
  }
  trim_at_ns_ = INT64_MAX;
  primary_->Trim();
  if (secondary_ != nullptr) secondary_->Trim();
  slots_.Trim();
  cache_.Flush();
  pool_->Trim();
}

void LoopCore::WriteWake() {
  const uint64_t one = 1;
  sys_.Write(wake_fd_, &one, sizeof one);
}

void LoopCore::OnRoom() {
  // A task, and no flag beside it that a turn could look at too early and then sleep on.
  Post([this] { TakeUpRoom(); });
}

void LoopCore::WaitForRoom() {
  counters_.buffer_waits.Add(1);
  if (std::exchange(waiting_for_room_, true)) return;
  // When nobody will tell, because the kernel gave no memory and no block is out that could come
  // back, ask again soon; otherwise later, for another thread that was refused more between our
  // refusal and this call may keep the pool from telling of what would do for us.
  const absl::Duration after = pool_->NotifyRoom(this) ? kRoomPatience : kRoomRetry;
  room_retry_.Arm(TimerWheel::DeadlineTick(sys_.Now(), after), [this] { TakeUpRoom(); });
}

// --- Connections ---

bool LoopCore::HasRoom() const {
  return !draining_ &&
         counters_.open.value() + counters_.connecting.value() < options_.connections_max;
}

absl::Status LoopCore::AdmitConnection() {
  if (HasRoom()) return absl::OkStatus();
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
  Link(*connection);
  counters_.connecting.Add(1);
  if (options.pinned_reads || pinned_reads_) connection->PinReads();
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

void LoopCore::Link(Connection& connection) {
  connection.next_ = connections_;
  connection.previous_ = nullptr;
  if (connections_ != nullptr) connections_->previous_ = &connection;
  connections_ = &connection;
  connection.slot_ = slots_.Take(SlotKind::kConnection, &connection);
}

void LoopCore::ForEachConnection(absl::FunctionRef<void(Connection&)> visit) {
  for (Connection* c = connections_; c != nullptr;) {
    // Held: the visit may end the owner, and with it this connection or the next.
    c->Hold();
    visit(*c);
    Connection* const next = c->next_;
    c->Drop();
    c = next;
  }
}

void LoopCore::OnClosed(Connection& connection) {
  slots_.Free(connection.slot_);
  counters_.closed.Add(1);
  for (LoopObserver* observer : observers_) observer->OnConnectionClosed();
}

void LoopCore::Unlink(Connection& connection) {
  for (const auto& sweep : sweeps_) {
    if (sweep != nullptr) sweep->OnUnlink(connection);
  }
  if (connection.previous_ != nullptr) {
    connection.previous_->next_ = connection.next_;
  } else {
    connections_ = connection.next_;
  }
  if (connection.next_ != nullptr) connection.next_->previous_ = connection.previous_;
}

void LoopCore::AddObserver(LoopObserver* observer) { observers_.push_back(observer); }

void LoopCore::RemoveObserver(LoopObserver* observer) { std::erase(observers_, observer); }

// --- Ending; drains are in loop_drain.cc ---

LoopCore::~LoopCore() {
  mailbox_->Close();
  // As long as one eventfd write takes.
  while (stoppers_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
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
  for (auto& sweep : sweeps_) sweep = nullptr;
  // The layer above the attachment's goes first.
  while (!at_end_.empty()) at_end_.Run(std::numeric_limits<size_t>::max());
  if (attachment_ != nullptr) attachment_->OnLoopGone();
  ForEachConnection([](Connection& c) { c.EndWithLoop(); });
  while (ready_head_ != nullptr) RunReady();
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
  while (ready_head_ != nullptr) RunReady();
  for (Connection* c = connections_; c != nullptr; c = c->next_) {
    c->loop_ = nullptr;
    c->engine_ = nullptr;
  }
}

// --- Figures ---

bool LoopCore::InLoopThread() const {
  return last_thread_.load(std::memory_order_relaxed) == std::this_thread::get_id();
}

bool LoopCore::MayUse() const {
  const std::thread::id thread = thread_.load(std::memory_order_relaxed);
  return thread == std::thread::id() || thread == std::this_thread::get_id();
}

void LoopCore::Touch() {
  if (thread_.load(std::memory_order_relaxed) != std::thread::id() || touched_) return;
  touched_ = true;
  WriteWake();
}

void LoopCore::Log(LogSeverity severity, std::string_view message, const char* file, int line) {
  options_.log(severity, file, line, message);
}

void LoopCore::EngineFault(EngineKind engine, std::string_view message, const char* file,
                           int line) {
  (engine == EngineKind::kUring ? counters_.faults_uring : counters_.faults_epoll).Add(1);
  Fault(message, file, line);
}

void LoopCore::Fault(std::string_view message, const char* file, int line) {
  counters_.faults.Add(1);
  Log(LogSeverity::kWarning, message, file, line);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
