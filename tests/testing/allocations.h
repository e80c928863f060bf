// Counts calls of operator new in the test binary, whose operator new it replaces; for tests of
// "the steady state allocates nothing". Under a sanitizer, whose allocator must stay, it cannot.
//
// Any thread.
#ifndef PENSTOCK_TESTS_TESTING_ALLOCATIONS_H_
#define PENSTOCK_TESTS_TESTING_ALLOCATIONS_H_

#include <penstock/export.h>

#include <cstdint>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

bool CanCountAllocations();
// So far, on the calling thread.
int64_t AllocationsOnThisThread();

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_ALLOCATIONS_H_
