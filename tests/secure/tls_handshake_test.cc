#include <gtest/gtest.h>
#include <malloc.h>
#include <penstock/record_protocol.h>
#include <penstock/tls_handshake.h>

#include <vector>

#include "testing/allocations.h"
#include "testing/handshake_pair.h"
#include "testing/handshake_pump.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr std::string_view kRecords = "the first records, of any kind";

// Both ends' status in one line, for messages.
std::string Ends(const HandshakePump& pump) {
  return "client: " + pump.client.error().ToString() +
         "; server: " + pump.server.error().ToString();
}

TEST(TlsHandshake, AgreesOnKeysAndSaysWhoThePeerIs) {
  const auto pump = CommonPump();
  pump->Run();
  ASSERT_TRUE(pump->client.done() && pump->server.done()) << Ends(*pump);
  EXPECT_EQ(pump->client.authorized, 1);
  EXPECT_EQ(pump->server.authorized, 1);
  EXPECT_TRUE(pump->client.rest().empty());
  EXPECT_TRUE(pump->server.rest().empty());

  const HandshakeResult client = pump->client.TakeResult();
  const HandshakeResult server = pump->server.TakeResult();
  EXPECT_FALSE(client.server);
  EXPECT_TRUE(server.server);
  for (const HandshakeResult* result : {&client, &server}) {
    EXPECT_EQ(result->protocol, RecordProtocol::kGcmAes128Rekey);
    EXPECT_EQ(result->mode, RecordMode::kNative);
    EXPECT_EQ(result->send_key.size(), RecordKeySize(result->protocol));
    EXPECT_EQ(result->receive_key.size(), RecordKeySize(result->protocol));
    EXPECT_EQ(result->send_frame_max, kRecordFrameNative);
    EXPECT_EQ(result->receive_frame_max, kRecordFrameNative);
    EXPECT_EQ(result->peer.kind, PeerIdentity::Kind::kCertificate);
    EXPECT_EQ(result->peer.application_protocol, "penstock/1/ALTSRP_GCM_AES128_REKEY");
    EXPECT_EQ(result->peer.chain.size(), 2u);  // its certificate, and the root
  }
  EXPECT_EQ(client.send_key.view(), server.receive_key.view());
  EXPECT_EQ(client.receive_key.view(), server.send_key.view());
  EXPECT_NE(client.send_key.view(), client.receive_key.view());

  EXPECT_EQ(client.peer.subject, "CN=server");
  EXPECT_EQ(client.peer.dns_names,
            (std::vector<std::string>{"server.test", "*.wild.test", "part*.test"}));
  EXPECT_EQ(client.peer.ip_addresses, (std::vector<std::string>{"127.0.0.1", "::1"}));
  EXPECT_EQ(server.peer.subject, "CN=client");
  EXPECT_EQ(server.peer.uris, (std::vector<std::string>{"spiffe://test/client"}));
}

TEST(TlsHandshake, GivesEveryConnectionKeysOfItsOwn) {
  const auto first = CommonPump();
  const auto second = CommonPump();
  first->Run();
  second->Run();
  ASSERT_TRUE(first->client.done() && second->client.done());
  EXPECT_NE(first->client.TakeResult().send_key.view(),
            second->client.TakeResult().send_key.view());
}

TEST(TlsHandshake, SendsWhatThisSideWantsAndThePeerTakes) {
  HandshakePump pump(ClientOf(ClientCredentials(), {.verify_name = "server.test",
                                                    .send_frame_max = 16 * 1024,
                                                    .receive_frame_max = 2048}),
                     ServerOf(ServerCredentials(), {.send_frame_max = 100 * 1024,
                                                    .receive_frame_max = kRecordFrameMax}));
  pump.Run();
  ASSERT_TRUE(pump.client.done() && pump.server.done()) << Ends(pump);
  const HandshakeResult client = pump.client.TakeResult();
  const HandshakeResult server = pump.server.TakeResult();
  EXPECT_EQ(client.send_frame_max, 16u * 1024);
  EXPECT_EQ(client.receive_frame_max, 2048u);
  EXPECT_EQ(server.send_frame_max, 2048u);
  EXPECT_EQ(server.receive_frame_max, kRecordFrameMax);
}

