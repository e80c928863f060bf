#include "transport/check_options.h"

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/error.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

absl::Status CheckStreamOptions(const StreamOptions& options, std::string_view operation,
                                const SocketAddress& address) {
  struct Rule {
    bool broken;
    std::string_view text;
  };
  const absl::Duration zero = absl::ZeroDuration();
  const absl::Duration keepalive_max = absl::Seconds(32767);  // tcp.h's MAX_TCP_KEEPIDLE
  const absl::Duration user_timeout_max = absl::Milliseconds(INT32_MAX);
  const Rule rules[] = {
      {options.keepalive_idle < zero, "keepalive_idle must not be negative"},
      {options.keepalive_idle > zero && options.keepalive_interval <= zero,
       "keepalive_interval must be positive"},
      {options.keepalive_idle > keepalive_max, "keepalive_idle must be at most 32767 seconds"},
      {options.keepalive_idle > zero && options.keepalive_interval > keepalive_max,
       "keepalive_interval must be at most 32767 seconds"},
      {options.keepalive_idle > zero &&
           (options.keepalive_probes < 1 || options.keepalive_probes > 127),
       "keepalive_probes must be 1 to 127"},
      {options.user_timeout < zero, "user_timeout must not be negative"},
      {options.user_timeout > user_timeout_max,
       "user_timeout must be at most 2147483647 milliseconds"},
      {options.receive_buffer < 0, "receive_buffer must not be negative"},
      {options.send_buffer < 0, "send_buffer must not be negative"},
      {options.read_deadline < zero, "read_deadline must not be negative"},
      {options.write_deadline < zero, "write_deadline must not be negative"},
      {options.idle_deadline < zero, "idle_deadline must not be negative"},
      {options.receive_max < 1, "receive_max must be at least 1 byte"},
      {options.send_queue_max < 1, "send_queue_max must be at least 1 byte"},
  };
  for (const Rule& rule : rules) {
    if (rule.broken) {
      return PeerStatus(absl::StatusCode::kInvalidArgument, operation, &address, rule.text);
    }
  }
  return absl::OkStatus();
}

absl::Status Explain(const absl::Status& status, std::string_view operation,
                     const SocketAddress& address) {
  if (status.ok()) return status;
  return PeerStatus(status.code(), operation, &address,
                    std::string_view(status.message().data(), status.message().size()));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
