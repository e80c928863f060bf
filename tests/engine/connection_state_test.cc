#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "engine/connection.h"

namespace penstock::internal {
namespace {

using S = ConnectionState;
using E = ConnectionEvent;

S After(S state, E event) {
  return kConnectionTransitions[static_cast<size_t>(state)][static_cast<size_t>(event)];
}

// The whole table again, written from docs/architecture.md and not from the code.
TEST(ConnectionState, EveryStateAndEvent) {
  struct Row {
    S state;
    E event;
    S next;
  };
  const Row rows[] = {
      {S::kConnecting, E::kConnected, S::kOpen},
      {S::kConnecting, E::kEnd, S::kClosing},
      {S::kConnecting, E::kDetached, S::kConnecting},
      {S::kOpen, E::kConnected, S::kOpen},
      {S::kOpen, E::kEnd, S::kClosing},
      {S::kOpen, E::kDetached, S::kOpen},
      {S::kClosing, E::kConnected, S::kClosing},
      {S::kClosing, E::kEnd, S::kClosing},
      {S::kClosing, E::kDetached, S::kClosed},
      {S::kClosed, E::kConnected, S::kClosed},
      {S::kClosed, E::kEnd, S::kClosed},
      {S::kClosed, E::kDetached, S::kClosed},
  };
  ASSERT_EQ(std::size(rows), kConnectionStates * kConnectionEvents);
  for (const Row& row : rows) EXPECT_EQ(After(row.state, row.event), row.next);
}

TEST(ConnectionState, NothingLeadsBack) {
  for (size_t state = 0; state < kConnectionStates; ++state) {
    for (size_t event = 0; event < kConnectionEvents; ++event) {
      EXPECT_GE(static_cast<size_t>(kConnectionTransitions[state][event]), state);
    }
  }
}

}  // namespace
}  // namespace penstock::internal
