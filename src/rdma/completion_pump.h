// CompletionPump: the completions of a device on one loop, and the way they take to whoever posted
// the work. DeviceWatch: the same for the events of the device itself.
//
// A queue sleeps armed: its channel's descriptor is watched by the loop's engine, whichever that
// is. Awake it is drained, at most kTurnMax completions a turn (I9). When a turn finds nothing, it
// is armed and polled once more, because a completion that came in between raises no event. Whoever
// something has come for acts before that, and before the event is taken: both are system calls.
// While traffic is brisk the queue is polled every turn instead for a little longer (twice the
// longest gap of late between completions, at most `spin_max`), since waking up costs more; when
// the gap is longer than that, not at all. What answers the messages it has found is looked for in
// the same ready step, a few of them long: between two steps the loop asks the kernel for events,
// which takes longer than most answers do.
//
// Sends may have a queue of their own, because nobody waits for most of their ends: a message that
// the peer's device has acknowledged shall wake no one. It is drained along with the other, and
// armed only while somebody does wait (AwaitSends). What it holds is told after all that had come
// to the other by the time it was taken: when a queue pair's last send has ended, nothing of its
// receives is left to be told. That is a queue's depth at most, however much comes meanwhile.
//
// Work is named by a Tag, which has the number of its Sink; a completion whose sink has gone is
// counted and dropped, whatever queue pair it came from, because numbers of queue pairs are used
// again.
//
// Owned by its creator, on the loop's thread; must not be destroyed inside a callback of its own.
// When the loop goes first, the pump is silent from then on. The device must outlive it.
#ifndef PENSTOCK_RDMA_COMPLETION_PUMP_H_
#define PENSTOCK_RDMA_COMPLETION_PUMP_H_

#include <penstock/export.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/deferred.h"
#include "engine/engine.h"
#include "engine/loop_core.h"
#include "rdma/fabric.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Receives the completions of what was posted under its tags.
class CompletionSink {
 public:
  virtual ~CompletionSink() = default;
  // `word`: as it was given to CompletionPump::Tag.
  virtual void OnCompletion(uint32_t word, const FabricCompletion& completion) = 0;
};

// A descriptor watched by an engine of a loop, until destroyed or the loop goes. When the loop
// gives that engine up it has the other one watch.
class FabricWatch : public Watch {
 public:
  FabricWatch(LoopCore& loop, int descriptor);
  ~FabricWatch() override;
  absl::Status Start();

 protected:
  // Null once the loop has gone.
  LoopCore* loop() { return loop_; }
  void Stop();

 private:
  struct LoopEnd : Deferred {
    explicit LoopEnd(FabricWatch& owner);
    FabricWatch& watch;
  };

  LoopCore* loop_;
  LoopEnd loop_end_{*this};
};

struct PumpStats {
  uint64_t completions = 0;
  uint64_t late = 0;  // their sink had gone
  uint64_t events = 0;
  uint64_t polls = 0;
  uint64_t sleeps = 0;
  uint64_t empties = 0;  // polls that left nothing in any queue, with all of theirs dispatched
  uint64_t spins = 0;    // turns that polled instead of sleeping
  absl::Duration spin_budget;  // of the next time; zero when idle
};

class CompletionPump final {
 public:
  static constexpr uint32_t kTurnMax = 256;
  // Completions after which a ready step of a loop that spins goes by without another look (I9).
  static constexpr uint32_t kStepMax = 16;

  struct Options {
    uint32_t depth = 4096;    // no more may wait in the queue at once
    uint32_t send_depth = 0;  // of a queue for sends alone; 0: there is none
    absl::Duration spin_max = absl::ZeroDuration();
    // The queue is lost, and its queue pairs with it: told once.
    absl::AnyInvocable<void(absl::Status)> on_lost;
  };

  // Errors: what CreateCq and the engine say.
  static absl::StatusOr<std::unique_ptr<CompletionPump>> Create(LoopCore& loop,
                                                                FabricDevice& device,
                                                                Options options);
  ~CompletionPump();

  FabricCq& cq() { return *queue_.cq; }
  // The same one without Options::send_depth.
  FabricCq& send_cq() { return sends_ ? *sends_->cq : cq(); }
  // Somebody waits for the end of what is posted, until ForgetSends: the next one is told at once
  // though the loop sleeps. Otherwise whenever something wakes it, or Look is called.
  void AwaitSends();
  void ForgetSends() { sends_awaited_ = false; }
  // A number for `sink`, which must stay until RemoveSink.
  uint32_t AddSink(CompletionSink& sink);
  void RemoveSink(uint32_t number);
  // The id to post work with.
  static uint64_t Tag(uint32_t sink, uint32_t word) { return uint64_t{sink} << 32 | word; }

