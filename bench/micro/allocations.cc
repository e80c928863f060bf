#include "allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<int64_t> count{0};
}  // namespace

// A file of its own: inlined next to a `delete`, g++ 12 takes malloc and free for a mismatch.
void* operator new(size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = malloc(size)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { free(memory); }
void operator delete(void* memory, size_t) noexcept { free(memory); }

namespace penstock_bench {

int64_t Allocations() { return count.load(std::memory_order_relaxed); }

}  // namespace penstock_bench
