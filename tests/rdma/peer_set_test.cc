// RdmaPeerSet: one endpoint to each peer, whoever dials, whatever is lost, whoever starts again.
#include <penstock/rdma_peers.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "testing/peer_harness.h"

namespace penstock::internal {
namespace {

class PeerSetTest : public PeerHarness {};

TEST_P(PeerSetTest, BothDialAndOneEndpointIsLeftWithAllMessagesOnce) {
  for (const auto& [a, b] : {std::pair{0x10, 0x20}, std::pair{0x20, 0x10}}) {
    Prepare(8);
    MakeSites(static_cast<uint8_t>(a), static_cast<uint8_t>(b));
    ASSERT_TRUE(a_->set().Dial("b", To(b_)).ok());
    ASSERT_TRUE(b_->set().Dial("a", To(a_)).ok());
    std::deque<Fate> fates;
    std::vector<std::string> expected;
    for (int i = 0; i < 5; ++i) {
      expected.push_back(absl::StrCat("message ", i));
      SendTo(*a_, "b", expected.back(), fates.emplace_back());
      SendTo(*b_, "a", expected.back(), fates.emplace_back());
    }
    ASSERT_TRUE(DriveJoined());
    for (Fate& fate : fates) EXPECT_TRUE(Await(fate).ok()) << fate.status();
    EXPECT_TRUE(Drive([&] { return a_->received.size() == 5 && b_->received.size() == 5; }));
    EXPECT_EQ(a_->received, expected);
    EXPECT_EQ(b_->received, expected);
    EXPECT_EQ(a_->opened, 1);
    EXPECT_EQ(b_->opened, 1);
    EXPECT_TRUE(a_->ends.empty());
    EXPECT_TRUE(b_->ends.empty());
    EXPECT_EQ(a_->set().stats().open, 1u);
    a_ = nullptr;
    b_ = nullptr;
  }
}

TEST_P(PeerSetTest, APeerThatWasStartedAgainTakesThePlaceOfWhatItWas) {
  MakeSites();
  Prepare(2);
  ASSERT_TRUE(b_->set().Dial("a", To(a_)).ok());
  ASSERT_TRUE(DriveJoined());
  Fate before;
  SendTo(*a_, "b", "to the old one", before);
  EXPECT_TRUE(Await(before).ok());
  // The old one says no word: as if it were on a machine that has lost its power.
  kept_.push_back(std::move(b_));
  kept_.back()->set().Find("a")->CancelReceive();
  b_ = std::make_unique<Site>(loop(), Named("b"), 0x30);
  ASSERT_TRUE(b_->set().Dial("a", To(a_)).ok());
  ASSERT_TRUE(Drive([this] { return a_->opened == 2; }));
  ASSERT_EQ(a_->ends.size(), 1u);
  EXPECT_TRUE(absl::IsUnavailable(a_->ends[0])) << a_->ends[0];
  EXPECT_EQ(a_->set().stats().restarts, 1u);
  EXPECT_EQ(a_->set().stats().probes, 0u);
  Fate after;
  SendTo(*a_, "b", "to the new one", after);
  EXPECT_TRUE(Await(after).ok());
  EXPECT_TRUE(Drive([this] { return !b_->received.empty(); }));
  EXPECT_EQ(b_->received, std::vector<std::string>{"to the new one"});
  // What the old one still says is late.
  auto late = Come(*a_, "b", 0x20, 1'000'000'000);
  ASSERT_TRUE(Drive([&] { return late->ended(); }));
  EXPECT_TRUE(Superseded(*late));
  EXPECT_EQ(a_->opened, 2);
}

TEST_P(PeerSetTest, WhatWasPostedToAPeerThatStartedAgainIsInDoubt) {
  MakeSites();
  raw_.push_back(Come(*a_, "b", 0x20, 1));
  ASSERT_TRUE(Drive([this] { return a_->opened == 1; }));
  std::deque<Fate> fates;
  // The peer has room for 4. The callbacks of the rest take many turns.
  constexpr size_t kWorks = 1000;
  for (size_t i = 0; i < kWorks; ++i) SendTo(*a_, "b", "never answered", fates.emplace_back());
  ASSERT_TRUE(Drive([this] { return raw_[0]->data().size() == 4; }));
  a_->at_open = [&] {
    EXPECT_EQ(a_->ends.size(), 1u) << "the end of one is told before the next one opens";
    for (size_t i = 0; i < kWorks; ++i) {
      ASSERT_TRUE(fates[i].ended());
      EXPECT_EQ(OutcomeOf(fates[i].status()),
                i < 4 ? RdmaOutcome::kInDoubt : RdmaOutcome::kNeverPosted);
    }
  };
  raw_.push_back(Come(*a_, "b", 0x30, 1));
  Fate next;
  ASSERT_TRUE(Drive([this] { return raw_[1]->open(); }));
  SendTo(*a_, "b", "to the next one", next);
  ASSERT_TRUE(Drive([this] { return !raw_[1]->data().empty(); }));
  EXPECT_EQ(a_->opened, 2);
}

TEST_P(PeerSetTest, AnEndpointThatAnswersIsKept) {
  MakeSites();
  Prepare(1);
  ASSERT_TRUE(b_->set().Dial("a", To(a_)).ok());
  ASSERT_TRUE(DriveJoined());
  auto again = Come(*a_, "b", 0x20, 1'000'000'000);
  ASSERT_TRUE(Drive([&] { return again->ended(); }));
  EXPECT_TRUE(Superseded(*again));
  EXPECT_EQ(a_->set().stats().probes, 1u);
  EXPECT_EQ(a_->set().stats().superseded, 1u);
  EXPECT_EQ(a_->opened, 1);
  EXPECT_TRUE(a_->ends.empty());
}

TEST_P(PeerSetTest, AnEndpointThatDoesNotAnswerIsReplaced) {
  RdmaPeerSetOptions options = Named("a");
  options.probe_max = absl::Milliseconds(30);
  a_ = std::make_unique<Site>(loop(), options, 0x10);
  raw_.push_back(Come(*a_, "b", 0x20, 5));  // which answers no PING
  ASSERT_TRUE(Drive([this] { return a_->opened == 1; }));
  raw_.push_back(Come(*a_, "b", 0x20, 6));
  ASSERT_TRUE(Drive([this] { return a_->opened == 2; }));
  ASSERT_EQ(a_->ends.size(), 1u);
  EXPECT_TRUE(raw_[1]->open());
  EXPECT_NE(raw_[0]->Last<ControlPing>(), nullptr);
  // An attempt that was given up before that one.
  auto late = Come(*a_, "b", 0x20, 4);
  ASSERT_TRUE(Drive([&] { return late->ended(); }));
  EXPECT_TRUE(Superseded(*late));
  EXPECT_EQ(a_->set().stats().probes, 1u);
}

TEST_P(PeerSetTest, AHeldCallThatGoesLeavesTheProbe) {
  RdmaPeerSetOptions options = Named("a");
  options.probe_max = absl::Milliseconds(30);
  a_ = std::make_unique<Site>(loop(), options, 0x10);
  raw_.push_back(Come(*a_, "b", 0x20, 5));  // which answers no PING
  ASSERT_TRUE(Drive([this] { return a_->opened == 1; }));
  // It waits less long for its answer than the endpoint has for its own.
  auto held = Come(*a_, "b", 0x20, 6);
  ASSERT_TRUE(Drive([this] { return a_->set().stats().probes == 1; }));
  held = nullptr;
  ASSERT_TRUE(Drive([this] { return !a_->ends.empty(); }));
  EXPECT_TRUE(absl::IsUnavailable(a_->ends[0])) << a_->ends[0];
  raw_.push_back(Come(*a_, "b", 0x20, 7));
  ASSERT_TRUE(Drive([this] { return a_->opened == 2; }));
}

TEST_P(PeerSetTest, WhatIsLostIsDialledAgain) {
  MakeSites();
  Prepare(4);
  ASSERT_TRUE(a_->set().Dial("b", To(b_)).ok());
  for (int round = 1; round <= 3; ++round) {
    ASSERT_TRUE(Drive([&] { return a_->opened == round && b_->opened == round; }));
    Fate sent;
    SendTo(*b_, "a", "hello", sent);
    EXPECT_TRUE(Await(sent).ok());
    b_->set().Find("a")->Abort();
    ASSERT_TRUE(Drive([&] { return a_->ends.size() == static_cast<size_t>(round); }));
    EXPECT_TRUE(absl::IsUnavailable(a_->ends.back())) << a_->ends.back();
    EXPECT_TRUE(absl::IsCancelled(b_->ends.back())) << b_->ends.back();
  }
  EXPECT_EQ(a_->received.size(), 3u);
}

TEST_P(PeerSetTest, PausesGrowUntilBytesHaveMoved) {
  RdmaPeerSetOptions options = Named("a");
  options.pause_min = absl::Milliseconds(8);
  options.pause_max = absl::Seconds(1);
  a_ = std::make_unique<Site>(loop(), options, 0x10);
  b_ = std::make_unique<Site>(loop(), Named("b"), 0x20);
  Prepare(6);
  // Opens, and is gone: nothing has moved.
  b_->at_open = [this] { b_->set().Find("a")->Abort(); };
  ASSERT_TRUE(a_->set().Dial("b", To(b_)).ok());
  ASSERT_TRUE(Drive([this] { return times_.size() == 5; }));
  for (int i = 1; i < 5; ++i) {
    EXPECT_GE(times_[i] - times_[i - 1], absl::Milliseconds(4 << (i - 1))) << i;
  }
  // The pause that was being doubled begins anew.
  b_->at_open = nullptr;
  ASSERT_TRUE(DriveJoined());
  Fate sent;
  SendTo(*a_, "b", "moved", sent);
  EXPECT_TRUE(Await(sent).ok());
  const absl::Time lost = loop().now();
  b_->set().Find("a")->Abort();
  ASSERT_TRUE(Drive([this] { return times_.size() == 6; }));
  EXPECT_GE(times_.back() - lost, absl::Milliseconds(4));
  if (absl::StartsWith(GetParam().name, "Simulated")) {
    EXPECT_LE(times_.back() - lost, absl::Milliseconds(16)) << "it began anew";
  }
}

TEST_P(PeerSetTest, NamesTellPeersApart) {
  MakeSites();
  EXPECT_TRUE(absl::IsInvalidArgument(a_->set().Dial("", To(b_))));
  EXPECT_TRUE(absl::IsInvalidArgument(a_->set().Dial("a", To(b_)))) << "its own";
  EXPECT_TRUE(absl::IsInvalidArgument(a_->set().Dial("b\n", To(b_))));
  raw_.push_back(Come(*a_, "", 0xab, 1));
  raw_.push_back(Come(*a_, "b", 0xab, 2));
  ASSERT_TRUE(Drive([this] { return a_->opened == 2; }));
  EXPECT_NE(a_->set().Find("b"), nullptr);
  EXPECT_NE(a_->set().Find("incarnation abababababababababababababababab"), nullptr);
  EXPECT_EQ(a_->set().stats().peers, 2u);
  // Whatever it says of itself.
  StreamPair streams = Pair();
  a_->set().Accept(std::move(streams.server), "known by its certificate");
  GateOptions options = RawPeer::Options(GateRole::kActive);
  options.name = "b";
  raw_.push_back(std::make_unique<RawPeer>(
      std::move(streams.client), options,
      GateOffer{.lanes = {}, .terms = {.depth = 4, .size = 1024, .read_depth = 2}}));
  ASSERT_TRUE(Drive([this] { return a_->opened == 3; }));
  EXPECT_NE(a_->set().Find("known by its certificate"), nullptr);
}

TEST_P(PeerSetTest, WorkForNobodyIsRefused) {
  MakeSites();
  Fate nobody;
  SendTo(*a_, "b", "x", nobody);
  EXPECT_FALSE(nobody.ended()) << "not in the call";
  EXPECT_TRUE(absl::IsNotFound(Await(nobody))) << nobody.status();
  EXPECT_EQ(OutcomeOf(nobody.status()), RdmaOutcome::kNeverPosted);
}

TEST_P(PeerSetTest, WorkThatWaitsIsBoundedAndHasItsLimit) {
  RdmaPeerSetOptions options = Named("a");
  options.endpoint.queue_operations_max = 2;
  a_ = std::make_unique<Site>(loop(), options, 0x10);
  ASSERT_TRUE(a_->set().Dial("b", To(b_)).ok());
  Fate expires;
  a_->set().Send("b", Chain("1"), expires.OnDone(), absl::Milliseconds(15));
  Fate waits;
  SendTo(*a_, "b", "2", waits);
  Fate refused;
  SendTo(*a_, "b", "3", refused);
  EXPECT_TRUE(absl::IsResourceExhausted(Await(refused))) << refused.status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(Await(expires))) << expires.status();
  EXPECT_FALSE(waits.ended());
  a_->set().Forget("b");
  EXPECT_TRUE(absl::IsCancelled(Await(waits))) << waits.status();
  for (const Fate& fate : {refused, expires, waits}) {
    EXPECT_EQ(OutcomeOf(fate.status()), RdmaOutcome::kNeverPosted);
  }
  EXPECT_EQ(a_->set().stats().peers, 0u);
}

TEST_P(PeerSetTest, WhatWaitedIsSentInOrderWithItsLimitsKept) {
  RdmaPeerSetOptions options = Named("a");
  a_ = std::make_unique<Site>(loop(), options, 0x10);
  ASSERT_TRUE(a_->set().Dial("b", To(b_)).ok());
  std::deque<Fate> fates;
  for (const char* text : {"1", "2", "3"}) {
    a_->set().Send("b", Chain(text), fates.emplace_back().OnDone(), absl::Hours(1));
  }
  Prepare(1);
  b_ = std::make_unique<Site>(loop(), Named("b"), 0x20);
  for (Fate& fate : fates) EXPECT_TRUE(Await(fate).ok()) << fate.status();
  EXPECT_TRUE(Drive([this] { return b_->received.size() == 3; }));
  EXPECT_EQ(b_->received, (std::vector<std::string>{"1", "2", "3"}));
}

TEST_P(PeerSetTest, WhatWaitingDoesNotMendEndsTheWish) {
  MakeSites();
  Fate waits;
  const auto refuse = [](RdmaDial::StreamCallback give) {
    std::move(give)(absl::PermissionDeniedError("not allowed"));
  };
  ASSERT_TRUE(a_->set().Dial("b", refuse).ok());
  EXPECT_TRUE(absl::IsAlreadyExists(a_->set().Dial("b", refuse)));
  SendTo(*a_, "b", "x", waits);
  EXPECT_TRUE(absl::IsPermissionDenied(Await(waits))) << waits.status();
  ASSERT_TRUE(Drive([this] { return !a_->ends.empty(); }));
  EXPECT_TRUE(absl::IsPermissionDenied(a_->ends[0])) << a_->ends[0];
  EXPECT_EQ(a_->set().stats().attempts, 1u);
  EXPECT_TRUE(a_->set().Dial("b", refuse).ok()) << "it may be asked for again";
}

TEST_P(PeerSetTest, AConnectorThatNeverAnswersIsAskedAgain) {
  RdmaPeerSetOptions options = Named("a");
  options.connect_max = absl::Milliseconds(10);
  a_ = std::make_unique<Site>(loop(), options, 0x10);
  b_ = std::make_unique<Site>(loop(), Named("b"), 0x20);
  Prepare(2);
  RdmaDial::StreamCallback never;
  ASSERT_TRUE(a_->set()
                  .Dial("b",
                        [&, to = To(b_)](RdmaDial::StreamCallback give) mutable {
                          if (never == nullptr) {
                            never = std::move(give);
                          } else {
                            to(std::move(give));
                          }
                        })
                  .ok());
  ASSERT_TRUE(DriveJoined());
  // It is of no use any more.
  std::move(never)(std::move(Next().client));
  Settle();
  EXPECT_EQ(a_->opened, 1);
  EXPECT_EQ(a_->set().stats().open, 1u);
}

TEST_P(PeerSetTest, PeersAndStreamsAreBounded) {
  RdmaPeerSetOptions options = Named("a");
  options.peers_max = 1;
  options.accepts_max = 2;
  options.retry_after = absl::Milliseconds(1234);
  a_ = std::make_unique<Site>(loop(), options, 0x10);
  raw_.push_back(Come(*a_, "b", 0x20, 1));
  ASSERT_TRUE(Drive([this] { return a_->opened == 1; }));
  raw_.push_back(Come(*a_, "c", 0x30, 1));
  ASSERT_TRUE(Drive([this] { return raw_[1]->ended(); }));
  ASSERT_NE(raw_[1]->Last<ControlReject>(), nullptr);
  EXPECT_EQ(raw_[1]->Last<ControlReject>()->code, RejectCode::kBusy);
  EXPECT_EQ(raw_[1]->Last<ControlReject>()->retry_after_ms, 1234u);
  EXPECT_TRUE(absl::IsResourceExhausted(a_->set().Dial("d", To(b_))));
  // Those that say nothing.
  std::vector<StreamPtr> silent;
  for (int i = 0; i < 3; ++i) {
    StreamPair streams = Pair();
    a_->set().Accept(std::move(streams.server), "");
    silent.push_back(std::move(streams.client));
  }
  EXPECT_GE(a_->set().stats().refused, 2u);
  EXPECT_FALSE(ReadToEnd(*silent.back()).end.ok());
  if (!absl::StartsWith(GetParam().name, "Simulated")) return;
  // Those that were refused have gone, and so have those that say nothing: there is room again.
  Pass(absl::Seconds(10));
  const uint64_t refused = a_->set().stats().refused;
  raw_.push_back(Come(*a_, "b", 0x21, 1));
  ASSERT_TRUE(Drive([this] { return a_->opened == 2; }));
  EXPECT_EQ(a_->set().stats().refused, refused);
}

TEST_P(PeerSetTest, OptionsThatAreNoneRefuseEverything) {
  RdmaPeerSetOptions pause = Named("a");
  pause.pause_min = absl::ZeroDuration();
  RdmaPeerSetOptions of_endpoints = Named("a");
  of_endpoints.endpoint.lanes = 9;
  for (const RdmaPeerSetOptions& options : {pause, of_endpoints}) {
    a_ = std::make_unique<Site>(loop(), options, 0x10);
    const absl::Status status = a_->set().Dial("b", To(b_));
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    Fate sent;
    SendTo(*a_, "b", "x", sent);
    EXPECT_TRUE(absl::IsInvalidArgument(Await(sent))) << sent.status();
  }
}

TEST_P(PeerSetTest, ForgettingEndsTheEndpointAndTheDialling) {
  MakeSites();
  Prepare(2);
  ASSERT_TRUE(a_->set().Dial("b", To(b_)).ok());
  ASSERT_TRUE(DriveJoined());
  a_->set().Forget("b");
  EXPECT_EQ(a_->set().Find("b"), nullptr);
  EXPECT_TRUE(a_->ends.empty()) << "not in the call";
  ASSERT_TRUE(Drive([this] { return !a_->ends.empty() && !b_->ends.empty(); }));
  EXPECT_TRUE(absl::IsCancelled(a_->ends[0])) << a_->ends[0];
  EXPECT_TRUE(absl::IsUnavailable(b_->ends[0])) << b_->ends[0];
  Settle();
  EXPECT_EQ(a_->set().stats().attempts, 1u);
  EXPECT_EQ(a_->set().stats().peers, 0u);
  EXPECT_EQ(b_->set().stats().peers, 0u) << "which had not dialled";
}

TEST_P(PeerSetTest, AnyCallbackMayDestroyTheSet) {
  Prepare(12);
  const auto fresh = [this] {
    MakeSites();
    EXPECT_TRUE(a_->set().Dial("b", To(b_)).ok());
  };
  fresh();
  a_->at_open = [this] { kept_.push_back(std::move(a_)), kept_.back()->set().Release(); };
  ASSERT_TRUE(Drive([this] { return a_ == nullptr; }));
  fresh();
  a_->at_end = [this] { kept_.push_back(std::move(a_)), kept_.back()->set().Release(); };
  ASSERT_TRUE(DriveJoined());
  b_->set().Find("a")->Abort();
  ASSERT_TRUE(Drive([this] { return a_ == nullptr; }));
  // In the callback of an operation, of an endpoint or of none, and in the connector.
  fresh();
  ASSERT_TRUE(DriveJoined());
  Fate dropped;
  a_->set().Send(
      "b", Chain("x"), [this](const absl::Status&) { a_ = nullptr; }, absl::InfiniteDuration());
  SendTo(*a_, "b", "y", dropped);
  ASSERT_TRUE(Drive([this] { return a_ == nullptr; }));
  EXPECT_EQ(dropped.dropped(), 1);
  fresh();
  a_->set().Send(
      "nobody", Chain("x"), [this](const absl::Status&) { a_ = nullptr; },
      absl::InfiniteDuration());
  ASSERT_TRUE(Drive([this] { return a_ == nullptr; }));
  MakeSites();
  ASSERT_TRUE(a_->set()
                  .Dial("b",
                        [this](RdmaDial::StreamCallback give) {
                          a_ = nullptr;
                          std::move(give)(std::move(Next().client));
                        })
                  .ok());
  ASSERT_TRUE(Drive([this] { return a_ == nullptr; }));
  Settle();
}

TEST_P(PeerSetTest, AnEndedEndpointStillGivesWhatHadCome) {
  MakeSites();
  Prepare(1);
  std::unique_ptr<RdmaEndpoint> ended;
  RdmaPeerSet reader(
      loop(), Named("r"), [](const std::string&, RdmaEndpoint&) {},
      [&](const std::string&, std::unique_ptr<RdmaEndpoint> endpoint, absl::Status) {
        ended = std::move(endpoint);
      });
  ASSERT_TRUE(b_->set()
                  .Dial("r",
                        [&](RdmaDial::StreamCallback give) {
                          StreamPair pair = Next();
                          reader.Accept(std::move(pair.server));
                          std::move(give)(std::move(pair.client));
                        })
                  .ok());
  Fate sent;
  SendTo(*b_, "r", "the last word", sent);
  EXPECT_TRUE(Await(sent).ok());
  b_ = nullptr;
  ASSERT_TRUE(Drive([&] { return ended != nullptr; }));
  EXPECT_EQ(*Receive(*ended), "the last word");
  EXPECT_FALSE(Receive(*ended).ok());
}

INSTANTIATE_TEST_SUITE_P(Environments, PeerSetTest, ::testing::ValuesIn(RdmaEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Lanes, PeerSetTest, ::testing::ValuesIn(SimulatedLaneEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
