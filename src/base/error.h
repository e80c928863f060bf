// How a failed system call becomes an absl::Status; the table is in docs/errors.md.
//
// Stateless; any thread.
#ifndef PENSTOCK_BASE_ERROR_H_
#define PENSTOCK_BASE_ERROR_H_

#include <penstock/address.h>
#include <penstock/export.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// `error` is positive, as errno is. Internal for what no table entry expects: a fault of this
// library or of its caller, and no peer's doing.
absl::StatusCode ErrnoCode(int error);

// "connection reset by peer (ECONNRESET)".
std::string ErrnoText(int error);

// `operation` reads on into the peer: "receive from", "connect to", "bind"; without a peer it ends
// there. The message is like "receive from 127.0.0.1:80: connection reset by peer (ECONNRESET)".
absl::Status ErrnoStatus(int error, std::string_view operation,
                         const SocketAddress* peer = nullptr);

// The same form for an end that has no errno: "read from 127.0.0.1:80: deadline of 5s passed".
absl::Status PeerStatus(absl::StatusCode code, std::string_view operation,
                        const SocketAddress* peer, std::string_view reason);

// `status`, an end of stream, as one for which IsUnauthenticatedEof holds.
absl::Status AsUnauthenticatedEof(absl::Status status);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_ERROR_H_
