// Who the peer of a finished TLS handshake is.
//
// Reads the SSL, changes nothing.
#ifndef PENSTOCK_SECURE_TLS_IDENTITY_H_
#define PENSTOCK_SECURE_TLS_IDENTITY_H_

#include <openssl/ssl.h>
#include <penstock/export.h>
#include <penstock/handshake.h>

#include <string>

#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// DER; ResourceExhausted when there is no memory for it.
absl::StatusOr<std::string> CertificateBytes(const X509* certificate);
// RFC 2253.
std::string CertificateSubject(const X509* certificate);

// The chain and the names in the peer's certificate. InvalidArgument when a name has a NUL byte,
// which a careless reader would take for its end.
absl::StatusOr<PeerIdentity> CertificateIdentity(const SSL* ssl);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_TLS_IDENTITY_H_
