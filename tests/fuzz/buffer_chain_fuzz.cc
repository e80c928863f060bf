// Any sequence of operations on BufferChains does what it does on strings.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "buffer/chain_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  size_t at = 0;
  const auto below = [&](size_t bound) -> size_t {
    size_t choice = 0;
    for (size_t reach = 1; reach < bound && at < size; reach <<= 8)
      choice = choice << 8 | data[at++];
    return choice % bound;
  };
  static penstock::BufferPool pool;
  penstock::internal::ChainModel model(pool, below);
  std::string difference;
  while (difference.empty() && at < size) difference = model.Step();
  if (difference.empty()) difference = model.End();
  if (difference.empty()) return 0;
  std::fprintf(stderr, "chains and strings differ: %s\n", difference.c_str());
  std::abort();
}
