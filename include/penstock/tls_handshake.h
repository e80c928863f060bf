// Credentials for the TLS handshake: certificates on both sides, or a key shared beforehand.
//
// The handshake is TLS 1.3 by OpenSSL and nothing older. Once each side has proved itself, has been
// authorised and has said so inside TLS, both derive record keys by TLS's exporter, free all of TLS
// and speak native-mode records; docs/wire-formats.md has the bytes. There are no tickets, no
// resumption and no early data. A peer that speaks anything else is refused.
//
// One Credentials object serves both roles and any number of connections; it holds the keys.
#ifndef PENSTOCK_TLS_HANDSHAKE_H_
#define PENSTOCK_TLS_HANDSHAKE_H_

#include <penstock/export.h>
#include <penstock/handshake.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

// PEM text, in a file or at hand.
class PemSource {
 public:
  PemSource() = default;
  static PemSource File(std::string path) { return PemSource(true, std::move(path)); }
  static PemSource Text(std::string pem) { return PemSource(false, std::move(pem)); }

  bool empty() const { return text_.empty(); }
  bool is_file() const { return is_file_; }
  const std::string& text() const { return text_; }  // the path, when it is a file

 private:
  PemSource(bool is_file, std::string text) : is_file_(is_file), text_(std::move(text)) {}
  bool is_file_ = false;
  std::string text_;
};

struct TlsCertificateOptions {
  // This side's certificate, followed by those that link it to a root, and its private key, which
  // must not be encrypted.
  PemSource certificate;
  PemSource key;
  // The roots that the peer's certificate must lead to; the system's are not consulted.
  PemSource ca;
  // A client takes any certificate that leads to a root, whichever name it bears: whoever holds one
  // can then stand in for any server. HandshakeOptions::verify_name is required without this.
  bool unsafe_accept_any_server_name = false;
};

// NotFound, InvalidArgument: which of the three could not be used, and what OpenSSL said of it.
PENSTOCK_EXPORT absl::StatusOr<CredentialsPtr> TlsCertificateCredentials(
    const TlsCertificateOptions& options);

// A key shared beforehand, and the name under which the other side finds it. The key must be
// random, 16 to 64 bytes: whoever watches a handshake can try guesses at a passphrase. The identity
// travels in clear and has 1 to 128 bytes.
struct TlsPsk {
  std::string identity;
  SecretKey key;
};

// A client offers the first; a server takes any. Identities must differ. A server that does not
// know an identity refuses in the same way as for a wrong key; neither side ever accepts a
// certificate instead. InvalidArgument says what is out of bounds.
PENSTOCK_EXPORT absl::StatusOr<CredentialsPtr> TlsPskCredentials(const std::vector<TlsPsk>& keys);

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TLS_HANDSHAKE_H_
