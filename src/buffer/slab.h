// Slab: one mapping of 2 MiB cut into blocks of one class, or a mapping with a single large block;
// and SlabList, the lists that a pool keeps them in.
//
// A Slab and its Block array live in a mapping of their own beside the blocks' memory. Blocks are
// carved off one by one, so an untouched slab costs one page. Owned by PoolCore and used under its
// lock, but for SlabOf() and the size, which do not change while a block of the slab is out, and
// `undumped`.
#ifndef PENSTOCK_BUFFER_SLAB_H_
#define PENSTOCK_BUFFER_SLAB_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/sys.h"
#include "buffer/block.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct Slab {
  PoolCore* core = nullptr;
  char* base = nullptr;
  size_t size = 0;           // of the mapping at base
  size_t metadata_size = 0;  // of the mapping at this
  Slab* previous = nullptr;  // in a SlabList
  Slab* next = nullptr;
  BufferNode* free = nullptr;  // returned blocks, LIFO
  uint32_t block_count = 0;
  uint32_t carved = 0;  // blocks ever handed out; the rest have no Block yet
  uint32_t out = 0;     // blocks that are not in this slab's hands
  uint8_t size_class = 0;
  bool secret = false;
  // Left out of core dumps, for as long as the memory is mapped. Set and read by whoever has a
  // block, and, when no block is out, under the pool's lock.
  std::atomic<bool> undumped{false};

  Block* blocks();
  size_t stride() const {
    return size_class == kLargeClass ? size : kBlockSizes[size_class] + kGuardSize;
  }
  bool full() const { return out == block_count; }
  // A block to hand out; not when full().
  Block* Pop();
  void Push(Block& block);
};

// Of a block that is not external.
Slab* SlabOf(const Block& block);

class SlabList {
 public:
  Slab* front() const { return front_; }
  Slab* back() const { return back_; }
  size_t size() const { return size_; }
  void PushFront(Slab* slab);
  void PushBack(Slab* slab);
  void Remove(Slab* slab);

 private:
  Slab* front_ = nullptr;
  Slab* back_ = nullptr;
  size_t size_ = 0;
};

// Memory for blocks, as `options` want it: a multiple of 2 MiB is aligned to 2 MiB. Null and
// `error` = -errno when the kernel has none.
char* MapBlocks(Sys& sys, size_t size, const PoolOptions& options, int* error);
void UnmapBlocks(Sys& sys, char* base, size_t size);

// The metadata of a slab over `base`. Null and `error` = -errno when the kernel has no memory.
Slab* MakeSlab(Sys& sys, PoolCore* core, char* base, size_t size, uint8_t size_class, bool secret,
               int* error);
void DropSlab(Sys& sys, Slab* slab);

// Gives the pages of the free blocks back to the kernel. The blocks stay usable.
void ReleaseFreePages(Sys& sys, Slab& slab);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_SLAB_H_
