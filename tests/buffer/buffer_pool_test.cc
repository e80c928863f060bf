#include <linux/mman.h>
#include <penstock/buffer.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "buffer/memory_sys.h"
#include "buffer/pool_core.h"
#include "buffer/pool_debug.h"
#include "buffer/size_class.h"
#include "testing/vm_flags.h"

namespace {

using penstock::Buffer;
using penstock::BufferPool;
using penstock::BufferTag;
using penstock::PoolOptions;
using penstock::PoolStats;
using penstock::SlabObserver;
using penstock::internal::ClassOf;
using penstock::internal::kLargeClass;
using penstock::internal::kPoolChecks;
using penstock::internal::kSlabSize;
using penstock::internal::MemorySys;
using penstock::internal::PoolCore;
using penstock::internal::VmFlags;

// Writes to all of the block.
void Fill(Buffer& buffer, char byte) {
  buffer.Extend(buffer.tailroom());
  std::memset(buffer.mutable_data(), byte, buffer.size());
}

// Bytes of [base, base + size) that are in memory.
size_t ResidentBytes(void* base, size_t size) {
  std::vector<unsigned char> pages(size / 4096);
  if (mincore(base, size, pages.data()) != 0) return 0;
  return static_cast<size_t>(std::count_if(pages.begin(), pages.end(),
                                           [](unsigned char page) { return (page & 1) != 0; })) *
         4096;
}

class Recorder : public SlabObserver {
 public:
  void OnSlabBorn(void* base, size_t size) override {
    EXPECT_TRUE(slabs.emplace(base, size).second);
    ++born;
  }
  void OnSlabDied(void* base, size_t size) override {
    const auto slab = slabs.find(base);
    ASSERT_NE(slab, slabs.end());
    EXPECT_EQ(slab->second, size);
    slabs.erase(slab);
    ++died;
  }
  bool Covers(const Buffer& buffer) const {
    return std::any_of(slabs.begin(), slabs.end(), [&](const auto& slab) {
      const auto* base = static_cast<const char*>(slab.first);
      return buffer.data() >= base && buffer.data() + buffer.block_size() <= base + slab.second;
    });
  }
  size_t resident() const {
    size_t bytes = 0;
    for (const auto& [base, size] : slabs) bytes += ResidentBytes(base, size);
    return bytes;
  }

