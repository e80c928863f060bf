// The protobuf wire format (protobuf.dev/programming-guides/encoding), as much of it as the ALTS
// messages need.
//
// A writer appends to its own string; a reader walks bytes that are someone else's. Nothing is
// allocated for a length that the bytes do not bear out.
#ifndef PENSTOCK_SECURE_ALTS_WIRE_H_
#define PENSTOCK_SECURE_ALTS_WIRE_H_

#include <penstock/export.h>

#include <cstdint>
#include <string>
#include <string_view>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class ProtoWriter {
 public:
  // As proto3 has it: nothing is written for zero or the empty string.
  void Number(uint32_t field, uint64_t value);
  void Bytes(uint32_t field, std::string_view value);
  // Always written: an element of a repeated field, or a message, which is present even if empty.
  void Element(uint32_t field, std::string_view value);

  const std::string& bytes() const { return bytes_; }
  std::string Take() { return std::move(bytes_); }

 private:
  void Varint(uint64_t value);
  std::string bytes_;
};

class ProtoReader {
 public:
  explicit ProtoReader(std::string_view bytes) : rest_(bytes) {}

  // Moves to the next field; false at the end and at malformed bytes. Groups are malformed here.
  bool Next();
  // False when the bytes were no message, or a field was not of the type asked for.
  bool ok() const { return ok_; }

  uint32_t field() const { return field_; }
  // The current field's value.
  uint64_t Number();
  std::string_view Bytes();

 private:
  enum Type : uint8_t { kVarint = 0, kFixed64 = 1, kLengthDelimited = 2, kFixed32 = 5 };

  bool Fail();
  bool ReadVarint(uint64_t& value);
  bool ReadBytes(uint64_t size);

  std::string_view rest_;
  uint32_t field_ = 0;
  uint8_t type_ = 0;
  uint64_t number_ = 0;
  std::string_view bytes_;
  bool ok_ = true;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_ALTS_WIRE_H_
