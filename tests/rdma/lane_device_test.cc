// An open device as a program sees it: what it can be opened with, what it tells of itself, and
// what its port may do meanwhile.
#include "rdma/lane_device.h"

#include <cerrno>
#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "testing/rdma_flow.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;

class LaneDeviceTest : public FlowHarness {
 protected:
  absl::Status TryOpen(const RdmaDeviceOptions& options) {
    return LaneDevice::Open(loop().core(), lanes().fabric(), options).status();
  }
  // By the device, to a peer that knows where it is.
  void ExpectTraffic(RdmaEndpoints& both) {
    Flow there(*both.active, *both.passive);
    Flow back(*both.passive, *both.active);
    for (int i = 0; i < 20; ++i) {
      Start(there, std::to_string(i));
      Start(back, std::to_string(i));
    }
    ExpectDone(there);
    ExpectDone(back);
    EXPECT_TRUE(both.active->stats().over_device) << both.active->stats().fallback;
    EXPECT_TRUE(both.passive->stats().over_device) << both.passive->stats().fallback;
    both.active->CancelReceive();
    both.passive->CancelReceive();
    Settle();
  }
};

TEST_P(LaneDeviceTest, OpeningsThatCannotBeAreRefused) {
  RdmaDeviceOptions none;
  none.openings_max = 0;
  RdmaDeviceOptions negative;
  negative.retry_after = -absl::Milliseconds(1);
  RdmaDeviceOptions long_after;
  long_after.retry_after = absl::Hours(1) + absl::Milliseconds(1);
  for (const RdmaDeviceOptions& options : {none, negative, long_after}) {
    const absl::Status status = TryOpen(options);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  }
}

TEST_P(LaneDeviceTest, APortWithoutALinkOrAnAddressIsNone) {
  RdmaDeviceOptions beyond;
  beyond.gid_index = 7;
  absl::Status status = TryOpen(beyond);
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  lanes().fabric().SetLink("fake1", false);
  RdmaDeviceOptions down;
  down.name = "fake1";
  status = TryOpen(down);
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  lanes().fabric().SetLink("fake1", true);
  EXPECT_TRUE(TryOpen(down).ok());
}

// Each limit by itself, of a device that has enough of the others.
TEST_P(LaneDeviceTest, ADeviceWithTooLittleIsNamedWithItsLimit) {
  testing::VirtualHost host;
  const testing::FakeFabricOptions enough;
  testing::FakeFabricOptions none = enough;
  none.limits.shared_receive_queues = 0;
  testing::FakeFabricOptions receives = enough;
  receives.limits.shared_receive_depth = 100;
  testing::FakeFabricOptions completions = enough;
  completions.limits.completion_depth = 4096;
  testing::FakeFabricOptions memory = enough;
  memory.limits.memory_region_size = 1 << 20;
  testing::FakeFabricOptions reads = enough;
  reads.limits.read_depth = 0;
  testing::FakeFabricOptions parts = enough;
  parts.limits.parts = 3;
  for (const auto& [fabric, says] :
       {std::pair(none, "shared receive queue"), std::pair(receives, "the device has 100"),
        std::pair(completions, "completions"), std::pair(memory, "memory region"),
        std::pair(reads, "1 reads of a queue pair at once, the device has 0"),
        std::pair(parts, "4 parts of a work request, the device has 3")}) {
    testing::FakeFabric poor(host, 7, fabric);
    const absl::Status status = LaneDevice::Open(loop().core(), poor, {}).status();
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), says)) << status;
    EXPECT_EQ(poor.objects(), 0u);
  }
}

TEST_P(LaneDeviceTest, ShortQueuesOfTheDeviceWillDo) {
  testing::FakeFabricOptions fabric;
  fabric.limits.queue_depth = 16;
  FakeLanes shallow(environment(), loop(), {}, fabric);
  RdmaOptions options = Quiet();
  options.device = shallow.device();
  RdmaEndpoints both = OpenEndpoints(options, options);
  ExpectTraffic(both);
  both = {};
  options.device = nullptr;
  EXPECT_TRUE(Drive([&] { return shallow.device().use_count() == 1; }));
}

