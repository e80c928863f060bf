#include "rdma/region_table.h"

#include <array>

#include <gtest/gtest.h>

namespace penstock::internal {
namespace {

class RegionTableTest : public ::testing::Test {
 protected:
  absl::Status Find(uint64_t region, uint32_t epoch, uint64_t offset, uint64_t size,
                    RdmaAccess wanted) {
    return table_.Find({.region = region, .offset = offset, .epoch = epoch}, size, wanted).status();
  }

  std::array<char, 100> memory_;
  RegionTable table_;
  Stream::DoneCallback none_;
};

TEST_F(RegionTableTest, EveryAccessIsCheckedAgainstRegionEpochAccessAndBounds) {
  const ControlRegion region = *table_.Add(memory_, RdmaAccess::kWrite);
  EXPECT_EQ(region.length, 100u);
  const auto found = table_.Find({.region = region.region, .offset = 40, .epoch = region.epoch}, 60,
                                 RdmaAccess::kWrite);
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(found->data(), memory_.data() + 40);
  EXPECT_EQ(found->size(), 60u);
  const struct {
    uint64_t region;
    uint32_t epoch;
    uint64_t offset, size;
    RdmaAccess wanted;
  } kWrong[] = {
      {1, 1, 0, 1, RdmaAccess::kWrite},  // no such region
      {~uint64_t{0}, 1, 0, 1, RdmaAccess::kWrite},
      {0, 2, 0, 1, RdmaAccess::kWrite},  // another epoch
      {0, 0, 0, 1, RdmaAccess::kWrite},
      {0, 1, 0, 1, RdmaAccess::kRead},  // another access
      {0, 1, 0, 1, RdmaAccess::kReadWrite},
      {0, 1, 0, 101, RdmaAccess::kWrite},  // beyond the end
      {0, 1, 100, 1, RdmaAccess::kWrite},
      {0, 1, 101, 0, RdmaAccess::kWrite},
      {0, 1, ~uint64_t{0}, 2, RdmaAccess::kWrite},  // round the end of numbers
      {0, 1, 2, ~uint64_t{0}, RdmaAccess::kWrite},
  };
  for (const auto& wrong : kWrong) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        Find(wrong.region, wrong.epoch, wrong.offset, wrong.size, wrong.wanted)))
        << wrong.region << " " << wrong.epoch << " " << wrong.offset << " " << wrong.size;
  }
  EXPECT_TRUE(Find(0, 1, 100, 0, RdmaAccess::kWrite).ok());
}

