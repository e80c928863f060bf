// Two sets of peers that dial each other, and anything that may happen to them, by the seed: at the
// end they have one endpoint, and every message has come at most once, and as its outcome says.
#include <penstock/rdma_peers.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "testing/environment.h"
#include "testing/peer_site.h"
#include "testing/rdma_pair.h"

namespace penstock::internal {
namespace {

struct PeerLetter {
  std::string text;
  size_t from;
  int life;  // of its sender
  Fate fate;
};

class PeerSeedsTest : public RdmaHarness {
 protected:
  static constexpr std::array<const char*, 2> kNames = {"a", "b"};

  void TearDown() override {
    EndStory();
    streams_.clear();
    RdmaHarness::TearDown();
  }

  void Make(size_t which) {
    RdmaPeerSetOptions options;
    options.name = kNames[which];
    options.endpoint = Quiet();
    options.pause_min = absl::Milliseconds(2);
    options.pause_max = absl::Milliseconds(20);
    options.probe_max = absl::Milliseconds(50);
    // Never the same twice in one story.
    sites_[which] = std::make_unique<PeerSite>(loop(), options, incarnations_.back());
    sites_[which]->drops_ended = drops_ended_;
    ++lives_[which];
    incarnations_.pop_back();
  }
  void Dial(size_t which) {
    auto connect = [this, which](RdmaDial::StreamCallback give) {
      if (streams_.empty() || sites_[1 - which] == nullptr) {
        return std::move(give)(absl::UnavailableError("connection refused"));
      }
      StreamPair pair = std::move(streams_.front());
      streams_.pop_front();
      sites_[1 - which]->set().Accept(std::move(pair.server), "");
      std::move(give)(std::move(pair.client));
    };
    sites_[which]->set().Dial(kNames[1 - which], std::move(connect)).IgnoreError();
  }
  void Send(size_t which) {
    PeerLetter& letter = Write(which, kNames[which]);
    const absl::Duration limit =
        Draw(3) == 0 ? absl::Milliseconds(Draw(20)) : absl::InfiniteDuration();
    auto done = [this, which, told = letter.fate.OnDone()](absl::Status status) mutable {
      const bool again = !status.ok() && retries_ > 0;
      std::move(told)(std::move(status));
      if (!again) return;
      --retries_;
      Send(which);
    };
    sites_[which]->set().Send(kNames[1 - which], Chain(letter.text), std::move(done), limit);
  }
  PeerLetter& Write(size_t from, std::string_view text) {
    PeerLetter& letter = letters_.emplace_back();
    letter.text = absl::StrCat(std::string(text), letters_.size());
    letter.from = from;
    letter.life = lives_[from];
    return letter;
  }
  // Its peer sees a reset, or an end.
  void EndEndpoint(size_t which) {
    if (RdmaEndpoint* const endpoint = sites_[which]->set().Find(kNames[1 - which])) {
      if (Draw(2) == 0) return endpoint->Abort();
      endpoint->Close();
    }
  }
  void StartAgain(size_t which) {
    Collect(which);
    sites_[which] = nullptr;
    if (Draw(2) == 0) Pass(absl::Milliseconds(Draw(5)));
    Make(which);
    if (Draw(2) == 0) Dial(which);
    started_again_ = true;
  }
  void Collect(size_t which) {
    if (sites_[which] == nullptr) return;
    for (const std::string& text : sites_[which]->received) ++received_[text];
  }
  void EndStory() {
    for (size_t which = 0; which < 2; ++which) sites_[which] = nullptr;
    letters_.clear();
    received_.clear();
    started_again_ = false;
  }
  uint32_t Draw(uint32_t below) { return std::uniform_int_distribution(0u, below - 1)(random_); }

