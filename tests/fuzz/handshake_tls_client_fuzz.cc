// The client's end of a TLS handshake, whatever arrives.
#include "fuzz/handshake_mutation.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return penstock::internal::RunHandshakeMutation({reinterpret_cast<const char*>(data), size},
                                                  /*of_server=*/false);
}
