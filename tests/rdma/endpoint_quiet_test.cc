// Messages of whose end nobody is to be told: over lanes they are posted in the call, and are kept
// in order, sent again and closed after as all others are.
#include <penstock/rdma.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "rdma/quiet_sends.h"
#include "testing/pattern.h"
#include "testing/rdma_flow.h"
#include "testing/sanitized.h"

namespace penstock::internal {
namespace {

using testing::FakePacket;

class EndpointQuietTest : public FlowHarness {
 protected:
  uint64_t Posted() { return lanes().fabric().stats().sends_posted; }
  // Of many sizes; each third is told of.
  void StartMany(Flow& flow, size_t messages) {
    for (size_t i = 0; i < messages; ++i) {
      const size_t number = flow.texts.size();
      std::string text = absl::StrCat(number, ":", PatternBytes(number, 0, number * 1237 % 20'000));
      if (number % 3 == 2) {
        Start(flow, std::move(text));
      } else {
        flow.texts.push_back(std::move(text));
        flow.from.Send(Chain(flow.texts.back()));
      }
    }
  }
};

// Where waiting for a device's timeouts costs nothing.
class EndpointQuietBreakTest : public EndpointQuietTest {};

TEST_P(EndpointQuietTest, IsPostedInTheCallWhereNothingGoesBeforeIt) {
  RdmaEndpoints both = OpenEndpoints();
  RdmaEndpoint& from = *both.active;
  const uint64_t before = Posted();
  from.Send(Chain("first"));
  EXPECT_EQ(Posted(), before + 1);
  EXPECT_EQ(from.stats().operations_posted, 1u);
  EXPECT_EQ(from.stats().messages_sent, 0u);
  Fate fate;
  from.Send(Chain("second"), fate.OnDone());
  from.Send(Chain("third"));
  EXPECT_EQ(Posted(), before + 1);
  EXPECT_EQ(from.stats().operations_queued, 2u);
  for (std::string_view text : {"first", "second", "third"}) {
    EXPECT_EQ(*Receive(*both.passive), text);
  }
  ASSERT_TRUE(Drive([&] { return from.stats().messages_sent == 3; }));
  EXPECT_EQ(from.stats().bytes_out, 16u);
  EXPECT_EQ(from.stats().operations_posted, 0u);
}

TEST_P(EndpointQuietTest, WaitsUntilTheEndpointIsOpen) {
  RdmaEndpoints both = Endpoints();
  both.active->Send(Chain("early"));
  EXPECT_EQ(Posted(), 0u);
  EXPECT_EQ(both.active->stats().operations_queued, 1u);
  EXPECT_EQ(*Receive(*both.passive), "early");
}

TEST_P(EndpointQuietTest, MoreThanThereAreCreditsForComeInOrder) {
  RdmaEndpoints both = OpenEndpoints();
  Flow there(*both.active, *both.passive);
  Flow back(*both.passive, *both.active);
  StartMany(there, 200);
  StartMany(back, 200);
  ExpectDone(there);
  ExpectDone(back);
  EXPECT_GT(both.active->stats().credit_waits, 0u);
  EXPECT_EQ(lanes().fabric().stats().not_ready_naks, 0u);
  ASSERT_TRUE(Drive([&] { return both.active->stats().messages_sent == 200; }));
  both.active->CancelReceive();
  both.passive->CancelReceive();
  Settle();
}

TEST_P(EndpointQuietTest, WhatThePeerDoesNotTakeIsNotPosted) {
  RdmaOptions passive = Quiet();
  passive.message_max = 100;
  RdmaEndpoints both = OpenEndpoints(Quiet(), passive);
  const uint64_t before = Posted();
  both.active->Send(Chain(std::string(101, 'x')));
  EXPECT_EQ(Posted(), before);
  Settle();
  both.active->Send(Chain(std::string(100, 'y')));
  EXPECT_EQ(*Receive(*both.passive), std::string(100, 'y'));
}

TEST_P(EndpointQuietTest, AnOrderlyEndWaitsForThem) {
  RdmaEndpoints both = OpenEndpoints();
  both.active->Send(Chain("last"));
  Fate closed;
  both.active->Close(closed.OnDone());
  const uint64_t before = Posted();
  both.active->Send(Chain("after the end"));
  EXPECT_EQ(Posted(), before);
  EXPECT_EQ(*Receive(*both.passive), "last");
  EXPECT_TRUE(Await(closed).ok()) << closed.status();
  EXPECT_EQ(both.active->stats().messages_sent, 1u);
  EXPECT_EQ(both.active->stats().operations_posted, 0u);
}

TEST_P(EndpointQuietTest, AnEndpointThatHasEndedPostsNone) {
  RdmaEndpoints both = OpenEndpoints();
  both.active->Send(Chain("in doubt"));
  both.active->Abort();
  const uint64_t before = Posted();
  both.active->Send(Chain("never posted"));
  EXPECT_EQ(Posted(), before);
  EXPECT_EQ(both.active->stats().operations_posted, 0u);
}

// A link that breaks after any number of packets: nothing is lost, nothing comes twice, and what
// the lane has left to the stream is waited for as well.
TEST_P(EndpointQuietBreakTest, ALinkThatBreaksAnywhereLosesNone) {
  bool fell_back = false;
  for (uint64_t packets = 0; packets < 60; packets += kSanitized ? 7 : 2) {
    RdmaEndpoints both = OpenEndpoints();
    uint64_t left = packets;
    lanes().fabric().set_drop([&](const FakePacket&) { return left == 0 || left-- == 0; });
    Flow there(*both.active, *both.passive);
    StartMany(there, 30);
    Fate closed;
    both.active->Close(closed.OnDone());
    ExpectDone(there);
    EXPECT_TRUE(Await(closed).ok()) << closed.status();
    EXPECT_EQ(both.active->stats().messages_sent, 30u);
    fell_back = fell_back || !both.active->stats().fallback.empty();
    lanes().fabric().set_drop(nullptr);
  }
  EXPECT_TRUE(fell_back);
}

INSTANTIATE_TEST_SUITE_P(Lanes, EndpointQuietTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Simulated, EndpointQuietBreakTest,
                         ::testing::ValuesIn(SimulatedLaneEnvironments()), EnvironmentName);

TEST(QuietSendsTest, CountsWhatThePeerHas) {
  QuietSends sends;
  EXPECT_TRUE(sends.empty());
  EXPECT_EQ(sends.Take(7).messages, 0u);
  const uint32_t first = UINT32_MAX - 1;
  for (uint32_t i = 0; i < 5; ++i) sends.Push(first + 2 * i, 10 + i);
  EXPECT_EQ(sends.size(), 5u);
  EXPECT_EQ(sends.Take(first - 1).messages, 0u);
  // Past the end of the numbers.
  const QuietSends::Ended two = sends.Take(first + 3);
  EXPECT_EQ(two.messages, 2u);
  EXPECT_EQ(two.bytes, 21u);
  EXPECT_EQ(sends.size(), 3u);
  EXPECT_EQ(sends.Take(first + 8).bytes, 12u + 13 + 14);
  EXPECT_TRUE(sends.empty());
  sends.Push(100, 1);
  EXPECT_EQ(sends.Take(100).messages, 1u);
}

}  // namespace
}  // namespace penstock::internal
