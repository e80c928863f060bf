// Several lanes as one: slices that end in any order, a message behind them all, and one end.
#include <algorithm>
#include <cerrno>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "rdma/lane_group.h"
#include "testing/lane_kit.h"
#include "testing/sanitized.h"
#include "testing/sim_random.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;
using testing::FakePacket;
using testing::FakePacketKind;
using testing::kSanitized;
using testing::LaneText;

constexpr uint64_t kStripe = 64 * 1024;

class GroupUser final : public testing::LaneListener<LaneGroup::Owner> {
 public:
  void OnLaneStray() override { ++strays; }

  std::unique_ptr<LaneGroup> lanes;
  int strays = 0;
};

class LaneGroupTest : public testing::LaneWorld {
 protected:
  static constexpr size_t kMemory = 4 << 20;

  void SetUp() override {
    LaneWorld::SetUp();
    auto exposed = hub_[1]->Expose(memory_, RdmaAccess::kReadWrite);
    ASSERT_TRUE(exposed.ok()) << exposed.status();
    exposed_ = *std::move(exposed);
  }
  void TearDown() override {
    left_.lanes.reset();
    right_.lanes.reset();
    exposed_ = ExposedMemory();
    LaneWorld::TearDown();
  }

  std::unique_ptr<LaneGroup> NewGroup(int hub, GroupUser& user, size_t count) {
    auto lanes = LaneGroup::Create(*hub_[hub], user, count, 16, [&] { return ++psn_; });
    EXPECT_TRUE(lanes.ok()) << lanes.status();
    return lanes.ok() ? *std::move(lanes) : nullptr;
  }
  void ConnectGroups(size_t count) {
    left_.lanes = NewGroup(0, left_, count);
    right_.lanes = NewGroup(1, right_, count);
    ASSERT_TRUE(right_.lanes->BringUp(left_.lanes->addresses(), 16).ok());
    ASSERT_TRUE(left_.lanes->BringUp(right_.lanes->addresses(), 16).ok());
  }
  LaneTarget At(uint64_t offset) const { return {exposed_.address() + offset, exposed_.key()}; }
  std::string Bytes(size_t offset, size_t size) const {
    return std::string(memory_.data() + offset, size);
  }
  // The offset of the first slice that goes by `lane`.
  uint64_t OffsetOf(size_t lane) const {
    uint64_t slice = exposed_.address() / kStripe + 1;
    while (slice % left_.lanes->size() != lane) ++slice;
    return slice * kStripe - exposed_.address();
  }
  // Every request for `lane` of the right side is lost.
  void Cut(size_t lane) {
    const uint32_t number = right_.lanes->addresses()[lane].qpn;
    fabric_.set_drop([number](const FakePacket& packet) {
      return packet.kind == FakePacketKind::kRequest && packet.to_number == number;
    });
  }
  // What it sends at first is lost: it is a whole timeout behind the others.
  void Delay(size_t lane) {
    const uint32_t number = right_.lanes->addresses()[lane].qpn;
    const int64_t until_ns = host_.now_ns() + 50'000'000;
    fabric_.set_drop([this, number, until_ns](const FakePacket& packet) {
      return packet.kind == FakePacketKind::kRequest && packet.to_number == number &&
             host_.now_ns() < until_ns;
    });
  }

  uint32_t psn_ = 0xfffffa;
  std::vector<char> memory_ = std::vector<char>(kMemory, '-');
  ExposedMemory exposed_;
  GroupUser left_, right_;
};

class LaneGroupSizeTest : public LaneGroupTest, public ::testing::WithParamInterface<size_t> {};

