// SimRandom: the only source of chance in a simulation. The same seed draws the same numbers on
// every machine and compiler, so a failing seed can be run again. Or, of a story small enough to be
// told in every way, the decisions are enumerated instead of drawn. A value; one thread.
#ifndef PENSTOCK_TESTS_TESTING_SIM_RANDOM_H_
#define PENSTOCK_TESTS_TESTING_SIM_RANDOM_H_

#include <cstddef>
#include <cstdint>

#include "testing/sim_choices.h"

namespace penstock::testing {

// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
inline uint64_t SimMix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

class SimRandom {
 public:
  explicit SimRandom(uint64_t seed) : state_(SimMix(seed)) {}

  // From here on `choices`, which must outlive this, decides what Below, and what is made of it,
  // return: a chance that is neither none nor certain is one of two. Null: chance again.
  void Follow(SimChoices* choices) { choices_ = choices; }

  uint64_t Next() { return SimMix(state_++); }
  // In [0, n); 0 for n == 0. The bias is far below what any test here could see.
  uint64_t Below(uint64_t n) {
    if (choices_ != nullptr) return choices_->Choose(n);
    return n == 0 ? 0 : Next() % n;
  }
  // In [low, high].
  uint64_t Between(uint64_t low, uint64_t high) { return low + Below(high - low + 1); }
  // True `thousandths` times out of a thousand. Draws nothing when it cannot be.
  bool Chance(uint32_t thousandths) {
    if (thousandths == 0) return false;
    if (choices_ != nullptr) return thousandths >= 1000 || choices_->Choose(2) == 1;
    return Below(1000) < thousandths;
  }
  // Mostly small, seldom near `max`: the exponent is uniform. In [1, max].
  uint64_t Size(uint64_t max) {
    const int bits = static_cast<int>(Below(64 - static_cast<uint64_t>(__builtin_clzll(max)))) + 1;
    const uint64_t top = bits >= 63 ? max : (uint64_t{1} << bits);
    return Between(1, top < max ? top : max);
  }

 private:
  uint64_t state_;
  SimChoices* choices_ = nullptr;
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_SIM_RANDOM_H_
