// Time that passed, by the clock that never jumps (CLOCK_MONOTONIC, clock_gettime(2)).
#ifndef PENSTOCK_EXAMPLES_COMMON_STOPWATCH_H_
#define PENSTOCK_EXAMPLES_COMMON_STOPWATCH_H_

#include <time.h>

#include "absl/time/time.h"

namespace examples {

inline absl::Duration Monotonic() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return absl::DurationFromTimespec(now);
}

class Stopwatch {
 public:
  absl::Duration elapsed() const { return Monotonic() - began_; }

 private:
  absl::Duration began_ = Monotonic();
};

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_STOPWATCH_H_
