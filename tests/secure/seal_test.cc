// The handshake driver: bounds, authorization, refusals told to both ends, and every way to end
// early. The handshakes themselves are tested without streams.
#include <penstock/seal.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "secure/seal_queue.h"
#include "testing/alts_fake_service.h"
#include "testing/handshake_pair.h"
#include "testing/harness.h"
#include "testing/pattern.h"
#include "testing/seal_harness.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

using Outcome = SealOutcome;

class SealTest : public SealHarness {};

TEST_P(SealTest, TwoEndsWithCertificatesExchangeBytesAndEndInOrder) {
  StreamPair pair = Pair();
  Outcome client, server;
  const std::string peer = pair.client->peer().ToString();
  SealServer(std::move(pair.server), server);
  SealClient(std::move(pair.client), client);
  EXPECT_FALSE(client.ended) << "not inside the call";
  ASSERT_TRUE(Ended(client, server));
  ASSERT_TRUE(client.status().ok()) << client.status();
  ASSERT_TRUE(server.status().ok()) << server.status();
  EXPECT_EQ((*client.stream)->peer().ToString(), peer);
  Exchange(**client.stream, **server.stream, "first words");
  Exchange(**server.stream, **client.stream, PatternBytes(1, 0, 300'000));
  ASSERT_TRUE(Shutdown(**client.stream).ok());
  const absl::Status end = Read(**server.stream).status();
  EXPECT_TRUE(IsEof(end)) << end;
  EXPECT_FALSE(IsUnauthenticatedEof(end)) << "native mode vouches for its ends";
  Exchange(**server.stream, **client.stream, "the other way goes on");
  // Nothing of the handshake is kept.
  Settle();
  EXPECT_EQ(loop().Snapshot().pool.live, 0u);
}

TEST_P(SealTest, WhatIsSentAtOnceAfterTheHandshakeIsNotLost) {
  StreamPair pair = Pair();
  Outcome client;
  StreamPtr server;
  Seal(std::move(pair.server), ServerCredentials(), ServerOptions(), {},
       [&](absl::StatusOr<StreamPtr> sealed) {
         ASSERT_TRUE(sealed.ok()) << sealed.status();
         server = *std::move(sealed);
         // Leaves together with the last words of the handshake.
         server->Write(Chain(PatternBytes(2, 0, 40'000)));
       });
  SealClient(std::move(pair.client), client);
  ASSERT_TRUE(Drive([&] { return client.ended && server != nullptr; }));
  ASSERT_TRUE(client.status().ok()) << client.status();
  const Received received = ReadUpTo(**client.stream, 40'000);
  EXPECT_FALSE(FirstMismatch(received.data, 2, 0).has_value());
  EXPECT_EQ(received.data.size(), 40'000u);
}

TEST_P(SealTest, AListenerSealsWhatItAccepts) {
  std::vector<absl::StatusOr<StreamPtr>> sealed;
  ListenOptions options;
  options.engine = environment().listen_engine();
  auto listener = Listener::Listen(
      loop(), environment().NewAddress(), options,
      SealAccepted(ServerCredentials(), {}, {},
                   [&](absl::StatusOr<StreamPtr> stream) { sealed.push_back(std::move(stream)); }));
  ASSERT_TRUE(listener.ok()) << listener.status();
  Outcome first, second;
  for (Outcome* outcome : {&first, &second}) {
    absl::StatusOr<StreamPtr> plain = ConnectTo((*listener)->address(), Connecting());
    ASSERT_TRUE(plain.ok()) << plain.status();
    SealClient(*std::move(plain), *outcome);
  }
  listener->reset();  // handshakes under way go on
  ASSERT_TRUE(Drive([&] { return first.ended && second.ended && sealed.size() == 2; }));
  for (auto& stream : sealed) EXPECT_TRUE(stream.ok()) << stream.status();
  EXPECT_TRUE(first.status().ok()) << first.status();
  EXPECT_TRUE(second.status().ok()) << second.status();
}

TEST_P(SealTest, AStrangerIsRefusedAndBothEndsSayWhy) {
  const TestAuthority stranger("another authority");
  const CredentialsPtr credentials = stranger.Credentials({.common_name = "stranger"});
  StreamPair pair = Pair();
  Outcome client, server;
  SealServer(std::move(pair.server), server);
  Seal(std::move(pair.client), credentials, ClientOptions(), {}, client.Done());
  ASSERT_TRUE(Ended(client, server));
  EXPECT_TRUE(absl::IsUnauthenticated(client.status())) << client.status();
  EXPECT_TRUE(absl::IsUnauthenticated(server.status())) << server.status();
  // The alert has been sent and read away, and nobody is told a second time.
  EXPECT_TRUE(Drive([&] { return loop().Snapshot().open == 0; }));
}

TEST_P(SealTest, ARefusedAuthorizationIsSeenAtBothEnds) {
  StreamPair pair = Pair();
  const std::string server_peer = pair.server->peer().ToString();
  Outcome client, server;
  SealOptions options;
  std::string asked;
  options.authorize = [&](const PeerIdentity& peer, const Stream& below, AuthorizeAnswer answer) {
    EXPECT_EQ(below.peer().ToString(), server_peer);
    asked = peer.subject;
    std::move(answer)(absl::PermissionDeniedError("not on the list"));
  };
  SealServer(std::move(pair.server), server, options);
  SealClient(std::move(pair.client), client);
  ASSERT_TRUE(Ended(client, server));
  EXPECT_EQ(asked, "CN=client");
  EXPECT_TRUE(absl::IsPermissionDenied(server.status())) << server.status();
  EXPECT_TRUE(absl::StrContains(std::string(server.status().message()), "not on the list"));
  EXPECT_TRUE(absl::IsPermissionDenied(client.status())) << client.status();
  EXPECT_FALSE(absl::StrContains(std::string(client.status().message()), "list"))
      << "why is not the peer's to know";
}

TEST_P(SealTest, AnAuthorizationMayBeAnsweredLater) {
  StreamPair pair = Pair();
  Outcome client, server;
  SealOptions options;
  AuthorizeAnswer later;
  options.authorize = [&](const PeerIdentity&, const Stream&, AuthorizeAnswer answer) {
    later = std::move(answer);
  };
  SealServer(std::move(pair.server), server, options);
  SealClient(std::move(pair.client), client);
  ASSERT_TRUE(Drive([&] { return static_cast<bool>(later); }));
  Settle();
  EXPECT_FALSE(client.ended || server.ended);
  std::move(later)(absl::OkStatus());
  EXPECT_FALSE(server.ended) << "not inside the answer";
  ASSERT_TRUE(Ended(client, server));
  ASSERT_TRUE(server.status().ok()) << server.status();
  ASSERT_TRUE(client.status().ok()) << client.status();
  Exchange(**client.stream, **server.stream, "admitted");
}

// Destroyed unrun, a callback may own what seals.
TEST_P(SealTest, AHandshakeBegunByAnEndingLoopEndsWithIt) {
  struct SealsWhenDropped {
    explicit SealsWhenDropped(StreamPtr stream) : plain(std::move(stream)) {}
    SealsWhenDropped(SealsWhenDropped&&) = default;
    ~SealsWhenDropped() {
      if (plain != nullptr) {
        Seal(std::move(plain), ServerCredentials(), {.server = true}, {},
             [fate = std::move(fate)](absl::StatusOr<StreamPtr>) { ADD_FAILURE() << "it runs"; });
      }
    }
    StreamPtr plain;
    std::shared_ptr<int> fate;
  };
  for (const bool sealed_before : {false, true}) {
    Outcome waiting;
    StreamPair reading = Pair(), other = Pair(), silent = Pair();
    if (sealed_before) SealServer(std::move(silent.server), waiting);
    const auto fate = std::make_shared<int>();
    SealsWhenDropped seals(std::move(other.server));
    seals.fate = fate;
    reading.server->ReadReady([seals = std::move(seals)](absl::StatusOr<Buffer>) {});
    RemakeLoop(LoopOptions());
    EXPECT_EQ(fate.use_count(), 1);
    EXPECT_FALSE(waiting.ended);
  }
}

TEST_P(SealTest, AnAuthorizationThatIsDroppedRefuses) {
  StreamPair pair = Pair();
  Outcome client, server;
  SealOptions options;
  options.authorize = [](const PeerIdentity&, const Stream&, AuthorizeAnswer) {};
  SealServer(std::move(pair.server), server, options);
  SealClient(std::move(pair.client), client);
  ASSERT_TRUE(Ended(client, server));
  EXPECT_TRUE(absl::IsPermissionDenied(server.status())) << server.status();
  EXPECT_TRUE(absl::IsPermissionDenied(client.status())) << client.status();
}

TEST_P(SealTest, ASilentPeerMeetsTheDeadline) {
  StreamPair pair = Pair();
  Outcome server;
  SealOptions options;
  options.deadline = kShort;
  const std::string peer = pair.server->peer().ToString();
  const absl::Time began = loop().now();
  SealServer(std::move(pair.server), server, options);
  ASSERT_TRUE(Drive([&] { return server.ended; }));
  EXPECT_TRUE(IsDeadlineExceeded(server.status())) << server.status();
  EXPECT_TRUE(absl::StrContains(std::string(server.status().message()), peer)) << server.status();
  EXPECT_GE(loop().now() - began, kShort);
  EXPECT_EQ(loop().Snapshot().deadlines, 1u);
  const absl::Status end = Read(*pair.client).status();
  EXPECT_TRUE(IsEof(end) || IsReset(end)) << end;
}

TEST_P(SealTest, APeerThatDripsMeetsTheDeadlineAllTheSame) {
  StreamPair pair = Pair();
  Outcome server;
  SealOptions options;
  options.deadline = 4 * kShort;
  SealServer(std::move(pair.server), server, options);
  // The start of a TLS handshake record of 4 KiB, a byte at a time.
  std::string hello = {0x16, 0x03, 0x01, 0x10, 0x00, 0x01, 0x00, 0x0f, static_cast<char>(0xfc)};
  hello.resize(2000, '\x03');
  size_t sent = 0;
  while (!server.ended && sent < hello.size()) {
    pair.client->Write(Chain(hello.substr(sent++, 1)));
    Pass(absl::Milliseconds(5));
  }
  EXPECT_GT(sent, 1u);
  ASSERT_TRUE(Drive([&] { return server.ended; }));
  EXPECT_TRUE(IsDeadlineExceeded(server.status())) << server.status();
}

TEST_P(SealTest, APlainPeerIsRefusedByASealedEndAtOnce) {
  StreamPair pair = Pair();
  Outcome server;
  SealServer(std::move(pair.server), server);
  ASSERT_TRUE(Write(*pair.client, "GET / HTTP/1.1\r\nHost: server.test\r\n\r\n").ok());
  ASSERT_TRUE(Drive([&] { return server.ended; }));
  EXPECT_TRUE(absl::IsInvalidArgument(server.status()) || absl::IsUnauthenticated(server.status()))
      << server.status();
  // OpenSSL has no alert for a peer that speaks no TLS at all.
  const Received rest = ReadToEnd(*pair.client);
  EXPECT_TRUE(IsReset(rest.end) || (is_unix() && IsEof(rest.end))) << rest.end;
}

TEST_P(SealTest, ASealedEndRefusesAPlainServer) {
  StreamPair pair = Pair();
  EchoForever(std::move(pair.server));
  Outcome client;
  SealClient(std::move(pair.client), client);
  ASSERT_TRUE(Drive([&] { return client.ended; }));
  EXPECT_FALSE(client.status().ok());
  EXPECT_FALSE(IsDeadlineExceeded(client.status())) << client.status();
}

// Takes whatever comes and wants more.
class Insatiable final : public Handshaker {
 public:
  Progress Step(std::string_view in) override {
    Progress progress;
    progress.consumed = in.size();
    return progress;
  }
  Progress Authorize(const absl::Status&) override { return {}; }
  const PeerIdentity& peer() const override { return nobody_; }
  HandshakeResult TakeResult() override { return {}; }
  absl::Status OnPeerEnd() override { return absl::DataLossError("the peer has left"); }
  std::string_view phase() const override { return "more"; }
  void SetWake(absl::AnyInvocable<void()>) override {}

 private:
  const PeerIdentity nobody_ = {};
};

TEST_P(SealTest, MoreThanTheBytesAllowedAreNotTaken) {
  StreamPair pair = Pair();
  Outcome server;
  Seal(std::move(pair.server), std::make_unique<Insatiable>(), {}, server.Done());
  pair.client->Write(Chain(PatternBytes(3, 0, 1 << 20)));
  ASSERT_TRUE(Drive([&] { return server.ended; }));
  EXPECT_TRUE(absl::IsResourceExhausted(server.status())) << server.status();
  EXPECT_LE(loop().Snapshot().bytes_in, 256u * 1024);
}

TEST_P(SealTest, APeerThatLeavesEndsTheHandshake) {
  StreamPair pair = Pair();
  Outcome server;
  SealServer(std::move(pair.server), server);
  ASSERT_TRUE(Shutdown(*pair.client).ok());
  ASSERT_TRUE(Drive([&] { return server.ended; }));
  EXPECT_FALSE(server.status().ok());
  EXPECT_FALSE(IsDeadlineExceeded(server.status())) << server.status();
  pair = Pair();
  Outcome client;
  SealClient(std::move(pair.client), client);
  pair.server->Abort();
  ASSERT_TRUE(Drive([&] { return client.ended; }));
  EXPECT_FALSE(client.status().ok());
}

TEST_P(SealTest, CancelEndsItOnceAndNotInside) {
  StreamPair pair = Pair();
  Outcome server;
  SealAttempt attempt =
      Seal(std::move(pair.server), ServerCredentials(), ServerOptions(), {}, server.Done());
  Settle();
  attempt.Cancel();
  attempt.Cancel();
  EXPECT_FALSE(server.ended);
  ASSERT_TRUE(Drive([&] { return server.ended; }));
  EXPECT_TRUE(IsCancelled(server.status())) << server.status();
  attempt.Cancel();
  Settle();
}

TEST_P(SealTest, OptionsThatDoNotFitEndItInALaterTurn) {
  StreamPair pair = Pair();
  Outcome outcome;
  HandshakeOptions options = ClientOptions();
  options.verify_name = "";
  Seal(std::move(pair.client), ClientCredentials(), options, {}, outcome.Done());
  EXPECT_FALSE(outcome.ended);
  ASSERT_TRUE(Drive([&] { return outcome.ended; }));
  EXPECT_FALSE(outcome.status().ok());
}

// Of a handshaker from outside: what no record is sealed with ends it, and the error names the
// peer.
TEST_P(SealTest, WhatAHandshakerGivesIsCheckedAndFilledIn) {
  const auto outcome_of = [&](const HandshakeResult& keys) {
    StreamPair pair = Pair();
    const std::string peer = pair.client->peer().ToString();
    Outcome outcome;
    Seal(std::move(pair.client), HandshakerGiving(keys), {}, outcome.Done());
    EXPECT_TRUE(Drive([&] { return outcome.ended; }));
    EXPECT_EQ(absl::StrContains(outcome.status().message(), peer), !outcome.status().ok());
    return outcome.status().code();
  };
  const HandshakeResult good = InstantKeys({});
  for (const uint32_t size : {kRecordFrameMin - 1, kRecordFrameMax + 1}) {
    HandshakeResult bad = good;
    bad.send_frame_max = size;
    EXPECT_EQ(outcome_of(bad), absl::StatusCode::kInvalidArgument) << size;
    bad = good;
    bad.receive_frame_max = size;
    EXPECT_EQ(outcome_of(bad), absl::StatusCode::kInvalidArgument) << size;
  }
  HandshakeResult short_key = good;
  short_key.receive_key = SecretKey("short");
  EXPECT_EQ(outcome_of(short_key), absl::StatusCode::kInvalidArgument);
  HandshakeResult zeros = good;
  zeros.send_frame_max = zeros.receive_frame_max = 0;
  EXPECT_EQ(outcome_of(zeros), absl::StatusCode::kOk);
}

TEST_P(SealTest, ALimiterLetsSomeRunSomeWaitAndRefusesTheRest) {
  auto limiter = std::make_shared<SealLimiter>(1, 1);
  SealOptions limited;
  limited.limiter = limiter;
  AuthorizeAnswer answer;  // what the first, which runs, waits for
  limited.authorize = [&](const PeerIdentity&, const Stream&, AuthorizeAnswer given) {
    answer = std::move(given);
  };
  std::deque<Outcome> servers(3), clients(3);
  for (int i = 0; i < 3; ++i) {
    StreamPair pair = Pair();
    SealServer(std::move(pair.server), servers[i], limited);
    SealClient(std::move(pair.client), clients[i]);
    ASSERT_TRUE(Drive([&] { return i == 0 ? static_cast<bool>(answer) : true; }));
    limited.authorize = nullptr;
    Settle();
  }
  ASSERT_TRUE(Drive([&] { return servers[2].ended && clients[2].ended; }));
  EXPECT_TRUE(absl::IsResourceExhausted(servers[2].status())) << servers[2].status();
  EXPECT_EQ(limiter->stats().running, 1u);
  EXPECT_EQ(limiter->stats().waiting, 1u);
  EXPECT_EQ(limiter->stats().refused, 1u);
  EXPECT_FALSE(servers[1].ended) << "it waits for the first, although its peer is there";
  std::move(answer)(absl::OkStatus());
  ASSERT_TRUE(Ended(servers[0], servers[1]));
  EXPECT_TRUE(servers[0].status().ok()) << servers[0].status();
  EXPECT_TRUE(servers[1].status().ok()) << servers[1].status();
  EXPECT_EQ(limiter->stats().running, 0u);
  EXPECT_EQ(limiter->stats().admitted, 2u);
  ASSERT_TRUE(Ended(clients[0], clients[1]));
}

TEST_P(SealTest, SilentPeersTakeNobodysTurn) {
  auto limiter = std::make_shared<SealLimiter>(1, 1);
  SealOptions limited;
  limited.limiter = limiter;
  std::deque<Outcome> silent(4);
  std::vector<StreamPtr> peers;
  for (Outcome& outcome : silent) {
    StreamPair pair = Pair();
    SealServer(std::move(pair.server), outcome, limited);
    peers.push_back(std::move(pair.client));
  }
  Settle();
  EXPECT_EQ(limiter->stats().running + limiter->stats().waiting, 0u);
  EXPECT_EQ(loop().Snapshot().pool.live, 0u);
  StreamPair pair = Pair();
  Outcome server, client;
  SealServer(std::move(pair.server), server, limited);
  SealClient(std::move(pair.client), client);
  ASSERT_TRUE(Ended(server, client));
  EXPECT_TRUE(server.status().ok()) << server.status();
  EXPECT_EQ(limiter->stats().admitted, 1u);
  // One that has said something waits for the rest in its turn, not for its turn.
  peers[0]->Write(Chain("\x16"));
  ASSERT_TRUE(Drive([&] { return limiter->stats().running == 1; }));
  peers.clear();
  ASSERT_TRUE(Drive([&] {
    return std::ranges::all_of(silent, [](const Outcome& outcome) { return outcome.ended; });
  }));
  for (const Outcome& outcome : silent) EXPECT_FALSE(outcome.status().ok());
  EXPECT_EQ(limiter->stats().running + limiter->stats().waiting, 0u);
}

// Credentials whose peer has the first word, or not, and that make no handshaker after all.
class Choosy final : public Credentials {
 public:
  explicit Choosy(bool peer_first) : peer_first_(peer_first) {}
  absl::StatusOr<std::unique_ptr<Handshaker>> NewHandshaker(
      const HandshakeOptions& options) const override {
    seen.push_back(options);
    return absl::FailedPreconditionError("none for you");
  }
  bool PeerSpeaksFirst(const HandshakeOptions&) const override { return peer_first_; }

  mutable std::vector<HandshakeOptions> seen;

 private:
  const bool peer_first_;
};

TEST_P(SealTest, AHandshakerIsMadeWhenItsTurnHasCome) {
  for (bool peer_first : {false, true}) {
    const auto credentials = std::make_shared<const Choosy>(peer_first);
    StreamPair pair = Pair();
    const SocketAddress local = pair.server->local(), peer = pair.server->peer();
    Outcome outcome;
    Seal(std::move(pair.server), credentials, {}, {}, outcome.Done());
    EXPECT_TRUE(credentials->seen.empty()) << "not inside the call";
    if (peer_first) {
      Settle();
      EXPECT_TRUE(credentials->seen.empty());
      pair.client->Write(Chain("x"));
    }
    ASSERT_TRUE(Drive([&] { return outcome.ended; }));
    EXPECT_TRUE(absl::IsFailedPrecondition(outcome.status())) << outcome.status();
    ASSERT_EQ(credentials->seen.size(), 1u);
    // A handshaker service is told who talks to whom.
    EXPECT_EQ(credentials->seen[0].local, local);
    EXPECT_EQ(credentials->seen[0].peer, peer);
    EXPECT_EQ(credentials->seen[0].peer_name, peer.ToString());
  }
}

TEST_P(SealTest, OneThatGivesUpWhileItWaitsLeavesTheQueue) {
  auto limiter = std::make_shared<SealLimiter>(1, 8);
  SealOptions limited;
  limited.limiter = limiter;
  StreamPair first = Pair(), second = Pair(), third = Pair();
  Outcome one, two, three, client;
  for (const StreamPair* pair : {&first, &second}) pair->client->Write(Chain("\x16"));
  SealServer(std::move(first.server), one, limited);
  ASSERT_TRUE(Drive([&] { return limiter->stats().running == 1; }));
  limited.deadline = kShort;
  SealServer(std::move(second.server), two, limited);
  limited.deadline = absl::Seconds(30);
  SealServer(std::move(third.server), three, limited);
  SealClient(std::move(third.client), client);
  ASSERT_TRUE(Drive([&] { return two.ended; }));
  EXPECT_TRUE(IsDeadlineExceeded(two.status())) << two.status();
  ASSERT_TRUE(Drive([&] { return limiter->stats().waiting == 1; }));
  first.client.reset();  // the first fails, and it is the third one's turn
  ASSERT_TRUE(Ended(client, three));
  EXPECT_TRUE(three.status().ok()) << three.status();
}

INSTANTIATE_TEST_SUITE_P(Environments, SealTest, ::testing::ValuesIn(EnvironmentsToSeal()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
