#include "engine/uring_engine.h"

#include <gtest/gtest.h>
#include <penstock/buffer.h>
#include <penstock/connect.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <deque>
#include <functional>
#include <future>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/sys.h"
#include "engine/loop_core.h"
#include "testing/environment.h"
#include "testing/patient_poll.h"
#include "testing/pattern.h"
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
  void OnNotReleased() override { ADD_FAILURE() << "a cancel that the kernel took"; }

 private:
  int& accepted_;
};

// Counts every io_uring_enter, those that liburing makes for itself included, and refuses each
// third one while `hesitates` is set.
class HesitantSys : public Sys {
 public:
  int RingEnter() override { return ++enters % 3 == 0 && hesitates ? -EAGAIN : 0; }
  int enters = 0;
  bool hesitates = false;
};

// The completion queue holds 4,096, and a cancellation completes as it is submitted. Each accept
// that it ends is armed again, so that something is submitted while the queue is being read. The
// submission queue holds 256: the rest is submitted in between, and what the kernel refuses then is
// tried again.
TEST(UringEngine, LosesNoneOfMoreCompletionsThanItsQueueHolds) {
  constexpr uint64_t kAcceptors = 6'000;
  LoopOptions options;
  options.engine = EngineKind::kUring;
  options.turn_events_max = 4 * kAcceptors;
  HesitantSys sys;
  absl::StatusOr<std::unique_ptr<Loop>> loop =
      LoopCore::CreateLoop(std::move(options), {.sys = &sys, .engines = nullptr});
  if (absl::IsUnimplemented(loop.status())) GTEST_SKIP() << loop.status();
  ASSERT_TRUE(loop.ok()) << loop.status();
  const auto poll_until = [&](auto done) {
    while (!done()) {
      if (!(*loop)->Poll() && !done() && !PatientPoll((*loop)->fd(), POLLIN, 300'000)) return false;
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
  const int enters = sys.enters;
  (*loop)->Poll();
  EXPECT_GT(sys.enters - enters, 20) << "not every enter can be refused";
  while ((*loop)->Poll()) {
  }
  sys.hesitates = true;
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

// What the kernel tells of watched descriptors, the next `failures` times, is that it cannot watch.
class DeafSys : public Sys {
 public:
  void RingCompletion(RingOp op, int32_t* result, uint32_t* flags) override {
    if (op != RingOp::kWatch) return;
    int left = failures;
    while (left > 0 && !failures.compare_exchange_weak(left, left - 1)) {
    }
    if (left <= 0) return;
    *result = -ENOMEM;
    *flags &= ~uint32_t{IORING_CQE_F_MORE};
  }
  std::atomic<int> failures{0};
};

class WatchFailureTest : public ::testing::Test {
 protected:
  void SetUp() override {
    LoopOptions options;
    options.engine = EngineKind::kUring;
    options.log = [this](LogSeverity, const char*, int, std::string_view text) {
      if (text.find("given up") != std::string_view::npos) ++given_up_;
    };
    absl::StatusOr<std::unique_ptr<Loop>> loop =
        LoopCore::CreateLoop(std::move(options), {.sys = &sys_, .engines = {}});
    if (absl::IsUnimplemented(loop.status())) GTEST_SKIP() << loop.status();
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
  }

  DeafSys sys_;
  std::atomic<int> given_up_{0};
  std::unique_ptr<Loop> loop_;
};

TEST_F(WatchFailureTest, AWatchThatFailsIsArmedAgain) {
  std::thread thread([&] { loop_->Run(); });
  const auto answers = [&] {
    auto answered = std::make_shared<std::promise<void>>();
    loop_->Post([answered] { answered->set_value(); });
    return answered->get_future().wait_for(std::chrono::minutes(5)) == std::future_status::ready;
  };
  // One less than are in a row before a watch is given up, and then one that may follow at once.
  for (const int failures : {0, 1, 5, 0, 14, 1}) {
    sys_.failures = failures;
    EXPECT_TRUE(answers()) << failures << " failures in a row";
    EXPECT_TRUE(answers()) << "a post wakes it after " << failures << " failures";
  }
  sys_.failures = 0;
  loop_->Stop();
  thread.join();
  EXPECT_EQ(given_up_, 0);
}

TEST_F(WatchFailureTest, OneThatNeverWorksIsReportedAndLeftAlone) {
  while (loop_->Poll()) {
  }
  sys_.failures = 1000;
  loop_->Post([] {});  // the loop sleeps, as far as posters know
  int polls = 0;
  while (polls < 1000 && loop_->Poll()) ++polls;
  EXPECT_LT(polls, 1000) << "it spins";
  EXPECT_EQ(given_up_, 1);
  EXPECT_EQ(loop_->Snapshot().faults, 16u);
}

TEST_F(WatchFailureTest, OneThatWasGivenUpLeavesItsSlot) {
  class Quiet : public Watch {
   public:
    void OnReadable() override {}
  };
  while (loop_->Poll()) {
  }
  Engine& engine = loop_->core().primary();
  Quiet deaf, next;
  deaf.fd = next.fd = sys_.EventFd();
  ASSERT_TRUE(engine.AddWatch(deaf).ok());
  sys_.failures = 1000;
  const uint64_t one = 1;
  sys_.Write(deaf.fd, &one, sizeof one);
  while (loop_->Poll()) {
  }
  ASSERT_EQ(deaf.failures, 16u);
  EXPECT_GE(given_up_, 1);
  sys_.failures = 0;
  engine.RemoveWatch(deaf.slot, deaf.fd);
  ASSERT_TRUE(engine.AddWatch(next).ok());
  EXPECT_EQ(next.slot, deaf.slot);
  loop_.reset();
  sys_.Close(next.fd);
}

// One dispatch in a turn: of two completions that the queue holds, one waits while the move of its
// stream begins. That one is late, and no other.
TEST(UringEngine, CountsEveryReceiveThatCompletedAfterItsCancel) {
  LoopOptions options;
  options.engine = EngineKind::kUring;
  options.turn_events_max = 1;
  absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
  if (absl::IsUnimplemented(loop.status())) GTEST_SKIP() << loop.status();
  ASSERT_TRUE(loop.ok()) << loop.status();
  Loop* const driven[] = {loop->get()};
  PlainSocket listener = PlainSocket::Listen(*SocketAddress::Parse("127.0.0.1:0"), 16);
  struct End {
    StreamPtr stream;
    PlainSocket peer;
    std::string received;
    bool read = false;
    void Read() {
      read = false;
      stream->ReadReady([this](absl::StatusOr<Buffer> data) {
        ASSERT_TRUE(data.ok()) << data.status();
        received += data->view();
        read = true;
      });
    }
  };
  End ends[2];
  for (End& end : ends) {
    Connect(**loop, listener.local(), {},
            [&end](absl::StatusOr<StreamPtr> made) { end.stream = *std::move(made); });
    ASSERT_TRUE(DriveLoops(driven, [&] { return end.stream != nullptr; }));
    end.peer = listener.Accept();
  }
  constexpr uint64_t kRounds = 20;
  uint64_t late = 0;
  for (uint64_t round = 0; round < kRounds; ++round) {
    for (End& end : ends) end.Read();
    SettleLoops(driven);  // both receives are armed
    for (End& end : ends) ASSERT_EQ(end.peer.Send("0123456789"), 10);
    ASSERT_TRUE(DriveLoops(driven, [&] { return ends[0].read || ends[1].read; }));
    ASSERT_FALSE(ends[0].read && ends[1].read) << "two were dispatched in one turn";
    End& other = ends[ends[0].read ? 1 : 0];
    const uint64_t before = other.stream->stats().bytes_in;
    bool moved = false;
    SwitchEngine(*other.stream, EngineKind::kEpoll, [&](absl::Status status) {
      ASSERT_TRUE(status.ok()) << status;
      // What the new engine brings comes after this.
      late += other.stream->stats().bytes_in > before;
      moved = true;
    });
    ASSERT_TRUE(DriveLoops(driven, [&] { return moved && other.read; }));
    bool back = false;
    SwitchEngine(*other.stream, EngineKind::kUring, [&](absl::Status) { back = true; });
    ASSERT_TRUE(DriveLoops(driven, [&] { return back; }));
    for (const End& end : ends) ASSERT_EQ(end.received.size(), 10 * (round + 1));
  }
  EXPECT_EQ((*loop)->Snapshot().late_completions, late);
  EXPECT_GT(late, 0u) << "no completion was ever late";
  for (End& end : ends) end.stream = nullptr;
}

// One dispatch in a turn again, and large receives: when the first read asks for the moves, the
// queue holds several completions of each stream. Of three streams they take all buffers, so that
// some receives end for want of one, with their bytes left in the socket.
TEST(UringEngine, KeepsWhatSeveralReceivesBroughtBeforeAMove) {
  for (const size_t count : {1, 3}) {
    LoopOptions options;
    options.engine = EngineKind::kUring;
    options.turn_events_max = 1;
    options.ring_buffers_max = 8;
    absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
    if (absl::IsUnimplemented(loop.status())) GTEST_SKIP() << loop.status();
    ASSERT_TRUE(loop.ok()) << loop.status();
    Loop* const driven[] = {loop->get()};
    PlainSocket listener = PlainSocket::Listen(*SocketAddress::Parse("127.0.0.1:0"), 16);
    constexpr size_t kBytes = 60'000;
    struct End {
      StreamPtr stream;
      PlainSocket peer;
      std::string received;
    };
    std::vector<End> ends(count);
    size_t moved = 0;
    bool asked = false;
    const std::function<void(End&)> read = [&](End& end) {
      end.stream->ReadReady([&](absl::StatusOr<Buffer> data) {
        ASSERT_TRUE(data.ok()) << data.status();
        end.received += data->view();
        read(end);
        if (std::exchange(asked, true)) return;
        for (End& each : ends) {
          SwitchEngine(*each.stream, EngineKind::kEpoll, [&](absl::Status status) {
            EXPECT_TRUE(status.ok()) << status;
            ++moved;
          });
        }
      });
    };
    for (End& end : ends) {
      ConnectOptions connecting;
      connecting.stream.receive_buffer = 400'000;
      Connect(**loop, listener.local(), connecting,
              [&end](absl::StatusOr<StreamPtr> made) { end.stream = *std::move(made); });
      ASSERT_TRUE(DriveLoops(driven, [&] { return end.stream != nullptr; }));
      end.peer = listener.Accept();
      read(end);
    }
    SettleLoops(driven);  // the receives are armed
    for (size_t i = 0; i < count; ++i) {
      ASSERT_EQ(ends[i].peer.Send(PatternBytes(i, 0, kBytes)), static_cast<int64_t>(kBytes));
    }
    ASSERT_TRUE(DriveLoops(driven, [&] {
      return moved == count && std::all_of(ends.begin(), ends.end(), [](const End& end) {
               return end.received.size() == kBytes;
             });
    }));
    for (size_t i = 0; i < count; ++i) {
      EXPECT_FALSE(FirstMismatch(ends[i].received, i, 0).has_value()) << i;
    }
    const LoopSnapshot now = (*loop)->Snapshot();
    EXPECT_GE(now.late_completions, 3u);
    if (count > 1) {
      EXPECT_GT(now.ring_exhausted, 0u);
    }
    EXPECT_EQ(now.faults, 0u);
  }
}

// Answers cancels as the kernel does when it finds nothing to cancel, or finds it running: the next
// `refusals` of them. `keeps`: and what was told to end does not, as far as the engine can see.
class StubbornSys : public Sys {
 public:
  void RingCompletion(RingOp op, int32_t* result, uint32_t* flags) override {
    if (op == RingOp::kReceive && keeps && *result == -ECANCELED) {
      *result = -EAGAIN;
      *flags |= IORING_CQE_F_MORE;
    }
    if (op != RingOp::kCancel || refusals == 0) return;
    --refusals;
    *result = ++refused % 2 == 0 ? -EALREADY : -ENOENT;
  }
  int refusals = 0;
  int refused = 0;
  bool keeps = false;
};

class StubbornCancelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    LoopOptions options;
    options.engine = EngineKind::kUring;
    options.log = [](LogSeverity, const char*, int, std::string_view) {};
    absl::StatusOr<std::unique_ptr<Loop>> loop =
        LoopCore::CreateLoop(std::move(options), {.sys = &sys_, .engines = {}});
    if (absl::IsUnimplemented(loop.status())) GTEST_SKIP() << loop.status();
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
    PlainSocket listener = PlainSocket::Listen(*SocketAddress::Parse("127.0.0.1:0"), 16);
    Connect(*loop_, listener.local(), {},
            [this](absl::StatusOr<StreamPtr> made) { stream_ = *std::move(made); });
    ASSERT_TRUE(Drive([&] { return stream_ != nullptr; }));
    peer_ = listener.Accept();
  }
  bool Drive(absl::FunctionRef<bool()> done) {
    Loop* const driven[] = {loop_.get()};
    return DriveLoops(driven, done);
  }
  void Read() {
    stream_->ReadReady([this](absl::StatusOr<Buffer> data) {
      ++reads_;
      if (!data.ok()) return;
      received_ += data->view();
      Read();
    });
  }
  absl::Status Switch(EngineKind to) {
    absl::Status how;
    int ends = 0;
    SwitchEngine(*stream_, to, [&](absl::Status status) {
      how = std::move(status);
      ++ends;
    });
    EXPECT_TRUE(Drive([&] { return ends > 0; }));
    EXPECT_EQ(ends, 1);
    return how;
  }

  StubbornSys sys_;
  std::unique_ptr<Loop> loop_;
  StreamPtr stream_;
  PlainSocket peer_;
  std::string received_;
  int reads_ = 0;
};

TEST_F(StubbornCancelTest, ACancelThatFindsNothingIsRepeatedUntilTheTerminalCompletionComes) {
  Read();
  std::string sent;
  for (const int refusals : {1, 2, 3, 4, 5, 20, 99}) {
    // With nothing on the wire, and with bytes that the cancel meets.
    for (const bool racing : {false, true}) {
      Loop* const driven[] = {loop_.get()};
      SettleLoops(driven);  // the receive is armed
      sys_.refusals = refusals;
      const std::string piece(static_cast<size_t>(100 * refusals), static_cast<char>('a' + racing));
      if (racing) {
        ASSERT_EQ(peer_.Send(piece), static_cast<int64_t>(piece.size()));
        sent += piece;
      }
      const absl::Status there = Switch(EngineKind::kEpoll);
      EXPECT_TRUE(there.ok()) << refusals << ": " << there;
      ASSERT_EQ(peer_.Send("after"), 5);
      sent += "after";
      ASSERT_TRUE(Drive([&] { return received_.size() == sent.size(); }));
      sys_.refusals = 0;
      const absl::Status back = Switch(EngineKind::kUring);
      EXPECT_TRUE(back.ok()) << back;
    }
  }
  EXPECT_EQ(received_, sent);
  EXPECT_GT(sys_.refused, 10) << "no cancel was refused";
  EXPECT_EQ(loop_->Snapshot().faults, 0u);
  EXPECT_EQ(loop_->Snapshot().moves_refused, 0u);
}

TEST_F(StubbornCancelTest, AReceiveThatNeverEndsKeepsItsStream) {
  Read();
  Loop* const driven[] = {loop_.get()};
  SettleLoops(driven);
  sys_.keeps = true;
  sys_.refusals = 1000;
  const absl::Status status = Switch(EngineKind::kEpoll);
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_EQ(stream_->stats().engine, EngineKind::kUring);
  const LoopSnapshot now = loop_->Snapshot();
  EXPECT_EQ(now.moves_refused, 1u);
  constexpr auto kHeld = static_cast<size_t>(MoveRefusal::kHeld);
  EXPECT_EQ(now.moves_refused_by[static_cast<size_t>(MoveDirection::kToEpoll)][kHeld], 1u);
  EXPECT_EQ(now.faults_uring, 1u);
  EXPECT_EQ(now.stranded, 0u);
  const auto pauses =
      std::accumulate(std::begin(now.move_pauses), std::end(now.move_pauses), uint64_t{0});
  EXPECT_EQ(pauses, 1u) << "it was not served meanwhile";
  EXPECT_EQ(reads_, 0) << "a move that fails ends no read";
  bool written = false;
  stream_->Write(*loop_->pool().Copy("it still sends"), [&](absl::Status sent) {
    EXPECT_TRUE(sent.ok()) << sent;
    written = true;
  });
  EXPECT_TRUE(Drive([&] { return written; }));
  // Its connection then stays closing, which is told, until the ring goes.
  stream_ = nullptr;
  EXPECT_TRUE(Drive([&] { return loop_->Snapshot().faults_uring == 2; }));
  EXPECT_EQ(loop_->Snapshot().closing, 1u);
  loop_ = nullptr;
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
