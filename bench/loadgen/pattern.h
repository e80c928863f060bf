// The bytes that the load generator sends or expects back: an endless stream with a period.
//
// For echo servers each connection has one of its own: random bytes repeated with a period of
// kPeriod, begun at an offset of the connection's own. The period is prime, so bytes that arrive
// moved by any other distance, swapped between messages of a usual size, or belonging to another
// connection, do not compare equal. Otherwise it is a text, repeated, on every connection alike.
// A run of up to kRunMax bytes is contiguous from every offset: sending needs no copy and checking
// is one memcmp.
#ifndef PENSTOCK_BENCH_LOADGEN_PATTERN_H_
#define PENSTOCK_BENCH_LOADGEN_PATTERN_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

namespace penstock_bench {

class Pattern {
 public:
  static constexpr uint32_t kPeriod = 4093;
  static constexpr size_t kRunMax = 256 * 1024;

  Pattern() : period_(kPeriod), spread_(1031), bytes_(kPeriod + kRunMax) {
    std::mt19937 random(kPeriod);
    for (size_t i = 0; i < kPeriod; ++i) bytes_[i] = static_cast<char>(random());
    Repeat();
  }
  // `text`, not empty, again and again; of each the bytes from `varies_from` to before `varies_to`
  // may be any.
  explicit Pattern(std::string_view text, size_t varies_from = 0, size_t varies_to = 0)
      : period_(static_cast<uint32_t>(text.size())),
        varies_from_(varies_from),
        varies_to_(varies_to),
        bytes_(text.begin(), text.end()) {
    bytes_.resize(period_ + kRunMax);
    Repeat();
  }

  // Where the stream of connection number `connection` begins.
  uint32_t StartOf(uint32_t connection) const {
    return static_cast<uint32_t>(uint64_t{connection} * spread_ % period_);
  }

  // The offset `size` bytes further on.
  uint32_t Advance(uint32_t offset, size_t size) const {
    return static_cast<uint32_t>((offset + size) % period_);
  }

  // At least kRunMax bytes of the stream from `offset` (below the period).
  const char* At(uint32_t offset) const { return bytes_.data() + offset; }

  // `size` is at most kRunMax.
  bool Matches(uint32_t offset, const char* data, size_t size) const {
    if (varies_from_ == varies_to_) return memcmp(At(offset), data, size) == 0;
    while (size > 0) {
      const bool varies = offset >= varies_from_ && offset < varies_to_;
      const size_t end = varies ? varies_to_ : offset < varies_from_ ? varies_from_ : period_;
      const size_t piece = std::min(size, end - offset);
      if (!varies && memcmp(At(offset), data, piece) != 0) return false;
      data += piece;
      size -= piece;
      offset = Advance(offset, piece);
    }
    return true;
  }

 private:
  void Repeat() {
    for (size_t i = period_; i < bytes_.size(); ++i) bytes_[i] = bytes_[i - period_];
  }

  uint32_t period_;
  uint32_t spread_ = 0;
  size_t varies_from_ = 0;
  size_t varies_to_ = 0;
  std::vector<char> bytes_;
};

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_LOADGEN_PATTERN_H_
