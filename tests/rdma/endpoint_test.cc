// RdmaEndpoint over a stream: the contract of penstock/rdma.h.
#include <penstock/rdma.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "rdma/endpoint_core.h"
#include "testing/pattern.h"
#include "testing/rdma_pair.h"

namespace penstock::internal {
namespace {

class EndpointTest : public RdmaHarness {
 protected:
  // Receives for ever.
  struct Receiver {
    explicit Receiver(RdmaEndpoint& of) : endpoint(of) { Next(); }
    void Next() {
      endpoint.Receive([this](absl::StatusOr<BufferChain> message) {
        if (!message.ok()) {
          end = message.status();
          return;
        }
        messages.push_back(message->ToString());
        Next();
      });
    }
    RdmaEndpoint& endpoint;
    std::vector<std::string> messages;
    absl::Status end;
  };
};

TEST_P(EndpointTest, MessagesOfEverySizeArriveOnceAndInOrder) {
  RdmaEndpoints both = OpenEndpoints();
  Receiver receiver(*both.passive);
  std::vector<size_t> sizes = {
      0, 1, 100, kStreamPieceMax - 1, kStreamPieceMax, kStreamPieceMax + 1, 3 * kStreamPieceMax,
      0, 5};
  std::vector<Fate> fates(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    both.active->Send(Chain(PatternBytes(i, 0, sizes[i])), fates[i].OnDone());
  }
  ASSERT_TRUE(Drive([&] { return receiver.messages.size() == sizes.size(); }));
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_TRUE(Await(fates[i]).ok()) << fates[i].status();
    EXPECT_TRUE(receiver.messages[i] == PatternBytes(i, 0, sizes[i])) << i;
  }
  EXPECT_EQ(both.active->stats().messages_sent, sizes.size());
  EXPECT_EQ(both.passive->stats().messages_received, sizes.size());
  EXPECT_EQ(both.active->stats().bytes_out, both.passive->stats().bytes_in);
}

TEST_P(EndpointTest, WorkStartedEarlyWaitsForTheGate) {
  StreamPair streams = Pair();
  auto active = RdmaEndpoint::Connect(std::move(streams.client), Quiet());
  Fate early;
  active->Send(Chain("early"), early.OnDone());
  Settle();
  EXPECT_FALSE(early.ended());
  EXPECT_FALSE(active->stats().open);
  EXPECT_EQ(active->stats().operations_queued, 1u);
  auto passive = RdmaEndpoint::Accept(std::move(streams.server), Quiet());
  EXPECT_EQ(*Receive(*passive), "early");
  EXPECT_TRUE(Await(early).ok());
  EXPECT_TRUE(passive->stats().open);
}

TEST_P(EndpointTest, AMessageLongerThanTheWindowArrives) {
  RdmaOptions narrow = Quiet();
  narrow.receive_depth = 2;
  RdmaEndpoints both = OpenEndpoints(narrow, narrow);
  const std::string bytes = PatternBytes(7, 0, 40 * kStreamPieceMax + 17);
  Fate sent;
  both.active->Send(Chain(bytes), sent.OnDone());
  EXPECT_TRUE(*Receive(*both.passive) == bytes);
  EXPECT_TRUE(Await(sent).ok());
}

TEST_P(EndpointTest, ASlowReceiverSlowsTheSender) {
  RdmaOptions narrow = Quiet();
  narrow.receive_depth = 4;
  RdmaEndpoints both = OpenEndpoints(narrow, narrow);
  std::deque<Fate> fates(20);
  for (Fate& fate : fates) both.active->Send(Chain("message"), fate.OnDone());
  Settle();
  // The peer's endpoint has taken what it has room for, though nobody receives.
  EXPECT_TRUE(fates[3].status().ok());
  EXPECT_FALSE(fates[4].ended());
  EXPECT_EQ(both.active->stats().operations_queued, 16u);
  EXPECT_EQ(both.active->stats().credits, 0u);
  EXPECT_EQ(both.active->stats().credit_waits, 1u);
  for (size_t i = 0; i < fates.size(); ++i) EXPECT_EQ(*Receive(*both.passive), "message");
  for (Fate& fate : fates) EXPECT_TRUE(Await(fate).ok());
}

TEST_P(EndpointTest, TwoSidesWithoutCreditsGoOn) {
  RdmaOptions narrow = Quiet();
  narrow.receive_depth = 2;
  RdmaEndpoints both = OpenEndpoints(narrow, narrow);
  for (int i = 0; i < 10; ++i) {
    both.active->Send(Chain(PatternBytes(i, 0, 3 * kStreamPieceMax)));
    both.passive->Send(Chain(PatternBytes(i, 0, 3 * kStreamPieceMax)));
  }
  Settle();
  EXPECT_EQ(both.active->stats().credits, 0u);
  EXPECT_EQ(both.passive->stats().credits, 0u);
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(*Receive(*both.passive) == PatternBytes(i, 0, 3 * kStreamPieceMax)) << i;
    EXPECT_TRUE(*Receive(*both.active) == PatternBytes(i, 0, 3 * kStreamPieceMax)) << i;
  }
}

