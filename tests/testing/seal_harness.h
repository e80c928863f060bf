// SealHarness: a Harness whose streams are sealed by handshakes with certificates.
#ifndef PENSTOCK_TESTS_TESTING_SEAL_HARNESS_H_
#define PENSTOCK_TESTS_TESTING_SEAL_HARNESS_H_

#include <penstock/export.h>
#include <penstock/seal.h>

#include <utility>

#include "absl/time/time.h"
#include "testing/handshake_pair.h"
#include "testing/harness.h"
#include "testing/seal_outcome.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// The two ends of a handshake with certificates, over the streams of a Harness.
class SealHarness : public Harness {
 protected:
  static constexpr absl::Duration kShort = absl::Milliseconds(50);

  static HandshakeOptions ClientOptions() { return {.verify_name = "server.test"}; }
  static HandshakeOptions ServerOptions() {
    HandshakeOptions options;
    options.server = true;
    return options;
  }
  void SealClient(StreamPtr plain, SealOutcome& outcome, SealOptions options = {}) {
    Seal(std::move(plain), ClientCredentials(), ClientOptions(), std::move(options),
         outcome.Done());
  }
  void SealServer(StreamPtr plain, SealOutcome& outcome, SealOptions options = {}) {
    Seal(std::move(plain), ServerCredentials(), ServerOptions(), std::move(options),
         outcome.Done());
  }
  bool Ended(const SealOutcome& one, const SealOutcome& other) {
    return Drive([&] { return one.ended && other.ended; });
  }
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_SEAL_HARNESS_H_
