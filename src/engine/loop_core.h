// LoopCore: what a Loop is inside: the turn, the timer wheel, the mailbox, the connections and the
// engines that serve them.
//
// Owned by a Loop, or by a test that supplies its own Sys, clock and engine. Everything here
// belongs to the loop's thread unless it says otherwise.
#ifndef PENSTOCK_ENGINE_LOOP_CORE_H_
#define PENSTOCK_ENGINE_LOOP_CORE_H_

#include <penstock/export.h>
#include <penstock/loop.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/counter.h"
#include "base/mailbox.h"
#include "base/sys.h"
#include "base/timer_wheel.h"
#include "buffer/pool_cache.h"
#include "engine/connection.h"
#include "engine/deferred.h"
#include "engine/engine.h"
#include "engine/move_sweep.h"
#include "engine/parcel.h"
#include "engine/slot_table.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// The live figures behind LoopSnapshot; each written by the loop's thread only, read by any.
struct LoopCounters {
  Counter connecting, open, open_uring, closing, busy, listeners, listeners_paused;
  Counter pinned_bytes, sealed_pinned_bytes, framed_pinned_bytes;
  Counter accepted, connected, closed, receives, bytes_in, bytes_out, turns, tasks, timers_fired;
  Counter syscalls, sqes, cqes, buffer_waits, ring_exhausted;
  Counter accept_errors, fd_exhausted, accepts_refused, connections_refused, writes_refused;
  Counter peer_resets, deadlines;
  Counter faults, faults_epoll, faults_uring, timers;
  Counter switches_to_epoll, switches_to_uring, moves_in, moves_out, moves_back;
  std::array<std::array<Counter, kMoveRefusals>, kMoveDirections> moves_refused;
  Counter stranded, late_completions, bytes_carried;
  std::array<Counter, kPauseBuckets> pauses;
  Counter pause_ns, listener_switches, listener_switches_refused;
};

// What a listener hears of its loop.
class LoopObserver {
 public:
  virtual ~LoopObserver() = default;
  // A connection of the loop has closed: there is room for another, and a descriptor is free.
  virtual void OnConnectionClosed() = 0;
  // A drain began: take no more connections.
  virtual void OnDrain() = 0;
  // Every listener and connection is to be served by `to`. A listener that switches reports to what
  // `begin` returns.
  virtual void OnSwitchAll(EngineKind to, BeginListenerSwitch begin) = 0;
  // The loop is being destroyed first: forget it.
  virtual void OnLoopGone() = 0;
};

// What a higher layer keeps with a loop, exactly as long as the loop lives.
class LoopAttachment {
 public:
  // Deferred, timers and the pool may still be used; connections may not.
  virtual ~LoopAttachment() = default;
  // The pool has room again, after LoopCore::WaitForRoom.
  virtual void OnRoom() = 0;
  // The loop is going, and its connections close next: forget whoever uses it.
  virtual void OnLoopGone() = 0;
};

class LoopCore : private RoomWaiter {
 public:
  using EngineFactory =
      std::function<absl::StatusOr<std::unique_ptr<Engine>>(LoopCore& core, EngineKind kind)>;

  // What tests replace. Defaults: the real kernel and the real engines.
  struct Seams {
    Sys* sys = nullptr;
    EngineFactory engines;
  };

  static absl::StatusOr<std::unique_ptr<Loop>> CreateLoop(LoopOptions options, Seams seams);

  LoopCore(LoopOptions options, Seams seams);
  ~LoopCore() override;
  absl::Status Start();

  // --- Loop ---
  void Run();
  void Stop();
  void Drain(absl::Duration grace);
  bool Poll();
  int fd() {
    const int fd = primary_->fd();
    embedded_ = embedded_ || fd >= 0;
    return fd;
  }
  bool Post(absl::AnyInvocable<void() &&> task) { return mailbox_->Push(std::move(task)); }
  LoopHandle handle() { return LoopHandle(mailbox_, this); }
  // For tasks of that loop: it may be gone for others.
  static LoopCore* Of(const LoopHandle& handle) { return handle.core_; }
  // The engine for `kind`, made now if need be.
  absl::StatusOr<Engine*> EngineFor(EngineKind kind);
  LoopSnapshot Snapshot() const;
  bool InLoopThread() const;
  // No other thread is in the middle of a turn: its objects may be used.
  bool MayUse() const;
  Engine& primary() { return *primary_; }
  // What kAuto means: the first engine, or the one that SwitchAll was told last, from then on.
  EngineKind default_engine() const { return default_->kind(); }
  // Sweeps of SwitchAll, so far.
  uint64_t switches_begun() const { return switches_begun_; }
  // Of these, those that have come to everybody: one that is under way may not have.
  uint64_t switches_ended() const;
  const std::string& engine_reason() const { return engine_reason_; }
  BufferPool& pool() { return *pool_; }
  Loop& loop() { return *loop_; }

