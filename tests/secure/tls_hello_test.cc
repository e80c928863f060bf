#include "secure/tls_hello.h"

#include <gtest/gtest.h>
#include <penstock/record_protocol.h>

#include <set>

#include "testing/handshake_pair.h"
#include "testing/handshake_stranger.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

TEST(TlsHello, BytesAreThoseOfTheWireFormat) {
  EXPECT_EQ(EncodeTlsHello({.kind = TlsHello::Kind::kHello, .receive_frame_max = 0x10203}),
            std::string("\x01\x01\x00\x00\x03\x02\x01\x00\x00\x00\x00\x00", 12));
  const auto read =
      DecodeTlsHello(std::string("\x01\x03\x00\x00\x00\x10\x00\x00\x04\x03\x02\x01", 12));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->kind, TlsHello::Kind::kRefuse);
  EXPECT_EQ(read->receive_frame_max, 4096u);
  EXPECT_EQ(read->flags, 0x01020304u);
}

TEST(TlsHello, LargerFramesThanRecordsHaveAreTakenForTheLargest) {
  const auto read = DecodeTlsHello(EncodeTlsHello({.receive_frame_max = 0xffffffff}));
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->receive_frame_max, kRecordFrameMax);
  EXPECT_TRUE(DecodeTlsHello(EncodeTlsHello({.receive_frame_max = kRecordFrameMin})).ok());
  EXPECT_FALSE(DecodeTlsHello(EncodeTlsHello({.receive_frame_max = kRecordFrameMin - 1})).ok());
}

TEST(TlsHello, EveryPartChangesTheContext) {
  const TlsSwitch base = {.server = "s", .client = "c", .alpn = "a", .hello = "h", .confirm = "o"};
  std::set<Sha256Digest> seen = {*TlsSwitchContext(base)};
  const auto add = [&](auto change) {
    TlsSwitch other = base;
    change(other);
    EXPECT_TRUE(seen.insert(*TlsSwitchContext(other)).second);
  };
  add([](TlsSwitch& s) { s.server = "x"; });
  add([](TlsSwitch& s) { s.client = "x"; });
  add([](TlsSwitch& s) { s.alpn = "x"; });
  add([](TlsSwitch& s) { s.hello = "x"; });
  add([](TlsSwitch& s) { s.confirm = "x"; });
  add([](TlsSwitch& s) { std::swap(s.server, s.client); });
  add([](TlsSwitch& s) { s.server = "sc", s.client = ""; });  // the parts keep their bounds
}

// A client of another making, to compare keys with.
class TlsSwitchTest : public ::testing::Test {
 protected:
  TlsSwitchTest()
      : client_({.certificate = CommonAuthority().Issue({.common_name = "client"}),
                 .ca = CommonAuthority().pem()}),
        server_(ServerOf(ServerCredentials())) {
    client_.Give({});
    Exchange();
    EXPECT_TRUE(client_.complete());
    hello_ = EncodeTlsHello({.receive_frame_max = 100 * 1024});
    client_.Send(hello_);
    Exchange();
    EXPECT_TRUE(server_.done()) << server_.error();
    own_ = client_.OwnCertificate();
    servers_ = client_.PeerCertificate();
    confirm_ = client_.received();
    result_ = server_.TakeResult();
  }

  std::string Keys(const TlsSwitch& seen) {
    const Sha256Digest context = *TlsSwitchContext(seen);
    return client_.Export({context.data(), context.size()});
  }
  TlsSwitch Seen() {
    return {
        .server = servers_, .client = own_, .alpn = kTlsAlpn, .hello = hello_, .confirm = confirm_};
  }

  HandshakeResult result_;
  TlsStranger client_;
  std::string own_, servers_, hello_, confirm_;

 private:
  void Exchange() {
    for (std::string bytes = "x"; !bytes.empty();) {
      bytes = client_.TakeSent();
      server_.Give(bytes);
      const std::string back = server_.TakeSent();
      client_.Give(back);
      bytes += back;
    }
  }
  PumpEnd server_;
};

TEST_F(TlsSwitchTest, AnotherImplementationFindsTheSameKeys) {
  const std::string keys = Keys(Seen());
  EXPECT_EQ(keys.substr(0, 44), result_.receive_key.view());
  EXPECT_EQ(keys.substr(44), result_.send_key.view());
  EXPECT_EQ(result_.send_frame_max, kRecordFrameNative);
}

TEST_F(TlsSwitchTest, WhoSawSomethingElseHasOtherKeys) {
  const std::string keys = Keys(Seen());
  const auto differs = [&](auto change) {
    TlsSwitch other = Seen();
    change(other);
    const std::string changed = Keys(other);
    EXPECT_NE(changed.substr(0, 44), keys.substr(0, 44));
    EXPECT_NE(changed.substr(44), keys.substr(44));
  };
  const std::string larger = EncodeTlsHello({.receive_frame_max = 200 * 1024});
  differs([&](TlsSwitch& seen) { seen.hello = larger; });
  differs([&](TlsSwitch& seen) { seen.confirm = seen.hello; });
  differs([&](TlsSwitch& seen) { seen.client = seen.server; });
  differs([&](TlsSwitch& seen) { seen.server = seen.client; });
  differs([&](TlsSwitch& seen) { seen.alpn = "penstock/2/ALTSRP_GCM_AES128_REKEY"; });
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
