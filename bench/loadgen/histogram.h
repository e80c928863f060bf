// A latency histogram of fixed size: 64 steps to every power of two, so a percentile is within
// 1.6 % of the truth and recording costs a shift and an increment. One thread.
#ifndef PENSTOCK_BENCH_LOADGEN_HISTOGRAM_H_
#define PENSTOCK_BENCH_LOADGEN_HISTOGRAM_H_

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace penstock_bench {

class Histogram {
 public:
  void Record(uint64_t nanoseconds) {
    ++counts_[IndexOf(nanoseconds)];
    ++total_;
  }

  uint64_t total() const { return total_; }

  // The value that `fraction` (0 to 1) of the records do not exceed, in nanoseconds: the middle of
  // its step. 0 when nothing was recorded.
  double Percentile(double fraction) const {
    uint64_t wanted = static_cast<uint64_t>(fraction * static_cast<double>(total_));
    uint64_t seen = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      if (seen > wanted || (seen == total_ && total_ > 0)) return MiddleOf(i);
    }
    return 0;
  }

 private:
  static constexpr int kStepBits = 6;
  static constexpr uint64_t kSteps = uint64_t{1} << kStepBits;

  // Values below kSteps stand for themselves; above, the top kStepBits + 1 bits choose the step.
  static size_t IndexOf(uint64_t value) {
    int shift = std::bit_width(value | kSteps) - kStepBits - 1;
    return static_cast<size_t>(shift) * kSteps + static_cast<size_t>(value >> shift);
  }

  static double MiddleOf(size_t index) {
    if (index < kSteps) return static_cast<double>(index);
    size_t shift = index / kSteps - 1;
    uint64_t low = (index - shift * kSteps) << shift;
    return static_cast<double>(low) + static_cast<double>((uint64_t{1} << shift) - 1) / 2;
  }

  std::array<uint64_t, (64 - kStepBits + 1)* kSteps> counts_ = {};
  uint64_t total_ = 0;
};

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_LOADGEN_HISTOGRAM_H_
