// How endpoints open: with peers that say less, and when many come at once.
#include <penstock/rdma.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/raw_peer.h"
#include "testing/rdma_pair.h"

namespace penstock::internal {
namespace {

class EndpointOpeningTest : public RdmaHarness {
 protected:
  void TearDown() override {
    peer_ = nullptr;
    endpoint_ = nullptr;
    RdmaHarness::TearDown();
  }

  // --- Peers without READY ---
  static RdmaOptions WithPolicy(RdmaReadyPolicy policy) {
    RdmaOptions options = Quiet();
    options.ready_policy = policy;
    return options;
  }
  static GateOptions OldPeer(GateRole role) {
    GateOptions options = RawPeer::Options(role);
    options.features &= ~kFeatureReady;
    options.policy = RdmaReadyPolicy::kOpenAtOnce;
    return options;
  }
  static GateOffer StreamOffer() {
    return {.lanes = {}, .terms = {.depth = 4, .size = kStreamPieceMax, .read_depth = 2}};
  }
  void ConnectToOldPeer(RdmaReadyPolicy policy) {
    StreamPair streams = Pair();
    endpoint_ = RdmaEndpoint::Connect(std::move(streams.client), WithPolicy(policy));
    peer_ = std::make_unique<RawPeer>(std::move(streams.server), OldPeer(GateRole::kPassive),
                                      StreamOffer());
  }
  void AcceptOldPeer(RdmaReadyPolicy policy) {
    StreamPair streams = Pair();
    endpoint_ = RdmaEndpoint::Accept(std::move(streams.server), WithPolicy(policy));
    peer_ = std::make_unique<RawPeer>(std::move(streams.client), OldPeer(GateRole::kActive),
                                      StreamOffer());
  }
  void SendFromPeer(std::string_view text) {
    peer_->SendData({.type = MessageType::kMessage,
                     .flags = kMessageLast,
                     .tag = peer_->tag(),
                     .sequence = 1,
                     .credits = 4},
                    text);
  }

