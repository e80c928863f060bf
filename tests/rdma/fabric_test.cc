#include "rdma/fabric.h"

#include <set>
#include <string_view>

#include "gtest/gtest.h"

namespace penstock::internal {
namespace {

// Every value up to the last has a name of its own, so that a log line tells them apart.
template <typename Enum, typename Name>
void ExpectNames(Enum last, Name name) {
  std::set<std::string_view> seen;
  for (int value = 0; value <= static_cast<int>(last); ++value) {
    const std::string_view text = name(static_cast<Enum>(value));
    EXPECT_NE(text, "unknown") << value;
    EXPECT_TRUE(seen.insert(text).second) << text;
  }
  EXPECT_EQ(name(static_cast<Enum>(static_cast<int>(last) + 1)), "unknown");
}

TEST(FabricTest, EveryValueHasAName) {
  ExpectNames(FabricOp::kReceive, FabricOpName);
  ExpectNames(FabricOutcome::kOther, FabricOutcomeName);
  ExpectNames(FabricEventKind::kOther, FabricEventKindName);
}

}  // namespace
}  // namespace penstock::internal
