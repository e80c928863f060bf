// What bulk_transfer says on the wire, version 1. All integers are big-endian.
//
//   sender:    magic "PENSBULK" (8), version 1 (4), zero (4), length (8); then `length` bytes of
//              content; then the SHA-256 of the content (32)
//   receiver:  magic "PBAK" (4), verdict (4), the SHA-256 of what it received (32); then it closes
//
// The receiver may give its verdict early, when it cannot go on; otherwise it gives it when the
// file is on its disk under its final name. No file name is sent: the receiver decides.
#ifndef PENSTOCK_EXAMPLES_COMMON_TRANSFER_FORMAT_H_
#define PENSTOCK_EXAMPLES_COMMON_TRANSFER_FORMAT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace examples {

using Sha256 = std::array<uint8_t, 32>;

inline constexpr size_t kHeaderSize = 24;
inline constexpr size_t kAckSize = 40;

enum class Verdict : uint32_t {
  kStored = 0,
  kDigestDiffers = 1,  // what arrived is not what the sender hashed
  kNotStored = 2,      // no room, no permission, an I/O error
  kRefused = 3,        // not this protocol, or more bytes than accepted
};

struct Ack {
  Verdict verdict;
  Sha256 digest;
};

std::array<char, kHeaderSize> EncodeHeader(uint64_t length);
// The length; InvalidArgument for anything but version 1.
absl::StatusOr<uint64_t> DecodeHeader(std::span<const char, kHeaderSize> bytes);

std::array<char, kAckSize> EncodeAck(const Ack& ack);
absl::StatusOr<Ack> DecodeAck(std::span<const char, kAckSize> bytes);

std::string Hex(const Sha256& digest);

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_TRANSFER_FORMAT_H_
