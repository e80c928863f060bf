#include "secure/alts_wire.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void ProtoWriter::Varint(uint64_t value) {
  for (; value >= 0x80; value >>= 7) bytes_.push_back(static_cast<char>(value | 0x80));
  bytes_.push_back(static_cast<char>(value));
}

void ProtoWriter::Number(uint32_t field, uint64_t value) {
  if (value == 0) return;
  Varint(field << 3);
  Varint(value);
}

void ProtoWriter::Bytes(uint32_t field, std::string_view value) {
  if (!value.empty()) Element(field, value);
}

void ProtoWriter::Element(uint32_t field, std::string_view value) {
  Varint(field << 3 | 2);
  Varint(value.size());
  bytes_.append(value);
}

bool ProtoReader::Next() {
  if (!ok_ || rest_.empty()) return false;
  uint64_t key = 0;
  if (!ReadVarint(key)) return Fail();
  const uint64_t field = key >> 3;
  if (field == 0 || field > 0x1fffffff) return Fail();
  field_ = static_cast<uint32_t>(field);
  type_ = static_cast<uint8_t>(key & 7);
  switch (type_) {
    case kVarint:
      return ReadVarint(number_) || Fail();
    case kFixed64:
      return ReadBytes(8) || Fail();
    case kLengthDelimited: {
      uint64_t size = 0;
      return (ReadVarint(size) && ReadBytes(size)) || Fail();
    }
    case kFixed32:
      return ReadBytes(4) || Fail();
    default:
      return Fail();
  }
}

uint64_t ProtoReader::Number() {
  if (type_ != kVarint) Fail();
  return ok_ ? number_ : 0;
}

std::string_view ProtoReader::Bytes() {
  if (type_ != kLengthDelimited) Fail();
  return ok_ ? bytes_ : std::string_view();
}

bool ProtoReader::Fail() {
  ok_ = false;
  return false;
}

bool ProtoReader::ReadVarint(uint64_t& value) {
  value = 0;
  for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
    const auto byte = static_cast<uint8_t>(rest_.front());
    rest_.remove_prefix(1);
    if (shift == 63 && byte > 1) return false;
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return true;
  }
  return false;
}

bool ProtoReader::ReadBytes(uint64_t size) {
  if (size > rest_.size()) return false;
  bytes_ = rest_.substr(0, size);
  rest_.remove_prefix(size);
  return true;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
