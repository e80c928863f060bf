#include "testing/plain_socket.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

int NewPlainSocket(int family) {
  return ::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

}  // namespace

PlainSocket PlainSocket::Connect(const SocketAddress& address) {
  PlainSocket peer(NewPlainSocket(address.family()));
  sockaddr_storage storage;
  const socklen_t length = address.ToSockaddr(storage);
  if (::connect(peer.fd_, reinterpret_cast<sockaddr*>(&storage), length) < 0 &&
      errno != EINPROGRESS) {
    peer.Close();
  }
  return peer;
}

PlainSocket PlainSocket::Listen(const SocketAddress& address, int backlog) {
  PlainSocket listener(NewPlainSocket(address.family()));
  sockaddr_storage storage;
  const socklen_t length = address.ToSockaddr(storage);
  if (::bind(listener.fd_, reinterpret_cast<sockaddr*>(&storage), length) < 0 ||
      ::listen(listener.fd_, backlog) < 0) {
    listener.Close();
  }
  return listener;
}

PlainSocket::PlainSocket(PlainSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

PlainSocket& PlainSocket::operator=(PlainSocket&& other) noexcept {
  if (this != &other) {
    Close();
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}

SocketAddress PlainSocket::local() const {
  sockaddr_storage storage;
  socklen_t length = sizeof storage;
  if (::getsockname(fd_, reinterpret_cast<sockaddr*>(&storage), &length) < 0) return {};
  return SocketAddress::FromSockaddr(reinterpret_cast<sockaddr*>(&storage), length);
}

PlainSocket PlainSocket::Accept() {
  return PlainSocket(::accept4(fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

int64_t PlainSocket::Send(std::string_view bytes, int flags) {
  int64_t sent = 0;
  while (!bytes.empty()) {
    const ssize_t taken = ::send(fd_, bytes.data(), bytes.size(), flags | MSG_NOSIGNAL);
    if (taken < 0) return sent > 0 ? sent : -errno;
    sent += taken;
    bytes.remove_prefix(static_cast<size_t>(taken));
  }
  return sent;
}

int64_t PlainSocket::Receive(char* data, size_t size) {
  const ssize_t received = ::recv(fd_, data, size, 0);
  return received < 0 ? -errno : received;
}

std::string PlainSocket::ReceiveAll(int* end) {
  std::string all;
  char piece[16 * 1024];
  for (;;) {
    const int64_t received = Receive(piece, sizeof piece);
    if (received <= 0) {
      *end = static_cast<int>(-received);
      return all;
    }
    all.append(piece, static_cast<size_t>(received));
  }
}

void PlainSocket::ShutdownWrite() { ::shutdown(fd_, SHUT_WR); }

void PlainSocket::SetOption(int level, int name, int value) {
  ::setsockopt(fd_, level, name, &value, sizeof value);
}

void PlainSocket::Reset() {
  const linger now{.l_onoff = 1, .l_linger = 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  Close();
}

void PlainSocket::Close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
