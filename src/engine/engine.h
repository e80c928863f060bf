// Engine: moves bytes between sockets and connections, and waits for the kernel. Two real ones
// (epoll, io_uring) and a simulated one implement this interface; all of them are driven by one
// LoopCore on its thread, and a loop may host two at once.
//
// An engine owns what the kernel was told (registrations, submissions) and the engine word of each
// slot it was given; it owns no connection. It reports through Connection and Acceptor and never
// runs a user's callback itself.
#ifndef PENSTOCK_ENGINE_ENGINE_H_
#define PENSTOCK_ENGINE_ENGINE_H_

#include <penstock/address.h>
#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/stream.h>
#include <sys/uio.h>

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/slot_table.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Connection;
class Engine;
class LoopCore;

// The socket options of a listener or a connecting stream that the engine applies.
struct SocketSetup {
  const StreamOptions* stream = nullptr;
  bool reuse_port = false;
  bool unlink_stale = false;  // replace a Unix socket file that nobody listens on
  int backlog = 0;
};

// A listening socket under an engine. The transport's listener derives from it.
class Acceptor {
 public:
  virtual ~Acceptor() = default;
  // A connection came; the callee owns `fd`. Never called after Engine::Forget.
  virtual void OnAccepted(int fd, const SocketAddress& peer) = 0;
  // accept(2) failed with `error` (positive errno). The engine may have stopped: answer with
  // Engine::Accept to go on, or with StopAccepting.
  virtual void OnAcceptFailed(int error) = 0;
  // After Engine::Release that could not be done at once: the engine has let go, or the kernel
  // would not, and the engine has it still, not accepting.
  virtual void OnReleased() = 0;
  virtual void OnNotReleased() = 0;

  Engine* engine = nullptr;
  int fd = -1;
  uint32_t slot = 0;
};

// A descriptor a loop wants to be woken by: the mailbox's eventfd, the timerfd, the other engine.
class Watch {
 public:
  virtual ~Watch() = default;
  virtual void OnReadable() = 0;

  int fd = -1;
  uint32_t slot = 0;
  uint32_t failures = 0;     // of the operation that waits for it, in a row
  Engine* engine = nullptr;  // that was told last to watch it
};

class Engine {
 public:
  explicit Engine(LoopCore& loop) : loop_(loop) {}
  virtual ~Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  virtual EngineKind kind() const = 0;
  // The kernel serves it no more, for good: it takes nothing, lets go of everything at once, and
  // its loop has the other engine take what it had (LoopCore::OnEngineBroken). A connection that
  // this one would not take either stays its own until then.
  virtual bool broken() const { return false; }

  // --- Waiting ---
  // Readable (poll(2)) whenever Wait(0) would find something. Negative: -errno.
  virtual int fd() = 0;
  // Hands the kernel what was batched, waits up to `timeout_ns` (< 0: until something comes) and
  // dispatches at most LoopOptions::turn_events_max events. Returns how many.
  virtual int Wait(int64_t timeout_ns) = 0;
  // True when something is batched that the kernel must see before the loop sleeps.
  virtual bool HasUnsubmitted() const { return false; }
  // Calls watch.OnReadable() on every wake-up of watch.fd (edge-triggered), and soon if it is
  // readable already. On failure, as of one that is broken, `watch` is as it was.
  virtual absl::Status AddWatch(Watch& watch) = 0;
  // Ends that for the watch that was given `slot`.
  virtual void RemoveWatch(uint32_t slot, int fd) = 0;
  // Nobody watches fd() any more.
  virtual void StopNotifying() {}
  // The loop has been without traffic: give back what only traffic needs.
  virtual void Trim() {}
  // The loop is ending: lets go of every kernel operation without waiting and reports what was
  // being detached as detached. Nothing but destruction follows.
  virtual void ReleaseAll() {}
  // Memory came back to the pool: take up receives that were put off for want of a buffer.
  virtual void OnRoom() {}

