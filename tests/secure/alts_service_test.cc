#include <gtest/gtest.h>
#include <penstock/alts_service.h>

#include <functional>

#include "testing/allocations.h"
#include "testing/alts_fake_service.h"
#include "testing/handshake_pair.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr std::string_view kKey = "negotiated-key-data-for-altsrp-gcm-aes128-re";  // 44 of 47
constexpr std::string_view kFirstRecords = "first records";

std::string AltsEnds(const HandshakePump& pump) {
  return "client: " + pump.client.error().ToString() +
         "; server: " + pump.server.error().ToString();
}

std::unique_ptr<HandshakePump> AltsPump(AltsFakeService& service, HandshakeOptions client = {},
                                        HandshakeOptions server = {}) {
  const CredentialsPtr credentials = service.Credentials();
  return std::make_unique<HandshakePump>(ClientOf(credentials, client),
                                         ServerOf(credentials, server));
}

TEST(AltsService, AgreesAsGoDoes) {
  AltsFakeService service;
  const auto pump = AltsPump(service);
  pump->Run();
  ASSERT_TRUE(pump->client.done() && pump->server.done()) << AltsEnds(*pump);
  EXPECT_EQ(pump->sent_to_server, "ClientInitClientFinished");
  EXPECT_EQ(pump->sent_to_client, "ServerInitServerFinished");
  for (PumpEnd* end : {&pump->client, &pump->server}) {
    EXPECT_EQ(end->rest(), "");
    EXPECT_EQ(end->authorized, 1);
    const HandshakeResult result = end->TakeResult();
    EXPECT_EQ(result.server, end == &pump->server);
    EXPECT_EQ(result.mode, RecordMode::kGrpc);
    EXPECT_EQ(result.protocol, RecordProtocol::kGcmAes128Rekey);
    EXPECT_EQ(result.send_key.view(), kKey);
    EXPECT_EQ(result.receive_key.view(), kKey);
    EXPECT_EQ(result.peer.kind, PeerIdentity::Kind::kAlts);
    EXPECT_EQ(result.peer.service_account, "peer@service");
    EXPECT_EQ(result.peer.application_protocol, "grpc");
    EXPECT_EQ(result.send_frame_max, kRecordFrameGrpc);
    EXPECT_EQ(result.receive_frame_max, kRecordFrameMax);
  }
}

TEST(AltsService, AsksForWhatItWasToldTo) {
  AltsFakeService service;
  AltsServiceOptions options;
  options.open_channel = [&]() -> absl::StatusOr<std::unique_ptr<AltsChannel>> {
    return service.Open();
  };
  options.record_protocols = {RecordProtocol::kGcmAes128Rekey, RecordProtocol::kGcmAes128};
  options.target_service_accounts = {"peer@service", "other@service"};
  options.local_service_account = "me@service";
  const CredentialsPtr credentials = *AltsServiceCredentials(options);
  HandshakeOptions handshake;
  handshake.receive_frame_max = 65536;
  handshake.local = *SocketAddress::Parse("127.0.0.1:1234");
  handshake.peer = *SocketAddress::Parse("[::1]:80");
  HandshakeOptions named = handshake;
  named.verify_name = "target";
  HandshakePump pump(ClientOf(credentials, named), ServerOf(credentials, handshake));
  // It is for clients to ask.
  named.server = true;
  EXPECT_TRUE(absl::IsInvalidArgument(credentials->NewHandshaker(named).status()));
  pump.Run();
  ASSERT_TRUE(pump.client.done() && pump.server.done()) << AltsEnds(pump);
  ASSERT_EQ(service.requests().size(), 4u);
  for (const AltsFakeRequest& request : {service.requests()[0], service.requests()[1]}) {
    EXPECT_EQ(request.security_protocol, 2u);
    EXPECT_EQ(request.application_protocols, (std::vector<std::string>{"grpc"}));
    EXPECT_EQ(request.record_protocols,
              (std::vector<std::string>{"ALTSRP_GCM_AES128_REKEY", "ALTSRP_GCM_AES128"}));
    EXPECT_EQ(request.local_account, "me@service");
    EXPECT_EQ(request.local_ip, "127.0.0.1");
    EXPECT_EQ(request.local_port, 1234u);
    EXPECT_EQ(request.remote_ip, "::1");
    EXPECT_EQ(request.remote_port, 80u);
    EXPECT_EQ(request.max_major, 2u);
    EXPECT_EQ(request.min_minor, 1u);
    EXPECT_EQ(request.max_frame_size, 65536u);
  }
  EXPECT_EQ(service.requests()[0].kind, AltsFakeRequest::Kind::kClientStart);
  EXPECT_EQ(service.requests()[0].target_accounts, options.target_service_accounts);
  EXPECT_EQ(service.requests()[0].target_name, "target");
  EXPECT_EQ(service.requests()[1].kind, AltsFakeRequest::Kind::kServerStart);
  EXPECT_EQ(service.requests()[1].in_bytes, "ClientInit");
  EXPECT_EQ(service.requests()[2].kind, AltsFakeRequest::Kind::kNext);
}

