// Loop: one thread's event loop, with its timers, mailbox and one or two engines.
//
// A loop does nothing by itself: the library starts no thread, installs no signal handler and keeps
// no global state by which two loops could disturb each other. Whoever calls Run() or Poll() lends
// the loop its thread, and every callback of the loop's streams, listeners and timers runs there.
// Only Post, Stop, Snapshot, InLoopThread, handle and LoopHandle may be used from other threads
// (streams check that in debug builds).
//
// Each turn does a bounded amount of work (I9) in this order: posted tasks, connections with
// something to do, one wait for the kernel with what it brings, then timers: so bytes that came in
// time are seen before the deadline that waits for them.
#ifndef PENSTOCK_LOOP_H_
#define PENSTOCK_LOOP_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/log.h>
#include <penstock/snapshot.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE

namespace internal {
class CallbackTimer;
class Connection;
class LoopCore;
class Mailbox;
}  // namespace internal

// What moves the bytes. kAuto takes io_uring when the kernel has everything the engine needs and
// lets this process use it, and epoll otherwise.
enum class EngineKind : uint8_t { kAuto, kEpoll, kUring, kSimulated };

// "auto", "epoll", "uring", "simulated".
PENSTOCK_EXPORT std::string_view EngineKindName(EngineKind kind);
// Reads the first three of those; InvalidArgument lists them.
PENSTOCK_EXPORT absl::StatusOr<EngineKind> ParseEngineKind(std::string_view text);

struct LoopOptions {
  // kAuto can be overridden by the environment variable PENSTOCK_ENGINE=epoll|uring; auto there
  // changes nothing.
  EngineKind engine = EngineKind::kAuto;
  // Must outlive the loop and may serve several; the loop makes one of its own when null.
  BufferPool* pool = nullptr;
  // For the loop's own pool.
  PoolOptions pool_options;
  // Before it sleeps the loop polls this long without blocking. Trades a core for latency: a
  // sleeping thread costs its waker about 11 us and answers some 30 us later.
  absl::Duration busy_poll = absl::ZeroDuration();
  // Unused pool memory goes back to the kernel after the loop has been this long without traffic;
  // infinite: never by itself.
  absl::Duration idle_trim = absl::Seconds(1);
  // Bounds on one turn: kernel events taken, and posted tasks run. epoll takes at most 256 events;
  // with more set here Poll may return false while fd() is readable still.
  uint32_t turn_events_max = 256;
  uint32_t turn_tasks_max = 1024;
  // Streams open or connecting at once; accepts wait and Connect is refused beyond it.
  uint32_t connections_max = 1u << 20;
  // Most buffers of 16 KiB the io_uring engine lends the kernel; it starts small and grows on
  // demand. Counts as 8 below that and as 32,768 above; the pool's PoolOptions::bytes_max bounds
  // it, too: at most a quarter of that is lent.
  uint32_t ring_buffers_max = 1024;
  // Receives the loop's log lines; LogToStderr when empty.
  LogHook log;
};

// Lets other threads post to a loop that may already be gone. Copyable, thread-safe.
class PENSTOCK_EXPORT LoopHandle {
 public:
  LoopHandle() = default;
  // False (and `task` destroyed unrun) when the loop is gone.
  bool Post(absl::AnyInvocable<void() &&> task) const;

 private:
  friend class internal::Connection;
  friend class internal::LoopCore;
  LoopHandle(std::shared_ptr<internal::Mailbox> mailbox, internal::LoopCore* core)
      : mailbox_(std::move(mailbox)), core_(core) {}
  std::shared_ptr<internal::Mailbox> mailbox_;
  internal::LoopCore* core_ = nullptr;  // for tasks of the loop: it may be gone for others
};

class PENSTOCK_EXPORT Loop {
 public:
  // Errors: Unimplemented when the engine asked for by name is absent or forbidden here (the
  // message says which and why), ResourceExhausted when descriptors or locked memory run out (never
  // answered by a silent fallback), InvalidArgument for bad options, and for a bad PENSTOCK_ENGINE,
  // PENSTOCK_PINNED_READS or, where io_uring is asked for, PENSTOCK_URING_DISABLE.
  static absl::StatusOr<std::unique_ptr<Loop>> Create(LoopOptions options = {});

