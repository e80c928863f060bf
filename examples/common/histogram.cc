#include "common/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace examples {

// Values below 64 have a bucket each; above, the leading bit picks a group and the next six bits
// the bucket in it.
size_t Histogram::IndexOf(uint64_t ns) {
  if (ns < kSubs) return ns;
  const int shift = std::bit_width(ns) - 1 - kSubBits;
  return static_cast<size_t>(shift) * kSubs + (ns >> shift);
}

uint64_t Histogram::LargestOf(size_t index) {
  if (index < 2 * kSubs) return index;
  const int shift = static_cast<int>(index / kSubs) - 1;
  return ((index % kSubs + kSubs + 1) << shift) - 1;
}

void Histogram::Record(absl::Duration value) {
  const int64_t ns = std::max<int64_t>(absl::ToInt64Nanoseconds(value), 0);
  ++counts_[IndexOf(static_cast<uint64_t>(ns))];
  ++count_;
  max_ = std::max(max_, ns);
}

absl::Duration Histogram::Percentile(double fraction) const {
  const auto wanted = static_cast<uint64_t>(std::ceil(fraction * static_cast<double>(count_)));
  uint64_t seen = 0;
  for (size_t i = 0; i < counts_.size(); ++i) {
    seen += counts_[i];
    if (seen >= std::max<uint64_t>(wanted, 1)) {
      return absl::Nanoseconds(std::min<uint64_t>(LargestOf(i), static_cast<uint64_t>(max_)));
    }
  }
  return absl::ZeroDuration();
}

}  // namespace examples
