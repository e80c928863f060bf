#include "secure/openssl_digest.h"

#include <openssl/evp.h>

#include <cstdint>
#include <memory>

#include "absl/strings/str_cat.h"
#include "secure/openssl_error.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

struct DigestContextFree {
  void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
};

bool AddPart(EVP_MD_CTX* context, std::string_view part) {
  const auto size = static_cast<uint32_t>(part.size());
  const std::array<uint8_t, 4> length = {
      static_cast<uint8_t>(size), static_cast<uint8_t>(size >> 8), static_cast<uint8_t>(size >> 16),
      static_cast<uint8_t>(size >> 24)};
  return EVP_DigestUpdate(context, length.data(), length.size()) == 1 &&
         EVP_DigestUpdate(context, part.data(), part.size()) == 1;
}

}  // namespace

absl::StatusOr<Sha256Digest> Sha256OfParts(std::initializer_list<std::string_view> parts) {
  const std::unique_ptr<EVP_MD_CTX, DigestContextFree> context(EVP_MD_CTX_new());
  bool ok = context != nullptr && EVP_DigestInit_ex2(context.get(), EVP_sha256(), nullptr) == 1;
  for (const std::string_view part : parts) ok = ok && AddPart(context.get(), part);
  Sha256Digest digest;
  ok = ok && EVP_DigestFinal_ex(context.get(), reinterpret_cast<unsigned char*>(digest.data()),
                                nullptr) == 1;
  if (!ok) {
    return absl::ResourceExhaustedError(absl::StrCat("SHA-256: ", TakeOpenSslError().text));
  }
  return digest;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