  std::map<void*, size_t> slabs;
  int born = 0;
  int died = 0;
};

TEST(BufferPool, AllocateGivesAnEmptyWindowWithRoom) {
  BufferPool pool;
  for (size_t size : {0u, 1u, 256u, 257u, 4096u, 16385u, 65537u, 1u << 20}) {
    absl::StatusOr<Buffer> buffer = pool.Allocate(size);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_TRUE(*buffer);
    EXPECT_TRUE(buffer->empty());
    EXPECT_GE(buffer->tailroom(), size);
    EXPECT_EQ(buffer->block_size(), buffer->tailroom());
    Fill(*buffer, 'x');
  }
  EXPECT_EQ(pool.Stats().live, 0u);
}

TEST(BufferPool, LargeBuffersGetMappingsOfTheirOwn) {
  BufferPool pool;
  const size_t size = (1 << 20) + 1;
  Buffer buffer = pool.TryAllocate(size, BufferTag::kReceive);
  ASSERT_TRUE(buffer);
  EXPECT_GE(buffer.tailroom(), size);
  EXPECT_LT(buffer.tailroom(), size + 4096);
  Fill(buffer, 'x');
  Buffer front = buffer.SplitFront(4096);
  PoolStats stats = pool.Stats();
  EXPECT_EQ(stats.live, buffer.block_size());
  EXPECT_EQ(stats.classes[kLargeClass].live, buffer.block_size());
  EXPECT_EQ(stats.live_by_tag[static_cast<size_t>(BufferTag::kReceive)], buffer.block_size());
  EXPECT_EQ(stats.mapped, buffer.block_size());
  buffer.Reset();
  EXPECT_EQ(front.view(), std::string(4096, 'x'));
  front.Reset();
  stats = pool.Stats();
  EXPECT_EQ(stats.live, 0u);
  EXPECT_EQ(stats.mapped, 0u);
  EXPECT_GT(stats.classes[kLargeClass].high_water, size);
}

TEST(BufferPool, CopyHoldsTheBytes) {
  BufferPool pool;
  EXPECT_EQ(pool.Copy("some bytes")->view(), "some bytes");
  const Buffer nothing = *pool.Copy("");
  EXPECT_TRUE(nothing);
  EXPECT_TRUE(nothing.empty());
  const std::string large(3 << 20, 'y');
  EXPECT_EQ(pool.Copy(large)->view(), large);
}

TEST(BufferPool, RefusesAtTheLimitAndCountsIt) {
  BufferPool pool({.bytes_max = 1 << 20});
  std::vector<Buffer> held;
  for (int i = 0; i < 256; ++i) {
    held.push_back(pool.TryAllocate(4096));
    ASSERT_TRUE(held.back()) << i;
  }
  EXPECT_FALSE(pool.TryAllocate(1));
  EXPECT_FALSE(pool.TryAllocate(4096));
  const absl::Status refused = pool.Allocate(20000).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(),
            "allocate 20000 bytes: the pool's limit of 1048576 bytes is reached");
  EXPECT_EQ(pool.Copy("x").status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(pool.TryAllocate(2 << 20));
  EXPECT_FALSE(pool.TryAllocate(~size_t{0}));
  EXPECT_FALSE(pool.TryAllocate(4096, BufferTag::kReceive));
  PoolStats stats = pool.Stats();
  EXPECT_EQ(stats.refused, 7u);
  EXPECT_EQ(stats.refused_by_tag[static_cast<size_t>(BufferTag::kApplication)], 6u);
  EXPECT_EQ(stats.refused_by_tag[static_cast<size_t>(BufferTag::kReceive)], 1u);
  EXPECT_EQ(stats.classes[ClassOf(1)].refused, 2u);
  EXPECT_EQ(stats.classes[ClassOf(4096)].refused, 2u);
  EXPECT_EQ(stats.classes[kLargeClass].refused, 2u);
  EXPECT_EQ(stats.live, 1u << 20);
  EXPECT_EQ(stats.high_water, 1u << 20);
  held.pop_back();
  EXPECT_TRUE(pool.TryAllocate(4096));
  EXPECT_TRUE(pool.TryAllocate(1));
}

TEST(BufferPool, ALimitOfZeroRefusesEverything) {
  BufferPool pool({.bytes_max = 0});
  EXPECT_FALSE(pool.TryAllocate(0));
  EXPECT_FALSE(pool.TryAllocate(1 << 21));
  EXPECT_EQ(pool.Stats().mapped, 0u);
}

TEST(BufferPool, NamesTheKernelsRefusal) {
  MemorySys sys;
  sys.fail_map = 1;
  sys.fail_map_on = true;
  const auto pool = PoolCore::MakePool({}, sys);
  const absl::Status refused = pool->Allocate(100).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refused.message(), "allocate 100 bytes: mmap: errno 12 (Cannot allocate memory)");
  sys.fail_map_on = false;
  EXPECT_TRUE(pool->TryAllocate(100));
}

