#include "rdma/control_message.h"

#include <iterator>
#include <string_view>

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

std::string ControlTypeName(ControlType type) {
  static constexpr std::string_view kNames[] = {"HELLO",  "ACCEPT", "REJECT", "READY", "CREDIT",
                                                "REGION", "REVOKE", "PING",   "PONG",  "FALLBACK",
                                                "DRAIN",  "CLOSE",  "GRANT"};
  // All but what is skipped.
  static_assert(std::size(kNames) == std::variant_size_v<ControlMessage> - 1);
  if (type == ControlType::kData) return "DATA";
  const auto number = static_cast<size_t>(type);
  if (number >= 1 && number <= std::size(kNames)) return std::string(kNames[number - 1]);
  return absl::StrCat("type ", number);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
