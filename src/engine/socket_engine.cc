#include "engine/socket_engine.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// One row for every socket option a stream may ask for.
struct OptionRow {
  int level;
  int name;
  const char* text;
  int value;
  bool wanted;
  bool tcp_only;
};

}  // namespace

SocketEngine::SocketEngine(LoopCore& loop)
    : Engine(loop), sys_(loop.sys()), direct_(&sys_ == &RealSys()), reserve_(sys_.OpenReserve()) {}

absl::Status SocketEngine::HasReserve() const {
  if (reserve_ >= 0) return absl::OkStatus();
  return ErrnoStatus(-reserve_, "open a descriptor in reserve for a loop", nullptr);
}

SocketEngine::~SocketEngine() {
  if (reserve_ >= 0) sys_.Close(reserve_);
}

absl::Status SocketEngine::SetOptions(int fd, const SocketAddress& address,
                                      const SocketSetup& setup) {
  const StreamOptions& o = *setup.stream;
  // Rounded up: 0 means something else to the kernel.
  const auto units = [](absl::Duration d, absl::Duration unit) {
    return static_cast<int>(absl::Ceil(d, unit) / unit);
  };
  const bool keepalive = o.keepalive_idle > absl::ZeroDuration();
  const int keepalive_idle_s = units(o.keepalive_idle, absl::Seconds(1));
  const int keepalive_interval_s = units(o.keepalive_interval, absl::Seconds(1));
  const int user_timeout_ms = units(o.user_timeout, absl::Milliseconds(1));
  const OptionRow rows[] = {
      {SOL_SOCKET, SO_REUSEPORT, "SO_REUSEPORT", 1, setup.reuse_port, true},
      {SOL_SOCKET, SO_RCVBUF, "SO_RCVBUF", o.receive_buffer, o.receive_buffer > 0, false},
      {SOL_SOCKET, SO_SNDBUF, "SO_SNDBUF", o.send_buffer, o.send_buffer > 0, false},
      {SOL_SOCKET, SO_KEEPALIVE, "SO_KEEPALIVE", 1, keepalive, true},
      {IPPROTO_TCP, TCP_KEEPIDLE, "TCP_KEEPIDLE", keepalive_idle_s, keepalive, true},
      {IPPROTO_TCP, TCP_KEEPINTVL, "TCP_KEEPINTVL", keepalive_interval_s, keepalive, true},
      {IPPROTO_TCP, TCP_KEEPCNT, "TCP_KEEPCNT", o.keepalive_probes, keepalive, true},
      {IPPROTO_TCP, TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT", user_timeout_ms, user_timeout_ms > 0,
       true},
      {IPPROTO_TCP, TCP_NODELAY, "TCP_NODELAY", 1, o.nodelay, true},
  };
  for (const OptionRow& row : rows) {
    if (!row.wanted || (row.tcp_only && !IsTcp(address.family()))) continue;
    const int result = sys_.SetOption(fd, row.level, row.name, &row.value, sizeof row.value);
    if (result < 0) {
      return ErrnoStatus(-result, absl::StrCat("set ", row.text, "=", row.value, " for"), &address);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<int> SocketEngine::OpenListener(const SocketAddress& address,
                                               const SocketSetup& setup) {
  if (address.family() == AF_UNSPEC) {
    return absl::InvalidArgumentError(
        "listen: the address is empty; SocketAddress::Parse() reads 127.0.0.1:0, [::1]:80 or "
        "unix:/run/service.sock");
  }
  const int fd = sys_.Socket(address.family(), SOCK_STREAM, 0);
  if (fd < 0) return ErrnoStatus(-fd, "open a socket to listen on", &address);
  const auto fail = [&](absl::Status status) {
    sys_.Close(fd);
    return status;
  };
  // Accepted sockets inherit the options (tcp(7)), so they cost nothing a connection.
  if (absl::Status status = SetOptions(fd, address, setup); !status.ok()) {
    return fail(std::move(status));
  }
  const int on = 1;
  if (IsTcp(address.family())) {
    if (const int r = sys_.SetOption(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on); r < 0) {
      return fail(ErrnoStatus(-r, "set SO_REUSEADDR on", &address));
    }
  }
  if (address.family() == AF_INET6) {
    // Whatever net.ipv6.bindv6only says: `*` and `[::]` are both families.
    const int off = 0;
    if (const int r = sys_.SetOption(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off); r < 0) {
      return fail(ErrnoStatus(-r, "set IPV6_V6ONLY=0 for", &address));
    }
  }
  if (const int r = Bind(fd, address, setup.unlink_stale); r < 0) {
    return fail(ErrnoStatus(-r, "bind to", &address));
  }
  if (const int r = sys_.Listen(fd, setup.backlog); r < 0) {
    return fail(ErrnoStatus(-r, "listen on", &address));
  }
  return fd;
}

int SocketEngine::Bind(int fd, const SocketAddress& address, bool unlink_stale) {
  sockaddr_storage storage;
  const auto* const name = reinterpret_cast<sockaddr*>(&storage);
  const socklen_t length = address.ToSockaddr(storage);
  const int result = sys_.Bind(fd, name, length);
  const bool is_file = address.family() == AF_UNIX && !address.path().starts_with('@');
  if (result != -EADDRINUSE || !unlink_stale || !is_file) return result;
  const std::string path(address.path());
  if (!sys_.IsSocketFile(path.c_str())) return result;
  // Refused: nobody listens on it any more.
  const int probe = sys_.Socket(AF_UNIX, SOCK_STREAM, 0);
  if (probe < 0) return result;
  const bool stale = sys_.Connect(probe, name, length) == -ECONNREFUSED;
  sys_.Close(probe);
  if (!stale) return result;
  sys_.Unlink(path.c_str());
  return sys_.Bind(fd, name, length);
}

absl::StatusOr<int> SocketEngine::OpenConnecting(const SocketAddress& address,
                                                 const SocketAddress& local,
                                                 const SocketSetup& setup, bool* connected) {
  if (address.family() == AF_UNSPEC) {
    return absl::InvalidArgumentError(
        "connect: the address is empty; SocketAddress::Parse() reads 127.0.0.1:80, [::1]:80 or "
        "unix:/run/service.sock");
  }
  const int fd = sys_.Socket(address.family(), SOCK_STREAM, 0);
  if (fd < 0) return ErrnoStatus(-fd, "open a socket to connect to", &address);
  const auto fail = [&](absl::Status status) {
    sys_.Close(fd);
    return status;
  };
  if (absl::Status status = SetOptions(fd, address, setup); !status.ok()) {
    return fail(std::move(status));
  }
  sockaddr_storage storage;
  if (local.family() != AF_UNSPEC) {
    const socklen_t length = local.ToSockaddr(storage);
    if (const int r = sys_.Bind(fd, reinterpret_cast<sockaddr*>(&storage), length); r < 0) {
      return fail(ErrnoStatus(
          -r, absl::StrCat("bind to ", local.ToString(), " in order to connect to"), &address));
    }
  }
  const socklen_t length = address.ToSockaddr(storage);
  const int result = sys_.Connect(fd, reinterpret_cast<sockaddr*>(&storage), length);
  *connected = result == 0;
  if (result == 0 || result == -EINPROGRESS) return fd;
  if (result == -EAGAIN) {
    // Unix sockets only (unix(7)): nothing is in progress and nothing will be reported.
    return fail(PeerStatus(absl::StatusCode::kUnavailable, "connect to", &address,
                           "the listener's backlog is full (EAGAIN)"));
  }
  return fail(ErrnoStatus(-result, "connect to", &address));
}

int SocketEngine::ConnectResult(int fd) {
  int error = 0;
  socklen_t length = sizeof error;
  const int result = sys_.GetOption(fd, SOL_SOCKET, SO_ERROR, &error, &length);
  if (result < 0) return -result;
  if (error != 0) return error;
  sockaddr_storage storage;
  length = sizeof storage;
  // No error and no peer: woken too early.
  const int named = sys_.PeerName(fd, reinterpret_cast<sockaddr*>(&storage), &length);
  return named == -ENOTCONN ? EINPROGRESS : 0;
}

SocketAddress SocketEngine::LocalAddress(int fd) {
  sockaddr_storage storage;
  socklen_t length = sizeof storage;
  if (sys_.LocalName(fd, reinterpret_cast<sockaddr*>(&storage), &length) < 0) return {};
  return SocketAddress::FromSockaddr(reinterpret_cast<sockaddr*>(&storage), length);
}

SocketAddress SocketEngine::PeerAddress(int fd) {
  sockaddr_storage storage;
  socklen_t length = sizeof storage;
  if (sys_.PeerName(fd, reinterpret_cast<sockaddr*>(&storage), &length) < 0) return {};
  return SocketAddress::FromSockaddr(reinterpret_cast<sockaddr*>(&storage), length);
}

void SocketEngine::CloseSocket(int fd, bool reset) {
  if (reset) {
    const linger now{.l_onoff = 1, .l_linger = 0};  // socket(7): close sends RST
    sys_.SetOption(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }
  sys_.Close(fd);
}

int64_t SocketEngine::Send(Connection& connection, std::span<const iovec> parts) {
  loop_.counters().syscalls.Add(1);
  if (parts.size() == 1) {
    const iovec& part = parts[0];
    return direct_ ? sys_.Sys::Send(connection.fd(), part.iov_base, part.iov_len)
                   : sys_.Send(connection.fd(), part.iov_base, part.iov_len);
  }
  return sys_.SendVector(connection.fd(), parts.data(), parts.size());
}

int SocketEngine::Shutdown(Connection& connection, int how) {
  return sys_.Shutdown(connection.fd(), how);
}

SocketEngine::Received SocketEngine::ReceiveOnce(Connection& connection) {
  if (connection.pinned_reads()) [[unlikely]]
    return ReceivePinned(connection);
  const size_t size = connection.receive_size();
  Buffer buffer = loop_.cache().TryAllocate(size, BufferTag::kReceive);
  if (!buffer) [[unlikely]] {
    loop_.WaitForRoom();
    return Received::kNoRoom;
  }
  loop_.counters().syscalls.Add(1);
  char* const data = BufferAccess::Node(buffer)->data;
  const int64_t result = direct_ ? sys_.Sys::Receive(connection.fd(), data, size)
                                 : sys_.Receive(connection.fd(), data, size);
  if (result <= 0) [[unlikely]] {
    if (result == -EAGAIN) return Received::kNothing;
    connection.OnReceiveEnded(static_cast<int>(-result));
    return Received::kSome;
  }
  const auto received = static_cast<size_t>(result);
  connection.AdaptReceiveSize(received);
  NodeExtend(*BufferAccess::Node(buffer), received);
  if (received <= kCopyMax && size > kSmallBlock) [[unlikely]] {  // receives adapt to the traffic
    if (Buffer small = CopySmall(data, received)) buffer = std::move(small);
  }
  connection.OnReceived(std::move(buffer));
  // On a Unix socket a receive also stops short where descriptors were passed (unix(7)).
  return received < size && connection.over_tcp() ? Received::kDrained : Received::kSome;
}

Buffer SocketEngine::CopySmall(const char* data, size_t size) {
  Buffer small = loop_.cache().TryAllocate(size, BufferTag::kReceive);
  if (small) {
    std::memcpy(BufferAccess::Node(small)->data, data, size);
    NodeExtend(*BufferAccess::Node(small), size);
  }
  return small;
}

SocketEngine::Received SocketEngine::ReceivePinned(Connection& connection) {
  Buffer buffer = connection.TakePinnedBuffer();
  const size_t size = connection.receive_max();
  if (!buffer) buffer = loop_.cache().TryAllocate(size, BufferTag::kReceive);
  if (!buffer) {
    loop_.WaitForRoom();
    return Received::kNoRoom;
  }
  loop_.counters().syscalls.Add(1);
  const int64_t result = sys_.Receive(connection.fd(), BufferAccess::Node(buffer)->data, size);
  if (result <= 0) {
    connection.KeepPinnedBuffer(std::move(buffer));
    if (result == -EAGAIN) return Received::kNothing;
    connection.OnReceiveEnded(static_cast<int>(-result));
    return Received::kSome;
  }
  const auto received = static_cast<size_t>(result);
  NodeExtend(*BufferAccess::Node(buffer), received);
  Buffer small;
  if (received <= kCopyMax) small = CopySmall(buffer.data(), received);
  if (small) {
    buffer.Truncate(0);
    connection.KeepPinnedBuffer(std::move(buffer));
    connection.OnReceived(std::move(small));
  } else {
    connection.KeepPinnedBuffer(Buffer());
    connection.OnReceived(std::move(buffer));
  }
  return received < size && connection.over_tcp() ? Received::kDrained : Received::kSome;
}

bool SocketEngine::RefuseOne(Acceptor& acceptor) {
  if (reserve_ >= 0) sys_.Close(reserve_);
  const int fd = sys_.Accept(acceptor.fd, nullptr, nullptr);
  if (fd >= 0) sys_.Close(fd);
  reserve_ = sys_.OpenReserve();
  return fd >= 0;
}

void SocketEngine::RestoreReserve() {
  if (reserve_ < 0) reserve_ = sys_.OpenReserve();
}

bool SocketEngine::AcceptOnce(Acceptor& acceptor) {
  sockaddr_storage storage;
  socklen_t length = sizeof storage;
  loop_.counters().syscalls.Add(1);
  const int fd = sys_.Accept(acceptor.fd, reinterpret_cast<sockaddr*>(&storage), &length);
  if (fd == -EAGAIN) return false;
  if (fd < 0) {
    acceptor.OnAcceptFailed(-fd);
    return true;
  }
  acceptor.OnAccepted(fd,
                      SocketAddress::FromSockaddr(reinterpret_cast<sockaddr*>(&storage), length));
  return true;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
