// How operations end.
//
// Nothing in Penstock throws: every operation ends with one absl::Status, and the code of that
// status says which of the few possible ends it was. The message names the operation, the peer and
// the reason (errno where there is one). This header gives each end a name, so that callers test
// for what they mean and not for a code.
//
//   end                         code                  test
//   the peer finished sending   OUT_OF_RANGE          IsEof
//   the connection was reset    UNAVAILABLE           IsReset
//   a deadline passed           DEADLINE_EXCEEDED     IsDeadlineExceeded
//   the caller gave it up       CANCELLED             IsCancelled
//   a bound was reached         RESOURCE_EXHAUSTED    absl::IsResourceExhausted
//   bad bytes from the peer     INVALID_ARGUMENT      absl::IsInvalidArgument
//   proof of identity failed    UNAUTHENTICATED       absl::IsUnauthenticated
//   the end came too early      DATA_LOSS             absl::IsDataLoss
//   misuse of the API           FAILED_PRECONDITION   absl::IsFailedPrecondition
//   forbidden here              PERMISSION_DENIED     absl::IsPermissionDenied
//   no such host, file, device  NOT_FOUND             absl::IsNotFound
//   feature absent here         UNIMPLEMENTED         absl::IsUnimplemented
//   a fault, no peer's doing    INTERNAL              absl::IsInternal
#ifndef PENSTOCK_STATUS_H_
#define PENSTOCK_STATUS_H_

#include <penstock/export.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

// The peer closed its sending side and every byte before that has been delivered.
inline bool IsEof(const absl::Status& status) { return absl::IsOutOfRange(status); }

// IsEof of a sealed stream in gRPC's mode, which has no record to end with: the end came between
// two records, but from the network, and nobody has vouched for it. Whoever can cut the connection
// can make one, so a reader that needs to know that it has everything must learn it from the bytes.
PENSTOCK_EXPORT bool IsUnauthenticatedEof(const absl::Status& status);

// The connection is gone without an orderly end: reset by the peer, unreachable, refused.
inline bool IsReset(const absl::Status& status) { return absl::IsUnavailable(status); }

// The rest are abseil's own; other functions of the same names would be ambiguous with them
// wherever they are called without a namespace.
//
// A read, write, idle or connect deadline passed.
using absl::IsDeadlineExceeded;

// This side gave the operation up (CancelRead, Abort, ConnectAttempt::Cancel, Loop drain).
using absl::IsCancelled;

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_STATUS_H_
