// Listener: accepts streams on a loop.
//
// Several listeners may share one port, one per loop, with ListenOptions::reuse_port: the kernel
// then spreads connections over them (socket(7), SO_REUSEPORT).
//
// A listener outlives trouble. Out of descriptors (EMFILE, ENFILE) it gives its reserve descriptor
// up to take the next connection off the queue and close it, so that peers are told at once, then
// pauses and resumes by itself when a descriptor is free or after a growing delay. At
// connections_max it stops accepting; peers wait in the kernel's backlog until a stream goes, and
// those that io_uring had accepted in the same burst wait inside the listener, with a descriptor
// each. Where the kernel lets nobody in (a policy: EPERM, EACCES) it tries again after a growing
// delay. When its loop drains it closes its socket.
#ifndef PENSTOCK_LISTENER_H_
#define PENSTOCK_LISTENER_H_

#include <penstock/address.h>
#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

struct ListenOptions {
  // The engine for the listener and its streams; kAuto: the loop's.
  EngineKind engine = EngineKind::kAuto;
  int backlog = 4096;       // the kernel caps it at net.core.somaxconn
  bool reuse_port = false;  // ignored on Unix sockets
  // Remove a stale socket file before binding a Unix path, and the file when the listener closes.
  bool unlink_path = true;
  // Streams of this listener open at once.
  uint32_t connections_max = 1u << 20;
  StreamOptions stream;
};

struct ListenerStats {
  uint64_t accepted = 0;
  uint64_t open = 0;          // accepted streams not yet closed
  uint64_t fd_exhausted = 0;  // times accept met EMFILE or ENFILE
  uint64_t refused = 0;       // of these, peers that were taken off the backlog and closed
  uint64_t errors = 0;        // other accept failures
  bool paused = false;        // for whichever reason
};

// Loop's thread only.
class PENSTOCK_EXPORT Listener {
 public:
  // Receives each stream, already open. Runs on the loop's thread.
  using AcceptCallback = absl::AnyInvocable<void(StreamPtr)>;

  // Binds and listens; on_accept may run from the next turn on. Errors name the address and the
  // reason: InvalidArgument (bad address or option), ResourceExhausted (descriptors), Unavailable
  // (address in use or not of this host), PermissionDenied, Unimplemented (engine or family
  // absent), FailedPrecondition (the loop drains).
  static absl::StatusOr<std::unique_ptr<Listener>> Listen(Loop& loop, const SocketAddress& address,
                                                          ListenOptions options,
                                                          AcceptCallback on_accept);

  // Closes the listening socket: connections still in the backlog are reset. Streams already
  // accepted live on. Safe inside on_accept.
  virtual ~Listener() = default;

  // The bound address, with the port the kernel chose for port 0.
  virtual SocketAddress address() const = 0;
  // Stop and start taking connections; peers wait in the backlog meanwhile, and those that io_uring
  // has already accepted wait inside the listener, with a descriptor each, until Resume.
  virtual void Pause() = 0;
  virtual void Resume() = 0;
  // Has `to` accept, and serve the streams accepted from now on; kAuto: the loop's own engine. The
  // socket stays open and no peer is refused: what the old engine still accepts is delivered.
  // Errors of Loop::EnableEngine; FailedPrecondition once its loop is gone or drains.
  virtual absl::Status SwitchEngine(EngineKind to) = 0;
  virtual ListenerStats stats() const = 0;
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_LISTENER_H_
