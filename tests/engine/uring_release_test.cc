// What a kernel does to moves that does not do what it should: it does not end what it was told to,
// loses a completion, or lets epoll take nothing of what a dead ring has left. Each of these has a
// bound, and is counted.
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/loop_core.h"
#include "testing/breaking_ring.h"
#include "testing/fault_sys.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

class UringReleaseTest : public BreakingRing {
 protected:
  void SetUp() override { Begin(EngineKind::kUring); }

  std::unique_ptr<Listener> Listen() {
    ListenOptions listening;
    listening.engine = EngineKind::kUring;
    return *Listener::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), listening,
                             [this](StreamPtr stream) { accepted_ = std::move(stream); });
  }
  void ExpectAccepts(Listener& listener) {
    PlainSocket client = PlainSocket::Connect(listener.address());
    ASSERT_TRUE(PollUntil([&] { return accepted_ != nullptr; }));
    ExpectHears(*std::exchange(accepted_, nullptr), client);
  }
  // For a dropped completion: the stream that is read ends, `other` goes to epoll.
  void ExpectRingEnds(Stream& other, PlainSocket& other_peer) {
    ASSERT_TRUE(PollUntil([&] { return loop_->engine() == EngineKind::kEpoll; }));
    EXPECT_TRUE(Logged("the kernel has dropped a completion"));
    ASSERT_TRUE(PollUntil([&] { return !end_.ok(); }));
    EXPECT_TRUE(absl::IsDataLoss(end_)) << "its bytes may have been dropped: " << end_;
    ExpectHears(other, other_peer);
    EXPECT_EQ(other.stats().engine, EngineKind::kEpoll);
  }
  uint64_t RefusedToEpoll(MoveRefusal why) const {
    constexpr auto kToEpoll = static_cast<size_t>(MoveDirection::kToEpoll);
    return loop_->Snapshot().moves_refused_by[kToEpoll][static_cast<size_t>(why)];
  }

  StreamPtr accepted_;
};

TEST_F(UringReleaseTest, AStreamThatTheKernelDoesNotLetGoOfStays) {
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();  // the receive is armed
  sys_.swallowed = RingOp::kReceive;
  std::optional<absl::Status> moved;
  SwitchEngine(*stream_, EngineKind::kEpoll, [&](absl::Status status) { moved = status; });
  for (int i = 0; i < 20 && !moved.has_value(); ++i) Pass(absl::Seconds(1));
  ASSERT_TRUE(moved.has_value()) << "it waits for ever";
  EXPECT_TRUE(absl::IsUnavailable(*moved)) << *moved;
  EXPECT_EQ(stream_->stats().engine, EngineKind::kUring);
  EXPECT_EQ(RefusedToEpoll(MoveRefusal::kHeld), 1u);
  EXPECT_EQ(loop_->Snapshot().faults_uring, 1u);
}

TEST_F(UringReleaseTest, OneThatIsLetGoOfInTimeIsNotKept) {
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  for (int i = 0; i < 10; ++i) {
    for (const EngineKind to : {EngineKind::kEpoll, EngineKind::kUring}) {
      std::optional<absl::Status> moved;
      SwitchEngine(*stream_, to, [&](absl::Status status) { moved = status; });
      ASSERT_TRUE(PollUntil([&] { return moved.has_value(); }));
      EXPECT_TRUE(moved->ok()) << *moved;
      for (int polls = 0; polls < 10; ++polls) loop_->Poll();
    }
    Pass(absl::Milliseconds(300));  // rounds end between moves, and while the receive is armed
  }
  EXPECT_EQ(loop_->Snapshot().moves_refused, 0u);
}