  std::unique_ptr<RdmaEndpoint> endpoint_;
  std::unique_ptr<RawPeer> peer_;
};

TEST_P(EndpointOpeningTest, APeerWithoutReadyIsRefusedUnlessToldOtherwise) {
  ConnectToOldPeer(RdmaReadyPolicy::kRequire);
  absl::Status status = Open(*endpoint_);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  AcceptOldPeer(RdmaReadyPolicy::kRequire);
  status = Open(*endpoint_);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  ASSERT_TRUE(Drive([this] { return peer_->ended(); }));
  ASSERT_NE(peer_->Last<ControlReject>(), nullptr);
  EXPECT_EQ(peer_->Last<ControlReject>()->code, RejectCode::kFeature);
}

TEST_P(EndpointOpeningTest, APeerThatSendsFirstIsWaitedFor) {
  AcceptOldPeer(RdmaReadyPolicy::kOpenOnFirstData);
  Fate sent;
  endpoint_->Send(Chain("held back"), sent.OnDone());
  ASSERT_TRUE(Drive([this] { return peer_->open(); }));
  Settle();
  EXPECT_FALSE(endpoint_->stats().open);
  EXPECT_TRUE(peer_->data().empty());
  SendFromPeer("first");
  EXPECT_EQ(*Receive(*endpoint_), "first");
  EXPECT_TRUE(endpoint_->stats().open);
  EXPECT_TRUE(Drive([this] { return !peer_->data().empty(); }));
  EXPECT_FALSE(sent.ended()) << "nobody has acknowledged it";
}

TEST_P(EndpointOpeningTest, ARegionShowsThatAPeerWithoutReadyIsOpen) {
  AcceptOldPeer(RdmaReadyPolicy::kOpenOnFirstData);
  ASSERT_TRUE(Drive([this] { return peer_->open(); }));
  peer_->Send(EncodeControl(ControlRegion{.length = 64, .access = kRegionRead}));
  const absl::Status status = Open(*endpoint_);
  EXPECT_TRUE(status.ok()) << status;
}

TEST_P(EndpointOpeningTest, APeerThatNeverSendsIsNotWaitedForForEver) {
  RdmaOptions options = WithPolicy(RdmaReadyPolicy::kOpenOnFirstData);
  options.ready_deadline = absl::Milliseconds(20);
  StreamPair streams = Pair();
  endpoint_ = RdmaEndpoint::Accept(std::move(streams.server), options);
  peer_ = std::make_unique<RawPeer>(std::move(streams.client), OldPeer(GateRole::kActive),
                                    StreamOffer());
  const absl::Status status = Open(*endpoint_);
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
}

TEST_P(EndpointOpeningTest, AnEndpointMayOpenAtOnce) {
  AcceptOldPeer(RdmaReadyPolicy::kOpenAtOnce);
  endpoint_->Send(Chain("early"));
  EXPECT_TRUE(Open(*endpoint_).ok());
  EXPECT_TRUE(Drive([this] { return !peer_->data().empty(); }));
}

// It has ACCEPT, which is sent when the peer is ready.
TEST_P(EndpointOpeningTest, TheActiveSideNeedsNoReadyOfThePeer) {
  for (const auto policy : {RdmaReadyPolicy::kOpenOnFirstData, RdmaReadyPolicy::kOpenAtOnce}) {
    ConnectToOldPeer(policy);
    endpoint_->Send(Chain("at once"));
    EXPECT_TRUE(Open(*endpoint_).ok());
    EXPECT_TRUE(Drive([this] { return !peer_->data().empty(); }));
    EXPECT_EQ(peer_->Last<ControlReady>(), nullptr);
  }
}

INSTANTIATE_TEST_SUITE_P(Environments, EndpointOpeningTest, ::testing::ValuesIn(RdmaEnvironments()),
                         EnvironmentName);

// Many at once.
class EndpointStormTest : public EndpointOpeningTest {
 protected:
  std::shared_ptr<RdmaDevice> Narrow(uint32_t openings, uint32_t waiting) {
    RdmaDeviceOptions options;
    options.receives = 4096;
    options.receive_size = 512;
    options.endpoint_receives = 2;
    options.openings_max = openings;
    options.openings_waiting_max = waiting;
    options.retry_after = absl::Milliseconds(40);
    return lanes().NewDevice(options);
  }
};

TEST_P(EndpointStormTest, WhoFindsTheLineFullIsToldWhenToComeAgain) {
  RdmaOptions passive = Quiet();
  passive.device = Narrow(2, 3);
  std::vector<std::unique_ptr<RdmaEndpoint>> holders;
  std::vector<std::unique_ptr<RawPeer>> mutes;
  for (int i = 0; i < 2; ++i) {
    StreamPair streams = Pair();
    holders.push_back(RdmaEndpoint::Accept(std::move(streams.server), passive));
    mutes.push_back(RawPeer::Mute(std::move(streams.client)));
  }
  ASSERT_TRUE(Drive([&] { return passive.device->stats().openings == 2; }));
  std::vector<RdmaEndpoints> all;
  std::deque<Fate> fates;
  for (int i = 0; i < 7; ++i) {
    all.push_back(Endpoints(Quiet(), passive));
    all.back().active->NotifyOpen(fates.emplace_back().OnDone());
  }
  const auto ended = [&] {
    return std::count_if(fates.begin(), fates.end(), [](const Fate& fate) { return fate.ended(); });
  };
  ASSERT_TRUE(Drive([&] { return ended() == 4; }));
  EXPECT_EQ(passive.device->stats().openings_waiting, 3u);
  EXPECT_EQ(passive.device->stats().openings_refused, 4u);
  absl::Duration longest;
  for (size_t i = 0; i < all.size(); ++i) {
    if (!fates[i].ended()) continue;
    EXPECT_TRUE(absl::IsUnavailable(fates[i].status())) << fates[i].status();
    EXPECT_GE(all[i].active->retry_after(), absl::Milliseconds(40));
    EXPECT_LE(all[i].active->retry_after(), absl::Milliseconds(320));
    longest = std::max(longest, all[i].active->retry_after());
    const absl::Status other = Open(*all[i].passive);
    EXPECT_TRUE(absl::IsUnavailable(other)) << other;
  }
  EXPECT_GT(longest, absl::Milliseconds(40)) << "each after the first a little later";
  // Those in line get their turn.
  holders.clear();
  ASSERT_TRUE(Drive([&] { return ended() == 7; }));
  int open = 0;
  for (RdmaEndpoints& both : all) {
    if (both.active->stats().over_device) ++open;
  }
  EXPECT_EQ(open, 3);
  ASSERT_TRUE(Drive([&] { return passive.device->stats().openings == 0; }));
  EXPECT_EQ(passive.device->stats().openings_waiting, 0u);
  EXPECT_EQ(passive.device->stats().openings_admitted, 5u);
  // There is room again.
  all.push_back(OpenEndpoints(Quiet(), passive));
  EXPECT_TRUE(all.back().passive->stats().over_device);
}

// However a peer that holds a place goes, the next in line has it.
TEST_P(EndpointStormTest, APlaceIsGivenBackHoweverTheOpeningEnds) {
  RdmaOptions passive = Quiet();
  passive.device = Narrow(1, 8);
  uint64_t admitted = 0;
  for (const char way : {'d', 'p', 's'}) {
    StreamPair streams = Pair();
    // The deadline for READY passes in the second round, perhaps before anybody waits.
    RdmaOptions options = passive;
    if (way == 'p') options.ready_deadline = absl::Milliseconds(20);
    auto holder = RdmaEndpoint::Accept(std::move(streams.server), options);
    auto mute = RawPeer::Mute(std::move(streams.client));
    ASSERT_TRUE(Drive([&] { return passive.device->stats().openings_admitted == admitted + 1; }));
    RdmaEndpoints next = Endpoints(Quiet(), passive);
    if (way != 'p') {
      ASSERT_TRUE(Drive([&] { return passive.device->stats().openings_waiting == 1; }));
    }
    if (way == 'd') holder = nullptr;
    if (way == 's') mute = nullptr;
    EXPECT_TRUE(Open(*next.active).ok());
    EXPECT_TRUE(Open(*next.passive).ok());
    EXPECT_TRUE(next.passive->stats().over_device);
    admitted += 2;
    EXPECT_EQ(passive.device->stats().openings_admitted, admitted);
    ASSERT_TRUE(Drive([&] { return passive.device->stats().openings == 0; }));
    next = {};
    holder = nullptr;
    mute = nullptr;
  }
}

TEST_P(EndpointStormTest, OneThatWaitsMayGo) {
  RdmaOptions passive = Quiet();
  passive.device = Narrow(1, 8);
  StreamPair streams = Pair();
  auto holder = RdmaEndpoint::Accept(std::move(streams.server), passive);
  auto mute = RawPeer::Mute(std::move(streams.client));
  ASSERT_TRUE(Drive([&] { return passive.device->stats().openings == 1; }));
  RdmaEndpoints gone = Endpoints(Quiet(), passive);
  RdmaEndpoints next = Endpoints(Quiet(), passive);
  ASSERT_TRUE(Drive([&] { return passive.device->stats().openings_waiting == 2; }));
  gone.passive = nullptr;
  EXPECT_EQ(passive.device->stats().openings_waiting, 1u);
  EXPECT_FALSE(Open(*gone.active).ok());
  holder = nullptr;
  EXPECT_TRUE(Open(*next.active).ok());
}

INSTANTIATE_TEST_SUITE_P(Lanes, EndpointStormTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
