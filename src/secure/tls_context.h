// TlsContext: everything about TLS that does not change from one connection to the next.
//
// Owns the SSL_CTX, with the certificates and trust, or the table of keys shared beforehand. Made
// once, then only read, by any thread. Every handshake that it starts is TLS 1.3 with one cipher
// suite, ALPN, no ticket, no session cache, no early data and no read-ahead.
#ifndef PENSTOCK_SECURE_TLS_CONTEXT_H_
#define PENSTOCK_SECURE_TLS_CONTEXT_H_

#include <penstock/export.h>
#include <penstock/tls_handshake.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "secure/tls_notes.h"
#include "secure/tls_psk.h"
#include "secure/tls_ptr.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class TlsContext {
 public:
  static absl::StatusOr<std::unique_ptr<TlsContext>> WithCertificates(
      const TlsCertificateOptions& options);
  static absl::StatusOr<std::unique_ptr<TlsContext>> WithKeys(const std::vector<TlsPsk>& keys);

  TlsContext(const TlsContext&) = delete;
  TlsContext& operator=(const TlsContext&) = delete;

  // An SSL for one connection, over two memory BIOs; `notes` outlives it.
  absl::StatusOr<SslPtr> NewSsl(const HandshakeOptions& options, TlsNotes* notes) const;

  bool uses_psk() const { return !keys_.empty(); }
  // Null when unknown.
  const SecretKey* FindKey(std::string_view identity) const;
  // What a client offers.
  const std::string& client_identity() const { return client_identity_; }

  static const TlsContext& Of(const SSL* ssl);

 private:
  TlsContext() = default;
  absl::Status Prepare();
  absl::Status LoadCertificates(const TlsCertificateOptions& options);
  absl::Status SetServerName(SSL* ssl, const std::string& name) const;

  SslContextPtr context_;
  TlsKeyTable keys_;
  std::string client_identity_;
  bool accept_any_server_name_ = false;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_TLS_CONTEXT_H_