TEST_F(UringReleaseTest, AListenerThatTheKernelDoesNotLetGoOfStaysAndIsCounted) {
  const auto listener = Listen();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  sys_.swallowed = RingOp::kAccept;
  std::optional<MoveCount> swept;
  ASSERT_TRUE(SwitchAll(*loop_, EngineKind::kEpoll, [&](MoveCount count) { swept = count; }).ok());
  ASSERT_TRUE(PollUntil([&] {
    sys_.AdvanceClock(absl::ToInt64Nanoseconds(absl::Milliseconds(20)));
    return swept.has_value();
  })) << "it waits for ever";
  EXPECT_EQ(swept->moved, 1u);
  EXPECT_EQ(swept->listeners_moved, 0u);
  EXPECT_EQ(swept->listeners_failed, 1u);
  EXPECT_EQ(loop_->Snapshot().listener_switches, 0u);
  EXPECT_EQ(loop_->Snapshot().listener_switches_refused, 1u);
  EXPECT_EQ(loop_->Snapshot().faults_uring, 1u);
}

TEST_F(UringReleaseTest, ASweepTellsWhatBecameOfListeners) {
  const auto listener = Listen();
  ASSERT_TRUE(loop_->EnableEngine(EngineKind::kEpoll).ok());
  for (int i = 0; i < 100; ++i) loop_->Poll();
  std::optional<MoveCount> swept;
  const auto sweep = [&] {
    swept.reset();
    ASSERT_TRUE(
        SwitchAll(*loop_, EngineKind::kEpoll, [&](MoveCount count) { swept = count; }).ok());
    ASSERT_TRUE(PollUntil([&] { return swept.has_value(); }));
  };
  sys_.add_error = ENOSPC;
  sweep();
  EXPECT_EQ(swept->failed, 1u);
  EXPECT_EQ(swept->listeners_moved, 0u);
  EXPECT_EQ(swept->listeners_failed, 1u);
  EXPECT_EQ(loop_->Snapshot().listener_switches_refused, 1u);
  ExpectAccepts(*listener);  // by the engine that it had
  sys_.add_error = 0;
  sweep();
  EXPECT_EQ(swept->listeners_moved, 1u);
  EXPECT_EQ(swept->listeners_failed, 0u);
  EXPECT_EQ(loop_->Snapshot().listener_switches, 1u);
  EXPECT_EQ(loop_->Snapshot().listener_switches_refused, 1u);
  ExpectAccepts(*listener);
  sweep();
  EXPECT_EQ(swept->listeners_moved, 0u) << "it is there already";
}

TEST_F(UringReleaseTest, AListenerThatGoesMeanwhileHoldsNoSweepUp) {
  auto listener = Listen();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  sys_.swallowed = RingOp::kAccept;
  std::optional<MoveCount> swept;
  ASSERT_TRUE(SwitchAll(*loop_, EngineKind::kEpoll, [&](MoveCount count) { swept = count; }).ok());
  for (int i = 0; i < 10; ++i) loop_->Poll();
  EXPECT_FALSE(swept.has_value());
  sys_.swallowed = RingOp::kNone;
  listener = nullptr;
  ASSERT_TRUE(PollUntil([&] { return swept.has_value(); }));
  EXPECT_EQ(swept->listeners_moved + swept->listeners_failed, 0u);
}

// io_uring_enter(2): EBADR, once, when a completion was dropped for want of memory.
TEST_F(UringReleaseTest, ADroppedCompletionEndsTheRing) {
  const StreamPtr other = Open({});  // of which the ring holds nothing
  PlainSocket other_peer = peers_.Accept();
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  sys_.Set({.call = Call::kRingEnter, .error = EBADR, .nth = 1, .persistent = false});
  ExpectRingEnds(*other, other_peer);
}

// The ring's count of completions that the kernel had no memory to keep, which it alone writes.
class DroppedCount {
 public:
  DroppedCount() {
    io_uring_params params{};
    const int own = static_cast<int>(::syscall(SYS_io_uring_setup, 1, &params));
    const int ring = RingBut(own);
    if (own >= 0) ::close(own);
    if (ring < 0) return;
    // Where it lies is the same for every ring of a kernel (io_uring_setup(2), cq_off).
    size_ = params.cq_off.overflow + sizeof(uint32_t);
    void* const base =
        ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    if (base != MAP_FAILED) base_ = static_cast<char*>(base);
  }
  ~DroppedCount() {
    if (base_ != nullptr) ::munmap(base_, size_);
  }
  DroppedCount(const DroppedCount&) = delete;
  DroppedCount& operator=(const DroppedCount&) = delete;

