// Counter: a figure that one thread keeps and any thread may read (LoopSnapshot).
//
// Only its owner changes it, so a change is a plain load and store, without a locked instruction;
// readers see some recent value, in no order with other figures.
#ifndef PENSTOCK_BASE_COUNTER_H_
#define PENSTOCK_BASE_COUNTER_H_

#include <penstock/export.h>

#include <atomic>
#include <cstdint>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Counter {
 public:
  // The owner's thread.
  void Add(uint64_t count = 1) { Set(value() + count); }
  void Sub(uint64_t count = 1) { Set(value() - count); }
  void Set(uint64_t value) { value_.store(value, std::memory_order_relaxed); }

  // Any thread.
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_COUNTER_H_
