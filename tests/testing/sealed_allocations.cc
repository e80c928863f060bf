#include "testing/sealed_allocations.h"

#include <openssl/crypto.h>

#include <atomic>
#include <cstdlib>

#include "base/check.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

std::atomic<uint64_t> openssl_allocations = 0;

void* CountedMalloc(size_t size, const char*, int) {
  openssl_allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size);
}

void* CountedRealloc(void* memory, size_t size, const char*, int) {
  openssl_allocations.fetch_add(1, std::memory_order_relaxed);
  return std::realloc(memory, size);
}

void CountedFree(void* memory, const char*, int) { std::free(memory); }

// Before anything else of OpenSSL, which refuses it later.
const bool counting = CRYPTO_set_mem_functions(CountedMalloc, CountedRealloc, CountedFree) == 1;

}  // namespace

uint64_t SealedAllocations() {
  PENSTOCK_CHECK(counting, "OpenSSL allocated before it was told to count");
  return openssl_allocations.load(std::memory_order_relaxed);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
