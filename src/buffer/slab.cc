#include "buffer/slab.h"

#include <linux/mman.h>
#include <sys/mman.h>

#include <algorithm>
#include <new>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr size_t kPageSize = 4096;
constexpr int kHugeSlab = MAP_HUGETLB | MAP_HUGE_2MB;
static_assert(kSlabSize == 2 << 20);

constexpr size_t RoundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

// The Block array follows the Slab, each Block on a cache line of its own.
constexpr size_t kBlocksOffset = RoundUp(sizeof(Slab), 64);

uint32_t BlocksPerSlab(uint8_t size_class) {
  if (size_class == kLargeClass) return 1;
  return static_cast<uint32_t>(kSlabSize / (kBlockSizes[size_class] + kGuardSize));
}

// A mapping aligned to 2 MiB, cut out of a larger one.
char* MapAligned(Sys& sys, size_t size, int* error) {
  const size_t reach = size + kSlabSize - kPageSize;
  auto* start = static_cast<char*>(sys.Map(reach, 0, error));
  if (start == nullptr) return nullptr;
  const size_t before =
      RoundUp(reinterpret_cast<uintptr_t>(start), kSlabSize) - reinterpret_cast<uintptr_t>(start);
  const size_t after = reach - before - size;
  // Failing to cut costs address space only.
  if (before != 0) sys.Unmap(start, before);
  if (after != 0) sys.Unmap(start + before + size, after);
  return start + before;
}

}  // namespace

Block* Slab::blocks() {
  return reinterpret_cast<Block*>(reinterpret_cast<char*>(this) + kBlocksOffset);
}

Slab* SlabOf(const Block& block) {
  const char* blocks = reinterpret_cast<const char*>(&block - block.index);
  return reinterpret_cast<Slab*>(const_cast<char*>(blocks) - kBlocksOffset);
}

Block* Slab::Pop() {
  ++out;
  if (free != nullptr) {
    Block* block = &BlockOfFree(free);
    free = free->next;
    block->in_core = false;
    return block;
  }
  const uint32_t index = carved++;
  auto* block = new (blocks() + index) Block;
  block->primary.block = block;
  block->base = base + index * stride();
  block->core = core;
  block->index = static_cast<uint16_t>(index);
  block->size_class = size_class;
  block->secret.store(secret, std::memory_order_relaxed);
  return block;
}

void Slab::Push(Block& block) {
  --out;
  block.in_core = true;
  block.primary.next = free;
  free = &block.primary;
}

void SlabList::PushFront(Slab* slab) {
  slab->previous = nullptr;
  slab->next = front_;
  (front_ != nullptr ? front_->previous : back_) = slab;
  front_ = slab;
  ++size_;
}

void SlabList::PushBack(Slab* slab) {
  slab->next = nullptr;
  slab->previous = back_;
  (back_ != nullptr ? back_->next : front_) = slab;
  back_ = slab;
  ++size_;
}

void SlabList::Remove(Slab* slab) {
  (slab->previous != nullptr ? slab->previous->next : front_) = slab->next;
  (slab->next != nullptr ? slab->next->previous : back_) = slab->previous;
  slab->previous = nullptr;
  slab->next = nullptr;
  --size_;
}

char* MapBlocks(Sys& sys, size_t size, const PoolOptions& options, int* error) {
  const bool whole = size % kSlabSize == 0;
  char* base = nullptr;
  if (options.huge_pages && whole) {
    // Fails when the administrator has set no huge pages aside: then ask for transparent ones.
    // Of slabs' size, whatever the machine's default is (mmap(2): MAP_HUGE_SHIFT).
    base = static_cast<char*>(sys.Map(size, kHugeSlab, error));
  }
  if (base == nullptr) {
    base = whole ? MapAligned(sys, size, error) : static_cast<char*>(sys.Map(size, 0, error));
    if (base == nullptr) return nullptr;
    // A kernel without transparent huge pages refuses; plain pages serve as well. Without the
    // second, one set to use them always would fill a whole slab at the first touch.
    sys.Advise(base, size, options.huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  }
  if (options.secret && sys.Advise(base, size, MADV_DONTDUMP) != 0) {
    // Without the promise the memory is of no use.
    *error = -ENOMEM;
    sys.Unmap(base, size);
    return nullptr;
  }
  PoisonMemory(base, size);
  return base;
}

void UnmapBlocks(Sys& sys, char* base, size_t size) {
  UnpoisonMemory(base, size);
  sys.Unmap(base, size);
}

Slab* MakeSlab(Sys& sys, PoolCore* core, char* base, size_t size, uint8_t size_class, bool secret,
               int* error) {
  const uint32_t count = BlocksPerSlab(size_class);
  const size_t metadata_size = RoundUp(kBlocksOffset + count * sizeof(Block), kPageSize);
  void* metadata = sys.Map(metadata_size, 0, error);
  if (metadata == nullptr) return nullptr;
  auto* slab = new (metadata) Slab;
  slab->core = core;
  slab->base = base;
  slab->size = size;
  slab->metadata_size = metadata_size;
  slab->block_count = count;
  slab->size_class = size_class;
  slab->secret = secret;
  slab->undumped.store(secret, std::memory_order_relaxed);
  return slab;
}

void DropSlab(Sys& sys, Slab* slab) { sys.Unmap(slab, slab->metadata_size); }

void ReleaseFreePages(Sys& sys, Slab& slab) {
  char* run = nullptr;  // start of the free run that reaches up to here
  const auto end_run = [&](char* end) {
    if (run == nullptr) return;
    auto first = RoundUp(reinterpret_cast<uintptr_t>(run), kPageSize);
    auto last = reinterpret_cast<uintptr_t>(end) / kPageSize * kPageSize;
    if (last > first) {
      sys.Advise(run + (first - reinterpret_cast<uintptr_t>(run)), last - first, MADV_DONTNEED);
    }
    run = nullptr;
  };
  for (uint32_t i = 0; i < slab.carved; ++i) {
    Block& block = slab.blocks()[i];
    if (!block.in_core) {
      end_run(block.base);
      continue;
    }
    if (run == nullptr) run = block.base;
    block.used_end = 0;  // its fill pattern is gone
  }
  // What is not carved may have been used when the slab had another class.
  if (run == nullptr) run = slab.base + slab.carved * slab.stride();
  end_run(slab.base + slab.size);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
