// The fake does what devices do: everything above is tested on it, so it is tested itself.
#include "testing/fake_fabric.h"

#include <cerrno>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "testing/fake_fabric_kit.h"

namespace penstock::testing {
namespace {

using internal::FabricCompletion;
using internal::FabricEvent;
using internal::FabricEventKind;
using internal::FabricOp;
using internal::FabricOutcome;

class FakeFabricTest : public ::testing::Test {
 protected:
  ~FakeFabricTest() override {
    if (!expect_order_) return;
    for (const std::string& what : fabric_.violations()) ADD_FAILURE() << what;
  }
  static void Connect(FakeEnd& a, FakeEnd& b) {
    ASSERT_TRUE(a.Receive(b).ok());
    ASSERT_TRUE(b.Receive(a).ok());
    ASSERT_TRUE(a.Send().ok());
    ASSERT_TRUE(b.Send().ok());
  }
  bool RunTo(FakeEnd& end, size_t completions) {
    return host_.Run([&] { return end.Poll() >= completions; });
  }
  static std::vector<FabricEvent> Events(FakeEnd& end) {
    std::vector<FabricEvent> events;
    FabricEvent event;
    while (end.device->TakeEvent(&event)) events.push_back(event);
    return events;
  }

  VirtualHost host_;
  FakeFabric fabric_{host_, 1};
  bool expect_order_ = true;
};

TEST_F(FakeFabricTest, SendsWritesAndReads) {
  FakeEnd a(fabric_, "fake0", {.psn = 0xfffffe});
  FakeEnd b(fabric_, "fake1", {.psn = 7});
  Connect(a, b);
  a.Fill(0, "hello");
  a.Fill(100, "written");
  b.Fill(500, "read me");
  ASSERT_EQ(b.PostReceive(11, 0, 64), 0);
  ASSERT_EQ(a.Post(1, FabricOp::kSend, 0, 5), 0);
  ASSERT_EQ(a.Post(2, FabricOp::kWrite, 100, 7, &b, 200), 0);
  ASSERT_EQ(a.Post(3, FabricOp::kRead, 300, 7, &b, 500), 0);
  ASSERT_TRUE(RunTo(a, 3));
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(a.done[i].id, i + 1);
    EXPECT_EQ(a.done[i].outcome, FabricOutcome::kOk);
  }
  ASSERT_EQ(b.Poll(), 1u);
  EXPECT_EQ(b.done[0].op, FabricOp::kReceive);
  EXPECT_EQ(b.done[0].bytes, 5u);
  EXPECT_EQ(b.Bytes(0, 5), "hello");
  EXPECT_EQ(b.Bytes(200, 7), "written");
  EXPECT_EQ(a.Bytes(300, 7), "read me");
  EXPECT_EQ(fabric_.stats().timeouts, 0u);
}

TEST_F(FakeFabricTest, AnEarlySendCostsATimeoutAndNoError) {
  FakeEnd a(fabric_, "fake0");
  FakeEnd b(fabric_, "fake1");
  ASSERT_TRUE(a.Receive(b).ok());
  ASSERT_TRUE(a.Send().ok());
  ASSERT_EQ(b.PostReceive(11, 0, 64), 0);
  ASSERT_EQ(a.Post(1, FabricOp::kSend, 0, 5), 0);
  const int64_t began_ns = host_.now_ns();
  host_.Advance(absl::Milliseconds(1));
  ASSERT_TRUE(b.Receive(a).ok());
  ASSERT_TRUE(RunTo(a, 1));
  EXPECT_EQ(a.done[0].outcome, FabricOutcome::kOk);
  EXPECT_GE(host_.now_ns() - began_ns, 67'000'000);
  EXPECT_EQ(fabric_.stats().dropped_early, 1u);
  EXPECT_EQ(fabric_.stats().timeouts, 1u);
}

TEST_F(FakeFabricTest, RetriesRunOutAndTheRestIsFlushedInOrder) {
  FakeEnd a(fabric_, "fake0");
  FakeEnd b(fabric_, "fake1");
  ASSERT_TRUE(a.Receive(b).ok());
  ASSERT_TRUE(a.Send().ok());
  ASSERT_EQ(a.PostReceive(21, 0, 64), 0);
  ASSERT_EQ(a.PostReceive(22, 0, 64), 0);
  for (uint64_t id = 1; id <= 3; ++id) ASSERT_EQ(a.Post(id, FabricOp::kSend, 0, 5), 0);
  const int64_t began_ns = host_.now_ns();
  ASSERT_TRUE(RunTo(a, 5));
  EXPECT_GE(host_.now_ns() - began_ns, 8 * 67'000'000LL);
  EXPECT_EQ(a.done[0].id, 1u);
  EXPECT_EQ(a.done[0].outcome, FabricOutcome::kRetriesExceeded);
  std::vector<uint64_t> sends, receives;
  for (size_t i = 1; i < 5; ++i) {
    EXPECT_EQ(a.done[i].outcome, FabricOutcome::kFlushed);
    (a.done[i].id < 20 ? sends : receives).push_back(a.done[i].id);
  }
  EXPECT_EQ(sends, (std::vector<uint64_t>{2, 3}));
  EXPECT_EQ(receives, (std::vector<uint64_t>{21, 22}));
  EXPECT_EQ(fabric_.stats().retries_exceeded, 1u);
  EXPECT_EQ(fabric_.receive_bytes_posted(), 0u);
  // What is posted now is taken and flushed.
  ASSERT_EQ(a.Post(4, FabricOp::kSend, 0, 5), 0);
  ASSERT_TRUE(RunTo(a, 6));
  EXPECT_EQ(a.done[5].outcome, FabricOutcome::kFlushed);
}

TEST_F(FakeFabricTest, PostingBeforeReadyToSendIsRefusedAndNoted) {
  expect_order_ = false;
  FakeEnd a(fabric_, "fake0");
  FakeEnd b(fabric_, "fake1");
  EXPECT_EQ(a.Post(1, FabricOp::kSend, 0, 5), -EINVAL);
  ASSERT_TRUE(a.Receive(b).ok());
  EXPECT_EQ(a.Post(1, FabricOp::kSend, 0, 5), -EINVAL);
  EXPECT_EQ(fabric_.violations().size(), 2u);
  EXPECT_FALSE(a.Receive(b).ok());
  ASSERT_TRUE(a.Send().ok());
  EXPECT_FALSE(a.Send().ok());
}

TEST_F(FakeFabricTest, AMissingReceiveIsWaitedForAndThenFails) {
  FakeEndOptions options;
  options.timing.rnr_retry = 2;
  FakeEnd a(fabric_, "fake0", options);
  FakeEnd b(fabric_, "fake1");
  Connect(a, b);
  ASSERT_EQ(a.Post(1, FabricOp::kSend, 0, 5), 0);
  host_.Advance(absl::Microseconds(1500));
  EXPECT_EQ(fabric_.stats().not_ready_naks, 2u);
  ASSERT_EQ(b.PostReceive(11, 0, 64), 0);
  ASSERT_TRUE(RunTo(a, 1));
  EXPECT_EQ(a.done[0].outcome, FabricOutcome::kOk);
  ASSERT_EQ(a.Post(2, FabricOp::kSend, 0, 5), 0);
  ASSERT_TRUE(RunTo(a, 2));
  EXPECT_EQ(a.done[1].outcome, FabricOutcome::kReceiverNotReady);
}

TEST_F(FakeFabricTest, LossIsRepairedInOrderAndOnce) {
  fabric_.set_loss(100);
  FakeEnd a(fabric_, "fake0", {.psn = 0xfffff0});
  FakeEnd b(fabric_, "fake1", {.psn = 0x123456});
  Connect(a, b);
  constexpr uint64_t kMessages = 200;
  uint64_t posted = 0, received = 0, ended = 0, read = 0;
  a.Fill(0, "x");
  b.Fill(9000, "the same every time");
  for (int i = 0; i < 32; ++i) ASSERT_EQ(b.PostReceive(0, 4096, 2048), 0);
  host_.Run([&] {
    while (posted < kMessages && posted - ended < 16) {
      const bool reads = posted % 5 == 4;
      const int error = reads ? a.Post(posted, FabricOp::kRead, 20000, 19, &b, 9000)
                              : a.Post(posted, FabricOp::kSend, 0, 1 + posted % 2000);
      if (error != 0) break;
      ++posted;
    }
    a.Poll();
    for (const FabricCompletion& done : a.done) {
      EXPECT_EQ(done.outcome, FabricOutcome::kOk);
      EXPECT_EQ(done.id, ended++);
      if (done.op == FabricOp::kRead) ++read;
    }
    a.done.clear();
    b.Poll();
    for (const FabricCompletion& done : b.done) {
      while (received % 5 == 4) ++received;  // that was a read
      EXPECT_EQ(done.bytes, 1 + received++ % 2000);
      EXPECT_EQ(b.PostReceive(0, 4096, 2048), 0);
    }
    b.done.clear();
    return ended == kMessages;
  });
  EXPECT_EQ(ended, kMessages);
  EXPECT_EQ(read, kMessages / 5);
  EXPECT_EQ(a.Bytes(20000, 19), "the same every time");
  EXPECT_GT(fabric_.stats().lost, 10u);
  EXPECT_GT(fabric_.stats().duplicates, 0u);
  EXPECT_GT(fabric_.stats().sequence_naks, 0u);
}

TEST_F(FakeFabricTest, ForeignMemoryIsNotTouched) {
  FakeEnd a(fabric_, "fake0");
  FakeEnd b(fabric_, "fake1");
  Connect(a, b);
  ASSERT_EQ(a.Post(1, FabricOp::kWrite, 0, 100, &b, FakeEnd::kMemory - 99), 0);
  ASSERT_TRUE(RunTo(a, 1));
  EXPECT_EQ(a.done[0].outcome, FabricOutcome::kRemoteAccess);
  const std::vector<FabricEvent> events = Events(b);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind, FabricEventKind::kQpFatal);
  EXPECT_EQ(events[0].owner, 3u);
}

