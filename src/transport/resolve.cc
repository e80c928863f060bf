#include "transport/resolve.h"

#include <errno.h>
#include <netdb.h>

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

absl::Status LookupStatus(int code, int error, std::string_view host) {
  const std::string operation = absl::StrCat("resolve ", std::string(host));
  if (code == EAI_SYSTEM) return ErrnoStatus(error, operation);
  absl::StatusCode status = absl::StatusCode::kInternal;
  switch (code) {
    case EAI_NONAME:
    case EAI_NODATA:
    case EAI_ADDRFAMILY:
      status = absl::StatusCode::kNotFound;
      break;
    // A name server that refuses or fails says nothing about the name.
    case EAI_AGAIN:
    case EAI_FAIL:
      status = absl::StatusCode::kUnavailable;
      break;
    case EAI_MEMORY:
      status = absl::StatusCode::kResourceExhausted;
      break;
  }
  return PeerStatus(status, operation, nullptr, ::gai_strerror(code));
}

namespace {

using Addresses = absl::StatusOr<std::vector<SocketAddress>>;

// Blocks, unless `flags` has AI_NUMERICHOST.
Addresses Lookup(const std::string& host, uint16_t port, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;  // else every address comes once for each type of socket
  hints.ai_flags = flags;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(host.c_str(), nullptr, &hints, &found);
  if (code != 0) return LookupStatus(code, errno, host);
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> list(found, &::freeaddrinfo);
  std::vector<SocketAddress> addresses;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    const SocketAddress address = SocketAddress::FromSockaddr(entry->ai_addr, entry->ai_addrlen);
    if (address.family() != AF_UNSPEC) addresses.push_back(address.WithPort(port));
  }
  if (addresses.empty()) return LookupStatus(EAI_ADDRFAMILY, 0, host);
  return addresses;
}

absl::Status CheckHost(const std::string& host) {
  if (host.empty()) return absl::InvalidArgumentError("resolve: the host name is empty");
  // C strings end there, and what follows would be trusted without being looked at.
  if (host.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("resolve: the host name contains a zero byte");
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace internal

void Resolve(Loop& loop, std::string host, uint16_t port, Executor& executor,
             ResolveCallback done) {
  const LoopHandle handle = loop.handle();
  const auto answer = [](const LoopHandle& to, ResolveCallback done, internal::Addresses result) {
    to.Post([done = std::move(done), result = std::move(result)]() mutable {
      std::move(done)(std::move(result));
    });
  };
  if (absl::Status bad = internal::CheckHost(host); !bad.ok()) {
    return answer(handle, std::move(done), std::move(bad));
  }
  internal::Addresses numeric = internal::Lookup(host, port, AI_NUMERICHOST);
  if (numeric.ok()) return answer(handle, std::move(done), std::move(numeric));
  if (!executor) {
    return answer(handle, std::move(done),
                  absl::FailedPreconditionError(absl::StrCat(
                      "resolve ", host, ": there is no executor to look names up on")));
  }
  executor([handle, answer, host = std::move(host), port, done = std::move(done)]() mutable {
    answer(handle, std::move(done), internal::Lookup(host, port, 0));
  });
}

PENSTOCK_END_NAMESPACE
