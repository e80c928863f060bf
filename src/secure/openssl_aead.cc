#include "secure/openssl_aead.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>

#include <utility>

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

class OpensslAead : public Aead {
 public:
  OpensslAead(const EVP_CIPHER* cipher, EvpPtr<EVP_CIPHER_CTX> context)
      : cipher_(cipher), context_(std::move(context)) {}

  bool SetKey(const AeadKey& key) override {
    return EVP_EncryptInit_ex2(context_.get(), cipher_, key.data(), nullptr, nullptr) == 1;
  }

  // Only the nonce: cipher and key stay, whichever way the context was used before (GCM has one key
  // schedule for both).
  bool StartSeal(const AeadNonce& nonce) override {
    return EVP_EncryptInit_ex2(context_.get(), nullptr, nullptr, nonce.data(), nullptr) == 1;
  }
  bool StartOpen(const AeadNonce& nonce) override {
    return EVP_DecryptInit_ex2(context_.get(), nullptr, nullptr, nonce.data(), nullptr) == 1;
  }

  bool Update(const char* in, char* out, size_t size) override {
    int written = 0;
    return EVP_CipherUpdate(context_.get(), ToBytes(out), &written, ToBytes(in),
                            static_cast<int>(size)) == 1;
  }

  bool FinishSeal(char* tag) override {
    unsigned char rest[kAeadTagSize];
    int written = 0;
    return EVP_EncryptFinal_ex(context_.get(), rest, &written) == 1 &&
           EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_GET_TAG, kAeadTagSize, tag) == 1;
  }
  bool FinishOpen(const char* tag) override {
    unsigned char rest[kAeadTagSize];
    int written = 0;
    return EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_SET_TAG, kAeadTagSize,
                               const_cast<char*>(tag)) == 1 &&
           EVP_DecryptFinal_ex(context_.get(), rest, &written) == 1;
  }

 private:
  const EVP_CIPHER* cipher_;
  EvpPtr<EVP_CIPHER_CTX> context_;
};

class OpensslCrypto : public RecordCrypto {
 public:
  OpensslCrypto(EvpPtr<EVP_CIPHER> cipher, EvpPtr<EVP_MAC> hmac)
      : cipher_(std::move(cipher)), hmac_(std::move(hmac)) {}

  std::unique_ptr<Aead> NewAead() override {
    EvpPtr<EVP_CIPHER_CTX> context(EVP_CIPHER_CTX_new());
    if (context == nullptr) return nullptr;
    return std::make_unique<OpensslAead>(cipher_.get(), std::move(context));
  }

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
};

absl::Status Absent(absl::string_view what) {
  char reason[160] = "no reason given";
  if (const unsigned long error = ERR_get_error(); error != 0) {
    ERR_error_string_n(error, reason, sizeof reason);
  }
  return absl::UnimplementedError(absl::StrCat("OpenSSL offers no ", what, ": ", reason));
}

}  // namespace

absl::StatusOr<std::unique_ptr<RecordCrypto>> NewOpensslCrypto() {
  EvpPtr<EVP_CIPHER> cipher(EVP_CIPHER_fetch(nullptr, "AES-128-GCM", nullptr));
  if (cipher == nullptr) return Absent("AES-128-GCM");
  EvpPtr<EVP_MAC> hmac(EVP_MAC_fetch(nullptr, "HMAC", nullptr));
  if (hmac == nullptr) return Absent("HMAC");
  auto crypto = std::make_unique<OpensslCrypto>(std::move(cipher), std::move(hmac));
  const uint8_t key[32] = {};
  std::array<uint8_t, 32> mac;
  if (!crypto->HmacSha256(key, {}, mac)) return Absent("HMAC-SHA256");
  return crypto;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
