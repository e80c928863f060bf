#include "socket.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace penstock_bench {
namespace {

absl::Status BadAddress(std::string_view text, std::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("address '", std::string(text), "': ", std::string(why),
                   "; accepted are 1.2.3.4:PORT, [::1]:PORT and unix:PATH"));
}

absl::StatusOr<Address> ParseUnix(std::string_view text, std::string_view path) {
  Address address;
  auto* un = reinterpret_cast<sockaddr_un*>(&address.storage);
  if (path.empty() || path.size() >= sizeof un->sun_path) {
    return BadAddress(text, "the path is empty or too long");
  }
  un->sun_family = AF_UNIX;
  memcpy(un->sun_path, path.data(), path.size());
  address.length = sizeof *un;
  return address;
}

}  // namespace

absl::StatusOr<Address> ParseAddress(std::string_view text) {
  constexpr std::string_view kUnix = "unix:";
  if (text.substr(0, kUnix.size()) == kUnix) return ParseUnix(text, text.substr(kUnix.size()));

  size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return BadAddress(text, "there is no port");
  std::string host(text.substr(0, colon));
  uint32_t port;
  if (!absl::SimpleAtoi(std::string(text.substr(colon + 1)), &port) || port < 1 || port > 65535) {
    return BadAddress(text, "the port is not a number from 1 to 65535");
  }
  Address address;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    auto* in6 = reinterpret_cast<sockaddr_in6*>(&address.storage);
    in6->sin6_family = AF_INET6;
    in6->sin6_port = htons(static_cast<uint16_t>(port));
    address.length = sizeof *in6;
    host = host.substr(1, host.size() - 2);
    if (inet_pton(AF_INET6, host.c_str(), &in6->sin6_addr) == 1) return address;
  } else {
    auto* in = reinterpret_cast<sockaddr_in*>(&address.storage);
    in->sin_family = AF_INET;
    in->sin_port = htons(static_cast<uint16_t>(port));
    address.length = sizeof *in;
    if (inet_pton(AF_INET, host.c_str(), &in->sin_addr) == 1) return address;
  }
  return BadAddress(text, "the host is not a numeric address");
}

absl::StatusOr<int> ConnectTo(const Address& address) {
  int family = address.storage.ss_family;
  int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::ErrnoToStatus(errno, "socket");
  int on = 1;
  if (family != AF_UNIX) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address.storage), address.length) < 0) {
    absl::Status status = absl::ErrnoToStatus(errno, "connect");
    close(fd);
    return status;
  }
  return fd;
}

size_t RaiseOpenFileLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  return limit.rlim_cur;
}

}  // namespace penstock_bench
