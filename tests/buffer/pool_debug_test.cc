#include "buffer/pool_debug.h"

#include <penstock/buffer.h>

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "buffer/pool_cache.h"

namespace {

using penstock::Buffer;
using penstock::BufferPool;
using penstock::BufferTag;
using penstock::internal::kPoolChecks;
using penstock::internal::PoolCache;
using penstock::internal::PoolFailure;
using penstock::internal::PoolFailureHandler;
using penstock::internal::SetPoolFailureHandler;

#if PENSTOCK_ASAN
// The sanitizer sees the write before the pool does.
constexpr char kWrittenAfterReturn[] = "use-after-poison";
constexpr char kWrittenBeyondEnd[] = "use-after-poison";
#else
constexpr char kWrittenAfterReturn[] = "written after it was returned: 4096 bytes, tag application";
constexpr char kWrittenBeyondEnd[] = "written beyond its end: 256 bytes, tag seal, sequence 1";
#endif

class PoolDebugDeathTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!kPoolChecks) GTEST_SKIP() << "this build leaves the pool's checks out";
  }
};

// A second Buffer of the same window, as only a stray copy of memory can make.
Buffer StrayCopy(const Buffer& buffer) {
  Buffer copy;
  std::memcpy(static_cast<void*>(&copy), static_cast<const void*>(&buffer), sizeof copy);
  return copy;
}

TEST_F(PoolDebugDeathTest, BuffersLeftOutAreReported) {
  EXPECT_DEATH(
      {
        auto pool = std::make_unique<BufferPool>();
        Buffer first = pool->TryAllocate(1000, BufferTag::kSeal);
        Buffer returned = pool->TryAllocate(1000);
        Buffer second = pool->TryAllocate(20000, BufferTag::kReceive);
        Buffer large = pool->TryAllocate(2 << 20);
        returned.Reset();
        pool = nullptr;
      },
      "3 buffers \\(2130944 bytes\\) not returned:(.|\n)*"
      "1024 bytes, tag seal, sequence 1(.|\n)*"
      "32768 bytes, tag receive, sequence 3(.|\n)*"
      "2097152 bytes, tag application, sequence 4");
}

TEST_F(PoolDebugDeathTest, ALongReportIsCutShort) {
  EXPECT_DEATH(
      {
        auto pool = std::make_unique<BufferPool>();
        Buffer held[20];
        for (Buffer& buffer : held) buffer = pool->TryAllocate(100);
        pool = nullptr;
      },
      "20 buffers(.|\n)*and 4 more");
}

TEST_F(PoolDebugDeathTest, WritesBeyondTheEnd) {
  EXPECT_DEATH(
      {
        BufferPool pool;
        Buffer buffer = pool.TryAllocate(256, BufferTag::kSeal);
        volatile char* data = buffer.mutable_data();
        data[256] = 'x';
        buffer.Reset();
      },
      kWrittenBeyondEnd);
}

TEST_F(PoolDebugDeathTest, WritesAfterReturn) {
  for (const bool secret : {false, true}) {
    EXPECT_DEATH(
        {
          BufferPool pool({.secret = secret});
          PoolCache cache(pool.core());
          const PoolCache::Scope scope(cache);
          Buffer buffer = pool.TryAllocate(4096);
          buffer.Extend(4096);
          volatile char* data = buffer.mutable_data();
          buffer.Reset();
          data[100] = 'x';
          buffer = pool.TryAllocate(4096);
        },
        kWrittenAfterReturn);
  }
}

TEST_F(PoolDebugDeathTest, ReturnsTwice) {
  EXPECT_DEATH(
      {
        BufferPool pool;
        Buffer buffer = *pool.Copy("bytes");
        Buffer stray = StrayCopy(buffer);
        buffer.Reset();
        stray.Reset();
      },
      "buffer returned after it was returned: 256 bytes, tag application, sequence 1");
}

