// Reads and writes of exposed memory by lanes; and what becomes of work when a lane ends.
#include <cerrno>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "rdma/lane.h"
#include "testing/lane_kit.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;
using testing::FakePacket;
using testing::LaneText;
using testing::LaneUser;

class LaneOneSidedTest : public testing::LaneWorld {
 protected:
  static constexpr size_t kMemory = 2 << 20;

  // Of the side of b_.
  void Expose(RdmaAccess access = RdmaAccess::kReadWrite) {
    auto exposed = hub_[1]->Expose(memory_, access);
    ASSERT_TRUE(exposed.ok()) << exposed.status();
    exposed_ = *std::move(exposed);
  }
  LaneTarget At(uint64_t offset) const { return {exposed_.address() + offset, exposed_.key()}; }
  std::string Bytes(size_t offset, size_t size) const {
    return std::string(memory_.data() + offset, size);
  }
  void TearDown() override {
    exposed_ = ExposedMemory();
    LaneWorld::TearDown();
  }

  std::vector<char> memory_ = std::vector<char>(kMemory, '-');
  ExposedMemory exposed_;
};

TEST_F(LaneOneSidedTest, WritesOfEverySizeLand) {
  Connect();
  Expose();
  std::string expected;
  uint64_t token = 0;
  // Inlined, copied, from where it is, in several pieces of work.
  for (const size_t size : {0, 1, 64, 65, 1000, 5000, 65536, 65537, 200000}) {
    for (const size_t piece : {90, 4096, 100000}) {
      const std::string text = LaneText(static_cast<uint32_t>(token), size);
      a_.lane->Write(token++, At(expected.size()), Payload(text, piece));
      expected += text;
    }
  }
  const std::string foreign = LaneText(3, 70000);
  a_.lane->Write(token++, At(expected.size()),
                 Buffer::FromExternal(foreign.data(), foreign.size(), [] {}));
  expected += foreign;
  ASSERT_LT(expected.size(), kMemory);
  EXPECT_TRUE(Run([&] { return a_.done.size() == token; }));
  for (uint64_t i = 0; i < token; ++i) EXPECT_EQ(a_.done[i].token, i);
  EXPECT_EQ(a_.Count(RdmaOutcome::kDone), token);
  EXPECT_TRUE(Bytes(0, expected.size()) == expected);
  EXPECT_EQ(memory_[expected.size()], '-');
  EXPECT_TRUE(b_.messages.empty());
}

TEST_F(LaneOneSidedTest, ReadsBringWhatIsThere) {
  LaneHub::Options options;
  options.read_depth = 3;
  NewHub(1, options);
  Connect();
  Expose(RdmaAccess::kRead);
  const std::string text = LaneText(5, kMemory);
  text.copy(memory_.data(), kMemory);
  const std::vector<size_t> sizes = {0, 1, 65536, 65537, 1000000, 5000};
  for (size_t i = 0; i < sizes.size(); ++i) a_.lane->Read(i, At(100 * i), sizes[i]);
  EXPECT_TRUE(Run([&] { return a_.done.size() == sizes.size(); }));
  for (size_t i = 0; i < sizes.size(); ++i) {
    EXPECT_EQ(a_.done[i].token, i);
    EXPECT_EQ(a_.done[i].outcome, RdmaOutcome::kDone);
    EXPECT_TRUE(a_.done[i].data == text.substr(100 * i, sizes[i])) << i;
  }
  EXPECT_TRUE(a_.ends.empty());
}

TEST_F(LaneOneSidedTest, AMessageAfterAWriteIsTheNewsOfIt) {
  Connect();
  Expose();
  const std::string text = LaneText(1, 300000);
  b_.on_message = [&] { EXPECT_TRUE(Bytes(0, text.size()) == text); };
  a_.lane->Write(1, At(0), Payload(text));
  a_.lane->Send("written", {}, 2);
  EXPECT_TRUE(Run([&] { return a_.done.size() == 2; }));
  EXPECT_EQ(b_.messages, std::vector<std::string>{"written"});
  EXPECT_EQ(a_.done[1].token, 2u);
}

