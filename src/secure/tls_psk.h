// Keys shared beforehand (RFC 8446, 2.2, external PSK), as OpenSSL's callbacks.
//
// The table of keys is the TlsContext's; see there for threads.
#ifndef PENSTOCK_SECURE_TLS_PSK_H_
#define PENSTOCK_SECURE_TLS_PSK_H_

#include <openssl/ssl.h>
#include <penstock/export.h>
#include <penstock/tls_handshake.h>

#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

using TlsKeyTable = absl::flat_hash_map<std::string, SecretKey>;

// InvalidArgument says which identity or key is out of bounds.
absl::StatusOr<TlsKeyTable> MakeKeyTable(const std::vector<TlsPsk>& keys);

// Makes `context`, a TlsContext's with keys, offer the first and accept any. An identity that is
// not in the table is given a key that nobody knows, so that it fails exactly as a wrong key does,
// and never goes on to certificates.
void UseKeys(SSL_CTX* context);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_TLS_PSK_H_
