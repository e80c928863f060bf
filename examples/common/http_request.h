// The head of an HTTP/1 request (RFC 9112), as far as a server needs it that answers every request
// alike: where it ends, how much body follows, whether the connection goes on, and what to answer.
// A pure function of bytes: no I/O, no allocation.
//
// Strict where leniency is known to be abused (request smuggling): a bare CR or LF, a space before
// a colon, a folded line, a doubtful length are all 400.
#ifndef PENSTOCK_EXAMPLES_COMMON_HTTP_REQUEST_H_
#define PENSTOCK_EXAMPLES_COMMON_HTTP_REQUEST_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace examples {

inline constexpr size_t kHttpHeadMax = 8 * 1024;  // bytes, request line included; beyond: 431
inline constexpr uint64_t kHttpBodyMax =
    1024 * 1024;  // bytes of a body that is skipped; beyond: 413

struct HttpRequest {
  // Bytes of the head; 0 when it is not complete yet.
  size_t head_size = 0;
  // Bytes of body that follow and are to be skipped.
  uint64_t body_size = 0;
  // 200, or the error to answer. After an error other than 405 and 501 for a method, the connection
  // cannot go on: keep_alive is false.
  int status = 200;
  bool head_only = false;   // HEAD: the answer has no body
  bool keep_alive = false;  // after the answer
  bool http10 = false;      // keep_alive must be told to the client
};

// Reads one request at the start of `bytes`.
HttpRequest ParseHttpRequest(std::string_view bytes);

// "Not Found" and the like, for the statuses used here.
std::string_view HttpReason(int status);

}  // namespace examples

#endif  // PENSTOCK_EXAMPLES_COMMON_HTTP_REQUEST_H_
