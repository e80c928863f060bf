// Peers that a TLS handshake must refuse: both ends learn of it at once, with a reason.
#include <gtest/gtest.h>
#include <penstock/tls_handshake.h>

#include <vector>

#include "testing/handshake_pair.h"
#include "testing/handshake_stranger.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

std::string BothEnds(const HandshakePump& pump) {
  return "client: " + pump.client.error().ToString() +
         "; server: " + pump.server.error().ToString();
}

bool Says(const absl::Status& status, std::string_view words) {
  return std::string_view(status.message().data(), status.message().size()).find(words) !=
         std::string_view::npos;
}

// A handshake of which both ends fail with Unauthenticated; the end that refuses says `reason`, the
// other one names `alert`.
struct BadCertificate {
  const char* what;
  bool of_client;  // else of the server
  TestAuthority* authority;
  CertificateRequest request;
  const char* reason;
  const char* alert;
};

TEST(TlsRefusal, BadCertificatesFailBothEnds) {
  TestAuthority other("another CA");
  auto* common = const_cast<TestAuthority*>(&CommonAuthority());
  const std::vector<std::string> names = {"DNS:server.test"};
  const std::vector<BadCertificate> cases = {
      {"client of another authority",
       true,
       &other,
       {},
       "unable to get local issuer",
       "alert 48, unknown_ca"},
      {"server of another authority",
       false,
       &other,
       {.names = names},
       "unable to get local issuer",
       "alert 48, unknown_ca"},
      {"client expired",
       true,
       common,
       {.valid_until = -60},
       "certificate has expired",
       "alert 45, certificate_expired"},
      {"server expired",
       false,
       common,
       {.names = names, .valid_until = -60},
       "certificate has expired",
       "alert 45, certificate_expired"},
      {"client not yet valid",
       true,
       common,
       {.valid_from = 600},
       "not yet valid",
       "alert 42, bad_certificate"},
      {"server not yet valid",
       false,
       common,
       {.names = names, .valid_from = 600},
       "not yet valid",
       "alert 42, bad_certificate"},
      {"client with a server's certificate",
       true,
       common,
       {.usage = "serverAuth"},
       "certificate purpose",
       "alert 43, unsupported_certificate"},
      {"server with a client's certificate",
       false,
       common,
       {.names = names, .usage = "clientAuth"},
       "certificate purpose",
       "alert 43, unsupported_certificate"},
  };
  for (const BadCertificate& c : cases) {
    // Whoever has the bad certificate trusts the good peer, so that it is the peer that refuses.
    TlsCertificateOptions options = c.authority->Options(c.authority->Issue(c.request));
    options.ca = PemSource::Text(CommonAuthority().pem());
    const absl::StatusOr<CredentialsPtr> bad = TlsCertificateCredentials(options);
    ASSERT_TRUE(bad.ok()) << bad.status();
    HandshakePump pump(ClientOf(c.of_client ? *bad : ClientCredentials()),
                       ServerOf(c.of_client ? ServerCredentials() : *bad));
    pump.Run();
    const PumpEnd& judge = c.of_client ? pump.server : pump.client;
    const PumpEnd& refused = c.of_client ? pump.client : pump.server;
    EXPECT_TRUE(absl::IsUnauthenticated(judge.error())) << c.what << ": " << BothEnds(pump);
    EXPECT_TRUE(Says(judge.error(), c.reason)) << c.what << ": " << BothEnds(pump);
    EXPECT_TRUE(absl::IsUnauthenticated(refused.error())) << c.what << ": " << BothEnds(pump);
    EXPECT_TRUE(Says(refused.error(), c.alert)) << c.what << ": " << BothEnds(pump);
  }
}

// Runs a stranger against `end` until neither has anything to say.
void Meet(TlsStranger& stranger, PumpEnd& end) {
  stranger.Give({});
  end.Give({});
  for (bool moved = true; moved;) {
    moved = false;
    if (const std::string bytes = stranger.TakeSent(); !bytes.empty()) {
      moved = true;
      end.Give(bytes);
    }
    if (const std::string bytes = end.TakeSent(); !bytes.empty()) {
      moved = true;
      stranger.Give(bytes);
    }
  }
}

TestCertificate ServerCertificate() {
  return CommonAuthority().Issue({.common_name = "server", .names = {"DNS:server.test"}});
}

TEST(TlsRefusal, ServerWantsACertificate) {
  TlsStranger client({.ca = CommonAuthority().pem()});
  PumpEnd server(ServerOf(ServerCredentials()));
  Meet(client, server);
  EXPECT_TRUE(absl::IsUnauthenticated(server.error())) << server.error();
  EXPECT_TRUE(Says(server.error(), "did not return a certificate")) << server.error();
  // The trap: this client's TLS was complete before the server had judged it.
  EXPECT_TRUE(client.complete());
  EXPECT_EQ(client.refusal(), "tlsv13 alert certificate required");
}