  const PumpStats& stats() const { return stats_; }
  // Polls soon, though nothing may have come, until the queue is empty.
  void Look();

 private:
  static constexpr uint32_t kIndexBits = 20;
  static constexpr uint32_t kIndexMask = (1u << kIndexBits) - 1;
  static constexpr uint32_t kAckBatch = 64;
  // A turn of looks, and how many of them go by between two looks at the clock.
  static constexpr int kLooksPerSpin = 512;
  static constexpr int kLooksPerGlance = 32;

  struct SinkSlot {
    CompletionSink* sink = nullptr;
    uint32_t generation = 0;
    uint32_t next_free = 0;
  };
  struct Again : Deferred {
    explicit Again(CompletionPump& owner);
    CompletionPump& pump;
  };

  struct Queue final : FabricWatch {
    Queue(CompletionPump& owner, LoopCore& loop, std::unique_ptr<FabricCq> made);
    ~Queue() override;
    absl::Status Begin();
    void OnReadable() override;
    using FabricWatch::loop;
    // It is armed, and nothing is known to have come since.
    bool asleep() const { return armed && !event_waits; }

    CompletionPump& pump;
    std::unique_ptr<FabricCq> cq;
    bool armed = false;        // and the event has not been taken
    bool event_waits = false;  // to be taken, it seems
    uint32_t unacked = 0;
  };
  using Batch = std::array<FabricCompletion, 32>;

  CompletionPump(LoopCore& loop, std::unique_ptr<FabricCq> cq, Options options);

  LoopCore* loop() { return queue_.loop(); }
  bool asleep() const {
    return queue_.asleep() && (!sends_ || !sends_awaited_ || sends_->asleep());
  }
  void Turn();
  // Up to `max` completions and a batch of sends: how many, or -errno.
  int Drain(uint32_t max);
  // From the first queue. `all`: it is empty.
  int DrainOne(uint32_t max, bool* all);
  int DrainSends(uint32_t max, bool* all);
  void Dispatch(const FabricCompletion& completion);
  // Whether to poll again next turn instead of sleeping.
  bool Spin(bool found);
  // How many have been taken by then, `taken` included.
  uint32_t LookOn(uint32_t taken);
  void TurnAgain(uint32_t taken);
  // Has the next completion wake the loop: poll again before sleeping. False: the queue is lost.
  bool Rest(Queue& queue);
  void Lose(int error, const char* operation);

  Queue queue_;
  std::unique_ptr<Queue> sends_;
  bool sends_awaited_ = false;
  bool sends_due_ = false;  // they have not been looked for the last time
  Options options_;
  const int64_t spin_max_ns_;
  const int64_t gap_max_ns_;
  Again again_{*this};
  std::vector<SinkSlot> sinks_;
  uint32_t free_sink_ = kIndexMask;
  bool lost_ = false;
  bool came_ = false;     // what the last looks found is to be counted as an arrival
  uint32_t stepped_ = 0;  // completions taken in this ready step
  int64_t gap_ns_;        // between arrivals: the longest of late
  int64_t arrival_ns_ = INT64_MIN / 2;
  int64_t spin_until_ns_ = 0;
  PumpStats stats_;
  Batch batch_;             // for a call of DrainOne
  Batch ended_;             // of sends: taken
  size_t ended_count_ = 0;  // and not told
  uint64_t ended_due_ = 0;  // PumpStats::completions by which all that had come is told
};

// Takes what a device reports, all of it whenever there is something (an event that is left makes
// no edge).
class DeviceWatch final : private FabricWatch {
 public:
  using OnEvent = absl::AnyInvocable<void(const FabricEvent&)>;

  static absl::StatusOr<std::unique_ptr<DeviceWatch>> Create(LoopCore& loop, FabricDevice& device,
                                                             OnEvent on_event);

 private:
  DeviceWatch(LoopCore& loop, FabricDevice& device, OnEvent on_event)
      : FabricWatch(loop, device.event_fd()), device_(device), on_event_(std::move(on_event)) {}
  void OnReadable() override;

  FabricDevice& device_;
  OnEvent on_event_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_COMPLETION_PUMP_H_
