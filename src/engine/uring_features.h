// What this kernel's io_uring has, found by trying: each feature the engine may use is exercised
// once on a small ring, because version numbers lie (back-ports, seccomp, regressions).
//
// PENSTOCK_URING_DISABLE, a comma-separated list of io_uring, defer_taskrun, coop_taskrun,
// multishot_accept and multishot_receive, makes these count as absent, so that the fallbacks can be
// tested on a kernel that has everything. Any other word in it is an error.
#ifndef PENSTOCK_ENGINE_URING_FEATURES_H_
#define PENSTOCK_ENGINE_URING_FEATURES_H_

#include <liburing.h>
#include <penstock/export.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sys.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct UringFeatures {
  bool defer_taskrun = false;      // 6.1, with SINGLE_ISSUER (6.0): completions run when we wait
  bool coop_taskrun = false;       // 5.19: no interrupt of the thread for each completion
  bool multishot_accept = false;   // 5.19
  bool buffer_ring = false;        // 5.19
  bool multishot_receive = false;  // 6.0
};

// Runs the self-tests. Unimplemented: io_uring is absent or forbidden here, or lacks what the
// engine cannot do without (kernel 5.13). ResourceExhausted: descriptors or locked memory have
// run out. InvalidArgument: PENSTOCK_URING_DISABLE makes no sense.
absl::StatusOr<UringFeatures> ProbeUring(Sys& sys);

// The setup flags that go with `features`.
uint32_t SetupFlags(const UringFeatures& features);

// Makes a ring; errors as above.
absl::Status SetUpRing(Sys& sys, unsigned entries, unsigned completions, uint32_t flags,
                       io_uring* ring);

// Starts a ring made with IORING_SETUP_R_DISABLED; 0 or -errno. Not by io_uring_enable_rings(3),
// which liburing 2.3 declares but its shared library does not export.
int EnableRing(Sys& sys, const io_uring& ring);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_URING_FEATURES_H_
