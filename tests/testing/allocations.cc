#include "testing/allocations.h"

#include <malloc.h>

#include <cstdlib>
#include <cstring>
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
constinit thread_local std::string_view watched_needle;
constinit thread_local int64_t deleted_with_needle = 0;
}  // namespace

#if PENSTOCK_COUNT_ALLOCATIONS
// NOLINTBEGIN(misc-new-delete-overloads): the aligned forms are not used on hot paths.
void* operator new(size_t size) {
  ++allocations;
  if (void* memory = std::malloc(size != 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept {
  if (memory != nullptr && !watched_needle.empty() &&
      ::memmem(memory, ::malloc_usable_size(memory), watched_needle.data(),
               watched_needle.size()) != nullptr) {
    ++deleted_with_needle;
  }
  std::free(memory);
}
void operator delete(void* memory, size_t) noexcept { operator delete(memory); }
// NOLINTEND(misc-new-delete-overloads)
#endif

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

bool CanCountAllocations() { return PENSTOCK_COUNT_ALLOCATIONS != 0; }

int64_t AllocationsOnThisThread() { return allocations; }

DeletedWatch::DeletedWatch(std::string_view needle) {
  deleted_with_needle = 0;
  watched_needle = needle;
}

DeletedWatch::~DeletedWatch() { watched_needle = {}; }

int64_t DeletedWatch::found() const { return deleted_with_needle; }

}  // namespace internal
PENSTOCK_END_NAMESPACE
