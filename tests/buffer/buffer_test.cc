#include <penstock/buffer.h>

#include <cstring>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>

#include <gtest/gtest.h>

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::BufferPool;

static_assert(sizeof(Buffer) == 8);
static_assert(sizeof(BufferChain) == 24);
static_assert(!std::is_copy_constructible_v<Buffer> && !std::is_copy_assignable_v<Buffer>);
static_assert(std::is_nothrow_move_constructible_v<Buffer>);
static_assert(!std::is_copy_constructible_v<BufferChain>);

TEST(Buffer, DefaultMadeIsEmptyAndHarmless) {
  Buffer none;
  EXPECT_FALSE(none);
  EXPECT_EQ(none.data(), nullptr);
  EXPECT_EQ(none.mutable_data(), nullptr);
  EXPECT_EQ(none.size(), 0u);
  EXPECT_TRUE(none.empty());
  EXPECT_EQ(none.view(), "");
  EXPECT_EQ(none.tailroom(), 0u);
  EXPECT_EQ(none.block_size(), 0u);
  none.Extend(0);
  none.Truncate(0);
  none.TrimFront(0);
  EXPECT_FALSE(none.MarkSecret());
  none.Reset();
  EXPECT_FALSE(none.SplitFront(0));
  EXPECT_FALSE(none.Share());
}

TEST(Buffer, HoldsABlockWhileItsWindowIsEmpty) {
  BufferPool pool;
  Buffer buffer = pool.TryAllocate(100);
  EXPECT_TRUE(buffer);
  EXPECT_TRUE(buffer.empty());
  EXPECT_EQ(buffer.block_size(), 256u);
  EXPECT_EQ(pool.Stats().live, 256u);
}

TEST(Buffer, MovesLeaveNothingBehind) {
  BufferPool pool;
  Buffer first = *pool.Copy("first");
  Buffer second = *pool.Copy("second");
  EXPECT_EQ(pool.Stats().live, 512u);
  second = std::move(first);
  EXPECT_EQ(second.view(), "first");
  EXPECT_FALSE(first);  // NOLINT: moved from on purpose
  EXPECT_EQ(pool.Stats().live, 256u);
  Buffer& alias = second;
  second = std::move(alias);
  EXPECT_EQ(second.view(), "first");
}

TEST(Buffer, ExtendClaimsTheTailroom) {
  BufferPool pool;
  Buffer buffer = pool.TryAllocate(1000);
  EXPECT_EQ(buffer.tailroom(), 1024u);
  buffer.Extend(24);
  std::memset(buffer.mutable_data(), 'a', 24);
  EXPECT_EQ(buffer.view(), std::string(24, 'a'));
  EXPECT_EQ(buffer.tailroom(), 1000u);
  buffer.TrimFront(20);
  EXPECT_EQ(buffer.tailroom(), 1000u);
  buffer.Extend(1000);
  EXPECT_EQ(buffer.size(), 1004u);
  EXPECT_EQ(buffer.tailroom(), 0u);
  buffer.Truncate(4);
  EXPECT_EQ(buffer.view(), "aaaa");
  EXPECT_EQ(buffer.tailroom(), 1000u);
}

TEST(Buffer, SplitFrontCutsOneBlockIntoWindows) {
  BufferPool pool;
  Buffer rest = *pool.Copy("hello world");
  Buffer front = rest.SplitFront(5);
  EXPECT_EQ(front.view(), "hello");
  EXPECT_EQ(rest.view(), " world");
  EXPECT_EQ(front.data() + 5, rest.data());
  EXPECT_EQ(front.tailroom(), 0u);
  EXPECT_EQ(rest.tailroom(), 0u);
  // Each may write to its own bytes.
  front.mutable_data()[0] = 'J';
  rest.mutable_data()[0] = '-';
  EXPECT_EQ(front.view(), "Jello");
  EXPECT_EQ(rest.view(), "-world");
  front.Reset();
  EXPECT_EQ(rest.tailroom(), 245u);
}

TEST(Buffer, SplitFrontOfNothingAndOfAll) {
  BufferPool pool;
  Buffer rest = *pool.Copy("bytes");
  Buffer nothing = rest.SplitFront(0);
  EXPECT_TRUE(nothing);
  EXPECT_TRUE(nothing.empty());
  Buffer all = rest.SplitFront(5);
  EXPECT_EQ(all.view(), "bytes");
  EXPECT_TRUE(rest);
  EXPECT_TRUE(rest.empty());
}

TEST(Buffer, TheBlockGoesBackWithItsLastWindow) {
  BufferPool pool;
  for (const bool first_goes_first : {true, false}) {
    Buffer first = *pool.Copy("shared bytes");
    Buffer second = first.Share();
    Buffer third = second.SplitFront(6);
    EXPECT_EQ(second.view(), " bytes");
    EXPECT_EQ(third.view(), "shared");
    (first_goes_first ? first : third).Reset();
    EXPECT_EQ(pool.Stats().live, 256u);
    second.Reset();
    EXPECT_EQ(pool.Stats().live, 256u);
    EXPECT_EQ((first_goes_first ? third : first).view().substr(0, 6), "shared");
    (first_goes_first ? third : first).Reset();
    EXPECT_EQ(pool.Stats().live, 0u);
  }
}

