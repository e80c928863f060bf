// Where a socket listens or connects: an IPv4 or IPv6 address with a port, or a Unix socket path.
//
// A plain value of 32 bytes (a Unix path lives on the heap), so that every connection can keep its
// peer for error messages. Names are not looked up here: see penstock/resolve.h.
#ifndef PENSTOCK_ADDRESS_H_
#define PENSTOCK_ADDRESS_H_

#include <penstock/export.h>
#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

class PENSTOCK_EXPORT SocketAddress {
 public:
  // The empty address: family() is AF_UNSPEC. Also the peer of an unnamed Unix socket.
  SocketAddress() = default;
  SocketAddress(const SocketAddress& other);
  SocketAddress& operator=(const SocketAddress& other);
  SocketAddress(SocketAddress&&) noexcept = default;
  SocketAddress& operator=(SocketAddress&&) noexcept = default;

  // Reads `127.0.0.1:80`, `[::1]:80`, `[fe80::1%eth0]:80`, `*:80` (the same as `[::]:80`: any
  // address of both families; for IPv4 alone 0.0.0.0:80), `unix:/run/x.sock` and `unix:@name`
  // (abstract, unix(7)). Port 0 means "any free one" to a listener. InvalidArgument says what was
  // wrong and lists what is accepted.
  static absl::StatusOr<SocketAddress> Parse(std::string_view text);

  // The address in `length` bytes at `address` (as from getpeername(2)); empty when it is of
  // another family.
  static SocketAddress FromSockaddr(const sockaddr* address, socklen_t length);

  // Fills `storage` and returns the length that goes with it for bind(2) and connect(2).
  socklen_t ToSockaddr(sockaddr_storage& storage) const;

  // AF_INET, AF_INET6, AF_UNIX or AF_UNSPEC.
  int family() const { return family_; }
  // Host order; 0 for Unix sockets.
  uint16_t port() const { return port_; }
  // The Unix path, with a leading `@` when abstract; empty for other families.
  std::string_view path() const { return path_ ? std::string_view(*path_) : std::string_view(); }

  SocketAddress WithPort(uint16_t port) const;

  // The form that Parse reads; "unnamed" for the empty address.
  std::string ToString() const;

  friend bool operator==(const SocketAddress& a, const SocketAddress& b) {
    return a.family_ == b.family_ && a.port_ == b.port_ && a.scope_id_ == b.scope_id_ &&
           a.ip_ == b.ip_ && a.path() == b.path();
  }

 private:
  uint16_t family_ = AF_UNSPEC;
  uint16_t port_ = 0;
  uint32_t scope_id_ = 0;              // IPv6 only (ipv6(7))
  std::array<uint8_t, 16> ip_{};       // network order; IPv4 uses the first four
  std::unique_ptr<std::string> path_;  // Unix only
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ADDRESS_H_