  // --- For engines, connections and the transport ---
  // Whoever waits may not be told that the timerfd has fired: a wait of the engine has failed, say.
  void DoubtAlarm() { timer_at_ns_ = 0; }
  Sys& sys() { return sys_; }
  PoolCache& cache() { return cache_; }
  SlotTable& slots() { return slots_; }
  TimerWheel& timers() { return timers_; }
  LoopCounters& counters() { return counters_; }
  const LoopOptions& options() const { return options_; }
  // CLOCK_MONOTONIC, read once a turn by whoever asks first; the tick of the timer wheel that goes
  // with it. A turn in which nobody asks reads no clock; between turns it is read every time.
  int64_t now_ns() const {
    if (now_ns_ != 0) return now_ns_;
    const int64_t now = sys_.Now();
    if (in_turn_) now_ns_ = now;
    return now;
  }
  uint64_t now_tick() const { return TimerWheel::TickAt(now_ns()); }
  // The tick of a new reading: a deadline counted from an old one would be early.
  uint64_t FreshTick() {
    const int64_t now = sys_.Now();
    if (in_turn_) now_ns_ = now;
    return TimerWheel::TickAt(now);
  }

  // A connection in state kConnecting, or kOpen when `open`, attached to `engine`, which takes
  // `fd`. On failure `fd` is closed. The caller gets the owner's hold.
  absl::StatusOr<Connection*> NewConnection(Engine& engine, int fd, const SocketAddress& peer,
                                            const StreamOptions& options, bool open,
                                            std::shared_ptr<CloseObserver> observer);
  // False when `connections_max` are open or connecting, or the loop is draining.
  bool HasRoom() const;
  // The same, counted and explained when refused.
  absl::Status AdmitConnection();
  // The same for one that comes from another loop: Unavailable when draining.
  absl::Status AdmitMove();
  // An open connection, of no engine and no loop, becomes this loop's; and the way back.
  void Join(Connection& connection);
  void Leave(Connection& connection);
  // penstock/move.h.
  absl::Status SwitchAll(EngineKind to, MoveSweep::Done done);
  // By an engine that is broken from now on: in later turns the other one takes all that it had.
  void OnEngineBroken();
  // The other one could not take something of it: has it try again before long. Otherwise no-one
  // would.
  [[gnu::cold]] void LeaveBrokenLater(const absl::Status& why);
  // Something was kept from leaving it, by nobody's failure.
  [[gnu::cold]] void LeaveBrokenAgain();
  bool leaves_broken_later() const { return leave_retry_.armed(); }
  // By a secondary engine that nothing tells of: the next wait asks it.
  void LookAtSecondary() { secondary_ready_ = true; }
  // Whether the engine of this kind is broken.
  bool HasLost(EngineKind kind) const;
  // For an engine that the kernel does not serve, for good or for now, and that is to wait: returns
  // at the latest when the loop has been woken, by its timer too, or the other engine has something
  // to do. `timeout_ns` as in Engine::Wait.
  [[gnu::cold]] int WaitForOwn(int64_t timeout_ns);
  // At most `streams` connections, and no listener.
  absl::Status SwitchSome(EngineKind to, uint64_t streams, MoveSweep::Done done);
  void MigrateAll(const LoopHandle& target, EngineKind engine, MoveSweep::Done done);
  // By the sweep, in a task: every move has ended. The sweep is destroyed by this.
  void EndSweep(MoveSweep& sweep);
  // Likewise, of a sweep of MigrateAll, whether it is still there or another took its place.
  void EndLeaving() { --leaving_sweeps_; }
  // An open stream stays though it was to go.
  void CountRefusal(MoveDirection direction, MoveRefusal why) {
    counters_.moves_refused[static_cast<size_t>(direction)][static_cast<size_t>(why)].Add(1);
  }
  MoveDirection DirectionTo(EngineKind engine) const {
    const EngineKind to = engine == EngineKind::kAuto ? default_engine() : engine;
    return to == EngineKind::kUring ? MoveDirection::kToUring : MoveDirection::kToEpoll;
  }
  // For a connection that leaves for another loop.
  AwayTicket NewAwayTicket() { return AwayTicket(away_, handle()); }
  // All that exist, closed ones with an owner included; Connection::next goes on.
  const Connection* connections() const { return connections_; }
  void PushReady(Connection& connection);
  // Runs `node` in the ready step of a later turn.
  void Defer(Deferred& node) {
    Touch();
    deferred_.Push(node);
  }
  // The same, but asked for in a ready step it is done in that step, before the loop waits. For
  // what something that runs there has found for others: it must not go on like this for ever.
  void DeferSoon(Deferred& node) {
    Touch();
    deferred_.PushSoon(node);
  }
  // Something waits for a ready step, this one or the next.
  bool HasReady() const { return ready_head_ != nullptr || !deferred_.empty(); }
  // Runs `node` when the loop is going, before its connections close.
  void AtEnd(Deferred& node) { at_end_.Push(node); }
  // The attachment, null at first; given once.
  LoopAttachment* attachment() { return attachment_.get(); }
  void Attach(std::unique_ptr<LoopAttachment> attachment) { attachment_ = std::move(attachment); }
  // A connection has closed: its slot is free and another may take its place.
  void OnClosed(Connection& connection);
  // A connection is being destroyed.
  void Unlink(Connection& connection);
  // Asks for Engine::OnRoom and LoopAttachment::OnRoom when the pool has room again.
  [[gnu::cold]] void WaitForRoom();

