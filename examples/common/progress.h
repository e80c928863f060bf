// How far a transfer is, on stderr: a bar that is redrawn in place on a terminal, a plain line each
// second elsewhere. Bytes, share, rate, and the time left at the rate so far.
#ifndef PENSTOCK_EXAMPLES_COMMON_PROGRESS_H_
#define PENSTOCK_EXAMPLES_COMMON_PROGRESS_H_

#include <cstdint>
#include <string>

#include "absl/time/time.h"
#include "common/stopwatch.h"

namespace examples {

// "1.5 MiB"; powers of 1024.
std::string FormatBytes(double bytes);

class Progress {
 public:
  explicit Progress(uint64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Cheap enough for every piece: shows something ten times (or once) a second.
  void Update(uint64_t done);

 private:
  void Show();

  const uint64_t total_;
  const bool terminal_;
  const absl::Duration interval_;
  const Stopwatch watch_;
  absl::Duration shown_;
  uint64_t done_ = 0;
};

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_PROGRESS_H_
