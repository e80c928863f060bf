// The contract of connect.h.
#include <penstock/connect.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/bare_peer.h"
#include "testing/harness.h"

namespace penstock::internal {
namespace {

constexpr char kOwnChoice[] = "the simulated wire chooses local addresses itself";

class ConnectTest : public Harness {
 protected:
  struct Outcome {
    int calls = 0;
    absl::Status status;
    StreamPtr stream;
  };
  ConnectCallback Into(Outcome& outcome) {
    return [&outcome](absl::StatusOr<StreamPtr> stream) {
      ++outcome.calls;
      outcome.status = stream.status();
      if (stream.ok()) outcome.stream = *std::move(stream);
    };
  }
};

TEST_P(ConnectTest, GivesAnOpenStreamAndNeverInsideTheCall) {
  std::unique_ptr<Listener> listener = Listen();
  Outcome outcome;
  Connect(loop(), listener->address(), Connecting(), Into(outcome));
  EXPECT_EQ(outcome.calls, 0);
  ASSERT_TRUE(Drive([&] { return outcome.calls > 0; }));
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.stream->peer(), listener->address());
  EXPECT_EQ(outcome.stream->stats().engine, environment().connect_engine());
  Settle();
  EXPECT_EQ(outcome.calls, 1);
  EXPECT_EQ(loop().Snapshot().connected, 1u);
  EXPECT_EQ(loop().Snapshot().connecting, 0u);
}

TEST_P(ConnectTest, WhereNobodyListensIsUnavailableAndNamesThePeer) {
  const SocketAddress address = DeafAddress(environment());
  const absl::Status status = ConnectTo(address, Connecting()).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_NE(status.message().find(address.ToString()), std::string::npos) << status;
  EXPECT_NE(status.message().find("ECONNREFUSED"), std::string::npos) << status;
}

TEST_P(ConnectTest, ARefusalIsNotReportedInsideTheCallEither) {
  Outcome outcome;
  Connect(loop(), DeafAddress(environment()), Connecting(), Into(outcome));
  EXPECT_EQ(outcome.calls, 0);
  Outcome empty;
  Connect(loop(), SocketAddress(), Connecting(), Into(empty));
  EXPECT_EQ(empty.calls, 0);
  ASSERT_TRUE(Drive([&] { return outcome.calls + empty.calls == 2; }));
  EXPECT_TRUE(absl::IsInvalidArgument(empty.status)) << empty.status;
}

TEST_P(ConnectTest, WithoutAnAnswerTheDeadlineEndsTheAttempt) {
  if (is_unix()) GTEST_SKIP() << "a full Unix backlog answers at once (unix(7), EAGAIN)";
  ConnectOptions options = Connecting();
  options.deadline = absl::Milliseconds(30);
  const SilentListener silent(environment());
  const SocketAddress address = silent.address();
  const absl::Time began = loop().now();
  const absl::Status status = ConnectTo(address, options).status();
  EXPECT_TRUE(IsDeadlineExceeded(status)) << status;
  EXPECT_GE(loop().now() - began, options.deadline);
  EXPECT_NE(status.message().find(address.ToString()), std::string::npos) << status;
  EXPECT_EQ(loop().Snapshot().deadlines, 1u);
}

TEST_P(ConnectTest, AFullUnixBacklogIsAnsweredAtOnce) {
  if (!is_unix()) GTEST_SKIP() << "about Unix sockets";
  ConnectOptions options = Connecting();
  options.deadline = absl::Seconds(1);
  const SilentListener silent(environment());
  const absl::Status status = ConnectTo(silent.address(), options).status();
  EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsResourceExhausted(status)) << status;
}

TEST_P(ConnectTest, CancelEndsAnAttemptWithCancelled) {
  if (is_unix()) GTEST_SKIP() << "a Unix connection is never under way";
  Outcome outcome;
  const SilentListener silent(environment());
  ConnectAttempt attempt = Connect(loop(), silent.address(), Connecting(), Into(outcome));
  Settle();
  EXPECT_EQ(outcome.calls, 0);
  EXPECT_EQ(loop().Snapshot().connecting, 1u);
  attempt.Cancel();
  EXPECT_EQ(outcome.calls, 0) << "inside Cancel";
  ASSERT_TRUE(Drive([&] { return outcome.calls > 0; }));
  EXPECT_TRUE(IsCancelled(outcome.status)) << outcome.status;
  attempt.Cancel();
  Settle();
  EXPECT_EQ(outcome.calls, 1);
}

TEST_P(ConnectTest, CancelAtOnceEndsItOnceEitherWay) {
  std::unique_ptr<Listener> listener = Listen();
  Outcome outcome;
  ConnectAttempt attempt = Connect(loop(), listener->address(), Connecting(), Into(outcome));
  attempt.Cancel();
  ASSERT_TRUE(Drive([&] { return outcome.calls > 0; }));
  EXPECT_TRUE(IsCancelled(outcome.status)) << outcome.status;
  Settle();
  EXPECT_EQ(outcome.calls, 1);
}

TEST_P(ConnectTest, CancelAfterTheEndHasNoEffect) {
  std::unique_ptr<Listener> listener = Listen();
  Outcome outcome;
  ConnectAttempt attempt = Connect(loop(), listener->address(), Connecting(), Into(outcome));
  ASSERT_TRUE(Drive([&] { return outcome.calls > 0; }));
  attempt.Cancel();
  Settle();
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_TRUE(Write(*outcome.stream, "still open").ok());
  ConnectAttempt().Cancel();
}

