// The same scenarios on the fake fabric and on the machine's own devices, with the same trace. Two
// devices are needed, as in the machine of tests/vm/run.py --rdma; elsewhere the second half is
// skipped.
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/sys.h"
#include "gtest/gtest.h"
#include "rdma/completion_pump.h"
#include "rdma/fabric.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_kit.h"

namespace penstock::internal {
namespace {

using testing::FakeEnd;
using testing::FakeEndOptions;
using testing::FakeFabric;
using testing::VirtualHost;

enum class Under { kFake, kMachine };

class FabricScenarioTest : public ::testing::TestWithParam<Under> {
 protected:
  // Two devices that reach one another, or a skip.
  void SetUp() override {
    if (GetParam() == Under::kFake) {
      fake_.emplace(host_, 1);
      fabric_ = &*fake_;
      names_ = {"fake0", "fake1"};
      return;
    }
    fabric_ = &SystemFabric();
    auto names = fabric_->ListDevices();
    if (!names.ok()) GTEST_SKIP() << names.status();
    if (names->size() < 2)
      GTEST_SKIP() << "two RDMA devices are needed, here are " << names->size();
    names_ = {(*names)[0], (*names)[1]};
    gid_index_ = 1;
  }
  void TearDown() override {
    if (!fake_) return;
    for (const std::string& what : fake_->violations()) ADD_FAILURE() << what;
  }

  std::unique_ptr<FakeEnd> End(int which, FakeEndOptions options = {}) {
    options.gid_index = gid_index_;
    return std::make_unique<FakeEnd>(*fabric_, names_[static_cast<size_t>(which)], options);
  }
  static void Connect(FakeEnd& a, FakeEnd& b) {
    for (auto [one, other] : {std::pair{&a, &b}, std::pair{&b, &a}}) {
      const absl::Status status = one->Receive(*other);
      ASSERT_TRUE(status.ok()) << status;
    }
    ASSERT_TRUE(a.Send().ok());
    ASSERT_TRUE(b.Send().ok());
  }
  bool Run(const std::function<bool()>& until) {
    if (fake_) return host_.Run(until);
    const int64_t end_ns = RealSys().Now() + 60'000'000'000;
    while (!until()) {
      if (RealSys().Now() > end_ns) return false;
    }
    return true;
  }
  int64_t NowNs() const { return fake_ ? host_.now_ns() : RealSys().Now(); }
  bool RunTo(FakeEnd& end, size_t completions) {
    return Run([&] { return end.Poll() >= completions; });
  }
  static std::string Trace(const FakeEnd& end) {
    std::string trace;
    for (const FabricCompletion& done : end.done) {
      absl::StrAppend(&trace, trace.empty() ? "" : "; ", done.id, " ");
      if (done.outcome == FabricOutcome::kOk) {
        absl::StrAppend(&trace, AbslView(FabricOpName(done.op)));
      } else {
        absl::StrAppend(&trace, AbslView(FabricOutcomeName(done.outcome)));
      }
      if (done.outcome == FabricOutcome::kOk && done.op == FabricOp::kReceive) {
        absl::StrAppend(&trace, " ", done.bytes);
        if (done.has_immediate) absl::StrAppend(&trace, " imm ", done.immediate);
      }
    }
    return trace;
  }
  bool WaitForEvent(FakeEnd& end, FabricEventKind kind, FabricEvent* event) {
    return Run([&] {
      while (end.device->TakeEvent(event)) {
        if (event->kind == kind) return true;
      }
      return false;
    });
  }

