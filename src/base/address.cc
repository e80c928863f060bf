#include <penstock/address.h>

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE

// Every connection keeps one.
static_assert(sizeof(SocketAddress) == 32);

namespace {

constexpr std::string_view kUnixPrefix = "unix:";
constexpr size_t kPathOffset = offsetof(sockaddr_un, sun_path);
// unix(7): a path needs its final NUL, an abstract name its leading one.
constexpr size_t kPathMax = sizeof(sockaddr_un::sun_path) - 1;

absl::Status BadAddress(std::string_view text, std::string_view reason) {
  return absl::InvalidArgumentError(
      absl::StrCat("bad address \"", std::string(text), "\": ", std::string(reason),
                   "; accepted are 127.0.0.1:80, [::1]:80, [fe80::1%eth0]:80, *:80 (any address), "
                   "unix:/path and unix:@name (abstract)"));
}

template <typename Unsigned>
bool ParseNumber(std::string_view text, Unsigned& number) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  return error == std::errc() && stop == end;
}

// inet_pton(3) wants a terminated string.
bool ParseIp(int family, std::string_view host, void* out) {
  return host.find('\0') == std::string_view::npos &&
         ::inet_pton(family, std::string(host).c_str(), out) == 1;
}

// A scope is the name of an interface of this host, or its index.
bool ParseScope(std::string_view scope, uint32_t& index) {
  if (ParseNumber(scope, index)) return index != 0;
  index = ::if_nametoindex(std::string(scope).c_str());
  return index != 0;
}

std::string ScopeText(uint32_t index) {
  char name[IF_NAMESIZE];
  return ::if_indextoname(index, name) != nullptr ? std::string(name) : std::to_string(index);
}

}  // namespace

SocketAddress::SocketAddress(const SocketAddress& other)
    : family_(other.family_),
      port_(other.port_),
      scope_id_(other.scope_id_),
      ip_(other.ip_),
      path_(other.path_ ? std::make_unique<std::string>(*other.path_) : nullptr) {}

SocketAddress& SocketAddress::operator=(const SocketAddress& other) {
  return *this = SocketAddress(other);
}

absl::StatusOr<SocketAddress> SocketAddress::Parse(std::string_view text) {
  SocketAddress address;
  if (text.starts_with(kUnixPrefix)) {
    const std::string_view path = text.substr(kUnixPrefix.size());
    const bool abstract = path.starts_with('@');
    if (path.size() <= (abstract ? 1 : 0)) return BadAddress(text, "the Unix path is empty");
    if (path.size() - (abstract ? 1 : 0) > kPathMax) {
      return BadAddress(text, absl::StrCat("the Unix path is longer than ", kPathMax, " bytes"));
    }
    if (!abstract && path.find('\0') != std::string_view::npos) {
      return BadAddress(text, "the Unix path contains a zero byte");
    }
    address.family_ = AF_UNIX;
    address.path_ = std::make_unique<std::string>(path);
    return address;
  }

  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return BadAddress(text, "there is no port");
  if (!ParseNumber(text.substr(colon + 1), address.port_)) {
    return BadAddress(text, "the port is not a number from 0 to 65535");
  }
  std::string_view host = text.substr(0, colon);
  if (host == "*") {
    address.family_ = AF_INET6;
    return address;
  }
  if (host.starts_with('[') && host.ends_with(']')) {
    host = host.substr(1, host.size() - 2);
    const size_t percent = host.find('%');
    if (percent != std::string_view::npos &&
        !ParseScope(host.substr(percent + 1), address.scope_id_)) {
      return BadAddress(text, "the scope after % is no network interface of this host");
    }
    if (!ParseIp(AF_INET6, host.substr(0, percent), address.ip_.data())) {
      return BadAddress(text, "what is in brackets is not an IPv6 address");
    }
    address.family_ = AF_INET6;
    return address;
  }
  if (host.find(':') != std::string_view::npos) {
    return BadAddress(text, "an IPv6 address needs brackets before its port");
  }
  if (!ParseIp(AF_INET, host, address.ip_.data())) {
    return BadAddress(text, "the host is not a numeric address (penstock::Resolve looks names up)");
  }
  address.family_ = AF_INET;
  return address;
}

