// RdmaPeerSet among strangers and in callbacks that start work: nothing that was asked for is
// forgotten, and no callback is lost.
#include <penstock/rdma_peers.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "rdma/control_codec.h"
#include "testing/peer_harness.h"

namespace penstock::internal {
namespace {

class PeerTroubleTest : public PeerHarness {
 protected:
  // Has room for nothing, so that it is refused for good.
  void StrangerComes(uint8_t incarnation) {
    const auto stranger = Come(*a_, "b", incarnation, 1, /*depth=*/0);
    ASSERT_TRUE(Drive([&] { return stranger->ended(); }));
    Settle();
  }
};

TEST_P(PeerTroubleTest, AStrangerThatIsAnsweredDoesNotEndTheWish) {
  MakeSites();
  ASSERT_TRUE(a_->set().Dial("b", To(b_)).ok());
  StrangerComes(0x77);
  EXPECT_TRUE(a_->ends.empty());
  Prepare(1);
  ASSERT_TRUE(DriveJoined());
  // It takes the place of what is open, and goes: the peer is dialled again.
  Prepare(1);
  StrangerComes(0x78);
  EXPECT_EQ(a_->ends.size(), 1u);
  ASSERT_TRUE(Drive([this] { return a_->opened == 2; }));
  Fate sent;
  SendTo(*a_, "b", "found again", sent);
  EXPECT_TRUE(Await(sent).ok()) << sent.status();
}

// The callbacks of what has failed take many turns, and each sends again.
TEST_P(PeerTroubleTest, WhatIsSentWhenAnEndpointHasDiedIsNotLostWithIt) {
  MakeSites();
  a_->drops_ended = true;
  raw_.push_back(Come(*a_, "b", 0x20, 1));
  ASSERT_TRUE(Drive([this] { return a_->opened == 1; }));
  constexpr size_t kWorks = 100;
  std::array<Fate, kWorks> first, again;
  for (size_t i = 0; i < kWorks; ++i) {
    auto done = [this, told = first[i].OnDone(), retry = &again[i]](absl::Status status) mutable {
      EXPECT_EQ(a_->set().Find("b"), nullptr);
      EXPECT_TRUE(a_->ends.empty());
      std::move(told)(std::move(status));
      SendTo(*a_, "b", "again", *retry);
    };
    a_->set().Send("b", Chain("first"), std::move(done), absl::InfiniteDuration());
  }
  raw_.clear();
  for (size_t i = 0; i < kWorks; ++i) {
    EXPECT_FALSE(Await(first[i]).ok());
    EXPECT_FALSE(Await(again[i]).ok());
    EXPECT_EQ(first[i].runs(), 1);
    EXPECT_EQ(again[i].runs(), 1);
    EXPECT_EQ(OutcomeOf(again[i].status()), RdmaOutcome::kNeverPosted);
  }
  EXPECT_EQ(a_->ends.size(), 1u);
}

TEST_P(PeerTroubleTest, WhatIsSentWhenAnEndpointHasDiedGoesByTheNextOne) {
  MakeSites();
  a_->drops_ended = true;
  Prepare(2);
  ASSERT_TRUE(a_->set().Dial("b", To(b_)).ok());
  ASSERT_TRUE(DriveJoined());
  Fate again;
  a_->set().Find("b")->Abort();
  EXPECT_EQ(a_->set().Find("b"), nullptr);
  EXPECT_EQ(a_->set().stats().open, 0u);
  SendTo(*a_, "b", "again", again);
  EXPECT_TRUE(Await(again).ok()) << again.status();
  EXPECT_EQ(a_->opened, 2);
}

TEST_P(PeerTroubleTest, RevocationsEndBeforeTheEndpointIsGivenAway) {
  MakeSites();
  a_->drops_ended = true;
  raw_.push_back(Come(*a_, "b", 0x20, 1));
  ASSERT_TRUE(Drive([this] { return a_->opened == 1; }));
  char memory[64];
  std::vector<RdmaRegion> regions;
  std::array<Fate, 5> revoked;
  for (Fate& fate : revoked) {
    auto region = a_->set().Find("b")->Expose(memory, RdmaAccess::kRead);
    ASSERT_TRUE(region.ok()) << region.status();
    regions.push_back(*std::move(region));
    regions.back().Revoke(fate.OnDone());  // which the peer does not answer
  }
  Settle();
  raw_.clear();
  ASSERT_TRUE(Drive([this] { return !a_->ends.empty(); }));
  for (const Fate& fate : revoked) EXPECT_EQ(fate.runs(), 1);
}

TEST_P(PeerTroubleTest, ACallbackOfWhatTheConnectorGivesRunsBehindIt) {
  MakeSites();
  bool behind = false;
  const auto refuse = [&, mine = std::make_shared<int>(1)](RdmaDial::StreamCallback give) {
    const std::weak_ptr<int> watched = mine;
    std::move(give)(absl::PermissionDeniedError("not allowed"));
    EXPECT_TRUE(a_->ends.empty());
    EXPECT_FALSE(watched.expired());
    behind = true;
  };
  // The next one takes the place of the one that has given.
  Prepare(1);
  a_->at_end = [this] { EXPECT_TRUE(a_->set().Dial("b", To(b_)).ok()); };
  ASSERT_TRUE(a_->set().Dial("b", refuse).ok());
  ASSERT_TRUE(DriveJoined());
  EXPECT_TRUE(behind);
  EXPECT_EQ(a_->ends.size(), 1u);
}

TEST_P(PeerTroubleTest, FailedCallsOfASetTakeNoPlaceOfThoseThatCome) {
  RdmaPeerSetOptions options = Named("a");
  options.accepts_max = 1;
  a_ = std::make_unique<Site>(loop(), options, 0x10);
  Prepare(3);
  const auto to_nobody = [this](RdmaDial::StreamCallback give) {
    if (streams_.empty()) return;
    StreamPair pair = Next();
    pair.server->Abort();
    std::move(give)(std::move(pair.client));
  };
  ASSERT_TRUE(a_->set().Dial("c", to_nobody).ok());
  ASSERT_TRUE(Drive([this] { return a_->set().stats().attempts == 4; }));
  raw_.push_back(Come(*a_, "b", 0x20, 1));
  ASSERT_TRUE(Drive([this] { return a_->opened == 1; }));
  EXPECT_EQ(a_->set().stats().refused, 0u);
}

// The peer asks for 49 days.
TEST_P(PeerTroubleTest, APeerMayNotAskForAPauseWithoutBound) {
  if (!GetParam().name.starts_with("Simulated")) GTEST_SKIP() << "it takes a minute";
  a_ = std::make_unique<Site>(loop(), Named("a"), 0x10);
  StreamPair pair = Pair();
  const auto once = [this, &pair](RdmaDial::StreamCallback give) {
    times_.push_back(loop().now());
    if (pair.client != nullptr) std::move(give)(std::move(pair.client));
  };
  ASSERT_TRUE(a_->set().Dial("b", once).ok());
  ASSERT_TRUE(Drive([this] { return times_.size() == 1; }));
  pair.server->Write(*loop().pool().Copy(EncodeControl(
      ControlReject{.code = RejectCode::kBusy, .retry_after_ms = UINT32_MAX, .text = "not now"})));
  Pass(absl::Seconds(59));
  EXPECT_EQ(times_.size(), 1u);
  Pass(absl::Seconds(2));
  EXPECT_EQ(times_.size(), 2u);
}

TEST_P(PeerTroubleTest, PausesBeginAnewWhenTheProgramItselfEndsWhatHasMovedBytes) {
  if (!GetParam().name.starts_with("Simulated")) GTEST_SKIP() << "it counts milliseconds";
  RdmaPeerSetOptions options = Named("a");
  options.pause_min = absl::Milliseconds(8);
  options.pause_max = absl::Seconds(1);
  a_ = std::make_unique<Site>(loop(), options, 0x10);
  b_ = std::make_unique<Site>(loop(), Named("b"), 0x20);
  ASSERT_TRUE(a_->set().Dial("b", To(b_)).ok());
  // In vain, with pauses that grow.
  ASSERT_TRUE(Drive([this] { return times_.size() == 6; }));
  Prepare(2);
  ASSERT_TRUE(DriveJoined());
  Fate sent;
  SendTo(*a_, "b", "moved", sent);
  EXPECT_TRUE(Await(sent).ok());
  const absl::Time ended = loop().now();
  a_->set().Find("b")->Abort();
  ASSERT_TRUE(Drive([this] { return a_->opened == 2; }));
  EXPECT_LE(times_.back() - ended, absl::Milliseconds(16));
}

INSTANTIATE_TEST_SUITE_P(Environments, PeerTroubleTest, ::testing::ValuesIn(RdmaEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Lanes, PeerTroubleTest, ::testing::ValuesIn(SimulatedLaneEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
