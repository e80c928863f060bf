// The handshake driver with an executor: steps away from the loop, what is dropped or comes late,
// and what of that has a place in the limiter.
#include <penstock/seal.h>

#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/functional/any_invocable.h"
#include "testing/alts_fake_service.h"
#include "testing/fate.h"
#include "testing/handshake_pair.h"
#include "testing/seal_harness.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

using Outcome = SealOutcome;

class SealExecutorTest : public SealHarness {
 protected:
  std::deque<absl::AnyInvocable<void() &&>> jobs_;
  Executor executor_ = [this](absl::AnyInvocable<void() &&> job) {
    jobs_.push_back(std::move(job));
  };
};

TEST_P(SealExecutorTest, StepsRunOnTheExecutor) {
  SealOptions options;
  options.executor = &executor_;
  StreamPair pair = Pair();
  Outcome client, server;
  SealServer(std::move(pair.server), server, options);
  SealClient(std::move(pair.client), client, options);
  Settle();
  EXPECT_FALSE(client.ended || server.ended);
  int ran = 0;
  while (!(client.ended && server.ended)) {
    ASSERT_TRUE(Drive([&] { return !jobs_.empty() || (client.ended && server.ended); }));
    if (jobs_.empty()) continue;
    // Away from the loop's thread, as a pool of threads would.
    std::thread worker(std::move(jobs_.front()));
    worker.join();
    jobs_.pop_front();
    ++ran;
  }
  EXPECT_GT(ran, 3);
  ASSERT_TRUE(client.status().ok()) << client.status();
  ASSERT_TRUE(server.status().ok()) << server.status();
  Exchange(**client.stream, **server.stream, "sealed elsewhere");
}

TEST_P(SealExecutorTest, CancelIsNotOvertakenByWhatTheExecutorBrings) {
  bool over = false;
  for (int cancel_after = 1; !over; ++cancel_after) {
    jobs_.clear();
    SealOptions options;
    options.executor = &executor_;
    StreamPair pair = Pair();
    Outcome client, server;
    SealAttempt attempt =
        Seal(std::move(pair.server), ServerCredentials(), ServerOptions(), options, server.Done());
    SealClient(std::move(pair.client), client);
    for (int i = 0; i < cancel_after; ++i) {
      ASSERT_TRUE(Drive([&] { return !jobs_.empty() || server.ended; }));
      if (jobs_.empty()) break;
      std::move(jobs_.front())();  // posts its result, which the loop has yet to run
      jobs_.pop_front();
    }
    over = server.ended;
    attempt.Cancel();
    ASSERT_TRUE(Drive([&] { return server.ended && client.ended; }));
    if (over) {
      EXPECT_TRUE(server.status().ok()) << server.status();
      EXPECT_GT(cancel_after, 2);
    } else {
      EXPECT_TRUE(IsCancelled(server.status())) << cancel_after << ": " << server.status();
    }
  }
}

// A service's answers come on the loop, and would meet a step that runs elsewhere.
TEST_P(SealExecutorTest, HandshakesByAServiceStayOnTheLoop) {
  int jobs = 0;
  Executor executor = [&](absl::AnyInvocable<void() &&>) { ++jobs; };
  SealOptions options;
  options.executor = &executor;
  AltsFakeService service;
  service.at_once = false;
  StreamPair pair = Pair();
  Outcome client, server;
  Seal(std::move(pair.server), service.Credentials(), ServerOptions(), options, server.Done());
  Seal(std::move(pair.client), service.Credentials(), {}, options, client.Done());
  ASSERT_TRUE(Drive([&] {
    service.Deliver();
    return client.ended && server.ended;
  }));
  EXPECT_EQ(jobs, 0);
  ASSERT_TRUE(client.status().ok()) << client.status();
  ASSERT_TRUE(server.status().ok()) << server.status();
  Exchange(**client.stream, **server.stream, "sealed by a service");
}

