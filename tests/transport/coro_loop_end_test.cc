// What becomes of coroutines that wait for streams when their loop goes first.
#include <penstock/coro.h>
#include <penstock/loop.h>

#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "testing/engine_loop.h"

PENSTOCK_BEGIN_NAMESPACE
namespace {

using coro::AcceptQueue;
using coro::Task;

class CoroLoopEndTest : public internal::EngineLoopTest {
 protected:
  std::unique_ptr<AcceptQueue> Listen() {
    return AcceptQueue::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), ListenOptions())
        .value();
  }
  void RunTurns() {
    for (int i = 0; i < 5; ++i) loop_->Poll();
  }
};

Task<void> AwaitOne(AcceptQueue& queue, coro::CancelToken token, absl::Status& out) {
  out = (co_await queue.Accept(std::move(token))).status();
}

// Owns another queue, or the one that it waits on, besides.
Task<void> AwaitOneAndOwn(AcceptQueue& queue, std::unique_ptr<AcceptQueue>, std::shared_ptr<int>,
                          absl::Status& out) {
  out = (co_await queue.Accept()).status();
}

TEST_P(CoroLoopEndTest, ResumesWhatWaitsForStreams) {
  std::unique_ptr<AcceptQueue> queue = Listen();
  AcceptQueue& waited_on = *queue;
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = held;
  absl::Status out;
  coro::Spawn(*loop_, AwaitOneAndOwn(waited_on, std::move(queue), std::move(held), out));
  RunTurns();
  EXPECT_FALSE(watch.expired());
  loop_.reset();
  EXPECT_TRUE(watch.expired()) << "the coroutine leaked";
  EXPECT_TRUE(absl::IsCancelled(out)) << out;
}

TEST_P(CoroLoopEndTest, AQueueMayOutliveItsLoop) {
  std::unique_ptr<AcceptQueue> queue = Listen();
  coro::CancelSource source;
  absl::Status waited, late;
  Task<void> task = AwaitOne(*queue, source.token(), waited);
  task.Start();
  loop_.reset();
  EXPECT_TRUE(task.done());
  EXPECT_TRUE(absl::IsCancelled(waited)) << waited;
  source.Cancel();
  Task<void> after = AwaitOne(*queue, coro::CancelToken(), late);
  after.Start();
  EXPECT_TRUE(after.done());
  EXPECT_TRUE(absl::IsCancelled(late)) << late;
}

TEST_P(CoroLoopEndTest, CoroutinesThatOwnEachOthersQueuesLeave) {
  std::unique_ptr<AcceptQueue> first = Listen();
  std::unique_ptr<AcceptQueue> second = Listen();
  AcceptQueue& one = *first;
  AcceptQueue& other = *second;
  absl::Status out[2];
  coro::Spawn(*loop_, AwaitOneAndOwn(one, std::move(second), nullptr, out[0]));
  coro::Spawn(*loop_, AwaitOneAndOwn(other, std::move(first), nullptr, out[1]));
  RunTurns();
  loop_.reset();
  EXPECT_TRUE(absl::IsCancelled(out[0])) << out[0];
  EXPECT_TRUE(absl::IsCancelled(out[1])) << out[1];
}

INSTANTIATE_TEST_SUITE_P(Engines, CoroLoopEndTest,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         internal::EngineName);

}  // namespace
PENSTOCK_END_NAMESPACE
