#include "rdma/message_header.h"

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

absl::Status NoMessageHeader(std::string_view bytes) {
  if (bytes.size() < kMessageHeaderSize) {
    return absl::InvalidArgumentError(absl::StrCat("a message of ", bytes.size(), " bytes"));
  }
  const int type = static_cast<uint8_t>(bytes.front());
  return absl::InvalidArgumentError(absl::StrCat("a message of the unknown type ", type));
}

void EncodeAccessPrefix(const AccessPrefix& prefix, std::span<char, kAccessPrefixSize> out) {
  char* at = out.data();
  PutLittle(at, prefix.region);
  PutLittle(at, prefix.offset);
  PutLittle(at, prefix.size);
  PutLittle(at, prefix.epoch);
}

AccessPrefix DecodeAccessPrefix(std::string_view bytes) {
  const char* at = bytes.data();
  AccessPrefix prefix;
  prefix.region = TakeLittle<uint64_t>(at);
  prefix.offset = TakeLittle<uint64_t>(at);
  prefix.size = TakeLittle<uint64_t>(at);
  prefix.epoch = TakeLittle<uint32_t>(at);
  return prefix;
}

void EncodeOfferPart(const OfferPart& part, std::span<char, kOfferPartSize> out) {
  char* at = out.data();
  PutLittle(at, part.address);
  PutLittle(at, part.size);
  PutLittle(at, part.key);
}

OfferPart DecodeOfferPart(std::string_view bytes) {
  const char* at = bytes.data();
  OfferPart part;
  part.address = TakeLittle<uint64_t>(at);
  part.size = TakeLittle<uint64_t>(at);
  part.key = TakeLittle<uint32_t>(at);
  return part;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