TEST(TlsRefusal, OursIsNotDoneWhileARefusalIsOnItsWay) {
  const TestAuthority other("another CA");
  TlsCertificateOptions options = other.Options(other.Issue({}));
  options.ca = PemSource::Text(CommonAuthority().pem());
  PumpEnd client(ClientOf(*TlsCertificateCredentials(options)));
  PumpEnd server(ServerOf(ServerCredentials()));
  client.Give({});
  server.Give(client.TakeSent());
  client.Give(server.TakeSent());
  server.Give(client.TakeSent());
  ASSERT_TRUE(server.failed());
  const std::string alert = server.TakeSent();
  // Read as a record's length, it would announce 197,399 bytes: a stall and no error.
  ASSERT_EQ(alert.substr(0, 4), std::string("\x17\x03\x03\x00", 4));
  for (const char byte : alert) {
    ASSERT_FALSE(client.over());
    client.Give(std::string_view(&byte, 1));
  }
  EXPECT_TRUE(absl::IsUnauthenticated(client.error())) << client.error();
  EXPECT_EQ(client.rest(), "");
}

TEST(TlsRefusal, ServersThatAskForNoCertificateAreNotConfirmed) {
  // The client proves nothing to such a server; it is the missing confirmation that ends it.
  TlsStranger server({.server = true,
                      .certificate = ServerCertificate(),
                      .ca = CommonAuthority().pem(),
                      .ask_certificate = false});
  PumpEnd client(ClientOf(ClientCredentials()));
  Meet(server, client);
  EXPECT_FALSE(client.done());
  EXPECT_TRUE(absl::IsDataLoss(client.handshaker().OnPeerEnd()));
}

TEST(TlsRefusal, NothingOlderThanTls13) {
  TlsStranger client({.tls12_only = true, .ca = CommonAuthority().pem()});
  PumpEnd server(ServerOf(ServerCredentials()));
  Meet(client, server);
  EXPECT_TRUE(absl::IsInvalidArgument(server.error())) << server.error();
  EXPECT_TRUE(Says(server.error(), "unsupported protocol")) << server.error();
  EXPECT_EQ(client.refusal(), "tlsv1 alert protocol version");

  TlsStranger old({.server = true, .tls12_only = true, .certificate = ServerCertificate()});
  PumpEnd ours(ClientOf(ClientCredentials()));
  Meet(old, ours);
  EXPECT_TRUE(absl::IsInvalidArgument(ours.error())) << ours.error();
  EXPECT_TRUE(Says(ours.error(), "alert 70, protocol_version")) << ours.error();
}

TEST(TlsRefusal, ApplicationProtocolMustMatch) {
  for (const std::string& alpn : {std::string("h2"), std::string("penstock/2/x"), std::string()}) {
    const TestCertificate certificate = CommonAuthority().Issue({});
    TlsStranger client({.alpn = alpn, .certificate = certificate, .ca = CommonAuthority().pem()});
    PumpEnd server(ServerOf(ServerCredentials()));
    Meet(client, server);
    EXPECT_TRUE(absl::IsInvalidArgument(server.error())) << alpn << ": " << server.error();
    EXPECT_TRUE(Says(server.error(), "application protocol")) << server.error();
    EXPECT_EQ(client.refusal(), "tlsv1 alert no application protocol") << alpn;

    TlsStranger other({.server = true, .alpn = alpn, .certificate = ServerCertificate()});
    PumpEnd ours(ClientOf(ClientCredentials()));
    Meet(other, ours);
    EXPECT_TRUE(absl::IsInvalidArgument(ours.error())) << alpn << ": " << ours.error();
  }
}

TEST(TlsRefusal, HelloMustBeOneOfOurs) {
  struct Case {
    const char* what;
    std::string message;
    const char* alert;
  };
  const std::string good("\x01\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00", 12);
  const std::vector<Case> cases = {
      {"short", good.substr(0, 11), "tlsv1 alert decode error"},
      {"long", good + "x", "tlsv1 alert decode error"},
      {"two in one", good + good, "tlsv1 alert decode error"},
      {"version 2", "\x02" + good.substr(1), "tlsv1 alert decode error"},
      {"reserved bits", good.substr(0, 2) + "\x01" + good.substr(3), "tlsv1 alert decode error"},
      {"unknown kind", "\x01\x09" + good.substr(2), "tlsv1 alert decode error"},
      {"confirms", "\x01\x02" + good.substr(2), "sslv3 alert unexpected message"},
      {"tiny records", good.substr(0, 4) + std::string(8, '\0'), "tlsv1 alert decode error"},
  };
  for (const Case& c : cases) {
    TlsStranger client({.certificate = CommonAuthority().Issue({}), .ca = CommonAuthority().pem()});
    PumpEnd server(ServerOf(ServerCredentials()));
    Meet(client, server);
    ASSERT_TRUE(client.complete());
    client.Send(c.message);
    Meet(client, server);
    EXPECT_TRUE(absl::IsInvalidArgument(server.error())) << c.what << ": " << server.error();
    EXPECT_EQ(server.authorized, 0) << c.what;
    EXPECT_EQ(client.refusal(), c.alert) << c.what;
  }
}

