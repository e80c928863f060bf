// A loop's buffers: its stock of free ones, as others who share its pool meet it; and ones of huge
// pages.
#include <gtest/gtest.h>
#include <penstock/buffer.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "testing/environment.h"
#include "testing/harness.h"
#include "testing/pattern.h"
#include "testing/plain_socket.h"
#include "testing/vm_flags.h"

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

TEST_P(LoopCache, ServesFromHugePagesWhereTheKernelHasThem) {
  if (const std::string why = MissingEngine(GetParam()); !why.empty()) GTEST_SKIP() << why;
  constexpr size_t kBytes = 3 << 20;
  LoopOptions options;
  options.engine = GetParam();
  options.pool_options.huge_pages = true;
  options.idle_trim = absl::InfiniteDuration();
  const std::unique_ptr<Loop> loop = Loop::Create(std::move(options)).value();
  Loop* const loops[] = {loop.get()};
  std::unique_ptr<Listener> listener =
      Listener::Listen(*loop, *SocketAddress::Parse("127.0.0.1:0"), {}, [](StreamPtr stream) {
        EchoForever(std::move(stream));
      }).value();
  PlainSocket client = PlainSocket::Connect(listener->address());
  std::string back;
  size_t sent = 0;
  EXPECT_TRUE(DriveLoops(loops, [&] {
    if (sent < kBytes) {
      const std::string piece = PatternBytes(1, sent, std::min<size_t>(kBytes - sent, 1 << 16));
      if (const int64_t taken = client.Send(piece); taken > 0) sent += static_cast<size_t>(taken);
    }
    char some[1 << 16];
    for (int64_t got; (got = client.Receive(some, sizeof some)) > 0;) {
      back.append(some, static_cast<size_t>(got));
    }
    return back.size() == kBytes;
  }));
  EXPECT_FALSE(FirstMismatch(back, 1, 0).has_value());
  client.Close();
  listener = nullptr;
  EXPECT_TRUE(DriveLoops(loops, [&] { return loop->Snapshot().open == 0; }));
  EXPECT_EQ(loop->pool().Stats().live, 0u);
  const Buffer buffer = loop->pool().TryAllocate(4096);
  const std::string flags = VmFlags(buffer.data());
  ASSERT_NE(flags, "");
  if (::access("/sys/kernel/mm/transparent_hugepage", F_OK) != 0) {
    GTEST_SKIP() << "served from plain pages: the kernel has no transparent huge ones";
  }
  EXPECT_TRUE(flags.find(" hg ") != std::string::npos || flags.find(" ht ") != std::string::npos)
      << flags;
}

INSTANTIATE_TEST_SUITE_P(Engines, LoopCache,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         [](const auto& test) { return std::string(EngineKindName(test.param)); });

}  // namespace
}  // namespace penstock::internal
