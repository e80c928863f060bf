// RdmaDial: attempts that fail are made again, in time, and not for ever.
#include "rdma/dial_core.h"

#include <penstock/rdma.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "rdma/control_codec.h"
#include "testing/raw_peer.h"
#include "testing/rdma_pair.h"

namespace penstock::internal {
namespace {

class DialCoreTest : public RdmaHarness {
 protected:
  using Result = std::optional<absl::StatusOr<std::unique_ptr<RdmaEndpoint>>>;

  void TearDown() override {
    servers_.clear();
    refused_.clear();
    streams_.clear();
    RdmaHarness::TearDown();
  }
  static RdmaDialOptions Brisk() {
    RdmaDialOptions options;
    options.endpoint = Quiet();
    options.pause_min = absl::Milliseconds(4);
    options.pause_max = absl::Milliseconds(20);
    return options;
  }
  // Streams that Connector gives out.
  void Prepare(int count) {
    for (int i = 0; i < count; ++i) streams_.push_back(Pair());
  }
  StreamPair Next() {
    StreamPair pair = std::move(streams_.front());
    streams_.pop_front();
    return pair;
  }
  // The other end of every stream accepts.
  RdmaDial::Connector Accepting(const RdmaOptions& passive) {
    return [this, passive](RdmaDial::StreamCallback done) {
      StreamPair pair = Next();
      servers_.push_back(RdmaEndpoint::Accept(std::move(pair.server), passive));
      std::move(done)(std::move(pair.client));
    };
  }
  // The other end refuses, being busy.
  RdmaDial::Connector Refusing(uint32_t retry_after_ms) {
    return [this, retry_after_ms](RdmaDial::StreamCallback done) {
      times_.push_back(loop().now());
      StreamPair pair = Next();
      pair.server->Write(Chain(EncodeControl(
          ControlReject{.code = RejectCode::kBusy, .retry_after_ms = retry_after_ms})));
      refused_.push_back(std::move(pair.server));
      std::move(done)(std::move(pair.client));
    };
  }
  static RdmaDial::Callback Into(Result& result) {
    return [&result](auto endpoint) { result = std::move(endpoint); };
  }
  absl::Status Await(Result& result) {
    EXPECT_TRUE(Drive([&] { return result.has_value(); }));
    return result.has_value() ? result->status() : absl::UnknownError("the callback has not run");
  }

  std::deque<StreamPair> streams_;
  std::vector<std::unique_ptr<RdmaEndpoint>> servers_;
  std::vector<StreamPtr> refused_;
  std::vector<absl::Time> times_;
};

TEST_P(DialCoreTest, AStormOpensInTheEnd) {
  constexpr int kCount = 24;
  RdmaDeviceOptions narrow;
  narrow.receives = 4096;
  narrow.receive_size = 512;
  narrow.endpoint_receives = 2;
  narrow.openings_max = 2;
  narrow.openings_waiting_max = 3;
  narrow.retry_after = absl::Milliseconds(10);
  RdmaOptions passive = Quiet();
  passive.device = lanes().NewDevice(narrow);
  // Until as many have been refused as the line has no room for, nobody gets on.
  std::vector<std::unique_ptr<RawPeer>> mutes;
  for (int i = 0; i < 2; ++i) {
    StreamPair streams = Pair();
    servers_.push_back(RdmaEndpoint::Accept(std::move(streams.server), passive));
    mutes.push_back(RawPeer::Mute(std::move(streams.client)));
  }
  ASSERT_TRUE(Drive([&] { return passive.device->stats().openings == 2; }));
  Prepare(10 * kCount);
  std::vector<Result> results(kCount);
  std::vector<std::unique_ptr<RdmaDial>> dials;
  for (Result& result : results) {
    dials.push_back(std::make_unique<RdmaDial>(loop(), Accepting(passive), Brisk(), Into(result)));
  }
  ASSERT_TRUE(Drive([&] { return passive.device->stats().openings_refused >= kCount - 3; }));
  mutes.clear();
  for (Result& result : results) {
    ASSERT_TRUE(Await(result).ok()) << result->status();
    EXPECT_TRUE((**result)->stats().over_device);
  }
  uint32_t attempts = 0;
  for (const auto& dial : dials) attempts += dial->attempts();
  EXPECT_EQ(attempts - kCount, passive.device->stats().openings_refused);
}

TEST_P(DialCoreTest, AStreamThatCannotBeMadeIsTriedAgain) {
  Prepare(1);
  int failures = 0;
  Result result;
  RdmaDial dial(
      loop(),
      [&, accept = Accepting(Quiet())](RdmaDial::StreamCallback done) mutable {
        if (failures == 2) return accept(std::move(done));
        ++failures;
        std::move(done)(absl::UnavailableError("connection refused"));
      },
      Brisk(), Into(result));
  EXPECT_EQ(dial.attempts(), 0u) << "not in the call";
  EXPECT_TRUE(Await(result).ok()) << result->status();
  EXPECT_EQ(dial.attempts(), 3u);
}

TEST_P(DialCoreTest, ThePeersWishIsHeard) {
  Prepare(3);
  RdmaDialOptions options = Brisk();
  options.attempts_max = 3;
  Result result;
  RdmaDial dial(loop(), Refusing(60), options, Into(result));
  const absl::Status status = Await(result);
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "after 3 attempts")) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "the peer refuses")) << status;
  ASSERT_EQ(times_.size(), 3u);
  for (size_t i = 1; i < 3; ++i) EXPECT_GE(times_[i] - times_[i - 1], absl::Milliseconds(60));
}