  bool waiting_for_room() const { return waiting_for_room_; }
  // Runs `wait`, a system call that may block; meanwhile a starved pool may take the loop's cache.
  template <typename Wait>
  auto Sleep(Wait&& wait) {
    const PoolCache::Parked parked(cache_);
    return wait();
  }
  // Something has changed that the next turn must see. Between turns, when the loop is embedded,
  // this makes fd() readable; inside one it does nothing.
  void Touch();

  bool draining() const { return draining_; }
  bool drained() const { return draining_ && Empty(); }
  // The grace of a drain has passed: nothing stays open.
  bool drain_over() const { return drain_over_; }
  void AddObserver(LoopObserver* observer);
  void RemoveObserver(LoopObserver* observer);

  [[gnu::cold]] void Log(LogSeverity severity, std::string_view message,
                         const char* file = __builtin_FILE(), int line = __builtin_LINE());
  // Counts an error that no peer caused, and logs it.
  [[gnu::cold]] void Fault(std::string_view message, const char* file = __builtin_FILE(),
                           int line = __builtin_LINE());
  // The same of an engine that does not do what it should.
  [[gnu::cold]] void EngineFault(EngineKind engine, std::string_view message,
                                 const char* file = __builtin_FILE(), int line = __builtin_LINE());

 private:
  // How long a loop that ends waits for the kernel to give operations back.
  static constexpr int64_t kCloseWaitNs = 1'000'000'000;

  class WakeWatch;
  class TimerWatch;
  class EngineWatch;
  struct TurnScope;

  void OnRoom() override;  // any thread

  // One turn; with `may_sleep` it waits until something happens when nothing is left to do.
  void Turn(bool may_sleep);
  [[gnu::noinline]] bool RunTasks();
  [[gnu::noinline]] void RunReady();
  void RunTimers();
  void ForgetNow() { now_ns_ = 0; }
  int Wait(bool may_sleep);
  // Polls for LoopOptions::busy_poll; the events it found, 0 when it is time to sleep.
  int WaitBusily();
  uint64_t Traffic() const;
  [[gnu::cold]] void BeginQuietWatch();
  [[gnu::cold]] void TrimWhenQuiet();
  // When the first timer is due, in ns of now_ns(); INT64_MAX: none is armed.
  int64_t NextTimer() const {
    const uint64_t tick = timers_.NextTick();
    return tick == TimerWheel::kNever ? INT64_MAX : TimerWheel::NsOfTick(tick);
  }
  // The timerfd fires by then, or then is never.
  bool AlarmCovers(int64_t at) const {
    return at == INT64_MAX || (timer_at_ns_ != 0 && timer_at_ns_ <= at);
  }
  // When the loop must run again without being woken, in ns of now_ns(); INT64_MAX: never.
  int64_t NextWake() const;
  // Sees to it that the timerfd wakes the loop by then. False: it is time now.
  bool ArmWakeTimer();
  [[gnu::cold]] bool SetWakeTimer(int64_t at);
  void WriteWake();
  bool HasWork() const { return HasReady() || tasks_left_; }
  // The exchange costs a locked instruction; most turns find nothing.
  bool TakeStop() {
    return stop_.load(std::memory_order_relaxed) &&
           stop_.exchange(false, std::memory_order_acquire);
  }
  // Whether a drain has ended.
  bool FinishDrain();
  [[gnu::cold]] void PassDrainLimit();
  [[gnu::cold]] void TakeUpRoom();
  void ForEachConnection(absl::FunctionRef<void(Connection&)> visit);
  // No connection is open or connecting, nor held by the kernel, nor on its way elsewhere: that one
  // may come back.
  bool Empty() const {
    return counters_.open.value() + counters_.connecting.value() == 0 &&
           (counters_.closing.value() == 0 || kernel_given_up_) &&
           ((leaving_sweeps_ == 0 && !away_->any()) || drain_over_);
  }
  absl::Status ChoosePrimary();
  void CloseEverything();
  // `next` takes the place of the sweep of its sort.
  void BeginSweep(std::unique_ptr<MoveSweep> next);
  void LeaveBroken();
  // All but the connections, which a sweep takes. Not OK: something stays with the engine that is
  // broken.
  absl::Status TryLeaveBroken();
  // Those that others than the loop have with a broken engine.
  absl::Status MoveWatches(Engine& to);
  // Has the other engine wait for both, unless a host watches the descriptor of this one.
  absl::Status SwapPrimary();
  void Link(Connection& connection);

