// Who is refused, by whom, and what both ends see of it, on every engine; and how many handshakes a
// listener runs. The handshakes' own tests try the same strangers without streams.
#include <penstock/seal.h>
#include <penstock/static_key.h>
#include <penstock/tls_handshake.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "testing/alts_fake_service.h"
#include "testing/handshake_pair.h"
#include "testing/harness.h"
#include "testing/seal_outcome.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

SealOptions DenyAll() {
  SealOptions options;
  options.authorize = [](const PeerIdentity&, const Stream&, AuthorizeAnswer answer) {
    std::move(answer)(absl::PermissionDeniedError("not on the list"));
  };
  return options;
}

class SealRefusalTest : public Harness {
 protected:
  void TearDown() override {
    client = SealOutcome(), server = SealOutcome();
    Harness::TearDown();
  }
  // Both ends of a new pair, each with credentials and options of its own; the side that accepted
  // is the server.
  void SealBoth(const CredentialsPtr& of_client, SealOptions client_options,
                const CredentialsPtr& of_server, SealOptions server_options) {
    StreamPair pair = Pair();
    HandshakeOptions handshake;
    handshake.server = true;
    Seal(std::move(pair.server), of_server, handshake, std::move(server_options), server.Done());
    handshake.server = false;
    handshake.verify_name = verify_name;
    Seal(std::move(pair.client), of_client, handshake, std::move(client_options), client.Done());
  }
  void ExpectDenied(const SealOutcome& outcome) {
    ASSERT_TRUE(Drive([&] { return outcome.ended; }));
    EXPECT_TRUE(absl::IsPermissionDenied(outcome.status())) << outcome.status();
    EXPECT_TRUE(absl::StrContains(std::string(outcome.status().message()), "not on the list"))
        << outcome.status();
  }
  // The handshake was over at this end before the other one refused, or may have been: the stream
  // ends by a reset, where there are any, and never in order.
  void ExpectReset(const SealOutcome& outcome) {
    ASSERT_TRUE(Drive([&] { return outcome.ended; }));
    const absl::Status end =
        outcome.status().ok() ? Read(**outcome.stream).status() : outcome.status();
    EXPECT_TRUE(IsReset(end) || (is_unix() && IsUnauthenticatedEof(end))) << end;
  }

  SealOutcome client, server;
  std::string verify_name;  // empty but for certificates
};

TEST_P(SealRefusalTest, ADenialOfAHolderOfAStaticKeyResetsItsStream) {
  for (bool by_server : {false, true}) {
    client = SealOutcome(), server = SealOutcome();
    StaticKeyOptions options;
    options.key = [] { return SecretKey(std::string(44, 'k')); };
    options.used = std::make_shared<UsedKeys>();
    const CredentialsPtr keys = *StaticKeyCredentials(options);
    SealBoth(keys, by_server ? SealOptions() : DenyAll(), keys,
             by_server ? DenyAll() : SealOptions());
    ExpectDenied(by_server ? server : client);
    ExpectReset(by_server ? client : server);
  }
}

TEST_P(SealRefusalTest, ADenialAfterTheServiceAgreedIsSeenAtBothEnds) {
  AltsFakeService service;
  SealBoth(service.Credentials(), {}, service.Credentials(), DenyAll());
  ExpectDenied(server);
  ExpectReset(client);
  // The server waits for the client's last words when the client refuses it.
  client = SealOutcome(), server = SealOutcome();
  SealBoth(service.Credentials(), DenyAll(), service.Credentials(), {});
  ExpectDenied(client);
  ASSERT_TRUE(Drive([&] { return server.ended; }));
  EXPECT_TRUE(IsReset(server.status()) || (is_unix() && absl::IsDataLoss(server.status())))
      << server.status();
}

// Nobody is told, and nobody gets a stream: neither end is the worse for it.
TEST_P(SealRefusalTest, WithoutACallbackEveryEndIsSilent) {
  verify_name = "server.test";
  const auto seal_server = [](StreamPtr stream, SealOptions options) {
    Seal(std::move(stream), ServerCredentials(), {.server = true}, std::move(options), nullptr);
  };
  const auto seal_client = [this](StreamPtr stream) {
    HandshakeOptions handshake;
    handshake.verify_name = verify_name;
    Seal(std::move(stream), ClientCredentials(), handshake, {}, client.Done());
  };
  const auto ended = [this] { return client.ended; };
  StreamPair refused = Pair();
  seal_server(std::move(refused.server), DenyAll());
  seal_client(std::move(refused.client));
  ASSERT_TRUE(Drive(ended));
  EXPECT_TRUE(absl::IsPermissionDenied(client.status())) << client.status();
  client = SealOutcome();

  StreamPair sealed = Pair();
  seal_server(std::move(sealed.server), {});
  seal_client(std::move(sealed.client));
  ASSERT_TRUE(Drive(ended));
  ASSERT_TRUE(client.status().ok()) << client.status();
  EXPECT_TRUE(IsEof(Read(**client.stream).status()));
  client = SealOutcome();

  StreamPair cancelled = Pair();
  Seal(std::move(cancelled.server), ServerCredentials(), {.server = true}, {}, nullptr).Cancel();
  EXPECT_FALSE(Read(*cancelled.client).ok());
}

