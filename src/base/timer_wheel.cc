#include "base/timer_wheel.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Embedded in every connection.
static_assert(sizeof(TimerNode) == 32);

TimerNode::~TimerNode() { PENSTOCK_CHECK(!armed(), "an armed timer node was destroyed"); }

int64_t TimerWheel::DeadlineNs(int64_t now_ns, absl::Duration after) {
  after = std::max(after, absl::ZeroDuration());
  constexpr int64_t kNeverNs = std::numeric_limits<int64_t>::max();
  if (after >= absl::Nanoseconds(kNeverNs - now_ns)) return kNeverNs;
  int64_t after_ns = absl::ToInt64Nanoseconds(after);
  if (absl::Nanoseconds(after_ns) < after) ++after_ns;
  return now_ns + after_ns;
}

uint64_t TimerWheel::DeadlineTick(int64_t now_ns, absl::Duration after) {
  return std::min(TickAtOrAfter(DeadlineNs(now_ns, after)), kLastTick);
}

TimerWheel::TimerWheel(uint64_t now_tick) : current_(std::min(now_tick, kLastTick)) {}

TimerWheel::~TimerWheel() { PENSTOCK_CHECK(armed_ == 0, "timers outlive their wheel"); }

void TimerWheel::Append(TimerLink& head, TimerLink& link) {
  link.previous = head.previous;
  link.next = &head;
  head.previous->next = &link;
  head.previous = &link;
}

void TimerWheel::MoveAll(TimerLink& from, TimerLink& to) {
  to.next = from.next;
  to.previous = from.previous;
  to.next->previous = &to;
  to.previous->next = &to;
  from.next = from.previous = &from;
}

// The level is that of the highest digit (base 64) in which the node's tick differs from the
// current one. So every node of a level lies in a later slot than the current tick does there, and
// all of it comes before anything of the levels above.
uint64_t TimerWheel::Place(TimerNode& node) {
  const uint64_t difference = (node.tick_ ^ current_) | (kSlots - 1);
  const size_t level = (std::bit_width(difference) - 1) / kSlotBits;
  const size_t shift = level * kSlotBits;
  const size_t index = (node.tick_ >> shift) % kSlots;
  Append(Head(level, index), node);
  slots_occupied_[level] |= uint64_t{1} << index;
  levels_occupied_ |= 1u << level;
  return std::max(node.tick_ >> shift << shift, current_);
}

void TimerWheel::Unlink(TimerLink& link) {
  link.previous->next = link.next;
  link.next->previous = link.previous;
  // Both neighbours are the head when `link` was alone, and heads of slots lie in one array.
  if (link.next == link.previous && link.next != &due_) {
    const size_t slot = link.next - slots_.data();
    const size_t level = slot / kSlots;
    slots_occupied_[level] &= ~(uint64_t{1} << (slot % kSlots));
    if (slots_occupied_[level] == 0) levels_occupied_ &= ~(1u << level);
  }
  link.next = link.previous = &link;
}

void TimerWheel::Schedule(TimerNode& node, uint64_t tick) {
  tick = std::clamp(tick, current_, kLastTick);
  if (node.armed()) {
    if (node.tick_ == tick) return;
    Unlink(node);
  } else {
    if (armed_++ == 0) next_ = kNever;
  }
  node.tick_ = tick;
  next_ = std::min(next_, Place(node));
}

void TimerWheel::Cancel(TimerNode& node) {
  if (!node.armed()) return;
  Unlink(node);
  --armed_;
}

// The first occupied slot. Where the current tick stands at the start of an occupied slot of an
// upper level, that one comes before the levels below it, because it has nodes for them.
bool TimerWheel::FindSlot(Slot& slot) const {
  uint64_t earliest = kNever;
  for (uint32_t levels = levels_occupied_; levels != 0; levels &= levels - 1) {
    const size_t level = std::countr_zero(levels);
    const size_t shift = level * kSlotBits;
    const uint64_t position = current_ >> shift;
    const size_t ahead = std::countr_zero(slots_occupied_[level] >> (position % kSlots));
    const uint64_t start = std::max((position + ahead) << shift, current_);
    if (start > earliest) continue;
    earliest = start;
    slot = {.level = level, .index = (position + ahead) % kSlots, .start = start};
  }
  return earliest != kNever;
}

size_t TimerWheel::Advance(uint64_t now_tick, size_t budget) {
  const uint64_t last = std::min(now_tick, kLastTick - 1);
  if (next_ > last) {
    current_ = std::max(current_, last + 1);
    return 0;
  }
  size_t fired = 0;
  while (budget > 0) {
    if (due_.next != &due_) {
      TimerNode& node = NodeOf(*due_.next);
      Unlink(node);
      --armed_;
      --budget;
      ++fired;
      node.fire_(&node);
      continue;
    }
    Slot slot;
    if (!FindSlot(slot) || slot.start > last) {
      current_ = std::max(current_, last + 1);
      break;
    }
    current_ = slot.start;
    TimerLink& head = Head(slot.level, slot.index);
    if (slot.level == 0) {
      MoveAll(head, due_);
      slots_occupied_[0] &= ~(uint64_t{1} << slot.index);
      if (slots_occupied_[0] == 0) levels_occupied_ &= ~1u;
      // Callbacks that arm for this tick or an earlier one get the next: no callback can keep one
      // tick from ending.
      ++current_;
      continue;
    }
    for (; budget > 0 && head.next != &head; --budget) {
      TimerNode& node = NodeOf(*head.next);
      Unlink(node);
      Place(node);
    }
  }
  next_ = FindNextTick();
  return fired;
}

uint64_t TimerWheel::FindNextTick() const {
  if (due_.next != &due_) return current_ - 1;
  Slot slot;
  return FindSlot(slot) ? slot.start : kNever;
}

void CallbackTimer::Arm(uint64_t tick, absl::AnyInvocable<void() &&> callback) {
  // What the earlier callback holds may own anything: it goes last.
  std::swap(callback_, callback);
  wheel_.Schedule(*this, tick);
}

void CallbackTimer::Cancel() {
  if (!armed()) return;
  const absl::AnyInvocable<void()&&> dropped = std::move(callback_);
  callback_ = nullptr;
  wheel_.Cancel(*this);
}

void CallbackTimer::Run(TimerNode* node) {
  auto* timer = static_cast<CallbackTimer*>(node);
  absl::AnyInvocable<void()&&> callback = std::exchange(timer->callback_, nullptr);
  std::move(callback)();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
