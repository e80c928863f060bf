// The one message that each side sends inside TLS before it switches to records, and what binds the
// record keys to it; docs/wire-formats.md has the bytes.
//
// The client's hello asks, the server's confirmation answers; a client that refuses the server says
// so in its place. Stateless; any thread.
#ifndef PENSTOCK_SECURE_TLS_HELLO_H_
#define PENSTOCK_SECURE_TLS_HELLO_H_

#include <penstock/export.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "secure/openssl_digest.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// ALPN (RFC 7301): names the record protocol, and the version of everything after TLS.
inline constexpr std::string_view kTlsAlpn = "penstock/1/ALTSRP_GCM_AES128_REKEY";
// Exporter (RFC 8446, 7.5), 88 bytes: the key from client to server, then the other.
inline constexpr std::string_view kTlsExporterLabel = "EXPERIMENTAL-penstock record v1";

struct TlsHello {
  enum class Kind : uint8_t { kHello = 1, kConfirm = 2, kRefuse = 3 };
  Kind kind = Kind::kHello;
  // Largest record that the sender takes, in bytes on the wire.
  uint32_t receive_frame_max = 0;
  // None is defined yet. A server ignores those it does not know, and confirms those that hold.
  uint32_t flags = 0;
};

inline constexpr size_t kTlsHelloSize = 12;

std::string EncodeTlsHello(const TlsHello& hello);
// InvalidArgument says what is wrong: the size, version, kind or a frame size out of bounds (one
// above kRecordFrameMax is taken for kRecordFrameMax).
absl::StatusOr<TlsHello> DecodeTlsHello(std::string_view bytes);

// What both sides must have seen alike. `server` and `client` are what each proved itself with: its
// certificate in DER, or the PSK identity for both.
struct TlsSwitch {
  std::string_view server;
  std::string_view client;
  std::string_view alpn;
  std::string_view hello;
  std::string_view confirm;
};

// The exporter's context.
absl::StatusOr<Sha256Digest> TlsSwitchContext(const TlsSwitch& seen);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_TLS_HELLO_H_
