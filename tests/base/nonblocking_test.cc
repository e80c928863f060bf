#include "base/nonblocking.h"

#include <unistd.h>

#include <cerrno>

#include <gtest/gtest.h>

namespace penstock::internal {
namespace {

TEST(MakeNonblocking, AReadThenReturnsAtOnce) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(MakeNonblocking(ends[0]), 0);
  char byte;
  EXPECT_EQ(read(ends[0], &byte, 1), -1);
  EXPECT_EQ(errno, EAGAIN);
  close(ends[0]);
  close(ends[1]);
}

TEST(MakeNonblocking, TellsWhatIsNoDescriptor) { EXPECT_EQ(MakeNonblocking(-1), -EBADF); }

}  // namespace
}  // namespace penstock::internal
