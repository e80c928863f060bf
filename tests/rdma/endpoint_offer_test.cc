// Large messages over simulated devices: the receiver reads them from where they lie, in order with
// all others, whatever becomes of the lane.
#include <penstock/rdma.h>

#include <cerrno>
#include <cstdint>
#include <deque>
#include <initializer_list>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "rdma/lane_device.h"
#include "rdma/message_header.h"
#include "testing/pattern.h"
#include "testing/rdma_flow.h"
#include "testing/sim_world.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;
using testing::FakePacket;
using testing::FakePacketKind;

constexpr size_t kOfferedFrom = 40'000;

class EndpointOfferTest : public FlowHarness {
 protected:
  static RdmaOptions Offering() {
    RdmaOptions options = Quiet();
    options.rendezvous_min = kOfferedFrom;
    return options;
  }
  void StartAll(Flow& flow, std::initializer_list<size_t> sizes) {
    for (const size_t size : sizes) StartOf(flow, size);
  }
  // Of so many bytes.
  void StartOf(Flow& flow, size_t size) { Start(flow, PatternBytes(flow.texts.size(), 0, size)); }
  // Requests on the wire, each once, however often it was tried.
  struct Wire {
    std::set<std::pair<uint32_t, uint32_t>> seen;
    uint64_t reads = 0;
    uint64_t read_bytes = 0;
    uint64_t sent_bytes = 0;
  };
  void Watch(Wire& wire) {
    lanes().fabric().set_drop([&wire](const FakePacket& packet) {
      if (packet.kind != FakePacketKind::kRequest) return false;
      if (!wire.seen.emplace(packet.to_number, packet.psn).second) return false;
      if (packet.op == FabricOp::kRead) {
        ++wire.reads;
        wire.read_bytes += packet.read_size;
      } else {
        wire.sent_bytes += packet.bytes.size();
      }
      return false;
    });
  }
  LaneHub& Hub() { return **static_cast<LaneDevice&>(*lanes().device()).HubFor(loop().core()); }
  static MessageType TypeOf(const FakePacket& packet) {
    const bool message = packet.kind == FakePacketKind::kRequest && packet.op == FabricOp::kSend &&
                         packet.bytes.size() >= kMessageHeaderSize;
    const absl::StatusOr<MessageHeader> header = DecodeMessageHeader(packet.bytes);
    return message && header.ok() ? header->type : MessageType::kCredit;
  }
};

// Where waiting for a device's timeouts costs nothing.
class EndpointOfferBreakTest : public EndpointOfferTest {};