TEST_F(RegionTableTest, ARevokedRegionIsReachedUntilThePeerHasLetGo) {
  table_.Add(memory_, RdmaAccess::kRead).IgnoreError();
  ASSERT_TRUE(table_.Revoke(0, 1, none_).ok());
  EXPECT_TRUE(Find(0, 1, 0, 1, RdmaAccess::kRead).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(table_.Revoke(0, 1, none_).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(table_.OnRevoked(0, 2).status()));
  ASSERT_TRUE(table_.OnRevoked(0, 1).ok());
  EXPECT_FALSE(Find(0, 1, 0, 1, RdmaAccess::kRead).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(table_.OnRevoked(0, 1).status()));
}

TEST_F(RegionTableTest, ASlotIsUsedAgainWithAnotherEpochWhenThePeerHasLetGo) {
  table_.Add(memory_, RdmaAccess::kRead).IgnoreError();
  ASSERT_TRUE(table_.Remove(0, 1).has_value());
  EXPECT_FALSE(Find(0, 1, 0, 1, RdmaAccess::kRead).ok());
  EXPECT_FALSE(table_.Remove(0, 1).has_value());
  EXPECT_EQ(table_.Add(memory_, RdmaAccess::kRead)->region, 1u);
  ASSERT_TRUE(table_.OnRevoked(0, 1).ok());
  const ControlRegion again = *table_.Add(memory_, RdmaAccess::kRead);
  EXPECT_EQ(again.region, 0u);
  EXPECT_EQ(again.epoch, 2u);
  // The owner of the first goes late: the second is not his.
  EXPECT_FALSE(table_.Remove(0, 1).has_value());
  EXPECT_TRUE(Find(0, 2, 0, 1, RdmaAccess::kRead).ok());
}

TEST_F(RegionTableTest, RegionsAreBounded) {
  for (size_t i = 0; i < kRegionsMax; ++i) {
    ASSERT_TRUE(table_.Add(memory_, RdmaAccess::kRead).ok());
  }
  EXPECT_TRUE(absl::IsResourceExhausted(table_.Add(memory_, RdmaAccess::kRead).status()));
  EXPECT_EQ(table_.All().size(), kRegionsMax);
}

TEST(PeerRegionsTest, OperationsAreCheckedBeforeTheyArePosted) {
  PeerRegions regions;
  ASSERT_TRUE(regions.Add({.region = 3, .epoch = 2, .length = 10, .access = kRegionRead}).ok());
  const RdmaRemoteRegion region = *regions.TakeNew();
  EXPECT_FALSE(regions.TakeNew().has_value());
  EXPECT_TRUE(regions.Check(region, 4, 6, RdmaAccess::kRead).ok());
  EXPECT_TRUE(absl::IsOutOfRange(regions.Check(region, 4, 7, RdmaAccess::kRead)));
  EXPECT_TRUE(absl::IsPermissionDenied(regions.Check(region, 0, 1, RdmaAccess::kWrite)));
  RdmaRemoteRegion older = region;
  --older.epoch;
  EXPECT_TRUE(absl::IsFailedPrecondition(regions.Check(older, 0, 1, RdmaAccess::kRead)));
}

TEST(PeerRegionsTest, ARevocationWaitsForWhatIsPosted) {
  PeerRegions regions;
  ASSERT_TRUE(regions.Add({.region = 0, .epoch = 1, .length = 10, .access = kRegionRead}).ok());
  const RdmaRemoteRegion region = *regions.TakeNew();
  regions.OnPosted(0);
  regions.OnPosted(0);
  EXPECT_FALSE(regions.OnDone(0));
  EXPECT_FALSE(*regions.Revoke(0, 1));
  EXPECT_TRUE(absl::IsFailedPrecondition(regions.Check(region, 0, 1, RdmaAccess::kRead)));
  EXPECT_TRUE(absl::IsInvalidArgument(regions.Revoke(0, 1).status()));
  EXPECT_TRUE(regions.OnDone(0));
  EXPECT_TRUE(regions.Forget(0).reply);
  EXPECT_TRUE(absl::IsInvalidArgument(regions.Revoke(0, 1).status()));
  EXPECT_TRUE(regions.Add({.region = 0, .epoch = 2, .length = 10, .access = kRegionRead}).ok());
}

TEST(PeerRegionsTest, RegionsThatCannotBeAreRefused) {
  PeerRegions regions;
  EXPECT_FALSE(regions.Add({.region = kRegionsMax, .length = 1, .access = kRegionRead}).ok());
  EXPECT_FALSE(regions.Add({.region = 0, .length = 0, .access = kRegionRead}).ok());
  EXPECT_FALSE(regions.Add({.region = 0, .length = 1, .access = 0}).ok());
  EXPECT_FALSE(regions.Add({.region = 0, .length = 1, .access = 4}).ok());
  ASSERT_TRUE(regions.Add({.region = 0, .length = 1, .access = kRegionRead}).ok());
  EXPECT_FALSE(regions.Add({.region = 0, .length = 1, .access = kRegionRead}).ok());
  // One that was revoked before anybody asked for it is not given out.
  EXPECT_TRUE(*regions.Revoke(0, 0));
  EXPECT_FALSE(regions.TakeNew().has_value());
}

TEST(PeerRegionsTest, OneRegionGivenAgainAndAgainUnderOneEpochIsRefused) {
  PeerRegions regions;
  const ControlRegion region = {.region = 0, .epoch = 7, .length = 1, .access = kRegionRead};
  absl::Status status;
  for (uint32_t i = 0; i < 10 * kRegionsMax && status.ok(); ++i) {
    status = regions.Add(region);
    ASSERT_LE(regions.kept_new(), 2 * kRegionsMax);
    if (!status.ok()) break;
    ASSERT_TRUE(*regions.Revoke(0, 7));
    regions.Forget(0);
  }
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

TEST(PeerRegionsTest, RegionsThatCameAndWentUnaskedForDoNotPileUp) {
  PeerRegions regions;
  ASSERT_TRUE(regions.Add({.region = 1, .epoch = 7, .length = 1, .access = kRegionRead}).ok());
  for (uint32_t epoch = 1; epoch < 10 * kRegionsMax; ++epoch) {
    ASSERT_TRUE(
        regions.Add({.region = 0, .epoch = epoch, .length = 1, .access = kRegionRead}).ok());
    ASSERT_TRUE(*regions.Revoke(0, epoch));
    regions.Forget(0);
    ASSERT_LE(regions.kept_new(), 2 * kRegionsMax);
  }
  EXPECT_EQ(regions.TakeNew()->epoch, 7u);
  EXPECT_FALSE(regions.TakeNew().has_value());
}

}  // namespace
}  // namespace penstock::internal
