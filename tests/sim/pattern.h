// What actors write: bytes that depend on the link, the direction and the position, so that a byte
// that is lost, repeated, misplaced or another stream's does not go unseen.
#ifndef PENSTOCK_TESTS_SIM_PATTERN_H_
#define PENSTOCK_TESTS_SIM_PATTERN_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "testing/sim_random.h"
#include "testing/sim_wire.h"

namespace penstock::testing {

// The byte at `position` of what side `side` of `link` sends.
inline uint64_t StreamKey(const SimLink& link, int side) {
  return SimMix(link.id * 2 + static_cast<uint64_t>(side));
}

inline void FillPattern(uint64_t key, uint64_t position, char* out, size_t size) {
  for (size_t i = 0; i < size; ++i) {
    const uint64_t at = position + i;
    out[i] = static_cast<char>(SimMix(key ^ (at >> 3)) >> ((at & 7) * 8));
  }
}

inline bool MatchesPattern(uint64_t key, uint64_t position, std::string_view bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    const uint64_t at = position + i;
    if (bytes[i] != static_cast<char>(SimMix(key ^ (at >> 3)) >> ((at & 7) * 8))) return false;
  }
  return true;
}

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_SIM_PATTERN_H_
