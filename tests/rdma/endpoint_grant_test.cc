// Receives that idle endpoints give back to the bank, and take again when something comes.
#include <penstock/rdma.h>

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "rdma/control_codec.h"
#include "rdma/lane.h"
#include "rdma/lane_hub.h"
#include "rdma/lane_window.h"
#include "testing/hostile_harness.h"
#include "testing/sim_random.h"

namespace penstock::internal {
namespace {

constexpr uint32_t kDepth = 16;
constexpr uint32_t kWhole = kDepth + LaneWindow::kSpare;
constexpr uint32_t kIdle = LaneWindow::kIdleGrant;

class EndpointGrantTest : public RdmaHarness {
 protected:
  void TearDown() override {
    options_ = {};
    RdmaHarness::TearDown();
  }
  // Both ends of endpoints are of this device.
  void MakeBank(uint32_t receives) {
    RdmaDeviceOptions device;
    device.receives = receives;
    device.receive_size = 512;
    device.endpoint_receives = kDepth;
    options_ = Quiet();
    options_.device = lanes().NewDevice(device);
    options_.ping_interval = absl::Milliseconds(20);
    // Only the lanes' traffic is of interest.
    options_.pings_missed_max = 1'000'000;
  }
  uint32_t Available() {
    return (*static_cast<LaneDevice&>(*options_.device).HubFor(loop().core()))->available();
  }
  // Messages one way, each checked.
  struct Talk {
    Talk(RdmaEndpoint& sender, RdmaEndpoint& receiver) : from(sender), to(receiver) { Next(); }
    void Next() {
      to.Receive([this](absl::StatusOr<BufferChain> message) {
        if (!message.ok()) return;
        EXPECT_EQ(message->ToString(), absl::StrCat("message ", received));
        ++received;
        Next();
      });
    }
    RdmaEndpoint& from;
    RdmaEndpoint& to;
    uint64_t sent = 0;
    uint64_t received = 0;
  };
  void Start(Talk& talk, uint64_t messages) {
    for (; messages > 0; --messages) talk.from.Send(Chain(absl::StrCat("message ", talk.sent++)));
  }

  RdmaOptions options_;
};

TEST_P(EndpointGrantTest, IdleEndpointsGiveReceivesBackAndTakeThemAgain) {
  MakeBank(200);
  RdmaEndpoints both = OpenEndpoints(options_, options_);
  EXPECT_EQ(Available(), 200 - 2 * kWhole);
  Talk there(*both.active, *both.passive);
  Talk back(*both.passive, *both.active);
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(Drive([&] { return Available() == 200 - 2 * kIdle; })) << Available();
    // More than may be on the way to an idle one.
    Start(there, 60);
    ASSERT_TRUE(Drive([&] { return there.received == there.sent; }));
    ASSERT_TRUE(Drive([&] { return Available() == 200 - 2 * kIdle; })) << Available();
    Start(back, 5);
    Start(there, 5);
    ASSERT_TRUE(Drive([&] { return there.received == there.sent && back.received == back.sent; }));
  }
  EXPECT_TRUE(both.active->stats().over_device && both.passive->stats().over_device);
  EXPECT_EQ(lanes().fabric().stats().not_ready_naks, 0u);
  both = {};
  ASSERT_TRUE(Drive([&] { return Available() == 200; }));
}

// One that could not have its receives again goes on with few, and new ones find room.
TEST_P(EndpointGrantTest, AWholeBankServesMoreEndpointsThanItHasRoomForAtOnce) {
  constexpr uint32_t kBank = 4 * kWhole;
  MakeBank(kBank);
  std::vector<RdmaEndpoints> all;
  std::deque<Talk> talks;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t idle = 2 * i * kIdle;
    ASSERT_TRUE(Drive([&] { return Available() == kBank - idle; })) << i;
    if (Available() < 2 * kWhole) break;
    all.push_back(OpenEndpoints(options_, options_));
    EXPECT_TRUE(all.back().active->stats().over_device) << all.back().active->stats().fallback;
  }
  ASSERT_GE(all.size(), 3u) << "two would have taken the whole bank";
  for (RdmaEndpoints& both : all) {
    talks.emplace_back(*both.active, *both.passive);
    talks.emplace_back(*both.passive, *both.active);
  }
  for (int round = 0; round < 4; ++round) {
    for (Talk& talk : talks) Start(talk, 40);
    ASSERT_TRUE(Drive([&] {
      for (const Talk& talk : talks) {
        if (talk.received != talk.sent) return false;
      }
      return true;
    }));
  }
  EXPECT_LE(Available(), kBank);
  EXPECT_EQ(lanes().fabric().stats().not_ready_naks, 0u);
  for (RdmaEndpoints& both : all) EXPECT_TRUE(both.passive->stats().over_device);
}

