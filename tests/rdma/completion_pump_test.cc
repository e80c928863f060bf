// The completions of a device on a real loop, of either engine, fed by a fake device.
#include "rdma/completion_pump.h"

#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_kit.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;
using testing::FakeEnd;
using testing::FakeFabric;
using testing::FakeHost;
using testing::VirtualHost;

// A clock that the test moves, and descriptors that a real loop can watch.
class WatchableHost final : public FakeHost {
 public:
  int64_t now_ns() const override { return clock.now_ns(); }
  void After(int64_t delay_ns, Action action) override { clock.After(delay_ns, std::move(action)); }
  int OpenFd() override { return RealSys().EventFd(); }
  void CloseFd(int fd) override { RealSys().Close(fd); }
  void RaiseFd(int fd) override {
    const uint64_t one = 1;
    RealSys().Write(fd, &one, sizeof(one));
  }
  void ClearFd(int fd) override {
    uint64_t count;
    RealSys().Read(fd, &count, sizeof(count));
  }

  VirtualHost clock;
};

// The loop's clock, moved by the test; waits are noted.
class ClockSys final : public Sys {
 public:
  int64_t Now() override { return now_ns; }
  int EpollWait(int epoll, epoll_event* events, int count, int64_t timeout_ns) override {
    if (on_wait) on_wait();
    return Sys::EpollWait(epoll, events, count, timeout_ns);
  }
  int RingEnter() override { return -ring_error; }
  int64_t now_ns = 1'000'000'000;
  int ring_error = 0;
  std::function<void()> on_wait;
};

// What somebody does in a turn of its own.
class Errand : public Deferred {
 public:
  explicit Errand(std::function<void()> act)
      : Deferred([](Deferred* node) { static_cast<Errand*>(node)->act_(); }),
        act_(std::move(act)) {}

 private:
  std::function<void()> act_;
};

class Recorder final : public CompletionSink {
 public:
  void OnCompletion(uint32_t word, const FabricCompletion& completion) override {
    words.push_back(word);
    if (completion.outcome != FabricOutcome::kOk) ++failed;
    if (then) then();
  }
  std::vector<uint32_t> words;
  int failed = 0;
  std::function<void()> then;
};