TEST(TlsHandshake, RefusesFrameSizesThatNoRecordHas) {
  for (const uint32_t size : {kRecordFrameMin - 1, kRecordFrameMax + 1}) {
    HandshakeOptions options{.verify_name = "server.test"};
    options.send_frame_max = size;
    EXPECT_TRUE(absl::IsInvalidArgument(ClientCredentials()->NewHandshaker(options).status()));
    options.send_frame_max = 0;
    options.receive_frame_max = size;
    EXPECT_TRUE(absl::IsInvalidArgument(ClientCredentials()->NewHandshaker(options).status()));
  }
}

TEST(TlsHandshake, ServesIntermediateAuthorities) {
  const TestAuthority between("between", CommonAuthority());
  TlsCertificateOptions options = CommonAuthority().Options(between.Issue({.common_name = "leaf"}));
  const absl::StatusOr<CredentialsPtr> client = TlsCertificateCredentials(options);
  ASSERT_TRUE(client.ok()) << client.status();
  HandshakePump pump(ClientOf(*client), ServerOf(ServerCredentials()));
  pump.Run();
  ASSERT_TRUE(pump.server.done()) << Ends(pump);
  EXPECT_EQ(pump.server.TakeResult().peer.chain.size(), 3u);
}

// Whatever a peer sends beside the chain that was verified would seem to vouch for it.
TEST(TlsHandshake, AStrayCertificateIsNoPartOfTheChain) {
  const TestAuthority stranger("stranger");
  const TestCertificate ours = CommonAuthority().Issue({.common_name = "leaf"});
  TestCertificate padded = ours;
  padded.chain += stranger.Issue({.common_name = "stray"}).chain + stranger.pem();
  std::vector<std::string> chains[2];
  for (const bool stray : {false, true}) {
    const absl::StatusOr<CredentialsPtr> client =
        TlsCertificateCredentials(CommonAuthority().Options(stray ? padded : ours));
    ASSERT_TRUE(client.ok()) << client.status();
    HandshakePump pump(ClientOf(*client), ServerOf(ServerCredentials()));
    pump.Run();
    ASSERT_TRUE(pump.server.done()) << Ends(pump);
    chains[stray] = pump.server.TakeResult().peer.chain;
  }
  EXPECT_EQ(chains[1], chains[0]);
  EXPECT_EQ(chains[1].size(), 2u);
}

// A server that was told a name would believe that it is checked.
TEST(TlsHandshake, AServerTakesNoNameToVerify) {
  HandshakeOptions options{.verify_name = "client.test"};
  EXPECT_TRUE(ClientCredentials()->NewHandshaker(options).ok());
  options.server = true;
  const absl::Status refused = ServerCredentials()->NewHandshaker(options).status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
}

TEST(TlsHandshake, WorksByteByByte) {
  const auto pump = CommonPump();
  pump->piece = 1;
  pump->Run();
  EXPECT_TRUE(pump->client.done() && pump->server.done()) << Ends(*pump);
}

// What the server has received of a client up to where it can confirm: two runs of bytes.
struct ToServer {
  std::unique_ptr<HandshakePump> pump = CommonPump();
  std::string last;  // Certificate, CertificateVerify, Finished, hello

  ToServer() {
    pump->client.Give({});
    pump->server.Give(pump->client.TakeSent());
    pump->client.Give(pump->server.TakeSent());
    last = pump->client.TakeSent();
  }
};

