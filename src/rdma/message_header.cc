#include "rdma/message_header.h"

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

template <typename T>
char* StoreNumber(char* out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    *out++ = static_cast<char>(static_cast<uint64_t>(value) >> (8 * i));
  }
  return out;
}

template <typename T>
T LoadNumber(const char*& in) {
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= uint64_t{static_cast<uint8_t>(*in++)} << (8 * i);
  return static_cast<T>(value);
}

}  // namespace

void EncodeMessageHeader(const MessageHeader& header, std::span<char, kMessageHeaderSize> out) {
  char* at = out.data();
  at = StoreNumber(at, static_cast<uint8_t>(header.type));
  at = StoreNumber(at, header.flags);
  at = StoreNumber(at, header.received);
  at = StoreNumber(at, header.tag);
  at = StoreNumber(at, header.sequence);
  StoreNumber(at, header.credits);
}

absl::StatusOr<MessageHeader> DecodeMessageHeader(std::string_view bytes) {
  if (bytes.size() < kMessageHeaderSize) {
    return absl::InvalidArgumentError(absl::StrCat("a message of ", bytes.size(), " bytes"));
  }
  const char* at = bytes.data();
  MessageHeader header;
  const auto type = LoadNumber<uint8_t>(at);
  if (type < static_cast<uint8_t>(MessageType::kMessage) ||
      type > static_cast<uint8_t>(MessageType::kFetched)) {
    return absl::InvalidArgumentError(absl::StrCat("a message of the unknown type ", int{type}));
  }
  header.type = static_cast<MessageType>(type);
  header.flags = LoadNumber<uint8_t>(at);
  header.received = LoadNumber<uint16_t>(at);
  header.tag = LoadNumber<uint32_t>(at);
  header.sequence = LoadNumber<uint32_t>(at);
  header.credits = LoadNumber<uint32_t>(at);
  return header;
}

void EncodeAccessPrefix(const AccessPrefix& prefix, std::span<char, kAccessPrefixSize> out) {
  char* at = out.data();
  at = StoreNumber(at, prefix.region);
  at = StoreNumber(at, prefix.offset);
  at = StoreNumber(at, prefix.size);
  StoreNumber(at, prefix.epoch);
}

AccessPrefix DecodeAccessPrefix(std::string_view bytes) {
  const char* at = bytes.data();
  AccessPrefix prefix;
  prefix.region = LoadNumber<uint64_t>(at);
  prefix.offset = LoadNumber<uint64_t>(at);
  prefix.size = LoadNumber<uint64_t>(at);
  prefix.epoch = LoadNumber<uint32_t>(at);
  return prefix;
}

void EncodeOfferPart(const OfferPart& part, std::span<char, kOfferPartSize> out) {
  char* at = out.data();
  at = StoreNumber(at, part.address);
  at = StoreNumber(at, part.size);
  StoreNumber(at, part.key);
}

OfferPart DecodeOfferPart(std::string_view bytes) {
  const char* at = bytes.data();
  OfferPart part;
  part.address = LoadNumber<uint64_t>(at);
  part.size = LoadNumber<uint64_t>(at);
  part.key = LoadNumber<uint32_t>(at);
  return part;
}

MessageFront::MessageFront(const MessageHeader& header, const std::optional<AccessPrefix>& access)
    : size_(kMessageHeaderSize + (access.has_value() ? kAccessPrefixSize : 0)) {
  const std::span<char> bytes(bytes_);
  EncodeMessageHeader(header, bytes.first<kMessageHeaderSize>());
  if (!access.has_value()) return;
  EncodeAccessPrefix(*access, bytes.subspan<kMessageHeaderSize, kAccessPrefixSize>());
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
