#include "secure/cipher_contexts.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "secure/openssl_aead.h"
#include "testing/record_vectors.h"

namespace {

using penstock::RecordProtocol;
using penstock::internal::Aead;
using penstock::internal::AeadKey;
using penstock::internal::AeadNonce;
using penstock::internal::CipherContexts;
using penstock::internal::KeySchedule;
using penstock::internal::NewOpensslCrypto;
using penstock::internal::RecordCipher;
using penstock::internal::RecordCrypto;
using penstock::internal::RecordSender;
using penstock::internal::RecordVectors;

constexpr char kTag[penstock::internal::kAeadTagSize] = {};

// Knows which contexts exist and what they were told.
struct Ledger {
  int contexts = 0;
  int contexts_made = 0;
  int keys = 0;
  bool refuse_contexts = false;
  bool refuse_keys = false;
  bool refuse_nonces = false;
};

class LedgerAead : public Aead {
 public:
  explicit LedgerAead(Ledger& ledger) : ledger_(ledger) {
    ++ledger_.contexts;
    ++ledger_.contexts_made;
  }
  ~LedgerAead() override { --ledger_.contexts; }
  bool SetKey(const AeadKey&) override {
    ++ledger_.keys;
    return !ledger_.refuse_keys;
  }
  bool StartSeal(const AeadNonce&) override { return !ledger_.refuse_nonces; }
  bool StartOpen(const AeadNonce&, const char*) override { return !ledger_.refuse_nonces; }
  bool Update(const char*, char*, size_t) override { return true; }
  bool FinishSeal(char*) override { return true; }
  bool FinishOpen() override { return true; }

 private:
  Ledger& ledger_;
};

class LedgerCrypto : public RecordCrypto {
 public:
  explicit LedgerCrypto(Ledger& ledger) : ledger_(ledger) {}
  std::unique_ptr<Aead> NewAead() override {
    return ledger_.refuse_contexts ? nullptr : std::make_unique<LedgerAead>(ledger_);
  }
  bool HmacSha256(std::span<const uint8_t>, std::span<const uint8_t>,
                  std::array<uint8_t, 32>& out) override {
    out.fill(1);
    return true;
  }

 private:
  Ledger& ledger_;
};

KeySchedule Keys(RecordProtocol protocol = RecordProtocol::kGcmAes128Rekey) {
  return *KeySchedule::Create(protocol, RecordSender::kClient,
                              RecordVectors::Get().keys.at(protocol));
}

class CipherContextsTest : public ::testing::Test {
 protected:
  void Make(size_t contexts_max) {
    contexts_ =
        std::make_shared<CipherContexts>(std::make_unique<LedgerCrypto>(ledger_), contexts_max);
  }
  std::vector<RecordCipher> Ciphers(size_t count) {
    std::vector<RecordCipher> ciphers;
    for (size_t i = 0; i < count; ++i) ciphers.emplace_back(contexts_, Keys());
    return ciphers;
  }