TEST(BufferPool, CountsEachByteByClassAndTag) {
  BufferPool pool;
  std::mt19937 random(7);
  std::vector<Buffer> held;
  std::array<uint64_t, penstock::kBufferTagCount> by_tag{};
  std::array<uint64_t, penstock::internal::kClassCount> by_class{};
  for (int i = 0; i < 500; ++i) {
    const size_t size = random() % (random() % 2 == 0 ? 3000 : 200'000);
    const auto tag = static_cast<BufferTag>(random() % penstock::kBufferTagCount);
    held.push_back(pool.TryAllocate(size, tag));
    by_tag[static_cast<size_t>(tag)] += held.back().block_size();
    by_class[ClassOf(size)] += held.back().block_size();
  }
  const PoolStats stats = pool.Stats();
  EXPECT_EQ(stats.class_count, by_class.size());
  uint64_t sum = 0;
  for (size_t i = 0; i < by_class.size(); ++i) {
    EXPECT_EQ(stats.classes[i].live, by_class[i]) << i;
    EXPECT_EQ(stats.classes[i].high_water, by_class[i]) << i;
    EXPECT_GE(stats.classes[i].mapped, by_class[i]) << i;
    sum += by_class[i];
  }
  EXPECT_EQ(stats.live_by_tag, by_tag);
  EXPECT_EQ(stats.ring, by_tag[static_cast<size_t>(BufferTag::kRing)]);
  EXPECT_EQ(stats.live + stats.ring, sum);
  EXPECT_EQ(stats.high_water, sum);
  EXPECT_EQ(stats.cached, 0u);
  held.clear();
  EXPECT_EQ(pool.Stats().live + pool.Stats().ring, 0u);
  EXPECT_EQ(pool.Stats().high_water, sum);
  EXPECT_EQ(pool.Stats().high_water_by_tag, by_tag);
}

TEST(BufferPool, LooksAtTheHighWaterOfATagNowAndThen) {
  constexpr uint64_t kBlocks = 1000;
  constexpr uint64_t kMissed = 63;
  const auto high = [](const BufferPool& pool, BufferTag tag) {
    return pool.Stats().high_water_by_tag[static_cast<size_t>(tag)];
  };
  BufferPool pool;
  std::vector<Buffer> held;
  for (uint64_t i = 0; i < kBlocks; ++i) held.push_back(pool.TryAllocate(4096, BufferTag::kSeal));
  held.clear();
  EXPECT_GE(high(pool, BufferTag::kSeal), (kBlocks - kMissed) * 4096);
  EXPECT_LE(high(pool, BufferTag::kSeal), kBlocks * 4096);
  EXPECT_EQ(high(pool, BufferTag::kFrame), 0u);
  const size_t large = pool.TryAllocate(3 << 20, BufferTag::kFrame).block_size();
  EXPECT_EQ(high(pool, BufferTag::kFrame), large);
}

TEST(BufferPool, KeepsAsManyEmptySlabsAsAsked) {
  for (const size_t kept : {0u, 1u, 2u}) {
    BufferPool pool({.empty_slabs_kept = kept});
    std::vector<Buffer> held;
    for (size_t size : {1000u, 4000u, 16000u, 64000u}) held.push_back(pool.TryAllocate(size));
    EXPECT_EQ(pool.Stats().mapped, 4 * kSlabSize);
    held.clear();
    EXPECT_EQ(pool.Stats().mapped, kept * kSlabSize);
    pool.Trim();
    EXPECT_EQ(pool.Stats().mapped, 0u);
    EXPECT_TRUE(pool.TryAllocate(1000));
  }
}

// Takes and returns as many buffers as fill that many slabs.
void Burst(BufferPool& pool, size_t slabs) {
  std::vector<Buffer> held;
  while (pool.Stats().live < (slabs - 1) * kSlabSize + 65536) {
    held.push_back(pool.TryAllocate(65536));
  }
}

TEST(BufferPool, BurstsThatRecurMapNothing) {
  MemorySys sys;
  const auto pool = PoolCore::MakePool({}, sys);
  Burst(*pool, 8);
  EXPECT_EQ(pool->Stats().mapped, kSlabSize);
  Burst(*pool, 8);
  const int maps = sys.maps;
  for (int i = 0; i < 50; ++i) Burst(*pool, 8);
  EXPECT_EQ(sys.maps, maps);
  // Smaller ones let the rest go.
  for (int i = 0; i < 500; ++i) Burst(*pool, 2);
  EXPECT_LE(pool->Stats().mapped, 3 * kSlabSize);
  Burst(*pool, 8);
  pool->Trim();
  EXPECT_EQ(pool->Stats().mapped, 0u);
  Burst(*pool, 8);
  EXPECT_EQ(pool->Stats().mapped, kSlabSize);
}

TEST(BufferPool, AnEmptySlabServesAnyClass) {
  MemorySys sys;
  const auto pool = PoolCore::MakePool({}, sys);
  Recorder recorder;
  pool->AddSlabObserver(&recorder);
  for (size_t size : {256u, 65536u, 4096u, 4096u, 1u << 20, 256u}) {
    Buffer buffer = pool->TryAllocate(size);
    Fill(buffer, 'x');
    EXPECT_TRUE(recorder.Covers(buffer));
    EXPECT_EQ(pool->Stats().mapped, kSlabSize);
    EXPECT_EQ(pool->Stats().classes[ClassOf(size)].mapped, kSlabSize);
  }
  EXPECT_EQ(recorder.born, 1);
  pool->RemoveSlabObserver(&recorder);
}

TEST(BufferPool, BlocksOfASlabDoNotOverlap) {
  BufferPool pool;
  std::mt19937 random(3);
  std::vector<std::pair<Buffer, char>> held;
  for (int i = 0; i < 3000; ++i) {
    if (held.size() > 60 || (!held.empty() && random() % 3 == 0)) {
      const size_t at = random() % held.size();
      const auto& [buffer, byte] = held[at];
      ASSERT_EQ(buffer.view().find_first_not_of(byte), std::string_view::npos);
      held.erase(held.begin() + static_cast<ptrdiff_t>(at));
      continue;
    }
    Buffer buffer = pool.TryAllocate(random() % 70000);
    const char byte = static_cast<char>('a' + i % 26);
    Fill(buffer, byte);
    held.emplace_back(std::move(buffer), byte);
  }
}

TEST(BufferPool, TrimGivesFreePagesOfUsedSlabsBack) {
  BufferPool pool;
  Recorder recorder;
  pool.AddSlabObserver(&recorder);
  std::vector<Buffer> held;
  for (int i = 0; i < 16; ++i) {
    held.push_back(pool.TryAllocate(65536));
    Fill(held.back(), 'x');
  }
  ASSERT_EQ(recorder.slabs.size(), 1u);
  EXPECT_GE(recorder.resident(), 16u * 65536);
  held.erase(held.begin(), held.begin() + 7);
  held.erase(held.begin() + 1, held.end());
  pool.Trim();
  EXPECT_LE(recorder.resident(), 65536u + 2 * 4096);
  EXPECT_EQ(held[0].view(), std::string(65536, 'x'));
  // The trimmed blocks are as good as new.
  for (int i = 0; i < 15; ++i) {
    held.push_back(pool.TryAllocate(65536));
    Fill(held.back(), 'y');
  }
  EXPECT_EQ(recorder.slabs.size(), 1u);
  held.clear();
  pool.Trim();
  EXPECT_EQ(recorder.slabs.size(), 0u);
  EXPECT_EQ(recorder.died, 1);
  pool.RemoveSlabObserver(&recorder);
}

TEST(BufferPool, MemoryGrowsOnlyAsBlocksAreTouched) {
  BufferPool pool;
  Recorder recorder;
  pool.AddSlabObserver(&recorder);
  std::vector<Buffer> held;
  for (int i = 0; i < 16; ++i) held.push_back(pool.TryAllocate(65536));
  // Debug builds write a guard behind each block.
  EXPECT_LE(recorder.resident(), kPoolChecks ? 16u * 2 * 4096 : 0u);
  pool.RemoveSlabObserver(&recorder);
}

TEST(BufferPool, ObserversHearOfEverySlabUntilRemoved) {
  Recorder early;
  Recorder late;
  {
    BufferPool pool;
    pool.AddSlabObserver(&early);
    Buffer small = pool.TryAllocate(100);
    EXPECT_TRUE(early.Covers(small));
    EXPECT_EQ(early.slabs.begin()->second, kSlabSize);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(early.slabs.begin()->first) % kSlabSize, 0u);
    Buffer large = pool.TryAllocate(3 << 20);
    EXPECT_TRUE(early.Covers(large));
    Buffer full = pool.TryAllocate(1 << 20);
    pool.AddSlabObserver(&late);
    EXPECT_EQ(late.slabs, early.slabs);
    EXPECT_EQ(late.slabs.size(), 3u);
    large.Reset();
    EXPECT_EQ(late.died, 1);
    pool.RemoveSlabObserver(&late);
    const Buffer more = pool.TryAllocate(16000);
    EXPECT_EQ(late.born, 3);
    EXPECT_EQ(early.born, 4);
  }
  EXPECT_TRUE(early.slabs.empty());  // they die with the pool
  EXPECT_EQ(late.died, 1);
}