SocketAddress SocketAddress::FromSockaddr(const sockaddr* address, socklen_t length) {
  SocketAddress result;
  // Copied field by field: `address` may be of any alignment and of any size up to `length`.
  sa_family_t family = AF_UNSPEC;
  if (length < sizeof(family)) return result;
  ::memcpy(&family, &address->sa_family, sizeof(family));

  if (family == AF_INET && length >= sizeof(sockaddr_in)) {
    sockaddr_in in;
    ::memcpy(&in, address, sizeof(in));
    result.family_ = AF_INET;
    result.port_ = ntohs(in.sin_port);
    ::memcpy(result.ip_.data(), &in.sin_addr, sizeof(in.sin_addr));
  } else if (family == AF_INET6 && length >= sizeof(sockaddr_in6)) {
    sockaddr_in6 in6;
    ::memcpy(&in6, address, sizeof(in6));
    result.family_ = AF_INET6;
    result.port_ = ntohs(in6.sin6_port);
    result.scope_id_ = in6.sin6_scope_id;
    ::memcpy(result.ip_.data(), &in6.sin6_addr, sizeof(in6.sin6_addr));
  } else if (family == AF_UNIX && length > kPathOffset) {
    const char* name = reinterpret_cast<const char*>(address) + kPathOffset;
    // Linux may report a path that fills sun_path with one byte more for its NUL (unix(7), BUGS).
    const size_t size = std::min<size_t>(length - kPathOffset, kPathMax + 1);
    result.family_ = AF_UNIX;
    if (name[0] == '\0') {
      result.path_ = std::make_unique<std::string>("@");
      result.path_->append(name + 1, size - 1);
    } else {
      result.path_ = std::make_unique<std::string>(name, ::strnlen(name, size));
      // A file whose name starts with @ must not read as an abstract name.
      if (name[0] == '@') result.path_->insert(0, "./");
    }
  }
  return result;
}

socklen_t SocketAddress::ToSockaddr(sockaddr_storage& storage) const {
  storage = {};
  storage.ss_family = family_;
  switch (family_) {
    case AF_INET: {
      auto& in = reinterpret_cast<sockaddr_in&>(storage);
      in.sin_port = htons(port_);
      ::memcpy(&in.sin_addr, ip_.data(), sizeof(in.sin_addr));
      return sizeof(in);
    }
    case AF_INET6: {
      auto& in6 = reinterpret_cast<sockaddr_in6&>(storage);
      in6.sin6_port = htons(port_);
      in6.sin6_scope_id = scope_id_;
      ::memcpy(&in6.sin6_addr, ip_.data(), sizeof(in6.sin6_addr));
      return sizeof(in6);
    }
    case AF_UNIX: {
      auto& un = reinterpret_cast<sockaddr_un&>(storage);
      const std::string_view name = path();
      // A kernel's name can be one byte longer than Parse accepts; nothing longer gets in here.
      const size_t size = std::min(name.size(), sizeof(un.sun_path));
      ::memcpy(un.sun_path, name.data(), size);
      if (!name.starts_with('@')) return kPathOffset + std::min(size + 1, sizeof(un.sun_path));
      // The length ends an abstract name, not a NUL.
      un.sun_path[0] = '\0';
      return kPathOffset + size;
    }
    default:
      return sizeof(sa_family_t);
  }
}

SocketAddress SocketAddress::WithPort(uint16_t port) const {
  SocketAddress copy = *this;
  if (family_ == AF_INET || family_ == AF_INET6) copy.port_ = port;
  return copy;
}

std::string SocketAddress::ToString() const {
  char text[INET6_ADDRSTRLEN];
  switch (family_) {
    case AF_INET:
      ::inet_ntop(AF_INET, ip_.data(), text, sizeof(text));
      return absl::StrCat(text, ":", port_);
    case AF_INET6:
      ::inet_ntop(AF_INET6, ip_.data(), text, sizeof(text));
      return absl::StrCat("[", text, scope_id_ != 0 ? absl::StrCat("%", ScopeText(scope_id_)) : "",
                          "]:", port_);
    case AF_UNIX:
      return std::string(kUnixPrefix).append(path());
    default:
      return "unnamed";
  }
}

PENSTOCK_END_NAMESPACE
