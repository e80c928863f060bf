#include "testing/handshake_pair.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

std::unique_ptr<Handshaker> Started(const CredentialsPtr& credentials,
                                    const HandshakeOptions& options) {
  absl::StatusOr<std::unique_ptr<Handshaker>> made = credentials->NewHandshaker(options);
  if (!made.ok()) {
    std::fprintf(stderr, "%s\n", made.status().ToString().c_str());
    std::abort();
  }
  return *std::move(made);
}

}  // namespace

const TestAuthority& CommonAuthority() {
  static const TestAuthority* authority = new TestAuthority;
  return *authority;
}

const CredentialsPtr& ServerCredentials() {
  static const CredentialsPtr* credentials = new CredentialsPtr(
      CommonAuthority().Credentials({.common_name = "server",
                                     .names = {"DNS:server.test", "DNS:*.wild.test",
                                               "DNS:part*.test", "IP:127.0.0.1", "IP:::1"}}));
  return *credentials;
}

const CredentialsPtr& ClientCredentials() {
  static const CredentialsPtr* credentials = new CredentialsPtr(CommonAuthority().Credentials(
      {.common_name = "client", .names = {"URI:spiffe://test/client"}}));
  return *credentials;
}

std::unique_ptr<Handshaker> ClientOf(const CredentialsPtr& credentials, HandshakeOptions options) {
  return Started(credentials, options);
}

std::unique_ptr<Handshaker> ServerOf(const CredentialsPtr& credentials, HandshakeOptions options) {
  options.server = true;
  return Started(credentials, options);
}

std::unique_ptr<HandshakePump> CommonPump() {
  return std::make_unique<HandshakePump>(ClientOf(ClientCredentials()),
                                         ServerOf(ServerCredentials()));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
