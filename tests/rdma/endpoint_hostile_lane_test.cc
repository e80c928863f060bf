// What a peer may do wrong with its lane: the endpoint tells it so, and ends.
#include <penstock/rdma.h>

#include <array>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "rdma/control_codec.h"
#include "rdma/exposed_memory.h"
#include "rdma/lane.h"
#include "rdma/lane_hub.h"
#include "rdma/lane_window.h"
#include "rdma/message_header.h"
#include "testing/fate.h"
#include "testing/hostile_harness.h"

namespace penstock::internal {
namespace {

using testing::FakePacket;
using testing::FakePacketKind;

// A peer whose lane sends what the test wants.
class EndpointHostileLaneTest : public HostileHarness, private Lane::Owner {
 protected:
  void TearDown() override {
    if (has_lanes()) lanes().fabric().set_drop(nullptr);
    peer_ = nullptr;
    endpoint_ = nullptr;
    lane_ = nullptr;
    second_ = nullptr;
    exposed_ = ExposedMemory();
    hub_ = nullptr;
    device_ = nullptr;
    HostileHarness::TearDown();
  }

  void MakeHub() {
    device_ = *lanes().fabric().Open("fake1");
    LaneHub::Options options;
    options.receives = 64;
    hub_ = *LaneHub::Create(loop().core(), *device_, options);
  }
  std::unique_ptr<Lane> NewLane(uint32_t psn) {
    return *Lane::Create(*hub_, *this, psn, kPeerDepth + LaneWindow::kSpare);
  }
  void OpenWithLane(uint32_t size = 8192) {
    MakeHub();
    lane_ = NewLane(5);
    OpenWithAnswer([this, size](const ControlHello& hello) -> GateOffer {
      EXPECT_EQ(hello.lanes.size(), Quiet().lanes);
      EXPECT_TRUE(lane_->BringUp(hello.lanes.front(), hello.terms.read_depth).ok());
      return {.lanes = {lane_->address()},
              .terms = {.depth = kPeerDepth, .size = size, .read_depth = 2}};
    });
    ASSERT_TRUE(endpoint_->stats().over_device);
  }
  void OpenWithTwoLanes() {
    MakeHub();
    lane_ = NewLane(5);
    second_ = NewLane(6);
    RdmaOptions options = Quiet();
    options.lanes = 2;
    OpenWithAnswer(
        [&](const ControlHello& hello) -> GateOffer {
          EXPECT_EQ(hello.lanes.size(), 2u);
          EXPECT_TRUE(lane_->BringUp(hello.lanes.front(), hello.terms.read_depth).ok());
          EXPECT_TRUE(second_->BringUp(hello.lanes.back(), hello.terms.read_depth).ok());
          return {.lanes = {lane_->address(), second_->address()},
                  .terms = {.depth = kPeerDepth, .size = 8192, .read_depth = 2}};
        },
        options);
    ASSERT_EQ(endpoint_->stats().lanes, 2u);
  }
  // The second of two lanes does nothing any more. The endpoint has begun a write by it, and has a
  // message that waits for the write.
  void OpenWithAHeldMessage() {
    OpenWithTwoLanes();
    memory_.resize(128 << 10);  // wherever it lies, each lane has its part
    exposed_ = *hub_->Expose(memory_, RdmaAccess::kWrite);
    peer_->Send(EncodeControl(ControlRegion{.region = 1,
                                            .epoch = 1,
                                            .address = exposed_.address(),
                                            .length = memory_.size(),
                                            .rkey = exposed_.key(),
                                            .access = kRegionWrite}));
    const absl::StatusOr<RdmaRemoteRegion> remote = AwaitRegion(*endpoint_);
    ASSERT_TRUE(remote.ok()) << remote.status();
    lanes().fabric().set_drop([this, number = second_->address().qpn](const FakePacket& packet) {
      const bool hit = packet.kind == FakePacketKind::kRequest && packet.to_number == number;
      cut_ = cut_ || hit;
      return hit;
    });
    endpoint_->Write(*remote, 0, Chain(std::string(memory_.size(), 'w')));
    endpoint_->Send(Chain("held"), sent_.OnDone());
    ASSERT_TRUE(Drive([this] { return cut_; }));
  }
  void SendByLane(const MessageHeader& header, std::string_view body = {}) {
    std::array<char, kMessageHeaderSize> bytes;
    EncodeMessageHeader(header, bytes);
    lane_->Send(std::string(bytes.data(), bytes.size()) + std::string(body), {});
  }

  // At the endpoint's device.
  void PushEvent(FabricEventKind kind) {
    lanes().fabric().PushEvent("fake0", {.kind = kind, .owner = 0, .port = 0});
  }

