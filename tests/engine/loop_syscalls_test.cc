// What an echo costs in system calls, counted at the seam; and that LoopSnapshot::syscalls counts
// the same.
#include <penstock/listener.h>
#include <penstock/loop.h>

#include <poll.h>

#include <atomic>
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include <gtest/gtest.h>

#include "base/sys.h"
#include "engine/loop_core.h"
#include "testing/environment.h"
#include "testing/harness.h"
#include "testing/patient_poll.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

// Counts what a loop calls while it serves streams that are there already.
class CountingSys : public Sys {
 public:
  int EpollWait(int epoll, epoll_event* events, int count, int64_t timeout_ns) override {
    return Counted(waits, Sys::EpollWait(epoll, events, count, timeout_ns));
  }
  int RingEnter() override { return Counted(waits, Sys::RingEnter()); }
  int64_t Receive(int fd, void* data, size_t size) override {
    return Counted(receives, Sys::Receive(fd, data, size));
  }
  int64_t Send(int fd, const void* data, size_t size) override {
    return Counted(sends, Sys::Send(fd, data, size));
  }
  int TimerFdSet(int fd, int64_t at_ns) override {
    return Counted(timers, Sys::TimerFdSet(fd, at_ns));
  }
  uint64_t all() const { return waits + receives + sends + timers; }

  std::atomic<uint64_t> waits{0}, receives{0}, sends{0}, timers{0};

 private:
  template <typename Result>
  static Result Counted(std::atomic<uint64_t>& count, Result result) {
    ++count;
    return result;
  }
};

class LoopSyscallsTest : public ::testing::TestWithParam<EngineKind> {};

TEST_P(LoopSyscallsTest, AnEchoTakesAWaitAReceiveAndASendAtMost) {
  if (const std::string why = MissingEngine(GetParam()); !why.empty()) GTEST_SKIP() << why;
  constexpr uint64_t kWarm = 50;
  constexpr uint64_t kEchoes = 1000;
  CountingSys sys;
  LoopOptions options;
  options.engine = GetParam();
  options.idle_trim = absl::InfiniteDuration();  // it looks at the time once a second
  std::unique_ptr<Loop> loop =
      LoopCore::CreateLoop(std::move(options), {.sys = &sys, .engines = {}}).value();
  std::unique_ptr<Listener> listener =
      Listener::Listen(*loop, *SocketAddress::Parse("127.0.0.1:0"), {}, [](StreamPtr stream) {
        EchoForever(std::move(stream));
      }).value();
  PlainSocket client = PlainSocket::Connect(listener->address());
  std::thread thread([&] { loop->Run(); });
  const auto echo = [&] {
    char answer[64];
    EXPECT_EQ(client.Send(std::string(64, 'e')), 64);
    EXPECT_TRUE(PatientPoll(client.fd(), POLLIN, 300'000));
    EXPECT_EQ(client.Receive(answer, sizeof answer), 64);
  };
  // What has been done for one echo is done when the next one is back.
  const auto look = [&] {
    std::promise<std::pair<uint64_t, uint64_t>> seen;
    loop->Post([&] { seen.set_value({sys.all(), loop->Snapshot().syscalls}); });
    return seen.get_future().get();
  };
  for (uint64_t i = 0; i < kWarm; ++i) echo();
  const auto before = look();
  const uint64_t receives = sys.receives, sends = sys.sends, waits = sys.waits;
  for (uint64_t i = 0; i < kEchoes; ++i) echo();
  const auto after = look();
  EXPECT_EQ(after.second - before.second, after.first - before.first)
      << "the snapshot counts what was called";
  EXPECT_EQ(sys.sends - sends, kEchoes);
  // A multishot receive takes none; an edge and a short receive take no second one.
  EXPECT_EQ(sys.receives - receives, GetParam() == EngineKind::kUring ? 0 : kEchoes);
  // The two looks wake the loop as well, and now and then the kernel does for nothing.
  EXPECT_LE(sys.waits - waits, kEchoes + kEchoes / 20);
  loop->Stop();
  thread.join();
  client.Close();
  listener = nullptr;
}

INSTANTIATE_TEST_SUITE_P(Engines, LoopSyscallsTest,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         [](const auto& info) { return std::string(EngineKindName(info.param)); });

}  // namespace
}  // namespace penstock::internal
