// What OpenSSL has to say about a call that failed.
//
// Stateless; OpenSSL keeps its queue of errors per thread.
#ifndef PENSTOCK_SECURE_OPENSSL_ERROR_H_
#define PENSTOCK_SECURE_OPENSSL_ERROR_H_

#include <penstock/export.h>

#include <string>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct OpenSslError {
  // The first error of the queue, its cause: library and reason (ERR_GET_LIB, ERR_GET_REASON); 0
  // when the queue was empty.
  int library = 0;
  int reason = 0;
  // Every error of the queue: "no start line (system library: No such file or directory)".
  std::string text;
};

// Empties this thread's queue.
OpenSslError TakeOpenSslError();

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_OPENSSL_ERROR_H_
