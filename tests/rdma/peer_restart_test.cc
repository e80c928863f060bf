// Two sets of peers, one of which is destroyed and made anew while a relay between their streams
// keeps its end from the other: as when a machine loses its power.
#include <penstock/rdma_peers.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/peer_harness.h"

namespace penstock::internal {
namespace {

// Between two streams: what comes by one goes out by the other, until it is cut. From then on it
// takes what comes, ends and resets too, and gives nothing on; what it has kept goes on later.
class PeerRelay {
 public:
  PeerRelay(StreamPtr left, StreamPtr right) : left_(std::move(left)), right_(std::move(right)) {
    Copy(*left_, *right_, &kept_right_);
    Copy(*right_, *left_, &kept_left_);
  }
  void Cut() { cut_ = true; }
  // What came from the right since.
  void Release() {
    if (!kept_left_.empty()) left_->Write(std::exchange(kept_left_, {}));
  }
  bool kept() const { return !kept_left_.empty(); }

 private:
  void Copy(Stream& from, Stream& to, BufferChain* kept) {
    from.ReadReady([this, &from, &to, kept](absl::StatusOr<Buffer> bytes) {
      if (!bytes.ok()) {
        if (!cut_) to.Abort();
        return;
      }
      if (cut_) {
        kept->Append(*std::move(bytes));
      } else {
        to.Write(BufferChain(*std::move(bytes)));
      }
      Copy(from, to, kept);
    });
  }

  BufferChain kept_left_, kept_right_;
  StreamPtr left_, right_;
  bool cut_ = false;
};

class PeerRestartTest : public PeerHarness {
 protected:
  void TearDown() override {
    relays_.clear();
    PeerHarness::TearDown();
  }
  // To `site`, through a relay of its own, made of two of the streams that are prepared.
  RdmaPeerSet::Connector Through(std::unique_ptr<Site>& site) {
    return [this, &site](RdmaDial::StreamCallback give) {
      if (streams_.size() < 2 || site == nullptr) {
        return std::move(give)(absl::UnavailableError("connection refused"));
      }
      StreamPair near = Next();
      StreamPair far = Next();
      relays_.push_back(std::make_unique<PeerRelay>(std::move(near.server), std::move(far.client)));
      site->set().Accept(std::move(far.server), "");
      std::move(give)(std::move(near.client));
    };
  }
  // `b` goes, and is there again, with another incarnation; nobody hears of its end.
  void StartAgain() {
    for (const auto& relay : relays_) relay->Cut();
    b_ = nullptr;
    Settle();
    EXPECT_TRUE(a_->ends.empty());
    b_ = std::make_unique<Site>(loop(), Named("b"), 0x21);
  }
  bool DriveJoinedAgain() {
    return Drive([this] { return a_->opened == 2 && b_->set().Find("a") != nullptr; });
  }
  size_t Came(const std::string& text) const {
    return static_cast<size_t>(std::count(b_->received.begin(), b_->received.end(), text));
  }