TEST(Buffer, ShareShowsTheSameBytes) {
  BufferPool pool;
  const Buffer first = *pool.Copy("same");
  Buffer second = first.Share();
  EXPECT_EQ(second.data(), first.data());
  EXPECT_EQ(second.view(), "same");
  EXPECT_EQ(first.tailroom(), 0u);
  EXPECT_EQ(second.block_size(), 256u);
}

TEST(Buffer, MayBeDroppedOnAnyThread) {
  BufferPool pool;
  Buffer buffer = *pool.Copy("bytes");
  Buffer share = buffer.Share();
  std::thread([buffer = std::move(buffer)]() mutable { buffer.Reset(); }).join();
  EXPECT_EQ(share.view(), "bytes");
  std::thread([share = std::move(share)]() mutable { share.Reset(); }).join();
  EXPECT_EQ(pool.Stats().live, 0u);
}

TEST(Buffer, ExternalMemoryIsReleasedOnceByTheLastWindow) {
  const std::string memory = "mapped file";
  int released = 0;
  std::thread::id by;
  Buffer first = Buffer::FromExternal(memory.data(), memory.size(), [&] {
    ++released;
    by = std::this_thread::get_id();
  });
  EXPECT_EQ(first.data(), memory.data());
  EXPECT_EQ(first.view(), memory);
  EXPECT_EQ(first.tailroom(), 0u);
  EXPECT_EQ(first.block_size(), memory.size());
  Buffer second = first.Share();
  Buffer third = first.SplitFront(6);
  EXPECT_EQ(third.view(), "mapped");
  first.Reset();
  EXPECT_FALSE(third.MarkSecret());  // nothing to wipe: the memory is not the pool's
  third.Reset();
  EXPECT_EQ(released, 0);
  std::thread other([second = std::move(second)]() mutable { second.Reset(); });
  const std::thread::id other_id = other.get_id();
  other.join();
  EXPECT_EQ(released, 1);
  EXPECT_EQ(by, other_id);
  EXPECT_EQ(memory, "mapped file");
}

TEST(Buffer, ExternalMemoryNeedsNoCallback) {
  static const char kText[] = "constant";
  Buffer buffer = Buffer::FromExternal(kText, 8, nullptr);
  BufferChain chain(std::move(buffer));
  EXPECT_EQ(chain.ToString(), "constant");
}

// Memory that comes back is handed out again, last first: what a holder left is seen in the next
// buffer's tailroom.
std::string Leftover(BufferPool& pool, size_t size) {
  Buffer again = pool.TryAllocate(size);
  again.Extend(size);
  return std::string(again.view());
}

TEST(Buffer, SecretBytesAreWipedAsFarAsAnyWindowReached) {
  BufferPool pool;
  Buffer buffer = pool.TryAllocate(4096);
  const char* place = buffer.data();
  buffer.Extend(3000);
  std::memset(buffer.mutable_data(), 's', 3000);
  buffer.MarkSecret();
  buffer.Truncate(10);
  buffer.TrimFront(10);
  buffer.Reset();
  Buffer again = pool.TryAllocate(4096);
  ASSERT_EQ(again.data(), place);
  again.Extend(4096);
  EXPECT_EQ(again.view().substr(0, 3000), std::string(3000, '\0'));
}

TEST(Buffer, TheMarkEndsWithTheBlock) {
  BufferPool pool;
  Buffer buffer = pool.TryAllocate(256);
  buffer.MarkSecret();
  buffer.Reset();
  buffer = pool.TryAllocate(256);
  buffer.Extend(256);
  std::memset(buffer.mutable_data(), 'p', 256);
  buffer.Reset();
  EXPECT_NE(Leftover(pool, 256), std::string(256, '\0'));
}

TEST(Buffer, AnyWindowMarksTheBlock) {
  BufferPool pool;
  Buffer rest = *pool.Copy(std::string(200, 's'));
  Buffer front = rest.SplitFront(100);
  front.MarkSecret();
  front.Reset();
  EXPECT_EQ(rest.view(), std::string(100, 's'));
  rest.Reset();
  EXPECT_EQ(Leftover(pool, 200), std::string(200, '\0'));
}

TEST(BufferDeathTest, BoundsAreCheckedInEveryBuild) {
  BufferPool pool;
  Buffer buffer = *pool.Copy("12345");
  EXPECT_DEATH(buffer.Extend(252), "beyond the tailroom");
  EXPECT_DEATH(buffer.Truncate(6), "beyond the window");
  EXPECT_DEATH(buffer.TrimFront(6), "beyond the window");
  EXPECT_DEATH(buffer.SplitFront(6), "beyond the window");
  Buffer other = buffer.Share();
  EXPECT_DEATH(other.Extend(1), "beyond the tailroom");
  Buffer none;
  EXPECT_DEATH(none.TrimFront(1), "beyond the window");
}

}  // namespace
