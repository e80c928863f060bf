// The record layer's cryptography by OpenSSL 3's EVP.
//
// Algorithms are fetched once, here, and not per record or per context. One object per loop: it and
// what it makes belong to one thread at a time.
#ifndef PENSTOCK_SECURE_OPENSSL_AEAD_H_
#define PENSTOCK_SECURE_OPENSSL_AEAD_H_

#include <penstock/export.h>

#include <memory>

#include "absl/status/statusor.h"
#include "secure/aead.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Unimplemented when the OpenSSL of this process offers no AES-128-GCM or HMAC-SHA256 (its
// configuration may restrict providers). The result must outlive the contexts that it made.
// `nonces_by_init`: gives nonces, and bytes, the longer way even where the provider knows a
// shorter.
absl::StatusOr<std::unique_ptr<RecordCrypto>> NewOpensslCrypto(bool nonces_by_init = false);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_OPENSSL_AEAD_H_
