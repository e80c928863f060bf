// Bytes that tell where they belong: the content of each connection is a function of its number and
// of the position, so that a byte which is lost, repeated, swapped or given to another connection
// shows. The pattern repeats after 65521 bytes, a prime, so no power of two hides a slip.
#ifndef PENSTOCK_EXAMPLES_COMMON_PATTERN_H_
#define PENSTOCK_EXAMPLES_COMMON_PATTERN_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace examples {

// Writes the bytes of `connection` from `position` on.
void FillPattern(std::span<char> out, uint64_t connection, uint64_t position);

// The index of the first byte of `data` that is not the pattern's.
std::optional<size_t> FindMismatch(std::string_view data, uint64_t connection, uint64_t position);

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_PATTERN_H_