  void Step(bool restarts) {
    const size_t which = Draw(2);
    switch (Draw(10)) {
      case 0:
        return EndEndpoint(which);
      case 1:
        if (restarts && incarnations_.size() > 4) return StartAgain(which);
        return Dial(which);
      case 2:
        sites_[which]->set().Forget(kNames[1 - which]);
        return Dial(which);
      case 3:
      case 4:
        return Pass(absl::Microseconds(Draw(5000)));
      default:
        return Send(which);
    }
  }
  bool Joined() {
    return sites_[0]->set().Find("b") != nullptr && sites_[1]->set().Find("a") != nullptr;
  }
  void Tell(uint64_t seed) {
    random_.seed(seed);
    drops_ended_ = seed % 4 >= 2;
    retries_ = 30;
    incarnations_.clear();
    for (int i = 1; i < 256; ++i) incarnations_.push_back(static_cast<uint8_t>(i));
    std::shuffle(incarnations_.begin(), incarnations_.end(), random_);
    while (streams_.size() < 60) streams_.push_back(Pair());
    for (size_t which = 0; which < 2; ++which) Make(which);
    Dial(0);
    if (Draw(2) == 0) Dial(1);
    for (int i = 0; i < 40; ++i) Step(/*restarts=*/seed % 2 == 1);
    // Calm: nothing more happens to them.
    for (size_t which = 0; which < 2; ++which) Dial(which);
    bool settled = false;
    // What was ended last may still be open.
    for (int round = 0; round < 8 && !settled; ++round) {
      ASSERT_TRUE(Drive([this] { return Joined(); }));
      const Fate last[2] = {SendLast(0), SendLast(1)};
      for (const Fate& fate : last) Await(fate).IgnoreError();
      settled = last[0].status().ok() && last[1].status().ok();
      if (!settled) Pass(absl::Milliseconds(20));
    }
    EXPECT_TRUE(settled);
    // What fails is sent again, so there may be more of them meanwhile.
    for (size_t i = 0; i < letters_.size(); ++i) Await(letters_[i].fate).IgnoreError();
    Settle();
    Judge();
  }
  Fate SendLast(size_t which) {
    PeerLetter& letter = Write(which, absl::StrCat("last of ", kNames[which]));
    sites_[which]->set().Send(kNames[1 - which], Chain(letter.text), letter.fate.OnDone(),
                              absl::InfiniteDuration());
    return letter.fate;
  }
  void Judge() {
    for (size_t which = 0; which < 2; ++which) {
      Collect(which);
      EXPECT_EQ(sites_[which]->set().stats().open, 1u);
      EXPECT_EQ(sites_[which]->set().stats().peers, 1u);
    }
    for (const PeerLetter& letter : letters_) {
      EXPECT_EQ(letter.fate.runs() + letter.fate.dropped(), 1) << letter.text;
      // Only the end of a set leaves callbacks unrun.
      if (letter.life == lives_[letter.from]) {
        EXPECT_EQ(letter.fate.runs(), 1) << letter.text;
      }
      EXPECT_LE(received_[letter.text], 1) << letter.text << ": " << letter.fate.status();
      if (letter.fate.runs() == 0) continue;
      const RdmaOutcome outcome = OutcomeOf(letter.fate.status());
      if (outcome == RdmaOutcome::kNeverPosted) {
        EXPECT_EQ(received_[letter.text], 0) << letter.text << ": " << letter.fate.status();
      } else if (outcome == RdmaOutcome::kDone && !started_again_ && !drops_ended_) {
        EXPECT_EQ(received_[letter.text], 1) << letter.text;
      }
    }
  }

  std::mt19937_64 random_;
  std::vector<uint8_t> incarnations_;
  std::deque<StreamPair> streams_;
  std::array<std::unique_ptr<PeerSite>, 2> sites_;
  std::deque<PeerLetter> letters_;
  std::map<std::string, int> received_;
  std::array<int, 2> lives_ = {};  // sets that there have been
  int retries_ = 0;                // that are still made of what has failed
  bool drops_ended_ = false;
  bool started_again_ = false;
};

TEST_P(PeerSeedsTest, AtTheEndThereIsOneEndpointAndEveryMessageCameAsItsOutcomeSays) {
  const int seeds = Scaled(1000);
  for (int seed = 1; seed <= seeds && !HasFailure(); ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Tell(static_cast<uint64_t>(seed));
    EndStory();
  }
}

INSTANTIATE_TEST_SUITE_P(Simulated, PeerSeedsTest, ::testing::ValuesIn(SimulatedRdmaEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