  LoopOptions options_;
  Sys& sys_;
  EngineFactory make_engine_;
  Loop* loop_ = nullptr;
  std::unique_ptr<BufferPool> own_pool_;
  BufferPool* pool_;
  PoolCache cache_;
  std::shared_ptr<Mailbox> mailbox_;
  int wake_fd_ = -1;

  // What every turn looks at, in as few cache lines as it takes.
  mutable int64_t now_ns_ = 0;         // 0: not read in this turn
  std::unique_ptr<Engine> primary_;    // waits
  std::unique_ptr<Engine> secondary_;  // watched by the primary; made on demand
  Engine* default_ = nullptr;          // of the two
  Connection* ready_head_ = nullptr;
  Connection* ready_tail_ = nullptr;
  int64_t trim_at_ns_ = INT64_MAX;  // when to look whether there has been traffic since
  int64_t timer_at_ns_ = 0;         // what the timerfd is set to; 0: nothing, or it has fired
  DeferredList deferred_;
  bool in_turn_ = false;
  bool tasks_left_ = false;
  bool secondary_ready_ = false;
  bool events_left_ = false;  // the last wait met its bound
  bool touched_ = false;
  bool draining_ = false;
  bool drain_over_ = false;
  bool kernel_given_up_ = false;  // after the drain, what it holds is not waited for any more
  bool moves_ended_ = false;      // the mailbox takes no more connections
  bool embedded_ = false;         // fd() was given away
  bool alarm_ = false;            // the timerfd has fired
  bool asleep_ = false;           // Poll left posters to wake us
  std::atomic<bool> stop_{false};
  bool waiting_for_room_ = false;

  LoopCounters counters_;
  SlotTable slots_;
  TimerWheel timers_;
  CallbackTimer room_retry_;
  CallbackTimer leave_retry_;
  std::unique_ptr<WakeWatch> wake_watch_;
  std::unique_ptr<TimerWatch> timer_watch_;
  std::unique_ptr<EngineWatch> engine_watch_;
  std::string engine_reason_;
  unsigned leave_failures_ = 0;  // of LeaveBroken, in a row

  Connection* connections_ = nullptr;  // all that exist, closed ones with an owner included
  DeferredList at_end_;
  bool pinned_reads_ = false;  // for every stream
  std::unique_ptr<LoopAttachment> attachment_;
  // One of each sort: of SwitchAll, of LeaveBroken, and of MigrateAll.
  std::array<std::unique_ptr<MoveSweep>, kMoveSweepSorts> sweeps_;
  uint64_t switches_begun_ = 0;
  uint32_t leaving_sweeps_ = 0;  // of MigrateAll, those replaced included, until all have arrived
  const std::shared_ptr<Away> away_ = std::make_shared<Away>();
  std::vector<LoopObserver*> observers_;
  int64_t drain_until_ns_ = 0;
  std::atomic<uint32_t> stoppers_{0};           // in Stop now
  std::atomic<std::thread::id> thread_{};       // whose turn it is; none between turns
  std::atomic<std::thread::id> last_thread_{};  // whose it was last
  uint64_t traffic_seen_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_LOOP_CORE_H_
