// Bytes that know their place: the value of each is a hash of a seed and its offset, so a receiver
// can tell a lost, repeated or reordered byte from a good one without keeping what was sent.
#ifndef PENSTOCK_TESTS_TESTING_PATTERN_H_
#define PENSTOCK_TESTS_TESTING_PATTERN_H_

#include <penstock/export.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void FillPattern(std::span<char> out, uint64_t seed, uint64_t offset);
std::string PatternBytes(uint64_t seed, uint64_t offset, size_t size);

// The first place in `bytes` that differs from the pattern, which `bytes` continues at `offset`.
std::optional<uint64_t> FirstMismatch(std::string_view bytes, uint64_t seed, uint64_t offset);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_PATTERN_H_
