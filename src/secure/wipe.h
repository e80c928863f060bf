// WipeSecret: overwrites secrets so that no optimiser leaves it out.
//
// Stateless; any thread.
#ifndef PENSTOCK_SECURE_WIPE_H_
#define PENSTOCK_SECURE_WIPE_H_

#include <penstock/export.h>

#include <cstddef>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// explicit_bzero(3): the codec, which wipes most, needs no cryptographic library for it.
void WipeSecret(void* secret, size_t size);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_WIPE_H_
