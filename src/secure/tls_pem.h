// Certificates and keys from PEM, into an SSL_CTX.
//
// Each error names the part ("certificate", "key", "ca"), the file, and what OpenSSL said. The
// SSL_CTX must not be in use yet.
#ifndef PENSTOCK_SECURE_TLS_PEM_H_
#define PENSTOCK_SECURE_TLS_PEM_H_

#include <openssl/ssl.h>
#include <penstock/export.h>
#include <penstock/tls_handshake.h>

#include "absl/status/status.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// This side's certificate, and those that follow it.
absl::Status UseCertificateChain(SSL_CTX* context, const PemSource& source);
// Its private key; the certificate must have been given before, and match.
absl::Status UsePrivateKey(SSL_CTX* context, const PemSource& source);
// At least one root.
absl::Status TrustRoots(SSL_CTX* context, const PemSource& source);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_TLS_PEM_H_