  VirtualHost host_;
  std::optional<FakeFabric> fake_;
  Fabric* fabric_ = nullptr;
  std::vector<std::string> names_;
  uint8_t gid_index_ = 0;
};

TEST_P(FabricScenarioTest, SendsWritesAndReads) {
  FakeEndOptions first, second;
  first.psn = 0xfffffe;
  second.psn = 0x1234;
  auto a = End(0, first), b = End(1, second);
  Connect(*a, *b);
  a->Fill(0, "hello");
  a->Fill(100, "written");
  b->Fill(500, "read me");
  ASSERT_EQ(b->PostReceive(11, 0, 64), 0);
  ASSERT_EQ(b->PostReceive(12, 64, 64), 0);
  ASSERT_EQ(a->Post(1, FabricOp::kSend, 0, 5), 0);
  const FabricPart part = a->Part(0, 4);
  FabricSend send;
  send.id = 2;
  send.op = FabricOp::kSendImmediate;
  send.parts = {&part, 1};
  send.immediate = 0x01020304;
  ASSERT_EQ(a->qp->PostSend(send), 0);
  ASSERT_EQ(a->Post(3, FabricOp::kWrite, 100, 7, b.get(), 200), 0);
  ASSERT_EQ(a->Post(4, FabricOp::kRead, 300, 7, b.get(), 500), 0);
  ASSERT_TRUE(RunTo(*a, 4));
  ASSERT_TRUE(RunTo(*b, 2));
  EXPECT_EQ(Trace(*b), "11 RECV 5; 12 RECV 4 imm 16909060");
  EXPECT_EQ(a->done[0].outcome, FabricOutcome::kOk);
  EXPECT_EQ(a->done[2].op, FabricOp::kWrite);
  EXPECT_EQ(a->done[3].op, FabricOp::kRead);
  EXPECT_EQ(b->Bytes(0, 5), "hello");
  EXPECT_EQ(b->Bytes(200, 7), "written");
  EXPECT_EQ(a->Bytes(300, 7), "read me");
}

TEST_P(FabricScenarioTest, LargeMessagesArriveWhole) {
  auto a = End(0), b = End(1);
  Connect(*a, *b);
  for (size_t i = 0; i < FakeEnd::kMemory; ++i) a->bytes[i] = static_cast<char>(i * 7 + i / 251);
  ASSERT_EQ(b->PostReceive(11, 0, FakeEnd::kMemory / 2), 0);
  ASSERT_EQ(a->Post(1, FabricOp::kSend, 0, FakeEnd::kMemory / 2), 0);
  ASSERT_EQ(a->Post(2, FabricOp::kWrite, FakeEnd::kMemory / 2, FakeEnd::kMemory / 2, b.get(),
                    FakeEnd::kMemory / 2),
            0);
  ASSERT_TRUE(RunTo(*a, 2));
  ASSERT_TRUE(RunTo(*b, 1));
  EXPECT_EQ(Trace(*b), absl::StrCat("11 RECV ", FakeEnd::kMemory / 2));
  EXPECT_TRUE(a->bytes == b->bytes);
}

TEST_P(FabricScenarioTest, AnEarlySendCostsATimeoutAndNoError) {
  auto a = End(0), b = End(1);
  ASSERT_TRUE(a->Receive(*b).ok());
  ASSERT_TRUE(a->Send().ok());
  ASSERT_EQ(b->PostReceive(11, 0, 64), 0);
  const int64_t began_ns = NowNs();
  ASSERT_EQ(a->Post(1, FabricOp::kSend, 0, 5), 0);
  // Long enough for the packet to have come, far too short for the timeout.
  Run([&] { return NowNs() - began_ns > 20'000'000 || a->Poll() > 0; });
  if (fake_) host_.Advance(absl::Milliseconds(20));
  EXPECT_EQ(a->Poll(), 0u);
  ASSERT_TRUE(b->Receive(*a).ok());
  ASSERT_TRUE(RunTo(*a, 1));
  ASSERT_TRUE(RunTo(*b, 1));
  EXPECT_EQ(Trace(*a), "1 SEND");
  EXPECT_EQ(Trace(*b), "11 RECV 5");
  EXPECT_GE(NowNs() - began_ns, 60'000'000);
}

TEST_P(FabricScenarioTest, APeerThatIsNeverReadyEndsInRetriesAndAFlush) {
  FakeEndOptions options;
  options.timing.retry_count = 1;
  auto a = End(0, options), b = End(1);
  ASSERT_TRUE(a->Receive(*b).ok());
  ASSERT_TRUE(a->Send().ok());
  for (uint64_t id = 1; id <= 3; ++id) ASSERT_EQ(a->Post(id, FabricOp::kSend, 0, 5), 0);
  ASSERT_TRUE(RunTo(*a, 3));
  EXPECT_EQ(Trace(*a), "1 retries exceeded; 2 flushed; 3 flushed");
}

TEST_P(FabricScenarioTest, AMissingReceiveIsWaitedFor) {
  FakeEndOptions options;
  options.timing.rnr_retry = 6;
  auto a = End(0, options), b = End(1);
  Connect(*a, *b);
  ASSERT_EQ(a->Post(1, FabricOp::kSend, 0, 5), 0);
  ASSERT_TRUE(RunTo(*a, 1));
  EXPECT_EQ(Trace(*a), "1 receiver not ready");
}

TEST_P(FabricScenarioTest, ErrorFlushesBothQueuesInOrder) {
  auto a = End(0), b = End(1);
  Connect(*a, *b);
  for (uint64_t id = 1; id <= 3; ++id) ASSERT_EQ(b->PostReceive(id, 0, 64), 0);
  ASSERT_TRUE(b->qp->ToError().ok());
  ASSERT_TRUE(RunTo(*b, 3));
  EXPECT_EQ(Trace(*b), "1 flushed; 2 flushed; 3 flushed");
  ASSERT_EQ(b->Post(4, FabricOp::kSend, 0, 5), 0);
  ASSERT_TRUE(RunTo(*b, 4));
  EXPECT_EQ(Trace(*b), "1 flushed; 2 flushed; 3 flushed; 4 flushed");
}

TEST_P(FabricScenarioTest, ForeignMemoryIsNotTouched) {
  auto a = End(0), b = End(1);
  Connect(*a, *b);
  ASSERT_EQ(a->Post(1, FabricOp::kWrite, 0, 100, b.get(), FakeEnd::kMemory - 99), 0);
  ASSERT_TRUE(RunTo(*a, 1));
  EXPECT_EQ(Trace(*a), "1 remote access error");
}

TEST_P(FabricScenarioTest, ASharedQueueReportsItsLimitAndKeepsWhatIsLeft) {
  FakeEndOptions options;
  options.srq_depth = 8;
  auto a = End(0), b = End(1, options);
  Connect(*a, *b);
  for (uint64_t id = 0; id < 8; ++id) ASSERT_EQ(b->PostReceive(id, id * 64, 64), 0);
  ASSERT_EQ(b->srq->ArmLimit(6), 0);
  for (uint64_t id = 0; id < 3; ++id) ASSERT_EQ(a->Post(id, FabricOp::kSend, 0, 5), 0);
  ASSERT_TRUE(RunTo(*a, 3));
  ASSERT_TRUE(RunTo(*b, 3));
  EXPECT_EQ(Trace(*b), "0 RECV 5; 1 RECV 5; 2 RECV 5");
  FabricEvent event;
  ASSERT_TRUE(WaitForEvent(*b, FabricEventKind::kSrqLimit, &event));
  EXPECT_EQ(event.owner, 2u);
  // A marker send is flushed; the shared receives are not.
  ASSERT_TRUE(b->qp->ToError().ok());
  ASSERT_EQ(b->Post(9, FabricOp::kSend, 0, 5), 0);
  ASSERT_TRUE(RunTo(*b, 4));
  EXPECT_EQ(Trace(*b), "0 RECV 5; 1 RECV 5; 2 RECV 5; 9 flushed");
}

TEST_P(FabricScenarioTest, NamesAndNumbersThatAreNotThere) {
  EXPECT_EQ(fabric_->Open("teapot0").status().code(), absl::StatusCode::kNotFound);
  auto a = End(0);
  EXPECT_FALSE(a->device->QueryPort(200).ok());
  EXPECT_EQ(a->device->QueryGid(1, 10'000).status().code(), absl::StatusCode::kNotFound);
  auto port = a->device->QueryPort(1);
  ASSERT_TRUE(port.ok()) << port.status();
  EXPECT_TRUE(port->active);
  EXPECT_GE(port->mtu, 256u);
  EXPECT_GT(a->device->limits().shared_receive_queues, 0u);
  FabricEvent event;
  while (a->device->TakeEvent(&event)) {
  }
}

INSTANTIATE_TEST_SUITE_P(, FabricScenarioTest, ::testing::Values(Under::kFake, Under::kMachine),
                         [](const auto& info) {
                           return std::string(info.param == Under::kFake ? "Fake" : "Machine");
                         });

// The pump on a real channel, by either engine.
class MachinePumpTest : public ::testing::TestWithParam<EngineKind> {};

class Echo final : public CompletionSink {
 public:
  explicit Echo(std::function<void(uint32_t, const FabricCompletion&)> on) : on_(std::move(on)) {}
  void OnCompletion(uint32_t word, const FabricCompletion& completion) override {
    on_(word, completion);
  }

 private:
  std::function<void(uint32_t, const FabricCompletion&)> on_;
};

TEST_P(MachinePumpTest, WakesTheLoopForEveryCompletion) {
  const auto names = SystemFabric().ListDevices();
  if (!names.ok()) GTEST_SKIP() << names.status();
  if (names->size() < 2) GTEST_SKIP() << "two RDMA devices are needed, here are " << names->size();
  LoopOptions loop_options;
  loop_options.engine = GetParam();
  auto loop = Loop::Create(std::move(loop_options));
  if (!loop.ok()) GTEST_SKIP() << loop.status();
  FakeEndOptions options;
  options.gid_index = 1;
  FakeEnd peer(SystemFabric(), (*names)[1], options);
  FakeEnd end(SystemFabric(), (*names)[0], options);
  auto pump = *CompletionPump::Create((*loop)->core(), *end.device, {});
  uint32_t count = 0;
  uint32_t sink = 0;
  const auto post = [&] {
    ASSERT_EQ(end.Post(CompletionPump::Tag(sink, count), FabricOp::kWrite, 0, 8, &peer), 0);
  };
  // On some kernels what is posted has ended when the call returns: nobody would sleep.
  uint64_t slept = 0;
  std::function<void()> post_asleep = [&] {
    if (pump->stats().sleeps > slept) return post();
    (*loop)->Post([&] { post_asleep(); });
  };
  Echo echo([&](uint32_t word, const FabricCompletion& completion) {
    EXPECT_EQ(word, count);
    EXPECT_EQ(completion.outcome, FabricOutcome::kOk);
    if (++count == 200) return (*loop)->Stop();
    slept = pump->stats().sleeps;
    post_asleep();
  });
  sink = pump->AddSink(echo);
  end.options.qp.send_cq = end.options.qp.receive_cq = &pump->cq();
  end.qp = nullptr;
  auto made = end.device->CreateQp(end.options.qp);
  ASSERT_TRUE(made.ok()) << made.status();
  end.qp = *std::move(made);
  ASSERT_TRUE(end.qp->ToInit({}).ok());
  ASSERT_TRUE(end.Receive(peer).ok());
  ASSERT_TRUE(peer.Receive(end).ok());
  ASSERT_TRUE(end.Send().ok());
  post();
  Timer limit(**loop);
  limit.Arm(absl::Seconds(60), [&] { (*loop)->Stop(); });
  (*loop)->Run();
  EXPECT_EQ(count, 200u);
  // That of the last one is still to be taken, when the queue would be armed again.
  EXPECT_EQ(pump->stats().events, 199u);
  end.qp.reset();
  pump.reset();
}

INSTANTIATE_TEST_SUITE_P(, MachinePumpTest,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         [](const auto& info) { return std::string(EngineKindName(info.param)); });

}  // namespace
}  // namespace penstock::internal