TEST_F(LaneOneSidedTest, AReadSeesEarlierWritesAndHoldsNothingUp) {
  LaneHub::Options options;
  options.read_depth = 1;
  NewHub(1, options);
  Connect();
  Expose();
  const std::string text = LaneText(1, 400000);
  a_.lane->Write(1, At(0), Payload(text));
  a_.lane->Read(2, At(0), text.size());
  a_.lane->Send("later", {}, 3);
  EXPECT_TRUE(a_.lane->HasRoom());
  EXPECT_TRUE(Run([&] { return a_.done.size() == 3; }));
  EXPECT_EQ(a_.done[1].token, 3u);
  EXPECT_EQ(a_.done[2].token, 2u);
  EXPECT_TRUE(a_.done[2].data == text);
}

TEST_F(LaneOneSidedTest, WhatIsNotAllowedEndsBothLanesAndTouchesNothing) {
  struct Case {
    const char* name;
    std::function<void()> start;
  };
  const std::vector<Case> cases = {
      {"beyond the end", [&] { a_.lane->Write(1, At(kMemory - 3), Payload("1234")); }},
      {"before the beginning",
       [&] {
         a_.lane->Read(1, {exposed_.address() - 1, exposed_.key()}, 100);
       }},
      {"another key",
       [&] {
         a_.lane->Read(1, {exposed_.address(), exposed_.key() + 1}, 100);
       }},
      {"withdrawn",
       [&] {
         const LaneTarget target = At(0);
         EXPECT_TRUE(exposed_.Withdraw().ok());
         a_.lane->Write(1, target, Payload("1234"));
       }},
      {"read of write-only",
       [&] {
         Expose(RdmaAccess::kWrite);
         a_.lane->Read(1, At(0), 100);
       }},
      {"write of read-only",
       [&] {
         Expose(RdmaAccess::kRead);
         a_.lane->Write(1, At(0), Payload("1234"));
       }},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.name);
    a_ = {};
    b_ = {};
    Connect();
    Expose();
    each.start();
    a_.lane->Send("never seen", {}, 2);
    EXPECT_TRUE(Run([&] { return !a_.ends.empty() && !b_.ends.empty(); }));
    EXPECT_EQ(a_.Count(RdmaOutcome::kInDoubt), 2u);
    EXPECT_NE(a_.ends[0].find("remote access error"), std::string::npos) << a_.ends[0];
    EXPECT_TRUE(b_.messages.empty());
    EXPECT_EQ(Bytes(0, kMemory), std::string(kMemory, '-'));
  }
}

// Each of them is told of once, and the never posted ones apart.
TEST_F(LaneOneSidedTest, WorkOfALaneThatFailsHasOneEndEach) {
  a_.lane = NewLane(0, a_);
  LaneAddress nowhere = hub_[1]->address();
  nowhere.qpn = 0x777;
  ASSERT_TRUE(a_.lane->BringUp(nowhere, 4).ok());
  for (uint64_t i = 0; i < 300; ++i) {
    switch (i % 3) {
      case 0:
        a_.lane->Write(i, {0x1000, 1}, Payload("1234"));
        break;
      case 1:
        a_.lane->Read(i, {0x1000, 1}, 10);
        break;
      default:
        a_.lane->Send("x", {}, i);
    }
  }
  EXPECT_TRUE(Run([&] { return !a_.ends.empty(); }));
  std::vector<bool> seen(300);
  for (const LaneUser::Done& done : a_.done) {
    EXPECT_FALSE(seen[done.token]);
    seen[done.token] = true;
  }
  EXPECT_EQ(a_.done.size(), 300u);
  EXPECT_EQ(a_.Count(RdmaOutcome::kInDoubt), 127u);
  EXPECT_EQ(a_.Count(RdmaOutcome::kNeverPosted), 173u);
  EXPECT_EQ(a_.lane->out(), 0u);
}

TEST_F(LaneOneSidedTest, WhatHadComeIsDeliveredBeforeTheEnd) {
  Connect();
  a_.lane->Send("one", {}, 1);
  // It is in the completion queue, and nobody has looked.
  EXPECT_TRUE(Run([&] { return fabric_.stats().packets == 2; }));
  EXPECT_TRUE(b_.messages.empty());
  b_.lane->OnFailed("device", "made to fail");
  b_.on_end = [&] { EXPECT_EQ(b_.messages.size(), 1u); };
  EXPECT_TRUE(Run([&] { return !b_.ends.empty() && a_.done.size() == 1; }));
  EXPECT_EQ(a_.Count(RdmaOutcome::kDone), 1u);
}

