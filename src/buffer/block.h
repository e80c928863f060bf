// BufferNode, one window onto a block, and Block, what the pool knows of a block: both lie outside
// the block's own memory, so that stray writes to bytes cannot corrupt the pool.
//
// Ownership: a node belongs to whoever holds the Buffer or BufferChain it is in (I2). The first
// window onto a block uses the node inside Block; SplitFront and Share take more from the pool's
// free list. The block goes back when its last window goes, whichever that is; the node inside is
// not reused before that. Threads: `windows` is shared by the windows' holders; the other fields of
// a live block are written by the only holder, those of a free one by the holder of its list.
#ifndef PENSTOCK_BUFFER_BLOCK_H_
#define PENSTOCK_BUFFER_BLOCK_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "buffer/pool_debug.h"
#include "buffer/size_class.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct Block;

struct BufferNode {
  char* data = nullptr;
  size_t size = 0;
  BufferNode* next = nullptr;  // in a BufferChain or a free list
  Block* block = nullptr;
#if PENSTOCK_POOL_CHECKS
  bool live = false;
  bool shared = false;  // after Share(): read only
#endif
};

struct Block {
  BufferNode primary;  // first: a free block is queued through primary.next
  char* base = nullptr;
  PoolCore* core = nullptr;          // null: external memory
  std::atomic<uint32_t> windows{1};  // 1 also while free
  // Bytes from base that windows have covered since the block was handed out, saturating: what a
  // wipe has to reach.
  uint32_t used_end = 0;
  uint16_t index = 0;  // in its slab
  uint8_t size_class = kExternalClass;
  BufferTag tag = BufferTag::kApplication;
  std::atomic<bool> secret{false};  // to be wiped when it returns
  bool in_core = false;             // free and in its slab's list; written under the core's lock
#if PENSTOCK_POOL_CHECKS
  bool live = false;
  bool wiped = false;  // free, and zero as far as it was used
  uint64_t sequence = 0;
#endif
};
#if !PENSTOCK_POOL_CHECKS
static_assert(sizeof(BufferNode) == 32);
static_assert(sizeof(Block) == 64);
#endif

static_assert(offsetof(Block, primary) == 0);

struct ExternalBlock : Block {
  size_t size = 0;
  absl::AnyInvocable<void() &&> release;
};

// The doors between the public types and their nodes.
struct BufferAccess {
  static BufferNode* Node(const Buffer& buffer) { return buffer.node_; }
  static BufferNode* Release(Buffer&& buffer) { return std::exchange(buffer.node_, nullptr); }
  static Buffer Adopt(BufferNode* node) { return Buffer(node); }
  static BufferNode* Head(const BufferChain& chain) { return chain.head_; }
  static BufferNode* Tail(const BufferChain& chain) { return chain.tail_; }

  // What BufferChain does, for the engines, without a call. `node` has bytes; a chain that is
  // popped from is not empty.
  static void Append(BufferChain& chain, BufferNode* node) {
    (chain.head_ != nullptr ? chain.tail_->next : chain.head_) = node;
    chain.tail_ = node;
    chain.size_ += node->size;
  }
  static Buffer PopFront(BufferChain& chain) {
    BufferNode* const node = chain.head_;
    chain.head_ = std::exchange(node->next, nullptr);
    if (chain.head_ == nullptr) chain.tail_ = nullptr;
    chain.size_ -= node->size;
    return Buffer(node);
  }
  static size_t FillIovec(const BufferChain& chain, std::span<iovec> out) {
    size_t count = 0;
    for (const BufferNode* node = chain.head_; node != nullptr && count < out.size();
         node = node->next) {
      out[count++] = {node->data, node->size};
    }
    return count;
  }
};

// Of a node in a list of free blocks.
inline Block& BlockOfFree(BufferNode* node) { return *reinterpret_cast<Block*>(node); }

// Of large and external blocks.
size_t OddBlockSize(const Block& block);

inline size_t BlockSize(const Block& block) {
  if (block.size_class < kBlockClasses) [[likely]]
    return kBlockSizes[block.size_class];
  return OddBlockSize(block);
}

// Makes a free block live, with one empty window.
inline BufferNode* StartBlock(Block& block, BufferTag tag) {
  if constexpr (kPoolChecks) CheckTaken(block);
  BufferNode& node = block.primary;
  node.data = block.base;
  node.size = 0;
  node.next = nullptr;
  block.used_end = 0;
  block.tag = tag;
  return &node;
}

inline size_t NodeTailroom(const BufferNode& node) {
  const Block& block = *node.block;
  // Acquire: what the other windows' holders did comes before.
  if (block.windows.load(std::memory_order_acquire) != 1 || block.core == nullptr) return 0;
  return static_cast<size_t>(block.base + BlockSize(block) - (node.data + node.size));
}

// `n` <= NodeTailroom().
inline void NodeExtend(BufferNode& node, size_t n) {
  Block& block = *node.block;
  node.size += n;
  const auto end = static_cast<size_t>(node.data + node.size - block.base);
  if (end > block.used_end) {
    block.used_end =
        static_cast<uint32_t>(std::min<size_t>(end, std::numeric_limits<uint32_t>::max()));
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_BLOCK_H_
