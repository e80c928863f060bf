// Checks of the pool in debug builds: a guard behind every block, a fill pattern in free ones,
// poisoned free memory under AddressSanitizer, double returns, and buffers that were never
// returned.
//
// On without NDEBUG, with PENSTOCK_POOL_DEBUG, and under AddressSanitizer; compiled to nothing
// otherwise. The whole library must be built one way. Owns nothing; any thread.
#ifndef PENSTOCK_BUFFER_POOL_DEBUG_H_
#define PENSTOCK_BUFFER_POOL_DEBUG_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <cstddef>
#include <string>
#include <string_view>

#if defined(__SANITIZE_ADDRESS__)
#define PENSTOCK_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PENSTOCK_ASAN 1
#endif
#endif
#if !defined(PENSTOCK_ASAN)
#define PENSTOCK_ASAN 0
#endif

#if !defined(NDEBUG) || defined(PENSTOCK_POOL_DEBUG) || PENSTOCK_ASAN
#define PENSTOCK_POOL_CHECKS 1
#else
#define PENSTOCK_POOL_CHECKS 0
#endif

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct Block;
struct BufferNode;

inline constexpr bool kPoolChecks = PENSTOCK_POOL_CHECKS != 0;
// Bytes between two blocks of a slab.
inline constexpr size_t kGuardSize = kPoolChecks ? 64 : 0;

// Told of a failed check in place of the default, which prints the message to stderr and aborts.
// When the handler returns, the faulty call has no effect. Returns the previous handler; null sets
// the default. Any thread; for tests.
using PoolFailureHandler = void (*)(std::string_view message);
PoolFailureHandler SetPoolFailureHandler(PoolFailureHandler handler);
void PoolFailure(std::string_view message);

// A short name of `tag` for reports.
std::string_view TagName(BufferTag tag);
// "16384 bytes, tag receive, sequence 7".
std::string DescribeBlock(const Block& block);

// A block is being handed out: its free memory is as it was left.
void CheckTaken(Block& block);
// The last window has gone: the guard is intact. Fills the used bytes.
void CheckReturned(Block& block);
// Whether `node` is in use; reports it, as used or returned twice, when it is not.
bool CheckLive(const BufferNode& node, std::string_view operation);

// For AddressSanitizer; nothing without it.
void PoisonMemory(const void* base, size_t size);
void UnpoisonMemory(const void* base, size_t size);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_POOL_DEBUG_H_
