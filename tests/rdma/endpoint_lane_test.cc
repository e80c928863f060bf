// RdmaEndpoint over simulated devices: when the first work is posted, what becomes of endpoints
// without a lane, and of those that lose it.
#include <penstock/rdma.h>

#include <array>
#include <cerrno>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "testing/pattern.h"
#include "testing/rdma_flow.h"
#include "testing/sim_random.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;
using testing::FakePacket;
using testing::FakePacketKind;

class EndpointLaneTest : public FlowHarness {
 protected:
  // Numbered messages of many sizes.
  void StartMany(Flow& flow, size_t messages) {
    for (size_t i = 0; i < messages; ++i) {
      const size_t number = flow.texts.size();
      Start(flow, absl::StrCat(number, ":", PatternBytes(number, 0, number * 1237 % 20'000)));
    }
  }
  // Both ways, at once.
  void ExpectTraffic(RdmaEndpoints& both, size_t messages) {
    Flow there(*both.active, *both.passive);
    Flow back(*both.passive, *both.active);
    StartMany(there, messages);
    StartMany(back, messages);
    ExpectDone(there);
    ExpectDone(back);
    both.active->CancelReceive();
    both.passive->CancelReceive();
    Settle();
  }
  void ExpectOverDevice(RdmaEndpoints& both, bool expected) {
    for (RdmaEndpoint* endpoint : {both.active.get(), both.passive.get()}) {
      EXPECT_EQ(endpoint->stats().over_device, expected) << endpoint->stats().fallback;
    }
  }
  std::shared_ptr<RdmaDevice> Small(uint32_t receives, uint32_t per_endpoint,
                                    const std::string& name = {}) {
    RdmaDeviceOptions options;
    options.name = name;
    options.receives = receives;
    options.receive_size = 512;
    options.endpoint_receives = per_endpoint;
    return lanes().NewDevice(options);
  }
};

// Where waiting for a device's timeouts costs nothing.
class EndpointBreakTest : public EndpointLaneTest {};

TEST_P(EndpointLaneTest, TheDeviceCarriesTheMessages) {
  RdmaEndpoints both = OpenEndpoints();
  ExpectOverDevice(both, true);
  const uint64_t before = lanes().fabric().stats().sends_posted;
  ExpectTraffic(both, 50);
  EXPECT_GT(lanes().fabric().stats().sends_posted, before + 100);
  EXPECT_EQ(lanes().fabric().stats().not_ready_naks, 0u);
  EXPECT_EQ(lanes().fabric().stats().timeouts, 0u);
}

// The promise that the library has its name from, kept by endpoints.
TEST_P(EndpointLaneTest, NothingIsPostedBeforeThePeerIsReady) {
  // Each side has a device of its own, so that it is known which of them has posted.
  RdmaDeviceOptions second;
  second.name = "fake1";
  RdmaOptions other = Quiet();
  other.device = lanes().NewDevice(second);
  for (int round = 0; round < 20; ++round) {
    StreamPair streams = Pair();
    RdmaEndpoints both;
    int early = 0;
    // What is posted goes out in the same call.
    lanes().fabric().set_drop([&](const FakePacket& packet) {
      if (packet.kind != FakePacketKind::kRequest) return false;
      const bool by_active = packet.from == lanes().fabric().gid("fake0");
      const RdmaEndpoint* const by = (by_active ? both.active : both.passive).get();
      if (by == nullptr || !by->stats().open) ++early;
      return false;
    });
    both.active = RdmaEndpoint::Connect(std::move(streams.client), Quiet());
    Fate sent[2];
    both.active->Send(Chain("one"), sent[0].OnDone());
    if (round % 2 == 1) Settle();
    EXPECT_EQ(early, 0);
    both.passive = RdmaEndpoint::Accept(std::move(streams.server), other);
    both.passive->Send(Chain("two"), sent[1].OnDone());
    for (Fate& fate : sent) EXPECT_TRUE(Await(fate).ok()) << fate.status();
    EXPECT_EQ(early, 0);
    ExpectOverDevice(both, true);
    lanes().fabric().set_drop(nullptr);
    // Queue pairs that go are drained by a last send of each.
    both = {};
    ASSERT_TRUE(Drive([&] { return lanes().fabric().queue_pairs() == 0; }));
  }
  // Nothing came before its queue pair could take it: nobody waited for a timeout.
  EXPECT_EQ(lanes().fabric().stats().dropped_early, 0u);
  EXPECT_EQ(lanes().fabric().stats().timeouts, 0u);
}

TEST_P(EndpointLaneTest, WithoutADeviceOnOneSideTheStreamIsUsed) {
  RdmaOptions without = Quiet();
  without.device = nullptr;
  for (const bool active : {true, false}) {
    RdmaEndpoints both = active ? OpenEndpoints(Quiet(), without) : OpenEndpoints(without, Quiet());
    ExpectOverDevice(both, false);
    const RdmaStats stats = active ? both.active->stats() : both.passive->stats();
    EXPECT_EQ(stats.fallback, "the peer has no device");
    EXPECT_EQ((active ? both.passive : both.active)->stats().fallback, "");
    ExpectTraffic(both, 20);
  }
}

TEST_P(EndpointLaneTest, ABankThatIsSpentLeavesTheStreamToTheRest) {
  RdmaOptions options = Quiet();
  // Ten receives for an endpoint: four of them have lanes, for two ends.
  options.device = Small(45, 2);
  std::vector<RdmaEndpoints> all;
  for (int i = 0; i < 3; ++i) {
    all.push_back(OpenEndpoints(options, options));
    ExpectOverDevice(all.back(), i < 2);
    ExpectTraffic(all.back(), 10);
  }
  EXPECT_NE(all.back().active->stats().fallback.find("receives wanted, 5 are left"),
            std::string::npos)
      << all.back().active->stats().fallback;
  all.erase(all.begin());
  all.push_back(OpenEndpoints(options, options));
  ExpectOverDevice(all.back(), true);
}

TEST_P(EndpointLaneTest, ADeviceOfAnotherKindOfReceivesWillDo) {
  RdmaOptions small = Quiet();
  small.device = Small(64, 2);
  RdmaEndpoints both = OpenEndpoints(small, Quiet());
  ExpectOverDevice(both, true);
  ExpectTraffic(both, 30);
  EXPECT_EQ(lanes().fabric().stats().not_ready_naks, 0u);
}

// Whatever call of the device fails, the two sides agree on what carries the data.
TEST_P(EndpointBreakTest, EveryCallOfTheDeviceMayFail) {
  int over_device = 0;
  for (uint64_t nth = 1; nth < 40; ++nth) {
    RdmaOptions options = Quiet();
    options.device = Small(200, 16);
    lanes().fabric().FailNth(nth, ENOMEM);
    RdmaEndpoints both = OpenEndpoints(options, options);
    ExpectTraffic(both, 5);
    over_device += both.active->stats().over_device;
    EXPECT_EQ(both.active->stats().over_device, both.passive->stats().over_device) << nth;
    lanes().fabric().FailNth(uint64_t{0}, 0);
  }
  EXPECT_GT(over_device, 0);
  EXPECT_LT(over_device, 39);
}

TEST_P(EndpointLaneTest, AnActiveSideThatCannotConnectItsLaneSaysSoBeforeReady) {
  for (const FakeCall call : {FakeCall::kToReadyToReceive, FakeCall::kToReadyToSend}) {
    // The passive side's are the first.
    lanes().fabric().FailNth(call, Quiet().lanes + 1, EINVAL);
    RdmaEndpoints both = OpenEndpoints();
    EXPECT_EQ(lanes().fabric().stats().packets, 0u);
    ExpectTraffic(both, 10);
    ExpectOverDevice(both, false);
    EXPECT_NE(both.passive->stats().fallback.find("given up its lane"), std::string::npos)
        << both.passive->stats().fallback;
  }
}

// A link that breaks after any number of packets: nothing is lost and nothing comes twice.
TEST_P(EndpointBreakTest, ALinkThatBreaksAnywhereLosesNothing) {
  bool fell_back = false;
  for (uint64_t packets = 0; packets < 120; packets += kSanitized ? 7 : 3) {
    RdmaEndpoints both = OpenEndpoints();
    uint64_t left = packets;
    lanes().fabric().set_drop([&](const FakePacket&) { return left == 0 || left-- == 0; });
    Flow there(*both.active, *both.passive);
    Flow back(*both.passive, *both.active);
    // More than the credits allow.
    StartMany(there, 30);
    StartMany(back, packets % 2 == 0 ? 30 : 0);
    ExpectDone(there);
    ExpectDone(back);
    fell_back = fell_back || !both.active->stats().over_device;
    // Acknowledgements alone may be left on the lane: then its end shows with what is sent next.
    StartMany(there, 3);
    ExpectDone(there);
    lanes().fabric().set_drop(nullptr);
    Fate closed;
    both.active->Close(closed.OnDone());
    EXPECT_TRUE(Await(closed).ok()) << closed.status();
  }
  EXPECT_TRUE(fell_back);
}

TEST_P(EndpointBreakTest, OneSidedWorkSurvivesALinkThatBreaks) {
  for (uint64_t packets = 0; packets < 90; packets += kSanitized ? 9 : 4) {
    RdmaEndpoints both = OpenEndpoints();
    std::vector<char> memory(100'000);
    absl::StatusOr<RdmaRegion> region = both.passive->Expose(memory, RdmaAccess::kReadWrite);
    const absl::StatusOr<RdmaRemoteRegion> remote = AwaitRegion(*both.active);
    ASSERT_TRUE(region.ok() && remote.ok());
    uint64_t left = packets;
    lanes().fabric().set_drop([&](const FakePacket&) { return left == 0 || left-- == 0; });
    const std::string bytes = PatternBytes(packets, 0, memory.size());
    Fate written;
    both.active->WriteThenSend(*remote, 0, Chain(bytes), Chain("written"), written.OnDone());
    auto read = std::make_shared<std::string>();
    Fate done;
    both.active->Read(*remote, 10, 50'000,
                      [read, done = done.OnDone()](absl::StatusOr<BufferChain> got) mutable {
                        if (got.ok()) *read = got->ToString();
                        std::move(done)(got.status());
                      });
    EXPECT_EQ(*Receive(*both.passive), "written");
    EXPECT_TRUE(std::string(memory.data(), memory.size()) == bytes);
    EXPECT_TRUE(Await(written).ok()) << written.status();
    EXPECT_TRUE(Await(done).ok()) << done.status();
    EXPECT_TRUE(*read == bytes.substr(10, 50'000));
    lanes().fabric().set_drop(nullptr);
  }
}

// The acknowledgement is lost with the lane.
TEST_P(EndpointBreakTest, WhatWasReceivedBeforeAnOrderlyEndIsNotInDoubt) {
  RdmaEndpoints both = OpenEndpoints();
  int requests = 0;
  lanes().fabric().set_drop([&](const FakePacket& packet) {
    return packet.kind == FakePacketKind::kRequest && ++requests > 1;
  });
  Fate sent, closed;
  both.passive->Send(Chain("last"), sent.OnDone());
  EXPECT_EQ(*Receive(*both.active), "last");
  both.active->Close(closed.OnDone());
  EXPECT_TRUE(Await(closed).ok()) << closed.status();
  EXPECT_TRUE(Await(sent).ok()) << sent.status();
  lanes().fabric().set_drop(nullptr);
}

TEST_P(EndpointLaneTest, ADeviceThatDiesLeavesTheStreamToAllItsEndpoints) {
  RdmaEndpoints first = OpenEndpoints();
  RdmaEndpoints second = OpenEndpoints();
  Flow traffic(*first.active, *first.passive);
  StartMany(traffic, 30);
  FabricEvent event;
  event.kind = FabricEventKind::kDeviceFatal;
  lanes().fabric().PushEvent("fake0", event);
  ExpectDone(traffic);
  ASSERT_TRUE(Drive([&] { return !second.passive->stats().over_device; }));
  EXPECT_NE(second.active->stats().fallback.find("device"), std::string::npos)
      << second.active->stats().fallback;
  ExpectTraffic(second, 10);
  RdmaEndpoints third = OpenEndpoints();
  ExpectOverDevice(third, false);
  EXPECT_NE(third.active->stats().fallback.find("device"), std::string::npos)
      << third.active->stats().fallback;
}

TEST_P(EndpointBreakTest, LossOnTheWayIsTheDevicesToRepair) {
  lanes().fabric().set_loss(30);
  RdmaEndpoints both = OpenEndpoints();
  ExpectTraffic(both, 60);
  lanes().fabric().set_loss(0);
}

TEST_P(EndpointLaneTest, AnIdleEndpointKeepsNothingOfWhatItSent) {
  RdmaEndpoints both = OpenEndpoints();
  ExpectTraffic(both, 10);
  EXPECT_EQ(loop().Snapshot().pool.live, 0u);
}

TEST_P(EndpointLaneTest, OptionsThatLeaveNoEndpointRoomAreRefused) {
  for (const auto& [receives, size, each] :
       {std::array<uint32_t, 3>{9, 8192, 2}, std::array<uint32_t, 3>{100, 100, 2},
        std::array<uint32_t, 3>{100, 65537, 2}, std::array<uint32_t, 3>{100, 8192, 1},
        std::array<uint32_t, 3>{100, 8192, 93}}) {
    RdmaDeviceOptions options;
    options.receives = receives;
    options.receive_size = size;
    options.endpoint_receives = each;
    const auto device = LaneDevice::Open(loop().core(), lanes().fabric(), options);
    EXPECT_TRUE(absl::IsInvalidArgument(device.status())) << device.status();
  }
  RdmaDeviceOptions unknown;
  unknown.name = "nowhere";
  EXPECT_TRUE(
      absl::IsNotFound(LaneDevice::Open(loop().core(), lanes().fabric(), unknown).status()));
}

INSTANTIATE_TEST_SUITE_P(Lanes, EndpointLaneTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);

// Many at once, where time costs nothing.
class EndpointCrowdTest : public EndpointLaneTest {};

TEST_P(EndpointCrowdTest, FiveHundredConnectAtOnceAndNoneStalls) {
  constexpr int kCount = 500;
  RdmaOptions options = Quiet();
  options.device = Small(2 * kCount * 10, 2);
  std::vector<RdmaEndpoints> all;
  for (int i = 0; i < kCount; ++i) all.push_back(Endpoints(options, options));
  std::deque<Fate> fates;
  for (RdmaEndpoints& both : all) {
    both.active->Send(Chain("up"), fates.emplace_back().OnDone());
    both.passive->Send(Chain("down"), fates.emplace_back().OnDone());
  }
  const absl::Time began = loop().now();
  ASSERT_TRUE(Drive([&] {
    for (const Fate& fate : fates) {
      if (!fate.ended()) return false;
    }
    return true;
  }));
  for (const Fate& fate : fates) EXPECT_TRUE(fate.status().ok()) << fate.status();
  for (RdmaEndpoints& both : all) ExpectOverDevice(both, true);
  EXPECT_EQ(lanes().fabric().stats().timeouts, 0u);
  EXPECT_EQ(lanes().fabric().stats().not_ready_naks, 0u);
  // One that had sent too early would have waited 67 ms.
  EXPECT_LT(loop().now() - began, absl::Milliseconds(60));
}

TEST_P(EndpointCrowdTest, TenThousandIdleEndpointsPinTheBankAndNoMore) {
  const int count = Scaled(5'000);
  RdmaOptions options = Quiet();
  RdmaOptions passive = Quiet();
  const uint64_t other = lanes().fabric().receive_bytes_posted();
  // One device has not so many receives.
  options.device = Small(static_cast<uint32_t>(count) * 10, 2, "fake0");
  passive.device = Small(static_cast<uint32_t>(count) * 10, 2, "fake1");
  const uint64_t bank = lanes().fabric().receive_bytes_posted() - other;
  EXPECT_EQ(bank, static_cast<uint64_t>(count) * 20 * 512);
  std::vector<RdmaEndpoints> all;
  for (int i = 0; i < count; ++i) {
    all.push_back(Endpoints(options, passive));
    all.back().active->Send(Chain("hello"));
  }
  ASSERT_TRUE(Drive([&] { return all.back().active->stats().messages_sent == 1; }));
  Settle();
  for (RdmaEndpoints& both : all) {
    ExpectOverDevice(both, true);
    EXPECT_EQ(*Receive(*both.passive), "hello");
  }
  Settle();
  EXPECT_EQ(lanes().fabric().receive_bytes_posted() - other, bank);
  EXPECT_EQ(loop().Snapshot().pool.live, 0u);
}

INSTANTIATE_TEST_SUITE_P(Simulated, EndpointBreakTest,
                         ::testing::ValuesIn(SimulatedLaneEnvironments()), EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Simulated, EndpointCrowdTest,
                         ::testing::ValuesIn(SimulatedLaneEnvironments()), EnvironmentName);

}  // namespace
}  // namespace penstock::internal
