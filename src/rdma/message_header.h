// The 16 bytes in front of everything that an open endpoint sends besides control messages, and the
// few that follow them in one-sided operations over a stream. docs/wire-formats.md has the bytes.
//
// Pure functions; any thread.
#ifndef PENSTOCK_RDMA_MESSAGE_HEADER_H_
#define PENSTOCK_RDMA_MESSAGE_HEADER_H_

#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/little_endian.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

inline constexpr size_t kMessageHeaderSize = 16;
// Largest piece of a message, write or read over a stream, in bytes.
inline constexpr size_t kStreamPieceMax = 64 * 1024;

enum class MessageType : uint8_t {
  kMessage = 1,   // a piece of a message; needs a credit, as kOffer and no other type does
  kCredit = 2,    // nothing but the header
  kWrite = 3,     // an AccessPrefix, and the bytes to write; header's sequence: the write
  kWritten = 4,   // header's sequence: every write up to this number is done
  kRead = 5,      // an AccessPrefix; header's sequence: the read
  kReadData = 6,  // header's sequence: the read; bytes
  kOffer = 7,     // a piece of a message as well: OfferParts, where the peer is to read its bytes
  kFetched = 8,   // header's sequence: offers up to this one have been read, counted from 1 on
};
inline constexpr uint8_t kMessageLast = 1;  // flag: the last piece

struct MessageHeader {
  MessageType type = MessageType::kCredit;
  uint8_t flags = 0;
  // Pieces of messages received in order so far, modulo 2^16.
  uint16_t received = 0;
  // Tells the attempt to open that this belongs to: ReadyGate::data_tag.
  uint32_t tag = 0;
  // kMessage, kOffer: pieces sent so far, this one included. One-sided: the number of the
  // operation.
  uint32_t sequence = 0;
  // Pieces that the sender lets the peer send, since the endpoint opened, modulo 2^32.
  uint32_t credits = 0;

  bool operator==(const MessageHeader&) const = default;
};

inline void EncodeMessageHeader(const MessageHeader& header,
                                std::span<char, kMessageHeaderSize> out) {
  char* at = out.data();
  PutLittle(at, static_cast<uint8_t>(header.type));
  PutLittle(at, header.flags);
  PutLittle(at, header.received);
  PutLittle(at, header.tag);
  PutLittle(at, header.sequence);
  PutLittle(at, header.credits);
}

// Why these bytes begin with no header.
[[gnu::cold]] absl::Status NoMessageHeader(std::string_view bytes);

// InvalidArgument: too few bytes, or a type that this version does not know.
inline absl::StatusOr<MessageHeader> DecodeMessageHeader(std::string_view bytes) {
  if (bytes.size() < kMessageHeaderSize) return NoMessageHeader(bytes);
  const char* at = bytes.data();
  MessageHeader header;
  header.type = static_cast<MessageType>(TakeLittle<uint8_t>(at));
  if (header.type < MessageType::kMessage || header.type > MessageType::kFetched) {
    return NoMessageHeader(bytes);
  }
  header.flags = TakeLittle<uint8_t>(at);
  header.received = TakeLittle<uint16_t>(at);
  header.tag = TakeLittle<uint32_t>(at);
  header.sequence = TakeLittle<uint32_t>(at);
  header.credits = TakeLittle<uint32_t>(at);
  return header;
}

// Whether `number` is at or before `last`, modulo 2^32: less than 2^31 behind it.
inline bool SequenceReached(uint32_t number, uint32_t last) {
  return last - number < uint32_t{1} << 31;
}

// Which memory a one-sided operation over a stream is for.
struct AccessPrefix {
  uint64_t region = 0;
  uint64_t offset = 0;
  uint64_t size = 0;  // of a read; 0 in a write
  uint32_t epoch = 0;

  bool operator==(const AccessPrefix&) const = default;
};
inline constexpr size_t kAccessPrefixSize = 28;

void EncodeAccessPrefix(const AccessPrefix& prefix, std::span<char, kAccessPrefixSize> out);
// `bytes` has kAccessPrefixSize at least.
AccessPrefix DecodeAccessPrefix(std::string_view bytes);

// Bytes of a message, where the sender's device has them.
struct OfferPart {
  uint64_t address = 0;
  uint64_t size = 0;
  uint32_t key = 0;

  bool operator==(const OfferPart&) const = default;
};
inline constexpr size_t kOfferPartSize = 20;
inline constexpr size_t kOfferPartsMax = 8;  // of one offer

void EncodeOfferPart(const OfferPart& part, std::span<char, kOfferPartSize> out);
// `bytes` has kOfferPartSize at least.
OfferPart DecodeOfferPart(std::string_view bytes);

// The region, in an access, that a part of offer `number` is. Regions that are exposed have not
// this bit.
inline constexpr uint64_t kOfferRegion = uint64_t{1} << 63;
inline uint64_t OfferRegion(uint32_t number, size_t part) {
  return kOfferRegion | uint64_t{number} << 3 | part;
}
inline size_t PartOfRegion(uint64_t region) { return region % kOfferPartsMax; }

// What stands in front of a payload: a header, and behind it the access, if there is one.
class MessageFront {
 public:
  MessageFront(const MessageHeader& header, const std::optional<AccessPrefix>& access)
      : size_(kMessageHeaderSize + (access.has_value() ? kAccessPrefixSize : 0)) {
    const std::span<char> bytes(bytes_);
    EncodeMessageHeader(header, bytes.first<kMessageHeaderSize>());
    if (!access.has_value()) return;
    EncodeAccessPrefix(*access, bytes.subspan<kMessageHeaderSize, kAccessPrefixSize>());
  }
  std::string_view view() const { return {bytes_.data(), size_}; }

 private:
  std::array<char, kMessageHeaderSize + kAccessPrefixSize> bytes_;
  size_t size_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_MESSAGE_HEADER_H_
