#include "testing/pattern.h"

#include <algorithm>
#include <cstring>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// The finalizer of splitmix64, over the number of an eight byte word.
uint64_t PatternWord(uint64_t seed, uint64_t index) {
  uint64_t x = index * 0x9e3779b97f4a7c15u + seed;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

void FillPattern(std::span<char> out, uint64_t seed, uint64_t offset) {
  while (!out.empty()) {
    const uint64_t word = PatternWord(seed, offset / 8);
    const size_t skip = offset % 8;
    const size_t count = std::min<size_t>(8 - skip, out.size());
    std::memcpy(out.data(), reinterpret_cast<const char*>(&word) + skip, count);
    out = out.subspan(count);
    offset += count;
  }
}

std::string PatternBytes(uint64_t seed, uint64_t offset, size_t size) {
  std::string bytes(size, '\0');
  FillPattern(bytes, seed, offset);
  return bytes;
}

std::optional<uint64_t> FirstMismatch(std::string_view bytes, uint64_t seed, uint64_t offset) {
  char expected[4096];
  for (size_t at = 0; at < bytes.size();) {
    const size_t count = std::min(sizeof expected, bytes.size() - at);
    FillPattern({expected, count}, seed, offset + at);
    if (std::memcmp(expected, bytes.data() + at, count) != 0) {
      const auto [want, got] = std::mismatch(expected, expected + count, bytes.data() + at);
      return at + static_cast<size_t>(want - expected);
    }
    at += count;
  }
  return std::nullopt;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
