// The bytes that the load generator sends and expects back.
//
// Each connection carries an endless stream: random bytes repeated with a period of kPeriod, begun
// at an offset of the connection's own. The period is prime, so bytes that arrive moved by any
// other distance, swapped between messages of a usual size, or belonging to another connection, do
// not compare equal. A run of up to kRunMax bytes is contiguous from every offset: sending needs no
// copy and checking is one memcmp.
#ifndef PENSTOCK_BENCH_LOADGEN_PATTERN_H_
#define PENSTOCK_BENCH_LOADGEN_PATTERN_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace penstock_bench {

class Pattern {
 public:
  static constexpr uint32_t kPeriod = 4093;
  static constexpr size_t kRunMax = 256 * 1024;

  Pattern() : bytes_(kPeriod + kRunMax) {
    std::mt19937 random(kPeriod);
    for (size_t i = 0; i < kPeriod; ++i) bytes_[i] = static_cast<char>(random());
    for (size_t i = kPeriod; i < bytes_.size(); ++i) bytes_[i] = bytes_[i - kPeriod];
  }

  // Where the stream of connection number `connection` begins.
  static uint32_t StartOf(uint32_t connection) {
    return static_cast<uint32_t>(uint64_t{connection} * 1031 % kPeriod);
  }

  // The offset `size` bytes further on.
  static uint32_t Advance(uint32_t offset, size_t size) {
    return static_cast<uint32_t>((offset + size) % kPeriod);
  }

  // At least kRunMax bytes of the stream from `offset` (below kPeriod).
  const char* At(uint32_t offset) const { return bytes_.data() + offset; }

  // `size` is at most kRunMax.
  bool Matches(uint32_t offset, const char* data, size_t size) const {
    return memcmp(At(offset), data, size) == 0;
  }

 private:
  std::vector<char> bytes_;
};

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_LOADGEN_PATTERN_H_