// Answers that nobody looks at may hold a key as well.
TEST(AltsService, WipesAnswersThatItDoesNotTake) {
  if (!CanCountAllocations()) GTEST_SKIP() << "a sanitizer keeps its own allocator";
  const absl::StatusOr<std::string> secret = std::string("a key of a service that speaks unasked");
  DeletedWatch watch(*secret);
  { const std::string unwiped = *secret; }
  ASSERT_EQ(watch.found(), 1) << "the watch works";
  {
    // One that waits to be taken, and one beside it; neither is, for the handshake is given up.
    AltsFakeService service;
    service.at_once = false;
    const auto pump = AltsPump(service);
    service.Interrupt(secret);
    service.Interrupt(secret);
  }
  {
    AltsFakeService service;
    const auto pump = AltsPump(service);
    pump->Run();
    ASSERT_TRUE(pump->client.done() && pump->server.done()) << AltsEnds(*pump);
    service.Interrupt(secret);
  }
  EXPECT_EQ(watch.found(), 1);
}

TEST(AltsService, WaitsForTheServiceAndIsWoken) {
  AltsFakeService service;
  service.at_once = false;
  const auto pump = AltsPump(service);
  pump->client.Give({});
  EXPECT_TRUE(pump->client.waiting());
  EXPECT_EQ(pump->client.handshaker().phase(), "the handshaker service");
  // To step all the same does no harm.
  EXPECT_EQ(pump->client.handshaker().Step({}).state, Handshaker::State::kWaiting);
  EXPECT_TRUE(service.Deliver());
  EXPECT_FALSE(pump->client.waiting());
  EXPECT_EQ(pump->client.handshaker().phase(), "the peer's frames");
  for (int turn = 0; turn < 6; ++turn) {
    pump->Run();
    service.Deliver();
  }
  EXPECT_TRUE(pump->client.done() && pump->server.done()) << AltsEnds(*pump);
}

TEST(AltsService, TakesFramesByteByByte) {
  for (const bool at_once : {true, false}) {
    AltsFakeService service;
    service.at_once = at_once;
    const auto pump = AltsPump(service);
    pump->piece = 1;
    for (int turn = 0; turn < 100 && !(pump->client.over() && pump->server.over()); ++turn) {
      pump->Run();
      service.Deliver();
    }
    ASSERT_TRUE(pump->client.done() && pump->server.done()) << AltsEnds(*pump);
  }
}

TEST(AltsService, LeavesWhatTheServiceDidNotConsume) {
  for (const bool at_once : {true, false}) {
    for (size_t split = 0; split <= 14; ++split) {
      AltsFakeService service;
      service.at_once = at_once;
      PumpEnd server(ServerOf(service.Credentials(), {}));
      server.Give("ClientInit");
      service.Deliver();
      const std::string all = "ClientFinished" + std::string(kFirstRecords);
      server.Give(all.substr(0, split));
      server.Give(all.substr(split));  // may come while the service thinks
      service.Deliver();
      ASSERT_TRUE(server.done()) << split << ": " << server.error();
      EXPECT_EQ(server.rest(), kFirstRecords) << split;
    }
  }
}