TEST_F(FakeFabricTest, ALongMessageFailsBothEnds) {
  FakeEnd a(fabric_, "fake0");
  FakeEnd b(fabric_, "fake1");
  Connect(a, b);
  ASSERT_EQ(b.PostReceive(11, 0, 4), 0);
  ASSERT_EQ(a.Post(1, FabricOp::kSend, 0, 5), 0);
  ASSERT_TRUE(RunTo(a, 1));
  EXPECT_EQ(a.done[0].outcome, FabricOutcome::kRemoteInvalid);
  ASSERT_EQ(b.Poll(), 1u);
  EXPECT_EQ(b.done[0].outcome, FabricOutcome::kLocalLength);
}

TEST_F(FakeFabricTest, NumbersAreUsedAgainAndAStrangerWithTheSameSequenceIsTaken) {
  FakeEnd a(fabric_, "fake0");
  FakeEnd b(fabric_, "fake1");
  Connect(a, b);
  const uint32_t number = b.qp->number();
  b.qp.reset();
  b.NewQp();
  EXPECT_EQ(b.qp->number(), number);
  // The new one is meant for another peer at the same address; constant sequence numbers let the
  // old peer through.
  FakeEnd c(fabric_, "fake0");
  ASSERT_TRUE(b.Receive(c).ok());
  ASSERT_EQ(b.PostReceive(11, 0, 64), 0);
  ASSERT_EQ(a.Post(1, FabricOp::kSend, 0, 5), 0);
  ASSERT_TRUE(RunTo(b, 1));
  EXPECT_EQ(b.done[0].outcome, FabricOutcome::kOk);
}