  std::vector<std::unique_ptr<PeerRelay>> relays_;
};

TEST_P(PeerRestartTest, ThePeerThatComesAgainTakesThePlaceOfWhatItWas) {
  for (const bool a_dialled : {true, false}) {
    MakeSites();
    Prepare(8);
    auto& dialling = a_dialled ? a_ : b_;
    ASSERT_TRUE(dialling->set().Dial(a_dialled ? "b" : "a", Through(a_dialled ? b_ : a_)).ok());
    ASSERT_TRUE(DriveJoined());
    Fate before, lost, after;
    SendTo(*a_, "b", "before", before);
    EXPECT_TRUE(Await(before).ok()) << before.status();
    for (const auto& relay : relays_) relay->Cut();
    SendTo(*a_, "b", "lost", lost);
    StartAgain();
    // It knows no more of the old one's than anybody, and calls.
    ASSERT_TRUE(b_->set().Dial("a", Through(a_)).ok());
    ASSERT_TRUE(DriveJoinedAgain());
    EXPECT_EQ(a_->set().stats().restarts, 1u);
    EXPECT_EQ(a_->set().stats().open, 1u);
    ASSERT_EQ(a_->ends.size(), 1u);
    // Whether the old one had it, only a device may have told; the new one has not.
    ASSERT_TRUE(Drive([&] { return lost.ended(); }));
    if (!has_lanes()) {
      EXPECT_EQ(OutcomeOf(lost.status()), RdmaOutcome::kInDoubt) << lost.status();
    }
    EXPECT_NE(OutcomeOf(lost.status()), RdmaOutcome::kNeverPosted) << lost.status();
    SendTo(*a_, "b", "after", after);
    EXPECT_TRUE(Await(after).ok()) << after.status();
    EXPECT_TRUE(Drive([&] { return Came("after") == 1; }));
    EXPECT_EQ(b_->received, (std::vector<std::string>{"after"}));
    a_ = nullptr;
    b_ = nullptr;
    relays_.clear();
    streams_.clear();
  }
}

// Its last words, which the relay keeps, come before the new one calls, while it opens, or after.
TEST_P(PeerRestartTest, WhatTheOldOneSaidLateChangesNothing) {
  enum class When { kBefore, kWhileOpening, kAfter };
  for (const When when : {When::kBefore, When::kWhileOpening, When::kAfter}) {
    SCOPED_TRACE(static_cast<int>(when));
    MakeSites();
    Prepare(8);
    ASSERT_TRUE(a_->set().Dial("b", Through(b_)).ok());
    ASSERT_TRUE(DriveJoined());
    relays_.front()->Cut();
    b_->set().Find("a")->Close();
    ASSERT_TRUE(Drive([this] { return relays_.front()->kept(); }));
    StartAgain();
    const auto late = [&](When now) {
      if (when == now) relays_.front()->Release();
    };
    late(When::kBefore);
    ASSERT_TRUE(b_->set().Dial("a", Through(a_)).ok());
    ASSERT_TRUE(Drive([this] { return relays_.size() == 2; }));
    late(When::kWhileOpening);
    ASSERT_TRUE(DriveJoinedAgain());
    late(When::kAfter);
    Settle();
    EXPECT_FALSE(relays_.front()->kept());
    // Of the old one that it has ended, once, of the new one nothing but what it does.
    EXPECT_EQ(a_->opened, 2);
    EXPECT_EQ(a_->ends.size(), 1u);
    EXPECT_EQ(a_->set().stats().open, 1u);
    EXPECT_EQ(b_->opened, 1);
    EXPECT_TRUE(b_->ends.empty());
    Fate after;
    SendTo(*a_, "b", "after", after);
    EXPECT_TRUE(Await(after).ok()) << after.status();
    EXPECT_TRUE(Drive([&] { return Came("after") == 1; }));
    a_ = nullptr;
    b_ = nullptr;
    relays_.clear();
    streams_.clear();
  }
}

// The new one does not call: pings tell that the old one has gone.
TEST_P(PeerRestartTest, APeerThatIsSilentIsDialledAgain) {
  RdmaPeerSetOptions options = Named("a");
  options.endpoint.ping_interval = absl::Milliseconds(50);
  options.endpoint.pings_missed_max = 2;
  a_ = std::make_unique<Site>(loop(), options, 0x10);
  b_ = std::make_unique<Site>(loop(), Named("b"), 0x20);
  Prepare(8);
  ASSERT_TRUE(a_->set().Dial("b", Through(b_)).ok());
  ASSERT_TRUE(DriveJoined());
  for (const auto& relay : relays_) relay->Cut();
  b_ = std::make_unique<Site>(loop(), Named("b"), 0x21);
  Fate waits;
  ASSERT_TRUE(DriveJoinedAgain());
  ASSERT_EQ(a_->ends.size(), 1u);
  SendTo(*a_, "b", "to the new one", waits);
  EXPECT_TRUE(Await(waits).ok()) << waits.status();
  EXPECT_TRUE(Drive([&] { return Came("to the new one") == 1; }));
}

INSTANTIATE_TEST_SUITE_P(Environments, PeerRestartTest, ::testing::ValuesIn(RdmaEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Lanes, PeerRestartTest, ::testing::ValuesIn(SimulatedLaneEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
