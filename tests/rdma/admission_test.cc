#include "rdma/admission.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

using Answer = Admission::Answer;

constexpr AdmissionOptions kSmall = {
    .concurrent = 2, .waiting = 3, .retry_after = absl::Milliseconds(100)};

class AdmissionTest : public ::testing::Test {
 protected:
  ~AdmissionTest() override { on_admitted_ = nullptr; }

  // Asks for place `index`, which notes when it is admitted later.
  Answer Ask(size_t index) {
    return admission_.Ask(places_[index], 1, [this, index] {
      order_.push_back(static_cast<int>(index));
      if (on_admitted_) on_admitted_(index);
    });
  }

  std::vector<int> order_;
  std::function<void(size_t)> on_admitted_;
  Admission admission_{kSmall};
  // Going, they admit one another.
  std::vector<Admission::Place> places_{10};
};

TEST_F(AdmissionTest, AdmitsSomeLetsSomeWaitAndRefusesTheRest) {
  EXPECT_EQ(Ask(0), Answer::kAdmitted);
  EXPECT_EQ(Ask(1), Answer::kAdmitted);
  for (size_t i = 2; i < 5; ++i) EXPECT_EQ(Ask(i), Answer::kWaiting);
  EXPECT_EQ(Ask(5), Answer::kBusy);
  EXPECT_FALSE(places_[5].admitted());
  EXPECT_EQ(admission_.stats().running, 2u);
  EXPECT_EQ(admission_.stats().waiting, 3u);
  EXPECT_EQ(admission_.stats().refused, 1u);
  places_[1].Leave();
  EXPECT_EQ(order_, std::vector<int>({2}));
  EXPECT_TRUE(places_[2].admitted());
  EXPECT_EQ(Ask(5), Answer::kWaiting) << "there is room in the line again";
  places_[0].Leave();
  places_[2].Leave();
  EXPECT_EQ(order_, std::vector<int>({2, 3, 4}));
  EXPECT_EQ(admission_.stats().admitted, 5u);
}

// What costs the device so much is counted as much, and comes in its turn all the same.
TEST_F(AdmissionTest, OneOfManyLanesTakesAsManyPlaces) {
  EXPECT_EQ(admission_.Ask(places_[0], 1, [] {}), Answer::kAdmitted);
  bool both = false;
  EXPECT_EQ(admission_.Ask(places_[1], 2, [&] { both = true; }), Answer::kWaiting);
  EXPECT_EQ(Ask(2), Answer::kWaiting) << "there is room for it, but another one was first";
  EXPECT_EQ(admission_.Ask(places_[3], 8, [] {}), Answer::kWaiting);
  places_[0].Leave();
  EXPECT_TRUE(both);
  EXPECT_EQ(admission_.stats().running, 2u);
  EXPECT_EQ(order_, std::vector<int>());
  places_[1].Leave();
  EXPECT_EQ(order_, std::vector<int>({2}));
  EXPECT_FALSE(places_[3].admitted()) << "more than there may be: alone";
  places_[2].Leave();
  EXPECT_TRUE(places_[3].admitted());
  EXPECT_EQ(admission_.stats().running, 8u);
  EXPECT_EQ(Ask(4), Answer::kWaiting);
  places_[3].Leave();
  EXPECT_EQ(order_, std::vector<int>({2, 4}));
}

TEST_F(AdmissionTest, WhoeverLeavesTheLineLetsThoseBehindItIn) {
  EXPECT_EQ(admission_.Ask(places_[0], 1, [] {}), Answer::kAdmitted);
  EXPECT_EQ(admission_.Ask(places_[1], 2, [] {}), Answer::kWaiting);
  EXPECT_EQ(Ask(2), Answer::kWaiting);
  EXPECT_EQ(Ask(3), Answer::kWaiting);
  places_[1].Leave();
  EXPECT_EQ(order_, std::vector<int>({2})) << "there was room for it all the while";
  EXPECT_EQ(admission_.stats().running, 2u);
  EXPECT_EQ(admission_.stats().waiting, 1u);
  EXPECT_EQ(Ask(4), Answer::kWaiting);
  places_[3].Leave();
  EXPECT_EQ(order_, std::vector<int>({2})) << "there is none";
}

TEST_F(AdmissionTest, WhoeverLeavesTheLineIsNotAdmitted) {
  for (size_t i = 0; i < 5; ++i) Ask(i);
  places_[3].Leave();
  places_[2].Leave();
  places_[3].Leave();
  EXPECT_EQ(admission_.stats().waiting, 1u);
  places_[0].Leave();
  EXPECT_EQ(order_, std::vector<int>({4}));
  EXPECT_EQ(admission_.stats().waiting, 0u);
}