TEST(BufferPool, SecretPoolsStayOutOfCoreDumps) {
  BufferPool secret({.secret = true});
  BufferPool plain;
  for (size_t size : {100u, 3u << 20}) {
    const Buffer hidden = secret.TryAllocate(size);
    const Buffer shown = plain.TryAllocate(size);
    ASSERT_NE(VmFlags(hidden.data()), "");
    EXPECT_NE(VmFlags(hidden.data()).find(" dd "), std::string::npos);
    EXPECT_EQ(VmFlags(shown.data()).find(" dd "), std::string::npos);
  }
}

TEST(BufferPool, AMarkHidesTheSlabForAsLongAsItIsMapped) {
  MemorySys sys;
  const auto pool = PoolCore::MakePool({}, sys);
  const auto hidden = [](const Buffer& buffer) {
    return VmFlags(buffer.data()).find(" dd ") != std::string::npos;
  };
  const auto hidings = [&sys] {
    return std::ranges::count_if(sys.advices,
                                 [](const auto& each) { return each.advice == MADV_DONTDUMP; });
  };
  Buffer marked = pool->TryAllocate(4096);
  const Buffer neighbour = pool->TryAllocate(4096);
  const Buffer elsewhere = pool->TryAllocate(300);
  ASSERT_NE(VmFlags(marked.data()), "");
  EXPECT_FALSE(hidden(marked));
  EXPECT_TRUE(marked.MarkSecret());
  EXPECT_TRUE(hidden(marked));
  EXPECT_TRUE(hidden(neighbour)) << "of the same slab";
  EXPECT_FALSE(hidden(elsewhere));
  EXPECT_TRUE(marked.MarkSecret());
  EXPECT_TRUE(Buffer(pool->TryAllocate(4096)).MarkSecret());
  EXPECT_EQ(hidings(), 1) << "a slab is hidden once";
  Buffer large = pool->TryAllocate(3 << 20);
  EXPECT_FALSE(hidden(large));
  EXPECT_TRUE(large.MarkSecret());
  EXPECT_TRUE(hidden(large));
}