TEST_F(LaneOneSidedTest, ADeviceThatNeverFlushesIsNotWaitedForLong) {
  Connect();
  Expose();
  fabric_.set_drop([](const auto&) { return true; });
  a_.lane->Write(1, At(0), Payload("1234"));
  fabric_.FailNth(FakeCall::kToError, 1, EIO);
  a_.lane->OnFailed("device", "made to fail");
  const int64_t began_ns = world_.now_ns();
  EXPECT_TRUE(Run([&] { return !a_.ends.empty(); }));
  EXPECT_LT(world_.now_ns() - began_ns, 2'000'000'000);
  EXPECT_EQ(a_.Count(RdmaOutcome::kInDoubt), 1u);
}

TEST_F(LaneOneSidedTest, AQueuePairIsKeptUntilItsWorkHasEnded) {
  Connect();
  Expose();
  const size_t pairs = fabric_.queue_pairs();
  const size_t pinned = pool_->Stats().live;
  fabric_.set_drop([](const auto&) { return true; });
  for (uint64_t i = 0; i < 10; ++i) a_.lane->Write(i, At(0), Payload(LaneText(1, 5000)));
  EXPECT_GT(pool_->Stats().live, pinned);
  a_.lane.reset();
  EXPECT_EQ(fabric_.queue_pairs(), pairs);
  EXPECT_GT(pool_->Stats().live, pinned);
  EXPECT_TRUE(Run([&] { return fabric_.queue_pairs() == pairs - 1; }));
  EXPECT_EQ(pool_->Stats().live, pinned);
  EXPECT_TRUE(a_.done.empty());
}

TEST_F(LaneOneSidedTest, TheCompletionQueueNeverOverflowsAndAllLanesGetTheirTurn) {
  LaneHub::Options options;
  options.receives = 640;
  options.completion_depth = 640 + 8;
  NewHub(0, options);
  Expose();
  std::vector<LaneUser> ones(20), others(20);
  constexpr uint64_t kEach = 60;
  for (size_t i = 0; i < ones.size(); ++i) {
    ones[i].lane = NewLane(0, ones[i]);
    others[i].lane = NewLane(1, others[i]);
    ASSERT_TRUE(ones[i].lane->BringUp(others[i].lane->address(), 4).ok());
    ASSERT_TRUE(others[i].lane->BringUp(ones[i].lane->address()).ok());
    for (uint64_t n = 0; n < kEach; ++n) ones[i].lane->Send("x", {}, n);
  }
  bool all = false;
  EXPECT_TRUE(Run([&] {
    size_t done = 0;
    uint64_t least = kEach, most = 0;
    for (const LaneUser& one : ones) {
      done += one.done.size();
      least = std::min<uint64_t>(least, one.done.size());
      most = std::max<uint64_t>(most, one.done.size());
    }
    if (!all && least > 0) {
      all = true;
      EXPECT_LT(most, kEach / 2);
    }
    return done == ones.size() * kEach;
  }));
  for (const LaneUser& one : ones) EXPECT_EQ(one.Count(RdmaOutcome::kDone), kEach);
  for (const LaneUser& other : others) EXPECT_EQ(other.messages.size(), kEach);
  for (auto& user : ones) user.lane.reset();
  for (auto& user : others) user.lane.reset();
}

TEST_F(LaneOneSidedTest, LanesComeAndGoWithoutTraffic) {
  for (int i = 0; i < 300; ++i) {
    LaneUser user;
    user.lane = NewLane(0, user);
    ASSERT_NE(user.lane, nullptr) << i;
    ASSERT_TRUE(user.lane->BringUp(hub_[1]->address()).ok());
    user.lane.reset();
    Run([&] { return false; });
  }
}

TEST_F(LaneOneSidedTest, ReadsWaitForThePool) {
  Connect();
  Expose();
  std::vector<Buffer> hog;
  world_.faults().map_failure = 1000;
  for (const size_t size : {1 << 20, 1 << 16, 1 << 13}) {
    while (Buffer buffer = pool_->TryAllocate(static_cast<size_t>(size))) {
      hog.push_back(std::move(buffer));
    }
  }
  a_.lane->Read(1, At(0), 100000);
  EXPECT_TRUE(a_.lane->NewMemory(100000).empty());
  const int64_t until_ns = world_.now_ns() + 500'000'000;
  Run([&] { return world_.now_ns() > until_ns; });
  EXPECT_TRUE(a_.done.empty());
  // What needs no memory goes on, whether it was started before that or after.
  EXPECT_TRUE(a_.lane->HasRoom());
  for (int i = 0; i < 20; ++i) {
    a_.lane->Read(2, At(0), 10);
    a_.lane->Send("m", {});
  }
  EXPECT_TRUE(Run([&] { return b_.messages.size() == 20; }));
  EXPECT_TRUE(a_.done.empty());
  EXPECT_TRUE(a_.ends.empty());
  world_.faults().map_failure = 0;
  hog.clear();
  EXPECT_TRUE(Run([&] { return a_.done.size() == 21; }));
  EXPECT_EQ(a_.done[0].data.size(), 100000u);
}

TEST_F(LaneOneSidedTest, MemoryForAReadMayBeTakenBefore) {
  Connect();
  Expose();
  BufferChain memory = a_.lane->NewMemory(200'000);
  EXPECT_EQ(memory.size(), 200'000u);
  std::vector<Buffer> hog;
  world_.faults().map_failure = 1000;
  while (Buffer buffer = pool_->TryAllocate(1 << 16)) hog.push_back(std::move(buffer));
  a_.lane->Read(1, At(0), 200'000, std::move(memory));
  EXPECT_TRUE(Run([&] { return a_.done.size() == 1; }));
  EXPECT_EQ(a_.done[0].data.size(), 200'000u);
  world_.faults().map_failure = 0;
}

// Others can do the work then.
TEST_F(LaneOneSidedTest, ALaneThatNeverFindsMemoryEnds) {
  Connect();
  Expose();
  const std::string foreign = LaneText(3, 70000);
  world_.faults().map_failure = 1000;
  std::vector<Buffer> hog;
  for (const size_t size : {1 << 20, 1 << 16, 1 << 13}) {
    while (Buffer buffer = pool_->TryAllocate(static_cast<size_t>(size))) {
      hog.push_back(std::move(buffer));
    }
  }
  const int64_t began_ns = world_.now_ns();
  a_.lane->Write(1, At(0), Buffer::FromExternal(foreign.data(), foreign.size(), [] {}));
  EXPECT_TRUE(Run([&] { return !a_.ends.empty(); }));
  EXPECT_LT(world_.now_ns() - began_ns, 3'000'000'000);
  EXPECT_NE(a_.ends[0].find("no registered memory"), std::string::npos) << a_.ends[0];
  EXPECT_EQ(a_.Count(RdmaOutcome::kNeverPosted), 1u);
}

// Devices may take back what is in the completion queue when a queue pair is destroyed.
TEST_F(LaneOneSidedTest, AQueuePairStaysUntilWhatCameByItHasBeenTaken) {
  Connect();
  const size_t pairs = fabric_.queue_pairs();
  a_.lane->Send("taken by nobody", {}, 1);
  EXPECT_TRUE(Run([&] { return fabric_.stats().packets == 2; }));
  b_.lane.reset();
  EXPECT_EQ(fabric_.queue_pairs(), pairs);
  EXPECT_TRUE(Run([&] { return fabric_.queue_pairs() == pairs - 1; }));
  EXPECT_EQ(hub_[1]->posted(), 1024u);
}

// The last thing that is sent by it waits for a slot like everything else, and is not left out.
TEST_F(LaneOneSidedTest, AQueuePairThatGoesWaitsForItsTurn) {
  LaneHub::Options options;
  options.receives = 64;
  options.completion_depth = 64 + 2;
  for (const bool fails : {false, true}) {
    a_ = {};
    b_ = {};
    NewHub(1, options);
    fabric_.set_takes_back();
    Connect();
    const uint64_t whole = fabric_.receive_bytes_posted();
    // All slots of the hub are another lane's, whose peer hears nothing.
    LaneUser busy, deaf;
    busy.lane = NewLane(1, busy);
    deaf.lane = NewLane(0, deaf);
    ASSERT_TRUE(busy.lane->BringUp(deaf.lane->address()).ok());
    ASSERT_TRUE(deaf.lane->BringUp(busy.lane->address()).ok());
    const uint32_t number = deaf.lane->address().qpn;
    fabric_.set_drop([this, number](const FakePacket& packet) {
      return packet.to == fabric_.gid("fake0") && packet.to_number == number;
    });
    for (int i = 0; i < 3; ++i) busy.lane->Send("lost", {});
    const uint64_t packets = fabric_.stats().packets;
    a_.lane->Send("taken late", {});
    EXPECT_TRUE(Run([&] { return fabric_.stats().packets >= packets + 2; }));
    if (fails) {
      b_.lane->OnFailed("test", "made to fail");
      EXPECT_TRUE(Run([&] { return !b_.ends.empty(); }));
      EXPECT_EQ(b_.messages, std::vector<std::string>{"taken late"});
    }
    b_.lane.reset();
    // One that has been drained goes at once.
    EXPECT_EQ(hub_[1]->queue_pairs(), fails ? 1u : 2u);
    EXPECT_TRUE(Run([&] { return hub_[1]->queue_pairs() == 1; }));
    EXPECT_TRUE(Run([&] { return fabric_.receive_bytes_posted() == whole; }));
    EXPECT_EQ(hub_[1]->posted(), 64u);
    fabric_.set_drop(nullptr);
  }
}

TEST_F(LaneOneSidedTest, WhatALaneHasPostedIsSentThoughItGoes) {
  Connect();
  for (int i = 0; i < 10; ++i) a_.lane->Send(LaneText(1, 3000), {});
  a_.lane.reset();
  EXPECT_TRUE(Run([&] { return b_.messages.size() == 10; }));
}

TEST_F(LaneOneSidedTest, SlotsOfALaneThatHasGoneComeBack) {
  LaneHub::Options options;
  options.receives = 64;
  options.completion_depth = 64 + 2;
  NewHub(0, options);
  Connect();
  fabric_.set_drop([](const auto&) { return true; });
  a_.lane->Send("lost", {});
  a_.lane->Send("lost", {});
  fabric_.FailNth(FakeCall::kToError, 1, EIO);
  a_.lane.reset();
  LaneUser other, target;
  other.lane = NewLane(0, other);
  target.lane = NewLane(1, target);
  ASSERT_TRUE(other.lane->BringUp(target.lane->address()).ok());
  ASSERT_TRUE(target.lane->BringUp(other.lane->address()).ok());
  other.lane->Send("waits", {}, 1);
  EXPECT_FALSE(other.lane->HasRoom());
  const int64_t until_ns = world_.now_ns() + 10'000'000;
  Run([&] { return world_.now_ns() > until_ns; });
  fabric_.set_drop([](const auto&) { return false; });
  EXPECT_TRUE(Run([&] { return other.done.size() == 1; }));
  EXPECT_EQ(target.messages, std::vector<std::string>{"waits"});
}

// Whichever post fails, everything ends once, and the lane with it.
TEST_F(LaneOneSidedTest, EveryPostMayFail) {
  Expose();
  for (const int error : {EIO, ENOMEM}) {
    for (uint64_t nth = 1; nth < 12; ++nth) {
      SCOPED_TRACE(absl::StrCat(error, " ", nth));
      a_ = {};
      b_ = {};
      Connect();
      const std::string text = LaneText(static_cast<uint32_t>(nth), 150000);
      fabric_.FailNth(FakeCall::kPostSend, nth, error);
      a_.lane->Write(1, At(0), Payload(text, 30000));
      a_.lane->Read(2, At(0), text.size());
      a_.lane->Send("head", Payload(LaneText(2, 6000)), 3);
      EXPECT_TRUE(Run([&] { return a_.done.size() == 3; }));
      if (error == EIO && nth < 8) {
        EXPECT_TRUE(Run([&] { return a_.ends.size() == 1; }));
        continue;
      }
      EXPECT_EQ(a_.Count(RdmaOutcome::kDone), 3u);
      EXPECT_TRUE(Bytes(0, text.size()) == text);
      EXPECT_EQ(b_.messages.size(), 1u);
      fabric_.FailNth(FakeCall::kPostSend, 0, 0);
    }
  }
}

TEST_F(LaneOneSidedTest, TheOwnerMayDestroyTheLaneInEveryCall) {
  Expose();
  for (const bool fail : {false, true}) {
    a_ = {};
    b_ = {};
    Connect();
    a_.on_done = [&] { a_.lane.reset(); };
    for (uint64_t i = 0; i < 5; ++i) a_.lane->Write(i, At(0), Payload("1234"));
    if (fail) a_.lane->OnFailed("device", "made to fail");
    EXPECT_TRUE(Run([&] { return a_.lane == nullptr; }));
    EXPECT_EQ(a_.done.size(), 1u);
    EXPECT_TRUE(a_.ends.empty());
  }
}

}  // namespace
}  // namespace penstock::internal
