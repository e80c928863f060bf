// What an echo costs in system calls, counted at the seam; that LoopSnapshot::syscalls counts the
// same; and how the io_uring engine chooses by what a stream's traffic costs.
#include <penstock/listener.h>
#include <penstock/loop.h>

#include <poll.h>

#include <atomic>
#include <cstdint>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/functional/function_ref.h"
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
  int64_t Now() override { return Counted(clocks, Sys::Now()); }
  uint64_t all() const { return waits + receives + sends + timers; }

  std::atomic<uint64_t> waits{0}, receives{0}, sends{0}, timers{0};
  std::atomic<uint64_t> clocks{0};  // read, which is no call of the kernel's

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
  ListenOptions listening;
  listening.stream.write_deadline = absl::Hours(1);  // of which no echo makes one look either
  std::unique_ptr<Listener> listener =
      Listener::Listen(*loop, *SocketAddress::Parse("127.0.0.1:0"), listening,
                       [](StreamPtr stream) { EchoForever(std::move(stream)); })
          .value();
  PlainSocket client = PlainSocket::Connect(listener->address());
  std::optional<Timer> far(*loop);  // for which no echo looks at the time
  far->Arm(absl::Hours(1), [] {});
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
  const uint64_t clocks = sys.clocks;
  for (uint64_t i = 0; i < kEchoes; ++i) echo();
  const auto after = look();
  EXPECT_EQ(after.second - before.second, after.first - before.first)
      << "the snapshot counts what was called";
  EXPECT_EQ(sys.sends - sends, kEchoes);
  // A multishot receive takes none; an edge and a short receive take no second one.
  EXPECT_EQ(sys.receives - receives, GetParam() == EngineKind::kUring ? 0 : kEchoes);
  // The two looks wake the loop as well, and now and then the kernel does for nothing.
  EXPECT_LE(sys.waits - waits, kEchoes + kEchoes / 20);
  EXPECT_LE(sys.clocks - clocks, kEchoes / 20);
  loop->Stop();
  thread.join();
  far = std::nullopt;
  client.Close();
  listener = nullptr;
}

INSTANTIATE_TEST_SUITE_P(Engines, LoopSyscallsTest,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         [](const auto& info) { return std::string(EngineKindName(info.param)); });

// A loop on io_uring, driven by the test, and plain sockets that send to it.
class ReceiveStrategyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = MissingEngine(EngineKind::kUring); !why.empty()) {
      GTEST_SKIP() << why;
    }
    LoopOptions options;
    options.engine = EngineKind::kUring;
    options.idle_trim = absl::InfiniteDuration();
    loop_ = LoopCore::CreateLoop(std::move(options), {.sys = &sys_, .engines = {}}).value();
    listener_ = Listener::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), {},
                                 [this](StreamPtr stream) { Count(std::move(stream)); })
                    .value();
  }
  void TearDown() override {
    listener_ = nullptr;
    loop_ = nullptr;
  }

  void Count(StreamPtr stream) {
    Stream& in = *stream;
    in.ReadReady([this, stream = std::move(stream)](absl::StatusOr<Buffer> data) mutable {
      if (!data.ok()) return;
      received_ += data->size();
      Count(std::move(stream));
    });
  }
  bool Drive(absl::FunctionRef<bool()> done) {
    Loop* const loops[] = {loop_.get()};
    return DriveLoops(loops, done);
  }
  // Sends pieces one after the other, each when the one before it has been read; returns the plain
  // receives they took.
  uint64_t ReceivesFor(PlainSocket& peer, int pieces, size_t size) {
    const uint64_t before = sys_.receives;
    for (int i = 0; i < pieces; ++i) {
      const uint64_t wanted = received_ + size;
      EXPECT_EQ(peer.Send(std::string(size, 'p')), static_cast<int64_t>(size));
      EXPECT_TRUE(Drive([&] { return received_ == wanted; }));
    }
    return sys_.receives - before;
  }

  CountingSys sys_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<Listener> listener_;
  uint64_t received_ = 0;
};

TEST_F(ReceiveStrategyTest, LargePiecesChangeToPlainReceivesAndSmallOnesBack) {
  constexpr size_t kSmall = 1000, kLarge = 16 * 1024;
  PlainSocket peer = PlainSocket::Connect(listener_->address());
  EXPECT_EQ(ReceivesFor(peer, 20, kSmall), 0u) << "the kernel fills a lent buffer";
  EXPECT_EQ(ReceivesFor(peer, 4, kLarge), 0u) << "a few say nothing";
  EXPECT_EQ(ReceivesFor(peer, 1, kSmall), 0u);
  ReceivesFor(peer, 12, kLarge);
  EXPECT_GE(ReceivesFor(peer, 20, kLarge), 20u) << "into buffers of the stream's own size";
  EXPECT_GE(ReceivesFor(peer, 4, kSmall), 4u) << "a few say nothing";
  EXPECT_GE(ReceivesFor(peer, 1, kLarge), 1u);
  ReceivesFor(peer, 12, kSmall);
  EXPECT_EQ(ReceivesFor(peer, 20, kSmall), 0u);
}

// As of records and frames that carry 16 KiB: a lent buffer takes most of one, and the next the
// rest.
TEST_F(ReceiveStrategyTest, TheRestOfALargePieceSpeaksForNeither) {
  constexpr size_t kMessage = 16 * 1024 + 24;
  PlainSocket peer = PlainSocket::Connect(listener_->address());
  ReceivesFor(peer, 100, kMessage);
  EXPECT_GE(ReceivesFor(peer, 20, kMessage), 20u);
}

TEST_F(ReceiveStrategyTest, TheRingGrowsWhenTheKernelRunsOutOfBuffers) {
  // Each takes four buffers at once, the last of them little used: that keeps the stream from plain
  // receives.
  constexpr size_t kPeers = 40, kPiece = 3 * 16 * 1024 + 1000;
  std::vector<PlainSocket> peers;
  for (size_t i = 0; i < kPeers; ++i) peers.push_back(PlainSocket::Connect(listener_->address()));
  const auto lent = [&] {
    Loop* const loops[] = {loop_.get()};
    SettleLoops(loops);
    return loop_->pool().Stats().ring;
  };
  const auto all_send = [&] {
    const uint64_t wanted = received_ + kPeers * kPiece;
    for (PlainSocket& peer : peers) {
      EXPECT_EQ(peer.Send(std::string(kPiece, 'p')), static_cast<int64_t>(kPiece));
    }
    EXPECT_TRUE(Drive([&] { return received_ == wanted; })) << received_ << " of " << wanted;
  };
  for (PlainSocket& peer : peers) ReceivesFor(peer, 1, 1);
  EXPECT_EQ(loop_->Snapshot().ring_exhausted, 0u);
  const uint64_t at_first = lent();
  ASSERT_LT(at_first, kPeers * 16 * 1024);
  for (int round = 0; round < 6; ++round) all_send();
  const uint64_t exhausted = loop_->Snapshot().ring_exhausted;
  EXPECT_GT(exhausted, 0u);
  EXPECT_GE(lent(), 2 * at_first);
  // By now it has enough for all of them.
  all_send();
  EXPECT_EQ(loop_->Snapshot().ring_exhausted, exhausted);
}

}  // namespace
}  // namespace penstock::internal
