// The bounds of a send queue that count, of those that StreamOptions ask for: whoever is writable
// has room for a byte.
#ifndef PENSTOCK_ENGINE_SEND_BOUNDS_H_
#define PENSTOCK_ENGINE_SEND_BOUNDS_H_

#include <penstock/export.h>
#include <penstock/stream.h>

#include <algorithm>
#include <cstdint>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

inline SendBounds SendBoundsOf(const StreamOptions& options) {
  const uint32_t max = std::max(options.send_queue_max, 1u);
  const uint32_t high = std::min(options.send_queue_high, max - 1);
  return {.low = std::min(options.send_queue_low, high), .high = high, .max = max};
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_SEND_BOUNDS_H_
