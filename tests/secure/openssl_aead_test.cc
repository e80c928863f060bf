#include "secure/openssl_aead.h"

#include <openssl/err.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/pattern.h"
#include "testing/record_vectors.h"

namespace {

using penstock::internal::Aead;
using penstock::internal::AeadKey;
using penstock::internal::AeadNonce;
using penstock::internal::FromHex;
using penstock::internal::kAeadTagSize;
using penstock::internal::NewOpensslCrypto;
using penstock::internal::PatternBytes;
using penstock::internal::RecordCrypto;

template <typename Array>
Array ArrayOf(std::string_view hex) {
  const std::string bytes = FromHex(hex);
  Array array{};
  EXPECT_EQ(bytes.size(), array.size());
  std::copy(bytes.begin(), bytes.end(), array.begin());
  return array;
}

// Both ways to give a nonce; the parameter: only the longer one.
class OpensslAeadTest : public ::testing::TestWithParam<bool> {
 protected:
  OpensslAeadTest()
      : crypto_(std::move(*NewOpensslCrypto(GetParam()))), aead_(crypto_->NewAead()) {}

  std::string Seal(const AeadNonce& nonce, const std::vector<std::string>& pieces) {
    std::string out;
    EXPECT_TRUE(aead_->StartSeal(nonce));
    for (const std::string& piece : pieces) {
      std::string sealed(piece.size(), '\0');
      EXPECT_TRUE(aead_->Update(piece.data(), sealed.data(), piece.size()));
      out += sealed;
    }
    char tag[kAeadTagSize];
    EXPECT_TRUE(aead_->FinishSeal(tag));
    return out.append(tag, sizeof tag);
  }
  // In place.
  bool Open(const AeadNonce& nonce, std::string& sealed) {
    const size_t size = sealed.size() - kAeadTagSize;
    EXPECT_TRUE(aead_->StartOpen(nonce, sealed.data() + size));
    EXPECT_TRUE(aead_->Update(sealed.data(), sealed.data(), size));
    return aead_->FinishOpen();
  }

