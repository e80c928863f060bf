#include "base/mailbox.h"

#include <memory>
#include <thread>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

bool Mailbox::Push(Task task) {
  auto node = std::make_unique<Node>(Node{.next = nullptr, .task = std::move(task)});
  return PushNode(node);
}

bool Mailbox::PushNode(std::unique_ptr<Node>& node) {
  uintptr_t head = head_.load(std::memory_order_relaxed);
  for (;;) {
    if (head == kClosed) return false;
    const bool asleep = head == kSleeping;
    node->next = asleep ? nullptr : reinterpret_cast<Node*>(head);
    // Counted before the node is seen, so that Close, which takes the node, waits for the wake.
    if (asleep) wakers_.fetch_add(1, std::memory_order_relaxed);
    const bool pushed =
        head_.compare_exchange_weak(head, reinterpret_cast<uintptr_t>(node.get()),
                                    std::memory_order_release, std::memory_order_relaxed);
    if (pushed) static_cast<void>(node.release());
    if (asleep) {
      if (pushed) {
        wakeups_.fetch_add(1, std::memory_order_relaxed);
        wake_();
      }
      wakers_.fetch_sub(1, std::memory_order_release);
    }
    if (pushed) return true;
  }
}

bool Mailbox::PushMove(Task task) {
  // Outlives the lock: what a refused task does as it is destroyed may push as well.
  auto node = std::make_unique<Node>(Node{.next = nullptr, .task = std::move(task)});
  const std::lock_guard<std::mutex> lock(moves_mutex_);
  return !moves_ended_ && PushNode(node);
}

void Mailbox::EndMoves() {
  const std::lock_guard<std::mutex> lock(moves_mutex_);
  moves_ended_ = true;
}

// Turns the stack from `head` down round and appends it to the owner's list.
void Mailbox::Append(uintptr_t head) {
  if (head <= kClosed) return;
  Node* newest = reinterpret_cast<Node*>(head);
  Node* oldest = nullptr;
  for (Node* node = newest; node != nullptr;) {
    Node* below = node->next;
    node->next = oldest;
    oldest = node;
    node = below;
  }
  (first_ == nullptr ? first_ : last_->next) = oldest;
  last_ = newest;
}

size_t Mailbox::Drain(size_t budget) {
  // The exchange costs a locked instruction; most turns have no mail.
  if (head_.load(std::memory_order_relaxed) > kClosed) {
    Append(head_.exchange(0, std::memory_order_acquire));
  }
  size_t run = 0;
  for (; run < budget && first_ != nullptr; ++run) {
    const std::unique_ptr<Node> node(first_);
    first_ = node->next;
    std::move(node->task)();
  }
  return run;
}

void Mailbox::Close() {
  Append(head_.exchange(kClosed, std::memory_order_acq_rel));
  // As long as one eventfd write takes.
  while (wakers_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
  while (first_ != nullptr) {
    const std::unique_ptr<Node> node(first_);
    first_ = node->next;
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
