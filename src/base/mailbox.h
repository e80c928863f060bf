// Mailbox: tasks that any thread leaves for the owner of a loop.
//
// A lock-free stack of nodes that the owner takes whole and turns round, so tasks run in the order
// they were pushed. The stack's head also says what the owner does, in one atomic word, so that
// pushing and falling asleep cannot miss each other:
//
//   head          meaning                       push                      owner
//   0             awake, nothing pushed         becomes a node            PrepareToSleep: kSleeping
//   a node        awake, or woken: work waits   becomes the next node     Drain: 0
//   kSleeping     asleep                        becomes a node, wakes     FinishSleep: 0
//   kClosed       the owner has gone            refused                   -
//
// Waking a sleeping thread costs the waker about 11 us, a push some 50 ns: hence a push wakes only
// when it is the one that finds the owner asleep.
//
// Connections that move come by PushMove, which alone takes a lock: an owner that ends can so be
// sure that none comes after it has looked for the last time.
//
// Held by shared_ptr, so that handles may outlive the owner. Push and wakeups() from any thread,
// the rest by the owner only. The queue is bounded by its posters alone; what one turn runs is
// bounded by Drain's budget (I9).
#ifndef PENSTOCK_BASE_MAILBOX_H_
#define PENSTOCK_BASE_MAILBOX_H_

#include <penstock/export.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/functional/any_invocable.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Mailbox {
 public:
  using Task = absl::AnyInvocable<void() &&>;
  // Makes the sleeping owner return from its wait. Called by whichever thread pushes, possibly by
  // two at once, and never after Close has returned.
  using Wake = absl::AnyInvocable<void() const>;

  explicit Mailbox(Wake wake) : wake_(std::move(wake)) {}
  Mailbox(const Mailbox&) = delete;
  Mailbox& operator=(const Mailbox&) = delete;
  ~Mailbox() { Close(); }

  // False, and `task` is destroyed unrun on this thread, once closed.
  bool Push(Task task);
  // The same, but also false after EndMoves: for what must not wait where nobody may look again.
  bool PushMove(Task task);
  // The owner is about to look no more. What PushMove took until now, has_work tells of.
  void EndMoves();

  // Runs what has been pushed before the call, at most `budget` tasks; returns how many. Tasks that
  // tasks push wait for the next Drain.
  size_t Drain(size_t budget);
  // Whether Drain would run something.
  bool has_work() const {
    return first_ != nullptr || head_.load(std::memory_order_relaxed) > kClosed;
  }

  // Call before a blocking wait: false when there is work, so do not sleep. After true, pushes
  // wake.
  bool PrepareToSleep() {
    if (first_ != nullptr) return false;
    uintptr_t awake = 0;
    return head_.compare_exchange_strong(awake, kSleeping, std::memory_order_relaxed);
  }
  // Call after the wait, whatever ended it: from here on pushes do not wake.
  void FinishSleep() {
    // It fails when a push has taken its place already, and needs nothing then.
    uintptr_t asleep = kSleeping;
    head_.compare_exchange_strong(asleep, 0, std::memory_order_relaxed);
  }

  // Refuses later pushes, and destroys on this thread the tasks that have not run. Waits for a wake
  // that another thread is just making.
  void Close();

  // Wake-ups made so far.
  uint64_t wakeups() const { return wakeups_.load(std::memory_order_relaxed); }

 private:
  struct Node {
    Node* next;
    Task task;
  };
  static constexpr uintptr_t kSleeping = 1;
  static constexpr uintptr_t kClosed = 2;

  // Takes `node` unless closed.
  bool PushNode(std::unique_ptr<Node>& node);
  void Append(uintptr_t head);

  std::atomic<uintptr_t> head_{0};
  // Threads that saw the owner asleep and may be about to call wake_.
  std::atomic<uint32_t> wakers_{0};
  std::atomic<uint64_t> wakeups_{0};
  const Wake wake_;
  std::mutex moves_mutex_;
  bool moves_ended_ = false;
  // The owner's: taken from the stack and not yet run, oldest first.
  Node* first_ = nullptr;
  Node* last_ = nullptr;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_MAILBOX_H_
