// What a peer may send out of turn, too much of, or not at all: the endpoint tells it so, ends, and
// touches no memory.
#include <penstock/rdma.h>

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "rdma/control_codec.h"
#include "rdma/endpoint_core.h"
#include "rdma/message_header.h"
#include "rdma/ready_gate.h"
#include "testing/hostile_harness.h"

namespace penstock::internal {
namespace {

class EndpointHostileTest : public HostileHarness {
 protected:
  void OpenWith(RdmaOptions options = Quiet()) {
    GateOffer offer;
    offer.terms = {.depth = kPeerDepth, .size = kStreamPieceMax, .read_depth = 2};
    OpenWithAnswer([offer](const ControlHello&) { return offer; }, options);
  }
  static std::string Prefix(const AccessPrefix& access) {
    std::array<char, kAccessPrefixSize> bytes;
    EncodeAccessPrefix(access, bytes);
    return {bytes.data(), bytes.size()};
  }
};

TEST_P(EndpointHostileTest, AnHonestPeerIsUnderstood) {
  OpenWith();
  peer_->SendData(Header(MessageType::kMessage, 1), "honest");
  EXPECT_EQ(*Receive(*endpoint_), "honest");
  ASSERT_TRUE(Drive([this] { return !peer_->data().empty(); }));
  EXPECT_EQ(peer_->data().back().received, 1u);
}

TEST_P(EndpointHostileTest, RoomForNothing) {
  for (int field = 0; field < 3; ++field) {
    StreamPair streams = Pair();
    endpoint_ = RdmaEndpoint::Connect(std::move(streams.client), Quiet());
    GateOffer offer;
    offer.terms = {.depth = field == 0 ? 0u : 1u,
                   .size = field == 1 ? 0u : 1u,
                   .read_depth = field == 2 ? 0u : 1u};
    peer_ = std::make_unique<RawPeer>(std::move(streams.server), offer);
    const absl::Status status = Open(*endpoint_);
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  }
}

TEST_P(EndpointHostileTest, DataOfAnotherAttempt) {
  OpenWith();
  MessageHeader header = Header(MessageType::kMessage, 1);
  header.tag ^= 1;
  peer_->SendData(header, "stale");
  ExpectViolation();
}

TEST_P(EndpointHostileTest, PiecesOutOfOrder) {
  OpenWith();
  peer_->SendData(Header(MessageType::kMessage, 2), "second");
  ExpectViolation();
}

TEST_P(EndpointHostileTest, PiecesWithoutCredits) {
  RdmaOptions options = Quiet();
  options.receive_depth = 2;
  OpenWith(options);
  for (uint32_t i = 1; i <= 3; ++i) peer_->SendData(Header(MessageType::kMessage, i), "x");
  // Those within the credits have come, and the third has not.
  Settle();
  EXPECT_EQ(*Receive(*endpoint_), "x");
  EXPECT_EQ(*Receive(*endpoint_), "x");
  ExpectViolation();
}

TEST_P(EndpointHostileTest, CreditsBeyondWhatItHasRoomFor) {
  OpenWith();
  MessageHeader header = Header(MessageType::kCredit, 0);
  header.credits = 5;
  peer_->SendData(header, "");
  ExpectViolation();
}

TEST_P(EndpointHostileTest, CreditsThatGoBackByControlMessage) {
  OpenWith();
  peer_->Send(EncodeControl(ControlCredit{.granted = 3}));
  ExpectViolation();
}

TEST_P(EndpointHostileTest, AcknowledgementsOfWhatWasNotSent) {
  OpenWith();
  MessageHeader header = Header(MessageType::kCredit, 0);
  header.received = 1;
  peer_->SendData(header, "");
  ExpectViolation();
}

TEST_P(EndpointHostileTest, MessagesBeyondTheBound) {
  RdmaOptions options = Quiet();
  options.message_max = 100;
  OpenWith(options);
  peer_->SendData(Header(MessageType::kMessage, 1), std::string(101, 'x'));
  ExpectViolation();
}

TEST_P(EndpointHostileTest, WritesOutsideARegionTouchNothing) {
  const AccessPrefix wrong[] = {
      {.region = 0, .offset = 8, .epoch = 1},                 // beyond its end
      {.region = 0, .offset = ~uint64_t{0} - 3, .epoch = 1},  // round the end of numbers
      {.region = 0, .offset = 0, .epoch = 2},                 // another epoch
      {.region = 1, .offset = 0, .epoch = 1},                 // read only
      {.region = 99, .offset = 0, .epoch = 1},                // none
  };
  for (const AccessPrefix& access : wrong) {
    OpenWith();
    std::string memory = "untouched!!!";
    absl::StatusOr<RdmaRegion> region = endpoint_->Expose(memory, RdmaAccess::kWrite);
    absl::StatusOr<RdmaRegion> other = endpoint_->Expose(memory, RdmaAccess::kRead);
    peer_->SendData(Header(MessageType::kWrite, 1), Prefix(access) + "xxxxx");
    ExpectViolation();
    EXPECT_EQ(memory, "untouched!!!");
  }
}

TEST_P(EndpointHostileTest, AWriteAfterItHasLetGo) {
  OpenWith();
  std::string memory = "untouched!!!";
  absl::StatusOr<RdmaRegion> region = endpoint_->Expose(memory, RdmaAccess::kWrite);
  Fate revoked;
  region->Revoke(revoked.OnDone());
  ASSERT_TRUE(Drive([this] { return peer_->Last<ControlRevoke>() != nullptr; }));
  EXPECT_FALSE(revoked.ended());
  peer_->Send(EncodeControl(ControlRevoke{.reply = true, .region = 0, .epoch = 1}));
  EXPECT_TRUE(Await(revoked).ok());
  peer_->SendData(Header(MessageType::kWrite, 1),
                  Prefix({.region = 0, .offset = 0, .epoch = 1}) + "xxxxx");
  ExpectViolation();
  EXPECT_EQ(memory, "untouched!!!");
}

TEST_P(EndpointHostileTest, MoreReadsThanItMay) {
  RdmaOptions options = Quiet();
  options.read_depth = 1;
  OpenWith(options);
  std::string memory(1 << 20, 'm');
  absl::StatusOr<RdmaRegion> region = endpoint_->Expose(memory, RdmaAccess::kRead);
  const std::string prefix = Prefix({.region = 0, .offset = 0, .size = memory.size(), .epoch = 1});
  peer_->SendData(Header(MessageType::kRead, 1), prefix);
  peer_->SendData(Header(MessageType::kRead, 2), prefix);
  peer_->SendData(Header(MessageType::kRead, 3), prefix);
  ExpectViolation();
}

TEST_P(EndpointHostileTest, AnswersToNothing) {
  for (const MessageType type : {MessageType::kReadData, MessageType::kWritten}) {
    OpenWith();
    peer_->SendData(Header(type, 1), "");
    ExpectViolation();
  }
}

TEST_P(EndpointHostileTest, ReadDataOfAnotherSize) {
  for (const std::string_view bytes : {"123", "12345"}) {
    OpenWith();
    peer_->Send(EncodeControl(ControlRegion{
        .region = 0, .epoch = 1, .address = 0, .length = 100, .rkey = 0, .access = kRegionRead}));
    const absl::StatusOr<RdmaRemoteRegion> region = AwaitRegion(*endpoint_);
    ASSERT_TRUE(region.ok());
    Fate read;
    endpoint_->Read(*region, 0, 4, [done = read.OnDone()](auto result) mutable {
      std::move(done)(result.status());
    });
    ASSERT_TRUE(Drive([this] { return !peer_->data().empty(); }));
    peer_->SendData(Header(MessageType::kReadData, 1), bytes);
    EXPECT_TRUE(absl::IsInvalidArgument(Await(read))) << read.status();
    EXPECT_EQ(OutcomeOf(read.status()), RdmaOutcome::kInDoubt);
    ExpectViolation();
  }
}

TEST_P(EndpointHostileTest, ControlMessagesOutOfTurn) {
  const std::string wrong[] = {
      EncodeControl(ControlReady{}),
      EncodeControl(ControlHello{
          .features = kFeatureFallback, .from = {.attempt = 1}, .terms = {.depth = 1, .size = 1}}),
      EncodeControl(ControlFallback{}),
      EncodeControl(ControlDrain{.reply = true}),
      EncodeControl(ControlDrain{.sequence = 5}),
      EncodeControl(ControlRevoke{.reply = true}),
      EncodeControl(ControlRevoke{}),
      EncodeControl(ControlRegion{.region = 0, .length = 0, .access = kRegionRead}),
      std::string("no message at all"),
  };
  for (const std::string& bytes : wrong) {
    OpenWith();
    peer_->Send(bytes);
    ExpectViolation();
  }
}

TEST_P(EndpointHostileTest, ASilentPeerIsTakenForDead) {
  RdmaOptions options = Quiet();
  options.ping_interval = absl::Milliseconds(10);
  options.pings_missed_max = 2;
  OpenWith(options);
  Fate sent;
  endpoint_->Send(Chain("into the void"), sent.OnDone());
  EXPECT_TRUE(IsDeadlineExceeded(Await(sent))) << sent.status();
  EXPECT_EQ(OutcomeOf(sent.status()), RdmaOutcome::kInDoubt);
  EXPECT_EQ(endpoint_->stats().pings, 2u);
  EXPECT_NE(peer_->Last<ControlPing>(), nullptr);
}

TEST_P(EndpointHostileTest, AWordOfThePeerKeepsItAlive) {
  RdmaOptions options = Quiet();
  options.ping_interval = absl::Milliseconds(10);
  options.pings_missed_max = 2;
  OpenWith(options);
  uint64_t answered = 0;
  ASSERT_TRUE(Drive([&] {
    const uint64_t pings = endpoint_->stats().pings;
    if (pings > answered) {
      answered = pings;
      peer_->Send(EncodeControl(ControlPong{.token = pings}));
    }
    return answered == 5;
  }));
  EXPECT_TRUE(endpoint_->stats().open);
}

TEST_P(EndpointHostileTest, AnswersToNoPingOfOurs) {
  // Nothing was asked; there is no ping 0.
  for (const uint64_t token : {uint64_t{1}, uint64_t{0}}) {
    OpenWith();
    peer_->Send(EncodeControl(ControlPong{.token = token}));
    ExpectViolation();
  }
}

TEST_P(EndpointHostileTest, OnePingAnsweredTwice) {
  RdmaOptions options = Quiet();
  options.ping_interval = absl::Milliseconds(10);
  options.pings_missed_max = 1000;
  OpenWith(options);
  ASSERT_TRUE(Drive([&] { return peer_->Last<ControlPing>() != nullptr; }));
  peer_->Send(EncodeControl(ControlPong{.token = 1}));
  peer_->Send(EncodeControl(ControlPong{.token = 1}));
  ExpectViolation();
}

INSTANTIATE_TEST_SUITE_P(Environments, EndpointHostileTest, ::testing::ValuesIn(RdmaEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
