// The bytes around a record's ciphertext: writing the header, and judging one that may be half in.
//
// Pure functions; any thread. The header is not authenticated (ALTS has no associated data), so
// what it says is only believed within bounds, and nothing is allocated for a length it announces.
#ifndef PENSTOCK_SECURE_RECORD_FORMAT_H_
#define PENSTOCK_SECURE_RECORD_FORMAT_H_

#include <penstock/export.h>
#include <penstock/record_protocol.h>

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "base/little_endian.h"
#include "secure/aead.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

inline constexpr size_t kRecordLengthSize = 4;
inline constexpr size_t kRecordHeaderSize = 8;
inline constexpr uint32_t kRecordTypeData = 6;
// What the length field counts besides the payload: type and tag.
inline constexpr uint32_t kRecordLengthMin = kRecordOverhead - kRecordLengthSize;
static_assert(kRecordOverhead == kRecordHeaderSize + kAeadTagSize);

// Writes kRecordHeaderSize bytes.
inline void WriteRecordHeader(char* out, size_t payload_size) {
  StoreLittle(out, static_cast<uint32_t>(payload_size) + kRecordLengthMin);
  StoreLittle(out + kRecordLengthSize, kRecordTypeData);
}

// Of a whole header that is good.
inline size_t RecordPayloadSize(std::string_view header) {
  return LoadLittle<uint32_t>(header.data()) - kRecordLengthMin;
}

// Whether the kRecordHeaderSize bytes are a header that CheckRecordHeader finds good.
inline bool IsRecordHeader(const char* header, uint32_t frame_max) {
  const auto length = LoadLittle<uint32_t>(header);
  return length >= kRecordLengthMin && length <= frame_max - kRecordLengthSize &&
         LoadLittle<uint32_t>(header + kRecordLengthSize) == kRecordTypeData;
}

// Judges the first bytes of a header, as many as are in, up to kRecordHeaderSize: an error as soon
// as no continuation can make it good, that is at the last byte of a length that is below
// kRecordLengthMin or makes the record longer than `frame_max`, and at the first wrong byte of the
// type, of which all four count. InvalidArgument with the reason. `frame_max` is at least
// kRecordOverhead.
absl::Status CheckRecordHeader(std::string_view prefix, uint32_t frame_max);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_RECORD_FORMAT_H_