TEST_F(PoolDebugDeathTest, ReturnsAFurtherWindowTwice) {
  EXPECT_DEATH(
      {
        BufferPool pool;
        Buffer buffer = *pool.Copy("bytes");
        Buffer share = buffer.Share();
        Buffer stray = StrayCopy(share);
        share.Reset();
        stray.Reset();
      },
      "buffer returned after it was returned");
}

TEST_F(PoolDebugDeathTest, IsUsedAfterReturn) {
  BufferPool pool;
  Buffer buffer = *pool.Copy("bytes");
  const auto use = [&](auto&& call) {
    Buffer copy = pool.TryAllocate(100);
    Buffer stray = StrayCopy(copy);
    copy.Reset();
    call(stray);
  };
  const char* const message = "buffer used after it was returned";
  EXPECT_DEATH(use([](Buffer& stray) { static_cast<void>(stray.data()); }), message);
  EXPECT_DEATH(use([](Buffer& stray) { static_cast<void>(stray.size()); }), message);
  EXPECT_DEATH(use([](Buffer& stray) { static_cast<void>(stray.mutable_data()); }), message);
  EXPECT_DEATH(use([](Buffer& stray) { static_cast<void>(stray.Share()); }), message);
  EXPECT_DEATH(use([](Buffer& stray) { stray.MarkSecret(); }), message);
}

TEST_F(PoolDebugDeathTest, WritesWhereOthersRead) {
  BufferPool pool;
  Buffer buffer = *pool.Copy("bytes");
  Buffer share = buffer.Share();
  EXPECT_DEATH(static_cast<void>(buffer.mutable_data()), "of a shared buffer");
  EXPECT_DEATH(static_cast<void>(share.mutable_data()), "of a shared buffer");
  EXPECT_DEATH(static_cast<void>(share.SplitFront(2).mutable_data()), "of a shared buffer");
  share.Reset();
  EXPECT_NE(buffer.mutable_data(), nullptr);
  Buffer external = Buffer::FromExternal("text", 4, nullptr);
  EXPECT_DEATH(static_cast<void>(external.mutable_data()), "of external memory");
}

#if PENSTOCK_ASAN
TEST_F(PoolDebugDeathTest, TheSanitizerSeesFreeBlocks) {
  BufferPool pool;
  Buffer held = *pool.Copy("bytes");
  const volatile char* free_neighbour = held.data() + held.block_size() * 2;
  EXPECT_DEATH(static_cast<void>(*free_neighbour), "use-after-poison");
}
#endif

std::string* last_message = nullptr;

TEST(PoolDebug, AHandlerMayTakeTheFailure) {
  std::string message;
  last_message = &message;
  const PoolFailureHandler before =
      SetPoolFailureHandler([](std::string_view text) { *last_message = text; });
  EXPECT_EQ(before, nullptr);
  PoolFailure("something is wrong");
  EXPECT_EQ(message, "something is wrong");
#if PENSTOCK_POOL_CHECKS
  // The faulty call has no effect.
  BufferPool pool;
  Buffer buffer = *pool.Copy("bytes");
  Buffer stray = StrayCopy(buffer);
  buffer.Reset();
  stray.Reset();
  EXPECT_NE(message.find("returned after it was returned"), std::string::npos);
  EXPECT_EQ(pool.Stats().live, 0u);
#endif
  SetPoolFailureHandler(before);
  last_message = nullptr;
}

TEST(PoolDebug, ReleaseBuildsLeaveTheSlabsOfLostBuffers) {
  if (kPoolChecks) GTEST_SKIP() << "this build aborts instead";
  auto pool = std::make_unique<BufferPool>();
  Buffer buffer = *pool->Copy("survives its pool");
  pool = nullptr;
  EXPECT_EQ(buffer.view(), "survives its pool");
  Buffer share = buffer.Share();
  buffer.Reset();
  EXPECT_EQ(share.view(), "survives its pool");
}

}  // namespace