TEST_P(ConnectTest, DroppingTheAttemptLetsItGoOn) {
  std::unique_ptr<Listener> listener = Listen();
  Outcome outcome;
  { ConnectAttempt dropped = Connect(loop(), listener->address(), Connecting(), Into(outcome)); }
  ASSERT_TRUE(Drive([&] { return outcome.calls > 0; }));
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
}

TEST_P(ConnectTest, TheStreamMayBeDroppedInTheCallback) {
  std::unique_ptr<Listener> listener = Listen();
  bool called = false;
  Connect(loop(), listener->address(), Connecting(),
          [&](absl::StatusOr<StreamPtr>) { called = true; });
  ASSERT_TRUE(Drive([&] { return called && !accepted().empty(); }));
  EXPECT_TRUE(IsEof(Read(*accepted().front()).status()));
}

TEST_P(ConnectTest, BeyondTheLoopsConnectionsMaxIsRefused) {
  LoopOptions limited;
  limited.connections_max = 4;
  RemakeLoop(std::move(limited));
  StreamPair first = Pair();
  StreamPair second = Pair();
  std::unique_ptr<Listener> listener = Listen();
  const absl::Status status = ConnectTo(listener->address(), Connecting()).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_NE(status.message().find("connections_max"), std::string::npos) << status;
  EXPECT_NE(status.message().find(listener->address().ToString()), std::string::npos) << status;
  EXPECT_EQ(loop().Snapshot().connections_refused, 1u);
  first.client.reset();
  first.server.reset();
  Settle();
  absl::StatusOr<StreamPtr> third = ConnectTo(listener->address(), Connecting());
  EXPECT_TRUE(third.ok()) << third.status();
}

TEST_P(ConnectTest, BindsToTheLocalAddressGiven) {
  if (!environment().has_kernel()) GTEST_SKIP() << kOwnChoice;
  std::unique_ptr<Listener> listener = Listen();
  ConnectOptions options = Connecting();
  options.local = environment().NewAddress();
  absl::StatusOr<StreamPtr> stream = ConnectTo(listener->address(), options);
  ASSERT_TRUE(stream.ok()) << stream.status();
  ASSERT_TRUE(Drive([this] { return !accepted().empty(); }));
  EXPECT_EQ((*stream)->local(), accepted().front()->peer());
  if (is_unix()) {
    EXPECT_EQ((*stream)->local(), options.local);
  }
}

TEST_P(ConnectTest, ALocalAddressThatIsTakenOrForeignIsAnError) {
  if (!environment().has_kernel()) GTEST_SKIP() << kOwnChoice;
  std::unique_ptr<Listener> listener = Listen();
  ConnectOptions options = Connecting();
  options.local = listener->address();
  const absl::Status status = ConnectTo(listener->address(), options).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_NE(status.message().find(options.local.ToString()), std::string::npos) << status;
  const SocketAddress peer = environment().NewAddress();
  const absl::Status both = ConnectTo(peer, options).status();
  EXPECT_NE(both.message().find(options.local.ToString()), std::string::npos) << both;
  EXPECT_NE(both.message().find(peer.ToString()), std::string::npos) << both;
}

TEST_P(ConnectTest, ALocalAddressOfAnotherFamilyIsAnErrorThatNamesBoth) {
  std::unique_ptr<Listener> listener = Listen();
  ConnectOptions options = Connecting();
  options.local = SocketAddress::Parse(is_unix() ? "127.0.0.1:0" : "unix:@elsewhere").value();
  const absl::Status status = ConnectTo(listener->address(), options).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_NE(status.message().find(options.local.ToString()), std::string::npos) << status;
  EXPECT_NE(status.message().find(listener->address().ToString()), std::string::npos) << status;
}

TEST_P(ConnectTest, PendingAttemptsGoWithTheLoopUnrun) {
  if (is_unix()) GTEST_SKIP() << "a Unix connection is never under way";
  auto witness = std::make_shared<int>(0);
  const SilentListener silent(environment());
  ConnectAttempt attempt =
      Connect(loop(), silent.address(), Connecting(),
              [witness](absl::StatusOr<StreamPtr>) { ADD_FAILURE() << "it ran"; });
  Settle();
  TakeLoop().reset();
  EXPECT_EQ(witness.use_count(), 1);
  attempt.Cancel();
}

TEST_P(ConnectTest, ManyAtOnceEachEndOnce) {
  std::unique_ptr<Listener> listener = Listen();
  const SocketAddress deaf = DeafAddress(environment());
  std::vector<Outcome> outcomes(Scaled(500));
  std::vector<ConnectAttempt> attempts;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    attempts.push_back(
        Connect(loop(), i % 3 == 1 ? deaf : listener->address(), Connecting(), Into(outcomes[i])));
    if (i % 3 == 2) attempts.back().Cancel();
    int turns = 0;
    if (i % 7 == 0) Drive([&] { return turns++ > 0; });
  }
  ASSERT_TRUE(Drive([&] {
    return std::ranges::all_of(outcomes, [](Outcome& outcome) { return outcome.calls > 0; });
  }));
  for (size_t i = 0; i < outcomes.size(); ++i) {
    EXPECT_EQ(outcomes[i].calls, 1);
    if (i % 3 == 0) {
      EXPECT_TRUE(outcomes[i].status.ok()) << outcomes[i].status;
    }
    if (i % 3 == 1) {
      EXPECT_TRUE(IsReset(outcomes[i].status)) << outcomes[i].status;
    }
    if (i % 3 == 2) {
      EXPECT_TRUE(IsCancelled(outcomes[i].status)) << outcomes[i].status;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Environments, ConnectTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