TEST(AltsService, HoldsItsLastFrameUntilTheVerdict) {
  AltsFakeService service;
  const auto client = ClientOf(service.Credentials(), {});
  EXPECT_EQ(client->Step({}).out, "ClientInit");
  const Handshaker::Progress asked = client->Step("ServerInitServerFinished");
  EXPECT_EQ(asked.state, Handshaker::State::kAuthorize);
  EXPECT_EQ(asked.out, "");
  EXPECT_EQ(client->peer().service_account, "peer@service");
  EXPECT_EQ(client->Authorize(absl::OkStatus()).out, "ClientFinished");

  const auto denying = ClientOf(service.Credentials(), {});
  denying->Step({});
  denying->Step("ServerInitServerFinished");
  const Handshaker::Progress denied = denying->Authorize(absl::UnknownError("not him"));
  EXPECT_EQ(denied.state, Handshaker::State::kFailed);
  EXPECT_EQ(denied.out, "");
  EXPECT_TRUE(absl::IsPermissionDenied(denied.error)) << denied.error;
  EXPECT_EQ(denied.error.message(),
            "ALTS handshake (client): this side's authorisation refuses service account "
            "'peer@service': not him");
  EXPECT_EQ(denying->Step("x").error, denied.error);
  EXPECT_TRUE(denying->TakeResult().send_key.empty());
}

TEST(AltsService, FrameSizesAreAsGrpcCounts) {
  struct Case {
    uint32_t own, peers, send;
  };
  for (const Case& c :
       {Case{0, 0, 16384}, Case{65536, 0, 16384}, Case{65536, 32768, 32768},
        Case{65536, 1 << 20, 65536}, Case{65536, 4096, 16384}, Case{4096, 1 << 20, 4096}}) {
    AltsFakeService service;
    service.change = [&](AltsFakeResponse& response, int) {
      response.result.max_frame_size = c.peers;
    };
    const auto pump = AltsPump(service, {.send_frame_max = c.own, .receive_frame_max = 8192});
    pump->Run();
    ASSERT_TRUE(pump->client.done()) << AltsEnds(*pump);
    const HandshakeResult result = pump->client.TakeResult();
    EXPECT_EQ(result.send_frame_max, c.send) << c.own << " " << c.peers;
    EXPECT_EQ(result.receive_frame_max, 16388u);
  }
}

TEST(AltsService, TakesThePlainProtocolWhenItWasOffered) {
  AltsFakeService service;
  service.change = [](AltsFakeResponse& response, int) {
    response.result.record_protocol = "ALTSRP_GCM_AES128";
  };
  AltsServiceOptions options;
  options.open_channel = [&]() -> absl::StatusOr<std::unique_ptr<AltsChannel>> {
    return service.Open();
  };
  options.record_protocols.push_back(RecordProtocol::kGcmAes128);
  PumpEnd server(ServerOf(*AltsServiceCredentials(options), {}));
  server.Give("ClientInit");
  server.Give("ClientFinished");
  ASSERT_TRUE(server.done()) << server.error();
  const HandshakeResult result = server.TakeResult();
  EXPECT_EQ(result.protocol, RecordProtocol::kGcmAes128);
  EXPECT_EQ(result.send_key.view(), kKey.substr(0, 16));

  PumpEnd not_offered(ServerOf(service.Credentials(), {}));
  not_offered.Give("ClientInit");
  not_offered.Give("ClientFinished");
  EXPECT_TRUE(absl::IsInvalidArgument(not_offered.error())) << not_offered.error();
}

// The server's end against a service whose last response is changed.
absl::Status WithResult(const std::function<void(AltsFakeResponse&)>& change) {
  AltsFakeService service;
  PumpEnd server(ServerOf(service.Credentials(), {.peer_name = "10.0.0.9:5"}));
  server.Give("ClientInit");
  service.change = [&](AltsFakeResponse& response, int) { change(response); };
  server.Give("ClientFinished");
  EXPECT_FALSE(server.done());
  return server.error();
}

