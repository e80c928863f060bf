// SealedAllocations: how often the cryptographic library of sealed streams has allocated, which the
// counts of operator new do not show.
//
// A binary that asks has every allocation of OpenSSL counted from its start on. Any thread.
#ifndef PENSTOCK_TESTS_TESTING_SEALED_ALLOCATIONS_H_
#define PENSTOCK_TESTS_TESTING_SEALED_ALLOCATIONS_H_

#include <penstock/export.h>

#include <cstdint>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// So far. 0 in a build without sealed streams.
#ifdef PENSTOCK_HAVE_SECURE
uint64_t SealedAllocations();
// What one direction takes for its next key, every kRecordsOfAKey records: this library's way of
// deriving it decides.
uint64_t SealedAllocationsOfAKey();
#else
inline uint64_t SealedAllocations() { return 0; }
inline uint64_t SealedAllocationsOfAKey() { return 0; }
#endif
inline constexpr uint64_t kRecordsOfAKey = 65'536;

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_SEALED_ALLOCATIONS_H_
