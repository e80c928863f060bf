#include "base/check.h"

#include <cstdio>
#include <cstdlib>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void CheckFailed(const char* file, int line, const char* what) {
  std::fprintf(stderr, "penstock: %s:%d: %s\n", file, line, what);
  std::abort();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
