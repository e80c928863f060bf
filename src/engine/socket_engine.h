// SocketEngine: what the two real engines share: making, naming and closing sockets through the
// syscall seam, and the plain receive and send. Owns one descriptor, kept in reserve for when the
// process has no other left.
#ifndef PENSTOCK_ENGINE_SOCKET_ENGINE_H_
#define PENSTOCK_ENGINE_SOCKET_ENGINE_H_

#include <penstock/address.h>
#include <penstock/export.h>

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sys.h"
#include "engine/engine.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class SocketEngine : public Engine {
 public:
  explicit SocketEngine(LoopCore& loop);
  ~SocketEngine() override;

  absl::StatusOr<int> OpenListener(const SocketAddress& address, const SocketSetup& setup) override;
  absl::StatusOr<int> OpenConnecting(const SocketAddress& address, const SocketAddress& local,
                                     const SocketSetup& setup, bool* connected) override;
  absl::Status SetOptions(int fd, const SocketAddress& address, const SocketSetup& setup) override;
  int ConnectResult(int fd) override;
  SocketAddress LocalAddress(int fd) override;
  void CloseSocket(int fd, bool reset) override;
  int64_t Send(Connection& connection, std::span<const iovec> parts) override;
  int Shutdown(Connection& connection, int how) override;
  bool RefuseOne(Acceptor& acceptor) override;
  void RestoreReserve() override;

 protected:
  // A received piece this small moves to a block of its own size when the block it came in is much
  // larger, so that whoever keeps it pins little more than the bytes.
  static constexpr size_t kCopyMax = 512;
  // A block up to this size is not worth the copy.
  static constexpr size_t kSmallBlock = 4096;
  // Connections taken from one listener before others get their turn (I9).
  static constexpr int kAcceptBurst = 64;
  static bool IsTcp(int family) { return family == AF_INET || family == AF_INET6; }

  // How a plain receive left the socket.
  enum class Received : uint8_t {
    kNothing,  // no bytes wait
    kSome,     // bytes or an end were reported; more may wait
    kDrained,  // bytes were reported, and they were all that waited (epoll(7), Q9)
    kNoRoom,   // the pool is at its limit: LoopCore::WaitForRoom has been called
  };
  // One recv(2) into a buffer sized to the connection's traffic.
  Received ReceiveOnce(Connection& connection);
  // The same into the buffer that the connection holds (StreamOptions::pinned_reads).
  [[gnu::cold]] Received ReceivePinned(Connection& connection);
  // A buffer of its own for a piece of at most kCopyMax bytes; empty when the pool has no room.
  Buffer CopySmall(const char* data, size_t size);
  // One accept(2), whose failure is reported; false when no connection waits.
  bool AcceptOnce(Acceptor& acceptor);
  SocketAddress PeerAddress(int fd);
  // Not OK: there was no descriptor to keep in reserve, and a loop would not be able to turn peers
  // away once the others have gone.
  absl::Status HasReserve() const;

  Sys& sys_;
  // With the real kernel the calls of every request skip the seam's virtual dispatch.
  const bool direct_;

 private:
  // Binds; a Unix path that is taken but not listened on is removed first when `unlink_stale`.
  int Bind(int fd, const SocketAddress& address, bool unlink_stale);

  int reserve_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_SOCKET_ENGINE_H_
