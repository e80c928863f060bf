// A sealed stream over endpoints over the fake fabric and over the machine's own devices.
#include <penstock/rdma.h>
#include <penstock/seal.h>
#include <penstock/tls_handshake.h>

#include <optional>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "testing/endpoint_scenario.h"

namespace penstock::internal {
namespace {

using SealedScenarioTest = EndpointScenario;

// Handshake, records and the authenticated end go over the devices; so their bytes are sealed
// there.
TEST_P(SealedScenarioTest, ASealedStreamRunsOverTheDevices) {
  const auto keys = TlsPskCredentials({{.identity = "us", .key = SecretKey(std::string(32, 'k'))}});
  ASSERT_TRUE(keys.ok()) << keys.status();
  std::optional<absl::StatusOr<StreamPtr>> client, server;
  const auto seal = [&](Side& side, bool as_server, auto& result) {
    HandshakeOptions handshake;
    handshake.server = as_server;
    Seal(AsStream(std::move(side.endpoint)), *keys, handshake, {},
         [&result](absl::StatusOr<StreamPtr> sealed) { result = std::move(sealed); });
  };
  seal(active(), false, client);
  seal(passive(), true, server);
  ASSERT_TRUE(Run([&] { return client.has_value() && server.has_value(); }));
  ASSERT_TRUE(client->ok() && server->ok()) << client->status() << server->status();
  Flow(***client, ***server, 1 << 20);
  Flow(***server, ***client, 1 << 20);
}

INSTANTIATE_TEST_SUITE_P(Devices, SealedScenarioTest,
                         ::testing::Values(EndpointsOn::kFake, EndpointsOn::kMachine),
                         EndpointsName);

}  // namespace
}  // namespace penstock::internal
