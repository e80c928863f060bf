#include "engine/parcel.h"

#include <algorithm>
#include <array>

#include <gtest/gtest.h>

namespace penstock::internal {
namespace {

using S = MoveState;
using E = MoveEvent;

S Following(S state, E event) {
  return kMoveTransitions[static_cast<size_t>(state)][static_cast<size_t>(event)];
}

// The whole table again, written from docs/architecture.md and not from the code.
TEST(MoveState, EveryStateAndEvent) {
  struct Row {
    S state;
    E event;
    S next;
  };
  const Row rows[] = {
      {S::kAttached, E::kAsk, S::kAsked},
      {S::kAttached, E::kBegin, S::kAttached},
      {S::kAttached, E::kReleased, S::kAttached},
      {S::kAttached, E::kTaken, S::kAttached},
      {S::kAttached, E::kEnd, S::kAttached},
      {S::kAsked, E::kAsk, S::kAsked},
      {S::kAsked, E::kBegin, S::kQuiescing},
      {S::kAsked, E::kReleased, S::kAsked},
      {S::kAsked, E::kTaken, S::kAsked},
      {S::kAsked, E::kEnd, S::kAttached},
      {S::kQuiescing, E::kAsk, S::kQuiescing},
      {S::kQuiescing, E::kBegin, S::kQuiescing},
      {S::kQuiescing, E::kReleased, S::kInTransit},
      {S::kQuiescing, E::kTaken, S::kAttached},
      {S::kQuiescing, E::kEnd, S::kAttached},
      {S::kInTransit, E::kAsk, S::kInTransit},
      {S::kInTransit, E::kBegin, S::kInTransit},
      {S::kInTransit, E::kReleased, S::kInTransit},
      {S::kInTransit, E::kTaken, S::kAttached},
      {S::kInTransit, E::kEnd, S::kAttached},
  };
  ASSERT_EQ(std::size(rows), kMoveStates * kMoveEvents);
  for (const Row& row : rows) EXPECT_EQ(Following(row.state, row.event), row.next);
}

// Whatever the state, an end leads back in one step, and no state is skipped on the way there.
TEST(MoveState, EveryMoveEnds) {
  for (size_t state = 0; state < kMoveStates; ++state) {
    EXPECT_EQ(Following(static_cast<S>(state), E::kEnd), S::kAttached);
    for (size_t event = 0; event < kMoveEvents; ++event) {
      const auto next = static_cast<size_t>(kMoveTransitions[state][event]);
      EXPECT_TRUE(next == 0 || next == state || next == state + 1);
    }
  }
}

}  // namespace
}  // namespace penstock::internal
