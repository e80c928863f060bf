// MakeNonblocking: for descriptors that a library opened; Sys opens its own so. The system call is
// in sys.cc with all others.
//
// Stateless; any thread.
#ifndef PENSTOCK_BASE_NONBLOCKING_H_
#define PENSTOCK_BASE_NONBLOCKING_H_

#include <penstock/export.h>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Sets O_NONBLOCK and FD_CLOEXEC: 0, or -errno.
int MakeNonblocking(int fd);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_NONBLOCKING_H_