TEST(TlsHandshake, LeavesTheServerExactlyWhatFollowsTheHello) {
  const size_t length = ToServer().last.size();
  // ECDSA signatures vary by a few bytes.
  for (size_t split = 0; split < length + 8; split += split < length - 90 ? 37 : 1) {
    ToServer state;
    const std::string all = state.last + std::string(kRecords);
    PumpEnd& server = state.pump->server;
    server.Give(all.substr(0, split));
    if (split < all.size()) server.Give(all.substr(split));
    ASSERT_TRUE(server.done()) << split << ": " << server.error();
    ASSERT_EQ(server.rest(), kRecords) << split;
    state.pump->client.Give(server.TakeSent());
    ASSERT_EQ(state.pump->client.TakeResult().send_key.view(),
              server.TakeResult().receive_key.view());
  }
}

TEST(TlsHandshake, LeavesTheClientExactlyWhatFollowsTheConfirmation) {
  for (size_t split = 0; split <= 80; ++split) {
    ToServer state;
    state.pump->server.Give(state.last);
    const std::string all = state.pump->server.TakeSent() + std::string(kRecords);
    PumpEnd& client = state.pump->client;
    client.Give(all.substr(0, split));
    if (split < all.size()) client.Give(all.substr(split));
    ASSERT_TRUE(client.done()) << split << ": " << client.error();
    // What came after the end of the handshake was never given to it.
    ASSERT_EQ(client.rest(), kRecords) << split;
  }
}

TEST(TlsHandshake, GivesRecordsBackAcrossALateVerdict) {
  ToServer state;
  std::unique_ptr<Handshaker> server = ServerOf(ServerCredentials());
  std::unique_ptr<Handshaker> client = ClientOf(ClientCredentials());
  Handshaker::Progress hello = client->Step({});
  Handshaker::Progress answer = server->Step(hello.out);
  Handshaker::Progress finished = client->Step(answer.out);
  ASSERT_EQ(finished.state, Handshaker::State::kAuthorize);
  Handshaker::Progress asked = client->Authorize(absl::OkStatus());
  const std::string all = finished.out + asked.out + std::string(kRecords);
  Handshaker::Progress judged = server->Step(all);
  ASSERT_EQ(judged.state, Handshaker::State::kAuthorize);
  EXPECT_EQ(judged.out, "");
  EXPECT_EQ(judged.consumed, all.size() - kRecords.size());
  // Stepping before the verdict changes nothing.
  Handshaker::Progress early = server->Step(kRecords);
  EXPECT_EQ(early.state, Handshaker::State::kAuthorize);
  EXPECT_EQ(early.consumed, 0u);
  Handshaker::Progress done = server->Authorize(absl::OkStatus());
  EXPECT_EQ(done.state, Handshaker::State::kDone);
  EXPECT_EQ(done.consumed, 0u);
  EXPECT_EQ(client->Step(done.out).state, Handshaker::State::kDone);
}

TEST(TlsHandshake, ClientIsNotDoneBeforeTheServerHasConfirmed) {
  ToServer state;
  // The client's TLS is complete and its hello is out; the server has not even judged it.
  EXPECT_FALSE(state.pump->client.over());
  EXPECT_EQ(state.pump->client.authorized, 1);
  EXPECT_EQ(state.pump->client.handshaker().phase(), "the server's confirmation");
  EXPECT_FALSE(state.pump->server.over());
}

TEST(TlsHandshake, DenialByTheServerReachesTheClientAsAnAlert) {
  const auto pump = CommonPump();
  pump->server.authorize = [](const PeerIdentity& peer) {
    EXPECT_EQ(peer.subject, "CN=client");
    return absl::PermissionDeniedError("not on the list");
  };
  pump->Run();
  EXPECT_TRUE(absl::IsPermissionDenied(pump->server.error())) << Ends(*pump);
  EXPECT_EQ(pump->server.error().message(),
            "TLS handshake (server): this side's authorisation refuses CN=client, uri "
            "spiffe://test/client: not on the list");
  EXPECT_TRUE(absl::IsPermissionDenied(pump->client.error())) << Ends(*pump);
  EXPECT_EQ(pump->client.error().message(),
            "TLS handshake (client): the peer refuses: alert 49, access_denied");
  EXPECT_EQ(pump->sent_to_client.find("not on the list"), std::string::npos);
}

