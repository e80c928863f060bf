// The completions of a device on a real loop, of either engine, fed by a fake device.
#include "rdma/completion_pump.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "testing/fake_fabric.h"
#include "testing/pump_kit.h"

namespace penstock::internal {
namespace {

using testing::Errand;
using testing::FakeCall;
using testing::Recorder;

class CompletionPumpTest : public testing::PumpTest {};

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
    fabric_.PushEvent("fake0", {.kind = FabricEventKind::kAddressChange, .owner = 0, .port = 1});
  }
  fabric_.SetLink("fake0", false);
  loop_->Poll();
  ASSERT_EQ(seen.size(), 50u);
  EXPECT_EQ(seen.back(), FabricEventKind::kPortError);
  fabric_.SetLink("fake0", true);
  Settle();
  EXPECT_EQ(seen.back(), FabricEventKind::kPortActive);
}

INSTANTIATE_TEST_SUITE_P(, CompletionPumpTest, testing::kPumpEngines, testing::PumpEngineName);

}  // namespace
}  // namespace penstock::internal
