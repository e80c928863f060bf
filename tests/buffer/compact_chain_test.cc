#include "buffer/compact_chain.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/pattern.h"
#include "testing/sanitized.h"

namespace penstock::internal {
namespace {

using testing::kSanitized;

constexpr BufferTag kTag = BufferTag::kReceive;

class CompactChainTest : public ::testing::Test {
 protected:
  // `bytes` at `offset` of a block of at least `block` bytes, as a receive would leave them.
  Buffer Piece(std::string_view bytes, size_t block = 256, size_t offset = 0) {
    Buffer piece = pool_.TryAllocate(std::max(block, offset + bytes.size()), kTag);
    EXPECT_TRUE(piece);
    piece.Extend(offset + bytes.size());
    piece.TrimFront(offset);
    bytes.copy(piece.mutable_data(), bytes.size());
    return piece;
  }

  static std::string TextOf(const CompactChain& chain) {
    std::string text(chain.size(), '\0');
    EXPECT_EQ(chain.CopyTo(text), text.size());
    return text;
  }

  size_t Rest(CompactChain& chain) {
    const size_t copied = chain.Rest(pool_, kTag);
    EXPECT_LE(chain.pinned_bytes(), CompactChain::PinnedMax(chain.size()));
    if (chain.size() <= CompactChain::kInlineMax) {
      EXPECT_EQ(chain.pinned_bytes(), 0u);
    }
    return copied;
  }

