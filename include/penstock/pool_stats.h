// PoolStats: what a BufferPool holds, as plain integers.
//
// Apart from the pool itself, so that what reports figures needs nothing that moves bytes. Values:
// no thread owns them.
#ifndef PENSTOCK_POOL_STATS_H_
#define PENSTOCK_POOL_STATS_H_

#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <cstdint>

PENSTOCK_BEGIN_NAMESPACE

// What a block is used for; PoolStats counts live bytes by tag.
enum class BufferTag : uint8_t {
  kApplication,  // taken by users of the library
  kReceive,      // filled by an engine for a connection
  kRing,         // lent to the kernel in an io_uring buffer ring; belongs to no connection
  kSeal,         // records and plaintext of sealed streams
  kRdma,         // registered receive and send memory
  kFrame,        // half-received frames of framed readers, apart from the blocks they came in
};
inline constexpr size_t kBufferTagCount = 6;

// Plain integers, all in bytes unless named otherwise. A snapshot: the fields are read one by one.
struct PoolStats {
  struct Class {
    size_t block_size = 0;    // 0: the blocks above 1 MiB, each of its own size
    uint64_t live = 0;        // in Buffers
    uint64_t cached = 0;      // free, in a loop's cache
    uint64_t mapped = 0;      // slabs of this class
    uint64_t high_water = 0;  // most ever live plus cached
    uint64_t refused = 0;     // allocations refused at the limit (count)
  };
  static constexpr size_t kClassesMax = 20;
  std::array<Class, kClassesMax> classes;
  size_t class_count = 0;
  std::array<uint64_t, kBufferTagCount> live_by_tag{};
  // A block has a tag while it is live: what is cached or mapped has none.
  // Most seen live of each tag. As long as `high_water` rises it is right to 256 KiB, or 2 blocks,
  // a loop and class; below that one in 64 requests is looked at, and a short peak may be missed.
  std::array<uint64_t, kBufferTagCount> high_water_by_tag{};
  // Count.
  std::array<uint64_t, kBufferTagCount> refused_by_tag{};
  uint64_t live = 0;  // every tag but kRing
  uint64_t ring = 0;  // lent to the kernel: tag kRing
  uint64_t cached = 0;
  uint64_t mapped = 0;
  uint64_t high_water = 0;
  uint64_t refused = 0;  // count
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_POOL_STATS_H_
