#include <gtest/gtest.h>
#include <penstock/static_key.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "testing/handshake_pair.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

const std::string kRekeyKey(44, 'k');

StaticKeyOptions AlwaysKey(const std::string& key = kRekeyKey) {
  return {.key = [key] { return SecretKey(key); }, .used = std::make_shared<UsedKeys>()};
}

CredentialsPtr KeysOf(StaticKeyOptions options) {
  absl::StatusOr<CredentialsPtr> made = StaticKeyCredentials(std::move(options));
  EXPECT_TRUE(made.ok()) << made.status();
  return *std::move(made);
}

TEST(StaticKey, IsDoneWithoutAByte) {
  const CredentialsPtr keys = KeysOf(AlwaysKey());
  HandshakePump pump(ClientOf(keys, {}), ServerOf(keys, {}));
  pump.client.Give("records that came early");
  EXPECT_EQ(pump.client.rest(), "records that came early");
  pump.Run();
  ASSERT_TRUE(pump.client.done() && pump.server.done());
  EXPECT_EQ(pump.sent_to_client + pump.sent_to_server, "");
  EXPECT_EQ(pump.client.authorized, 1);
  for (PumpEnd* end : {&pump.client, &pump.server}) {
    const HandshakeResult result = end->TakeResult();
    EXPECT_EQ(result.mode, RecordMode::kGrpc);
    EXPECT_EQ(result.protocol, RecordProtocol::kGcmAes128Rekey);
    EXPECT_EQ(result.server, end == &pump.server);
    EXPECT_EQ(result.send_key.view(), kRekeyKey);
    EXPECT_EQ(result.receive_key.view(), kRekeyKey);
    EXPECT_EQ(result.send_frame_max, kRecordFrameGrpc);
    EXPECT_EQ(result.receive_frame_max, kRecordFrameMax);
    EXPECT_EQ(result.peer.kind, PeerIdentity::Kind::kStaticKey);
  }
}

TEST(StaticKey, TakesThePlainProtocolAndFrameSizes) {
  StaticKeyOptions options = AlwaysKey(std::string(16, 'p'));
  options.protocol = RecordProtocol::kGcmAes128;
  const auto client =
      ClientOf(KeysOf(options), {.send_frame_max = 4096, .receive_frame_max = 8192});
  client->Step({});
  ASSERT_EQ(client->Authorize(absl::OkStatus()).state, Handshaker::State::kDone);
  const HandshakeResult result = client->TakeResult();
  EXPECT_EQ(result.protocol, RecordProtocol::kGcmAes128);
  EXPECT_EQ(result.send_key.size(), 16u);
  EXPECT_EQ(result.send_frame_max, 4096u);
  EXPECT_EQ(result.receive_frame_max, 8192u);
}

TEST(StaticKey, RefusesAKeyForASecondConnection) {
  const CredentialsPtr keys = KeysOf(AlwaysKey());
  EXPECT_TRUE(keys->NewHandshaker({}).ok());
  const absl::Status again = keys->NewHandshaker({}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(again)) << again;
  EXPECT_EQ(again.message().find(kRekeyKey), absl::string_view::npos);
  // The other end of the same connection.
  EXPECT_TRUE(keys->NewHandshaker({.server = true}).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(keys->NewHandshaker({.server = true}).status()));
}

TEST(StaticKey, ARegistryIsSharedByCredentials) {
  const auto used = std::make_shared<UsedKeys>();
  StaticKeyOptions options = AlwaysKey();
  options.used = used;
  EXPECT_TRUE(KeysOf(options)->NewHandshaker({}).ok());
  EXPECT_FALSE(KeysOf(options)->NewHandshaker({}).ok());
  EXPECT_EQ(used->size(), 1u);
}

// No credentials remember for themselves alone, where others could not see it.
TEST(StaticKey, WithoutARegistryThereAreNone) {
  StaticKeyOptions options = AlwaysKey();
  options.used = nullptr;
  const absl::Status refused = StaticKeyCredentials(options).status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  options.unsafe_allow_key_reuse = true;
  EXPECT_TRUE(StaticKeyCredentials(options).ok());
}

TEST(StaticKey, ReuseMustBeAskedForByName) {
  StaticKeyOptions options = AlwaysKey();
  options.used = std::make_shared<UsedKeys>();
  options.unsafe_allow_key_reuse = true;
  const CredentialsPtr keys = KeysOf(options);
  EXPECT_TRUE(keys->NewHandshaker({}).ok());
  EXPECT_TRUE(keys->NewHandshaker({}).ok());
}

TEST(StaticKey, TheRegistryIsBoundedAndRefusesWhenFull) {
  UsedKeys used(2);
  EXPECT_TRUE(used.Use(SecretKey("one"), false).ok());
  EXPECT_TRUE(used.Use(SecretKey("two"), false).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(used.Use(SecretKey("three"), false)));
  EXPECT_TRUE(absl::IsFailedPrecondition(used.Use(SecretKey("one"), false)));
}

TEST(StaticKey, OneOfManyThreadsMayUseAKey) {
  UsedKeys used;
  std::atomic<int> taken = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int key = 0; key < 100; ++key) {
        if (used.Use(SecretKey(std::to_string(key)), true).ok()) ++taken;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken, 100);
}

TEST(StaticKey, RefusesWhatDoesNotFit) {
  EXPECT_TRUE(absl::IsInvalidArgument(StaticKeyCredentials({}).status()));
  const absl::Status size = KeysOf(AlwaysKey("short"))->NewHandshaker({}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(size)) << size;
  EXPECT_EQ(size.message(), "static key: it has 5 bytes; ALTSRP_GCM_AES128_REKEY takes 44");
  EXPECT_TRUE(absl::IsInvalidArgument(
      KeysOf(AlwaysKey())->NewHandshaker({.send_frame_max = 1000}).status()));
  for (const bool server : {false, true}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        KeysOf(AlwaysKey())->NewHandshaker({.server = server, .verify_name = "a.test"}).status()));
  }
  StaticKeyOptions absent = AlwaysKey();
  absent.key = []() -> absl::StatusOr<SecretKey> { return absl::UnavailableError("no service"); };
  EXPECT_TRUE(absl::IsUnavailable(KeysOf(absent)->NewHandshaker({}).status()));
}

TEST(StaticKey, DenialSticks) {
  const auto client = ClientOf(KeysOf(AlwaysKey()), {});
  EXPECT_EQ(client->Step({}).state, Handshaker::State::kAuthorize);
  const auto denied = client->Authorize(absl::UnknownError("not now"));
  EXPECT_EQ(denied.state, Handshaker::State::kFailed);
  EXPECT_TRUE(absl::IsPermissionDenied(denied.error)) << denied.error;
  EXPECT_EQ(client->Authorize(absl::OkStatus()).error, denied.error);
  EXPECT_EQ(client->OnPeerEnd(), denied.error);
  EXPECT_TRUE(client->TakeResult().send_key.empty());
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