  std::unique_ptr<FabricDevice> device_;
  std::unique_ptr<LaneHub> hub_;
  std::unique_ptr<Lane> lane_, second_;
  std::vector<char> memory_;
  ExposedMemory exposed_;
  Fate sent_;
  bool cut_ = false;                    // something has been lost
  std::vector<MessageHeader> headers_;  // of what has come by the lane

 private:
  void OnLaneMessage(Buffer message) override {
    const std::string bytes(message.view());
    headers_.push_back(*DecodeMessageHeader(bytes));
  }
  void OnLaneRoom() override {}
  void OnLaneDone(uint64_t, RdmaOutcome, BufferChain) override {}
  void OnLaneEnd(absl::Status) override {}
};

// Where waiting for a device's timeouts costs nothing, and none comes too early.
class EndpointHostileLaneBreakTest : public EndpointHostileLaneTest {};

TEST_P(EndpointHostileLaneTest, AnHonestPeerIsUnderstood) {
  OpenWithLane();
  SendByLane(Header(MessageType::kMessage, 1), "honest");
  EXPECT_EQ(*Receive(*endpoint_), "honest");
  ASSERT_TRUE(Drive([this] { return !headers_.empty(); }));
  EXPECT_EQ(headers_.back().received, 1u);
}

TEST_P(EndpointHostileLaneTest, WhatIsNoMessage) {
  OpenWithLane();
  lane_->Send("short", {});
  ExpectViolation();
}

// Messages go by the first lane: what came by another had no place in their order.
TEST_P(EndpointHostileLaneTest, AMessageByAnotherLane) {
  OpenWithTwoLanes();
  std::swap(lane_, second_);
  SendByLane(Header(MessageType::kMessage, 1), "stray");
  ExpectViolation();
}

TEST_P(EndpointHostileLaneTest, DataOfAnotherAttempt) {
  OpenWithLane();
  MessageHeader header = Header(MessageType::kMessage, 1);
  header.tag ^= 1;
  SendByLane(header, "stale");
  ExpectViolation();
}

TEST_P(EndpointHostileLaneTest, AcknowledgementsOfWhatWasNotSent) {
  OpenWithLane();
  SendByLane(Header(MessageType::kMessage, 1, /*received=*/1), "x");
  ExpectViolation();
}

// Else what is held would grow for as long as the peer acknowledged it.
TEST_P(EndpointHostileLaneBreakTest, AcknowledgementsOfWhatIsHeld) {
  OpenWithAHeldMessage();
  SendByLane(Header(MessageType::kMessage, 1, /*received=*/1), "x");
  ExpectViolation();
  EXPECT_FALSE(sent_.status().ok());
}

TEST_P(EndpointHostileLaneBreakTest, AFallbackThatHasWhatIsHeld) {
  OpenWithAHeldMessage();
  peer_->Send(EncodeControl(ControlFallback{.received = 1}));
  ExpectViolation();
}

// The endpoint remembers what it held when it gave its lanes up.
TEST_P(EndpointHostileLaneBreakTest, ALateFallbackThatHasWhatWasHeld) {
  OpenWithAHeldMessage();
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlFallback>() != nullptr; }));
  peer_->Send(EncodeControl(ControlFallback{.received = 1}));
  ExpectViolation();
}

TEST_P(EndpointHostileLaneBreakTest, AnHonestPeerGetsWhatWasHeldByTheStream) {
  OpenWithAHeldMessage();
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlFallback>() != nullptr; }));
  peer_->Send(EncodeControl(ControlFallback{.reply = true, .received = 0}));
  ASSERT_TRUE(Drive([this] {
    return !peer_->data().empty() && peer_->data().back().type == MessageType::kMessage;
  }));
  EXPECT_TRUE(headers_.empty());
}

// Between its own FALLBACK and the peer's an endpoint has nothing to tell by: what is due waits.
TEST_P(EndpointHostileLaneTest, CreditsWaitForThePeersFallback) {
  constexpr uint32_t kPieces = 20;  // more than half of the window
  OpenWithLane();
  for (uint32_t i = 1; i <= kPieces; ++i) SendByLane(Header(MessageType::kMessage, i), "x");
  ASSERT_TRUE(Drive([this] { return !headers_.empty() && headers_.back().received == kPieces; }));
  const uint32_t before = headers_.back().credits;
  PushEvent(FabricEventKind::kDeviceFatal);
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlFallback>() != nullptr; }));
  EXPECT_EQ(peer_->Last<ControlFallback>()->received, kPieces);
  for (uint32_t i = 1; i <= kPieces; ++i) EXPECT_EQ(*Receive(*endpoint_), "x");
  Settle();
  EXPECT_TRUE(peer_->data().empty());
  peer_->Send(EncodeControl(ControlFallback{.received = headers_.size()}));
  ASSERT_TRUE(Drive([this] { return !peer_->data().empty(); }));
  Settle();
  ASSERT_EQ(peer_->data().size(), 1u);
  EXPECT_EQ(peer_->data().front().type, MessageType::kCredit);
  EXPECT_EQ(peer_->data().front().credits, before + kPieces);
}