TEST_P(DialCoreTest, AWishBeyondTheDeadlineEndsItAtOnce) {
  Prepare(1);
  RdmaDialOptions options = Brisk();
  options.deadline = absl::Seconds(50);
  const absl::Time began = loop().now();
  Result result;
  RdmaDial dial(loop(), Refusing(200'000), options, Into(result));
  const absl::Status status = Await(result);
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_LT(loop().now() - began, absl::Seconds(50));
  EXPECT_EQ(dial.attempts(), 1u);
}

TEST_P(DialCoreTest, OptionsThatAreNoneEndItBeforeTheFirstAttempt) {
  RdmaDialOptions attempts = Brisk();
  attempts.attempts_max = 0;
  RdmaDialOptions pause = Brisk();
  pause.pause_min = absl::ZeroDuration();
  RdmaDialOptions less = Brisk();
  less.pause_max = less.pause_min - absl::Nanoseconds(1);
  for (const RdmaDialOptions& options : {attempts, pause, less}) {
    Result result;
    RdmaDial dial(
        loop(), [](RdmaDial::StreamCallback) { ADD_FAILURE() << "an attempt"; }, options,
        Into(result));
    EXPECT_FALSE(result.has_value()) << "not in the call";
    EXPECT_TRUE(absl::IsInvalidArgument(Await(result))) << result->status();
    EXPECT_EQ(dial.attempts(), 0u);
  }
}

// Of minutes, which pass at once on a simulated clock.
class DialCoreTimeTest : public DialCoreTest {};

TEST_P(DialCoreTimeTest, APeerMayAskForAMinuteOrWhatTheProgramWaitsItself) {
  for (const absl::Duration longest : {absl::Seconds(30), absl::Minutes(3)}) {
    Prepare(2);
    times_.clear();
    RdmaDialOptions options = Brisk();
    options.attempts_max = 2;
    options.deadline = absl::InfiniteDuration();
    options.pause_max = longest;
    Result result;
    RdmaDial dial(loop(), Refusing(3'600'000), options, Into(result));
    EXPECT_TRUE(absl::IsUnavailable(Await(result))) << result->status();
    ASSERT_EQ(times_.size(), 2u);
    const absl::Duration waited = times_[1] - times_[0];
    EXPECT_GE(waited, std::max(longest, absl::Minutes(1)));
    EXPECT_LT(waited, std::max(longest, absl::Minutes(1)) + absl::Seconds(5));
  }
}

TEST_P(DialCoreTest, WhatWaitingDoesNotMendIsNotTriedAgain) {
  Result result;
  RdmaDial dial(
      loop(),
      [](RdmaDial::StreamCallback done) {
        std::move(done)(absl::PermissionDeniedError("not allowed"));
      },
      Brisk(), Into(result));
  EXPECT_TRUE(absl::IsPermissionDenied(Await(result))) << result->status();
  EXPECT_EQ(dial.attempts(), 1u);
}

TEST_P(DialCoreTest, TheDeadlineIsOfAllAttempts) {
  RdmaDialOptions options = Brisk();
  options.deadline = absl::Milliseconds(30);
  RdmaDial::StreamCallback late;
  Result result;
  RdmaDial dial(
      loop(), [&](RdmaDial::StreamCallback done) { late = std::move(done); }, options,
      Into(result));
  const absl::Status status = Await(result);
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  // What comes now has no use any more.
  Prepare(1);
  std::move(late)(std::move(Next().client));
  Settle();
  EXPECT_EQ(dial.attempts(), 1u);
}

TEST_P(DialCoreTest, ItMayBeDestroyedAtAnyTime) {
  Prepare(20);
  std::unique_ptr<RdmaDial> dial;
  RdmaDial::StreamCallback late;
  Fate fate;
  const auto done = [&] {
    return [guard = fate.OnDone()](auto endpoint) mutable { std::move(guard)(endpoint.status()); };
  };
  // While the stream is made, in that call, and while the endpoint opens.
  dial = std::make_unique<RdmaDial>(
      loop(), [&](RdmaDial::StreamCallback give) { late = std::move(give); }, Brisk(), done());
  ASSERT_TRUE(Drive([&] { return late != nullptr; }));
  dial = nullptr;
  std::move(late)(std::move(Next().client));
  dial = std::make_unique<RdmaDial>(
      loop(),
      [&](RdmaDial::StreamCallback give) {
        dial = nullptr;
        std::move(give)(std::move(Next().client));
      },
      Brisk(), done());
  ASSERT_TRUE(Drive([&] { return dial == nullptr; }));
  dial = std::make_unique<RdmaDial>(loop(), Refusing(1), Brisk(), done());
  ASSERT_TRUE(Drive([&] { return dial->attempts() >= 1; }));
  dial = nullptr;
  EXPECT_EQ(fate.dropped(), 3);
  // In its own callback.
  bool ended = false;
  dial = std::make_unique<RdmaDial>(loop(), Accepting(Quiet()), Brisk(), [&](auto endpoint) {
    EXPECT_TRUE(endpoint.ok()) << endpoint.status();
    dial = nullptr;
    ended = true;
  });
  EXPECT_TRUE(Drive([&] { return ended; }));
}

INSTANTIATE_TEST_SUITE_P(Lanes, DialCoreTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Simulated, DialCoreTimeTest,
                         ::testing::ValuesIn(SimulatedLaneEnvironments()), EnvironmentName);

}  // namespace
}  // namespace penstock::internal
