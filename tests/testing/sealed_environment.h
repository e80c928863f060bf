// Environments whose streams are sealed, and handshakers without a handshake for them.
//
// Both ends know the keys, as with keys from outside, so that sealing begins at once and the tests
// meet the sealed stream alone.
#ifndef PENSTOCK_TESTS_TESTING_SEALED_ENVIRONMENT_H_
#define PENSTOCK_TESTS_TESTING_SEALED_ENVIRONMENT_H_

#include <penstock/export.h>
#include <penstock/handshake.h>
#include <penstock/record_protocol.h>

#include <memory>
#include <string>
#include <vector>

#include "testing/environment.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct InstantOptions {
  RecordMode mode = RecordMode::kNative;
  RecordProtocol protocol = RecordProtocol::kGcmAes128Rekey;
  bool server = false;
  // 0: the mode's usual sizes.
  uint32_t send_frame_max = 0;
};

// What the two ends of a test's stream agree on. The keys are the same in every test.
HandshakeResult InstantKeys(const InstantOptions& options);
// Done at its first step, with those keys.
std::unique_ptr<Handshaker> InstantHandshaker(const InstantOptions& options);
// The same with any result.
std::unique_ptr<Handshaker> HandshakerGiving(HandshakeResult result);

// Plain ones, one of each kind, for tests that seal by themselves.
std::vector<EnvironmentCase> EnvironmentsToSeal();

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_SEALED_ENVIRONMENT_H_
