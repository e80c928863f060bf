#include "secure/wipe.h"

#include <cstring>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void WipeSecret(void* secret, size_t size) { ::explicit_bzero(secret, size); }

}  // namespace internal
PENSTOCK_END_NAMESPACE
