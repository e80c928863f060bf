#include "secure/seal_queue.h"

#include <penstock/loop.h>

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace penstock::internal {
namespace {

using Answer = SealQueue::Answer;

LoopHandle HandleOfGoneLoop() {
  LoopOptions options;
  options.engine = EngineKind::kEpoll;
  auto loop = Loop::Create(std::move(options));
  EXPECT_TRUE(loop.ok()) << loop.status();
  return (*loop)->handle();
}

// Each is let go after the one before it, not inside it: a stack holds some thousands.
TEST(SealQueue, AnyNumberMayWaitForALoopThatGoes) {
  constexpr uint32_t kWaiting = 300'000;
  const auto queue = std::make_shared<SealQueue>(1, kWaiting);
  const LoopHandle gone = HandleOfGoneLoop();
  const auto never = [](SealTicket) { ADD_FAILURE() << "its loop has gone"; };
  SealTicket ticket, none;
  ASSERT_EQ(queue->Enter(&ticket, gone, never, ticket), Answer::kAdmitted);
  for (uint32_t i = 0; i < kWaiting; ++i) {
    ASSERT_EQ(queue->Enter(&none, gone, never, none), Answer::kWaiting);
  }
  EXPECT_EQ(queue->Enter(&none, gone, never, none), Answer::kRefused);
  ticket.Release();
  const SealLimiterStats stats = queue->stats();
  EXPECT_EQ(stats.running, 0u);
  EXPECT_EQ(stats.waiting, 0u);
  EXPECT_EQ(stats.admitted, 1u + kWaiting);
  EXPECT_EQ(stats.refused, 1u);
}

TEST(SealQueue, TicketsGivenBackByManyThreadsAreCountedOnce) {
  constexpr int kThreads = 4, kEach = 2000;
  const auto queue = std::make_shared<SealQueue>(kThreads, kThreads * kEach);
  const LoopHandle gone = HandleOfGoneLoop();
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int j = 0; j < kEach; ++j) {
        SealTicket ticket;
        queue->Enter(
            &ticket, gone, [](SealTicket) {}, ticket);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(queue->stats().running, 0u);
  EXPECT_EQ(queue->stats().waiting, 0u);
  EXPECT_EQ(queue->stats().admitted, uint64_t{kThreads} * kEach);
}

}  // namespace
}  // namespace penstock::internal