// Its stream may be as live as it likes: without FALLBACK nothing can go on.
TEST_P(EndpointHostileLaneBreakTest, APeerThatNeverAnswersFallbackEndsTheEndpoint) {
  OpenWithLane();
  PushEvent(FabricEventKind::kDeviceFatal);
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlFallback>() != nullptr; }));
  Fate closed;
  endpoint_->Send(Chain("never"), sent_.OnDone());
  endpoint_->Close(closed.OnDone());
  Pass(absl::Seconds(29));
  EXPECT_FALSE(sent_.ended());
  for (const Fate* fate : {&sent_, &closed}) {
    EXPECT_TRUE(absl::IsDeadlineExceeded(Await(*fate))) << fate->status();
  }
  ASSERT_TRUE(Drive([this] { return peer_->ended(); }));
  ASSERT_NE(peer_->Last<ControlClose>(), nullptr);
  EXPECT_EQ(peer_->Last<ControlClose>()->code, CloseCode::kDeadline);
}

TEST_P(EndpointHostileLaneBreakTest, APeerThatAnswersFallbackInTimeIsWaitedForNoLonger) {
  OpenWithLane();
  PushEvent(FabricEventKind::kDeviceFatal);
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlFallback>() != nullptr; }));
  Pass(absl::Seconds(29));
  peer_->Send(EncodeControl(ControlFallback{.received = headers_.size()}));
  Pass(absl::Seconds(10));
  peer_->SendData(Header(MessageType::kMessage, 1), "alive");
  EXPECT_EQ(*Receive(*endpoint_), "alive");
}

// A write that comes in the turn in which its queue is lost.
TEST_P(EndpointHostileLaneBreakTest, AWriteThatComesWithTheEndOfItsLaneIsAcknowledgedByTheStream) {
  OpenWithLane();
  std::string memory(4, '.');
  const RdmaRegion region = *endpoint_->Expose(memory, RdmaAccess::kWrite);
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlRegion>() != nullptr; }));
  std::string access(kAccessPrefixSize, '\0');
  EncodeAccessPrefix({.region = region.id(), .epoch = region.epoch()},
                     std::span<char, kAccessPrefixSize>(access.data(), access.size()));
  // Sent again after a while, it finds the loop asleep, with no timer of this tick behind it. The
  // device answers when it has the message.
  lanes().fabric().set_drop(
      [this, first = true, number = lane_->address().qpn](const FakePacket& packet) mutable {
        if (packet.kind == FakePacketKind::kRequest) return std::exchange(first, false);
        const bool has_it = packet.kind == FakePacketKind::kAck && packet.to_number == number;
        if (has_it && !std::exchange(cut_, true)) PushEvent(FabricEventKind::kCqError);
        return false;
      });
  SendByLane(Header(MessageType::kWrite, 1), access + "done");
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlFallback>() != nullptr; }));
  EXPECT_EQ(memory, "done");
  EXPECT_EQ(peer_->Last<ControlFallback>()->received, 1u);
  EXPECT_TRUE(peer_->data().empty());
  peer_->Send(EncodeControl(ControlFallback{.received = headers_.size()}));
  ASSERT_TRUE(Drive([this] { return !peer_->data().empty(); }));
  EXPECT_EQ(peer_->data().front().type, MessageType::kWritten);
  EXPECT_EQ(peer_->data().front().sequence, 1u);
}

