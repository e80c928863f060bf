// A loop's stock of free buffers, as others who share its pool meet it.
#include <gtest/gtest.h>
#include <penstock/buffer.h>
#include <penstock/loop.h>

#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace penstock::internal {
namespace {

class LoopCache : public ::testing::TestWithParam<EngineKind> {};

TEST_P(LoopCache, ASleepingLoopKeepsNoBlockFromOthers) {
  constexpr size_t kLimit = 4 << 20;
  BufferPool pool({.bytes_max = kLimit});
  LoopOptions options;
  options.engine = GetParam();
  options.pool = &pool;
  options.idle_trim = absl::InfiniteDuration();
  absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
  if (absl::IsUnimplemented(loop.status())) GTEST_SKIP() << loop.status();
  ASSERT_TRUE(loop.ok()) << loop.status();
  std::thread thread([&] { (*loop)->Run(); });
  std::promise<void> used;
  (*loop)->Post([&] {
    { const Buffer buffer = pool.TryAllocate(4096); }
    used.set_value();
  });
  used.get_future().wait();
  // All that the kernel has not been lent. The loop may be busy at first.
  const absl::Time give_up = absl::Now() + absl::Minutes(5);
  Buffer rest;
  while (!rest && absl::Now() < give_up) {
    rest = pool.TryAllocate(kLimit - pool.Stats().ring);
    std::this_thread::yield();
  }
  EXPECT_TRUE(rest);
  rest.Reset();
  (*loop)->Stop();
  thread.join();
}

INSTANTIATE_TEST_SUITE_P(Engines, LoopCache,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         [](const auto& test) { return std::string(EngineKindName(test.param)); });

}  // namespace
}  // namespace penstock::internal