TEST(TlsHandshake, DenialByTheClientReachesTheServer) {
  const auto pump = CommonPump();
  pump->client.authorize = [](const PeerIdentity&) { return absl::UnknownError("wrong rack"); };
  pump->Run();
  EXPECT_TRUE(absl::IsPermissionDenied(pump->client.error())) << Ends(*pump);
  EXPECT_NE(pump->client.error().message().find("wrong rack"), absl::string_view::npos);
  EXPECT_TRUE(absl::IsPermissionDenied(pump->server.error())) << Ends(*pump);
  EXPECT_EQ(pump->server.error().message(),
            "TLS handshake (server): the client's authorisation refuses this server");
  EXPECT_EQ(pump->server.authorized, 0);
}

TEST(TlsHandshake, FailureSticks) {
  const auto pump = CommonPump();
  pump->server.authorize = [](const PeerIdentity&) { return absl::UnknownError("no"); };
  pump->Run();
  const absl::Status error = pump->server.error();
  ASSERT_FALSE(error.ok());
  Handshaker& server = pump->server.handshaker();
  for (const Handshaker::Progress& again :
       {server.Step("more"), server.Step({}), server.Authorize(absl::OkStatus())}) {
    EXPECT_EQ(again.state, Handshaker::State::kFailed);
    EXPECT_EQ(again.error, error);
    EXPECT_EQ(again.out, "");
    EXPECT_EQ(again.consumed, 0u);
  }
  EXPECT_EQ(server.OnPeerEnd(), error);
}

TEST(TlsHandshake, SaysWhatWasMissingWhenThePeerEnds) {
  std::unique_ptr<Handshaker> client =
      ClientOf(ClientCredentials(), {.peer_name = "10.0.0.1:80", .verify_name = "server.test"});
  client->Step({});
  const absl::Status ended = client->OnPeerEnd();
  EXPECT_TRUE(absl::IsDataLoss(ended));
  EXPECT_EQ(ended.message(),
            "TLS handshake with 10.0.0.1:80 (client): the peer ended the stream before the "
            "server's TLS handshake was complete");
  EXPECT_EQ(client->Step("x").error, ended);

  ToServer state;
  EXPECT_NE(state.pump->client.handshaker().OnPeerEnd().message().find("confirmation"),
            absl::string_view::npos);
}

TEST(TlsHandshake, BoundsWhatThePeerMaySend) {
  const auto full = CommonPump();
  full->Run();
  ASSERT_TRUE(full->server.done());
  // A limit that the handshake just fits, and one byte less; signatures vary by a few bytes.
  const size_t enough = full->sent_to_server.size() + 8;
  HandshakePump fits(ClientOf(ClientCredentials()),
                     ServerOf(ServerCredentials(), {.input_max = enough}));
  fits.Run();
  EXPECT_TRUE(fits.server.done()) << Ends(fits);
  HandshakePump cut(ClientOf(ClientCredentials()),
                    ServerOf(ServerCredentials(), {.input_max = enough - 24}));
  cut.Run();
  EXPECT_TRUE(absl::IsResourceExhausted(cut.server.error())) << Ends(cut);
}

TEST(TlsHandshake, RecordsBehindTheConfirmationDoNotCountAgainstTheBound) {
  ToServer state;
  state.pump->server.Give(state.last);
  std::string all = state.pump->server.TakeSent();
  all.append(200 * 1024, 'r');
  state.pump->client.Give(all);
  ASSERT_TRUE(state.pump->client.done()) << state.pump->client.error();
  EXPECT_EQ(state.pump->client.rest().size(), 200u * 1024);
}

