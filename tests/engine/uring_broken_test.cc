// A ring whose io_uring_enter fails for good: it is closed, and epoll goes on with what it had, as
// soon as there is one. Moves away from it end, and no byte is lost. One whose failures may pass is
// kept for long.
#include <penstock/adaptive.h>
#include <penstock/buffer.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/loop_core.h"
#include "testing/breaking_ring.h"
#include "testing/fault_sys.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

struct Broken {
  const char* name;
  EngineKind primary;
  bool embedded;  // a host watches the loop's descriptor, so that its engines keep their places
  int error;
  const char* without = "";  // what the kernel lacks
};

class UringBrokenTest : public BreakingRing, public ::testing::WithParamInterface<Broken> {
 protected:
  void SetUp() override {
    Begin(GetParam().primary, GetParam().without);
    if (loop_ != nullptr && GetParam().embedded) loop_->fd();
  }
  using BreakingRing::Break;
  void Break() { Break(GetParam().error); }
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
  ExpectHears(*stays, stays_peer);
  PlainSocket client = PlainSocket::Connect(listener->address());
  ASSERT_TRUE(PollUntil([&] { return accepted != nullptr; }));
  ExpectHears(*accepted, client);
  EXPECT_EQ(loop_->engine(), EngineKind::kEpoll);
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

// A sweep that goes on when the ring has failed meanwhile makes it nobody's first engine.
TEST_P(UringBrokenTest, ASweepThatBeginsAsItFailsChangesNothing) {
  // More than a turn of a sweep looks at: it is in the middle when the streams leave the ring.
  std::vector<StreamPtr> others;
  std::vector<PlainSocket> ends;
  for (int i = 0; i < 150; ++i) {
    others.push_back(Open({}));
    ends.push_back(peers_.Accept());
  }
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break();
  ASSERT_EQ(peer_.Send("goes "), 5);  // nobody looks at a second engine that has nothing to tell
  ASSERT_TRUE(PollUntil([&] { return !SwitchAll(*loop_, EngineKind::kUring).ok(); }));
  ASSERT_TRUE(PollUntil([&] { return stream_->stats().engine == EngineKind::kEpoll; }));
  for (int i = 0; i < 100; ++i) loop_->Poll();
  EXPECT_EQ(loop_->engine(), EngineKind::kEpoll);
  EXPECT_FALSE(Logged("the ring was given up")) << "it was asked to wait for the loop";
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

TEST_P(UringBrokenTest, WhatWasLentToItComesBack) {
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  EXPECT_GT(loop_->pool().Stats().ring, 0u);
  Break();
  ASSERT_EQ(peer_.Send("all"), 3);
  ASSERT_TRUE(PollUntil([&] { return stream_->stats().engine == EngineKind::kEpoll; }));
  EXPECT_EQ(loop_->pool().Stats().ring, 0u);
  ASSERT_EQ(peer_.Send(" of it"), 6);
  ASSERT_TRUE(PollUntil([&] { return received_ == "all of it"; }));
}

// What others of the library have watched, such as the queues of RDMA devices.
TEST_P(UringBrokenTest, WatchesOfOthersGoOn) {
  class Bell : public Watch {
   public:
    explicit Bell(int descriptor) { fd = descriptor; }
    void OnReadable() override { ++rings; }
    int rings = 0;
  };
  const auto ring = [this](const Bell& bell) {
    const uint64_t one = 1;
    sys_.Write(bell.fd, &one, sizeof one);
  };
  Bell early(sys_.EventFd()), late(sys_.EventFd());
  LoopCore& core = loop_->core();
  Engine* const uring = *core.EngineFor(EngineKind::kUring);
  ASSERT_TRUE(uring->AddWatch(early).ok());
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break();
  ring(early);  // nobody hears of this one before it is watched anew
  ASSERT_EQ(peer_.Send("x"), 1);
  ASSERT_TRUE(PollUntil([&] { return stream_->stats().engine == EngineKind::kEpoll; }));
  ASSERT_TRUE(PollUntil([&] { return early.rings > 0; }));
  const int before = early.rings;
  ring(early);
  EXPECT_TRUE(PollUntil([&] { return early.rings > before; }));
  EXPECT_TRUE(absl::IsUnavailable(uring->AddWatch(late)));
  EXPECT_EQ(late.engine, nullptr);
  EXPECT_TRUE((*core.EngineFor(EngineKind::kAuto))->AddWatch(late).ok());
  ring(late);
  EXPECT_TRUE(PollUntil([&] { return late.rings > 0; }));
  for (Bell* bell : {&early, &late}) {
    bell->engine->RemoveWatch(bell->slot, bell->fd);
    sys_.Close(bell->fd);
  }
}

TEST_P(UringBrokenTest, AnAdapterTriesItNoMore) {
  AdaptiveOptions options;
  options.tick = absl::Milliseconds(5);
  const auto adapter = *EngineAdapter::Create(*loop_, options);
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break();
  ASSERT_EQ(peer_.Send("x"), 1);
  ASSERT_TRUE(PollUntil([&] { return stream_->stats().engine == EngineKind::kEpoll; }));
  ASSERT_TRUE(PollUntil([&] { return !adapter->trace().empty(); }));
  EXPECT_NE(adapter->trace().back().find("uring has failed for good"), std::string::npos)
      << adapter->trace().back();
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
                      Broken{"UringThatReceivesOnItsOwn", EngineKind::kUring, false, EBADF,
                             "defer_taskrun"},
                      Broken{"UringWithAHost", EngineKind::kUring, true, ENOMEM},
                      Broken{"BesideEpoll", EngineKind::kEpoll, false, EINVAL}),
    [](const auto& info) { return std::string(info.param.name); });

class UringPatienceTest : public BreakingRing {
 protected:
  void SetUp() override { Begin(EngineKind::kUring); }
};

TEST_F(UringPatienceTest, MemoryThatIsShortForLongBreaksNothing) {
  Read();
  size_t bytes = 0;
  for (const int error : {EAGAIN, EBUSY, ENOMEM}) {
    for (int i = 0; i < 100; ++i) loop_->Poll();
    Break(error);
    ASSERT_EQ(peer_.Send("more"), 4);
    Pass(absl::Seconds(40));
    sys_.Clear();
    bytes += 4;
    ASSERT_TRUE(PollUntil([&] { return received_.size() == bytes; })) << error;
    EXPECT_EQ(stream_->stats().engine, EngineKind::kUring) << error;
  }
  EXPECT_GT(loop_->Snapshot().faults_uring, 0u) << "it is told of";
}

TEST_F(UringPatienceTest, MemoryThatIsShortForTooLongDoes) {
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break(EAGAIN);
  Pass(absl::Seconds(100));
  ASSERT_TRUE(PollUntil([&] { return stream_->stats().engine == EngineKind::kEpoll; }));
}

TEST_F(UringPatienceTest, ALoopThatWaitsByItPausesBetweenTries) {
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break(EAGAIN);
  for (int i = 0; i < 1000 && sys_.polls < 3; ++i) RunFor(absl::Milliseconds(1));
  EXPECT_GE(sys_.polls, 3);
  EXPECT_EQ(stream_->stats().engine, EngineKind::kUring);
}

TEST_F(UringPatienceTest, ALoopThatWaitsByEpollSleepsBetweenTries) {
  ASSERT_TRUE(loop_->EnableEngine(EngineKind::kEpoll).ok());
  bool switched = false;
  ASSERT_TRUE(SwitchAll(*loop_, EngineKind::kEpoll, [&](MoveCount) { switched = true; }).ok());
  ASSERT_TRUE(PollUntil([&] { return switched; }));
  ASSERT_EQ(loop_->engine(), EngineKind::kEpoll);
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break(EAGAIN);
  std::optional<absl::Status> moved;  // has the ring something to do
  SwitchEngine(*stream_, EngineKind::kUring, [&](absl::Status status) { moved = status; });
  Read();
  ASSERT_TRUE(PollUntil([&] { return moved.has_value(); }));
  int polls = 0;  // far from all that it takes until the ring is given up
  while (polls < 1000 && (loop_->Poll() || sys_.count(Call::kRingEnter) < 2)) ++polls;
  EXPECT_LT(polls, 1000) << "it spins";
  EXPECT_EQ(stream_->stats().engine, EngineKind::kUring);
}

TEST_F(UringPatienceTest, WithoutADescriptorForEpollWhatItServedWaits) {
  ListenOptions listening;
  listening.engine = EngineKind::kUring;
  StreamPtr accepted;
  const auto listener = *Listener::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), listening,
                                          [&](StreamPtr stream) { accepted = std::move(stream); });
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  sys_.create_error = EMFILE;
  Break(EBADF);
  ASSERT_EQ(peer_.Send("waits"), 5);
  PlainSocket client = PlainSocket::Connect(listener->address());
  ASSERT_TRUE(PollUntil([&] { return Logged("waits for epoll"); }));
  EXPECT_NE(loop_->engine_reason().find("there is no epoll"), std::string::npos)
      << loop_->engine_reason();
  std::optional<absl::Status> moved;
  SwitchEngine(*stream_, EngineKind::kEpoll, [&](absl::Status status) { moved = status; });
  ASSERT_TRUE(PollUntil([&] { return moved.has_value(); }));
  EXPECT_TRUE(absl::IsResourceExhausted(*moved)) << *moved;
  sys_.Set({});
  const uint64_t turns = loop_->Snapshot().turns;
  RunFor(absl::Milliseconds(300));
  EXPECT_LT(loop_->Snapshot().turns - turns, 100u) << "it does not spin";
  EXPECT_TRUE(end_.ok()) << end_;
  EXPECT_EQ(stream_->stats().engine, EngineKind::kUring);
  sys_.create_error = 0;
  // To take its buffers back the kernel may have run what had come (io_uring_register, Linux 6.1).
  ASSERT_TRUE(PollUntil([&] { return received_ == "waits" && accepted != nullptr; }));
  ASSERT_TRUE(PollUntil([&] { return loop_->engine() == EngineKind::kEpoll; }));
  received_.clear();
  ASSERT_EQ(peer_.Send("goes on"), 7);
  ASSERT_TRUE(PollUntil([&] { return received_ == "goes on"; }));
  ExpectHears(*accepted, client);
  EXPECT_EQ(loop_->Snapshot().stranded, 0u);
}

