// The block sizes that slabs are cut into, and the way from a size to its class.
//
// Powers of two waste up to half of a block that holds a sealed record of 2^n bytes and its
// header, so three classes are a little larger than a power of two. Constants only; any thread.
#ifndef PENSTOCK_BUFFER_SIZE_CLASS_H_
#define PENSTOCK_BUFFER_SIZE_CLASS_H_

#include <penstock/export.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

inline constexpr size_t kSlabSize = size_t{2} << 20;

inline constexpr std::array<uint32_t, 16> kBlockSizes = {
    256,   512,   1024,  2048,  4096,   8192,   16384,  16896,
    32768, 33280, 65536, 66048, 131072, 262144, 524288, 1048576};
inline constexpr size_t kBlockClasses = kBlockSizes.size();
inline constexpr size_t kBlockSizeMax = kBlockSizes.back();

// Blocks above kBlockSizeMax, each with a mapping of its own.
inline constexpr uint8_t kLargeClass = kBlockClasses;
inline constexpr size_t kClassCount = kBlockClasses + 1;
// Memory that the pool does not own.
inline constexpr uint8_t kExternalClass = kClassCount;

// By the width of size - 1: the smallest class of that width. Not inside ClassOf, where compilers
// build it on the stack in every call.
inline constexpr std::array<uint8_t, 21> kFirstClass = {0, 0, 0, 0, 0, 0, 0,  0,  0,  1, 2,
                                                        3, 4, 5, 6, 7, 9, 11, 13, 14, 15};

// The smallest class that holds `size` <= kBlockSizeMax bytes.
constexpr uint8_t ClassOf(size_t size) {
  // The smallest class is 2^8 bytes: no width below that makes a difference.
  const size_t last = (size - (size != 0)) | 0xff;
  const uint8_t first = kFirstClass[static_cast<size_t>(std::bit_width(last))];
  return first + static_cast<uint8_t>(size > kBlockSizes[first]);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_SIZE_CLASS_H_
