// TlsNotes: what OpenSSL's callbacks leave for the handshake that they run in.
//
// Owned by the handshake, which attaches it to its SSL before anything else; written inside
// OpenSSL's calls, read after them; the handshake's thread.
#ifndef PENSTOCK_SECURE_TLS_NOTES_H_
#define PENSTOCK_SECURE_TLS_NOTES_H_

#include <openssl/ssl.h>
#include <penstock/export.h>

#include <string>
#include <utility>

#include "absl/status/status.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct TlsNotes {
  // Why a callback refused, in better words than OpenSSL's. The first one stays.
  absl::Status cause;
  // The identity that the handshake used, or tried to.
  std::string psk_identity;
  // What SendTlsAlert sends.
  int alert = SSL_AD_INTERNAL_ERROR;

  void Note(absl::Status status) {
    if (cause.ok()) cause = std::move(status);
  }
};

inline bool AttachTlsNotes(SSL* ssl, TlsNotes* notes) { return SSL_set_app_data(ssl, notes) == 1; }
inline TlsNotes& TlsNotesOf(const SSL* ssl) {
  return *static_cast<TlsNotes*>(SSL_get_app_data(ssl));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_TLS_NOTES_H_
