// SimWorld: everything under a loop, simulated in one thread: the clock, the descriptors, the wire,
// and the threads of several loops, which it polls one at a time. The clock moves only when no loop
// has anything left to do, straight to the next event, so seconds of simulated trouble take
// microseconds, and everything that happens is decided by the seed.
//
//   SimWorld world(seed);
//   auto loop = world.NewLoop({}, SimStyle::kCompletion);
//   auto listener = Listener::Listen(**loop, *SocketAddress::Parse("10.0.0.1:0"), ...);
//   world.Run([&] { return done; }, absl::Seconds(10));
//
// Loops made here are driven by Run, or by their own Loop::Run: a wait that blocks moves the clock
// and lets the other loops run. Streams and listeners may be called between steps, as from the host
// of an embedded loop, which then calls Poll: see Touch.
//
// The world outlives its loops and pools. One thread.
#ifndef PENSTOCK_TESTS_TESTING_SIM_WORLD_H_
#define PENSTOCK_TESTS_TESTING_SIM_WORLD_H_

#include <penstock/buffer.h>
#include <penstock/loop.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/sys.h"
#include "testing/sim_faults.h"
#include "testing/sim_random.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
class LoopCore;
}  // namespace internal
PENSTOCK_END_NAMESPACE

namespace penstock::testing {

class SimEngine;
class SimWire;

// How a simulated engine learns of bytes.
enum class SimStyle : uint8_t {
  kReadiness,   // like edge-triggered epoll: an event, then a receive that copies
  kCompletion,  // like io_uring multishot: bytes arrive by themselves while a receive is armed
};

// What a descriptor reports to whoever watches it.
enum SimEvent : uint32_t {
  kSimIn = 1,   // bytes, an end, a connection to accept
  kSimOut = 2,  // room to send, or connected
  kSimEnd = 4,  // an error or both directions ended
};

class SimWatcher {
 public:
  virtual ~SimWatcher() = default;
  virtual void OnFdEvent(uint64_t token, uint32_t events) = 0;
};

class SimWorld {
 public:
  using Action = absl::AnyInvocable<void()>;
  static constexpr int64_t kNever = INT64_MAX;

  explicit SimWorld(uint64_t seed);
  ~SimWorld();
  SimWorld(const SimWorld&) = delete;
  SimWorld& operator=(const SimWorld&) = delete;

  // --- For tests ---
  // `options.engine`: kSimulated is an engine of `style`; kEpoll and kUring, also as a second
  // engine of the loop, are simulated ones of readiness and completion style. The loop is polled
  // without its descriptor, so that its engines may change places.
  absl::StatusOr<std::unique_ptr<Loop>> NewLoop(LoopOptions options,
                                                SimStyle style = SimStyle::kReadiness);
  // A pool whose memory can be refused (SimFaults::map_failure).
  std::unique_ptr<BufferPool> NewPool(PoolOptions options);
  // Polls loops and moves the clock until `until()` holds (true), or nothing more will happen, or
  // simulated time `limit` has passed.
  bool Run(const std::function<bool()>& until, absl::Duration limit);
  // Runs `loop` by Loop::Run, on a thread of its own as it were, until it stops.
  void Drive(Loop& loop);
  // Runs `action` at a time of the simulated clock, between turns.
  void At(int64_t at_ns, Action action);
  void After(absl::Duration delay, Action action);
  // The same by single steps, for tests that choose their order themselves: one turn of `loop`, if
  // it has anything to do; what else is to happen at this instant; and what the kernel is to do
  // about cancels, one by one, which waits for this once it is held.
  bool HasTurn(const Loop& loop) const;
  void TakeTurn(const Loop& loop);
  void TakeActions();
  // Time alone passes: what the world was to do by then it does, and no loop runs.
  void Pass(absl::Duration time);
  void HoldCancels(bool on);
  bool HasHeld() const { return !held_.empty(); }
  void TakeHeld();
  // The host has called objects of `loop` from outside a turn and must let it run.
  void Touch(const Loop& loop);
  // The loop whose turn it is has used its thread's CPU for so long. The clock does not move.
  void Spend(absl::Duration cpu);
  // Whether `loop` is in a turn, in Run, or being destroyed, so that only its own callbacks and
  // Post may be used.
  bool Busy(const Loop& loop) const;

