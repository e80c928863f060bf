#include "buffer/slab.h"

#include <sys/mman.h>

#include <cstdint>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "buffer/memory_sys.h"
#include "buffer/pool_debug.h"

namespace {

using penstock::PoolOptions;
using penstock::internal::Block;
using penstock::internal::BlockSize;
using penstock::internal::ClassOf;
using penstock::internal::kBlockSizes;
using penstock::internal::kGuardSize;
using penstock::internal::kLargeClass;
using penstock::internal::kSlabSize;
using penstock::internal::MemorySys;
using penstock::internal::Slab;
using penstock::internal::SlabList;
using penstock::internal::SlabOf;

// A slab of the class, mapped for the length of a test.
class MappedSlab {
 public:
  MappedSlab(MemorySys& sys, uint8_t size_class, size_t size = kSlabSize) : sys_(sys) {
    int error = 0;
    base_ = penstock::internal::MapBlocks(sys, size, PoolOptions{}, &error);
    slab_ = penstock::internal::MakeSlab(sys, nullptr, base_, size, size_class, false, &error);
  }
  ~MappedSlab() {
    penstock::internal::UnmapBlocks(sys_, base_, slab_->size);
    penstock::internal::DropSlab(sys_, slab_);
  }
  MappedSlab(const MappedSlab&) = delete;
  MappedSlab& operator=(const MappedSlab&) = delete;
  Slab* operator->() { return slab_; }
  Slab& operator*() { return *slab_; }

 private:
  MemorySys& sys_;
  char* base_;
  Slab* slab_;
};

TEST(Slab, IsCutIntoBlocksOfItsClass) {
  MemorySys sys;
  for (size_t i = 0; i < kBlockSizes.size(); ++i) {
    MappedSlab slab(sys, static_cast<uint8_t>(i));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(slab->base) % kSlabSize, 0u);
    EXPECT_EQ(slab->block_count, kSlabSize / (kBlockSizes[i] + kGuardSize));
    std::set<char*> bases;
    while (!slab->full()) {
      Block* block = slab->Pop();
      EXPECT_EQ(SlabOf(*block), &*slab);
      EXPECT_EQ(BlockSize(*block), kBlockSizes[i]);
      EXPECT_GE(block->base, slab->base);
      EXPECT_LE(block->base + kBlockSizes[i] + kGuardSize, slab->base + kSlabSize);
      EXPECT_TRUE(bases.insert(block->base).second);
    }
    EXPECT_EQ(bases.size(), slab->block_count);
    char* before = nullptr;
    for (char* base : bases) {
      if (before != nullptr) {
        EXPECT_GE(base - before, kBlockSizes[i]);
      }
      before = base;
    }
  }
  EXPECT_EQ(sys.mapped, 0);
}

TEST(Slab, HandsOutTheBlockThatCameBackLast) {
  MemorySys sys;
  MappedSlab slab(sys, ClassOf(4096));
  Block* first = slab->Pop();
  Block* second = slab->Pop();
  EXPECT_EQ(slab->out, 2u);
  slab->Push(*first);
  slab->Push(*second);
  EXPECT_EQ(slab->out, 0u);
  EXPECT_TRUE(first->in_core);
  EXPECT_EQ(slab->Pop(), second);
  EXPECT_FALSE(second->in_core);
  EXPECT_EQ(slab->Pop(), first);
  EXPECT_EQ(slab->carved, 2u);
}

TEST(Slab, ALargeBlockFillsItsMapping) {
  MemorySys sys;
  const size_t size = (3 << 20) + 4096;
  MappedSlab slab(sys, kLargeClass, size);
  Block* block = slab->Pop();
  EXPECT_TRUE(slab->full());
  EXPECT_EQ(block->base, slab->base);
  EXPECT_EQ(slab->size, size);
}

TEST(Slab, MetadataOfAnUntouchedSlabCostsOnePage) {
  MemorySys sys;
  MappedSlab slab(sys, ClassOf(256));
  std::vector<unsigned char> pages(slab->metadata_size / 4096);
  ASSERT_EQ(mincore(&*slab, slab->metadata_size, pages.data()), 0);
  size_t resident = 0;
  for (unsigned char page : pages) resident += page & 1;
  EXPECT_EQ(resident, 1u);
}

// Every madvise(2) to give pages back stays inside memory that no block in use touches.
TEST(Slab, FreePagesAreThoseOfFreeBlocks) {
  MemorySys sys;
  for (const size_t size : {256u, 4096u, 16896u, 65536u}) {
    MappedSlab slab(sys, ClassOf(size));
    std::vector<Block*> blocks;
    for (uint32_t i = 0; i < slab->block_count * 3 / 4; ++i) blocks.push_back(slab->Pop());
    std::vector<Block*> used;
    for (size_t i = 0; i < blocks.size(); ++i) {
      // Runs of free blocks of many lengths, one at either end.
      if (i % 7 == 3 || (i > 40 && i < 50)) {
        used.push_back(blocks[i]);
      } else {
        slab->Push(*blocks[i]);
      }
    }
    sys.advices.clear();
    penstock::internal::ReleaseFreePages(sys, *slab);
    size_t released = 0;
    for (const MemorySys::Advice& advice : sys.advices) {
      ASSERT_EQ(advice.advice, MADV_DONTNEED);
      auto* begin = static_cast<char*>(advice.base);
      char* end = begin + advice.size;
      released += advice.size;
      EXPECT_GE(begin, slab->base);
      EXPECT_LE(end, slab->base + kSlabSize);
      for (const Block* block : used) {
        EXPECT_TRUE(end <= block->base || begin >= block->base + size + kGuardSize);
      }
    }
    EXPECT_GE(released, kSlabSize / 4 - size - 4096) << size;
  }
}

TEST(SlabList, KeepsOrder) {
  std::vector<Slab> slabs(4);
  SlabList list;
  EXPECT_EQ(list.front(), nullptr);
  list.PushBack(&slabs[1]);
  list.PushFront(&slabs[0]);
  list.PushBack(&slabs[2]);
  list.PushBack(&slabs[3]);
  EXPECT_EQ(list.size(), 4u);
  list.Remove(&slabs[1]);
  EXPECT_EQ(list.front()->next, &slabs[2]);
  EXPECT_EQ(slabs[2].previous, &slabs[0]);
  list.Remove(&slabs[0]);
  list.Remove(&slabs[3]);
  EXPECT_EQ(list.front(), &slabs[2]);
  EXPECT_EQ(list.back(), &slabs[2]);
  list.Remove(&slabs[2]);
  EXPECT_EQ(list.front(), nullptr);
  EXPECT_EQ(list.back(), nullptr);
  EXPECT_EQ(list.size(), 0u);
}

}  // namespace