TEST_F(AdmissionTest, APlaceThatGoesGivesItsRoomBack) {
  auto place = std::make_unique<Admission::Place>();
  EXPECT_EQ(admission_.Ask(*place, 1, [] {}), Answer::kAdmitted);
  for (size_t i = 0; i < 2; ++i) Ask(i);
  EXPECT_FALSE(places_[1].admitted());
  place = nullptr;
  EXPECT_TRUE(places_[1].admitted());
  EXPECT_EQ(admission_.stats().running, 2u);
}

// Bring-ups that fail at once do not call one another.
TEST_F(AdmissionTest, AdmitsInALoopWhenBringUpsEndAtOnce) {
  int depth = 0;
  int deepest = 0;
  on_admitted_ = [&](size_t index) {
    deepest = std::max(deepest, ++depth);
    places_[index].Leave();
    --depth;
  };
  for (size_t i = 0; i < 5; ++i) Ask(i);
  places_[0].Leave();
  EXPECT_EQ(order_, std::vector<int>({2, 3, 4}));
  EXPECT_EQ(deepest, 1);
  EXPECT_EQ(admission_.stats().running, 1u);
}

TEST_F(AdmissionTest, WhoAsksWhileOthersAreAdmittedComesAfterThem) {
  on_admitted_ = [&](size_t index) {
    if (index == 2) {
      places_[1].Leave();
      EXPECT_EQ(Ask(6), Answer::kWaiting);
    }
  };
  for (size_t i = 0; i < 4; ++i) Ask(i);
  places_[0].Leave();
  EXPECT_EQ(order_, std::vector<int>({2, 3}));
  places_[2].Leave();
  EXPECT_EQ(order_, std::vector<int>({2, 3, 6}));
}

TEST_F(AdmissionTest, SpreadsWhenTheRefusedComeAgain) {
  for (size_t i = 0; i < 5; ++i) Ask(i);
  std::vector<absl::Duration> told;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Ask(9), Answer::kBusy);
    told.push_back(admission_.retry_after());
  }
  EXPECT_EQ(told, std::vector<absl::Duration>(
                      {absl::Milliseconds(100), absl::Milliseconds(150), absl::Milliseconds(200)}));
  for (int i = 0; i < 100; ++i) Ask(9);
  EXPECT_EQ(admission_.retry_after(), absl::Milliseconds(800));
  places_[0].Leave();
  EXPECT_EQ(Ask(8), Answer::kWaiting);
  EXPECT_EQ(Ask(9), Answer::kBusy);
  EXPECT_EQ(admission_.retry_after(), absl::Milliseconds(100));
}

// A herd: never more than the bound at once, and all are served in the end, though each that was
// refused comes again only when it was told to.
TEST_F(AdmissionTest, AHerdIsServedWhole) {
  Admission admission({.concurrent = 64, .waiting = 128});
  constexpr size_t kPeers = 500;
  std::vector<Admission::Place> places(kPeers);
  std::vector<int> due(kPeers, 0);  // the millisecond at which each asks; -1: it has asked
  std::vector<int> busy_until(kPeers, -1);
  size_t served = 0;
  size_t most = 0;
  for (int now = 0; served < kPeers && now < 60'000; ++now) {
    for (size_t i = 0; i < kPeers; ++i) {
      if (busy_until[i] == now) {
        places[i].Leave();
        ++served;
      }
      if (due[i] != now) continue;
      const auto begin = [&busy_until, &now, i] { busy_until[i] = now + 5; };
      const Answer answer = admission.Ask(places[i], 1, begin);
      if (answer == Answer::kAdmitted) begin();
      due[i] = answer == Answer::kBusy
                   ? now + static_cast<int>(absl::ToInt64Milliseconds(admission.retry_after()))
                   : -1;
    }
    most = std::max(most, admission.stats().running);
  }
  EXPECT_EQ(served, kPeers);
  EXPECT_EQ(most, 64u);
  EXPECT_GT(admission.stats().refused, 0u);
}

using AdmissionDeathTest = AdmissionTest;

TEST_F(AdmissionDeathTest, MustOutliveItsPlaces) {
  EXPECT_DEATH(
      {
        Admission::Place place;
        Admission admission;
        admission.Ask(place, 1, [] {});
      },
      "bring-ups outlive what admits them");
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
