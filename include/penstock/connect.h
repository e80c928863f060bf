// Connect: opens a stream to an address.
#ifndef PENSTOCK_CONNECT_H_
#define PENSTOCK_CONNECT_H_

#include <penstock/address.h>
#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE

namespace internal {
class ConnectState;
}  // namespace internal

struct ConnectOptions {
  EngineKind engine = EngineKind::kAuto;  // kAuto: the loop's
  // The attempt ends with DEADLINE_EXCEEDED after this long.
  absl::Duration deadline = absl::Seconds(30);
  // Bind to this address first when it is not empty; of the same family. The file of a Unix path is
  // the caller's to remove.
  SocketAddress local;
  StreamOptions stream;
};

using ConnectCallback = absl::AnyInvocable<void(absl::StatusOr<StreamPtr>) &&>;

// A way to give an attempt up. Dropping it lets the attempt go on. Loop's thread.
class PENSTOCK_EXPORT ConnectAttempt {
 public:
  ConnectAttempt() = default;
  explicit ConnectAttempt(std::weak_ptr<internal::ConnectState> state) : state_(std::move(state)) {}
  // The callback runs with Cancelled, unless the attempt has already ended.
  void Cancel();

 private:
  std::weak_ptr<internal::ConnectState> state_;
};

// Starts connecting to `address` on `loop`'s thread, and calls `done` once, never inside this call:
// with the open stream, or Unavailable (refused, unreachable), DeadlineExceeded, Cancelled,
// ResourceExhausted (descriptors, connections_max, a loop that is draining), InvalidArgument
// (address, options), PermissionDenied (the system forbids it), Unimplemented (engine, address
// family), each naming the peer. `done` is destroyed unrun when the loop goes first.
PENSTOCK_EXPORT ConnectAttempt Connect(Loop& loop, const SocketAddress& address,
                                       ConnectOptions options, ConnectCallback done);

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_CONNECT_H_
