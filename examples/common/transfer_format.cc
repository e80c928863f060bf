#include "common/transfer_format.h"

#include <cstring>
#include <string_view>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace examples {
namespace {

constexpr std::string_view kMagic = "PENSBULK";
constexpr std::string_view kAckMagic = "PBAK";
constexpr uint32_t kVersion = 1;

template <typename T>
void Put(char* out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) {
    out[i] = static_cast<char>(value >> (8 * (sizeof(T) - 1 - i)));
  }
}

template <typename T>
T Get(const char* in) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value = (value << 8) | static_cast<uint8_t>(in[i]);
  return value;
}

}  // namespace

std::array<char, kHeaderSize> EncodeHeader(uint64_t length) {
  std::array<char, kHeaderSize> bytes{};
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  Put<uint32_t>(&bytes[8], kVersion);
  Put<uint64_t>(&bytes[16], length);
  return bytes;
}

absl::StatusOr<uint64_t> DecodeHeader(std::span<const char, kHeaderSize> bytes) {
  if (std::string_view(bytes.data(), kMagic.size()) != kMagic) {
    return absl::InvalidArgumentError("the peer is not bulk_transfer: its first bytes are others");
  }
  const uint32_t version = Get<uint32_t>(&bytes[8]);
  if (version != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("the peer speaks version ", version, ", version 1 is accepted"));
  }
  if (Get<uint32_t>(&bytes[12]) != 0) {
    return absl::InvalidArgumentError("the reserved bytes of the header are not zero");
  }
  return Get<uint64_t>(&bytes[16]);
}

std::array<char, kAckSize> EncodeAck(const Ack& ack) {
  std::array<char, kAckSize> bytes{};
  std::memcpy(bytes.data(), kAckMagic.data(), kAckMagic.size());
  Put<uint32_t>(&bytes[4], static_cast<uint32_t>(ack.verdict));
  std::memcpy(&bytes[8], ack.digest.data(), ack.digest.size());
  return bytes;
}

absl::StatusOr<Ack> DecodeAck(std::span<const char, kAckSize> bytes) {
  const uint32_t verdict = Get<uint32_t>(&bytes[4]);
  if (std::string_view(bytes.data(), kAckMagic.size()) != kAckMagic ||
      verdict > static_cast<uint32_t>(Verdict::kRefused)) {
    return absl::InvalidArgumentError("the receiver's answer is not one of bulk_transfer");
  }
  Ack ack{static_cast<Verdict>(verdict), {}};
  std::memcpy(ack.digest.data(), &bytes[8], ack.digest.size());
  return ack;
}

std::string Hex(const Sha256& digest) {
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

}  // namespace examples