TEST_F(FakeFabricTest, ASharedQueueReportsItsLimitAndKeepsWhatIsLeft) {
  FakeEnd a(fabric_, "fake0");
  FakeEnd b(fabric_, "fake1", {.srq_depth = 8});
  Connect(a, b);
  for (uint64_t id = 0; id < 8; ++id) ASSERT_EQ(b.PostReceive(id, id * 64, 64), 0);
  EXPECT_EQ(b.PostReceive(8, 0, 64), -ENOMEM);
  ASSERT_EQ(b.srq->ArmLimit(6), 0);
  for (uint64_t id = 0; id < 3; ++id) ASSERT_EQ(a.Post(id, FabricOp::kSend, 0, 5), 0);
  ASSERT_TRUE(RunTo(a, 3));
  ASSERT_TRUE(RunTo(b, 3));
  const std::vector<FabricEvent> events = Events(b);
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].kind, FabricEventKind::kSrqLimit);
  EXPECT_EQ(events[0].owner, 2u);
  ASSERT_TRUE(b.qp->ToError().ok());
  host_.Advance(absl::Seconds(1));
  EXPECT_EQ(b.Poll(), 3u);
  EXPECT_EQ(fabric_.receive_bytes_posted(), 5u * 64);
}

TEST_F(FakeFabricTest, RoomComesWhenCompletionsArePolled) {
  FakeEndOptions options;
  options.qp.send_depth = 4;
  FakeEnd a(fabric_, "fake0", options);
  FakeEnd b(fabric_, "fake1");
  Connect(a, b);
  for (uint64_t id = 0; id < 4; ++id) ASSERT_EQ(a.Post(id, FabricOp::kWrite, 0, 5, &b), 0);
  EXPECT_EQ(a.Post(4, FabricOp::kWrite, 0, 5, &b), -ENOMEM);
  host_.Advance(absl::Seconds(1));
  EXPECT_EQ(a.Post(4, FabricOp::kWrite, 0, 5, &b), -ENOMEM);
  EXPECT_EQ(a.Poll(), 4u);
  EXPECT_EQ(a.Post(4, FabricOp::kWrite, 0, 5, &b), 0);
}

