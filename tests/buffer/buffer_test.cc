#include <penstock/buffer.h>

#include <cstring>
#include <string>
#include <utility>

#include <gtest/gtest.h>

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::BufferPool;

static_assert(sizeof(Buffer) == 8);
static_assert(sizeof(BufferChain) == 24);

TEST(Buffer, WindowsMoveOverOneBlock) {
  BufferPool pool;
  Buffer buffer = *pool.Copy("hello world");
  EXPECT_EQ(buffer.view(), "hello world");
  EXPECT_EQ(buffer.block_size(), 256u);
  EXPECT_EQ(buffer.tailroom(), 256u - 11);
  Buffer front = buffer.SplitFront(5);
  EXPECT_EQ(front.view(), "hello");
  EXPECT_EQ(buffer.view(), " world");
  EXPECT_EQ(front.tailroom(), 0u);
  buffer.TrimFront(1);
  buffer.Truncate(3);
  EXPECT_EQ(buffer.view(), "wor");
  Buffer shared = front.Share();
  EXPECT_EQ(shared.view(), "hello");
  front.Reset();
  buffer.Reset();
  EXPECT_EQ(pool.Stats().live, 256u);
  EXPECT_EQ(shared.tailroom(), 251u);
  shared.Reset();
  EXPECT_EQ(pool.Stats().live, 0u);
}

}  // namespace
