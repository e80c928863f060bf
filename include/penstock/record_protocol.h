// The record protocols of sealed streams, and how a stream uses them.
//
// A sealed stream is a run of records over any stream. One record is, in gRPC's ALTS format,
//   length, u32 little endian: the bytes after this field | type, u32 little endian: 6 |
//   AES-128-GCM ciphertext | its tag, 16 bytes
// and each direction counts its records from 0; the counter is the nonce and never sent, so a
// record that is lost, repeated, moved or sent back fails to open (I8). Constants and pure
// functions only; any thread.
#ifndef PENSTOCK_RECORD_PROTOCOL_H_
#define PENSTOCK_RECORD_PROTOCOL_H_

#ifdef PENSTOCK_NO_SECURE
#error "this Penstock was built without sealed streams (PENSTOCK_SECURE=OFF, or no OpenSSL 3)"
#endif

#include <penstock/export.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

// Names as in gRPC (src/core/tsi/alts, credentials/alts/internal/conn).
enum class RecordProtocol : uint8_t {
  // "ALTSRP_GCM_AES128": one AES key; ends after 2^40 records a direction.
  kGcmAes128,
  // "ALTSRP_GCM_AES128_REKEY": a new AES key, derived without a message, every 65,536 records.
  kGcmAes128Rekey,
};

// How the ends of a stream are told, and whose peers may be on the other side. The two are never
// mixed: which one holds is fixed by the handshake, before the first record.
enum class RecordMode : uint8_t {
  // What gRPC's implementations do. An empty record is skipped; the end of the stream below is the
  // end of this one, and nobody has vouched for it: between records it is an end of stream that is
  // marked unauthenticated, inside one a truncation. Both directions share one key.
  kGrpc,
  // Between two Penstocks. An empty record is the authenticated end of its direction; the end of
  // the stream below without it is a truncation, a byte that comes with it an error (what comes
  // later is not read). Each direction has a key of its own, and records may be larger.
  kNative,
};

PENSTOCK_EXPORT std::string_view RecordProtocolName(RecordProtocol protocol);
// Reads such a name; InvalidArgument lists the two.
PENSTOCK_EXPORT absl::StatusOr<RecordProtocol> ParseRecordProtocol(std::string_view name);
// Bytes of key material of one direction: 16, or 44 (32 to derive AES keys from, 12 of nonce mask).
PENSTOCK_EXPORT size_t RecordKeySize(RecordProtocol protocol);

// Bytes of a record that are not payload: length, type and tag.
inline constexpr uint32_t kRecordOverhead = 24;
// Bounds on whole records in bytes, length field included. The largest has a length field of 1 MiB,
// which is what gRPC's Go and the plain protector of its C++ accept (the zero-copy one of C++ would
// take 16 MiB, and nobody sends that unless asked to). Native mode keeps to it too: plaintext waits
// for the tag at its record's end, so a larger record is more unverified memory and more delay for
// nothing, since sealing is as fast at 64 KiB as at 1 MiB.
inline constexpr uint32_t kRecordFrameMin = 1024;
inline constexpr uint32_t kRecordFrameMax = (1u << 20) + 4;
// What a stream sends unless the peer takes less: 16 KiB in all, as gRPC's C++ does; or 64 KiB of
// payload, after which sealing gets no faster.
inline constexpr uint32_t kRecordFrameGrpc = 16 * 1024;
inline constexpr uint32_t kRecordFrameNative = 64 * 1024 + kRecordOverhead;

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RECORD_PROTOCOL_H_