TEST_F(FakeFabricTest, AnArmedQueueRaisesItsDescriptorOnce) {
  FakeEnd a(fabric_, "fake0");
  FakeEnd b(fabric_, "fake1");
  Connect(a, b);
  ASSERT_EQ(a.Post(1, FabricOp::kWrite, 0, 5, &b), 0);
  host_.Advance(absl::Seconds(1));
  EXPECT_FALSE(host_.readable(a.cq->fd()));
  // Arming does not tell of what is there already: poll again.
  ASSERT_EQ(a.cq->Arm(), 0);
  EXPECT_FALSE(host_.readable(a.cq->fd()));
  EXPECT_EQ(a.Poll(), 1u);
  ASSERT_EQ(a.Post(2, FabricOp::kWrite, 0, 5, &b), 0);
  ASSERT_EQ(a.Post(3, FabricOp::kWrite, 0, 5, &b), 0);
  host_.Advance(absl::Seconds(1));
  EXPECT_TRUE(host_.readable(a.cq->fd()));
  EXPECT_EQ(a.cq->TakeEvents(8), 1);
  EXPECT_FALSE(host_.readable(a.cq->fd()));
  a.cq->AckEvents(1);
}

TEST_F(FakeFabricTest, AnOverflownQueueIsLostWithItsQueuePairs) {
  FakeEnd a(fabric_, "fake0", {.cq_depth = 2});
  FakeEnd b(fabric_, "fake1");
  Connect(a, b);
  for (uint64_t id = 0; id < 3; ++id) ASSERT_EQ(a.Post(id, FabricOp::kWrite, 0, 5, &b), 0);
  host_.Advance(absl::Seconds(1));
  FabricCompletion out[4];
  EXPECT_EQ(a.cq->Poll(out), -EIO);
  const std::vector<FabricEvent> events = Events(a);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].kind, FabricEventKind::kCqError);
  EXPECT_EQ(events[1].kind, FabricEventKind::kQpFatal);
}