TEST(BufferPool, ASlabStaysHiddenWhenAnotherClassTakesIt) {
  MemorySys sys;
  const auto pool = PoolCore::MakePool({}, sys);
  Buffer first = pool->TryAllocate(4096);
  const auto slab = reinterpret_cast<uintptr_t>(first.data()) / kSlabSize;
  EXPECT_TRUE(first.MarkSecret());
  first.Reset();
  Buffer second = pool->TryAllocate(300);
  ASSERT_EQ(reinterpret_cast<uintptr_t>(second.data()) / kSlabSize, slab);
  EXPECT_NE(VmFlags(second.data()).find(" dd "), std::string::npos);
  sys.refused_advice = MADV_DONTDUMP;
  EXPECT_TRUE(second.MarkSecret()) << "nothing is left to ask the kernel for";
}

TEST(BufferPool, AMarkSaysWhenTheKernelDoesNotHideTheSlab) {
  MemorySys sys;
  sys.refused_advice = MADV_DONTDUMP;
  const auto pool = PoolCore::MakePool({}, sys);
  Buffer buffer = pool->TryAllocate(4096);
  buffer.Extend(4096);
  std::memset(buffer.mutable_data(), 's', 4096);
  EXPECT_FALSE(buffer.MarkSecret());
  sys.refused_advice = -1;
  EXPECT_TRUE(buffer.MarkSecret()) << "it is asked again";
  buffer.Reset();
  Buffer again = pool->TryAllocate(4096);
  again.Extend(4096);
  EXPECT_EQ(again.view(), std::string(4096, '\0'));
}

TEST(BufferPool, SecretPoolsWipeEveryBlock) {
  BufferPool pool({.secret = true});
  for (int round = 0; round < 3; ++round) {
    Buffer buffer = pool.TryAllocate(4096);
    buffer.Extend(4096);
    EXPECT_EQ(buffer.view(), std::string(4096, '\0'));
    std::memset(buffer.mutable_data(), 's', 4096);
  }
}