// Reads and writes of all sizes at all places, some over each other, while packets get lost on
// every lane: in the end all is as if each had been done after the one before it.
TEST_P(LaneGroupSizeTest, WhatIsDoneToOnePlaceIsDoneInOrder) {
  ConnectGroups(GetParam());
  fabric_.set_loss(20);
  testing::SimRandom random(GetParam());
  std::string expected(kMemory, '-');
  struct Started {
    uint64_t token;
    std::string read;
  };
  std::vector<Started> writes, reads;
  const uint64_t count = kSanitized ? 60 : 200;
  for (uint64_t token = 0; token < count; ++token) {
    const size_t size = 1 + random.Below(token % 3 == 0 ? 500'000 : 3'000);
    const size_t offset = random.Below(kMemory / 4 - 1);
    if (random.Below(3) == 0) {
      reads.push_back({token, {}});
      left_.lanes->Read(token, At(offset), size);
      // A write that is started after it may overtake it: what it brings is looked at below.
    } else {
      writes.push_back({token, {}});
      const std::string text = LaneText(static_cast<uint32_t>(token), size);
      left_.lanes->Write(token, At(offset), Payload(text, 1 + random.Below(100'000)));
      expected.replace(offset, size, text);
    }
  }
  ASSERT_TRUE(Run([&] { return left_.done.size() == count; })) << left_.done.size();
  EXPECT_EQ(left_.Count(RdmaOutcome::kDone), count);
  EXPECT_TRUE(Bytes(0, kMemory) == expected);
  // In the order they were started, each kind for itself.
  size_t wrote = 0, read = 0;
  for (const GroupUser::Done& done : left_.done) {
    if (wrote < writes.size() && writes[wrote].token == done.token) {
      ++wrote;
    } else {
      ASSERT_LT(read, reads.size());
      EXPECT_EQ(reads[read++].token, done.token);
    }
  }
  fabric_.set_loss(0);
  // And back, with memory that was found before and without.
  for (uint64_t i = 0; i < 8; ++i) {
    const size_t offset = 1000 * i * i + i, size = 250'000 + i * 30'011;
    BufferChain into;
    if (i % 2 == 0) into = left_.lanes->NewMemory(At(offset), size);
    left_.lanes->Read(count + i, At(offset), size, std::move(into));
    ASSERT_TRUE(Run([&] { return left_.done.size() == count + i + 1; }));
    EXPECT_TRUE(left_.done.back().data == expected.substr(offset, size)) << i;
  }
  EXPECT_TRUE(left_.ends.empty() && right_.ends.empty());
}

TEST_P(LaneGroupSizeTest, MessagesKeepTheirOrderAmongWrites) {
  ConnectGroups(GetParam());
  fabric_.set_loss(20);
  std::vector<std::string> expected;
  const std::string text = LaneText(1, 150'000);
  for (int i = 0; i < 12; ++i) {
    if (i % 3 != 2) left_.lanes->Write(static_cast<uint64_t>(i), At(100'000), Payload(text));
    expected.push_back(absl::StrCat("message ", i));
    left_.lanes->Send(expected.back(), {});
  }
  EXPECT_TRUE(Run([&] { return right_.messages.size() == expected.size(); }));
  EXPECT_EQ(right_.messages, expected);
}

INSTANTIATE_TEST_SUITE_P(Lanes, LaneGroupSizeTest, ::testing::Values(1, 2, 3, 5, 8));

// The lane that lags is each in turn: all the others are done long before it.
TEST_F(LaneGroupTest, AMessageWaitsForTheWritesBeforeItOnEveryLane) {
  for (size_t lane = 0; lane < 4; ++lane) {
    ConnectGroups(4);
    Delay(lane);
    const std::string text = LaneText(static_cast<uint32_t>(lane), 600'000);
    bool whole = false;
    right_.on_message = [&] { whole = Bytes(1234, text.size()) == text; };
    const size_t before = right_.messages.size();
    left_.lanes->Write(lane, At(1234), Payload(text));
    left_.lanes->Send("written", {});
    ASSERT_TRUE(Run([&] { return right_.messages.size() > before; }));
    EXPECT_TRUE(whole) << lane;
    EXPECT_GT(fabric_.stats().timeouts, lane);
    fabric_.set_drop(nullptr);
  }
}

TEST_F(LaneGroupTest, AMessageDoesNotWaitForReadsNorForWritesAfterIt) {
  ConnectGroups(3);
  Delay(1);
  left_.lanes->Read(1, At(OffsetOf(1)), 100);
  left_.lanes->Send("at once", {});
  left_.lanes->Write(2, At(OffsetOf(1)), Payload("late"));
  ASSERT_TRUE(Run([&] { return !right_.messages.empty(); }));
  EXPECT_TRUE(left_.done.empty());
  ASSERT_TRUE(Run([&] { return left_.done.size() == 2; }));
}

TEST_F(LaneGroupTest, OneLaneThatFailsRetiresAllAndEverythingIsToldOnce) {
  for (size_t lane = 0; lane < 3; ++lane) {
    ConnectGroups(3);
    left_.done.clear();
    left_.ends.clear();
    right_.messages.clear();
    const std::string named = absl::StrCat("RDMA lane ", left_.lanes->addresses()[lane].qpn, ":");
    // Done, on every lane.
    left_.lanes->Write(0, At(0), Payload(LaneText(0, 400'000)));
    ASSERT_TRUE(Run([&] { return left_.done.size() == 1; }));
    Cut(lane);
    for (uint64_t token = 1; token <= 20; ++token) {
      // Some of these have no part in the lane that is cut.
      const size_t size = token % 2 == 0 ? 300'000 : 10'000;
      if (token % 5 == 0) {
        left_.lanes->Read(token, At(token * 70'000), size);
      } else {
        left_.lanes->Write(token, At(token * 70'000),
                           Payload(LaneText(static_cast<uint32_t>(token), size)));
      }
    }
    left_.lanes->Send("news of writes that never came", {});
    ASSERT_TRUE(Run([&] { return !left_.ends.empty(); })) << lane;
    ASSERT_EQ(left_.done.size(), 21u);
    std::vector<uint64_t> tokens;
    for (const GroupUser::Done& done : left_.done) tokens.push_back(done.token);
    std::sort(tokens.begin(), tokens.end());
    for (uint64_t token = 0; token <= 20; ++token) EXPECT_EQ(tokens[token], token);
    // What counts as done comes before what does not: the rest is done again in order.
    bool failed = false;
    for (const GroupUser::Done& done : left_.done) {
      if (done.token % 5 == 0 && done.token > 0) continue;
      EXPECT_TRUE(!failed || done.outcome != RdmaOutcome::kDone) << done.token;
      failed = failed || done.outcome != RdmaOutcome::kDone;
    }
    EXPECT_TRUE(failed);
    EXPECT_TRUE(right_.messages.empty());
    EXPECT_EQ(left_.ends.size(), 1u);
    // The reason is that of the lane that failed, and not of those that were retired.
    EXPECT_TRUE(left_.ends[0].starts_with(named)) << left_.ends[0];
    EXPECT_FALSE(left_.lanes->HasRoom());
    fabric_.set_drop(nullptr);
    left_.lanes.reset();
    right_.lanes.reset();
    ASSERT_TRUE(Run([&] { return fabric_.queue_pairs() == 0; }));
  }
}

// The others have work under way when the first has ended: it is told of before the end is.
TEST_F(LaneGroupTest, TheEndIsToldWhenEveryLaneIsDrained) {
  ConnectGroups(3);
  fabric_.set_drop(
      [](const FakePacket& packet) { return packet.kind == FakePacketKind::kRequest; });
  left_.lanes->Write(1, At(OffsetOf(1)), Payload("first"));
  ASSERT_TRUE(Run([&] { return fabric_.stats().timeouts == 3; }));
  left_.lanes->Write(2, At(OffsetOf(2)), Payload("later"));
  ASSERT_TRUE(Run([&] { return !left_.ends.empty(); }));
  ASSERT_EQ(left_.done.size(), 2u);
  EXPECT_EQ(left_.Count(RdmaOutcome::kInDoubt), 2u);
  EXPECT_EQ(left_.done[1].token, 2u);
  fabric_.set_drop(nullptr);
}

TEST_F(LaneGroupTest, ALaneThatDoesNotComeUpLeavesNone) {
  for (const FakeCall call : {FakeCall::kToReadyToReceive, FakeCall::kToReadyToSend}) {
    for (uint64_t nth = 1; nth <= 3; ++nth) {
      left_.lanes = NewGroup(0, left_, 3);
      right_.lanes = NewGroup(1, right_, 3);
      fabric_.FailNth(call, nth, EINVAL);
      EXPECT_FALSE(right_.lanes->BringUp(left_.lanes->addresses(), 16).ok());
      fabric_.FailNth(call, 0, 0);
      right_.lanes.reset();
      left_.lanes.reset();
      ASSERT_TRUE(Run([&] { return hub_[0]->queue_pairs() + hub_[1]->queue_pairs() == 0; }));
      EXPECT_EQ(hub_[1]->available(), hub_[1]->options().receives);
    }
  }
  EXPECT_EQ(fabric_.stats().packets, 0u);
}

TEST_F(LaneGroupTest, ADeviceThatHasFewerQueuePairsGivesFewerLanes) {
  fabric_.FailNth(FakeCall::kCreateQp, 3, ENOMEM);
  left_.lanes = NewGroup(0, left_, 8);
  EXPECT_EQ(left_.lanes->addresses().size(), 2u);
  right_.lanes = NewGroup(1, right_, 5);
  ASSERT_TRUE(right_.lanes->BringUp(left_.lanes->addresses(), 16).ok());
  EXPECT_EQ(right_.lanes->size(), 2u);
  EXPECT_EQ(hub_[1]->lanes(), 2u);
  ASSERT_TRUE(left_.lanes->BringUp(right_.lanes->addresses(), 16).ok());
  const std::string text = LaneText(1, 300'000);
  left_.lanes->Write(1, At(5), Payload(text));
  ASSERT_TRUE(Run([&] { return left_.done.size() == 1; }));
  EXPECT_TRUE(Bytes(5, text.size()) == text);

  fabric_.FailNth(FakeCall::kCreateQp, 1, ENOMEM);
  EXPECT_FALSE(LaneGroup::Create(*hub_[0], left_, 8, 16, [] { return 1u; }).ok());
}

// However many lanes there are, the peer may use the receives of one.
TEST_F(LaneGroupTest, TheBankLendsReceivesToTheFirstLaneAlone) {
  const uint32_t before = hub_[0]->available();
  left_.lanes = NewGroup(0, left_, 8);
  EXPECT_EQ(hub_[0]->available(), before - 16);
  left_.lanes.reset();
  EXPECT_EQ(hub_[0]->available(), before);
}

TEST_F(LaneGroupTest, AMessageByAnotherLaneIsToldApart) {
  left_.lanes = NewGroup(0, left_, 2);
  testing::LaneUser first, second;
  first.lane = NewLane(1, first);
  second.lane = NewLane(1, second);
  const std::vector<LaneAddress> peers = {first.lane->address(), second.lane->address()};
  ASSERT_TRUE(left_.lanes->BringUp(peers, 16).ok());
  ASSERT_TRUE(first.lane->BringUp(left_.lanes->addresses()[0], 16).ok());
  ASSERT_TRUE(second.lane->BringUp(left_.lanes->addresses()[1], 16).ok());
  second.lane->Send("stray", {});
  ASSERT_TRUE(Run([&] { return left_.strays == 1; }));
  EXPECT_TRUE(left_.messages.empty());
  first.lane->Send("fine", {});
  ASSERT_TRUE(Run([&] { return left_.messages.size() == 1; }));
}

// Full on one lane is full, and room is told when every lane has it.
TEST_F(LaneGroupTest, TheFullestLaneSaysWhetherThereIsRoom) {
  ConnectGroups(2);
  const uint64_t at = OffsetOf(1);
  uint64_t count = 0;
  while (left_.lanes->HasRoom()) left_.lanes->Write(count++, At(at), Payload("x"));
  EXPECT_GT(count, 100u);
  EXPECT_EQ(left_.rooms, 0);
  ASSERT_TRUE(Run([&] { return left_.rooms > 0; }));
  EXPECT_TRUE(left_.lanes->HasRoom());
  ASSERT_TRUE(Run([&] { return left_.done.size() == count; }));
}

// Else all that a queue admits could be kept in memory behind one packet that is lost.
TEST_F(LaneGroupTest, WritesThatCannotBeToldTakeRoom) {
  constexpr uint64_t kMost = 2 * (8 << 20), kEnough = 3 * kMost;
  ConnectGroups(2);
  const std::string text = LaneText(1, kStripe);
  const uint64_t ahead = OffsetOf(0);
  Delay(1);
  left_.lanes->Write(0, At(OffsetOf(1)), Payload("behind"));
  uint64_t started = 0;
  const auto room = [&] { return left_.lanes->HasRoom() || !left_.done.empty(); };
  while (started < kEnough && Run(room) && left_.done.empty()) {
    left_.lanes->Write(1, At(ahead), Payload(text, kStripe));
    started += kStripe;
  }
  EXPECT_LE(started, kMost + kStripe);
  const size_t count = started / kStripe + 1;
  ASSERT_TRUE(Run([&] { return left_.done.size() == count; })) << left_.done.size();
  EXPECT_EQ(left_.Count(RdmaOutcome::kDone), count);
  EXPECT_TRUE(left_.lanes->HasRoom());
}

// Nor may they take the memory that the oldest of them waits for.
TEST_F(LaneGroupTest, ReadsThatCannotBeToldHoldUpThoseAfterThem) {
  constexpr uint64_t kMost = 2 * (2 << 20), kCount = 3 * kMost / kStripe;
  for (const bool fails : {false, true}) {
    ConnectGroups(2);
    left_.done.clear();
    const uint32_t number = right_.lanes->addresses()[1].qpn;
    const int64_t until_ns = host_.now_ns() + 50'000'000;
    uint64_t ahead = 0;
    fabric_.set_drop([&, number](const FakePacket& packet) {
      if (packet.kind != FakePacketKind::kRequest) return false;
      if (packet.to_number == number) return fails || host_.now_ns() < until_ns;
      ahead += left_.done.empty() && packet.op == FabricOp::kRead ? 1 : 0;
      return false;
    });
    left_.lanes->Read(0, At(OffsetOf(1)), 100);
    for (uint64_t token = 1; token <= kCount; ++token) {
      left_.lanes->Read(token, At(OffsetOf(0)), kStripe);
    }
    ASSERT_TRUE(Run([&] { return left_.done.size() > kCount; })) << left_.done.size();
    EXPECT_LE(ahead, kMost / kStripe);
    EXPECT_GE(ahead, kMost / kStripe - 1);
    for (uint64_t token = 0; token <= kCount; ++token) EXPECT_EQ(left_.done[token].token, token);
    if (fails) {
      EXPECT_EQ(left_.Count(RdmaOutcome::kNeverPosted), kCount - ahead);
      ASSERT_TRUE(Run([&] { return !left_.ends.empty(); }));
    } else {
      EXPECT_EQ(left_.Count(RdmaOutcome::kDone), kCount + 1);
    }
    fabric_.set_drop(nullptr);
    left_.lanes.reset();
    right_.lanes.reset();
  }
}

TEST_F(LaneGroupTest, MayBeDestroyedInAnyOfItsCalls) {
  for (int which = 0; which < 4; ++which) {
    ConnectGroups(3);
    const size_t done = left_.done.size();
    const auto destroy = [&] { left_.lanes.reset(); };
    left_.on_done = left_.on_end = nullptr;
    right_.on_message = nullptr;
    const size_t enough = done + (which == 0 ? 1 : 3);
    if (which < 2) {
      left_.on_done = [&, enough] {
        if (left_.done.size() == enough) destroy();
      };
    }
    if (which == 2) {
      Cut(1);
      left_.on_end = destroy;
    }
    if (which == 3) right_.on_message = [&] { right_.lanes.reset(); };
    // The first is the last to end, so that all are told at once.
    if (which < 2) Delay(1);
    left_.lanes->Write(1, At(OffsetOf(1)), Payload("behind"));
    left_.lanes->Write(2, At(OffsetOf(2)), Payload("before"));
    left_.lanes->Write(3, At(OffsetOf(0)), Payload("before"));
    left_.lanes->Send("held", {});
    const std::unique_ptr<LaneGroup>& goes = which == 3 ? right_.lanes : left_.lanes;
    ASSERT_TRUE(Run([&] { return goes == nullptr; })) << which;
    fabric_.set_drop(nullptr);
    left_.ends.clear();
    left_.lanes.reset();
    right_.lanes.reset();
    ASSERT_TRUE(Run([&] { return fabric_.queue_pairs() == 0; })) << which;
  }
}

}  // namespace
}  // namespace penstock::internal