TEST_P(SealRefusalTest, AClientThatRefusesItsServerSaysSo) {
  verify_name = "server.test";
  SealBoth(ClientCredentials(), DenyAll(), ServerCredentials(), {});
  ExpectDenied(client);
  ASSERT_TRUE(Drive([&] { return server.ended; }));
  EXPECT_TRUE(absl::IsPermissionDenied(server.status())) << server.status();
  EXPECT_FALSE(absl::StrContains(std::string(server.status().message()), "list"))
      << "why is not the peer's to know";
}

// The strangers of the handshakes' own tests, met by streams: both ends fail, neither by its
// deadline.
TEST_P(SealRefusalTest, StrangersFailBothEnds) {
  const TestAuthority other("another CA");
  const auto issue = [](const TestAuthority& by, CertificateRequest request) {
    TlsCertificateOptions options = by.Options(by.Issue(request));
    options.ca = PemSource::Text(CommonAuthority().pem());
    return *TlsCertificateCredentials(options);
  };
  const auto psk = [](const std::string& identity, char key) {
    return *TlsPskCredentials({{.identity = identity, .key = SecretKey(std::string(32, key))}});
  };
  const std::vector<std::string> names = {"DNS:server.test"};
  struct Case {
    const char* what;
    CredentialsPtr of_client, of_server;
    const char* verify_name = "server.test";
  };
  const Case cases[] = {
      {"client of another authority", issue(other, {}), ServerCredentials()},
      {"server of another authority", ClientCredentials(), issue(other, {.names = names})},
      {"another name", ClientCredentials(), issue(CommonAuthority(), {.names = {"DNS:b.test"}})},
      {"client expired", issue(CommonAuthority(), {.valid_until = -60}), ServerCredentials()},
      {"server expired", ClientCredentials(),
       issue(CommonAuthority(), {.names = names, .valid_until = -60})},
      {"a client without a certificate", psk("pump", 'k'), ServerCredentials(), ""},
      {"a server without a certificate", ClientCredentials(), psk("pump", 'k')},
      {"another shared key", psk("pump", 'k'), psk("pump", 'l'), ""},
      {"an unknown identity", psk("pump", 'k'), psk("valve", 'k'), ""},
  };
  for (const Case& c : cases) {
    client = SealOutcome(), server = SealOutcome();
    verify_name = c.verify_name;
    SealBoth(c.of_client, {}, c.of_server, {});
    ASSERT_TRUE(Drive([&] { return client.ended && server.ended; })) << c.what;
    for (const SealOutcome* outcome : {&client, &server}) {
      EXPECT_FALSE(outcome->status().ok()) << c.what;
      EXPECT_FALSE(IsDeadlineExceeded(outcome->status())) << c.what << ": " << outcome->status();
    }
    EXPECT_TRUE(absl::IsUnauthenticated(client.status()) ||
                absl::IsUnauthenticated(server.status()))
        << c.what << ": " << client.status() << "; " << server.status();
  }
}

// Counts what it makes, all of which wait for ever.
class Waiting final : public Credentials {
 public:
  absl::StatusOr<std::unique_ptr<Handshaker>> NewHandshaker(
      const HandshakeOptions&) const override {
    ++made;
    return std::make_unique<WaitingHandshaker>();
  }
  mutable int made = 0;

 private:
  class WaitingHandshaker final : public Handshaker {
   public:
    Progress Step(std::string_view) override { return {}; }
    Progress Authorize(const absl::Status&) override { return {}; }
    const PeerIdentity& peer() const override { return nobody_; }
    HandshakeResult TakeResult() override { return {}; }
    absl::Status OnPeerEnd() override { return absl::DataLossError("the peer has left"); }
    std::string_view phase() const override { return "the end of time"; }
    void SetWake(absl::AnyInvocable<void()>) override {}