TEST_F(UringPatienceTest, WhatEpollDoesNotTakeWaits) {
  ASSERT_TRUE(loop_->EnableEngine(EngineKind::kEpoll).ok());
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  sys_.add_error = ENOSPC;
  Break(EBADF);
  ASSERT_EQ(peer_.Send("waits"), 5);
  // The ring goes in the middle of this move.
  std::optional<absl::Status> moved;
  SwitchEngine(*stream_, EngineKind::kEpoll, [&](absl::Status status) { moved = status; });
  ASSERT_TRUE(PollUntil([&] { return moved.has_value(); }));
  EXPECT_FALSE(moved->ok());
  ASSERT_TRUE(PollUntil([&] { return Logged("waits for epoll"); }));
  sys_.Set({});
  const uint64_t turns = loop_->Snapshot().turns;
  RunFor(absl::Milliseconds(300));
  EXPECT_LT(loop_->Snapshot().turns - turns, 100u) << "it does not spin";
  EXPECT_TRUE(end_.ok()) << end_;
  sys_.add_error = 0;
  ASSERT_TRUE(PollUntil([&] { return received_ == "waits"; }));
  EXPECT_TRUE(PollUntil([&] { return loop_->engine() == EngineKind::kEpoll; }));
  EXPECT_EQ(loop_->Snapshot().stranded, 0u);
}

