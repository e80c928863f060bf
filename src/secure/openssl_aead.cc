#include "secure/openssl_aead.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

struct FreeEvp {
  void operator()(EVP_CIPHER* cipher) const { EVP_CIPHER_free(cipher); }
  void operator()(EVP_CIPHER_CTX* context) const { EVP_CIPHER_CTX_free(context); }
  void operator()(EVP_MAC* mac) const { EVP_MAC_free(mac); }
  void operator()(EVP_MAC_CTX* context) const { EVP_MAC_CTX_free(context); }
};
template <typename T>
using EvpPtr = std::unique_ptr<T, FreeEvp>;

const unsigned char* ToBytes(const char* bytes) {
  return reinterpret_cast<const unsigned char*>(bytes);
}
unsigned char* ToBytes(char* bytes) { return reinterpret_cast<unsigned char*>(bytes); }

// Only the nonce changes from record to record: cipher and key stay, whichever way the context was
// used before (GCM has one key schedule for both).
//
// An Init for the nonce asks the provider by a parameter's name how long it is, and setting the tag
// is another round of parameters: together some 100 ns, a quarter of a record of 1 KiB. A provider
// that takes the whole nonce as "tlsivfixed", as OpenSSL's own do when its size is given as -1
// (what EVP_CTRL_GCM_SET_IV_FIXED is made of), gets it that way, together with the tag. And
// EVP_Cipher() gives it the bytes, and their end, with less around it than EVP_CipherUpdate() and
// EVP_CipherFinal_ex(). Nothing but IsQuick may decide that: a nonce that is not taken would be the
// one before.
class OpensslAead final : public Aead {
 public:
  OpensslAead(const EVP_CIPHER* cipher, EvpPtr<EVP_CIPHER_CTX> context, bool quick)
      : cipher_(cipher), context_(std::move(context)), quick_(quick) {}
  OpensslAead(const OpensslAead&) = delete;  // its parameters point into it
  OpensslAead& operator=(const OpensslAead&) = delete;

  bool SetKey(const AeadKey& key) override {
    way_ = Way::kNone;
    // Named again, the cipher would have all of the context made anew.
    const bool named = EVP_CIPHER_CTX_get0_cipher(context_.get()) != nullptr;
    return EVP_EncryptInit_ex2(context_.get(), named ? nullptr : cipher_, key.data(), nullptr,
                               nullptr) == 1;
  }

  bool StartSeal(const AeadNonce& nonce) override {
    if (way_ == Way::kSeal && quick_) [[likely]] {
      nonce_ = nonce;
      return EVP_CIPHER_CTX_set_params(context_.get(), nonce_alone_) == 1;
    }
    way_ = Way::kSeal;
    return EVP_EncryptInit_ex2(context_.get(), nullptr, nullptr, nonce.data(), nullptr) == 1;
  }
  bool StartOpen(const AeadNonce& nonce, const char* tag) override {
    if (way_ == Way::kOpen && quick_) [[likely]] {
      nonce_ = nonce;
      tag_and_nonce_[0].data = const_cast<char*>(tag);
      return EVP_CIPHER_CTX_set_params(context_.get(), tag_and_nonce_) == 1;
    }
    way_ = Way::kOpen;
    tag_alone_[0].data = const_cast<char*>(tag);
    return EVP_DecryptInit_ex2(context_.get(), nullptr, nullptr, nonce.data(), tag_alone_) == 1;
  }

  bool Update(const char* in, char* out, size_t size) override {
    if (quick_) [[likely]] {
      return EVP_Cipher(context_.get(), ToBytes(out), ToBytes(in), static_cast<unsigned>(size)) ==
             static_cast<int>(size);
    }
    int written = 0;
    return EVP_CipherUpdate(context_.get(), ToBytes(out), &written, ToBytes(in),
                            static_cast<int>(size)) == 1;
  }

  bool FinishSeal(char* tag) override {
    tag_alone_[0].data = tag;
    return Finish() && EVP_CIPHER_CTX_get_params(context_.get(), tag_alone_) == 1;
  }
  bool FinishOpen() override { return Finish(); }

