#include "buffer/pool_debug.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "buffer/block.h"
#include "buffer/pool_core.h"

#if PENSTOCK_ASAN
#include <sanitizer/asan_interface.h>
#endif

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

std::atomic<PoolFailureHandler> failure_handler{nullptr};

}  // namespace

PoolFailureHandler SetPoolFailureHandler(PoolFailureHandler handler) {
  return failure_handler.exchange(handler);
}

void PoolFailure(std::string_view message) {
  if (PoolFailureHandler handler = failure_handler.load()) return handler(message);
  std::fprintf(stderr, "penstock: %.*s\n", static_cast<int>(message.size()), message.data());
  std::abort();
}

std::string_view TagName(BufferTag tag) {
  switch (tag) {
    case BufferTag::kApplication:
      return "application";
    case BufferTag::kReceive:
      return "receive";
    case BufferTag::kRing:
      return "ring";
    case BufferTag::kSeal:
      return "seal";
    case BufferTag::kFrame:
      return "frame";
    case BufferTag::kRdma:
      return "rdma";
  }
  return "unknown";
}

std::string DescribeBlock(const Block& block) {
  std::string text = absl::StrCat(BlockSize(block), " bytes, tag ");
  text += TagName(block.tag);
#if PENSTOCK_POOL_CHECKS
  absl::StrAppend(&text, ", sequence ", block.sequence);
#endif
  return text;
}

#if PENSTOCK_POOL_CHECKS
namespace {

constexpr char kFreeFill = '\xdb';
constexpr char kGuardFill = '\xfd';

bool Filled(const char* data, size_t size, char fill) {
  // Each byte equals the one before it, and the first is `fill`.
  return size == 0 || (data[0] == fill && std::memcmp(data, data + 1, size - 1) == 0);
}

bool HasGuard(const Block& block) { return block.size_class < kBlockClasses; }

// Where a free block was filled or wiped; a block of a saturated length was not.
size_t FilledEnd(const Block& block) { return HasGuard(block) ? block.used_end : 0; }

}  // namespace

void CheckTaken(Block& block) {
  UnpoisonMemory(block.base, BlockSize(block));
  const char fill = block.wiped ? '\0' : kFreeFill;
  if (!Filled(block.base, FilledEnd(block), fill)) {
    PoolFailure(absl::StrCat("buffer written after it was returned: ", DescribeBlock(block)));
  }
  if (HasGuard(block)) {
    char* guard = block.base + BlockSize(block);
    UnpoisonMemory(guard, kGuardSize);
    std::memset(guard, kGuardFill, kGuardSize);
    PoisonMemory(guard, kGuardSize);
  }
  block.sequence = block.core->NextSequence();
  block.live = true;
  block.primary.live = true;
  block.primary.shared = false;
  block.wiped = false;
}

void CheckReturned(Block& block) {
  if (HasGuard(block)) {
    char* guard = block.base + BlockSize(block);
    UnpoisonMemory(guard, kGuardSize);
    if (!Filled(guard, kGuardSize, kGuardFill)) {
      PoolFailure(absl::StrCat("buffer written beyond its end: ", DescribeBlock(block)));
    }
    PoisonMemory(guard, kGuardSize);
  }
  block.live = false;
  if (!block.wiped) std::memset(block.base, kFreeFill, FilledEnd(block));
  PoisonMemory(block.base, BlockSize(block));
}

bool CheckLive(const BufferNode& node, std::string_view operation) {
  if (node.live) return true;
  PoolFailure(absl::StrCat("buffer ", std::string(operation),
                           " after it was returned: ", DescribeBlock(*node.block)));
  return false;
}
#endif

void PoisonMemory([[maybe_unused]] const void* base, [[maybe_unused]] size_t size) {
#if PENSTOCK_ASAN
  __asan_poison_memory_region(base, size);
#endif
}

void UnpoisonMemory([[maybe_unused]] const void* base, [[maybe_unused]] size_t size) {
#if PENSTOCK_ASAN
  __asan_unpoison_memory_region(base, size);
#endif
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