  // Closes every connection that is still open (abortively when bytes are queued), destroys pending
  // callbacks unrun, waits for the kernel to let go of every buffer. Not inside a callback of its
  // own. Streams and listeners may outlive their loop: they then do nothing, and destroy callbacks
  // given to them unrun. With a pool of the loop's own, every Buffer must have been returned first.
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Runs turns on the calling thread until Stop. May be called again afterwards. The first Run or
  // Poll binds an io_uring loop to its thread: the ring answers no other
  // (IORING_SETUP_SINGLE_ISSUER).
  void Run();
  // Ends Run after the current turn; from any thread, also before Run, also from a signal handler.
  // Poll takes no notice of it: the next Run ends at once then.
  void Stop();

  // Graceful end, on the loop's thread: listeners close, so that peers find who takes the address
  // over (those in the backlog are reset), and streams of other loops are refused at once; Run
  // returns when the last stream has gone and the kernel has let go of it, or after `grace`, when
  // the rest are aborted with Cancelled (for those the kernel gets a second more). A stream that is
  // on its way to another loop (penstock/move.h) counts as one of this until it has arrived there.
  // Again: a shorter grace counts.
  void Drain(absl::Duration grace);
  // Drain was called: a server tells its peers that this is the last answer. Loop's thread.
  bool draining() const;
  // A drain has ended: no stream is left.
  bool drained() const;

  // Embedding: watch fd() for input in a host's own loop (poll(2), epoll(7)) and call Poll() when
  // it is readable. Poll runs one turn without blocking and returns true when it should be called
  // again at once because bounded work is left. fd() also becomes readable for timers, for
  // posted tasks and for what the host does to streams between calls. Call Poll() once before the
  // first wait on fd(). Negative, -errno, when the descriptor could not be made (EMFILE, ENFILE,
  // ENOMEM): ask again later.
  int fd() const;
  bool Poll();

  // Runs `task` on the loop's thread in a later turn; from any thread. Tasks of one poster keep
  // their order. The kernel is asked to wake the loop only when it sleeps.
  void Post(absl::AnyInvocable<void() &&> task);
  LoopHandle handle();

  // The engine that new listeners and connections use by default, never kAuto. SwitchAll changes it
  // as it begins, also when some streams then stay.
  EngineKind engine() const;
  // Why this engine: "requested", "requested by PENSTOCK_ENGINE", "io_uring available", what kAuto
  // found missing, or that SwitchAll changed it.
  const std::string& engine_reason() const;
  // Makes the other engine ready on this loop too, so that listeners and connections can ask for
  // it. Done on demand when one does; errors as for Create.
  absl::Status EnableEngine(EngineKind kind);

  BufferPool& pool();
  // A recent reading of the monotonic clock, which is no wall time. Within a turn it may be as old
  // as the turn's start, or as its wait for the kernel; between turns the clock is read.
  absl::Time now() const;
  // Whether the calling thread is the one that ran the last turn (before the first: that made it).
  bool InLoopThread() const;

  // Safe from any thread.
  LoopSnapshot Snapshot() const;

  internal::LoopCore& core() { return *core_; }

 private:
  friend class internal::LoopCore;
  explicit Loop(std::unique_ptr<internal::LoopCore> core);
  std::unique_ptr<internal::LoopCore> core_;
};

// What became of the streams of SwitchAll or MigrateAll (penstock/move.h), and of the listeners of
// SwitchAll.
struct MoveCount {
  uint64_t moved = 0;
  uint64_t failed = 0;  // refused: they stayed where they were
  uint64_t ended = 0;   // ended meanwhile, or were moved by somebody else
  uint64_t listeners_moved = 0;
  uint64_t listeners_failed = 0;  // as `failed`, or taken by no engine and tried again every second
};

// A one-shot timer of 1 ms resolution, owned by the caller. Never fires early. Arm and Cancel
// allocate nothing. Destroying it cancels it. Loop's thread only; must not outlive the loop.
class PENSTOCK_EXPORT Timer {
 public:
  explicit Timer(Loop& loop);
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Replaces an earlier arming. `fire` may destroy the timer.
  void Arm(absl::Duration after, absl::AnyInvocable<void() &&> fire);
  void Cancel();
  bool armed() const;

 private:
  internal::LoopCore& core_;
  std::unique_ptr<internal::CallbackTimer> timer_;
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_LOOP_H_
