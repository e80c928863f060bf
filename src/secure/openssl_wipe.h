// WipeSecret: overwrites secrets so that no optimiser leaves it out.
//
// Stateless; any thread.
#ifndef PENSTOCK_SECURE_OPENSSL_WIPE_H_
#define PENSTOCK_SECURE_OPENSSL_WIPE_H_

#include <penstock/export.h>

#include <cstddef>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// OPENSSL_cleanse(3).
void WipeSecret(void* secret, size_t size);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_OPENSSL_WIPE_H_