TEST(BufferPool, SecretPoolsWipeWhatTheKernelMayHaveWritten) {
  BufferPool pool({.secret = true});
  Buffer lent = pool.TryAllocate(4096, BufferTag::kRing);
  std::memset(lent.mutable_data(), 's', 4096);  // behind the pool's back: no window covers it
  lent.Reset();
  Buffer again = pool.TryAllocate(4096);
  again.Extend(4096);
  EXPECT_EQ(again.view(), std::string(4096, '\0'));
}

TEST(BufferPool, AKernelThatCannotHideASlabIsRefused) {
  MemorySys sys;
  sys.refused_advice = MADV_DONTDUMP;
  {
    const auto pool = PoolCore::MakePool({.secret = true}, sys);
    EXPECT_FALSE(pool->TryAllocate(100));
    EXPECT_FALSE(pool->TryAllocate(3 << 20));
  }
  EXPECT_EQ(sys.mapped, 0);
}

TEST(BufferPool, AsksForHugePagesThenForTransparentOnes) {
  MemorySys sys;
  sys.refused_flags = MAP_HUGETLB;
  const auto pool = PoolCore::MakePool({.huge_pages = true}, sys);
  Buffer buffer = pool->TryAllocate(4096);
  ASSERT_TRUE(buffer);
  Fill(buffer, 'x');
  ASSERT_GE(sys.map_flags.size(), 2u);
  EXPECT_EQ(sys.map_flags[0], MAP_HUGETLB | MAP_HUGE_2MB);
  EXPECT_EQ(sys.map_flags[1], 0);
  ASSERT_EQ(sys.advices.size(), 1u);
  EXPECT_EQ(sys.advices[0].advice, MADV_HUGEPAGE);
  EXPECT_EQ(sys.advices[0].size, kSlabSize);
}

TEST(BufferPool, PlainPagesServeWhereNoHugeOnesAre) {
  MemorySys sys;
  sys.refused_flags = MAP_HUGETLB;
  sys.refused_advice = MADV_HUGEPAGE;
  const auto pool = PoolCore::MakePool({.huge_pages = true}, sys);
  EXPECT_TRUE(pool->TryAllocate(4096));
}

TEST(BufferPool, AsksForPlainPagesWhenOff) {
  MemorySys sys;
  const auto pool = PoolCore::MakePool({}, sys);
  EXPECT_TRUE(pool->TryAllocate(4096));
  EXPECT_EQ(std::count(sys.map_flags.begin(), sys.map_flags.end(), MAP_HUGETLB | MAP_HUGE_2MB), 0);
  ASSERT_EQ(sys.advices.size(), 1u);
  EXPECT_EQ(sys.advices[0].advice, MADV_NOHUGEPAGE);
}

// Fails the nth mapping, once or from then on, until the scenario needs fewer.
TEST(BufferPool, SurvivesEachMappingThatFails) {
  for (const bool for_ever : {false, true}) {
    int failed = 1;
    for (int nth = 1; failed > 0; ++nth) {
      SCOPED_TRACE(::testing::Message() << "mapping " << nth << (for_ever ? " and later" : ""));
      MemorySys sys;
      sys.fail_map = nth;
      sys.fail_map_on = for_ever;
      {
        const auto pool = PoolCore::MakePool({.huge_pages = nth % 2 == 0}, sys);
        std::vector<Buffer> held;
        uint64_t refused = 0;
        for (size_t size : {256u, 4096u, 1u << 20, 65536u, 5u << 20, 1u << 20, 1u << 20}) {
          held.push_back(pool->TryAllocate(size));
          if (!held.back()) {
            ++refused;
          } else {
            Fill(held.back(), 'x');
          }
        }
        held.erase(held.begin(), held.begin() + 3);
        held.push_back(pool->TryAllocate(16000));
        if (!held.back()) ++refused;
        uint64_t live = 0;
        for (const Buffer& buffer : held) live += buffer.block_size();
        EXPECT_EQ(pool->Stats().live, live);
        EXPECT_EQ(pool->Stats().refused, refused);
        held.clear();
        EXPECT_EQ(pool->Stats().live, 0u);
      }
      failed = sys.failed;
      EXPECT_EQ(sys.mapped, 0);
    }
  }
}

}  // namespace
