// Resolve: host names to addresses, on a thread the caller provides.
//
// getaddrinfo(3) blocks, and the library starts no thread, so the caller hands in an executor: a
// function that runs a blocking job somewhere off the loop.
#ifndef PENSTOCK_RESOLVE_H_
#define PENSTOCK_RESOLVE_H_

#include <penstock/address.h>
#include <penstock/export.h>
#include <penstock/loop.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

using Executor = absl::AnyInvocable<void(absl::AnyInvocable<void() &&> job)>;
using ResolveCallback = absl::AnyInvocable<void(absl::StatusOr<std::vector<SocketAddress>>) &&>;

// Looks `host` up for stream sockets and calls `done` on the loop's thread, in a later turn, with
// its addresses, each with `port`, in getaddrinfo's order (RFC 6724). NotFound: no such host;
// Unavailable: try again later; ResourceExhausted: no memory; InvalidArgument: an empty name or one
// with a zero byte; FailedPrecondition: `executor` is empty; Internal, or what the errno of
// EAI_SYSTEM stands for: the lookup itself failed. A numeric host is answered without the executor,
// which is used during the call only.
//
// `done` is destroyed unrun when the loop is gone first (then on the executor's thread, if the
// lookup was still running) or when the executor drops the job.
PENSTOCK_EXPORT void Resolve(Loop& loop, std::string host, uint16_t port, Executor& executor,
                             ResolveCallback done);

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RESOLVE_H_
