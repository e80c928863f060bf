// TimerWheel: deadlines of one loop at 1 ms, a million of them without trouble.
//
// A hierarchical wheel of seven levels of 64 slots; a slot of level k spans 64^k ticks, so the
// wheel reaches 139 years from the start of its clock. Scheduling and cancelling are O(1) and
// nothing is allocated: the nodes are embedded in their owners. A node moves to a lower level at
// most six times before it fires.
//
// Ticks are whole milliseconds of the loop's clock. A node never fires early: its deadline is
// rounded up to a tick (TickAtOrAfter), the clock is rounded down (TickAt). "Now" must be a fresh
// reading when a deadline is computed from it; an old one would make the deadline early.
//
// Single thread. Owns no node: an armed node must be cancelled before it is destroyed, and the
// wheel outlives its nodes' arming. Work per Advance is bounded by its budget (I9).
#ifndef PENSTOCK_BASE_TIMER_WHEEL_H_
#define PENSTOCK_BASE_TIMER_WHEEL_H_

#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct TimerLink {
  TimerLink* previous = this;
  TimerLink* next = this;

  TimerLink() = default;
  TimerLink(const TimerLink&) = delete;
  TimerLink& operator=(const TimerLink&) = delete;
};

// One deadline. Embed or derive; `fire` gets the node back and may cancel, re-arm or destroy it and
// any other node. The node is no longer armed when `fire` runs.
class TimerNode : private TimerLink {
 public:
  using Fire = void (*)(TimerNode* node);
  explicit TimerNode(Fire fire) : fire_(fire) {}
  ~TimerNode();

  bool armed() const { return next != this; }
  // The tick it is due at; meaningful while armed.
  uint64_t tick() const { return tick_; }

 private:
  friend class TimerWheel;
  Fire fire_;
  uint64_t tick_ = 0;
};

class TimerWheel {
 public:
  static constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();
  static constexpr int kSlotBits = 6;
  static constexpr size_t kSlots = size_t{1} << kSlotBits;
  static constexpr size_t kLevels = 7;
  // Later deadlines are taken for this one, which no clock reaches.
  static constexpr uint64_t kLastTick = (uint64_t{1} << (kSlotBits * kLevels)) - 1;

  static constexpr int64_t kNsPerTick = 1'000'000;
  // Clocks start at or above zero.
  static uint64_t TickAt(int64_t ns) { return static_cast<uint64_t>(ns) / kNsPerTick; }
  static uint64_t TickAtOrAfter(int64_t ns) {
    return (static_cast<uint64_t>(ns) + (kNsPerTick - 1)) / kNsPerTick;
  }
  static int64_t NsOfTick(uint64_t tick) { return static_cast<int64_t>(tick * kNsPerTick); }
  // `after` from `now_ns`, rounded up: INT64_MAX, which no clock reaches, when infinite or too long
  // for one; now when negative.
  static int64_t DeadlineNs(int64_t now_ns, absl::Duration after);
  // The tick of that deadline; at most kLastTick.
  static uint64_t DeadlineTick(int64_t now_ns, absl::Duration after);

  explicit TimerWheel(uint64_t now_tick);
  TimerWheel(const TimerWheel&) = delete;
  TimerWheel& operator=(const TimerWheel&) = delete;
  ~TimerWheel();

  // Arms `node` for `tick`, replacing an earlier arming. A past tick fires in the next Advance; one
  // scheduled by a callback that is not later than the tick being fired, at the tick after it.
  void Schedule(TimerNode& node, uint64_t tick);
  // No effect when it is not armed.
  void Cancel(TimerNode& node);

  // Fires nodes due at or before `now_tick`, in the order of their ticks, touching at most `budget`
  // nodes (fired, or moved to a lower level); returns how many it fired. More is due when
  // NextTick() <= now_tick afterwards.
  size_t Advance(uint64_t now_tick, size_t budget);

  // The tick at which Advance should next be called, kNever when nothing is armed. Not later than
  // the earliest deadline; later than every tick advanced to, unless more is due. For a far
  // deadline it is the start of a slot: advancing there, at most six times, gives the deadline
  // itself. What has been cancelled counts until its time has come.
  uint64_t NextTick() const { return armed_ == 0 ? kNever : next_; }

  size_t armed() const { return armed_; }

 private:
  struct Slot {
    size_t level;
    size_t index;
    uint64_t start;
  };

  // Where: the start of the slot, or now in one that has begun.
  uint64_t Place(TimerNode& node);
  void Unlink(TimerLink& link);
  bool FindSlot(Slot& slot) const;
  uint64_t FindNextTick() const;
  static void Append(TimerLink& head, TimerLink& link);
  static void MoveAll(TimerLink& from, TimerLink& to);
  static TimerNode& NodeOf(TimerLink& link) { return static_cast<TimerNode&>(link); }
  TimerLink& Head(size_t level, size_t index) { return slots_[level * kSlots + index]; }

  // Every tick before this one has been fired or is in due_.
  uint64_t current_;
  size_t armed_ = 0;
  // Nothing is to be done before: most turns of a loop ask for no more than this.
  uint64_t next_ = kNever;
  // Nodes of the tick being fired.
  TimerLink due_;
  uint32_t levels_occupied_ = 0;
  std::array<uint64_t, kLevels> slots_occupied_{};
  std::array<TimerLink, kLevels * kSlots> slots_;
};

// A node with its callback, for penstock::Timer.
class CallbackTimer : private TimerNode {
 public:
  explicit CallbackTimer(TimerWheel& wheel) : TimerNode(&Run), wheel_(wheel) {}
  ~CallbackTimer() { wheel_.Cancel(*this); }

  void Arm(uint64_t tick, absl::AnyInvocable<void() &&> callback);
  void Cancel();
  using TimerNode::armed;

 private:
  static void Run(TimerNode* node);

  TimerWheel& wheel_;
  absl::AnyInvocable<void() &&> callback_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_TIMER_WHEEL_H_
