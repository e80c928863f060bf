// Live blocks by class and tag, as one holder has seen them come and go. A block may be taken at
// one holder and returned at another: a single count may be negative, the sum over holders is
// right.
//
// One writer at a time, any number of readers.
#ifndef PENSTOCK_BUFFER_POOL_COUNTERS_H_
#define PENSTOCK_BUFFER_POOL_COUNTERS_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "buffer/block.h"
#include "buffer/size_class.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class PoolCounters {
 public:
  void Add(const Block& block, BufferTag tag) { Change(block, tag, +1); }
  // Of a block that is neither large nor external.
  void AddSmall(const Block& block, BufferTag tag) { Bump(CountOf(block, tag), +1); }
  void SubtractSmall(const Block& block, BufferTag tag) { Bump(CountOf(block, tag), -1); }
  void Subtract(const Block& block, BufferTag tag) { Change(block, tag, -1); }

  // Bytes.
  int64_t live(size_t size_class, size_t tag) const {
    const int64_t count = counts_[size_class][tag].load(std::memory_order_relaxed);
    return size_class == kLargeClass ? count : count * kBlockSizes[size_class];
  }

  void Merge(const PoolCounters& other) {
    for (size_t i = 0; i < kClassCount; ++i) {
      for (size_t tag = 0; tag < kBufferTagCount; ++tag) {
        Bump(counts_[i][tag], other.counts_[i][tag].load(std::memory_order_relaxed));
      }
    }
  }

 private:
  static void Bump(std::atomic<int64_t>& count, int64_t by) {
    count.store(count.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
  }
  void Change(const Block& block, BufferTag tag, int64_t sign) {
    if (block.size_class == kLargeClass) [[unlikely]] {
      sign *= static_cast<int64_t>(OddBlockSize(block));
    }
    Bump(CountOf(block, tag), sign);
  }
  std::atomic<int64_t>& CountOf(const Block& block, BufferTag tag) {
    return counts_[block.size_class][static_cast<size_t>(tag)];
  }

  // Blocks; bytes for the large class.
  std::array<std::array<std::atomic<int64_t>, kBufferTagCount>, kClassCount> counts_{};
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_POOL_COUNTERS_H_
