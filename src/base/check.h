// PENSTOCK_CHECK: an assertion that stays in release builds, for states from which going on would
// corrupt memory or lose bytes. Never for anything a peer, the kernel or a caller's value can
// cause: those are errors.
#ifndef PENSTOCK_BASE_CHECK_H_
#define PENSTOCK_BASE_CHECK_H_

#include <penstock/export.h>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Prints one line to stderr and aborts.
[[noreturn]] void CheckFailed(const char* file, int line, const char* what);

}  // namespace internal
PENSTOCK_END_NAMESPACE

// `what` says what is wrong when `condition` is false.
#define PENSTOCK_CHECK(condition, what)                                                \
  do {                                                                                 \
    if (!(condition)) [[unlikely]]                                                     \
      ::penstock::internal::CheckFailed(__FILE__, __LINE__, what " [" #condition "]"); \
  } while (false)

#endif  // PENSTOCK_BASE_CHECK_H_
