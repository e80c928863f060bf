#include "secure/tls_psk.h"

#include <openssl/rand.h>

#include <array>
#include <string>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "secure/tls_context.h"
#include "secure/wipe.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr size_t kIdentityMax = 128;
constexpr size_t kPskMin = 16;
constexpr std::array<unsigned char, 2> kAes128GcmSha256 = {0x13, 0x01};

SslSessionPtr SessionOf(SSL* ssl, std::string_view key) {
  const SSL_CIPHER* cipher = SSL_CIPHER_find(ssl, kAes128GcmSha256.data());
  SslSessionPtr session(SSL_SESSION_new());
  if (cipher == nullptr || session == nullptr ||
      SSL_SESSION_set1_master_key(session.get(), reinterpret_cast<const unsigned char*>(key.data()),
                                  key.size()) != 1 ||
      SSL_SESSION_set_cipher(session.get(), cipher) != 1 ||
      SSL_SESSION_set_protocol_version(session.get(), TLS1_3_VERSION) != 1) {
    return nullptr;
  }
  return session;
}

int OfferKey(SSL* ssl, const EVP_MD*, const unsigned char** identity, size_t* identity_size,
             SSL_SESSION** session) {
  const std::string& name = TlsContext::Of(ssl).client_identity();
  SslSessionPtr made = SessionOf(ssl, TlsContext::Of(ssl).FindKey(name)->view());
  if (made == nullptr) return 0;
  TlsNotesOf(ssl).psk_identity = name;
  *identity = reinterpret_cast<const unsigned char*>(name.data());
  *identity_size = name.size();
  *session = made.release();
  return 1;
}

int FindKey(SSL* ssl, const unsigned char* identity, size_t identity_size, SSL_SESSION** session) {
  const std::string_view name(reinterpret_cast<const char*>(identity), identity_size);
  TlsNotes& notes = TlsNotesOf(ssl);
  const SecretKey* key = TlsContext::Of(ssl).FindKey(name);
  SslSessionPtr made;
  if (key != nullptr) {
    notes.psk_identity = name;
    made = SessionOf(ssl, key->view());
  } else {
    notes.Note(absl::UnauthenticatedError(
        absl::StrCat("the client's PSK identity '",
                     absl::CHexEscape(AbslView(name.substr(0, kIdentityMax))), "' is not known")));
    std::array<char, 32> nobody;
    if (RAND_bytes(reinterpret_cast<unsigned char*>(nobody.data()), nobody.size()) != 1) return 0;
    made = SessionOf(ssl, {nobody.data(), nobody.size()});
    WipeSecret(nobody.data(), nobody.size());
  }
  if (made == nullptr) return 0;
  *session = made.release();
  return 1;
}

}  // namespace

absl::StatusOr<TlsKeyTable> MakeKeyTable(const std::vector<TlsPsk>& keys) {
  if (keys.empty()) return absl::InvalidArgumentError("TLS with a PSK: no key was given");
  TlsKeyTable table;
  for (const TlsPsk& psk : keys) {
    const std::string name = absl::CHexEscape(psk.identity);
    if (psk.identity.empty() || psk.identity.size() > kIdentityMax) {
      return absl::InvalidArgumentError(absl::StrCat("TLS with a PSK: an identity of ",
                                                     psk.identity.size(), " bytes; 1 to ",
                                                     kIdentityMax, " are accepted"));
    }
    if (psk.key.size() < kPskMin) {
      return absl::InvalidArgumentError(
          absl::StrCat("TLS with a PSK: the key of '", name, "' has ", psk.key.size(), " bytes; ",
                       kPskMin, " to ", SecretKey::kMaxSize, " random ones are accepted"));
    }
    if (!table.emplace(psk.identity, psk.key).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("TLS with a PSK: '", name, "' is given twice"));
    }
  }
  return table;
}

void UseKeys(SSL_CTX* context) {
  SSL_CTX_set_psk_use_session_callback(context, OfferKey);
  SSL_CTX_set_psk_find_session_callback(context, FindKey);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
