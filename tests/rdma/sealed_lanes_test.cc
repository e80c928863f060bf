// Endpoints with devices whose control stream is sealed.
#include <penstock/rdma.h>
#include <penstock/seal.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/rdma_pair.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

constexpr std::string_view kMayBeSealed =
    "the control stream may be sealed, and unsealed_lanes is not set";

class SealedLanesTest : public RdmaHarness {
 protected:
  void TearDown() override {
    both_ = {};
    RdmaHarness::TearDown();
  }
  static void Start(StreamPtr stream, bool server,
                    std::optional<absl::StatusOr<StreamPtr>>& result) {
    Seal(std::move(stream), InstantHandshaker({.server = server}), {},
         [&result](absl::StatusOr<StreamPtr> sealed) { result = std::move(sealed); });
  }
  StreamPair SealedPair() {
    StreamPair streams = Pair();
    std::optional<absl::StatusOr<StreamPtr>> client, server;
    Start(std::move(streams.client), false, client);
    Start(std::move(streams.server), true, server);
    EXPECT_TRUE(Drive([&] { return client.has_value() && server.has_value(); }));
    return {**std::move(client), **std::move(server)};
  }
  void OpenOverSealed(bool active_unsealed, bool passive_unsealed) {
    StreamPair streams = SealedPair();
    RdmaOptions active = Quiet(), passive = Quiet();
    active.unsealed_lanes = active_unsealed;
    passive.unsealed_lanes = passive_unsealed;
    both_.active = RdmaEndpoint::Connect(std::move(streams.client), active);
    both_.passive = RdmaEndpoint::Accept(std::move(streams.server), passive);
    ASSERT_TRUE(Open(*both_.active).ok());
    ASSERT_TRUE(Open(*both_.passive).ok());
  }
  void ExpectWorks() {
    std::vector<char> memory(1000, '-');
    const auto region = both_.passive->Expose(memory, RdmaAccess::kReadWrite);
    ASSERT_TRUE(region.ok());
    const auto remote = AwaitRegion(*both_.active);
    ASSERT_TRUE(remote.ok());
    EXPECT_TRUE(Write(*both_.active, *remote, 0, std::string(1000, 'w')).ok());
    EXPECT_EQ(memory[999], 'w');
    both_.active->Send(Chain("there"));
    EXPECT_EQ(*Receive(*both_.passive), "there");
  }

  RdmaEndpoints both_;
};

// What a stream seals does not go past it in the clear.
TEST_P(SealedLanesTest, ASealedStreamKeepsItsBytesFromTheDevice) {
  for (const bool active : {false, true}) {
    for (const bool passive : {false, true}) {
      const uint64_t before = lanes().fabric().stats().sends_posted;
      OpenOverSealed(active, passive);
      const bool both = active && passive;
      EXPECT_EQ(both_.active->stats().over_device, both);
      EXPECT_EQ(both_.passive->stats().over_device, both);
      EXPECT_EQ(both_.active->stats().fallback, !active    ? kMayBeSealed
                                                : !passive ? "the peer has no device"
                                                           : "");
      EXPECT_EQ(both_.passive->stats().fallback, !active    ? "the peer has no device"
                                                 : !passive ? kMayBeSealed
                                                            : "");
      ExpectWorks();
      both_ = {};
      EXPECT_EQ(lanes().fabric().stats().sends_posted > before, both);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Lanes, SealedLanesTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