  // --- Sockets ---
  virtual absl::StatusOr<int> OpenListener(const SocketAddress& address,
                                           const SocketSetup& setup) = 0;
  // A socket that is connecting to `address`, or already connected (`*connected`).
  virtual absl::StatusOr<int> OpenConnecting(const SocketAddress& address,
                                             const SocketAddress& local, const SocketSetup& setup,
                                             bool* connected) = 0;
  // Gives a socket of `address`'s family what `setup` asks for.
  virtual absl::Status SetOptions(int fd, const SocketAddress& address,
                                  const SocketSetup& setup) = 0;
  // How the attempt ended: 0, or a positive errno. Valid once the socket is writable.
  virtual int ConnectResult(int fd) = 0;
  virtual SocketAddress LocalAddress(int fd) = 0;
  // Closes `fd`; `reset`: so that the peer sees a reset and not an end of stream.
  virtual void CloseSocket(int fd, bool reset) = 0;

  // --- Listening ---
  virtual absl::Status Add(Acceptor& acceptor) = 0;
  // Start, stop taking connections. A connection that the kernel had already accepted may still
  // arrive after StopAccepting.
  virtual void Accept(Acceptor& acceptor) = 0;
  virtual void StopAccepting(Acceptor& acceptor) = 0;
  // Takes one connection off the backlog and closes it, on the descriptor the engine keeps in
  // reserve, so that a peer is told at once when descriptors have run out. False: nobody was told.
  virtual bool RefuseOne(Acceptor& acceptor) = 0;
  // Another thread may have taken the descriptor that was in reserve: takes one if there is any.
  virtual void RestoreReserve() = 0;
  // The acceptor is about to go: closes its socket and frees its slot, now or when the kernel has
  // let go of it.
  virtual void Forget(Acceptor& acceptor) = 0;
  // Lets go of an acceptor that lives on elsewhere, its socket open. True: done, and its slot is
  // free. False: the kernel still holds an operation; connections that it accepts until it has let
  // go are reported, then Acceptor::OnReleased, or OnNotReleased. Only Forget may be called in
  // between.
  virtual bool Release(Acceptor& acceptor) = 0;

  // --- Connections ---
  // Takes `connection` (its fd is set, its slot taken) under this engine (I4).
  virtual absl::Status Attach(Connection& connection) = 0;
  // Ends that. True: the kernel holds nothing. False: it still does; the engine calls
  // Connection::OnDetached when it has let go, and reports nothing else from now on.
  virtual bool Detach(Connection& connection) = 0;
  // Lets go of a connection that lives on elsewhere (I4, I5). True: the kernel holds nothing.
  // False: it still does; what it delivers until it has let go is reported by OnReceived and
  // OnReceiveEnded, and then Connection::OnReleased, or OnNotReleased when the kernel would not.
  // Only Detach and Shutdown may be called in between.
  virtual bool Release(Connection& connection) = 0;
  // Takes bytes that wait, if there may be any: at most one buffer into the connection
  // (Connection::OnReceived) or the way receiving ended (OnReceiveEnded). False: nothing there.
  virtual bool Pull(Connection& connection) = 0;
  // A read is pending and Pull found nothing: call Connection::OnReady when bytes come.
  virtual void WantRead(Connection& connection) = 0;
  // The connection holds enough unread bytes: receive no more for now.
  virtual void StopRead(Connection& connection) = 0;
  // Sends from `parts`; returns bytes taken or -errno; -EAGAIN when the kernel takes no more.
  virtual int64_t Send(Connection& connection, std::span<const iovec> parts) = 0;
  // Send met -EAGAIN, or the socket is connecting: call Connection::OnWritable when it may go on.
  virtual void WantWrite(Connection& connection) = 0;
  // shutdown(2): `how` is SHUT_RD or SHUT_WR; 0 or -errno.
  virtual int Shutdown(Connection& connection, int how) = 0;

 protected:
  LoopCore& loop_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_ENGINE_H_
