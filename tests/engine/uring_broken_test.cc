// A ring whose io_uring_enter fails for good: it is closed, and epoll goes on with what it had.
// Moves away from it end, and no byte is lost.
#include <penstock/buffer.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "absl/functional/function_ref.h"
#include "engine/loop_core.h"
#include "testing/fault_sys.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

struct Broken {
  const char* name;
  EngineKind primary;
  bool embedded;  // a host watches the loop's descriptor, so that its engines keep their places
  int error;
};

class UringBrokenTest : public ::testing::TestWithParam<Broken> {
 protected:
  void SetUp() override {
    LoopOptions options;
    options.engine = GetParam().primary;
    options.log = [](LogSeverity, const char*, int, std::string_view) {};
    absl::StatusOr<std::unique_ptr<Loop>> loop =
        LoopCore::CreateLoop(std::move(options), {.sys = &sys_, .engines = {}});
    if (absl::IsUnimplemented(loop.status())) GTEST_SKIP() << loop.status();
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
    const absl::Status uring = loop_->EnableEngine(EngineKind::kUring);
    if (absl::IsUnimplemented(uring)) GTEST_SKIP() << uring;
    if (GetParam().embedded) loop_->fd();
    peers_ = PlainSocket::Listen(*SocketAddress::Parse("127.0.0.1:0"), 16);
    stream_ = Open({});
    ASSERT_NE(stream_, nullptr);
    peer_ = peers_.Accept();
  }
  void TearDown() override {
    stream_ = nullptr;
    loop_ = nullptr;
  }

  StreamPtr Open(StreamOptions options) {
    StreamPtr stream;
    ConnectOptions connecting;
    connecting.engine = EngineKind::kUring;
    connecting.stream = options;
    Connect(*loop_, peers_.local(), connecting,
            [&](absl::StatusOr<StreamPtr> made) { stream = *std::move(made); });
    EXPECT_TRUE(PollUntil([&] { return stream != nullptr; }));
    return stream;
  }
  bool PollUntil(absl::FunctionRef<bool()> done) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    while (!done()) {
      loop_->Poll();
      if (std::chrono::steady_clock::now() > limit) return false;
    }
    return true;
  }
  void Break() {
    sys_.Set({.call = Call::kRingEnter, .error = GetParam().error, .nth = 1, .persistent = true});
  }
  void Read() {
    stream_->ReadReady([this](absl::StatusOr<Buffer> data) {
      if (!data.ok()) return;
      received_ += data->view();
      Read();
    });
  }
  void ExpectEcho(Stream& stream, PlainSocket& peer) {
    ASSERT_EQ(peer.Send("there"), 5);
    std::optional<std::string> got;
    stream.ReadReady([&](absl::StatusOr<Buffer> data) {
      got = data.ok() ? std::string(data->view()) : data.status().ToString();
    });
    ASSERT_TRUE(PollUntil([&] { return got.has_value(); }));
    EXPECT_EQ(*got, "there");
  }

  FaultSys sys_;
  std::unique_ptr<Loop> loop_;
  PlainSocket peers_;
  PlainSocket peer_;
  StreamPtr stream_;
  std::string received_;
};

TEST_P(UringBrokenTest, ASwitchAwayFromItEnds) {
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();  // the receive is armed
  Break();
  ASSERT_EQ(peer_.Send("before"), 6);
  std::optional<absl::Status> moved;
  SwitchEngine(*stream_, EngineKind::kEpoll, [&](absl::Status status) { moved = status; });
  ASSERT_TRUE(PollUntil([&] { return moved.has_value(); }));
  EXPECT_TRUE(moved->ok()) << *moved;
  EXPECT_EQ(stream_->stats().engine, EngineKind::kEpoll);
  ASSERT_EQ(peer_.Send(" and after"), 10);
  ASSERT_TRUE(PollUntil([&] { return received_.size() == 16; }));
  EXPECT_EQ(received_, "before and after");
  EXPECT_GT(loop_->Snapshot().faults_uring, 0u);
  EXPECT_EQ(loop_->Snapshot().faults_epoll, 0u);
  EXPECT_EQ(loop_->Snapshot().stranded, 0u);
}

