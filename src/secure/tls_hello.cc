#include "secure/tls_hello.h"

#include <penstock/record_protocol.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr uint8_t kTlsHelloVersion = 1;

void AppendLittle32(std::string& out, uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>(value >> shift));
}

uint32_t Little32At(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  for (size_t i = 4; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[at + i]);
  return value;
}

}  // namespace

std::string EncodeTlsHello(const TlsHello& hello) {
  std::string out = {static_cast<char>(kTlsHelloVersion), static_cast<char>(hello.kind), 0, 0};
  AppendLittle32(out, hello.receive_frame_max);
  AppendLittle32(out, hello.flags);
  return out;
}

absl::StatusOr<TlsHello> DecodeTlsHello(std::string_view bytes) {
  if (bytes.size() != kTlsHelloSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("a hello of ", bytes.size(), " bytes, not ", kTlsHelloSize));
  }
  if (bytes[0] != kTlsHelloVersion || bytes[2] != 0 || bytes[3] != 0) {
    return absl::InvalidArgumentError(absl::StrCat("a hello of version ",
                                                   static_cast<uint8_t>(bytes[0]), ", not ",
                                                   static_cast<int>(kTlsHelloVersion)));
  }
  const auto kind = static_cast<TlsHello::Kind>(bytes[1]);
  if (kind != TlsHello::Kind::kHello && kind != TlsHello::Kind::kConfirm &&
      kind != TlsHello::Kind::kRefuse) {
    return absl::InvalidArgumentError(
        absl::StrCat("a hello of unknown kind ", static_cast<uint8_t>(bytes[1])));
  }
  TlsHello hello;
  hello.kind = kind;
  hello.receive_frame_max = std::min(Little32At(bytes, 4), kRecordFrameMax);
  hello.flags = Little32At(bytes, 8);
  if (hello.receive_frame_max < kRecordFrameMin) {
    return absl::InvalidArgumentError(absl::StrCat("a hello that takes records of up to ",
                                                   hello.receive_frame_max, " bytes; ",
                                                   kRecordFrameMin, " is the least"));
  }
  return hello;
}

absl::StatusOr<Sha256Digest> TlsSwitchContext(const TlsSwitch& seen) {
  return Sha256OfParts({seen.server, seen.client, seen.alpn, seen.hello, seen.confirm});
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