TEST_P(EndpointTest, AFullQueueRefusesAndTouchesNothing) {
  RdmaOptions small = Quiet();
  small.queue_operations_max = 2;
  small.queue_bytes_max = 10;
  RdmaEndpoints both = Endpoints(small);
  Fate first, large, second, third;
  both.active->Send(Chain("12345678"), first.OnDone());
  both.active->Send(Chain("901"), large.OnDone());
  both.active->Send(Chain("9"), second.OnDone());
  both.active->Send(Chain(""), third.OnDone());
  for (const Fate& refused : {large, third}) {
    EXPECT_TRUE(absl::IsResourceExhausted(Await(refused))) << refused.status();
    EXPECT_EQ(OutcomeOf(refused.status()), RdmaOutcome::kNeverPosted);
  }
  EXPECT_EQ(both.active->stats().refused, 2u);
  EXPECT_EQ(*Receive(*both.passive), "12345678");
  EXPECT_EQ(*Receive(*both.passive), "9");
  EXPECT_TRUE(Await(first).ok());
  EXPECT_TRUE(Await(second).ok());
}

TEST_P(EndpointTest, WaitingWorkHasItsOwnDeadline) {
  StreamPair streams = Pair();
  auto active = RdmaEndpoint::Connect(std::move(streams.client), Quiet());
  Fate patient, hasty;
  active->Send(Chain("patient"), patient.OnDone());
  active->Send(Chain("hasty"), hasty.OnDone(), absl::Milliseconds(20));
  EXPECT_TRUE(IsDeadlineExceeded(Await(hasty))) << hasty.status();
  EXPECT_EQ(OutcomeOf(hasty.status()), RdmaOutcome::kNeverPosted);
  // Durations that no sum with the time can hold.
  Fate never, at_once;
  active->Send(Chain("later"), never.OnDone(), absl::Hours(24 * 365 * 1000));
  active->Send(Chain("late"), at_once.OnDone(), -absl::InfiniteDuration());
  EXPECT_TRUE(IsDeadlineExceeded(Await(at_once))) << at_once.status();
  EXPECT_FALSE(never.ended());
  EXPECT_FALSE(patient.ended());
  auto passive = RdmaEndpoint::Accept(std::move(streams.server), Quiet());
  EXPECT_EQ(*Receive(*passive), "patient");
  EXPECT_EQ(*Receive(*passive), "later");
  EXPECT_EQ(active->stats().expired, 2u);
}

