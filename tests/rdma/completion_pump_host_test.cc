// A completion queue under LoopHost, whose clock is the machine's, and in a SimWorld.
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "rdma/completion_pump.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_kit.h"
#include "testing/sim_world.h"

namespace penstock::internal {
namespace {

using testing::FakeEnd;
using testing::FakeFabric;
using testing::FakeHost;

// Counts what it gets.
class PingSink final : public CompletionSink {
 public:
  void OnCompletion(uint32_t, const FabricCompletion& completion) override {
    ++came;
    if (completion.outcome != FabricOutcome::kOk) ++failed;
    if (then) then();
  }
  uint32_t came = 0;
  int failed = 0;
  std::function<void()> then;
};

template <typename RunUntil>
void PingPong(Loop& loop, FakeHost& host, RunUntil run_until) {
  FakeFabric fabric(host, 3);
  FakeEnd peer(fabric, "fake1");
  FakeEnd end(fabric, "fake0");
  auto pump = *CompletionPump::Create(loop.core(), *end.device, {});
  PingSink pings;
  const uint32_t sink = pump->AddSink(pings);
  end.options.qp.send_cq = end.options.qp.receive_cq = &pump->cq();
  end.qp = *end.device->CreateQp(end.options.qp);
  ASSERT_TRUE(end.qp->ToInit({}).ok());
  ASSERT_TRUE(end.Receive(peer).ok());
  ASSERT_TRUE(peer.Receive(end).ok());
  ASSERT_TRUE(end.Send().ok());
  const auto post = [&] {
    ASSERT_EQ(end.Post(CompletionPump::Tag(sink, pings.came), FabricOp::kWrite, 0, 8, &peer), 0);
  };
  pings.then = [&] {
    if (pings.came < 100) post();
  };
  post();
  run_until([&] { return pings.came == 100; });
  EXPECT_EQ(pings.came, 100u);
  EXPECT_EQ(pings.failed, 0);
  end.qp.reset();
  pump.reset();
  for (const std::string& what : fabric.violations()) ADD_FAILURE() << what;
}

TEST(CompletionPumpHostTest, RunsUnderTheClockOfALoop) {
  LoopOptions options;
  options.engine = EngineKind::kEpoll;
  auto loop = *Loop::Create(std::move(options));
  testing::LoopHost host(*loop);
  PingPong(*loop, host, [&](const auto& until) {
    for (int turn = 0; turn < 100'000 && !until(); ++turn) loop->Poll();
  });
}

TEST(CompletionPumpHostTest, RunsInASimWorld) {
  testing::SimWorld world(5);
  auto loop = *world.NewLoop({});
  testing::SimHost host(world);
  PingPong(*loop, host, [&](const auto& until) {
    world.Touch(*loop);
    world.Run(until, absl::Seconds(10));
  });
  EXPECT_TRUE(world.errors().empty()) << world.errors().front();
}

}  // namespace
}  // namespace penstock::internal
