#include "testing/sealed_allocations.h"

#include <openssl/crypto.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "base/check.h"
#include "secure/cipher_contexts.h"
#include "secure/openssl_aead.h"

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

uint64_t SealedAllocationsOfAKey() {
  absl::StatusOr<std::unique_ptr<RecordCrypto>> crypto = NewOpensslCrypto();
  PENSTOCK_CHECK(crypto.ok(), "no AES-GCM");
  constexpr RecordProtocol kProtocol = RecordProtocol::kGcmAes128Rekey;
  RecordCipher cipher(std::make_shared<CipherContexts>(*std::move(crypto)),
                      *KeySchedule::Create(kProtocol, RecordSender::kClient,
                                           std::string(RecordKeySize(kProtocol), 'k')));
  uint64_t before = 0;
  // The first key takes a context besides, the second what the library makes once.
  for (uint64_t key = 0; key < 3; ++key) {
    cipher.keys().SetCounter(key * kRecordsOfAKey);
    before = SealedAllocations();
    PENSTOCK_CHECK(cipher.StartSeal() != nullptr, "a key was not derived");
  }
  return SealedAllocations() - before;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
