// What a connection of the load generator says, and what it must hear: requests of one size, each
// answered by a reply of one size. Values only.
#ifndef PENSTOCK_BENCH_LOADGEN_DIALOGUE_H_
#define PENSTOCK_BENCH_LOADGEN_DIALOGUE_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "pattern.h"
#include "socket.h"

namespace penstock_bench {

struct Dialogue {
  Pattern requests;
  Pattern replies;
  size_t request_size = 0;  // bytes
  size_t reply_size = 0;    // likewise
};

// With an echo server.
Dialogue EchoDialogue(size_t size);

// With an HTTP/1.1 server that answers GET of / alike every time, but for its Date: asks once, over
// a connection of its own. The error names what was wrong with the answer.
absl::StatusOr<Dialogue> HttpDialogue(const Address& address);

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_LOADGEN_DIALOGUE_H_
