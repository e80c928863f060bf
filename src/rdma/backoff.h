// Backoff: how long to wait before trying again: twice as long each time, up to a limit, and by
// chance half of that to all of it, so that many that failed together do not come back together.
//
// A plain value; single thread. Sans-I/O: chance is given to it.
#ifndef PENSTOCK_RDMA_BACKOFF_H_
#define PENSTOCK_RDMA_BACKOFF_H_

#include <penstock/export.h>

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// What is waited when a peer has asked for that: a minute at most, unless the program waits longer
// by itself.
inline absl::Duration Obeyed(absl::Duration asked, absl::Duration pause_max) {
  return std::min(asked, std::max(pause_max, absl::Minutes(1)));
}

class Backoff {
 public:
  // Both are positive.
  Backoff(absl::Duration min, absl::Duration max) : min_(min), max_(max), next_(min) {}

  // `chance`: any byte, by chance.
  absl::Duration Next(uint8_t chance) {
    const absl::Duration pause = std::min(next_, max_);
    next_ = std::min(next_ * 2, max_);
    return pause / 2 + pause / 2 * (chance / 255.0);
  }
  // Something has gone well.
  void Reset() { next_ = min_; }

 private:
  absl::Duration min_;
  absl::Duration max_;
  absl::Duration next_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_BACKOFF_H_
