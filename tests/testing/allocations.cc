#include "testing/allocations.h"

#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PENSTOCK_COUNT_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define PENSTOCK_COUNT_ALLOCATIONS 0
#endif
#endif
#if !defined(PENSTOCK_COUNT_ALLOCATIONS)
#define PENSTOCK_COUNT_ALLOCATIONS 1
#endif

namespace {
constinit thread_local int64_t allocations = 0;
}  // namespace

#if PENSTOCK_COUNT_ALLOCATIONS
// NOLINTBEGIN(misc-new-delete-overloads): the aligned forms are not used on hot paths.
void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size != 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
// NOLINTEND(misc-new-delete-overloads)
#endif

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

bool CanCountAllocations() { return PENSTOCK_COUNT_ALLOCATIONS != 0; }

int64_t AllocationsOnThisThread() { return allocations; }

}  // namespace internal
PENSTOCK_END_NAMESPACE