TEST(TlsRefusal, ConfirmationMustBeOneOfOurs) {
  const std::string good("\x01\x02\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00", 12);
  const std::vector<std::string> bad = {
      good.substr(0, 5), good + "x", "\x01\x01" + good.substr(2),
      good.substr(0, 8) + std::string("\x01\x00\x00\x00", 4),  // a flag that was not asked for
  };
  for (const std::string& message : bad) {
    TlsStranger server(
        {.server = true, .certificate = ServerCertificate(), .ca = CommonAuthority().pem()});
    PumpEnd client(ClientOf(ClientCredentials()));
    Meet(server, client);
    ASSERT_FALSE(client.over());
    server.Send(message);
    Meet(server, client);
    EXPECT_TRUE(absl::IsInvalidArgument(client.error())) << client.error();
    EXPECT_EQ(client.TakeSent(), "");  // the server may have switched
  }
}

TEST(TlsRefusal, ServersDenialIsAnAlertToAnyTlsPeer) {
  TlsStranger client({.certificate = CommonAuthority().Issue({}), .ca = CommonAuthority().pem()});
  PumpEnd server(ServerOf(ServerCredentials()));
  server.authorize = [](const PeerIdentity&) { return absl::UnknownError("no"); };
  Meet(client, server);
  client.Send(std::string("\x01\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00", 12));
  Meet(client, server);
  EXPECT_TRUE(absl::IsPermissionDenied(server.error())) << server.error();
  EXPECT_EQ(client.refusal(), "tlsv1 alert access denied");
  EXPECT_EQ(client.tickets(), 0);
  EXPECT_EQ(client.received(), "");
}

TEST(TlsRefusal, ClosingTlsIsNoConfirmation) {
  PumpEnd client(ClientOf(ClientCredentials()));
  PumpEnd server(ServerOf(ServerCredentials()));
  client.authorize = [](const PeerIdentity&) { return absl::UnknownError("no"); };
  client.Give({});
  server.Give(client.TakeSent());
  client.Give(server.TakeSent());
  ASSERT_TRUE(client.failed());
  // Without its first message, the refusal, what is left is TLS's own close.
  std::string flight = client.TakeSent();
  const size_t refusal = 5 + 12 + 1 + 16;
  const size_t close = 5 + 2 + 1 + 16;
  flight.erase(flight.size() - refusal - close, refusal);
  server.Give(flight);
  EXPECT_TRUE(server.failed()) << server.error();
}

TEST(TlsRefusal, GarbageAndEndlessHandshakesEnd) {
  for (const bool of_server : {false, true}) {
    PumpEnd end(of_server ? ServerOf(ServerCredentials()) : ClientOf(ClientCredentials()));
    end.Give({});
    end.Give(std::string(65 * 1024, '\x5a'));
    EXPECT_TRUE(absl::IsInvalidArgument(end.error())) << end.error();
  }
  // A client hello that never ends: records of TLS that are in order, one after the other.
  PumpEnd server(ServerOf(ServerCredentials()));
  std::string record("\x16\x03\x01\x40\x00", 5);
  record.append("\x01\x01\xff\x00", 4);  // a hello of 130,816 bytes
  record.resize(5 + 0x4000, 'h');
  int records = 0;
  for (; !server.failed() && records < 100; ++records) {
    server.Give(record);
    record.replace(5, 4, "hhhh");
  }
  EXPECT_TRUE(absl::IsResourceExhausted(server.error())) << server.error();
  EXPECT_EQ(records, 4);
}

TEST(TlsRefusal, EndlessKeyUpdatesEnd) {
  TlsStranger client({.certificate = CommonAuthority().Issue({}), .ca = CommonAuthority().pem()});
  PumpEnd server(ServerOf(ServerCredentials()));
  Meet(client, server);
  size_t sent = 0;
  while (!server.over() && sent < 1024 * 1024) {
    client.RequestKeyUpdate();
    client.Send("");  // flushes the request
    const std::string bytes = client.TakeSent();
    sent += bytes.size();
    server.Give(bytes);
    client.Give(server.TakeSent());
  }
  EXPECT_TRUE(server.failed());
  EXPECT_LT(sent, 70u * 1024);
}

TEST(TlsRefusal, NamesWithANulAreRefused) {
  const CredentialsPtr odd = CommonAuthority().Credentials(
      {.common_name = "client", .names = {std::string("URI:spiffe://a\0b", 16)}});
  HandshakePump pump(ClientOf(odd), ServerOf(ServerCredentials()));
  pump.Run();
  EXPECT_TRUE(absl::IsInvalidArgument(pump.server.error())) << BothEnds(pump);
  EXPECT_TRUE(Says(pump.client.error(), "handshake_failure")) << BothEnds(pump);
}

TEST(TlsRefusal, NoTicketIsEverSent) {
  TlsStranger client({.certificate = CommonAuthority().Issue({}), .ca = CommonAuthority().pem()});
  PumpEnd server(ServerOf(ServerCredentials()));
  Meet(client, server);
  client.Send(std::string("\x01\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00", 12));
  Meet(client, server);
  ASSERT_TRUE(server.done()) << server.error();
  EXPECT_EQ(client.received(), std::string("\x01\x02\x00\x00\x18\x00\x01\x00\x00\x00\x00\x00", 12));
  EXPECT_EQ(client.tickets(), 0);
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
