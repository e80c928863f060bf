#include "engine/uring_engine.h"

#include <gtest/gtest.h>
#include <penstock/buffer.h>
#include <penstock/connect.h>
#include <penstock/loop.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "base/sys.h"
#include "engine/loop_core.h"
#include "testing/environment.h"
#include "testing/patient_poll.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

class CountingAcceptor : public Acceptor {
 public:
  explicit CountingAcceptor(int& accepted) : accepted_(accepted) {}
  void OnAccepted(int fd, const SocketAddress&) override {
    ++accepted_;
    RealSys().Close(fd);
  }
  void OnAcceptFailed(int error) override { ADD_FAILURE() << error; }
  void OnReleased() override {}

 private:
  int& accepted_;
};

// The completion queue holds 4,096, and a cancellation completes as it is submitted. Each accept
// that it ends is armed again, so that something is submitted while the queue is being read.
TEST(UringEngine, LosesNoneOfMoreCompletionsThanItsQueueHolds) {
  constexpr uint64_t kAcceptors = 6'000;
  LoopOptions options;
  options.engine = EngineKind::kUring;
  options.turn_events_max = 4 * kAcceptors;
  absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
  if (absl::IsUnimplemented(loop.status())) GTEST_SKIP() << loop.status();
  ASSERT_TRUE(loop.ok()) << loop.status();
  const auto poll_until = [&](auto done) {
    while (!done()) {
      if (!(*loop)->Poll() && !done() && !PatientPoll((*loop)->fd(), POLLIN, 10'000)) return false;
    }
    return true;
  };
  Engine& engine = (*loop)->core().primary();
  const PlainSocket listener = PlainSocket::Listen(*SocketAddress::Parse("127.0.0.1:0"), 16);
  int accepted = 0;
  std::deque<CountingAcceptor> acceptors;
  for (uint64_t i = 0; i < kAcceptors; ++i) {
    CountingAcceptor& acceptor = acceptors.emplace_back(accepted);
    acceptor.fd = listener.fd();
    ASSERT_TRUE(engine.Add(acceptor).ok());
    engine.Accept(acceptor);
  }
  while ((*loop)->Poll()) {
  }
  const LoopSnapshot before = (*loop)->Snapshot();
  for (CountingAcceptor& acceptor : acceptors) {
    engine.StopAccepting(acceptor);
    engine.Accept(acceptor);
  }
  // Of each the cancellation and what it ended; and the accept that follows.
  EXPECT_TRUE(poll_until([&] {
    const LoopSnapshot now = (*loop)->Snapshot();
    return now.cqes - before.cqes >= 2 * kAcceptors && now.sqes - before.sqes >= 2 * kAcceptors;
  }));
  const PlainSocket client = PlainSocket::Connect(listener.local());
  EXPECT_TRUE(poll_until([&] { return accepted > 0; }));
  EXPECT_EQ(accepted, 1);
  EXPECT_EQ((*loop)->Snapshot().faults, 0u);
}

// One eventfd is refused while `refuse` is set.
class NoEventFd : public Sys {
 public:
  int EventFd() override { return refuse ? -EMFILE : Sys::EventFd(); }
  bool refuse = false;
};

TEST(UringEngine, WhatCannotBeWatchedIsNotASecondEngine) {
  NoEventFd sys;
  LoopOptions options;
  options.engine = EngineKind::kEpoll;
  absl::StatusOr<std::unique_ptr<Loop>> loop =
      LoopCore::CreateLoop(std::move(options), {.sys = &sys, .engines = {}});
  ASSERT_TRUE(loop.ok()) << loop.status();
  sys.refuse = true;
  const absl::Status refused = (*loop)->EnableEngine(EngineKind::kUring);
  if (absl::IsUnimplemented(refused)) GTEST_SKIP() << refused;
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  sys.refuse = false;
  EXPECT_TRUE((*loop)->EnableEngine(EngineKind::kUring).ok());
}

// In a pool whose blocks are secret, one that was lent again still holds an earlier stream's bytes.
TEST(UringEngine, WipesAllThatTheKernelWroteToASecretBlock) {
  BufferPool pool({.secret = true});
  {
    LoopOptions options;
    options.engine = EngineKind::kUring;
    options.pool = &pool;
    absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
    if (absl::IsUnimplemented(loop.status())) GTEST_SKIP() << loop.status();
    ASSERT_TRUE(loop.ok()) << loop.status();
    Loop* const driven[] = {loop->get()};
    PlainSocket listener = PlainSocket::Listen(*SocketAddress::Parse("127.0.0.1:0"), 16);
    for (const size_t size : {12'000, 600, 9'000, 5'000, 700, 20}) {
      StreamPtr stream;
      Connect(**loop, listener.local(), {},
              [&](absl::StatusOr<StreamPtr> made) { stream = *std::move(made); });
      ASSERT_TRUE(DriveLoops(driven, [&] { return stream != nullptr; }));
      PlainSocket peer = listener.Accept();
      bool read = false;
      stream->ReadReady([&](absl::StatusOr<Buffer> data) { read = data.ok(); });
      SettleLoops(driven);
      ASSERT_EQ(peer.Send(std::string(size, 's')), static_cast<int64_t>(size));
      ASSERT_TRUE(DriveLoops(driven, [&] { return read; }));
      // What comes now, for a stream that has gone, stays in the block that it came in.
      ASSERT_GT(peer.Send(std::string(size, 's')), 0);
      stream = nullptr;
      SettleLoops(driven);
    }
  }
  for (int i = 0; i < 64; ++i) {
    Buffer buffer = pool.TryAllocate(16384);
    ASSERT_TRUE(buffer);
    EXPECT_EQ(std::count(buffer.mutable_data(), buffer.mutable_data() + 16384, 's'), 0) << i;
  }
}

}  // namespace
}  // namespace penstock::internal
