// What opening an endpoint needs of HELLO and ACCEPT besides their fields; see control_codec.h.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>

#include "rdma/control_codec.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

std::optional<uint8_t> ChooseVersion(const ControlHello& hello) {
  const uint8_t highest = std::min(hello.version_max, kControlVersionMax);
  if (highest < std::max(hello.version_min, kControlVersionMin)) return std::nullopt;
  return highest;
}

// FNV-1a. It needs no cryptography: whoever could forge the hash could forge the whole message, and
// what tells attempts apart are the nonces in the bytes that are hashed.
uint64_t TranscriptHash(std::string_view hello, std::string_view accept) {
  uint64_t hash = 0xcbf29ce484222325;
  for (std::string_view part : {hello, accept}) {
    for (char byte : part) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3;
  }
  return hash;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
