#include <gtest/gtest.h>
#include <penstock/handshake.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <new>
#include <string>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

TEST(SecretKey, HoldsUpToItsSize) {
  EXPECT_TRUE(SecretKey().empty());
  EXPECT_EQ(SecretKey(std::string(64, 'x')).view(), std::string(64, 'x'));
  EXPECT_TRUE(SecretKey(std::string(65, 'x')).empty());
}

TEST(SecretKey, ReadsHex) {
  EXPECT_EQ(SecretKey::FromHex(" 00ffAb\n")->view(), std::string("\x00\xff\xab", 3));
  EXPECT_EQ(SecretKey::FromHex(std::string(128, 'a'))->size(), 64u);
  for (const char* bad : {"", "  ", "0", "012", "0g", "00 11"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(SecretKey::FromHex(bad).status())) << bad;
  }
  const absl::Status bad = SecretKey::FromHex(std::string(130, 'a')).status();
  EXPECT_EQ(bad.message(),
            "a key of 130 hexadecimal digits: an even number from 2 to 128 is accepted");
}

TEST(SecretKey, ReadsFiles) {
  const std::string path = ::testing::TempDir() + "penstock_key_" + std::to_string(getpid());
  std::ofstream(path) << "0a0b0c\n";
  const absl::StatusOr<SecretKey> key = SecretKey::FromHexFile(path);
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_EQ(key->view(), "\x0a\x0b\x0c");
  std::ofstream(path) << "secretsecret";
  const absl::Status bad = SecretKey::FromHexFile(path).status();
  EXPECT_TRUE(absl::IsInvalidArgument(bad));
  EXPECT_NE(bad.message().find(path), absl::string_view::npos);
  EXPECT_EQ(bad.message().find("secret"), absl::string_view::npos);
  std::remove(path.c_str());
  EXPECT_TRUE(absl::IsNotFound(SecretKey::FromHexFile(path).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(SecretKey::FromHexFile(::testing::TempDir()).status()));
}

TEST(SecretKey, IsWipedWhenMovedFromOverwrittenOrDestroyed) {
  SecretKey from("secret");
  SecretKey to(std::move(from));
  EXPECT_EQ(to.view(), "secret");
  EXPECT_TRUE(from.empty());  // NOLINT: that is what is tested
  SecretKey other("longer than before");
  other = std::move(to);
  EXPECT_EQ(other.view(), "secret");
  EXPECT_TRUE(to.empty());  // NOLINT

  // Nothing of any of them is left in the memory.
  alignas(SecretKey) char memory[sizeof(SecretKey)];
  const auto holds = [&](std::string_view text) {
    return std::string_view(memory, sizeof memory).find(text) != std::string_view::npos;
  };
  auto* key = new (memory) SecretKey("a secret of some length");
  ASSERT_TRUE(holds("of some length"));
  *key = SecretKey("short");
  EXPECT_FALSE(holds("of some"));
  SecretKey away(std::move(*key));
  EXPECT_FALSE(holds("short"));
  *key = away;
  ASSERT_TRUE(holds("short"));
  key->~SecretKey();
  EXPECT_FALSE(holds("short"));
}

TEST(PeerIdentity, IsOneLine) {
  PeerIdentity peer;
  EXPECT_EQ(peer.ToString(), "nobody yet");
  peer.kind = PeerIdentity::Kind::kCertificate;
  EXPECT_EQ(peer.ToString(), "no subject");
  peer.subject = "CN=a";
  peer.uris = {"spiffe://a", "b:c"};
  peer.dns_names = {"d.test"};
  peer.ip_addresses = {"1.2.3.4"};
  EXPECT_EQ(peer.ToString(), "CN=a, uri spiffe://a b:c, dns d.test, ip 1.2.3.4");
  peer.kind = PeerIdentity::Kind::kPsk;
  peer.psk_identity = "p\n";
  EXPECT_EQ(peer.ToString(), "PSK identity 'p\\n'");
  peer.kind = PeerIdentity::Kind::kAlts;
  peer.service_account = "s@t";
  EXPECT_EQ(peer.ToString(), "service account 's@t'");
  peer.kind = PeerIdentity::Kind::kStaticKey;
  EXPECT_EQ(peer.ToString(), "holder of the static key");
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
