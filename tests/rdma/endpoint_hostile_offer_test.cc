// What a peer may do wrong with large messages, as the side that offers them and as the one that
// reads them: the endpoint tells it so, and ends.
#include <penstock/rdma.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "rdma/control_codec.h"
#include "rdma/lane.h"
#include "rdma/lane_hub.h"
#include "rdma/lane_window.h"
#include "rdma/message_header.h"
#include "testing/hostile_harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

std::string PartBytes(const OfferPart& part) {
  std::array<char, kOfferPartSize> bytes;
  EncodeOfferPart(part, bytes);
  return {bytes.data(), bytes.size()};
}

std::string PartsOf(std::initializer_list<uint64_t> sizes) {
  std::string parts;
  for (const uint64_t size : sizes) parts += PartBytes({.address = 0x1000, .size = size, .key = 7});
  return parts;
}

// What a peer offers, over a stream.
class HostileOfferTest : public HostileHarness {
 protected:
  void OpenWithOffers(uint64_t features = kFeatureOffers) {
    RdmaOptions options = Quiet();
    options.message_max = 1'000'000;
    const GateOffer offer{.terms = {.depth = kPeerDepth, .size = 65536, .read_depth = 4}};
    OpenWithAnswer([offer](const ControlHello&) { return offer; }, options, features);
  }
  void Offer(uint32_t sequence, std::string_view body, bool last = true) {
    MessageHeader header = Header(MessageType::kOffer, sequence);
    if (!last) header.flags = 0;
    peer_->SendData(header, body);
  }
};

TEST_P(HostileOfferTest, AnOfferOverTheStreamIsReadThere) {
  OpenWithOffers();
  Offer(1, PartsOf({5, 3}));
  ASSERT_TRUE(Drive([this] { return peer_->data().size() >= 2; }));
  EXPECT_EQ(peer_->data()[0].type, MessageType::kRead);
  EXPECT_EQ(peer_->data()[1].type, MessageType::kRead);
  peer_->SendData(Header(MessageType::kMessage, 2), "after");
  peer_->SendData(Header(MessageType::kReadData, 1), "hello");
  peer_->SendData(Header(MessageType::kReadData, 2), "you");
  EXPECT_EQ(*Receive(*endpoint_), "helloyou");
  EXPECT_EQ(*Receive(*endpoint_), "after");
  ASSERT_TRUE(Drive([this] {
    for (const MessageHeader& header : peer_->data()) {
      if (header.type == MessageType::kFetched && header.sequence == 1) return true;
    }
    return false;
  }));
}

