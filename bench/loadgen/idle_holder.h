// Holds many connections open so that somebody else can measure what they cost the server.
//
// Steered by lines on standard input, each answered by one JSON line on standard output:
//   touch  one request of the given size on every connection, one after another, reply checked
//   close  closes every connection
// End of input ends the program.
#ifndef PENSTOCK_BENCH_LOADGEN_IDLE_HOLDER_H_
#define PENSTOCK_BENCH_LOADGEN_IDLE_HOLDER_H_

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "pattern.h"
#include "socket.h"

namespace penstock_bench {

class IdleHolder {
 public:
  IdleHolder(const Address& address, int connections, size_t size_bytes);
  ~IdleHolder();
  IdleHolder(const IdleHolder&) = delete;
  IdleHolder& operator=(const IdleHolder&) = delete;

  // Connects, says so, and obeys until the input ends or something fails.
  absl::Status Run();

 private:
  absl::Status ConnectAll();
  absl::Status Touch();
  absl::Status TouchOne(int fd, uint32_t offset);
  void CloseAll();

  const Address address_;
  const size_t connections_wanted_;
  const size_t size_bytes_;
  const Pattern pattern_;
  std::vector<int> connections_;
  std::vector<char> buffer_;
};

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_LOADGEN_IDLE_HOLDER_H_
