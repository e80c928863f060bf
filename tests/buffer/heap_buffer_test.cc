#include "buffer/heap_buffer.h"

#include <string>

#include <gtest/gtest.h>

namespace {

using penstock::Buffer;
using penstock::internal::HeapBuffer;

TEST(HeapBuffer, HoldsItsBytesWithoutAPool) {
  const std::string bytes(5000, 'b');
  Buffer buffer = HeapBuffer(bytes);
  EXPECT_EQ(buffer.view(), bytes);
  EXPECT_EQ(buffer.block_size(), bytes.size());
  const Buffer front = buffer.SplitFront(10);
  buffer.Reset();
  EXPECT_EQ(front.view(), std::string(10, 'b'));
}

}  // namespace
