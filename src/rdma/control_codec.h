// Control messages to bytes and back: a header of 12 bytes, then fields, each with number, length
// and value. docs/wire-formats.md is the specification.
//
// Pure functions; any thread. Sizes are judged before anything is allocated for them, and what is
// allocated for one message is in proportion to the bytes that it came in, which are at most
// kControlBodyMax. A field that is not known is skipped, unless it is marked critical: then the
// error names it. Errors are InvalidArgument, and begin with the message's name. In a text that was
// received, what is not printable ASCII has become '?'.
#ifndef PENSTOCK_RDMA_CONTROL_CODEC_H_
#define PENSTOCK_RDMA_CONTROL_CODEC_H_

#include <penstock/export.h>
#include <penstock/framed_reader.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "rdma/control_message.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

inline constexpr size_t kControlHeaderSize = 12;
// Longest body of ControlType::kData, in bytes.
inline constexpr size_t kControlDataMax = 256 * 1024;

// A whole message, header and all. Its texts are cut to kControlTextMax. `message` is one that the
// header allows, and no ControlSkipped.
std::string EncodeControl(const ControlMessage& message);

// The header of a frame of ControlType::kData, whose body of `size` bytes follows.
std::string ControlDataHeader(size_t size);

struct ControlHeader {
  ControlType type;
  uint16_t flags;
  uint32_t body_size;
};
// Of the first kControlHeaderSize bytes. An error: other magic, another major version, a flag that
// is critical and not known, a body that is too long for its type.
absl::StatusOr<ControlHeader> DecodeControlHeader(std::string_view header);

// `body` is all of it. Not for ControlType::kData.
absl::StatusOr<ControlMessage> DecodeControl(const ControlHeader& header, std::string_view body);

// For a FramedReader of the control stream. Its bounds are those of the handshake, without data,
// unless `with_data`.
FrameFormat ControlFrameFormat(bool with_data);

// The highest version that both speak.
std::optional<uint8_t> ChooseVersion(const ControlHello& hello);

// Over the bytes of both messages as they were sent, with their headers. It tells one attempt from
// another, and whether both sides saw the same; it is no protection against whoever can write to
// the control stream, which is what a sealed control stream is for.
uint64_t TranscriptHash(std::string_view hello, std::string_view accept);

// Why this message cannot be, or OK: what the decoder asks of HELLO and ACCEPT beyond their fields.
absl::Status CheckControl(const ControlMessage& message);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_CONTROL_CODEC_H_
