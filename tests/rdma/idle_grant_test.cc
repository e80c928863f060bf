#include "rdma/idle_grant.h"

#include <gtest/gtest.h>

#include <vector>

namespace penstock::internal {
namespace {

using A = GrantAction;
using E = GrantEvent;
using S = GrantState;

TEST(IdleGrantTest, EveryEventInEveryState) {
  struct Row {
    S from;
    E on;
    S next;
    A action;
  };
  const std::vector<Row> rows = {
      {S::kWhole, E::kQuiet, S::kAsked, A::kAsk},
      {S::kWhole, E::kConsent, S::kWhole, A::kViolate},
      {S::kWhole, E::kRefusal, S::kWhole, A::kViolate},
      {S::kWhole, E::kTraffic, S::kWhole, A::kNone},
      {S::kWhole, E::kTaken, S::kWhole, A::kNone},
      {S::kAsked, E::kQuiet, S::kAsked, A::kNone},
      {S::kAsked, E::kConsent, S::kSmall, A::kGiveBack},
      {S::kAsked, E::kRefusal, S::kWhole, A::kNone},
      {S::kAsked, E::kTraffic, S::kAsked, A::kNone},
      {S::kAsked, E::kTaken, S::kAsked, A::kNone},
      {S::kSmall, E::kQuiet, S::kSmall, A::kNone},
      {S::kSmall, E::kConsent, S::kSmall, A::kViolate},
      {S::kSmall, E::kRefusal, S::kSmall, A::kViolate},
      {S::kSmall, E::kTraffic, S::kSmall, A::kTake},
      {S::kSmall, E::kTaken, S::kWhole, A::kTell},
  };
  ASSERT_EQ(rows.size(), kGrantStates * kGrantEvents);
  for (const Row& row : rows) {
    const GrantStep step =
        kIdleGrantSteps[static_cast<size_t>(row.from)][static_cast<size_t>(row.on)];
    EXPECT_EQ(step.next, row.next) << static_cast<int>(row.from) << static_cast<int>(row.on);
    EXPECT_EQ(step.action, row.action) << static_cast<int>(row.from) << static_cast<int>(row.on);
  }
}

}  // namespace
}  // namespace penstock::internal