  Ledger ledger_;
  std::shared_ptr<CipherContexts> contexts_;
};

TEST_F(CipherContextsTest, ABusyDirectionSetsItsKeyOncePerEpoch) {
  Make(4);
  std::vector<RecordCipher> ciphers = Ciphers(2);
  EXPECT_EQ(ledger_.contexts, 0);
  for (int i = 0; i < 1000; ++i) {
    EXPECT_NE(ciphers[0].StartSeal(), nullptr);
    EXPECT_NE(ciphers[1].StartOpen(kTag), nullptr);
    if (i % 100 == 0) {
      EXPECT_TRUE(contexts_->Sweep());
    }
  }
  EXPECT_EQ(ledger_.contexts, 2);
  EXPECT_EQ(ledger_.keys, 2);
  EXPECT_EQ(ciphers[0].keys().counter(), 1000u);
  ciphers[0].keys().SetCounter(0xffff);
  EXPECT_NE(ciphers[0].StartSeal(), nullptr);
  EXPECT_EQ(ledger_.keys, 2);
  EXPECT_NE(ciphers[0].StartSeal(), nullptr);
  EXPECT_EQ(ledger_.keys, 3);
  EXPECT_EQ(ledger_.contexts_made, 2);
}

TEST_F(CipherContextsTest, ContextsGoWithTheirStreams) {
  Make(4);
  {
    std::vector<RecordCipher> ciphers = Ciphers(3);
    for (RecordCipher& cipher : ciphers) EXPECT_NE(cipher.StartSeal(), nullptr);
    EXPECT_EQ(ledger_.contexts, 3);
    const RecordCipher moved = std::move(ciphers[1]);
    EXPECT_EQ(ledger_.contexts, 3);
  }
  EXPECT_EQ(ledger_.contexts, 0);
  EXPECT_EQ(contexts_->live(), 0u);
  EXPECT_FALSE(contexts_->Sweep());
}

TEST_F(CipherContextsTest, RestingStreamsLoseTheirsAndNeverNotice) {
  Make(8);
  std::vector<RecordCipher> ciphers = Ciphers(4);
  for (RecordCipher& cipher : ciphers) cipher.StartSeal();
  EXPECT_TRUE(contexts_->Sweep());
  EXPECT_EQ(ledger_.contexts, 4);
  ciphers[2].StartSeal();
  EXPECT_TRUE(contexts_->Sweep());
  EXPECT_EQ(ledger_.contexts, 1);
  EXPECT_FALSE(contexts_->Sweep());
  EXPECT_EQ(ledger_.contexts, 0);
  for (RecordCipher& cipher : ciphers) EXPECT_NE(cipher.StartSeal(), nullptr);
  EXPECT_EQ(ciphers[0].keys().counter(), 2u);
  EXPECT_EQ(ledger_.contexts, 4);
}

// Those not used since the last Sweep first, and of the others the one that was taken up first.
TEST_F(CipherContextsTest, BeyondTheBoundTheOneTakenUpLongestAgoMovesOn) {
  Make(2);
  std::vector<RecordCipher> ciphers = Ciphers(3);
  ciphers[0].StartSeal();
  ciphers[1].StartSeal();
  contexts_->Sweep();
  ciphers[0].StartSeal();
  ciphers[2].StartSeal();  // takes that of 1
  EXPECT_EQ(ledger_.contexts, 2);
  EXPECT_EQ(ledger_.keys, 3);
  ciphers[0].StartSeal();
  EXPECT_EQ(ledger_.keys, 3);
  ciphers[1].StartSeal();  // takes that of 0
  EXPECT_EQ(ledger_.keys, 4);
  // A lease that has lapsed gives nothing up.
  ciphers.erase(ciphers.begin());
  EXPECT_EQ(ledger_.contexts, 2);
  for (RecordCipher& cipher : ciphers) cipher.StartSeal();
  EXPECT_EQ(ledger_.keys, 4);
  EXPECT_EQ(ledger_.contexts_made, 2);
}

// The counter is used up even so: whoever went on would repeat a nonce.
TEST_F(CipherContextsTest, ARefusalCountsAndLeavesNothingKeyedByHalves) {
  Make(2);
  std::vector<RecordCipher> ciphers = Ciphers(1);
  ledger_.refuse_contexts = true;
  EXPECT_EQ(ciphers[0].StartSeal(), nullptr);
  ledger_.refuse_contexts = false;
  ledger_.refuse_keys = true;
  EXPECT_EQ(ciphers[0].StartOpen(kTag), nullptr);
  EXPECT_EQ(ledger_.contexts, 0);
  ledger_.refuse_keys = false;
  ledger_.refuse_nonces = true;
  EXPECT_EQ(ciphers[0].StartSeal(), nullptr);
  EXPECT_EQ(ciphers[0].keys().counter(), 3u);
}

TEST_F(CipherContextsTest, AStreamMayOutliveEverybodyElse) {
  Make(2);
  std::vector<RecordCipher> ciphers = Ciphers(1);
  ciphers[0].StartSeal();
  contexts_.reset();
  EXPECT_NE(ciphers[0].StartSeal(), nullptr);
  ciphers.clear();
  EXPECT_EQ(ledger_.contexts, 0);
}

// The same steps on a model: a list of who holds a context, the one taken up last at its end.
TEST_F(CipherContextsTest, AnyOrderKeepsTheBooks) {
  constexpr size_t kMax = 5, kCiphers = 9;
  Make(kMax);
  std::vector<RecordCipher> ciphers = Ciphers(kCiphers);
  std::vector<size_t> holders;
  std::vector<bool> used(kCiphers);
  uint64_t state = 1;
  for (int step = 0; step < 20'000; ++step) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const size_t who = (state >> 33) % kCiphers;
    const auto at = std::find(holders.begin(), holders.end(), who);
    if ((state >> 60) == 0) {
      std::erase_if(holders, [&](size_t holder) { return !used[holder]; });
      used.assign(kCiphers, false);
      EXPECT_EQ(contexts_->Sweep(), !holders.empty());
    } else if ((state >> 60) == 1) {
      if (at != holders.end()) holders.erase(at);
      ciphers[who] = RecordCipher(contexts_, Keys());
    } else {
      const int keys = ledger_.keys + (at == holders.end() ? 1 : 0);
      if (at == holders.end()) {
        if (holders.size() == kMax) holders.erase(holders.begin());
        holders.push_back(who);
      } else if (!used[who]) {
        holders.erase(at);
        holders.push_back(who);
      }
      used[who] = true;
      ASSERT_NE(ciphers[who].StartSeal(), nullptr);
      ASSERT_EQ(ledger_.keys, keys) << step;
    }
    ASSERT_EQ(contexts_->live(), holders.size()) << step;
    ASSERT_EQ(ledger_.contexts, static_cast<int>(holders.size())) << step;
  }
}

}  // namespace