TEST(TlsHandshake, VerifiesTheServersNameOrAddress) {
  struct Case {
    std::string name;
    bool good;
  };
  const std::vector<Case> cases = {
      {"server.test", true},    {"SERVER.test", true}, {"a.wild.test", true},
      {"127.0.0.1", true},      {"::1", true},         {"other.test", false},
      {"a.b.wild.test", false}, {"wild.test", false},  {"partial.test", false},
      {"server", false},  // the common name, which is no name of a server
      {"127.0.0.2", false},     {"::2", false},        {"server.test.evil", false},
  };
  for (const Case& c : cases) {
    HandshakePump pump(ClientOf(ClientCredentials(), {.verify_name = c.name}),
                       ServerOf(ServerCredentials()));
    pump.Run();
    EXPECT_EQ(pump.client.done(), c.good) << c.name << ": " << Ends(pump);
    EXPECT_EQ(pump.server.done(), c.good) << c.name << ": " << Ends(pump);
    if (c.good) continue;
    EXPECT_TRUE(absl::IsUnauthenticated(pump.client.error())) << c.name << ": " << Ends(pump);
    EXPECT_TRUE(absl::IsUnauthenticated(pump.server.error())) << c.name << ": " << Ends(pump);
    EXPECT_NE(pump.client.error().message().find("mismatch"), absl::string_view::npos)
        << pump.client.error();
  }
}

TEST(TlsHandshake, TellsTheServerWhichNameIsWanted) {
  const std::string named = ClientOf(ClientCredentials())->Step({}).out;
  EXPECT_NE(named.find("server.test"), std::string::npos);
  const std::string address =
      ClientOf(ClientCredentials(), {.verify_name = "127.0.0.1"})->Step({}).out;
  EXPECT_EQ(address.find("127.0.0.1"), std::string::npos);  // RFC 6066, 3: no addresses
}

TEST(TlsHandshake, WantsANameUnlessToldOtherwise) {
  for (const std::string& name :
       {std::string(), std::string(".test"), std::string("a\0b", 3), std::string(300, 'a')}) {
    const auto made = ClientCredentials()->NewHandshaker({.verify_name = name});
    EXPECT_TRUE(absl::IsInvalidArgument(made.status())) << name << ": " << made.status();
  }
  TlsCertificateOptions options =
      CommonAuthority().Options(CommonAuthority().Issue({.common_name = "client"}));
  options.unsafe_accept_any_server_name = true;
  const absl::StatusOr<CredentialsPtr> any = TlsCertificateCredentials(options);
  ASSERT_TRUE(any.ok());
  HandshakePump pump(ClientOf(*any, {}), ServerOf(ServerCredentials()));
  pump.Run();
  EXPECT_TRUE(pump.client.done()) << Ends(pump);
  // A name that is given is verified all the same.
  HandshakePump named(ClientOf(*any, {.verify_name = "other.test"}), ServerOf(ServerCredentials()));
  named.Run();
  EXPECT_TRUE(named.client.failed());
}

// Heap of one side: while the handshake runs, and once it is done and only the result is held.
TEST(TlsHandshake, FreesTlsAfterTheSwitch) {
  if (!CanCountAllocations()) GTEST_SKIP() << "mallinfo2(3) does not count under a sanitizer";
  constexpr int kCount = 50;
  CommonPump()->Run();  // whatever is made once
  const size_t before = mallinfo2().uordblks;
  std::vector<ToServer> running(kCount);
  const size_t during = mallinfo2().uordblks;
  for (ToServer& state : running) {
    state.pump->server.Give(state.last);
    state.pump->client.Give(state.pump->server.TakeSent());
    ASSERT_TRUE(state.pump->client.done() && state.pump->server.done());
  }
  const size_t after = mallinfo2().uordblks;
  const size_t each_during = (during - before) / kCount;
  const size_t each_after = (after - before) / kCount;
  RecordProperty("bytes_during", static_cast<int>(each_during));
  RecordProperty("bytes_after", static_cast<int>(each_after));
  EXPECT_GT(each_during, 20u * 1024);
  EXPECT_LT(each_after, 10u * 1024);  // both identities with their certificates, and the tests' own
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
