// RdmaEndpoint with several lanes: all of them or none, what is spread over them comes together,
// and one that fails takes the others along.
#include <penstock/rdma.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "testing/pattern.h"
#include "testing/rdma_pair.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;
using testing::FakePacket;
using testing::FakePacketKind;

constexpr uint64_t kStripe = 64 * 1024;

class EndpointStripingTest : public RdmaHarness {
 protected:
  static RdmaOptions With(uint32_t lanes) {
    RdmaOptions options = Quiet();
    options.lanes = lanes;
    return options;
  }
  // The lane that a request goes by, of so many.
  static size_t LaneOf(const FakePacket& packet, size_t lanes) {
    return packet.op == FabricOp::kSend ? 0 : packet.remote_address / kStripe % lanes;
  }
  void ExpectLanes(RdmaEndpoints& both, uint32_t lanes) {
    for (RdmaEndpoint* endpoint : {both.active.get(), both.passive.get()}) {
      EXPECT_EQ(endpoint->stats().lanes, lanes) << endpoint->stats().fallback;
      EXPECT_EQ(endpoint->stats().over_device, lanes > 0);
    }
  }
  // The active side writes and reads what the passive one exposes, and both send.
  void ExpectWork(RdmaEndpoints& both, uint64_t seed) {
    std::vector<char> memory(700'000);
    absl::StatusOr<RdmaRegion> region = both.passive->Expose(memory, RdmaAccess::kReadWrite);
    const absl::StatusOr<RdmaRemoteRegion> remote = AwaitRegion(*both.active);
    ASSERT_TRUE(region.ok() && remote.ok());
    const std::string bytes = PatternBytes(seed, 0, 600'000);
    Fate written, sent;
    both.active->WriteThenSend(*remote, 77, Chain(bytes), Chain("written"), written.OnDone());
    const absl::StatusOr<std::string> news = Receive(*both.passive);
    ASSERT_TRUE(news.ok()) << news.status();
    EXPECT_EQ(*news, "written");
    EXPECT_TRUE(std::string(memory.data() + 77, bytes.size()) == bytes);
    EXPECT_TRUE(Await(written).ok()) << written.status();
    const absl::StatusOr<std::string> read = Read(*both.active, *remote, 100, 500'000);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(*read == bytes.substr(23, 500'000));
    both.passive->Send(Chain("back"), sent.OnDone());
    EXPECT_EQ(*Receive(*both.active), "back");
    EXPECT_TRUE(Await(sent).ok()) << sent.status();
    Fate revoked;
    region->Revoke(revoked.OnDone());
    EXPECT_TRUE(Await(revoked).ok()) << revoked.status();
  }
};

// Where waiting for a device's timeouts costs nothing.
class EndpointStripingBreakTest : public EndpointStripingTest {};

TEST_P(EndpointStripingTest, BothHaveAsManyAsTheOneThatHasFewer) {
  for (const auto& [active, passive] :
       {std::pair{1, 3}, std::pair{3, 1}, std::pair{2, 2}, std::pair{8, 5}, std::pair{8, 8}}) {
    RdmaEndpoints both =
        OpenEndpoints(With(static_cast<uint32_t>(active)), With(static_cast<uint32_t>(passive)));
    ExpectLanes(both, static_cast<uint32_t>(std::min(active, passive)));
    ExpectWork(both, static_cast<uint64_t>(active));
    both = {};
    ASSERT_TRUE(Drive([&] { return lanes().fabric().queue_pairs() == 0; }));
  }
}

TEST_P(EndpointStripingTest, OtherNumbersAreRefused) {
  for (const uint32_t count : {0u, 9u}) {
    RdmaEndpoints both = Endpoints(With(count), Quiet());
    const absl::Status status = Open(*both.active);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_NE(status.message().find(absl::StrCat("lanes is ", count, ", must be 1 to 8")),
              absl::string_view::npos)
        << status;
    EXPECT_FALSE(Open(*both.passive).ok());
  }
  EXPECT_EQ(lanes().fabric().stats().packets, 0u);
}

TEST_P(EndpointStripingTest, EveryLaneHasItsPart) {
  constexpr uint32_t kLanes = 4;
  RdmaEndpoints both = OpenEndpoints(With(kLanes), With(kLanes));
  std::set<uint32_t> writes, sends;
  size_t slices = 0;
  lanes().fabric().set_drop([&](const FakePacket& packet) {
    if (packet.kind != FakePacketKind::kRequest) return false;
    (packet.op == FabricOp::kSend ? sends : writes).insert(packet.to_number);
    slices += packet.op == FabricOp::kWrite ? 1 : 0;
    return false;
  });
  ExpectWork(both, 1);
  EXPECT_EQ(writes.size(), kLanes);
  EXPECT_GE(slices, 600'000 / kStripe);
  EXPECT_LE(slices, 600'000 / kStripe + 2);
  EXPECT_EQ(sends.size(), 2u) << "one for each direction";
  lanes().fabric().set_drop(nullptr);
}

// The promise of the gate, for all lanes together.
TEST_P(EndpointStripingTest, NothingIsPostedBeforeEveryLaneOfBothIsUp) {
  int up = 0, up_at_first_post = -1;
  lanes().fabric().set_on_call([&](FakeCall call) {
    if (call == FakeCall::kToReadyToSend) ++up;
    if (call == FakeCall::kPostSend && up_at_first_post < 0) up_at_first_post = up;
  });
  RdmaEndpoints both = Endpoints(With(3), With(3));
  Fate sent[2];
  both.active->Send(Chain("one"), sent[0].OnDone());
  both.passive->Send(Chain("two"), sent[1].OnDone());
  for (Fate& fate : sent) EXPECT_TRUE(Await(fate).ok()) << fate.status();
  EXPECT_EQ(up_at_first_post, 6);
  EXPECT_EQ(lanes().fabric().stats().dropped_early, 0u);
  lanes().fabric().set_on_call(nullptr);
}

// Whichever lane of whichever side it is, and whatever the others have come to: no lane is used.
TEST_P(EndpointStripingTest, OneThatDoesNotComeUpLeavesTheStreamToBoth) {
  for (const FakeCall call : {FakeCall::kToReadyToReceive, FakeCall::kToReadyToSend}) {
    // The first three are the passive side's.
    for (uint64_t nth = 1; nth <= 6; ++nth) {
      lanes().fabric().FailNth(call, nth, EINVAL);
      RdmaEndpoints both = OpenEndpoints(With(3), With(3));
      lanes().fabric().FailNth(call, 0, 0);
      ExpectLanes(both, 0);
      const RdmaEndpoint& failed = nth <= 3 ? *both.passive : *both.active;
      EXPECT_FALSE(failed.stats().fallback.empty());
      ExpectWork(both, nth);
      EXPECT_EQ(lanes().fabric().stats().packets, 0u);
      both = {};
      ASSERT_TRUE(Drive([&] { return lanes().fabric().queue_pairs() == 0; }));
    }
  }
}

TEST_P(EndpointStripingTest, CloseWaitsForEveryLane) {
  RdmaEndpoints both = OpenEndpoints(With(5), With(5));
  std::vector<char> memory(3'000'000);
  absl::StatusOr<RdmaRegion> region = both.passive->Expose(memory, RdmaAccess::kWrite);
  const absl::StatusOr<RdmaRemoteRegion> remote = AwaitRegion(*both.active);
  ASSERT_TRUE(region.ok() && remote.ok());
  const std::string bytes = PatternBytes(4, 0, memory.size());
  Fate written, closed;
  both.active->Write(*remote, 0, Chain(bytes), written.OnDone());
  both.active->Close(closed.OnDone());
  EXPECT_TRUE(Await(closed).ok()) << closed.status();
  EXPECT_TRUE(written.ended() && written.status().ok());
  EXPECT_TRUE(std::string(memory.data(), memory.size()) == bytes);
  const absl::Status end = Receive(*both.passive).status();
  EXPECT_TRUE(IsEof(end)) << end;
}

// Each lane, after each number of its packets: everything is done once, over the stream in the end.
TEST_P(EndpointStripingBreakTest, ALaneThatDiesTakesTheOthersAlongAndLosesNothing) {
  constexpr size_t kLanes = 3;
  for (size_t lane = 0; lane < kLanes; ++lane) {
    for (uint64_t packets = 0; packets < 4; ++packets) {
      RdmaEndpoints both = OpenEndpoints(With(kLanes), With(kLanes));
      ExpectLanes(both, kLanes);
      uint64_t left = packets;
      lanes().fabric().set_drop([&](const FakePacket& packet) {
        if (packet.kind != FakePacketKind::kRequest || LaneOf(packet, kLanes) != lane) return false;
        return left == 0 || left-- == 0;
      });
      ExpectWork(both, lane * 10 + packets);
      ASSERT_TRUE(Drive([&] { return !both.active->stats().over_device; }));
      ASSERT_TRUE(Drive([&] { return !both.passive->stats().over_device; }));
      EXPECT_FALSE(both.active->stats().fallback.empty());
      lanes().fabric().set_drop(nullptr);
      ExpectWork(both, lane);
      const RdmaStats stats = both.active->stats();
      EXPECT_EQ(stats.reads, 2u);
      EXPECT_EQ(stats.writes, 2u);
      EXPECT_EQ(stats.messages_sent, 2u);
      EXPECT_EQ(stats.messages_received, 2u);
      EXPECT_EQ(stats.operations_posted, 0u);
      both = {};
      ASSERT_TRUE(Drive([&] { return lanes().fabric().queue_pairs() == 0; }));
    }
  }
}

// A message never comes before the write that it is the news of, though another lane than its own
// loses that for a while or for good.
TEST_P(EndpointStripingBreakTest, NewsOfAWriteWaitForTheSlowestLane) {
  constexpr size_t kLanes = 4;
  for (uint64_t round = 0; round < 12; ++round) {
    RdmaEndpoints both = OpenEndpoints(With(kLanes), With(kLanes));
    std::vector<char> memory(400'000);
    absl::StatusOr<RdmaRegion> region = both.passive->Expose(memory, RdmaAccess::kWrite);
    const absl::StatusOr<RdmaRemoteRegion> remote = AwaitRegion(*both.active);
    ASSERT_TRUE(region.ok() && remote.ok());
    const size_t lane = round % kLanes;
    // Once, for a timeout, or for ever.
    const uint64_t lost = round < 4 ? 1 : round < 8 ? 8 : UINT64_MAX;
    uint64_t left = lost;
    lanes().fabric().set_drop([&](const FakePacket& packet) {
      const bool hit = packet.kind == FakePacketKind::kRequest && LaneOf(packet, kLanes) == lane;
      return hit && left > 0 && left-- > 0;
    });
    for (uint64_t i = 0; i < 5; ++i) {
      const std::string bytes = PatternBytes(round * 10 + i, 0, memory.size());
      both.active->WriteThenSend(*remote, 0, Chain(bytes), Chain(absl::StrCat(i)));
      EXPECT_EQ(*Receive(*both.passive), absl::StrCat(i));
      EXPECT_TRUE(std::string(memory.data(), memory.size()) == bytes) << round << " " << i;
    }
    lanes().fabric().set_drop(nullptr);
  }
}

INSTANTIATE_TEST_SUITE_P(Lanes, EndpointStripingTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Simulated, EndpointStripingBreakTest,
                         ::testing::ValuesIn(SimulatedLaneEnvironments()), EnvironmentName);

}  // namespace
}  // namespace penstock::internal