TEST_P(LaneDeviceTest, EndpointsThatOpenLaterGoToTheAddressThatThePortHasThen) {
  RdmaEndpoints before = OpenEndpoints();
  ExpectTraffic(before);
  before = {};
  FabricGid other = lanes().fabric().gid("fake0");
  other[15] = 0x77;
  lanes().fabric().SetGid("fake0", other);
  Settle();
  RdmaEndpoints after = OpenEndpoints();
  ExpectTraffic(after);
}

// It may have changed while the port was down, unheard.
TEST_P(LaneDeviceTest, APortThatComesBackIsAskedForItsAddress) {
  lanes().fabric().SetLink("fake0", false);
  FabricGid other = lanes().fabric().gid("fake0");
  other[15] = 0x77;
  lanes().fabric().SetGid("fake0", other);
  Settle();
  lanes().fabric().SetLink("fake0", true);
  Settle();
  RdmaEndpoints both = OpenEndpoints();
  ExpectTraffic(both);
}

// A simulated clock stands while a loop spins, so nothing is sent here.
TEST_P(LaneDeviceTest, ItSpinsAsLongAsItWasTold) {
  const auto spin_max = [this](RdmaDevice& device) {
    const auto hub = static_cast<LaneDevice&>(device).HubFor(loop().core());
    return hub.ok() ? (*hub)->options().spin_max : absl::InfiniteDuration();
  };
  RdmaDeviceOptions options;
  options.spin_max = absl::Microseconds(300);
  const std::shared_ptr<RdmaDevice> spinning = lanes().NewDevice(options);
  EXPECT_EQ(spin_max(*spinning), absl::Microseconds(300));
  EXPECT_EQ(spin_max(*lanes().device()), absl::ZeroDuration());
  RdmaEndpoints sleeping = OpenEndpoints();
  ExpectTraffic(sleeping);
  EXPECT_EQ(lanes().device()->stats().spins, 0u);
  EXPECT_EQ(lanes().device()->stats().spin_budget, absl::ZeroDuration());
}

TEST_P(LaneDeviceTest, ADeviceThatHasFailedSaysSo) {
  RdmaEndpoints both = OpenEndpoints();
  EXPECT_EQ(lanes().device()->stats().lost, "");
  lanes().fabric().PushEvent("fake0",
                             {.kind = FabricEventKind::kDeviceFatal, .owner = 0, .port = 0});
  ASSERT_TRUE(Drive([&] { return !both.active->stats().over_device; }));
  const std::string lost = lanes().device()->stats().lost;
  EXPECT_NE(lost.find("fake0"), std::string::npos) << lost;
}

TEST_P(LaneDeviceTest, MemoryThatTheDeviceDoesNotTakeIsCountedAndServedByTheLoop) {
  RdmaEndpoints both = OpenEndpoints();
  std::string memory(1000, '.');
  lanes().fabric().FailNth(FakeCall::kRegister, 1, ENOMEM);
  const auto region = both.passive->Expose(memory, RdmaAccess::kReadWrite);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ(both.passive->stats().unregistered, 1u);
  const auto there = AwaitRegion(*both.active);
  ASSERT_TRUE(there.ok()) << there.status();
  EXPECT_TRUE(Write(*both.active, *there, 5, "written").ok());
  EXPECT_EQ(memory.substr(5, 7), "written");
  std::string other(1000, '.');
  const auto taken = both.passive->Expose(other, RdmaAccess::kReadWrite);
  EXPECT_EQ(both.passive->stats().unregistered, 1u);
  EXPECT_TRUE(both.active->stats().over_device);
}

INSTANTIATE_TEST_SUITE_P(Lanes, LaneDeviceTest, ::testing::ValuesIn(SimulatedLaneEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