TEST_P(EndpointOfferTest, LargeMessagesAreReadAndSmallOnesAreSent) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  Wire wire;
  Watch(wire);
  Flow there(*both.active, *both.passive);
  Flow back(*both.passive, *both.active);
  for (Flow* flow : {&there, &back}) {
    StartAll(*flow, {10, kOfferedFrom, kOfferedFrom + 1, 0, 300'000, 5'000, 1'500'000, 7});
  }
  ExpectDone(there);
  ExpectDone(back);
  const uint64_t offered = 2 * (kOfferedFrom + 1 + 300'000 + 1'500'000);
  EXPECT_EQ(wire.read_bytes, offered);
  EXPECT_GT(wire.reads, 6u);
  // Headers, offers and acknowledgements besides.
  EXPECT_LT(wire.sent_bytes, 2 * (kOfferedFrom + 5'017) + 20'000);
  for (RdmaEndpoint* endpoint : {both.active.get(), both.passive.get()}) {
    const RdmaStats stats = endpoint->stats();
    EXPECT_EQ(stats.offers, 3u);
    EXPECT_EQ(stats.reads, 0u);
    EXPECT_EQ(stats.operations_posted, 0u);
    EXPECT_EQ(stats.messages_sent, 8u);
    EXPECT_EQ(stats.bytes_out, stats.bytes_in);
    EXPECT_TRUE(stats.over_device);
  }
  lanes().fabric().set_drop(nullptr);
  both.active->CancelReceive();
  both.passive->CancelReceive();
  Settle();
  EXPECT_EQ(loop().Snapshot().pool.live, 0u);
}

TEST_P(EndpointOfferTest, NewsOfWhatHasBeenReadGoesBeforeWhatIsQueued) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  std::string memory(4096, '\0');
  const auto region = both.active->Expose({memory.data(), memory.size()}, RdmaAccess::kWrite);
  ASSERT_TRUE(region.ok()) << region.status();
  const absl::StatusOr<RdmaRemoteRegion> remote = AwaitRegion(*both.passive);
  ASSERT_TRUE(remote.ok()) << remote.status();
  // More than the device's queue holds.
  constexpr int kWrites = 400;
  int written = 0;
  for (int i = 0; i < kWrites; ++i) {
    both.passive->Write(*remote, 0, Chain(std::string(2000, 'w')), [&](absl::Status status) {
      EXPECT_TRUE(status.ok()) << status;
      ++written;
    });
  }
  Flow flow(*both.active, *both.passive);
  StartOf(flow, 300'000);
  ASSERT_TRUE(Drive([&] { return flow.fates.front().ended(); }));
  EXPECT_LT(written, kWrites - 50);
  ExpectDone(flow);
  ASSERT_TRUE(Drive([&] { return written == kWrites; }));
}

TEST_P(EndpointOfferTest, EitherSideMaySaySo) {
  RdmaOptions never = Quiet();
  never.rendezvous_min = UINT32_MAX;
  for (const bool offers : {true, false}) {
    RdmaEndpoints both = OpenEndpoints(offers ? Offering() : never, never);
    Flow flow(*both.active, *both.passive);
    StartAll(flow, {300'000, 1});
    ExpectDone(flow);
    EXPECT_EQ(both.active->stats().offers, offers ? 1u : 0u);
  }
}

TEST_P(EndpointOfferTest, WhatLiesOutsideThePoolGoesInPieces) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  const std::string text = PatternBytes(1, 0, 200'000);
  Fate sent;
  both.active->Send(Buffer::FromExternal(text.data(), text.size(), [] {}), sent.OnDone());
  EXPECT_TRUE(*Receive(*both.passive) == text);
  EXPECT_TRUE(Await(sent).ok()) << sent.status();
  EXPECT_EQ(both.active->stats().offers, 0u);
}

// More blocks than an offer holds.
TEST_P(EndpointOfferTest, AMessageMayTakeSeveralOffers) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  std::string text;
  BufferChain message;
  for (int i = 0; i < 20; ++i) {
    const std::string block = PatternBytes(i, 0, 50'000);
    text += block;
    message.Append(Chain(block));
  }
  ASSERT_EQ(message.buffer_count(), 20u);
  Fate sent;
  both.active->Send(std::move(message), sent.OnDone());
  EXPECT_TRUE(*Receive(*both.passive) == text);
  EXPECT_TRUE(Await(sent).ok()) << sent.status();
  EXPECT_EQ(both.active->stats().offers, 3u);
}

// What is left of a message that is offered is offered as well.
TEST_P(EndpointOfferTest, LargeCountsForTheMessage) {
  RdmaOptions options = Quiet();
  options.rendezvous_min = 250'000;
  RdmaEndpoints both = OpenEndpoints(options, options);
  Wire wire;
  Watch(wire);
  Flow flow(*both.active, *both.passive);
  const size_t block = Chain(std::string(1'000'000, 'x')).front().size();
  StartAll(flow, {8 * block + 200'000, 200'000});
  ExpectDone(flow);
  EXPECT_EQ(both.active->stats().offers, 2u);
  EXPECT_EQ(wire.read_bytes, 8 * block + 200'000);
  lanes().fabric().set_drop(nullptr);
}

// A message of both kinds of bytes.
TEST_P(EndpointOfferTest, AMessageMayBeReadAndSentInTurns) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  const std::string head = "a head of some bytes";
  std::string text;
  BufferChain message;
  for (int i = 0; i < 20; ++i) {
    const std::string block = PatternBytes(i, 0, i % 7 == 3 ? 100 : 50'000);
    text += head + block;
    message.Append(Chain(head));
    message.Append(Chain(block));
  }
  Fate sent;
  both.active->Send(std::move(message), sent.OnDone());
  Fate after;
  both.active->Send(Chain("after"), after.OnDone());
  EXPECT_TRUE(*Receive(*both.passive) == text);
  EXPECT_EQ(*Receive(*both.passive), "after");
  EXPECT_TRUE(Await(sent).ok()) << sent.status();
  EXPECT_GT(both.active->stats().offers, 1u);
}

TEST_P(EndpointOfferTest, ReadsOfBothKindsShareOneDepth) {
  RdmaOptions options = Offering();
  options.read_depth = 1;
  RdmaEndpoints both = OpenEndpoints(options, options);
  std::string memory = PatternBytes(5, 0, 100'000);
  const absl::StatusOr<RdmaRegion> region = both.passive->Expose(memory, RdmaAccess::kRead);
  const absl::StatusOr<RdmaRemoteRegion> remote = AwaitRegion(*both.active);
  ASSERT_TRUE(region.ok() && remote.ok());
  Flow flow(*both.passive, *both.active);
  int reads = 0;
  for (int i = 0; i < 8; ++i) {
    StartOf(flow, 100'000);
    both.active->Read(*remote, i, 60'000, [&, i](absl::StatusOr<BufferChain> got) {
      EXPECT_TRUE(got.ok() && got->ToString() == memory.substr(i, 60'000)) << got.status();
      ++reads;
    });
  }
  ASSERT_TRUE(Drive([&] { return flow.done() && reads == 8; })) << flow.received << ", " << reads;
  EXPECT_EQ(both.active->stats().reads, 8u);
}

TEST_P(EndpointOfferTest, WhatTheDeviceDoesNotTakeGoesInPieces) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  const std::string text = PatternBytes(1, 0, 600'000);
  for (const uint64_t nth : {uint64_t{1}, uint64_t{2}}) {
    BufferChain message = Chain(text);
    ASSERT_EQ(message.buffer_count(), 3u);
    // Its memory has slabs: what is registered next are its blocks.
    lanes().fabric().FailNth(FakeCall::kRegister, nth, ENOMEM);
    Fate sent;
    both.active->Send(std::move(message), sent.OnDone());
    EXPECT_TRUE(*Receive(*both.passive) == text);
    EXPECT_TRUE(Await(sent).ok()) << sent.status();
    // With the second block refused the first one alone is offered.
    EXPECT_EQ(both.active->stats().offers, nth - 1);
  }
  EXPECT_TRUE(both.active->stats().over_device);
  EXPECT_TRUE(Hub().MayOffer());
}

// Registrations are for the slabs first.
TEST_P(EndpointOfferTest, AllEndpointsTogetherOfferOnlySoMuch) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  Flow flow(*both.active, *both.passive);
  const LaneHub::OfferedMemory much[] = {{.blocks = LaneHub::kOfferedBlocksMax, .bytes = 0},
                                         {.blocks = 0, .bytes = LaneHub::kOfferedBytesMax}};
  uint64_t offers = 0;
  for (const LaneHub::OfferedMemory& others : much) {
    Hub().OnOffered(others);
    StartOf(flow, 300'000);
    ExpectDone(flow);
    EXPECT_EQ(both.active->stats().offers, offers);
    Hub().OnWithdrawn(others);
    StartOf(flow, 300'000);
    ExpectDone(flow);
    EXPECT_EQ(both.active->stats().offers, ++offers);
    EXPECT_EQ(Hub().offered().blocks, 0u);
    EXPECT_EQ(Hub().offered().bytes, 0u);
  }
}

TEST_P(EndpointOfferTest, NothingIsOfferedWhereSlabsAreRefused) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  Flow flow(*both.active, *both.passive);
  StartOf(flow, 300'000);
  ExpectDone(flow);
  lanes().fabric().FailNth(FakeCall::kRegister, 1, ENOMEM);
  // A mapping of its own.
  loop().pool().TryAllocate(3 << 20).Reset();
  StartOf(flow, 300'000);
  ExpectDone(flow);
  EXPECT_EQ(both.active->stats().offers, 1u);
  EXPECT_TRUE(both.active->stats().over_device);
}

// Bytes that a device can still reach belong to nobody else.
TEST_P(EndpointOfferTest, WhatTheDeviceDoesNotLetGoOfStaysWithIt) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  Flow flow(*both.active, *both.passive);
  lanes().fabric().FailNth(FakeCall::kDeregister, 1, EBUSY);
  StartAll(flow, {100'000, 10});
  ExpectDone(flow);
  EXPECT_EQ(both.active->stats().offers, 1u);
  EXPECT_GT(loop().Snapshot().pool.live, 0u);
  // No more of that.
  StartOf(flow, 100'000);
  ExpectDone(flow);
  EXPECT_EQ(both.active->stats().offers, 1u);
}

// Nobody receives: what is fetched ahead of that is bounded, and so is what is offered.
TEST_P(EndpointOfferTest, ASlowReceiverFetchesLittleAhead) {
  constexpr size_t kSize = 1024 * 1024;
  constexpr int kCount = 40;
  RdmaOptions options = Offering();
  options.receive_depth = 32;
  RdmaEndpoints both = OpenEndpoints(options, options);
  const std::string text = PatternBytes(1, 0, kSize);
  const BufferChain original = Chain(text);
  std::deque<Fate> fates;
  for (int i = 0; i < kCount; ++i) {
    both.active->Send(Chain(text), fates.emplace_back().OnDone());
  }
  EXPECT_TRUE(Await(fates.front()).ok());
  Settle();
  // Credits would do for 32.
  EXPECT_GE(both.active->stats().offers, 16u);
  EXPECT_LE(both.active->stats().offers, 20u);
  // One is delivered next, and two are what 32 pieces could bring.
  size_t done = 0;
  for (const Fate& fate : fates) done += fate.ended() ? 1 : 0;
  EXPECT_GE(done, 1u);
  EXPECT_LE(done, 3u);
  EXPECT_LE(loop().Snapshot().pool.live, (kCount + 1 + 3) * (kSize + 4096));
  for (int i = 0; i < kCount; ++i) EXPECT_TRUE(*Receive(*both.passive) == text) << i;
  for (const Fate& fate : fates) EXPECT_TRUE(Await(fate).ok()) << fate.status();
}

TEST_P(EndpointOfferTest, ClosingWaitsForWhatIsOffered) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  const std::string text = PatternBytes(1, 0, 700'000);
  Fate sent[2], closed;
  both.active->Send(Chain(text), sent[0].OnDone());
  both.active->Send(Chain("last"), sent[1].OnDone());
  both.active->Close(closed.OnDone());
  EXPECT_TRUE(*Receive(*both.passive) == text);
  EXPECT_EQ(*Receive(*both.passive), "last");
  EXPECT_TRUE(IsEof(Receive(*both.passive).status()));
  EXPECT_TRUE(Await(closed).ok()) << closed.status();
  for (const Fate& fate : sent) EXPECT_TRUE(fate.status().ok()) << fate.status();
}

// What needs no memory goes on, and large messages come another way.
TEST_P(EndpointOfferBreakTest, AReaderWithoutMemoryKeepsItsLane) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  Wire wire;
  Watch(wire);
  Flow there(*both.active, *both.passive);
  Flow back(*both.passive, *both.active);
  StartAll(there, {300'000, 700'000, 10});
  StartAll(back, {10});
  std::vector<Buffer> hog;
  testing::SimFaults& faults = environment().world()->faults();
  faults.map_failure = 1000;
  while (Buffer buffer = loop().pool().TryAllocate(64 * 1024)) hog.push_back(std::move(buffer));
  ExpectDone(there);
  ExpectDone(back);
  EXPECT_EQ(wire.reads, 0u);
  // Room for one block of the next message, and not for the other two.
  faults.map_failure = 0;
  StartOf(there, 600'000);
  hog.push_back(loop().pool().TryAllocate(64 * 1024));
  faults.map_failure = 1000;
  while (Buffer buffer = loop().pool().TryAllocate(64 * 1024)) hog.push_back(std::move(buffer));
  ASSERT_GT(hog.size(), 4u);
  for (int i = 0; i < 4; ++i) hog.pop_back();
  ExpectDone(there);
  EXPECT_GE(wire.reads, 4u);
  EXPECT_LT(wire.read_bytes, 600'000u);
  faults.map_failure = 0;
  hog.clear();
  for (RdmaEndpoint* endpoint : {both.active.get(), both.passive.get()}) {
    EXPECT_TRUE(endpoint->stats().over_device);
    EXPECT_EQ(endpoint->stats().fallback, "");
  }
  EXPECT_EQ(both.active->stats().offers, 3u);
  lanes().fabric().set_drop(nullptr);
}

// Though the lane has not brought it.
TEST_P(EndpointOfferBreakTest, AReaderThatClosesTellsWhatItHasRead) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  bool lost = false;
  lanes().fabric().set_drop([&](const FakePacket& packet) {
    lost = lost || TypeOf(packet) == MessageType::kFetched;
    return lost;
  });
  Fate sent[2], closed;
  both.active->Send(Chain(PatternBytes(1, 0, 300'000)), sent[0].OnDone());
  both.active->Send(Chain("last"), sent[1].OnDone());
  both.passive->Receive([&](absl::StatusOr<BufferChain> first) {
    EXPECT_TRUE(first.ok()) << first.status();
    both.passive->Receive([&](absl::StatusOr<BufferChain> second) {
      EXPECT_TRUE(second.ok()) << second.status();
      both.passive->Close(closed.OnDone());
    });
  });
  EXPECT_TRUE(Await(closed).ok()) << closed.status();
  for (const Fate& fate : sent) EXPECT_TRUE(Await(fate).ok()) << fate.status();
  EXPECT_TRUE(lost);
  EXPECT_TRUE(IsEof(Receive(*both.active).status()));
  lanes().fabric().set_drop(nullptr);
}

// The side that is being read, and the one that reads.
TEST_P(EndpointOfferTest, EitherSideMayGoInTheMiddleOfARead) {
  for (const bool sender : {true, false}) {
    for (const bool abort : {true, false}) {
      RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
      int reads = 0;
      lanes().fabric().set_drop([&](const FakePacket& packet) {
        reads += packet.kind == FakePacketKind::kRequest && packet.op == FabricOp::kRead;
        // It cannot come to its end before.
        return reads >= 3 && packet.kind == FakePacketKind::kReadResponse;
      });
      Fate sent;
      both.active->Send(Chain(PatternBytes(1, 0, 3'000'000)), sent.OnDone());
      both.passive->Receive([](absl::StatusOr<BufferChain>) {});
      ASSERT_TRUE(Drive([&] { return reads >= 3; }));
      std::unique_ptr<RdmaEndpoint>& gone = sender ? both.active : both.passive;
      if (abort) gone->Abort();
      gone = nullptr;
      RdmaEndpoint& stays = sender ? *both.passive : *both.active;
      if (sender) {
        ASSERT_TRUE(Drive([&] { return !stays.stats().open; }));
      } else {
        EXPECT_FALSE(Await(sent).ok());
        EXPECT_EQ(OutcomeOf(sent.status()), RdmaOutcome::kInDoubt);
      }
      lanes().fabric().set_drop(nullptr);
    }
  }
}

// Nothing is lost and nothing comes twice, wherever the link breaks.
TEST_P(EndpointOfferBreakTest, ALinkThatBreaksAnywhereLosesNothing) {
  bool offered = false;
  bool fell_back = false;
  for (uint64_t packets = 0; packets < 110; packets += kSanitized ? 7 : 3) {
    RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
    uint64_t left = packets;
    lanes().fabric().set_drop([&](const FakePacket&) { return left == 0 || left-- == 0; });
    Flow there(*both.active, *both.passive);
    Flow back(*both.passive, *both.active);
    StartAll(there, {100, 200'000, 50'000, 9'000, 700'000, 3, 41'000});
    if (packets % 2 == 0) StartAll(back, {200'000, 20'000, 1, 600'000});
    ExpectDone(there);
    ExpectDone(back);
    offered = offered || both.active->stats().offers > 0;
    fell_back = fell_back || !both.active->stats().over_device;
    // What the end of the lane left is seen to with what is sent next, over the stream in pieces.
    const uint64_t offers = both.active->stats().offers;
    StartAll(there, {100'000, 2});
    ExpectDone(there);
    EXPECT_LE(both.active->stats().offers, offers + 1);
    lanes().fabric().set_drop(nullptr);
    Fate closed;
    both.active->Close(closed.OnDone());
    EXPECT_TRUE(Await(closed).ok()) << closed.status();
    EXPECT_EQ(Hub().offered().blocks, 0u);
    EXPECT_EQ(Hub().offered().bytes, 0u);
  }
  EXPECT_TRUE(offered);
  EXPECT_TRUE(fell_back);
}

// One kind of message is lost with the lane, from the nth on.
TEST_P(EndpointOfferBreakTest, WhateverIsLostWithTheLaneIsSaidAgain) {
  for (const MessageType lost : {MessageType::kOffer, MessageType::kFetched}) {
    for (int nth = 1; nth <= 3; ++nth) {
      RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
      int seen = 0;
      lanes().fabric().set_drop([&](const FakePacket& packet) {
        seen += TypeOf(packet) == lost && seen < nth;
        return seen >= nth;
      });
      Flow flow(*both.active, *both.passive);
      StartAll(flow, {100'000, 10, 200'000, 300'000, 20});
      ExpectDone(flow);
      // What is fetched at about the same time is told by one.
      for (int more = 0; more < 2; ++more) {
        StartAll(flow, {150'000});
        ExpectDone(flow);
      }
      EXPECT_EQ(seen, nth);
      lanes().fabric().set_drop(nullptr);
      ASSERT_TRUE(Drive([&] { return !both.active->stats().over_device; }));
    }
  }
}

TEST_P(EndpointOfferBreakTest, AReaderThatLosesItsLaneReadsOverTheStream) {
  RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
  int reads = 0;
  lanes().fabric().set_drop([&](const FakePacket& packet) {
    reads += packet.kind == FakePacketKind::kReadResponse;
    return reads >= 2;
  });
  Flow flow(*both.active, *both.passive);
  StartAll(flow, {900'000, 5});
  ExpectDone(flow);
  EXPECT_EQ(both.active->stats().offers, 1u);
  // As many bytes as were sent, however they went.
  EXPECT_EQ(both.active->stats().bytes_out, 900'005u);
  EXPECT_EQ(both.passive->stats().bytes_in, 900'005u);
  lanes().fabric().set_drop(nullptr);
}

TEST_P(EndpointOfferBreakTest, ALostLaneAndThenALostPeerLeaveNothingBehind) {
  for (const bool sender : {true, false}) {
    RdmaEndpoints both = OpenEndpoints(Offering(), Offering());
    int reads = 0;
    lanes().fabric().set_drop([&](const FakePacket& packet) {
      reads += packet.kind == FakePacketKind::kReadResponse;
      return reads >= 2;
    });
    both.active->Send(Chain(PatternBytes(1, 0, 2'000'000)));
    ASSERT_TRUE(Drive([&] { return !both.active->stats().over_device; }));
    (sender ? both.active : both.passive) = nullptr;
    RdmaEndpoint& stays = sender ? *both.passive : *both.active;
    ASSERT_TRUE(Drive([&] { return !stays.stats().open; }));
    both = {};
    lanes().fabric().set_drop(nullptr);
    ASSERT_TRUE(Drive([&] { return loop().Snapshot().pool.live == 0; }));
    EXPECT_EQ(Hub().offered().blocks, 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Lanes, EndpointOfferTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Simulated, EndpointOfferBreakTest,
                         ::testing::ValuesIn(SimulatedLaneEnvironments()), EnvironmentName);

}  // namespace
}  // namespace penstock::internal