class CompletionPumpTest : public ::testing::TestWithParam<EngineKind> {
 protected:
  void Begin(CompletionPump::Options options = {}) {
    LoopOptions loop_options;
    loop_options.engine = GetParam();
    LoopCore::Seams seams;
    seams.sys = &sys_;
    auto made = LoopCore::CreateLoop(std::move(loop_options), seams);
    if (!made.ok()) GTEST_SKIP() << made.status();
    loop_ = *std::move(made);
    peer_.emplace(fabric_, "fake1");
    end_.emplace(fabric_, "fake0");
    auto pump = CompletionPump::Create(loop_->core(), *end_->device, std::move(options));
    ASSERT_TRUE(pump.ok()) << pump.status();
    pump_ = *std::move(pump);
    sink_ = pump_->AddSink(recorder_);
    auto& qp = end_->options.qp;
    qp.send_cq = &pump_->send_cq();
    qp.receive_cq = &pump_->cq();
    qp.send_depth = qp.receive_depth = 1024;
    qp_ = *end_->device->CreateQp(qp);
    ASSERT_TRUE(qp_->ToInit({}).ok());
    std::swap(end_->qp, qp_);
    ASSERT_TRUE(end_->Receive(*peer_).ok());
    ASSERT_TRUE(peer_->Receive(*end_).ok());
    ASSERT_TRUE(end_->Send().ok());
    Settle();
  }
  void TearDown() override {
    fabric_.set_on_call(nullptr);
    sys_.on_wait = nullptr;
    if (end_) end_->qp.reset();
    pump_.reset();
    qp_.reset();
    end_.reset();
    peer_.reset();
    for (const std::string& what : fabric_.violations()) ADD_FAILURE() << what;
    EXPECT_EQ(fabric_.objects(), 0u);
  }
  void Write(uint32_t word) {
    ASSERT_EQ(end_->Post(CompletionPump::Tag(sink_, word), FabricOp::kWrite, 0, 8, &*peer_), 0);
  }
  // So many messages of the peer, each into a receive that is named by its number.
  void Receive(uint32_t count) {
    ASSERT_TRUE(peer_->Send().ok());
    for (uint32_t word = 0; word < count; ++word) ReceiveOne(word);
  }
  void ReceiveOne(uint32_t word) {
    ASSERT_EQ(end_->PostReceive(CompletionPump::Tag(sink_, word), 0, 8), 0);
    ASSERT_EQ(peer_->Post(0, FabricOp::kSend, 0, 8), 0);
    Deliver();
    peer_->Poll();
  }
  void Deliver() { host_.clock.Advance(absl::Milliseconds(1)); }
  // Turns until nothing is left to do; how many.
  int Settle() {
    int turns = 1;
    while (loop_->Poll() && turns < 10'000) ++turns;
    return turns;
  }

  WatchableHost host_;
  FakeFabric fabric_{host_, 1};
  ClockSys sys_;
  std::unique_ptr<Loop> loop_;
  std::optional<FakeEnd> peer_;
  std::optional<FakeEnd> end_;
  std::unique_ptr<CompletionPump> pump_;
  std::unique_ptr<FabricQp> qp_;
  Recorder recorder_;
  uint32_t sink_ = 0;
};

TEST_P(CompletionPumpTest, ACompletionWakesTheLoopAndFindsItsSink) {
  Begin();
  if (IsSkipped()) return;
  for (uint32_t word = 7; word < 10; ++word) {
    Write(word);
    Deliver();
    Settle();
  }
  EXPECT_EQ(recorder_.words, (std::vector<uint32_t>{7, 8, 9}));
  EXPECT_EQ(pump_->stats().events, 3u);
  EXPECT_EQ(pump_->stats().sleeps, 3u);
  EXPECT_EQ(pump_->stats().spins, 0u);
}

TEST_P(CompletionPumpTest, ACompletionBetweenTheEmptyPollAndArmingIsSeen) {
  Begin();
  if (IsSkipped()) return;
  bool raced = false;
  fabric_.set_on_call([&](FakeCall call) {
    if (call != FakeCall::kArm || std::exchange(raced, true)) return;
    Write(2);
    Deliver();
  });
  Write(1);
  Deliver();
  Settle();
  EXPECT_TRUE(raced);
  EXPECT_EQ(recorder_.words, (std::vector<uint32_t>{1, 2}));
  // And it sleeps armed.
  Write(3);
  Deliver();
  Settle();
  EXPECT_EQ(recorder_.words.size(), 3u);
}

TEST_P(CompletionPumpTest, WhoeverSomethingHasComeForActsBeforeTheEventIsTaken) {
  Begin();
  if (IsSkipped()) return;
  std::string order;
  fabric_.set_on_call([&](FakeCall call) {
    order += call == FakeCall::kArm ? "arm " : call == FakeCall::kTakeEvents ? "take " : "";
  });
  Errand errand([&] { order += "act "; });
  recorder_.then = [&] { loop_->core().DeferSoon(errand); };
  Write(1);
  Deliver();
  Settle();
  EXPECT_EQ(order, "act take arm ");
}

TEST_P(CompletionPumpTest, TheEndOfASendWakesNobodyUnlessItIsAwaited) {
  CompletionPump::Options options;
  options.send_depth = 64;
  Begin(std::move(options));
  if (IsSkipped()) return;
  Write(1);
  Deliver();
  Settle();
  EXPECT_TRUE(recorder_.words.empty());
  pump_->Look();
  Settle();
  EXPECT_EQ(recorder_.words, (std::vector<uint32_t>{1}));
  EXPECT_EQ(pump_->stats().events, 0u);
  // Each of those that follow, until nobody waits any more.
  pump_->AwaitSends();
  Settle();
  for (uint32_t word = 2; word < 5; ++word) {
    Write(word);
    Deliver();
    Settle();
    EXPECT_EQ(recorder_.words.back(), word);
  }
  pump_->ForgetSends();
  Write(5);  // the queue is still armed
  Deliver();
  Settle();
  EXPECT_EQ(recorder_.words.back(), 5u);
  Write(6);
  Deliver();
  Settle();
  EXPECT_EQ(recorder_.words.back(), 5u);
  // One that has ended by the time somebody waits.
  pump_->AwaitSends();
  Settle();
  EXPECT_EQ(recorder_.words.back(), 6u);
}

TEST_P(CompletionPumpTest, WhatComesTellsOfSendsAsWell) {
  CompletionPump::Options options;
  options.send_depth = 64;
  Begin(std::move(options));
  if (IsSkipped()) return;
  Write(7);
  Receive(1);
  Settle();
  EXPECT_EQ(recorder_.words, (std::vector<uint32_t>{0, 7}));
  EXPECT_EQ(pump_->stats().events, 1u);
}

// By the end of its last send everything that a queue pair has received is told.
TEST_P(CompletionPumpTest, TheEndOfASendIsToldAfterAllThatHadCome) {
  CompletionPump::Options options;
  options.depth = 1024;
  options.send_depth = 64;
  Begin(std::move(options));
  if (IsSkipped()) return;
  constexpr uint32_t kReceives = 2 * CompletionPump::kTurnMax + 10;
  Receive(kReceives);
  Write(kReceives);
  Deliver();
  const uint64_t empties = pump_->stats().empties;
  loop_->Poll();
  EXPECT_EQ(recorder_.words.size(), CompletionPump::kTurnMax);
  EXPECT_EQ(pump_->stats().empties, empties);
  Settle();
  ASSERT_EQ(recorder_.words.size(), kReceives + 1);
  for (uint32_t word = 0; word <= kReceives; ++word) EXPECT_EQ(recorder_.words[word], word);
  EXPECT_GT(pump_->stats().empties, empties);
}

TEST_P(CompletionPumpTest, TheEndOfASendIsToldThoughThereIsAlwaysMoreToReceive) {
  constexpr uint32_t kDepth = 2 * CompletionPump::kTurnMax;
  constexpr uint32_t kSend = UINT32_MAX;
  CompletionPump::Options options;
  options.depth = kDepth;
  options.send_depth = 64;
  Begin(std::move(options));
  if (IsSkipped()) return;
  const uint64_t empties = pump_->stats().empties;
  Receive(kDepth);
  // The queue is full whenever it is looked at, also as the send ends.
  uint32_t next = kDepth;
  recorder_.then = [&] {
    if (recorder_.words.back() == kSend) return;
    ReceiveOne(next++);
    if (next == 2 * kDepth) Write(kSend);
    Deliver();
  };
  for (int turn = 0; turn < 12; ++turn) loop_->Poll();
  EXPECT_EQ(pump_->stats().empties, empties);
  recorder_.then = nullptr;
  const auto& words = recorder_.words;
  const auto told = std::find(words.begin(), words.end(), kSend);
  ASSERT_NE(told, words.end());
  EXPECT_GE(told - words.begin(), 2 * kDepth);  // what had come goes first
}

TEST_P(CompletionPumpTest, WhatASpinningTurnFindsIsActedOnBeforeTheLoopLooksElsewhere) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(50);
  Begin(std::move(options));
  if (IsSkipped()) return;
  Errand errand([&] { recorder_.words.push_back(0); });
  recorder_.then = [&] { loop_->core().DeferSoon(errand); };
  for (int i = 0; i < 50; ++i) {
    sys_.now_ns += 10'000;
    Write(1);
    Deliver();
    loop_->Poll();
  }
  ASSERT_GT(pump_->stats().spins, 0u);
  // In the middle of a turn's looks: the turn has no more of them, and acts.
  int polls = 0;
  fabric_.set_on_call([&](FakeCall call) {
    if (call == FakeCall::kPoll && ++polls == 10) {
      Write(2);
      Deliver();
    }
  });
  size_t at_wait = 0;
  sys_.on_wait = [&] { at_wait = recorder_.words.size(); };
  recorder_.words.clear();
  const uint64_t before = pump_->stats().polls;
  EXPECT_TRUE(loop_->Poll());
  EXPECT_EQ(recorder_.words, (std::vector<uint32_t>{2, 0}));
  EXPECT_LE(pump_->stats().polls, before + 12);
  if (GetParam() == EngineKind::kEpoll) {
    EXPECT_EQ(at_wait, 2u);
  }
}