  SimFaults& faults() { return faults_; }
  SimRandom& random() { return random_; }
  SimWire& wire() { return *wire_; }
  SimMutant mutant() const { return mutant_; }
  void set_mutant(SimMutant mutant) { mutant_ = mutant; }
  size_t descriptors_open() const { return open_fds_; }

  // Adds a step to the trace: the same seed must give the same hash. `what` is printed, with the
  // numbers, when tracing.
  void Note(std::string_view what, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0);
  uint64_t trace_hash() const { return trace_hash_; }
  void set_tracing(bool on) { tracing_ = on; }
  // What the world itself found wrong: loops that spin, a wait that nothing can end.
  const std::vector<std::string>& errors() const { return errors_; }
  void Error(std::string text) { errors_.push_back(std::move(text)); }

  // --- For the simulated kernel ---
  int64_t now_ns() const { return now_ns_; }
  // The kernel does something about a cancel, in its own time.
  void AtLeisure(Action cancel);
  // A time in [0, max].
  int64_t Delay(int64_t max_ns);
  internal::Sys& sys() { return *sys_; }
  // A free descriptor, the lowest as in the kernel, or -EMFILE.
  int OpenFd();
  void CloseFd(int fd);
  void WatchFd(int fd, SimWatcher* watcher, uint64_t token);
  // Ends it, unless somebody else has taken `watcher`'s place: whoever lets go of a descriptor that
  // another engine watches by then leaves that alone, as epoll(7) and io_uring(7) do.
  void UnwatchFd(int fd, const SimWatcher* watcher);
  void RaiseFd(int fd, uint32_t events);
  // Raises kSimIn on `fd` at `at_ns`, instead of what was set before; 0: never.
  void SetTimerFd(int fd, int64_t at_ns);
  // Lets others run and time pass until `engine` has something due, or for `timeout_ns` (< 0: no
  // limit).
  void Block(SimEngine& engine, int64_t timeout_ns);
  void Forget(SimEngine& engine);

 private:
  class SimSys;
  struct Event {
    int64_t at_ns;
    uint64_t sequence;
    mutable Action action;
    bool operator<(const Event& other) const {
      return at_ns != other.at_ns ? at_ns > other.at_ns : sequence > other.sequence;
    }
  };
  struct Descriptor {
    bool open = false;
    SimWatcher* watcher = nullptr;
    uint64_t token = 0;
    uint64_t timer_sequence = 0;
  };
  struct LoopRecord {
    Loop* loop = nullptr;
    internal::LoopCore* core = nullptr;
    int engines = 0;
    bool poll = false;  // has said that it has more to do, or was touched
    bool running = false;
    int64_t cpu_ns = 0;
    int64_t stalled_until_ns = 0;
  };

  // One round of polls, or else one move of the clock, at most to `limit_ns`. False when there was
  // neither.
  bool Step(int64_t limit_ns);
  bool PollLoops();
  bool PollLoop(LoopRecord& record);
  // Whether the engine that waits for `record`, which may be another one by now, has found
  // something.
  static bool HasDue(const LoopRecord& record);
  LoopRecord* RecordOf(const Loop& loop) const;

  int64_t now_ns_ = 1'000'000'000;
  uint64_t sequence_ = 0;
  uint64_t polls_since_move_ = 0;
  SimFaults faults_;
  SimRandom random_;
  SimMutant mutant_ = SimMutant::kNone;
  uint64_t trace_hash_ = 0;
  bool tracing_ = false;
  std::vector<std::string> errors_;
  std::priority_queue<Event> events_;
  bool holds_ = false;
  std::deque<Action> held_;
  std::vector<Descriptor> descriptors_;
  size_t open_fds_ = 0;
  std::vector<std::unique_ptr<LoopRecord>> loops_;
  LoopRecord* current_ = nullptr;  // in the innermost turn
  std::unique_ptr<internal::Sys> sys_;
  std::unique_ptr<SimWire> wire_;
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_SIM_WORLD_H_
