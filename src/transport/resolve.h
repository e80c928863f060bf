// The errors of getaddrinfo(3) as statuses.
//
// Stateless; any thread.
#ifndef PENSTOCK_TRANSPORT_RESOLVE_H_
#define PENSTOCK_TRANSPORT_RESOLVE_H_

#include <penstock/resolve.h>

#include <string_view>

#include "absl/status/status.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// `code` is getaddrinfo's, and `error` the errno that goes with EAI_SYSTEM.
absl::Status LookupStatus(int code, int error, std::string_view host);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TRANSPORT_RESOLVE_H_