TEST(AltsService, BelievesNoResultThatLacksAnything) {
  struct Case {
    absl::StatusCode code;
    const char* says;
    std::function<void(AltsFakeResponse&)> change;
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  const auto stranger = absl::StatusCode::kUnauthenticated;
  const std::vector<Case> cases = {
      {invalid, "key has 43 bytes", [](auto& r) { r.result.key_data.resize(43); }},
      {invalid, "record protocol ''", [](auto& r) { r.result.record_protocol.clear(); }},
      {invalid, "ALTSRP_GMAC_128", [](auto& r) { r.result.record_protocol = "ALTSRP_GMAC_128"; }},
      {invalid, "application protocol 'h2'", [](auto& r) { r.result.application_protocol = "h2"; }},
      {stranger, "no service account", [](auto& r) { r.result.peer_account.clear(); }},
      {stranger, "no service account",
       [](auto& r) {
         r.result.peer_account.clear();
         r.result.peer_hostname = "host";
       }},
      {invalid, "as whom", [](auto& r) { r.result.local_identity = false; }},
      {invalid, "which RPC versions", [](auto& r) { r.result.rpc_versions = false; }},
      {invalid, "no RPC version in common",
       [](auto& r) { r.result.max_version = {.major = 2, .minor = 0}; }},
      {invalid, "no RPC version in common",
       [](auto& r) { r.result.min_version = {.major = 2, .minor = 2}; }},
      {invalid, "no status", [](auto& r) { r.has_status = false; }},
      {invalid, "consumes 15 bytes of 14", [](auto& r) { r.consumed = 15; }},
      {invalid, "consumes 4294967295 bytes", [](auto& r) { r.consumed = uint64_t{1} << 40; }},
      {stranger, "status 2: odd", [](auto& r) { r.status_code = 2, r.status_details = "odd"; }},
      {absl::StatusCode::kPermissionDenied, "status 7", [](auto& r) { r.status_code = 7; }},
      {absl::StatusCode::kUnavailable, "status 14", [](auto& r) { r.status_code = 14; }},
      {invalid, "131072 is the most", [](auto& r) { r.out_frames.resize(130 * 1024, 'x'); }},
  };
  for (const Case& c : cases) {
    const absl::Status error = WithResult(c.change);
    EXPECT_EQ(error.code(), c.code) << error;
    EXPECT_NE(error.message().find(c.says), absl::string_view::npos) << error;
    EXPECT_TRUE(error.ToString().find("ALTS handshake with 10.0.0.9:5 (server): ") !=
                std::string::npos)
        << error;
  }
}

TEST(AltsService, SendsThePeerWhatTheServiceSaysOnFailure) {
  AltsFakeService service;
  const auto server = ServerOf(service.Credentials(), {});
  server->Step({});
  const Handshaker::Progress failed = server->Step("something else");
  EXPECT_EQ(failed.state, Handshaker::State::kFailed);
  EXPECT_EQ(failed.out, "alert");
  EXPECT_TRUE(absl::IsUnauthenticated(failed.error)) << failed.error;
  EXPECT_EQ(server->Step("more").out, "");
}

TEST(AltsService, ServerMustBeOneOfTheTargets) {
  AltsFakeService service;
  AltsServiceOptions options;
  options.open_channel = [&]() -> absl::StatusOr<std::unique_ptr<AltsChannel>> {
    return service.Open();
  };
  options.target_service_accounts = {"somebody@else"};
  const CredentialsPtr credentials = *AltsServiceCredentials(options);
  HandshakePump pump(ClientOf(credentials, {}), ServerOf(credentials, {}));
  pump.Run();
  EXPECT_TRUE(absl::IsUnauthenticated(pump.client.error())) << AltsEnds(pump);
  EXPECT_FALSE(pump.server.over());
}

TEST(AltsService, FailsWhenTheServiceCannotBeReached) {
  AltsFakeService service;
  service.unreachable = absl::DeadlineExceededError("no answer");
  PumpEnd client(ClientOf(service.Credentials(), {}));
  client.Give({});
  EXPECT_TRUE(absl::IsUnavailable(client.error())) << client.error();

  AltsServiceOptions options;
  options.open_channel = []() -> absl::StatusOr<std::unique_ptr<AltsChannel>> {
    return absl::UnavailableError("no such host");
  };
  EXPECT_TRUE(absl::IsUnavailable((*AltsServiceCredentials(options))->NewHandshaker({}).status()));
}

// Ends its call, and says so, when it is destroyed.
class PartingChannel final : public AltsChannel {
 public:
  ~PartingChannel() override { on_response_(absl::CancelledError("the call was ended")); }
  void Start(ResponseCallback on_response) override { on_response_ = std::move(on_response); }
  void SendRequest(std::string) override {}

 private:
  ResponseCallback on_response_;
};

TEST(AltsService, AChannelMayReportItsEndWhileItGoes) {
  AltsServiceOptions options;
  options.open_channel = []() -> absl::StatusOr<std::unique_ptr<AltsChannel>> {
    return std::make_unique<PartingChannel>();
  };
  auto client = (*AltsServiceCredentials(options))->NewHandshaker({});
  ASSERT_TRUE(client.ok()) << client.status();
  int wakes = 0;
  (*client)->SetWake([&wakes] { ++wakes; });
  EXPECT_EQ((*client)->Step({}).state, Handshaker::State::kWaiting);
  client->reset();
  EXPECT_EQ(wakes, 0);
}

TEST(AltsService, FailsWhenTheServiceSpeaksUnasked) {
  for (const absl::StatusOr<std::string>& word :
       {absl::StatusOr<std::string>("x"),
        absl::StatusOr<std::string>(absl::AbortedError("gone"))}) {
    AltsFakeService service;
    PumpEnd client(ClientOf(service.Credentials(), {}));
    client.Give({});
    service.Interrupt(word);
    EXPECT_TRUE(client.failed());
    EXPECT_EQ(absl::IsUnavailable(client.error()), !word.ok()) << client.error();
  }
  // Once there is a result, the call may end.
  AltsFakeService service;
  const auto pump = AltsPump(service);
  pump->Run();
  service.Interrupt(absl::AbortedError("over"));
  EXPECT_TRUE(pump->client.done() && pump->server.done());
}

TEST(AltsService, NoticesAPeerThatDoesNotRespond) {
  AltsFakeService service;
  PumpEnd server(ServerOf(service.Credentials(), {}));
  server.Give("Client");  // half a frame: the service has nothing to say to it
  const absl::Status silent = server.handshaker().OnPeerEnd();
  EXPECT_TRUE(absl::IsDataLoss(silent)) << silent;
  EXPECT_NE(silent.message().find("does not respond"), absl::string_view::npos) << silent;

  PumpEnd client(ClientOf(service.Credentials(), {}));
  client.Give({});
  const absl::Status ended = client.handshaker().OnPeerEnd();
  EXPECT_TRUE(absl::IsDataLoss(ended)) << ended;
  EXPECT_EQ(ended.message().find("does not respond"), absl::string_view::npos) << ended;
  EXPECT_EQ(client.handshaker().Step({}).error, ended);
}

TEST(AltsService, BoundsWhatThePeerMaySend) {
  AltsFakeService service;
  service.change = [](AltsFakeResponse& response, int call) {
    if (call > 0) response = AltsFakeResponse();  // the service waits for ever
  };
  PumpEnd server(ServerOf(service.Credentials(), {.input_max = 1000}));
  server.Give("ClientInit");
  for (int i = 0; i < 20 && !server.over(); ++i) server.Give(std::string(100, 'x'));
  EXPECT_TRUE(absl::IsResourceExhausted(server.error())) << server.error();
  for (const AltsFakeRequest& request : service.requests()) {
    EXPECT_LE(request.in_bytes.size(), 1000u);
  }
}

TEST(AltsService, BoundsHandshakesAtOneTime) {
  AltsFakeService service;
  AltsServiceOptions options;
  options.open_channel = [&]() -> absl::StatusOr<std::unique_ptr<AltsChannel>> {
    return service.Open();
  };
  options.handshakes_max = 2;
  const CredentialsPtr credentials = *AltsServiceCredentials(options);
  auto first = ClientOf(credentials, {});
  auto second = ClientOf(credentials, {});
  EXPECT_TRUE(absl::IsResourceExhausted(credentials->NewHandshaker({}).status()));
  auto server = ServerOf(credentials, {});  // counted apart
  first.reset();
  EXPECT_TRUE(credentials->NewHandshaker({}).ok());
  // One that is done counts no more, though it is still there.
  second->Step({});
  second->Step("ServerInitServerFinished");
  auto third = ClientOf(credentials, {});
  EXPECT_FALSE(credentials->NewHandshaker({}).ok());
  ASSERT_EQ(second->Authorize(absl::OkStatus()).state, Handshaker::State::kDone);
  EXPECT_TRUE(credentials->NewHandshaker({}).ok());
  EXPECT_EQ(service.open_channels(), 3);
}

TEST(AltsService, MayBeDroppedInsideTheWakeCallback) {
  AltsFakeService service;
  service.at_once = false;
  auto client = ClientOf(service.Credentials(), {});
  client->SetWake([&client] { client.reset(); });
  EXPECT_EQ(client->Step({}).state, Handshaker::State::kWaiting);
  service.Deliver();
  EXPECT_EQ(client, nullptr);
  EXPECT_EQ(service.open_channels(), 0);
}

TEST(AltsService, WantsAWayToTheServiceAndProtocols) {
  EXPECT_TRUE(absl::IsInvalidArgument(AltsServiceCredentials({}).status()));
  AltsServiceOptions options;
  options.open_channel = []() -> absl::StatusOr<std::unique_ptr<AltsChannel>> { return nullptr; };
  options.record_protocols.clear();
  EXPECT_TRUE(absl::IsInvalidArgument(AltsServiceCredentials(options).status()));
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