TEST_P(EndpointTest, APeerThatNeverAnswersEndsTheOpeningInTime) {
  StreamPair streams = Pair();
  RdmaOptions options = Quiet();
  options.open_deadline = absl::Milliseconds(30);
  auto active = RdmaEndpoint::Connect(std::move(streams.client), options);
  std::vector<Fate> fates(100);
  for (Fate& fate : fates) active->Send(Chain("never"), fate.OnDone());
  EXPECT_TRUE(IsDeadlineExceeded(Open(*active)));
  for (Fate& fate : fates) {
    EXPECT_TRUE(IsDeadlineExceeded(Await(fate)));
    EXPECT_EQ(OutcomeOf(fate.status()), RdmaOutcome::kNeverPosted);
  }
  EXPECT_TRUE(IsDeadlineExceeded(Receive(*active).status()));
  Fate late;
  active->Send(Chain("late"), late.OnDone());
  EXPECT_EQ(OutcomeOf(Await(late)), RdmaOutcome::kNeverPosted);
}

TEST_P(EndpointTest, BadOptionsEndIt) {
  struct Bad {
    const char* field;
    std::function<void(RdmaOptions&)> set;
  };
  const Bad bad[] = {
      {"receive_depth", [](RdmaOptions& options) { options.receive_depth = 1; }},
      {"receive_depth", [](RdmaOptions& options) { options.receive_depth = 32'769; }},
      {"read_depth", [](RdmaOptions& options) { options.read_depth = 0; }},
      {"read_depth", [](RdmaOptions& options) { options.read_depth = 1025; }},
      {"lanes", [](RdmaOptions& options) { options.lanes = 0; }},
      {"lanes", [](RdmaOptions& options) { options.lanes = 9; }},
      {"message_max", [](RdmaOptions& options) { options.message_max = 0; }},
      {"open_deadline", [](RdmaOptions& options) { options.open_deadline = {}; }},
      {"ready_deadline", [](RdmaOptions& options) { options.ready_deadline = {}; }},
      {"ready_deadline",
       [](RdmaOptions& options) { options.ready_deadline = -absl::InfiniteDuration(); }},
      {"ping_interval", [](RdmaOptions& options) { options.ping_interval = {}; }},
      {"ping_interval",
       [](RdmaOptions& options) { options.ping_interval = -absl::InfiniteDuration(); }},
      {"pings_missed_max", [](RdmaOptions& options) { options.pings_missed_max = 0; }},
  };
  for (const Bad& each : bad) {
    SCOPED_TRACE(each.field);
    RdmaOptions options = Quiet();
    each.set(options);
    for (const bool active : {true, false}) {
      RdmaEndpoints both = active ? Endpoints(options) : Endpoints(Quiet(), options);
      const absl::Status own = Open(active ? *both.active : *both.passive);
      EXPECT_TRUE(absl::IsInvalidArgument(own)) << own;
      EXPECT_TRUE(absl::StrContains(own.message(), each.field)) << own;
      // Who has done nothing wrong may try again.
      const absl::Status other = Open(active ? *both.passive : *both.active);
      EXPECT_TRUE(absl::IsUnavailable(other)) << other;
    }
  }
}

TEST_P(EndpointTest, WhatWaitsIsCounted) {
  StreamPair streams = Pair();
  auto active = RdmaEndpoint::Connect(std::move(streams.client), Quiet());
  Fate last;
  active->Send(Chain(std::string(1000, 'x')));
  active->Send(Chain(std::string(500, 'y')), last.OnDone());
  Settle();
  EXPECT_EQ(active->stats().operations_queued, 2u);
  EXPECT_EQ(active->stats().bytes_queued, 1500u);
  auto passive = RdmaEndpoint::Accept(std::move(streams.server), Quiet());
  EXPECT_TRUE(Await(last).ok()) << last.status();
  EXPECT_EQ(active->stats().operations_queued, 0u);
  EXPECT_EQ(active->stats().bytes_queued, 0u);
}

// It would end the endpoint, with all that is on the way.
TEST_P(EndpointTest, MessagesThatThePeerDoesNotTakeAreRefusedHere) {
  RdmaOptions small = Quiet();
  small.message_max = 1000;
  RdmaEndpoints both = Endpoints(Quiet(), small);
  const std::string most(1000, 'm');
  const std::string more(1001, 'n');
  std::deque<Fate> refused;
  Fate taken;
  both.active->Send(Chain(more), refused.emplace_back().OnDone());
  both.active->Send(Chain(most), taken.OnDone());
  EXPECT_EQ(*Receive(*both.passive), most);
  EXPECT_TRUE(Await(taken).ok()) << taken.status();
  std::string memory(2000, '.');
  const auto exposed = both.passive->Expose(memory, RdmaAccess::kWrite);
  const absl::StatusOr<RdmaRemoteRegion> region = AwaitRegion(*both.active);
  ASSERT_TRUE(region.ok()) << region.status();
  both.active->Send(Chain(more), refused.emplace_back().OnDone());
  both.active->WriteThenSend(*region, 0, Chain("x"), Chain(more), refused.emplace_back().OnDone());
  for (Fate& fate : refused) {
    EXPECT_TRUE(absl::IsInvalidArgument(Await(fate))) << fate.status();
    EXPECT_EQ(OutcomeOf(fate.status()), RdmaOutcome::kNeverPosted);
  }
  EXPECT_EQ(memory, std::string(2000, '.'));
  // Of messages alone, and to that side.
  EXPECT_TRUE(Write(*both.active, *region, 0, std::string(2000, 'w')).ok());
  both.passive->Send(Chain(more));
  EXPECT_EQ(*Receive(*both.active), more);
}

TEST_P(EndpointTest, AStreamWithLittleRoomWillDo) {
  StreamOptions tight = SmallBuffers();
  tight.send_queue_max = 1000;
  StreamPair streams = Pair(tight, tight);
  auto active = RdmaEndpoint::Connect(std::move(streams.client), Quiet());
  auto passive = RdmaEndpoint::Accept(std::move(streams.server), Quiet());
  const std::string bytes = PatternBytes(4, 0, 200'000);
  active->Send(Chain(bytes));
  EXPECT_TRUE(*Receive(*passive) == bytes);
}

TEST_P(EndpointTest, ClosingInOrderDeliversEverythingAndThenTheEnd) {
  RdmaEndpoints both = OpenEndpoints();
  Receiver receiver(*both.passive);
  const std::string bytes = PatternBytes(1, 0, 1 << 20);
  both.active->Send(Chain(bytes));
  both.active->Send(Chain("last"));
  Fate closed, late;
  both.active->Close(closed.OnDone());
  both.active->Send(Chain("late"), late.OnDone());
  EXPECT_TRUE(Await(closed).ok()) << closed.status();
  EXPECT_TRUE(absl::IsFailedPrecondition(Await(late))) << late.status();
  EXPECT_EQ(OutcomeOf(late.status()), RdmaOutcome::kNeverPosted);
  ASSERT_TRUE(Drive([&] { return !receiver.end.ok(); }));
  EXPECT_TRUE(IsEof(receiver.end)) << receiver.end;
  ASSERT_EQ(receiver.messages.size(), 2u);
  EXPECT_TRUE(receiver.messages[0] == bytes);
  EXPECT_TRUE(IsCancelled(Receive(*both.active).status()));
}

TEST_P(EndpointTest, BothMayCloseAtOnce) {
  RdmaEndpoints both = OpenEndpoints();
  Receiver receivers[] = {Receiver(*both.active), Receiver(*both.passive)};
  (void)receivers;
  Fate active, passive, again;
  both.active->Close(active.OnDone());
  both.active->Close(again.OnDone());
  both.passive->Close(passive.OnDone());
  EXPECT_TRUE(Await(active).ok()) << active.status();
  EXPECT_TRUE(Await(passive).ok()) << passive.status();
  EXPECT_TRUE(absl::IsFailedPrecondition(Await(again)));
}

TEST_P(EndpointTest, ClosingEarlyWaitsForTheGate) {
  RdmaEndpoints both = Endpoints();
  both.active->Send(Chain("queued"));
  Fate closed;
  both.active->Close(closed.OnDone());
  EXPECT_EQ(*Receive(*both.passive), "queued");
  EXPECT_TRUE(Await(closed).ok()) << closed.status();
}

TEST_P(EndpointTest, APeerThatGoesLeavesEachOperationItsOutcome) {
  RdmaOptions narrow = Quiet();
  narrow.receive_depth = 4;
  RdmaEndpoints both = OpenEndpoints(Quiet(), narrow);
  std::deque<Fate> fates(10);
  for (size_t i = 0; i < fates.size(); ++i) {
    both.active->Send(Chain(PatternBytes(i, 0, i < 4 ? 10 : 2 * kStreamPieceMax)),
                      fates[i].OnDone());
  }
  both.active->Send(Chain("unposted"));
  both.passive = nullptr;
  for (Fate& fate : fates) EXPECT_FALSE(Await(fate).ok());
  // Four had credits; whether the peer had them before it went, nobody can tell.
  for (size_t i = 0; i < fates.size(); ++i) {
    const absl::Status& status = fates[i].status();
    EXPECT_EQ(OutcomeOf(status), i < 4 ? RdmaOutcome::kInDoubt : RdmaOutcome::kNeverPosted)
        << i << " " << status;
    EXPECT_TRUE(IsReset(status)) << status;
  }
}

TEST_P(EndpointTest, AbortEndsEverythingNowAndResetsThePeer) {
  RdmaEndpoints both = OpenEndpoints();
  Fate received;
  both.active->Receive([done = received.OnDone()](absl::StatusOr<BufferChain> message) mutable {
    std::move(done)(message.status());
  });
  both.active->Abort();
  EXPECT_TRUE(IsCancelled(Await(received))) << received.status();
  EXPECT_TRUE(IsReset(Receive(*both.passive).status()));
}

TEST_P(EndpointTest, CancelReceiveLosesNothing) {
  RdmaEndpoints both = OpenEndpoints();
  Fate received, second;
  const auto forward = [](Fate& fate) {
    return [done = fate.OnDone()](absl::StatusOr<BufferChain> message) mutable {
      std::move(done)(message.status());
    };
  };
  both.passive->Receive(forward(received));
  both.passive->Receive(forward(second));
  EXPECT_TRUE(absl::IsFailedPrecondition(Await(second)));
  both.passive->CancelReceive();
  EXPECT_FALSE(received.ended());
  EXPECT_TRUE(IsCancelled(Await(received)));
  EXPECT_TRUE(Send(*both.active, "kept").ok());
  EXPECT_EQ(*Receive(*both.passive), "kept");
}

TEST_P(EndpointTest, AnEndpointMayBeDestroyedInItsOwnCallbacks) {
  for (const bool active : {true, false}) {
    RdmaEndpoints both = OpenEndpoints();
    std::unique_ptr<RdmaEndpoint>& doomed = active ? both.active : both.passive;
    std::unique_ptr<RdmaEndpoint>& other = active ? both.passive : both.active;
    Fate unrun, sent;
    doomed->Send(Chain("one"), [&](absl::Status) { doomed = nullptr; });
    doomed->Send(Chain("two"), unrun.OnDone());
    doomed->Close(unrun.OnDone());
    EXPECT_TRUE(Drive([&] { return doomed == nullptr; }));
    EXPECT_EQ(unrun.runs(), 0);
    EXPECT_EQ(unrun.dropped(), 2);
    Receiver receiver(*other);
    EXPECT_TRUE(Drive([&] { return !receiver.end.ok(); }));
    EXPECT_TRUE(IsReset(receiver.end)) << receiver.end;
  }
}

TEST_P(EndpointTest, ALoopThatGoesFirstLeavesCallbacksUnrun) {
  RdmaEndpoints both = OpenEndpoints();
  std::array<char, 16> memory{};
  absl::StatusOr<RdmaRegion> region = both.passive->Expose(memory, RdmaAccess::kRead);
  ASSERT_TRUE(region.ok());
  Fate sent, received;
  both.active->Send(Chain("never"), sent.OnDone());
  both.passive->Receive([done = received.OnDone()](absl::StatusOr<BufferChain>) mutable {
    std::move(done)(absl::OkStatus());
  });
  TakeLoop() = nullptr;
  EXPECT_EQ(sent.dropped(), 1);
  EXPECT_EQ(received.dropped(), 1);
  both.active->Send(BufferChain());
  both.active->Close();
  both.active->Abort();
  EXPECT_FALSE(both.active->Expose(memory, RdmaAccess::kRead).ok());
}

TEST_P(EndpointTest, AnIdleEndpointHoldsNothing) {
  RdmaEndpoints both = OpenEndpoints();
  Settle();
  EXPECT_EQ(loop().Snapshot().pool.live, 0u);
  EXPECT_EQ(loop().Snapshot().pinned_bytes, 0u);
  for (const size_t size : {size_t{10}, 3 * kStreamPieceMax}) {
    both.active->Send(Chain(PatternBytes(1, 0, size)));
    EXPECT_EQ(Receive(*both.passive)->size(), size);
    Settle();
    EXPECT_EQ(loop().Snapshot().pool.live, 0u);
    EXPECT_EQ(loop().Snapshot().framed_pinned_bytes, 0u);
  }
}

TEST_P(EndpointTest, ItStaysOnItsLoop) {
  StreamPair streams = Pair();
  Connection* const connection = streams.client->connection();
  auto active = RdmaEndpoint::Connect(std::move(streams.client), Quiet());
  auto passive = RdmaEndpoint::Accept(std::move(streams.server), Quiet());
  ASSERT_TRUE(Open(*active).ok());
  EXPECT_NE(connection, nullptr);
  EXPECT_EQ(&active->loop(), &loop());
}

TEST(EndpointTableTest, ADeadEndpointStaysDeadAndEveryStateCanEnd) {
  for (size_t state = 0; state < kEndpointStates; ++state) {
    const auto& row = kEndpointTransitions[state];
    EXPECT_EQ(row[static_cast<size_t>(EndpointEvent::kEnd)], EndpointState::kDead);
    for (size_t event = 0; event < kEndpointEvents; ++event) {
      // Closing never leads back.
      EXPECT_GE(row[event], static_cast<EndpointState>(state));
    }
  }
}

TEST(EndpointTableTest, OnlyTheWordOfBothSidesLeadsFromTheLaneToTheStream) {
  using C = Carrier;
  constexpr std::array<std::array<Carrier, kCarrierEvents>, kCarriers> kExpected = {{
      // kUp, kTold, kHeard
      {C::kLane, C::kLeaving, C::kStream},     // kStream
      {C::kLane, C::kLeaving, C::kLane},       // kLane
      {C::kLeaving, C::kLeaving, C::kStream},  // kLeaving
  }};
  for (size_t carrier = 0; carrier < kCarriers; ++carrier) {
    for (size_t event = 0; event < kCarrierEvents; ++event) {
      EXPECT_EQ(kCarrierTransitions[carrier][event], kExpected[carrier][event])
          << carrier << ", " << event;
    }
  }
}

TEST(RdmaOutcomeTest, OnlyAStatusOfAnOperationCanSayNeverPosted) {
  EXPECT_EQ(OutcomeOf(absl::OkStatus()), RdmaOutcome::kDone);
  EXPECT_EQ(OutcomeOf(absl::CancelledError("x")), RdmaOutcome::kInDoubt);
  EXPECT_EQ(OutcomeOf(WithOutcome(absl::CancelledError("x"), RdmaOutcome::kNeverPosted)),
            RdmaOutcome::kNeverPosted);
  EXPECT_EQ(OutcomeOf(WithOutcome(absl::CancelledError("x"), RdmaOutcome::kInDoubt)),
            RdmaOutcome::kInDoubt);
}

INSTANTIATE_TEST_SUITE_P(Lanes, EndpointTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Environments, EndpointTest, ::testing::ValuesIn(RdmaEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
