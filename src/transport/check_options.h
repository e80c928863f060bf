// What Listen and Connect refuse before they touch the kernel.
#ifndef PENSTOCK_TRANSPORT_CHECK_OPTIONS_H_
#define PENSTOCK_TRANSPORT_CHECK_OPTIONS_H_

#include <penstock/address.h>
#include <penstock/export.h>
#include <penstock/stream.h>

#include <string_view>

#include "absl/status/status.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// `operation` is "listen on" or "connect to".
absl::Status CheckStreamOptions(const StreamOptions& options, std::string_view operation,
                                const SocketAddress& address);

// `status` with "`operation` `address`: " in front, for errors that do not know the address.
absl::Status Explain(const absl::Status& status, std::string_view operation,
                     const SocketAddress& address);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TRANSPORT_CHECK_OPTIONS_H_
