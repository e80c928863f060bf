// Keys shared beforehand: the right one or nothing.
#include <gtest/gtest.h>
#include <penstock/tls_handshake.h>

#include <string>
#include <utility>

#include "testing/handshake_pair.h"
#include "testing/handshake_stranger.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

const std::string kPskA(32, 'a');
const std::string kPskB(32, 'b');

CredentialsPtr PskCredentials(const std::vector<std::pair<std::string, std::string>>& keys) {
  std::vector<TlsPsk> all;
  for (const auto& [identity, key] : keys) {
    all.push_back({.identity = identity, .key = SecretKey(key)});
  }
  absl::StatusOr<CredentialsPtr> made = TlsPskCredentials(all);
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

std::unique_ptr<HandshakePump> PskPump(const CredentialsPtr& client, const CredentialsPtr& server) {
  auto pump = std::make_unique<HandshakePump>(ClientOf(client, {}), ServerOf(server, {}));
  pump->Run();
  return pump;
}

TEST(TlsPsk, AgreesAndSaysWhichKeyItWas) {
  const CredentialsPtr server = PskCredentials({{"one", kPskA}, {"two", kPskB}});
  for (const auto& [identity, key] : {std::pair("one", kPskA), std::pair("two", kPskB)}) {
    const auto pump = PskPump(PskCredentials({{identity, key}}), server);
    ASSERT_TRUE(pump->client.done() && pump->server.done()) << pump->client.error();
    const HandshakeResult ours = pump->client.TakeResult();
    const HandshakeResult theirs = pump->server.TakeResult();
    EXPECT_EQ(ours.send_key.view(), theirs.receive_key.view());
    EXPECT_EQ(ours.receive_key.view(), theirs.send_key.view());
    EXPECT_NE(ours.send_key.view(), ours.receive_key.view());
    for (const HandshakeResult* result : {&ours, &theirs}) {
      EXPECT_EQ(result->peer.kind, PeerIdentity::Kind::kPsk);
      EXPECT_EQ(result->peer.psk_identity, identity);
      EXPECT_TRUE(result->peer.chain.empty());
    }
  }
}

TEST(TlsPsk, WorksByteByByteAndIsAuthorised) {
  HandshakePump pump(ClientOf(PskCredentials({{"one", kPskA}}), {}),
                     ServerOf(PskCredentials({{"one", kPskA}}), {}));
  pump.piece = 1;
  pump.server.authorize = [](const PeerIdentity& peer) {
    return peer.psk_identity == "one" ? absl::UnknownError("not one") : absl::OkStatus();
  };
  pump.Run();
  EXPECT_TRUE(absl::IsPermissionDenied(pump.server.error())) << pump.server.error();
  EXPECT_TRUE(absl::IsPermissionDenied(pump.client.error())) << pump.client.error();
  EXPECT_NE(pump.client.error().message().find("access_denied"), absl::string_view::npos);
}

// Neither learns whether it was the identity or the key.
TEST(TlsPsk, AWrongKeyAndAnUnknownIdentityFailAlike) {
  const CredentialsPtr server = PskCredentials({{"one", kPskA}});
  const auto wrong = PskPump(PskCredentials({{"one", kPskB}}), server);
  const auto unknown = PskPump(PskCredentials({{"nobody", kPskA}}), server);
  for (HandshakePump* pump : {wrong.get(), unknown.get()}) {
    EXPECT_TRUE(absl::IsUnauthenticated(pump->server.error())) << pump->server.error();
    EXPECT_TRUE(absl::IsUnauthenticated(pump->client.error())) << pump->client.error();
  }
  EXPECT_EQ(wrong->client.error(), unknown->client.error());
  EXPECT_EQ(wrong->sent_to_client, unknown->sent_to_client);
  EXPECT_NE(unknown->server.error().message().find("'nobody' is not known"),
            absl::string_view::npos)
      << unknown->server.error();
}

TEST(TlsPsk, CertificatesAndKeysNeverMix) {
  const CredentialsPtr psk = PskCredentials({{"one", kPskA}});
  HandshakePump to_psk(ClientOf(ClientCredentials()), ServerOf(psk, {}));
  to_psk.Run();
  EXPECT_TRUE(absl::IsUnauthenticated(to_psk.server.error())) << to_psk.server.error();
  EXPECT_TRUE(to_psk.client.failed());
  HandshakePump from_psk(ClientOf(psk, {}), ServerOf(ServerCredentials()));
  from_psk.Run();
  EXPECT_TRUE(absl::IsUnauthenticated(from_psk.client.error())) << from_psk.client.error();
  EXPECT_NE(from_psk.client.error().message().find("fell back"), absl::string_view::npos);
  EXPECT_TRUE(from_psk.server.failed());
}

void MeetPsk(TlsStranger& stranger, PumpEnd& end) {
  stranger.Give({});
  end.Give({});
  for (std::string bytes = "x"; !bytes.empty();) {
    bytes = stranger.TakeSent();
    end.Give(bytes);
    const std::string back = end.TakeSent();
    stranger.Give(back);
    bytes += back;
  }
}

// What OpenSSL does by itself: an identity that the server does not know falls back to
// certificates.
TEST(TlsPsk, OurServerDoesNotFallBack) {
  TlsStranger client(
      {.certificate = CommonAuthority().Issue({}), .psk_identity = "nobody", .psk_key = kPskA});
  PumpEnd server(ServerOf(PskCredentials({{"one", kPskA}}), {}));
  MeetPsk(client, server);
  EXPECT_TRUE(absl::IsUnauthenticated(server.error())) << server.error();
  EXPECT_FALSE(client.complete());
}

TEST(TlsPsk, OurClientDoesNotFallBack) {
  TlsStranger server({.server = true,
                      .certificate = CommonAuthority().Issue({.names = {"DNS:server.test"}}),
                      .psk_identity = "other",
                      .psk_key = kPskA});
  PumpEnd client(ClientOf(PskCredentials({{"one", kPskA}}), {}));
  MeetPsk(server, client);
  EXPECT_TRUE(absl::IsUnauthenticated(client.error())) << client.error();
  EXPECT_NE(client.error().message().find("fell back"), absl::string_view::npos);
  EXPECT_FALSE(server.complete());
}

TEST(TlsPsk, RefusesKeysThatAreNone) {
  const auto refused = [](std::vector<TlsPsk> keys) { return TlsPskCredentials(keys).status(); };
  const SecretKey good(kPskA);
  EXPECT_TRUE(absl::IsInvalidArgument(refused({})));
  EXPECT_TRUE(absl::IsInvalidArgument(refused({{.identity = "", .key = good}})));
  EXPECT_TRUE(absl::IsInvalidArgument(refused({{.identity = std::string(129, 'i'), .key = good}})));
  EXPECT_TRUE(absl::IsInvalidArgument(
      refused({{.identity = "a", .key = SecretKey(std::string(15, 'k'))}})));
  const absl::Status twice =
      refused({{.identity = "a", .key = good}, {.identity = "a", .key = good}});
  EXPECT_NE(twice.message().find("'a' is given twice"), absl::string_view::npos) << twice;
  EXPECT_TRUE(TlsPskCredentials({{.identity = "a", .key = SecretKey(std::string(16, 'k'))}}).ok());
  EXPECT_TRUE(TlsPskCredentials({{.identity = "a", .key = SecretKey(std::string(64, 'k'))}}).ok());
}

TEST(TlsPsk, ProvesNoServerName) {
  const CredentialsPtr psk = PskCredentials({{"one", kPskA}});
  EXPECT_TRUE(absl::IsInvalidArgument(psk->NewHandshaker({.verify_name = "a.test"}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      psk->NewHandshaker({.server = true, .verify_name = "a.test"}).status()));
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