  std::unique_ptr<RecordCrypto> crypto_;
  std::unique_ptr<Aead> aead_;
};

// Test case 3 of "The Galois/Counter Mode of Operation" (McGrew, Viega).
TEST_P(OpensslAeadTest, SealsAsSpecified) {
  ASSERT_TRUE(aead_->SetKey(ArrayOf<AeadKey>("feffe9928665731c6d6a8f9467308308")));
  const auto nonce = ArrayOf<AeadNonce>("cafebabefacedbaddecaf888");
  const std::string plain = FromHex(
      "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
      "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255");
  std::string sealed = Seal(nonce, {plain});
  EXPECT_EQ(sealed, FromHex("42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e"
                            "21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091473f5985"
                            "4d5c2af327cd64a62cf35abd2ba6fab4"));
  ASSERT_TRUE(Open(nonce, sealed));
  EXPECT_EQ(sealed.substr(0, plain.size()), plain);
}

TEST_P(OpensslAeadTest, PiecesMeanTheirConcatenation) {
  ASSERT_TRUE(aead_->SetKey(AeadKey{1, 2, 3}));
  const std::string plain = PatternBytes(1, 0, 1000);
  const std::string whole = Seal(AeadNonce{}, {plain});
  for (size_t piece : {1u, 7u, 16u, 17u, 333u}) {
    std::vector<std::string> pieces;
    for (size_t at = 0; at < plain.size(); at += piece) pieces.push_back(plain.substr(at, piece));
    EXPECT_EQ(Seal(AeadNonce{}, pieces), whole) << piece;
  }
}

TEST_P(OpensslAeadTest, OneCallMeansItsSteps) {
  ASSERT_TRUE(aead_->SetKey(AeadKey{1, 2, 3}));
  for (uint8_t i = 0; i < 8; ++i) {
    const AeadNonce nonce{i};
    const std::string plain = PatternBytes(1, 0, 100u * i + 1);
    const std::string by_steps = Seal(nonce, {plain});
    std::string sealed(plain.size() + kAeadTagSize, '\0');
    char* const tag = sealed.data() + plain.size();
    ASSERT_TRUE(aead_->SealPiece(nonce, plain.data(), sealed.data(), plain.size(), tag));
    EXPECT_EQ(sealed, by_steps);
    std::string opened = sealed;
    const auto open = [&] {
      return aead_->OpenPiece(nonce, opened.data() + plain.size(), opened.data(), opened.data(),
                              plain.size());
    };
    EXPECT_EQ(open(), Aead::Opened::kGood);
    EXPECT_EQ(opened.substr(0, plain.size()), plain);
    opened = sealed;
    opened[plain.size() / 2] = static_cast<char>(opened[plain.size() / 2] ^ 1);
    EXPECT_EQ(open(), Aead::Opened::kForged);
    opened = by_steps;
    EXPECT_TRUE(Open(nonce, opened));
  }
  EXPECT_EQ(ERR_peek_error(), 0u);
}

TEST_P(OpensslAeadTest, OneContextSealsAndOpensByTurns) {
  ASSERT_TRUE(aead_->SetKey(AeadKey{9}));
  std::string sealed = Seal(AeadNonce{1}, {"back"});
  const std::string again = sealed;
  ASSERT_TRUE(Open(AeadNonce{1}, sealed));
  EXPECT_EQ(sealed.substr(0, 4), "back");
  EXPECT_EQ(Seal(AeadNonce{1}, {"back"}), again);
  std::string empty = Seal(AeadNonce{2}, {});
  EXPECT_TRUE(Open(AeadNonce{2}, empty));
}

TEST_P(OpensslAeadTest, NothingElseOpens) {
  ASSERT_TRUE(aead_->SetKey(AeadKey{9}));
  const std::string sealed = Seal(AeadNonce{1}, {"secret"});
  for (size_t bit = 0; bit < sealed.size() * 8; ++bit) {
    std::string altered = sealed;
    altered[bit / 8] = static_cast<char>(altered[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_FALSE(Open(AeadNonce{1}, altered)) << bit;
  }
  std::string copy = sealed;
  EXPECT_FALSE(Open(AeadNonce{2}, copy));
  // The context is none the worse for it, and other users of OpenSSL on this thread find no error
  // of ours in their queue.
  EXPECT_EQ(ERR_peek_error(), 0u);
  copy = sealed;
  EXPECT_TRUE(Open(AeadNonce{1}, copy));
  ASSERT_TRUE(aead_->SetKey(AeadKey{8}));
  copy = sealed;
  EXPECT_FALSE(Open(AeadNonce{1}, copy));
}

// RFC 4231, test cases 1 and 2.
TEST_P(OpensslAeadTest, HmacAsSpecified) {
  const auto hmac = [this](const std::string& key, const std::string& message) {
    std::array<uint8_t, 32> out{};
    const auto bytes = [](const std::string& text) {
      return std::span(reinterpret_cast<const uint8_t*>(text.data()), text.size());
    };
    EXPECT_TRUE(crypto_->HmacSha256(bytes(key), bytes(message), out));
    return std::string(out.begin(), out.end());
  };
  EXPECT_EQ(hmac(std::string(20, '\x0b'), "Hi There"),
            FromHex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"));
  EXPECT_EQ(hmac("Jefe", "what do ya want for nothing?"),
            FromHex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"));
}

// A nonce that was not taken would be the one before: each of a few in any order counts, whether
// they were given to seal or to open, and after a new key.
TEST_P(OpensslAeadTest, EveryNonceCounts) {
  std::map<std::pair<int, int>, std::string> sealed;
  for (int round = 0; round < 200; ++round) {
    const int key = round / 20 % 3, byte = round * 7 % 12;
    if (round % 20 == 0) {
      ASSERT_TRUE(aead_->SetKey(AeadKey{static_cast<uint8_t>(key)}));
    }
    AeadNonce nonce{};
    nonce[static_cast<size_t>(byte)] = 1;
    const std::string now = Seal(nonce, {"the same text"});
    const auto [at, fresh] = sealed.try_emplace({key, byte}, now);
    EXPECT_EQ(now, at->second);
    if (round % 3 == 0) continue;
    std::string opened = now;
    EXPECT_TRUE(Open(nonce, opened));
    nonce[11] ^= 0x80;
    opened = now;
    EXPECT_FALSE(Open(nonce, opened));
  }
  std::set<std::string> different;
  for (const auto& [which, text] : sealed) different.insert(text);
  EXPECT_EQ(different.size(), 36u);
  EXPECT_EQ(different.size(), sealed.size());
}

INSTANTIATE_TEST_SUITE_P(NoncesByInit, OpensslAeadTest, ::testing::Bool());

}  // namespace