TEST_F(FakeFabricTest, ALinkThatIsDownLosesEverything) {
  FakeEnd a(fabric_, "fake0");
  FakeEnd b(fabric_, "fake1");
  Connect(a, b);
  fabric_.SetLink("fake1", false);
  ASSERT_EQ(a.Post(1, FabricOp::kWrite, 0, 5, &b), 0);
  host_.Advance(absl::Milliseconds(100));
  EXPECT_EQ(a.Poll(), 0u);
  EXPECT_FALSE(b.device->QueryPort(1)->active);
  fabric_.SetLink("fake1", true);
  ASSERT_TRUE(RunTo(a, 1));
  EXPECT_EQ(a.done[0].outcome, FabricOutcome::kOk);
  const std::vector<FabricEvent> events = Events(b);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].kind, FabricEventKind::kPortError);
  EXPECT_EQ(events[1].kind, FabricEventKind::kPortActive);
}

TEST_F(FakeFabricTest, TheNthCallFails) {
  FakeEnd a(fabric_, "fake0");
  FakeEnd b(fabric_, "fake1");
  Connect(a, b);
  fabric_.FailNth(FakeCall::kPostSend, 2, ENOMEM);
  EXPECT_EQ(a.Post(1, FabricOp::kWrite, 0, 5, &b), 0);
  EXPECT_EQ(a.Post(2, FabricOp::kWrite, 0, 5, &b), -ENOMEM);
  EXPECT_EQ(a.Post(3, FabricOp::kWrite, 0, 5, &b), 0);
  fabric_.FailNth(1, EIO);
  const absl::Status status = a.device->CreateCq(16, 0).status();
  EXPECT_EQ(std::string(status.message()),
            "create completion queue on fake0: input/output error (EIO)");
  EXPECT_TRUE(a.device->CreateCq(16, 0).ok());
}

TEST_F(FakeFabricTest, WrongOrderIsNoted) {
  expect_order_ = false;
  FakeEnd a(fabric_, "fake0");
  ASSERT_EQ(a.PostReceive(1, 0, 64), 0);
  ASSERT_TRUE(a.device->Deregister(a.memory).ok());
  EXPECT_EQ(fabric_.violations().size(), 1u);
  a.memory = *a.device->Register(a.bytes.data(), 1, 0);
  ASSERT_EQ(a.cq->Arm(), 0);
  ASSERT_TRUE(a.qp->ToError().ok());
  host_.Advance(absl::Seconds(1));
  ASSERT_EQ(a.cq->TakeEvents(8), 1);
  a.qp.reset();
  a.cq.reset();
  ASSERT_EQ(fabric_.violations().size(), 2u);
  EXPECT_EQ(fabric_.violations()[1],
            "a completion queue was destroyed with 1 events not acknowledged: verbs wait for ever");
  {
    const auto device = *fabric_.Open("fake1");
    *device->Register(a.bytes.data(), 1, 0);
  }
  EXPECT_EQ(fabric_.violations().size(), 3u);
}

// The same seed tells the same story, and another one another.
TEST_F(FakeFabricTest, TheSeedDecides) {
  const auto tell = [](uint64_t seed) {
    VirtualHost host;
    FakeFabric fabric(host, seed, {.loss = 200});
    FakeEnd a(fabric, "fake0");
    FakeEnd b(fabric, "fake1");
    Connect(a, b);
    for (uint64_t id = 0; id < 20; ++id) EXPECT_EQ(a.Post(id, FabricOp::kWrite, 0, 5, &b), 0);
    host.Run([&] { return a.Poll() == 20; });
    return std::to_string(host.now_ns()) + "/" + std::to_string(fabric.stats().packets);
  };
  EXPECT_EQ(tell(1), tell(1));
  EXPECT_NE(tell(1), tell(2));
}

}  // namespace
}  // namespace penstock::testing