// Operations need no credit, and take all the room that there is.
TEST_P(EndpointHostileLaneTest, WhatThePeerWaitsForGoesBeforeWhatIsQueued) {
  constexpr int kWrites = 100;
  OpenWithLane();
  // No device reaches it: the writes go as messages.
  peer_->Send(
      EncodeControl(ControlRegion{.region = 1, .epoch = 1, .length = 64, .access = kRegionWrite}));
  const absl::StatusOr<RdmaRemoteRegion> remote = AwaitRegion(*endpoint_);
  ASSERT_TRUE(remote.ok()) << remote.status();
  for (int i = 0; i < kWrites; ++i) endpoint_->Write(*remote, 0, Chain("w"));
  Settle();
  const size_t full = headers_.size();
  ASSERT_GT(full, 0u);
  ASSERT_LT(full, size_t{kWrites});
  std::string memory(4, '.');
  const RdmaRegion region = *endpoint_->Expose(memory, RdmaAccess::kWrite);
  Settle();
  std::string access(kAccessPrefixSize, '\0');
  EncodeAccessPrefix({.region = region.id(), .epoch = region.epoch()},
                     std::span<char, kAccessPrefixSize>(access.data(), access.size()));
  SendByLane(Header(MessageType::kWrite, 1), access + "done");
  ASSERT_TRUE(Drive([&] { return memory == "done"; }));
  Settle();
  ASSERT_EQ(headers_.size(), full);
  MessageHeader news = Header(MessageType::kCredit, 0, /*received=*/1);
  news.flags = 0;
  SendByLane(news);
  ASSERT_TRUE(Drive([&] { return headers_.size() > full; }));
  EXPECT_EQ(headers_[full].type, MessageType::kWritten);
  EXPECT_EQ(headers_[full].sequence, 1u);
}

TEST_P(EndpointHostileLaneTest, DataOnTheStreamBesideTheLane) {
  OpenWithLane();
  peer_->SendData(Header(MessageType::kMessage, 1), "x");
  ExpectViolation();
}

TEST_P(EndpointHostileLaneTest, AFallbackThatHasMoreThanWasSent) {
  OpenWithLane();
  peer_->Send(EncodeControl(ControlFallback{.received = 1}));
  ExpectViolation();
}

TEST_P(EndpointHostileLaneTest, ASecondFallback) {
  OpenWithLane();
  peer_->Send(EncodeControl(ControlFallback{.received = 0}));
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlFallback>() != nullptr; }));
  EXPECT_TRUE(peer_->Last<ControlFallback>()->reply);
  EXPECT_FALSE(endpoint_->stats().over_device);
  // The endpoint goes on over the stream.
  peer_->SendData(Header(MessageType::kMessage, 1), "after");
  EXPECT_EQ(*Receive(*endpoint_), "after");
  peer_->Send(EncodeControl(ControlFallback{.received = 0}));
  ExpectViolation();
}

// The peer's word for a failure is not the peer's word for an end.
TEST_P(EndpointHostileLaneTest, AnEndInOrderIsNoFallback) {
  for (const bool closing : {false, true}) {
    OpenWithLane();
    peer_->Send(EncodeControl(ControlFallback{.closing = closing, .text = "port down"}));
    ASSERT_TRUE(Drive([this] { return !endpoint_->stats().over_device; }));
    EXPECT_EQ(endpoint_->stats().fallback,
              closing ? "" : "the peer has given up its lane: port down");
    peer_ = nullptr;
    endpoint_ = nullptr;
    lane_ = nullptr;
    hub_ = nullptr;
  }
}

TEST_P(EndpointHostileLaneTest, ReceivesThatNoFrameCanFill) {
  OpenWithLane(1 << 24);
  peer_->Send(EncodeControl(ControlFallback{.received = 0}));
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlFallback>() != nullptr; }));
  endpoint_->Send(Chain(std::string(300'000, 'x')));
  ASSERT_TRUE(Drive([this] { return peer_->data().size() >= kPeerDepth; }));
  EXPECT_EQ(peer_->data().back().type, MessageType::kMessage);
}

TEST_P(EndpointHostileLaneTest, ReceivesThatNoFrameCanFillOnALane) {
  OpenWithLane(1 << 24);
  endpoint_->Send(Chain(std::string(300'000, 'x')));
  Settle();
  peer_->Send(EncodeControl(ControlFallback{.received = 0}));
  ASSERT_TRUE(Drive([this] { return peer_->data().size() >= kPeerDepth; }));
}

TEST_P(EndpointHostileLaneTest, MoreThanTheCreditsAllow) {
  OpenWithLane();
  for (uint32_t i = 1; i <= 40; ++i) SendByLane(Header(MessageType::kMessage, i), "x");
  Settle();
  for (uint32_t i = 1; i <= 32; ++i) EXPECT_EQ(*Receive(*endpoint_), "x");
  ExpectViolation();
}

INSTANTIATE_TEST_SUITE_P(Lanes, EndpointHostileLaneTest,
                         ::testing::ValuesIn(RdmaLaneEnvironments()), EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Simulated, EndpointHostileLaneBreakTest,
                         ::testing::ValuesIn(SimulatedLaneEnvironments()), EnvironmentName);

}  // namespace
}  // namespace penstock::internal