TEST_P(CompletionPumpTest, AQueueIsArmedOnceForEachEvent) {
  Begin();
  if (IsSkipped()) return;
  int arms = 0;
  fabric_.set_on_call([&](FakeCall call) { arms += call == FakeCall::kArm ? 1 : 0; });
  for (uint32_t word = 0; word < 20; ++word) {
    pump_->Look();
    Settle();
    Write(word);
    Deliver();
    if (word % 2 == 0) pump_->Look();  // finds it before its event is taken
    Settle();
  }
  EXPECT_EQ(recorder_.words.size(), 20u);
  EXPECT_EQ(pump_->stats().events, 20u);
  EXPECT_EQ(arms, 20);
  EXPECT_EQ(pump_->cq().TakeEvents(8), 0);
}

TEST_P(CompletionPumpTest, AnAnswerThatComesLaterThanItsAcknowledgementIsWaitedFor) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(200);
  Begin(std::move(options));
  if (IsSkipped()) return;
  const auto arrive = [&](int64_t gap_ns) {
    for (int64_t left = gap_ns; left > 0; left -= 500) {
      sys_.now_ns += 500;
      loop_->Poll();
    }
    Write(1);
    Deliver();
    loop_->Poll();
  };
  for (int i = 0; i < 50; ++i) {
    arrive(500);
    arrive(40'000);
  }
  const PumpStats before = pump_->stats();
  for (int i = 0; i < 10; ++i) {
    arrive(500);
    arrive(40'000);
  }
  EXPECT_EQ(pump_->stats().sleeps, before.sleeps);
  EXPECT_EQ(pump_->stats().events, before.events);
}

TEST_P(CompletionPumpTest, ATurnTakesABoundedNumber) {
  Begin();
  if (IsSkipped()) return;
  for (uint32_t word = 0; word < 1000; ++word) Write(word);
  Deliver();
  size_t most = 0, before = 0;
  for (int turn = 0; turn < 20; ++turn) {
    loop_->Poll();
    most = std::max(most, recorder_.words.size() - before);
    before = recorder_.words.size();
  }
  EXPECT_EQ(before, 1000u);
  EXPECT_EQ(most, CompletionPump::kTurnMax);
}

TEST_P(CompletionPumpTest, ACompletionWhoseSinkHasGoneIsDropped) {
  Begin();
  if (IsSkipped()) return;
  Write(1);
  pump_->RemoveSink(sink_);
  Recorder other;
  const uint32_t number = pump_->AddSink(other);
  EXPECT_NE(number, sink_);
  Deliver();
  Settle();
  EXPECT_TRUE(recorder_.words.empty());
  EXPECT_TRUE(other.words.empty());
  EXPECT_EQ(pump_->stats().late, 1u);
}

TEST_P(CompletionPumpTest, ASinkMayGoInsideItsOwnCompletion) {
  Begin();
  if (IsSkipped()) return;
  recorder_.then = [this] { pump_->RemoveSink(sink_); };
  Write(1);
  Write(2);
  Deliver();
  Settle();
  EXPECT_EQ(recorder_.words, (std::vector<uint32_t>{1}));
  EXPECT_EQ(pump_->stats().late, 1u);
}

TEST_P(CompletionPumpTest, BriskTrafficIsPolledForAndPausesAreNot) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(50);
  Begin(std::move(options));
  if (IsSkipped()) return;
  const auto beat = [&](int64_t gap_ns) {
    sys_.now_ns += gap_ns;
    Write(1);
    Deliver();
    loop_->Poll();
  };
  // Far apart: sleeps each time.
  for (int i = 0; i < 10; ++i) beat(10'000'000);
  EXPECT_EQ(pump_->stats().spins, 0u);
  EXPECT_EQ(pump_->stats().spin_budget, absl::ZeroDuration());
  // Ten microseconds apart: awake until the next comes, so that no event is needed.
  for (int i = 0; i < 50; ++i) beat(10'000);
  EXPECT_GT(pump_->stats().spins, 10u);
  const uint64_t events = pump_->stats().events;
  for (int i = 0; i < 10; ++i) beat(10'000);
  EXPECT_EQ(pump_->stats().events, events);
  EXPECT_GE(pump_->stats().spin_budget, absl::Microseconds(20));
  EXPECT_LE(pump_->stats().spin_budget, absl::Microseconds(21));
  // A turn that waits so looks many times, for a turn costs a system call.
  const PumpStats before = pump_->stats();
  EXPECT_TRUE(loop_->Poll());
  EXPECT_EQ(pump_->stats().spins, before.spins + 1);
  EXPECT_GT(pump_->stats().polls, before.polls + 10);
  // Idle: after its budget it sleeps.
  sys_.now_ns += 25'000;
  Settle();
  EXPECT_FALSE(loop_->Poll());
  EXPECT_EQ(pump_->stats().spin_budget, absl::ZeroDuration());
  Write(2);
  Deliver();
  loop_->Poll();
  EXPECT_EQ(recorder_.words.back(), 2u);
}

TEST_P(CompletionPumpTest, ASpinEndsWhenItsTimeHasPassed) {
  CompletionPump::Options options;
  options.spin_max = absl::Microseconds(50);
  Begin(std::move(options));
  if (IsSkipped()) return;
  for (int i = 0; i < 50; ++i) {
    sys_.now_ns += 10'000;
    Write(1);
    Deliver();
    loop_->Poll();
  }
  ASSERT_GE(pump_->stats().spin_budget, absl::Microseconds(20));
  // Each look takes a microsecond: twenty are due, and fewer than sixty are made.
  fabric_.set_on_call([&](FakeCall call) { sys_.now_ns += call == FakeCall::kPoll ? 1'000 : 0; });
  const uint64_t before = pump_->stats().polls;
  loop_->Poll();
  EXPECT_GE(pump_->stats().polls, before + 20);
  EXPECT_LT(pump_->stats().polls, before + 60);
}

// On epoll there is no ring that could fail, and everything is as before.
TEST_P(CompletionPumpTest, HearsOnWhenTheRingThatWatchedItHasFailed) {
  Begin();
  if (IsSkipped()) return;
  sys_.ring_error = EBADF;
  Write(1);
  Deliver();  // its event comes while nobody hears
  for (int i = 0; i < 100; ++i) {
    sys_.now_ns += 100'000'000;
    loop_->Poll();
  }
  EXPECT_EQ(loop_->engine(), EngineKind::kEpoll);
  EXPECT_EQ(recorder_.words, (std::vector<uint32_t>{1}));
  Write(2);
  Deliver();
  Settle();
  EXPECT_EQ(recorder_.words, (std::vector<uint32_t>{1, 2}));
}

TEST_P(CompletionPumpTest, ALostQueueIsToldOnce) {
  std::vector<absl::Status> lost;
  CompletionPump::Options options;
  options.depth = 2;
  options.on_lost = [&](absl::Status status) { lost.push_back(std::move(status)); };
  Begin(std::move(options));
  if (IsSkipped()) return;
  for (uint32_t word = 0; word < 3; ++word) Write(word);
  Deliver();
  Settle();
  Settle();
  ASSERT_EQ(lost.size(), 1u);
  EXPECT_EQ(std::string(lost[0].message()), "poll a completion queue: input/output error (EIO)");
}

TEST_P(CompletionPumpTest, EveryCallMayFail) {
  Begin();
  if (IsSkipped()) return;
  fabric_.FailNth(FakeCall::kCreateCq, 1, ENOMEM);
  EXPECT_EQ(CompletionPump::Create(loop_->core(), *end_->device, {}).status().code(),
            absl::StatusCode::kResourceExhausted);
  fabric_.FailNth(FakeCall::kArm, 1, EIO);
  EXPECT_FALSE(CompletionPump::Create(loop_->core(), *end_->device, {}).ok());
  CompletionPump::Options two;
  two.send_depth = 8;
  fabric_.FailNth(FakeCall::kCreateCq, 2, ENOMEM);
  EXPECT_EQ(CompletionPump::Create(loop_->core(), *end_->device, std::move(two)).status().code(),
            absl::StatusCode::kResourceExhausted);
  for (const FakeCall call : {FakeCall::kPoll, FakeCall::kArm}) {
    int lost = 0;
    CompletionPump::Options options;
    options.send_depth = 8;
    options.on_lost = [&](absl::Status) { ++lost; };
    auto pump = *CompletionPump::Create(loop_->core(), *end_->device, std::move(options));
    fabric_.FailNth(call, 1, EIO);
    pump->AwaitSends();
    Settle();
    EXPECT_EQ(lost, 1) << static_cast<int>(call);
  }
  for (const FakeCall call : {FakeCall::kTakeEvents, FakeCall::kPoll, FakeCall::kArm}) {
    int lost = 0;
    CompletionPump::Options options;
    options.on_lost = [&](absl::Status) { ++lost; };
    auto pump = *CompletionPump::Create(loop_->core(), *end_->device, std::move(options));
    auto qp_options = end_->options.qp;
    qp_options.send_cq = qp_options.receive_cq = &pump->cq();
    const auto qp = *end_->device->CreateQp(qp_options);
    ASSERT_TRUE(qp->ToInit({}).ok());
    ASSERT_EQ(qp->PostReceive({}), 0);
    ASSERT_TRUE(qp->ToError().ok());
    fabric_.FailNth(call, 1, EIO);
    Deliver();
    Settle();
    EXPECT_EQ(lost, 1) << static_cast<int>(call);
  }
}

TEST_P(CompletionPumpTest, TheLoopMayGoFirst) {
  Begin();
  if (IsSkipped()) return;
  Write(1);
  Deliver();
  loop_.reset();
  EXPECT_TRUE(recorder_.words.empty());
}

TEST_P(CompletionPumpTest, DeviceEventsAreTakenAllAtOnce) {
  Begin();
  if (IsSkipped()) return;
  std::vector<FabricEventKind> seen;
  auto watch = DeviceWatch::Create(loop_->core(), *end_->device,
                                   [&](const FabricEvent& event) { seen.push_back(event.kind); });
  ASSERT_TRUE(watch.ok()) << watch.status();
  Settle();
  for (int i = 0; i < 49; ++i) {
    fabric_.PushEvent("fake0", {.kind = FabricEventKind::kGidChange, .owner = 0, .port = 1});
  }
  fabric_.SetLink("fake0", false);
  loop_->Poll();
  ASSERT_EQ(seen.size(), 50u);
  EXPECT_EQ(seen.back(), FabricEventKind::kPortError);
  fabric_.SetLink("fake0", true);
  Settle();
  EXPECT_EQ(seen.back(), FabricEventKind::kPortActive);
}

INSTANTIATE_TEST_SUITE_P(, CompletionPumpTest,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         [](const auto& info) { return std::string(EngineKindName(info.param)); });

}  // namespace
}  // namespace penstock::internal
