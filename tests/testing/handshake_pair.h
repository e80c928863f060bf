// Two peers with certificates of one authority, for tests of handshakes.
//
// Makes the keys once for the whole test binary; single-threaded.
#ifndef PENSTOCK_TESTS_TESTING_HANDSHAKE_PAIR_H_
#define PENSTOCK_TESTS_TESTING_HANDSHAKE_PAIR_H_

#include <penstock/export.h>

#include <memory>

#include "testing/certificates.h"
#include "testing/handshake_pump.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Issues what the next three hold.
const TestAuthority& CommonAuthority();
// "CN=server", for the DNS names server.test and *.wild.test, and the addresses 127.0.0.1 and ::1.
const CredentialsPtr& ServerCredentials();
// "CN=client", with the URI spiffe://test/client.
const CredentialsPtr& ClientCredentials();

// Aborts when the credentials refuse the options.
std::unique_ptr<Handshaker> ClientOf(const CredentialsPtr& credentials,
                                     HandshakeOptions options = {.verify_name = "server.test"});
std::unique_ptr<Handshaker> ServerOf(const CredentialsPtr& credentials,
                                     HandshakeOptions options = {});
// Of the common credentials.
std::unique_ptr<HandshakePump> CommonPump();

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_HANDSHAKE_PAIR_H_