   private:
    const PeerIdentity nobody_ = {};
  };
};

TEST_P(SealRefusalTest, AListenerBoundsItsHandshakesUnlessToldNotTo) {
  constexpr int kPeers = SealLimiter::kRunningMax + 3;
  for (bool unlimited : {false, true}) {
    const auto credentials = std::make_shared<const Waiting>();
    SealOptions options;
    options.unlimited_handshakes = unlimited;
    options.deadline = absl::InfiniteDuration();
    ListenOptions listening;
    listening.engine = environment().listen_engine();
    int ended = 0;
    auto listener = Listener::Listen(
        loop(), environment().NewAddress(), listening,
        SealAccepted(credentials, {}, options, [&](absl::StatusOr<StreamPtr>) { ++ended; }));
    ASSERT_TRUE(listener.ok()) << listener.status();
    std::vector<StreamPtr> peers;
    for (int i = 0; i < kPeers; ++i) {
      absl::StatusOr<StreamPtr> peer = ConnectTo((*listener)->address(), Connecting());
      ASSERT_TRUE(peer.ok()) << peer.status();
      peers.push_back(*std::move(peer));
    }
    const int expected = unlimited ? kPeers : SealLimiter::kRunningMax;
    ASSERT_TRUE(Drive([&] { return credentials->made >= expected; }));
    Settle();
    EXPECT_EQ(credentials->made, expected);
    peers.clear();  // each that leaves makes room for one that waits
    ASSERT_TRUE(Drive([&] { return ended == kPeers; }));
    EXPECT_EQ(credentials->made, kPeers);
  }
}

// However a handshake fails that has no words for it: its peer may be done, and read to the end.
TEST_P(SealRefusalTest, NoFailureOfOneEndLooksLikeTheOrderlyEndOfAStream) {
  const auto keys = [](std::shared_ptr<UsedKeys> used) {
    StaticKeyOptions options;
    options.key = [] { return SecretKey(std::string(44, 'k')); };
    options.used = std::move(used);
    return *StaticKeyCredentials(options);
  };
  std::vector<AuthorizeAnswer> unanswered;
  SealOptions late;
  late.deadline = absl::Milliseconds(20);
  late.authorize = [&](const PeerIdentity&, const Stream&, AuthorizeAnswer answer) {
    unanswered.push_back(std::move(answer));
  };
  const auto full = std::make_shared<SealLimiter>(1, 0);
  StreamPair other = Pair();
  SealOptions limited;
  limited.limiter = full;
  Seal(std::move(other.server), std::make_shared<const Waiting>(), {.server = true}, limited,
       nullptr);
  Settle();
  const auto spent = std::make_shared<UsedKeys>();
  ASSERT_TRUE(spent->Use(SecretKey(std::string(44, 'k')), true).ok());
  const struct {
    absl::StatusCode code;
    SealOptions options;
    std::shared_ptr<UsedKeys> used;
  } cases[] = {
      {absl::StatusCode::kDeadlineExceeded, late, std::make_shared<UsedKeys>()},
      {absl::StatusCode::kResourceExhausted, limited, std::make_shared<UsedKeys>()},
      {absl::StatusCode::kFailedPrecondition, {}, spent},
  };
  for (const auto& c : cases) {
    client = SealOutcome(), server = SealOutcome();
    SealBoth(keys(std::make_shared<UsedKeys>()), {}, keys(c.used), c.options);
    ASSERT_TRUE(Drive([&] { return server.ended; }));
    EXPECT_EQ(server.status().code(), c.code) << server.status();
    ExpectReset(client);
  }
}

// The client is done: it has sent the words that the server's end waits for, or gets those that it
// waits for together with the server's failure.
TEST_P(SealRefusalTest, AServiceThatRefusesTheServerResetsTheClientsStream) {
  for (const int refused : {3, 1}) {
    client = SealOutcome(), server = SealOutcome();
    AltsFakeService service;
    service.change = [&](AltsFakeResponse& response, int call) {
      if (call != refused) return;
      response.has_result = false;
      response.status_code = 7;
    };
    SealBoth(service.Credentials(), {}, service.Credentials(), {});
    ASSERT_TRUE(Drive([&] { return server.ended; }));
    EXPECT_TRUE(absl::IsPermissionDenied(server.status())) << server.status();
    ExpectReset(client);
  }
}

INSTANTIATE_TEST_SUITE_P(Environments, SealRefusalTest, ::testing::ValuesIn(EnvironmentsToSeal()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