  bool SealPiece(const AeadNonce& nonce, const char* in, char* out, size_t size,
                 char* tag) override {
    return StartSeal(nonce) && Update(in, out, size) && FinishSeal(tag);
  }
  Opened OpenPiece(const AeadNonce& nonce, const char* tag, const char* in, char* out,
                   size_t size) override {
    if (!StartOpen(nonce, tag) || !Update(in, out, size)) return Opened::kBroken;
    return FinishOpen() ? Opened::kGood : Opened::kForged;
  }

 private:
  enum class Way : uint8_t { kNone, kSeal, kOpen };  // it was last used, with this key

  bool Finish() {
    if (quick_) [[likely]]
      return EVP_Cipher(context_.get(), nullptr, nullptr, 0) >= 0;
    unsigned char rest[kAeadTagSize];
    int written = 0;
    return EVP_CipherFinal_ex(context_.get(), rest, &written) == 1;
  }

  const EVP_CIPHER* cipher_;
  EvpPtr<EVP_CIPHER_CTX> context_;
  const bool quick_;
  Way way_ = Way::kNone;
  AeadNonce nonce_{};
  // Made once: each would take calls of the library for every record.
  OSSL_PARAM nonce_alone_[2] = {NonceParameter(), OSSL_PARAM_END};
  OSSL_PARAM tag_alone_[2] = {TagParameter(), OSSL_PARAM_END};
  OSSL_PARAM tag_and_nonce_[3] = {TagParameter(), NonceParameter(), OSSL_PARAM_END};

  OSSL_PARAM NonceParameter() {
    return OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TLS1_IV_FIXED, nonce_.data(), SIZE_MAX);
  }
  static OSSL_PARAM TagParameter() {
    return OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, nullptr, kAeadTagSize);
  }
};

std::unique_ptr<Aead> NewOpensslAead(const EVP_CIPHER* cipher, bool quick) {
  EvpPtr<EVP_CIPHER_CTX> context(EVP_CIPHER_CTX_new());
  if (context == nullptr) return nullptr;
  return std::make_unique<OpensslAead>(cipher, std::move(context), quick);
}

constexpr size_t kSampleSizes[] = {20, 0};
constexpr uint8_t kSamples = 4;  // of each size

AeadNonce SampleNonce(uint8_t i) { return {i, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, i}; }

// In two pieces, for records come in any number of them.
bool UpdateSample(Aead& aead, std::string& bytes, size_t size) {
  const size_t first = size / 3;
  return size == 0 || (aead.Update(bytes.data(), bytes.data(), first) &&
                       aead.Update(bytes.data() + first, bytes.data() + first, size - first));
}

// What a record comes to; empty when a call fails.
std::string SealSample(Aead& aead, const AeadNonce& nonce, size_t size) {
  std::string sealed(size + kAeadTagSize, 's');
  const bool done = aead.StartSeal(nonce) && UpdateSample(aead, sealed, size) &&
                    aead.FinishSeal(sealed.data() + size);
  return done ? sealed : std::string();
}

// Whether the end of it is taken for good, and it comes to what was sealed.
struct OpenedSample {
  bool good = false;
  bool same = false;
};
OpenedSample OpenSample(Aead& aead, const AeadNonce& nonce, std::string sealed) {
  const size_t size = sealed.size() - kAeadTagSize;
  OpenedSample opened;
  if (!aead.StartOpen(nonce, sealed.data() + size) || !UpdateSample(aead, sealed, size)) {
    return opened;
  }
  opened.good = aead.FinishOpen();
  opened.same = sealed.starts_with(std::string(size, 's'));
  return opened;
}

bool SealsAlike(Aead& quick, Aead& plain, size_t size, std::vector<std::string>& sealed) {
  for (uint8_t i = 0; i < kSamples; ++i) {
    sealed.push_back(SealSample(plain, SampleNonce(i), size));
    if (sealed.back().empty() || SealSample(quick, SampleNonce(i), size) != sealed.back()) {
      return false;
    }
  }
  return true;
}

