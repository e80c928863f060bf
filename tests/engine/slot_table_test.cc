#include "engine/slot_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace penstock::internal {
namespace {

TEST(SlotTable, FindsWhatAnEventNames) {
  SlotTable table;
  int object = 0;
  const uint32_t index = table.Take(SlotKind::kConnection, &object);
  const Token token = table.TokenOf(index, 5);
  EXPECT_EQ(token.op(), 5);
  Slot* const slot = table.Find(Token(token.bits()));
  ASSERT_NE(slot, nullptr);
  EXPECT_EQ(slot->object, &object);
  EXPECT_EQ(slot->kind(), SlotKind::kConnection);
}

TEST(SlotTable, FindsNothingForAnEventThatCameTooLate) {
  SlotTable table;
  int first = 0;
  int second = 0;
  const uint32_t index = table.Take(SlotKind::kConnection, &first);
  const Token stale = table.TokenOf(index);
  table.Free(index);
  EXPECT_EQ(table.Find(stale), nullptr);
  ASSERT_EQ(table.Take(SlotKind::kConnection, &second), index) << "the slot is used again";
  EXPECT_EQ(table.Find(stale), nullptr);
  EXPECT_EQ(table.Find(table.TokenOf(index))->object, &second);
}

TEST(SlotTable, StartsEverySlotWithACleanEngineWord) {
  SlotTable table;
  const uint32_t index = table.Take(SlotKind::kAcceptor, nullptr);
  table.at(index).engine_word = ~uint64_t{0};
  table.Free(index);
  EXPECT_EQ(table.at(table.Take(SlotKind::kWatch, nullptr)).engine_word, 0u);
}

TEST(SlotTable, GivesMemoryBackAndStillRefusesLateEvents) {
  SlotTable table;
  const uint32_t kept = table.Take(SlotKind::kWatch, nullptr);
  std::vector<uint32_t> crowd;
  for (int i = 0; i < 10'000; ++i) crowd.push_back(table.Take(SlotKind::kConnection, nullptr));
  std::vector<Token> stale;
  for (uint32_t index : crowd) stale.push_back(table.TokenOf(index));
  for (uint32_t index : crowd) table.Free(index);
  table.Trim();
  EXPECT_EQ(table.size(), kept + 1);
  for (int i = 0; i < 10'000; ++i) table.Take(SlotKind::kConnection, nullptr);
  for (Token token : stale) EXPECT_EQ(table.Find(token), nullptr);
}

TEST(SlotTable, TrimKeepsWhatIsInUse) {
  std::mt19937 random(11);
  SlotTable table;
  std::vector<uint32_t> used;
  for (int round = 0; round < 50; ++round) {
    for (int i = 0; i < 1'000; ++i) used.push_back(table.Take(SlotKind::kConnection, &used));
    std::shuffle(used.begin(), used.end(), random);
    const size_t keep = random() % 400;
    while (used.size() > keep) {
      table.Free(used.back());
      used.pop_back();
    }
    table.Trim();
    for (uint32_t index : used) ASSERT_NE(table.Find(table.TokenOf(index)), nullptr);
  }
}

}  // namespace
}  // namespace penstock::internal