TEST_P(HostileOfferTest, OffersThatCannotBe) {
  const std::string nine = PartsOf({1, 1, 1, 1, 1, 1, 1, 1, 1});
  for (const std::string& body : {std::string(), PartsOf({4}).substr(1), nine, PartsOf({0}),
                                  PartsOf({3, 0}), PartsOf({1'000'001}), PartsOf({999'999, 2}),
                                  PartsOf({1, UINT64_MAX}), PartsOf({UINT64_MAX, 2})}) {
    OpenWithOffers();
    Offer(1, body);
    ExpectViolation();
  }
}

TEST_P(HostileOfferTest, PiecesAndOffersTogetherAreBounded) {
  OpenWithOffers();
  Offer(1, PartsOf({999'990}), /*last=*/false);
  peer_->SendData(Header(MessageType::kMessage, 2), std::string(11, 'x'));
  ExpectViolation();
  OpenWithOffers();
  MessageHeader first = Header(MessageType::kMessage, 1);
  first.flags = 0;
  peer_->SendData(first, std::string(11, 'x'));
  Offer(2, PartsOf({999'990}));
  ExpectViolation();
}

TEST_P(HostileOfferTest, OffersWithoutACreditOrOutOfTurn) {
  for (const uint32_t sequence : {0u, 2u}) {
    OpenWithOffers();
    Offer(sequence, PartsOf({4}));
    ExpectViolation();
  }
}

TEST_P(HostileOfferTest, OffersThatWereNotAgreedOn) {
  OpenWithOffers(0);
  Offer(1, PartsOf({4}));
  ExpectViolation();
}

TEST_P(HostileOfferTest, FetchedOfNothing) {
  OpenWithOffers();
  peer_->SendData(Header(MessageType::kFetched, 1), {});
  ExpectViolation();
}

TEST_P(HostileOfferTest, AnswersOfAnotherSize) {
  for (const std::string_view bytes : {"four", "sixsix"}) {
    OpenWithOffers();
    Offer(1, PartsOf({5}));
    ASSERT_TRUE(Drive([this] { return !peer_->data().empty(); }));
    peer_->SendData(Header(MessageType::kReadData, 1), bytes);
    ExpectViolation();
  }
}

TEST_P(HostileOfferTest, ReadsOfWhatIsNotOffered) {
  for (const uint64_t region : {OfferRegion(1, 0), OfferRegion(0, 0), kOfferRegion}) {
    OpenWithOffers();
    std::array<char, kAccessPrefixSize> bytes;
    EncodeAccessPrefix({.region = region, .size = 1}, bytes);
    peer_->SendData(Header(MessageType::kRead, 1), {bytes.data(), bytes.size()});
    ExpectViolation();
  }
}

// The message is never delivered in part.
TEST_P(HostileOfferTest, AnEndInTheMiddleDeliversWhatIsWhole) {
  OpenWithOffers();
  peer_->SendData(Header(MessageType::kMessage, 1), "whole");
  Offer(2, PartsOf({5}));
  peer_->SendData(Header(MessageType::kMessage, 3), "behind");
  ASSERT_TRUE(Drive([this] { return peer_->data().size() >= 1; }));
  peer_->Send(EncodeControl(ControlClose{}));
  EXPECT_EQ(*Receive(*endpoint_), "whole");
  EXPECT_TRUE(IsEof(Receive(*endpoint_).status()));
}

INSTANTIATE_TEST_SUITE_P(Environments, HostileOfferTest, ::testing::ValuesIn(RdmaEnvironments()),
                         EnvironmentName);

// A peer with a lane, which is offered something.
class HostileFetchTest : public HostileHarness, private Lane::Owner {
 protected:
  void TearDown() override {
    Drop();
    HostileHarness::TearDown();
  }
  void Drop() {
    peer_ = nullptr;
    endpoint_ = nullptr;
    lane_ = nullptr;
    hub_ = nullptr;
    device_ = nullptr;
    headers_.clear();
    parts_.clear();
    sent_ = Fate();
  }
  void OpenAndOffer(uint64_t features = kFeatureOffers) {
    Drop();
    device_ = *lanes().fabric().Open("fake1");
    LaneHub::Options hub;
    hub.receives = 64;
    hub_ = *LaneHub::Create(loop().core(), *device_, hub);
    lane_ = *Lane::Create(*hub_, *this, 5, kPeerDepth + LaneWindow::kSpare);
    RdmaOptions options = Quiet();
    options.rendezvous_min = 40'000;
    OpenWithAnswer(
        [this](const ControlHello& hello) -> GateOffer {
          EXPECT_TRUE(lane_->BringUp(hello.lanes.front(), hello.terms.read_depth).ok());
          return {.lanes = {lane_->address()},
                  .terms = {.depth = kPeerDepth, .size = 8192, .read_depth = 2}};
        },
        options, features);
    endpoint_->Send(Chain(text_), sent_.OnDone());
    ASSERT_TRUE(Drive([this] { return !headers_.empty(); }));
  }
  void SendByLane(const MessageHeader& header, std::string_view body = {}) {
    std::array<char, kMessageHeaderSize> bytes;
    EncodeMessageHeader(header, bytes);
    lane_->Send(std::string(bytes.data(), bytes.size()) + std::string(body), {});
  }
  void ReadOffered(uint64_t region, uint64_t offset, uint64_t size) {
    std::array<char, kAccessPrefixSize> bytes;
    EncodeAccessPrefix({.region = region, .offset = offset, .size = size}, bytes);
    SendByLane(Header(MessageType::kRead, 1), {bytes.data(), bytes.size()});
  }

  const std::string text_ = PatternBytes(3, 0, 60'000);
  Fate sent_;
  std::vector<MessageHeader> headers_;
  std::vector<OfferPart> parts_;
  std::string read_;
  bool lane_ended_ = false;
  std::unique_ptr<FabricDevice> device_;
  std::unique_ptr<LaneHub> hub_;
  std::unique_ptr<Lane> lane_;

 private:
  void OnLaneMessage(Buffer message) override {
    const std::string bytes(message.view());
    headers_.push_back(*DecodeMessageHeader(bytes));
    if (headers_.back().type != MessageType::kOffer) return;
    for (size_t at = kMessageHeaderSize; at < bytes.size(); at += kOfferPartSize) {
      parts_.push_back(DecodeOfferPart(std::string_view(bytes).substr(at, kOfferPartSize)));
    }
  }
  void OnLaneRoom() override {}
  void OnLaneDone(uint64_t, RdmaOutcome, BufferChain data) override { read_ = data.ToString(); }
  void OnLaneEnd(absl::Status) override { lane_ended_ = true; }
};

TEST_P(HostileFetchTest, AnHonestPeerReadsAndTells) {
  OpenAndOffer();
  ASSERT_EQ(parts_.size(), 1u);
  EXPECT_EQ(parts_[0].size, text_.size());
  lane_->Read(1, {.address = parts_[0].address, .key = parts_[0].key}, parts_[0].size);
  ASSERT_TRUE(Drive([this] { return !read_.empty(); }));
  EXPECT_TRUE(read_ == text_);
  SendByLane(Header(MessageType::kFetched, 1, /*received=*/1));
  EXPECT_TRUE(Await(sent_).ok()) << sent_.status();
  // Told once more, it means nothing.
  SendByLane(Header(MessageType::kFetched, 1, /*received=*/1));
  Settle();
  EXPECT_TRUE(endpoint_->stats().open);
}

// From `fetched` on the memory is out of reach.
TEST_P(HostileFetchTest, ReadsAfterTheEndOfAnOffer) {
  OpenAndOffer();
  SendByLane(Header(MessageType::kFetched, 1, /*received=*/1));
  EXPECT_TRUE(Await(sent_).ok()) << sent_.status();
  lane_->Read(1, {.address = parts_[0].address, .key = parts_[0].key}, 1);
  ASSERT_TRUE(Drive([this] { return lane_ended_; }));
  EXPECT_TRUE(read_.empty());
}

TEST_P(HostileFetchTest, FetchedOfMoreThanWasOffered) {
  OpenAndOffer();
  SendByLane(Header(MessageType::kFetched, 2, /*received=*/1));
  ExpectViolation();
}

TEST_P(HostileFetchTest, ReadsBeyondAnOffer) {
  struct Access {
    uint64_t region, offset, size;
  };
  for (const Access& access :
       {Access{OfferRegion(1, 0), 0, 60'001}, Access{OfferRegion(1, 0), 60'000, 1},
        Access{OfferRegion(1, 0), UINT64_MAX, 2}, Access{OfferRegion(1, 1), 0, 1},
        Access{OfferRegion(2, 0), 0, 1}}) {
    OpenAndOffer();
    ReadOffered(access.region, access.offset, access.size);
    ExpectViolation();
  }
}

// Parts are joined in their order, whichever of them is there first.
TEST_P(HostileFetchTest, PartsThatAreReadInDifferentWays) {
  OpenAndOffer();
  std::string memory = "world";
  const absl::StatusOr<ExposedMemory> exposed = hub_->Expose(memory, RdmaAccess::kRead);
  ASSERT_TRUE(exposed.ok()) << exposed.status();
  int responses = 0;
  lanes().fabric().set_drop([&](const testing::FakePacket& packet) {
    responses += packet.kind == testing::FakePacketKind::kReadResponse;
    return false;
  });
  SendByLane(Header(MessageType::kOffer, 1),
             PartBytes({.address = 0, .size = 6, .key = 0}) +
                 PartBytes({.address = exposed->address(), .size = 5, .key = exposed->key()}));
  ASSERT_TRUE(Drive([&] { return responses == 1 && headers_.back().type == MessageType::kRead; }));
  Settle();
  SendByLane(Header(MessageType::kReadData, headers_.back().sequence), "hello ");
  EXPECT_EQ(*Receive(*endpoint_), "hello world");
  lanes().fabric().set_drop(nullptr);
}

TEST_P(HostileFetchTest, APeerThatDoesNotKnowOffersGetsPieces) {
  OpenAndOffer(0);
  EXPECT_EQ(headers_.front().type, MessageType::kMessage);
  EXPECT_EQ(endpoint_->stats().offers, 0u);
}

INSTANTIATE_TEST_SUITE_P(Lanes, HostileFetchTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
