// SHA-256 by OpenSSL, where the handshakes bind to what was said and remember what was used.
//
// Stateless; any thread.
#ifndef PENSTOCK_SECURE_OPENSSL_DIGEST_H_
#define PENSTOCK_SECURE_OPENSSL_DIGEST_H_

#include <penstock/export.h>

#include <array>
#include <initializer_list>
#include <string_view>

#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

using Sha256Digest = std::array<char, 32>;

// Of the parts one after the other, each preceded by its length (u32, little endian), so that no
// two lists of parts have one digest. ResourceExhausted when OpenSSL has no memory for it.
absl::StatusOr<Sha256Digest> Sha256OfParts(std::initializer_list<std::string_view> parts);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_OPENSSL_DIGEST_H_
