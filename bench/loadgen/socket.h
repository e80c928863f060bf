// Sockets of the load generator: numeric addresses and blocking connects.
#ifndef PENSTOCK_BENCH_LOADGEN_SOCKET_H_
#define PENSTOCK_BENCH_LOADGEN_SOCKET_H_

#include <sys/socket.h>

#include <string_view>

#include "absl/status/statusor.h"

namespace penstock_bench {

struct Address {
  sockaddr_storage storage = {};
  socklen_t length = 0;
};

// Parses `1.2.3.4:PORT`, `[::1]:PORT` or `unix:PATH`. InvalidArgument says which part is wrong.
absl::StatusOr<Address> ParseAddress(std::string_view text);

// A connected socket with TCP_NODELAY. It stays blocking: callers pass MSG_DONTWAIT where they
// must not wait. The error names connect(2) and errno.
absl::StatusOr<int> ConnectTo(const Address& address);

// Raises the soft limit on open files to the hard one and returns it.
size_t RaiseOpenFileLimit();

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_LOADGEN_SOCKET_H_