  bool found() const { return base_ != nullptr; }
  void Add() {
    auto& count = *reinterpret_cast<uint32_t*>(base_ + size_ - sizeof(uint32_t));
    std::atomic_ref(count).fetch_add(1);
  }

 private:
  // The only other ring of this process, -1 for none.
  static int RingBut(int own) {
    for (const auto& fd : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code gone;
      const int number = std::stoi(fd.path().filename().string());
      const auto what = std::filesystem::read_symlink(fd.path(), gone).string();
      if (number != own && what == "anon_inode:[io_uring]") return number;
    }
    return -1;
  }

  char* base_ = nullptr;
  size_t size_ = 0;
};

// The kernel says EBADR to one call only, and before Linux 5.19 to none: the count stays.
TEST_F(UringReleaseTest, ACompletionThatIsCountedAsDroppedEndsTheRing) {
  const StreamPtr other = Open({});
  PlainSocket other_peer = peers_.Accept();
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  DroppedCount dropped;
  ASSERT_TRUE(dropped.found());
  EXPECT_EQ(loop_->engine(), EngineKind::kUring);
  dropped.Add();
  ExpectRingEnds(*other, other_peer);
}

TEST_F(UringReleaseTest, AnAcceptThatCannotBeCancelledGoesOnAndIsToldToEndAgain) {
  const auto listener = Listen();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  sys_.swallowed = RingOp::kAccept;
  sys_.misses_cancels = true;
  for (const int times : {1, 2}) {
    listener->Pause();
    ASSERT_TRUE(PollUntil([&] { return LinesWith("cannot be cancelled, and goes on") == times; }));
    listener->Resume();
  }
  EXPECT_EQ(loop_->Snapshot().faults_uring, 2u);
  EXPECT_FALSE(Logged("stays closing"));
}

class UringRescueTest : public UringReleaseTest {
 protected:
  static constexpr size_t kStreams = 150;

  void SetUp() override {
    UringReleaseTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_TRUE(loop_->EnableEngine(EngineKind::kEpoll).ok());
    while (others_.size() < kStreams - 1) {
      others_.push_back(Open({}));
      peers_.Accept().Close();
    }
  }
  void TearDown() override {
    others_.clear();
    UringReleaseTest::TearDown();
  }

  std::vector<StreamPtr> others_;
};

TEST_F(UringRescueTest, WhileEpollTakesNothingOneStreamIsTriedAtATime) {
  const auto listener = Listen();
  sys_.add_error = ENOSPC;
  Break(EBADF);
  ASSERT_TRUE(PollUntil([&] { return Logged("waits for epoll"); }));
  sys_.Set({});
  const uint64_t before = loop_->Snapshot().moves_refused;
  Pass(absl::Seconds(10));
  const uint64_t refused = loop_->Snapshot().moves_refused - before;
  EXPECT_GE(refused, 1u) << "it is tried again";
  EXPECT_LE(refused, 50u) << "no more than once in each of these turns";
  EXPECT_LE(LinesWith("add listener"), 1);
  EXPECT_EQ(loop_->Snapshot().listener_switches_refused, 1u);
  sys_.add_error = 0;
  for (int i = 0; i < 10 && loop_->Snapshot().open_uring > 0; ++i) Pass(absl::Seconds(1));
  EXPECT_EQ(loop_->Snapshot().switches_to_epoll, kStreams);
  EXPECT_EQ(loop_->Snapshot().stranded, 0u);
  ExpectAccepts(*listener);
}

TEST_F(UringRescueTest, NoTurnTakesAllOfThem) {
  Break(EBADF);
  uint64_t most = 0, before = 0;
  ASSERT_TRUE(PollUntil([&] {
    const uint64_t now = loop_->Snapshot().switches_to_epoll;
    most = std::max(most, now - std::exchange(before, now));
    return now == kStreams;
  }));
  EXPECT_LE(most, 32u);
}

}  // namespace
}  // namespace penstock::internal