  BufferPool pool_;
};

TEST_F(CompactChainTest, SixteenBytesRestWithoutABlock) {
  CompactChain chain;
  std::string text;
  for (int i = 0; i < 16; ++i) {
    text += static_cast<char>('a' + i);
    chain.Append(Piece(text.substr(i), 64 * 1024, 700));
    EXPECT_GT(chain.pinned_bytes(), 0u);
    EXPECT_EQ(Rest(chain), 1u);
    EXPECT_EQ(pool_.Stats().live, 0u);
    EXPECT_EQ(TextOf(chain), text);
  }
  chain.Append(Piece("q", 64 * 1024));
  EXPECT_EQ(Rest(chain), 17u);
  EXPECT_EQ(chain.pinned_bytes(), 256u);
  EXPECT_EQ(TextOf(chain), text + "q");
}

TEST_F(CompactChainTest, MuchByteByByteIsCopiedOnce) {
  constexpr size_t kSize = kSanitized ? 1 << 17 : 1 << 20;
  const std::string text = PatternBytes(1, 0, kSize);
  CompactChain chain;
  uint64_t copied = 0;
  for (size_t i = 0; i < kSize; ++i) {
    chain.Append(Piece({&text[i], 1}));
    if (i > 64 * 1024 && i % 61 != 0) {  // looking at each step of all would take seconds
      copied += chain.Rest(pool_, kTag);
      continue;
    }
    copied += Rest(chain);
    ASSERT_LE(pool_.Stats().live, CompactChain::PinnedMax(chain.size()));
    ASSERT_FALSE(HasFailure()) << "after " << i + 1 << " bytes";
  }
  EXPECT_LE(copied, kSize + CompactChain::kInlineMax);
  EXPECT_EQ(TextOf(chain), text);
  // A reader of the whole walks over blocks of 64 KiB and the few that led there.
  Rest(chain);
  EXPECT_LE(chain.SplitFront(kSize, pool_, kTag).buffer_count(), kSize / 256);
}

TEST_F(CompactChainTest, WellFilledBlocksStayAsTheyCame) {
  const std::string text = PatternBytes(2, 0, 16 * 1024);
  CompactChain chain;
  std::vector<const char*> places;
  for (size_t size : {16384u, 12288u, 300u}) {
    Buffer piece = Piece(text.substr(0, size), size);
    places.push_back(piece.data());
    chain.Append(std::move(piece));
    EXPECT_EQ(Rest(chain), 0u);
  }
  BufferChain all = chain.SplitFront(chain.size(), pool_, kTag);
  for (const char* place : places) EXPECT_EQ(all.PopFront().data(), place);
}

TEST_F(CompactChainTest, TheEndOfALargeBlockMovesAndGivesItBack) {
  CompactChain chain;
  Buffer block = Piece(PatternBytes(3, 0, 65536), 65536);
  const Buffer before = block.SplitFront(65536 - 1000);
  chain.Append(std::move(block));
  EXPECT_EQ(Rest(chain), 1000u);
  EXPECT_EQ(chain.pinned_bytes(), 1024u);
  EXPECT_EQ(TextOf(chain), PatternBytes(3, 65536 - 1000, 1000));
  // What comes next goes where there is room.
  chain.Append(Piece("and more", 4096));
  EXPECT_EQ(Rest(chain), 8u);
  EXPECT_EQ(chain.pinned_bytes(), 1024u);
}

TEST_F(CompactChainTest, NeighboursOnOneBlockCountOnce) {
  CompactChain chain;
  Buffer block = Piece(PatternBytes(5, 0, 4096), 4096);
  chain.Append(block.SplitFront(1000));
  chain.Append(std::move(block));
  chain.Append(Piece("other"));
  EXPECT_EQ(chain.pinned_bytes(), 4096u + 256);
  chain.TrimFront(1500);
  EXPECT_EQ(chain.pinned_bytes(), 4096u + 256);
  chain.SplitFront(4096 - 1500, pool_, kTag);
  EXPECT_EQ(chain.pinned_bytes(), 256u);
  chain.TrimFront(5);
  EXPECT_EQ(chain.pinned_bytes(), 0u);
}

TEST_F(CompactChainTest, SharedAndExternalMemoryIsLeftAlone) {
  std::string outside = PatternBytes(4, 0, 2000);
  const std::string copy = outside;
  bool released = false;
  CompactChain chain;
  const Buffer shared = Piece(copy.substr(0, 300), 512);
  chain.Append(shared.Share());
  chain.Append(Buffer::FromExternal(outside.data(), outside.size(), [&] { released = true; }));
  for (char c : copy.substr(0, 900)) {
    chain.Append(Piece({&c, 1}));
    Rest(chain);
  }
  EXPECT_EQ(TextOf(chain), copy.substr(0, 300) + copy + copy.substr(0, 900));
  EXPECT_EQ(shared.view(), copy.substr(0, 300));
  EXPECT_EQ(outside, copy);
  chain.Clear();
  EXPECT_TRUE(released);
  EXPECT_TRUE(chain.empty());
}

// The block a piece came in makes the room that its bytes move to.
TEST_F(CompactChainTest, WithoutRoomAPieceGoesByWayOfTheHeap) {
  PoolOptions options;
  options.bytes_max = 64 * 1024;
  BufferPool pool(options);
  Buffer all = pool.TryAllocate(64 * 1024);
  ASSERT_TRUE(all);
  all.Extend(100);
  std::memset(all.mutable_data(), 'x', 100);
  CompactChain chain;
  chain.Append(std::move(all));
  EXPECT_EQ(chain.Rest(pool, kTag), 100u);
  EXPECT_EQ(TextOf(chain), std::string(100, 'x'));
  EXPECT_LE(chain.pinned_bytes(), CompactChain::PinnedMax(100));
  EXPECT_EQ(pool.Stats().live, chain.pinned_bytes());
  // A few bytes need no room.
  chain.TrimFront(90);
  EXPECT_EQ(chain.Rest(pool, kTag), 10u);
  EXPECT_EQ(chain.pinned_bytes(), 0u);
  // Nor do they when they leave, whatever the pool says.
  const Buffer hog = pool.TryAllocate(64 * 1024);
  const BufferChain out = chain.SplitFront(8, pool, kTag);
  EXPECT_EQ(out.ToString(), "xxxxxxxx");
  EXPECT_EQ(TextOf(chain), "xx");
}

// Whatever holds the pool's room: a chain that waits does not pin the blocks that others want.
TEST_F(CompactChainTest, WithoutAnyRoomItKeepsNoLargeBlock) {
  PoolOptions options;
  options.bytes_max = 64 * 1024;
  BufferPool pool(options);
  Buffer all = pool.TryAllocate(64 * 1024);
  ASSERT_TRUE(all);
  const std::string text = PatternBytes(7, 0, 5000);
  all.Extend(text.size());
  std::memcpy(all.mutable_data(), text.data(), text.size());
  CompactChain chain;
  chain.Append(Piece(text.substr(0, 10)));
  EXPECT_EQ(chain.Rest(pool, kTag), 10u);
  // Its reader holds on to what came before in the same block.
  Buffer held = all.SplitFront(1000);
  chain.Append(std::move(all));
  EXPECT_EQ(chain.Rest(pool, kTag), 4000u);
  EXPECT_EQ(TextOf(chain), text.substr(0, 10) + text.substr(1000));
  EXPECT_LE(chain.pinned_bytes(), CompactChain::PinnedMax(chain.size()));
  held.Reset();
  EXPECT_EQ(pool.Stats().live, 0u);
  // What is fair by itself stays where it is, and so do the inline bytes before it.
  const Buffer hog = pool.TryAllocate(64 * 1024);
  CompactChain fair;
  fair.Append(Piece("xx"));
  EXPECT_EQ(fair.Rest(pool, kTag), 2u);
  fair.Append(Piece(std::string(130, 'y'), 256));
  fair.Append(Piece(std::string(50, 'z'), 256));
  EXPECT_EQ(fair.Rest(pool, kTag), 0u);
  EXPECT_EQ(TextOf(fair), "xx" + std::string(130, 'y') + std::string(50, 'z'));
  EXPECT_EQ(fair.pinned_bytes(), 512u);
}

TEST_F(CompactChainTest, AMoveTakesEverythingAlong) {
  CompactChain from;
  from.Append(Piece("0123456789"));
  Rest(from);
  from.Append(Piece(std::string(3000, 'z'), 8192));
  Rest(from);
  from.Append(Piece("fresh"));
  const std::string text = TextOf(from);
  CompactChain to = std::move(from);
  EXPECT_EQ(TextOf(to), text);
  EXPECT_TRUE(from.empty());
  EXPECT_EQ(from.pinned_bytes(), 0u);
  from.Append(Piece("anew"));
  EXPECT_EQ(TextOf(from), "anew");
  to = std::move(from);
  EXPECT_EQ(TextOf(to), "anew");
  Rest(to);
  to.Clear();
  EXPECT_EQ(pool_.Stats().live, 0u);
}

// Pieces of any size in blocks of any size, some of them shared, rested at any time, while whole
// units are taken off the front: as a reader of units does.
TEST_F(CompactChainTest, AnyPiecesKeepTheBoundAndTheirOrder) {
  for (uint32_t seed = 0; seed < (kSanitized ? 30u : 300u); ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](size_t bound) { return random() % bound; };
    const auto any_size = [&] { return 1 + below(size_t{1} << below(16)); };
    CompactChain chain;
    std::vector<Buffer> held;
    uint64_t in = 0, out = 0, copied = 0;
    size_t unit = any_size();
    for (int step = 0; step < 400; ++step) {
      const size_t size = below(3) == 0 ? 1 + below(40) : any_size();
      Buffer piece = Piece(PatternBytes(seed, in, size), size * (1 + below(4)), below(size));
      in += size;
      if (below(4) == 0) held.push_back(piece.Share());
      if (below(4) == 0) chain.Append(piece.SplitFront(below(size)));
      chain.Append(std::move(piece));
      while (chain.size() >= unit) {
        const BufferChain front = chain.SplitFront(unit, pool_, kTag);
        ASSERT_FALSE(FirstMismatch(front.ToString(), seed, out)) << "seed " << seed;
        out += unit;
        unit = any_size();
      }
      if (below(3) != 0) copied += Rest(chain);
      ASSERT_EQ(chain.size(), in - out);
      if (chain.empty()) {
        ASSERT_EQ(chain.pinned_bytes(), 0u);
      }
      ASSERT_FALSE(FirstMismatch(TextOf(chain), seed, out)) << "seed " << seed;
      ASSERT_FALSE(HasFailure()) << "seed " << seed << " step " << step;
    }
    // Once where it came, and the few inline bytes once more.
    EXPECT_LE(copied, in + 400 * CompactChain::kInlineMax) << "seed " << seed;
    held.clear();
    chain.TrimFront(chain.size());
    EXPECT_EQ(pool_.Stats().live, 0u);
  }
}

}  // namespace
}  // namespace penstock::internal