TEST_P(UringBrokenTest, WhatItServedGoesOn) {
  StreamOptions pinned;
  pinned.pinned_engine = true;
  const StreamPtr stays = Open(pinned);
  PlainSocket stays_peer = peers_.Accept();
  ListenOptions listening;
  listening.engine = EngineKind::kUring;
  listening.stream = pinned;
  StreamPtr accepted;
  const auto listener = *Listener::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), listening,
                                          [&](StreamPtr stream) { accepted = std::move(stream); });
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break();
  ASSERT_EQ(peer_.Send("goes"), 4);  // nobody looks at a second engine that has nothing to tell
  ASSERT_TRUE(PollUntil([&] { return stream_->stats().engine == EngineKind::kEpoll; }));
  ASSERT_EQ(peer_.Send(" on"), 3);
  ASSERT_TRUE(PollUntil([&] { return received_ == "goes on"; }));
  ExpectEcho(*stays, stays_peer);
  PlainSocket client = PlainSocket::Connect(listener->address());
  ASSERT_TRUE(PollUntil([&] { return accepted != nullptr; }));
  ExpectEcho(*accepted, client);
  const EngineKind own = GetParam().embedded ? GetParam().primary : EngineKind::kEpoll;
  EXPECT_EQ(loop_->engine(), own);
  bool fired = false, posted = false;
  Timer timer(*loop_);
  timer.Arm(absl::Milliseconds(1), [&] { fired = true; });
  loop_->Post([&] { posted = true; });
  EXPECT_TRUE(PollUntil([&] { return fired && posted; }));
}

TEST_P(UringBrokenTest, NobodyGoesBackToIt) {
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break();
  ASSERT_EQ(peer_.Send("one"), 3);
  ASSERT_TRUE(PollUntil([&] { return stream_->stats().engine == EngineKind::kEpoll; }));
  std::optional<absl::Status> moved;
  SwitchEngine(*stream_, EngineKind::kUring, [&](absl::Status status) { moved = status; });
  ASSERT_TRUE(PollUntil([&] { return moved.has_value(); }));
  EXPECT_TRUE(absl::IsUnavailable(*moved)) << *moved;
  EXPECT_TRUE(absl::IsUnavailable(SwitchAll(*loop_, EngineKind::kUring)));
  constexpr auto kToUring = static_cast<size_t>(MoveDirection::kToUring);
  constexpr auto kGone = static_cast<size_t>(MoveRefusal::kGone);
  EXPECT_EQ(loop_->Snapshot().moves_refused_by[kToUring][kGone], 1u);
  ASSERT_EQ(peer_.Send(" two"), 4);
  ASSERT_TRUE(PollUntil([&] { return received_ == "one two"; }));
}

// A sweep that is refused because the ring has failed meanwhile makes it nobody's first engine.
TEST_P(UringBrokenTest, ASweepThatBeginsAsItFailsChangesNothing) {
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break();
  ASSERT_EQ(peer_.Send("goes "), 5);  // nobody looks at a second engine that has nothing to tell
  ASSERT_TRUE(PollUntil([&] { return !SwitchAll(*loop_, EngineKind::kUring).ok(); }));
  ASSERT_TRUE(PollUntil([&] { return stream_->stats().engine == EngineKind::kEpoll; }));
  for (int i = 0; i < 100; ++i) loop_->Poll();
  EXPECT_EQ(loop_->engine(), GetParam().embedded ? GetParam().primary : EngineKind::kEpoll);
  ASSERT_EQ(peer_.Send("on"), 2);
  ASSERT_TRUE(PollUntil([&] { return received_ == "goes on"; }));
  bool fired = false;
  Timer timer(*loop_);
  timer.Arm(absl::Milliseconds(1), [&] { fired = true; });
  EXPECT_TRUE(PollUntil([&] { return fired; }));
}

TEST_P(UringBrokenTest, WhatItWasToLetGoOfCloses) {
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break();
  stream_ = nullptr;
  EXPECT_EQ(loop_->Snapshot().closing, 1u);
  ASSERT_TRUE(PollUntil([&] { return loop_->Snapshot().closing == 0; }));
  EXPECT_EQ(loop_->Snapshot().pinned_bytes, 0u);
}

TEST_P(UringBrokenTest, FailuresThatPassBreakNothing) {
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break();
  for (int i = 0; i < 12; ++i) loop_->Poll();
  sys_.Clear();
  ASSERT_EQ(peer_.Send("still here"), 10);
  ASSERT_TRUE(PollUntil([&] { return received_ == "still here"; }));
  EXPECT_EQ(stream_->stats().engine, EngineKind::kUring);
}

INSTANTIATE_TEST_SUITE_P(
    Loops, UringBrokenTest,
    ::testing::Values(Broken{"Uring", EngineKind::kUring, false, EBADF},
                      Broken{"UringWithoutMemory", EngineKind::kUring, false, EAGAIN},
                      Broken{"UringWithAHost", EngineKind::kUring, true, ENOMEM},
                      Broken{"BesideEpoll", EngineKind::kEpoll, false, EINVAL}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace penstock::internal