// Opens what is good, and nothing under another nonce, or with one bit of its tag another.
bool OpensTheseAlone(Aead& quick, const std::vector<std::string>& sealed) {
  for (uint8_t i = 0; i < kSamples; ++i) {
    const OpenedSample good = OpenSample(quick, SampleNonce(i), sealed[i]);
    std::string forged = sealed[i];
    forged.back() = static_cast<char>(forged.back() ^ 1);
    if (!good.good || !good.same || OpenSample(quick, SampleNonce(i), forged).good ||
        OpenSample(quick, SampleNonce(i), sealed[(i + 1) % kSamples]).good) {
      return false;
    }
  }
  return true;
}

// Whether the provider takes records the quick way: seen by what it then seals, and opens. One
// without a function for EVP_Cipher() alone is asked nothing: its results mean other things.
bool IsQuick(const EVP_CIPHER* cipher) {
  if (!(EVP_CIPHER_get_flags(cipher) & EVP_CIPH_FLAG_CUSTOM_CIPHER)) return false;
  const std::unique_ptr<Aead> quick = NewOpensslAead(cipher, true);
  const std::unique_ptr<Aead> plain = NewOpensslAead(cipher, false);
  const AeadKey key = {'k'};
  if (quick == nullptr || plain == nullptr || !quick->SetKey(key) || !plain->SetKey(key)) {
    return false;
  }
  for (const size_t size : kSampleSizes) {
    std::vector<std::string> sealed;
    if (!SealsAlike(*quick, *plain, size, sealed) || !OpensTheseAlone(*quick, sealed)) return false;
  }
  return true;
}

class OpensslCrypto : public RecordCrypto {
 public:
  OpensslCrypto(EvpPtr<EVP_CIPHER> cipher, EvpPtr<EVP_MAC> hmac, bool nonces_by_init)
      : cipher_(std::move(cipher)),
        hmac_(std::move(hmac)),
        quick_(!nonces_by_init && IsQuick(cipher_.get())) {}

  std::unique_ptr<Aead> NewAead() override { return NewOpensslAead(cipher_.get(), quick_); }

  bool HmacSha256(std::span<const uint8_t> key, std::span<const uint8_t> message,
                  std::array<uint8_t, 32>& out) override {
    // A context a call: freeing it wipes the key.
    EvpPtr<EVP_MAC_CTX> context(EVP_MAC_CTX_new(hmac_.get()));
    if (context == nullptr) return false;
    char digest[] = "SHA256";
    const OSSL_PARAM parameters[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
        OSSL_PARAM_construct_end()};
    size_t written = 0;
    return EVP_MAC_init(context.get(), key.data(), key.size(), parameters) == 1 &&
           EVP_MAC_update(context.get(), message.data(), message.size()) == 1 &&
           EVP_MAC_final(context.get(), out.data(), &written, out.size()) == 1 &&
           written == out.size();
  }

 private:
  EvpPtr<EVP_CIPHER> cipher_;
  EvpPtr<EVP_MAC> hmac_;
  const bool quick_;
};

absl::Status Absent(absl::string_view what) {
  char reason[160] = "no reason given";
  if (const unsigned long error = ERR_get_error(); error != 0) {
    ERR_error_string_n(error, reason, sizeof reason);
  }
  return absl::UnimplementedError(absl::StrCat("OpenSSL offers no ", what, ": ", reason));
}

}  // namespace

absl::StatusOr<std::unique_ptr<RecordCrypto>> NewOpensslCrypto(bool nonces_by_init) {
  EvpPtr<EVP_CIPHER> cipher(EVP_CIPHER_fetch(nullptr, "AES-128-GCM", nullptr));
  if (cipher == nullptr) return Absent("AES-128-GCM");
  EvpPtr<EVP_MAC> hmac(EVP_MAC_fetch(nullptr, "HMAC", nullptr));
  if (hmac == nullptr) return Absent("HMAC");
  ERR_set_mark();  // a provider may have objected to what was tried with it
  auto crypto = std::make_unique<OpensslCrypto>(std::move(cipher), std::move(hmac), nonces_by_init);
  ERR_pop_to_mark();
  const uint8_t key[32] = {};
  std::array<uint8_t, 32> mac;
  if (!crypto->HmacSha256(key, {}, mac)) return Absent("HMAC-SHA256");
  return crypto;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