TEST_P(SealExecutorTest, AJobThatTheExecutorDropsEndsTheHandshake) {
  Executor executor = [](absl::AnyInvocable<void() &&>) {};
  SealOptions options;
  options.executor = &executor;
  StreamPair pair = Pair();
  Outcome client;
  SealClient(std::move(pair.client), client, options);
  ASSERT_TRUE(Drive([&] { return client.ended; }));
  EXPECT_TRUE(IsCancelled(client.status())) << client.status();
}

// Its memory is there until the executor comes to it: a slow one must not gather more and more.
TEST_P(SealExecutorTest, AStepThatWaitsForTheExecutorKeepsItsPlaceAfterTheDeadline) {
  auto limiter = std::make_shared<SealLimiter>(1, 8);
  SealOptions options;
  options.executor = &executor_;
  options.limiter = limiter;
  StreamPair first = Pair(), second = Pair(), third = Pair();
  for (const StreamPair* pair : {&first, &second, &third}) pair->client->Write(Chain("\x16"));
  Outcome one, two, three;
  options.deadline = kShort;
  SealServer(std::move(first.server), one, options);
  ASSERT_TRUE(Drive([&] { return one.ended; }));
  EXPECT_TRUE(IsDeadlineExceeded(one.status())) << one.status();
  ASSERT_EQ(jobs_.size(), 1u);
  options.deadline = absl::Seconds(30);
  SealServer(std::move(second.server), two, options);
  ASSERT_TRUE(Drive([&] { return limiter->stats().waiting == 1; }));
  Settle();
  EXPECT_EQ(limiter->stats().running, 1u);
  EXPECT_EQ(jobs_.size(), 1u) << "there is no room for another";
  std::move(jobs_.front())();
  jobs_.pop_front();
  ASSERT_TRUE(Drive([&] { return jobs_.size() == 1; }));
  EXPECT_EQ(limiter->stats().running, 1u);
  // The same when it is dropped.
  SealServer(std::move(third.server), three, options);
  ASSERT_TRUE(Drive([&] { return limiter->stats().waiting == 1; }));
  jobs_.pop_front();
  ASSERT_TRUE(Drive([&] { return two.ended && jobs_.size() == 1; }));
  EXPECT_TRUE(IsCancelled(two.status())) << two.status();
  jobs_.clear();
  ASSERT_TRUE(Drive([&] { return three.ended; }));
  EXPECT_EQ(limiter->stats().running, 0u);
}

TEST_P(SealExecutorTest, AHandshakeGoesWithItsLoopUnrun) {
  auto limiter = std::make_shared<SealLimiter>(2, 8);
  Fate reading, away, queued;
  std::vector<StreamPtr> peers;
  const auto start = [&](Fate& fate, SealOptions options) {
    StreamPair pair = Pair();
    pair.client->Write(Chain("\x16"));
    options.limiter = limiter;
    Seal(std::move(pair.server), ServerCredentials(), ServerOptions(), std::move(options),
         [done = fate.OnDone()](absl::StatusOr<StreamPtr> sealed) mutable {
           std::move(done)(sealed.status());
         });
    Settle();
    peers.push_back(std::move(pair.client));
  };
  start(reading, {});
  SealOptions on_executor;
  on_executor.executor = &executor_;
  start(away, on_executor);
  start(queued, {});
  EXPECT_EQ(limiter->stats().waiting, 1u);
  peers.clear();
  TakeLoop().reset();
  for (const Fate* fate : {&reading, &away, &queued}) {
    EXPECT_EQ(fate->runs(), 0);
    EXPECT_EQ(fate->dropped(), 1);
  }
  ASSERT_EQ(jobs_.size(), 1u);
  std::move(jobs_.front())();  // too late, and harmless
  EXPECT_EQ(limiter->stats().running + limiter->stats().waiting, 0u);
}

INSTANTIATE_TEST_SUITE_P(Environments, SealExecutorTest, ::testing::ValuesIn(EnvironmentsToSeal()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
