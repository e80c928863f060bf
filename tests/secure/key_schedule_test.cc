#include "secure/key_schedule.h"

#include <set>
#include <string>
#include <string_view>
#include <utility>

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "secure/openssl_aead.h"
#include "testing/record_vectors.h"

namespace {

using penstock::RecordProtocol;
using penstock::internal::AeadKey;
using penstock::internal::AeadNonce;
using penstock::internal::KeySchedule;
using penstock::internal::NewOpensslCrypto;
using penstock::internal::RecordCrypto;
using penstock::internal::RecordSender;
using penstock::internal::RecordVectors;

constexpr RecordProtocol kPlain = RecordProtocol::kGcmAes128;
constexpr RecordProtocol kRekey = RecordProtocol::kGcmAes128Rekey;

KeySchedule KeysOf(RecordProtocol protocol, RecordSender sender = RecordSender::kClient) {
  return *KeySchedule::Create(protocol, sender, RecordVectors::Get().keys.at(protocol));
}

template <typename Array>
std::string Hex(const Array& bytes) {
  return absl::BytesToHexString({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

// A library that refuses from the `good`th derivation on.
class RefusingCrypto : public RecordCrypto {
 public:
  explicit RefusingCrypto(int good) : good_(good) {}
  std::unique_ptr<penstock::internal::Aead> NewAead() override { return nullptr; }
  bool HmacSha256(std::span<const uint8_t>, std::span<const uint8_t>,
                  std::array<uint8_t, 32>& out) override {
    out.fill(7);
    return good_-- > 0;
  }

 private:
  int good_;
};

TEST(KeySchedule, TakesKeysOfTheRightSizeOnly) {
  for (size_t size = 0; size <= 128; ++size) {
    for (RecordProtocol protocol : {kPlain, kRekey}) {
      const auto keys =
          KeySchedule::Create(protocol, RecordSender::kClient, std::string(size, 'k'));
      EXPECT_EQ(keys.ok(), size == RecordKeySize(protocol)) << size;
      if (!keys.ok()) {
        EXPECT_TRUE(absl::IsInvalidArgument(keys.status())) << keys.status();
      }
    }
  }
}

TEST(KeySchedule, NoncesAreTheCounterUnderTheMask) {
  KeySchedule plain = KeysOf(kPlain), server = KeysOf(kPlain, RecordSender::kServer);
  EXPECT_EQ(Hex(plain.Nonce()), "000000000000000000000000");
  EXPECT_EQ(Hex(server.Nonce()), "000000000000000000000080");
  plain.SetCounter(0x123456789a);
  EXPECT_EQ(Hex(plain.Nonce()), "9a7856341200000000000000");
  // Key bytes 32..43 are 20 to 2b.
  KeySchedule rekey = KeysOf(kRekey), answer = KeysOf(kRekey, RecordSender::kServer);
  EXPECT_EQ(Hex(rekey.Nonce()), "202122232425262728292a2b");
  EXPECT_EQ(Hex(answer.Nonce()), "202122232425262728292aab");
  rekey.SetCounter(0xff00000000000001);
  EXPECT_EQ(Hex(rekey.Nonce()), "21212223242526d828292a2b");
}

TEST(KeySchedule, AnAesKeyLasts65536Records) {
  const auto crypto = std::move(*NewOpensslCrypto());
  KeySchedule keys = KeysOf(kRekey);
  const AeadKey first = *keys.Key(*crypto);
  std::set<std::string> seen;
  for (uint64_t epoch :
       {uint64_t{0}, uint64_t{1}, uint64_t{0xffff}, uint64_t{1} << 16, (uint64_t{1} << 48) - 1}) {
    keys.SetCounter(epoch << 16);
    EXPECT_EQ(keys.epoch(), epoch);
    const std::string key = Hex(*keys.Key(*crypto));
    EXPECT_TRUE(seen.insert(key).second) << epoch;
    keys.SetCounter((epoch << 16) + 0xffff);
    EXPECT_EQ(keys.epoch(), epoch);
    EXPECT_EQ(Hex(*keys.Key(*crypto)), key);
  }
  keys.SetCounter(0);
  EXPECT_EQ(*keys.Key(*crypto), first);
}

TEST(KeySchedule, WithoutRekeyingTheKeyIsTheKey) {
  RefusingCrypto crypto(0);
  KeySchedule keys = KeysOf(kPlain);
  for (uint64_t counter : {uint64_t{0}, uint64_t{0x10000}, keys.counter_last()}) {
    keys.SetCounter(counter);
    EXPECT_EQ(keys.epoch(), 0u);
    EXPECT_EQ(Hex(*keys.Key(crypto)), "1f8b080000096e8802ffe2d24cce4f49");
  }
}

TEST(KeySchedule, ARefusedDerivationLeavesNoKey) {
  RefusingCrypto crypto(1);
  KeySchedule keys = KeysOf(kRekey);
  EXPECT_NE(keys.Key(crypto), nullptr);
  keys.SetCounter(0x10000);
  EXPECT_EQ(keys.Key(crypto), nullptr);
  keys.SetCounter(0);
  EXPECT_EQ(keys.Key(crypto), nullptr);
}

TEST(KeySchedule, TheLastCounterIsTheLast) {
  for (RecordProtocol protocol : {kPlain, kRekey}) {
    KeySchedule keys = KeysOf(protocol);
    EXPECT_EQ(keys.counter_last(), protocol == kPlain ? (uint64_t{1} << 40) - 1 : UINT64_MAX);
    keys.SetCounter(keys.counter_last() - 1);
    std::set<std::string> nonces{Hex(keys.Nonce())};
    keys.Advance();
    EXPECT_EQ(keys.counter(), keys.counter_last());
    EXPECT_FALSE(keys.exhausted());
    EXPECT_TRUE(nonces.insert(Hex(keys.Nonce())).second);
    keys.Advance();
    EXPECT_TRUE(keys.exhausted());
    EXPECT_DEATH(keys.Advance(), "after the last counter");
  }
}

TEST(KeySchedule, ACounterOutOfRangeIsACallersMistake) {
  KeySchedule keys = KeysOf(kPlain);
  EXPECT_DEATH(keys.SetCounter(uint64_t{1} << 40), "beyond the protocol's last counter");
}

TEST(KeySchedule, MovingLeavesNothingBehind) {
  const auto crypto = std::move(*NewOpensslCrypto());
  for (RecordProtocol protocol : {kPlain, kRekey}) {
    alignas(KeySchedule) unsigned char place[sizeof(KeySchedule)] = {};
    auto* keys = new (place) KeySchedule(KeysOf(protocol));
    keys->SetCounter(5);
    const AeadKey key = *keys->Key(*crypto);
    const AeadNonce nonce = keys->Nonce();

    KeySchedule moved(std::move(*keys));
    EXPECT_EQ(moved.counter(), 5u);
    EXPECT_EQ(moved.Nonce(), nonce);
    EXPECT_EQ(*moved.Key(*crypto), key);
    EXPECT_TRUE(keys->exhausted());

    // No four bytes of the secret are left at the old place, nor after destruction.
    const std::string& secret = RecordVectors::Get().keys.at(protocol);
    const auto leftover = [&] {
      const std::string_view bytes(reinterpret_cast<const char*>(place), sizeof place);
      for (size_t at = 0; at + 4 <= secret.size(); at += 4) {
        if (bytes.find(std::string_view(secret).substr(at, 4)) != bytes.npos) return true;
      }
      return bytes.find(std::string_view(reinterpret_cast<const char*>(key.data()), 8)) !=
             bytes.npos;
    };
    EXPECT_FALSE(leftover());
    *keys = std::move(moved);
    EXPECT_EQ(*keys->Key(*crypto), key);
    EXPECT_TRUE(leftover());
    keys->~KeySchedule();
    EXPECT_FALSE(leftover());
  }
}

}  // namespace
