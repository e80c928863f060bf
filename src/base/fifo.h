// Fifo: a queue that keeps its memory while it is used, so that a steady flow through it allocates
// nothing, and holds none before its first element (std::deque allocates when it is made, and again
// and again as elements pass).
//
// Owned and used by one holder. Grows by doubling; T must be movable and default-constructible.
#ifndef PENSTOCK_BASE_FIFO_H_
#define PENSTOCK_BASE_FIFO_H_

#include <penstock/export.h>

#include <cstddef>
#include <memory>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

template <typename T>
class Fifo {
 public:
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }

  void push(T element) {
    if (size_ == capacity_) Grow();
    slots_[(head_ + size_) & (capacity_ - 1)] = std::move(element);
    ++size_;
  }

  // Not on an empty queue.
  T pop() {
    T element = std::exchange(slots_[head_], T());
    head_ = (head_ + 1) & (capacity_ - 1);
    --size_;
    return element;
  }

 private:
  void Grow() {
    const size_t wider = capacity_ == 0 ? 4 : capacity_ * 2;
    auto slots = std::make_unique<T[]>(wider);
    for (size_t i = 0; i < size_; ++i) slots[i] = std::move(slots_[(head_ + i) & (capacity_ - 1)]);
    slots_ = std::move(slots);
    capacity_ = wider;
    head_ = 0;
  }

  std::unique_ptr<T[]> slots_;
  size_t capacity_ = 0;  // a power of two, or 0
  size_t head_ = 0;
  size_t size_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_FIFO_H_