// Quiet for moments only: what is asked, answered and taken again crosses messages in every way.
TEST_P(EndpointGrantTest, TrafficThatComesAndGoesLosesNothing) {
  MakeBank(5 * kIdle + kWhole);
  options_.ping_interval = absl::Milliseconds(1);
  RdmaEndpoints both = OpenEndpoints(options_, options_);
  Talk there(*both.active, *both.passive);
  Talk back(*both.passive, *both.active);
  testing::SimRandom random(11);
  for (int round = 0; round < 150; ++round) {
    Start(random.Below(2) == 0 ? there : back, random.Below(round % 10 == 0 ? 80 : 4));
    if (random.Below(3) != 0) {
      const absl::Time until = loop().now() + absl::Microseconds(random.Below(4'000));
      Fate passed;
      Timer timer(loop());
      timer.Arm(until - loop().now(),
                [done = passed.OnDone()]() mutable { std::move(done)(absl::OkStatus()); });
      Await(passed).IgnoreError();
    }
  }
  ASSERT_TRUE(Drive([&] { return there.received == there.sent && back.received == back.sent; }));
  ASSERT_TRUE(Drive([&] { return Available() == 3 * kIdle + kWhole; })) << Available();
  EXPECT_EQ(lanes().fabric().stats().not_ready_naks, 0u);
  EXPECT_TRUE(both.active->stats().over_device) << both.active->stats().fallback;
}

INSTANTIATE_TEST_SUITE_P(Lanes, EndpointGrantTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);

// A peer that answers, or asks, as the test wants.
class HostileGrantTest : public HostileHarness, private Lane::Owner {
 protected:
  void TearDown() override {
    Leave();
    HostileHarness::TearDown();
  }
  // What OpenWith has made, in order.
  void Leave() {
    peer_ = nullptr;
    endpoint_ = nullptr;
    lane_ = nullptr;
    hub_ = nullptr;
    device_ = nullptr;
  }
  void OpenWith(uint64_t features, uint32_t depth = kDepth) {
    device_ = *lanes().fabric().Open("fake1");
    LaneHub::Options hub;
    hub.receives = 64;
    hub_ = *LaneHub::Create(loop().core(), *device_, hub);
    lane_ = *Lane::Create(*hub_, *this, 5, kWhole);
    RdmaOptions options = Quiet();
    options.ping_interval = absl::Milliseconds(20);
    options.pings_missed_max = 1'000'000;
    options.receive_depth = kDepth;
    OpenWithAnswer(
        [this, depth](const ControlHello& hello) -> GateOffer {
          EXPECT_TRUE(lane_->BringUp(hello.lanes.front(), hello.terms.read_depth).ok());
          return {.lanes = {lane_->address()},
                  .terms = {.depth = depth, .size = 8192, .read_depth = 2}};
        },
        options, features);
  }
  void Say(uint32_t receives, bool reply) {
    peer_->Send(EncodeControl(ControlGrant{.reply = reply, .receives = receives}));
  }
  void SendPiece(uint32_t piece) {
    MessageHeader header = Header(MessageType::kMessage, piece);
    header.credits = kDepth;
    std::array<char, kMessageHeaderSize> bytes;
    EncodeMessageHeader(header, bytes);
    lane_->Send({bytes.data(), bytes.size()}, {});
  }
  bool Asked() {
    return Drive([this] { return peer_->Last<ControlGrant>() != nullptr; });
  }

  std::unique_ptr<FabricDevice> device_;
  std::unique_ptr<LaneHub> hub_;
  std::unique_ptr<Lane> lane_;

 private:
  void OnLaneMessage(Buffer) override {}
  void OnLaneRoom() override {}
  void OnLaneDone(uint64_t, RdmaOutcome, BufferChain) override {}
  void OnLaneEnd(absl::Status) override {}
};

TEST_P(HostileGrantTest, IsAskedOnceAndMayRefuse) {
  OpenWith(kFeatureGrants);
  ASSERT_TRUE(Asked());
  EXPECT_EQ(*peer_->Last<ControlGrant>(), (ControlGrant{.reply = false, .receives = kIdle}));
  const uint64_t pings = endpoint_->stats().pings;
  ASSERT_TRUE(Drive([&] { return endpoint_->stats().pings > pings + 3; }));
  EXPECT_EQ(peer_->Count<ControlGrant>(), 1u);
  Say(kWhole, true);
  ASSERT_TRUE(Drive([&] { return peer_->Count<ControlGrant>() == 2; })) << "it has not given up";
  // The peer may have as many on the way as ever.
  for (uint32_t piece = 1; piece <= kDepth; ++piece) SendPiece(piece);
  for (uint32_t piece = 1; piece <= kDepth; ++piece) EXPECT_TRUE(Receive(*endpoint_).ok());
  EXPECT_TRUE(endpoint_->stats().over_device);
}

// A depth beyond what acknowledgements can count: what is more is not used.
TEST_P(HostileGrantTest, MayHaveGrantedMoreThanIsUsed) {
  OpenWith(kFeatureGrants, UINT32_MAX);
  for (const uint32_t receives : {UINT32_MAX - 1, 40'000u, kIdle}) {
    Say(receives, false);
    ASSERT_TRUE(Drive([this, receives] {
      const auto* last = peer_->Last<ControlGrant>();
      return last != nullptr && *last == ControlGrant{.reply = true, .receives = receives};
    })) << receives;
  }
  Say(50'000, false);
  endpoint_->Send(Chain("still open"));
  Settle();
  EXPECT_TRUE(endpoint_->stats().over_device);
}

TEST_P(HostileGrantTest, IsNotAskedWithoutTheFeature) {
  OpenWith(0);
  ASSERT_TRUE(Drive([this] { return endpoint_->stats().pings > 3; }));
  EXPECT_EQ(peer_->Last<ControlGrant>(), nullptr);
  Say(kIdle, false);
  ExpectViolation();
}

TEST_P(HostileGrantTest, WhatItGrantsHoldsAndIsAnswered) {
  OpenWith(kFeatureGrants);
  Say(kIdle, false);
  ASSERT_TRUE(Drive([this] {
    const auto* last = peer_->Last<ControlGrant>();
    return last != nullptr && last->reply;
  }));
  EXPECT_EQ(peer_->Last<ControlGrant>()->receives, kIdle);
  // It is never told that anything has come.
  for (uint32_t i = 0; i < kDepth; ++i) endpoint_->Send(Chain("x"));
  Settle();
  EXPECT_EQ(endpoint_->stats().operations_posted, kIdle - LaneWindow::kSpare / 2);
  // Fewer are on the way than before: nothing to answer, and room for the rest.
  Say(kWhole, false);
  ASSERT_TRUE(Drive([this] { return endpoint_->stats().operations_posted == kDepth; }));
  // More are on the way than it would have: it is told what holds.
  Say(kIdle, false);
  ASSERT_TRUE(Drive([this] {
    const auto* last = peer_->Last<ControlGrant>();
    return last != nullptr && last->reply && last->receives == kWhole;
  }));
}

TEST_P(HostileGrantTest, GrantsThatCannotBe) {
  for (const uint32_t receives : {0u, kIdle - 1, kWhole + 1, UINT32_MAX}) {
    OpenWith(kFeatureGrants);
    Say(receives, false);
    ExpectViolation();
    Leave();
  }
}

TEST_P(HostileGrantTest, AnswersThatCannotBe) {
  for (const uint32_t receives : {kIdle, kWhole, kIdle + 1}) {
    OpenWith(kFeatureGrants);
    ASSERT_TRUE(Asked());
    // An answer to nothing, or to another question.
    if (receives != kIdle + 1) Say(kIdle, true);
    Say(receives, true);
    ExpectViolation();
    Leave();
  }
}

TEST_P(HostileGrantTest, IsToldWhenMoreMayComeAgain) {
  OpenWith(kFeatureGrants);
  ASSERT_TRUE(Asked());
  Say(kIdle, true);
  Settle();
  EXPECT_EQ(peer_->Last<ControlGrant>()->receives, kIdle);
  SendPiece(1);
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlGrant>()->receives == kWhole; }));
  EXPECT_FALSE(peer_->Last<ControlGrant>()->reply);
}

INSTANTIATE_TEST_SUITE_P(Lanes, HostileGrantTest, ::testing::ValuesIn(SimulatedLaneEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
