#include "secure/openssl_wipe.h"

#include <openssl/crypto.h>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void WipeSecret(void* secret, size_t size) { OPENSSL_cleanse(secret, size); }

}  // namespace internal
PENSTOCK_END_NAMESPACE