TEST_F(UringPatienceTest, OneThatEpollRefusesOnceDoesNotKeepTheOthers) {
  ASSERT_TRUE(loop_->EnableEngine(EngineKind::kEpoll).ok());
  std::vector<StreamPtr> streams;
  std::vector<PlainSocket> peers;
  std::vector<std::string> received(8);
  for (std::string& text : received) {
    streams.push_back(Open({}));
    peers.push_back(peers_.Accept());
    streams.back()->ReadReady([&text](absl::StatusOr<Buffer> data) {
      text = data.ok() ? std::string(data->view()) : data.status().ToString();
    });
  }
  for (int i = 0; i < 100; ++i) loop_->Poll();
  sys_.sockets_refused = 1;  // it is taken when it is to stay, for its old engine is broken
  Break(EBADF);
  for (PlainSocket& peer : peers) ASSERT_EQ(peer.Send("here"), 4);
  for (const std::string& text : received) {
    EXPECT_TRUE(PollUntil([&] { return text == "here"; })) << text;
  }
  // What had come by then may be there before the ring is given up.
  EXPECT_TRUE(PollUntil([&] { return sys_.sockets_refused == 0; })) << "nothing was refused";
  EXPECT_TRUE(PollUntil([&] {
    return std::ranges::all_of(
        streams, [](const StreamPtr& s) { return s->stats().engine == EngineKind::kEpoll; });
  }));
  EXPECT_EQ(loop_->Snapshot().stranded, 0u);
}

TEST_F(UringPatienceTest, AMoveThatTakesThePlaceOfTheRescueDoesNotKeepAStreamBack) {
  ASSERT_TRUE(loop_->EnableEngine(EngineKind::kEpoll).ok());
  Read();
  for (int i = 0; i < 100; ++i) loop_->Poll();
  Break(EBADF);
  ASSERT_EQ(peer_.Send("here"), 4);
  // Asked in every turn: one of them falls between the rescue's asking and its beginning.
  int asked = 0;
  const bool served = PollUntil([&] {
    if (stream_->stats().engine == EngineKind::kUring && loop_->engine() == EngineKind::kEpoll &&
        asked < 4) {
      ++asked;
      SwitchEngine(*stream_, EngineKind::kUring, nullptr);
    }
    return received_ == "here";
  });
  EXPECT_TRUE(served);
  EXPECT_TRUE(PollUntil([&] { return stream_->stats().engine == EngineKind::kEpoll; }));
}

}  // namespace
}  // namespace penstock::internal
