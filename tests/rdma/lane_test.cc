// Lanes over simulated devices in a SimWorld.
#include "rdma/lane.h"

#include <cerrno>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "testing/allocations.h"
#include "testing/lane_kit.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;
using testing::LaneText;
using testing::LaneUser;

class LaneTest : public testing::LaneWorld {
 protected:
  // For less than what nobody waits for may take to be told.
  bool RunShortly(const std::function<bool()>& until) {
    world_.Touch(*loop_);
    return world_.Run(until, absl::Milliseconds(8));
  }
};

TEST_F(LaneTest, MessagesOfEverySizeArriveWholeAndInOrder) {
  Connect();
  std::vector<std::string> expected;
  // Inlined, copied, from where it is, in too many pieces to be sent from there.
  for (const size_t size : {0, 1, 40, 48, 49, 500, 1100, 5000, 8000}) {
    for (const size_t piece : {100, 4096}) {
      const std::string text = LaneText(static_cast<uint32_t>(expected.size()), size);
      expected.push_back("0123456789abcdef" + text);
      a_.lane->Send("0123456789abcdef", Payload(text, piece));
      b_.lane->Send("0123456789abcdef", Payload(text, piece));
    }
  }
  EXPECT_TRUE(Run([&] {
    return a_.messages.size() == expected.size() && b_.messages.size() == expected.size() &&
           a_.lane->out() == 0 && b_.lane->out() == 0;
  }));
  EXPECT_EQ(a_.messages, expected);
  EXPECT_EQ(b_.messages, expected);
  EXPECT_EQ(fabric_.stats().not_ready_naks, 0u);
}

TEST_F(LaneTest, BytesOfForeignMemoryAreCopied) {
  Connect();
  const std::string text = LaneText(3, 4000);
  a_.lane->Send("head", Buffer::FromExternal(text.data(), text.size(), [] {}));
  EXPECT_TRUE(Run([&] { return b_.messages.size() == 1; }));
  EXPECT_EQ(b_.messages[0], "head" + text);
}

TEST_F(LaneTest, WhatFindsNoRoomWaitsAndRoomIsTold) {
  Connect();
  for (uint32_t i = 0; i < 500; ++i) a_.lane->Send(absl::StrCat(i), {});
  EXPECT_FALSE(a_.lane->HasRoom());
  // What has gone out makes room as soon as it has arrived.
  ASSERT_TRUE(RunShortly([&] { return b_.messages.size() == 500; }));
  for (uint32_t i = 0; i < 500; ++i) EXPECT_EQ(b_.messages[i], absl::StrCat(i));
  EXPECT_TRUE(a_.lane->HasRoom());
  EXPECT_EQ(a_.rooms, 1);
}

// Nothing but the device allocates for messages that come again and again.
TEST_F(LaneTest, WhatIsSteadilySentAllocatesNothing) {
  if (!CanCountAllocations()) GTEST_SKIP() << "a sanitizer has its own allocator";
  Connect();
  const std::string head(48, 'h');
  Buffer bytes = *pool_->Copy(LaneText(1, 100));
  const auto send = [&] {
    // More than the device takes at once: the rest is kept.
    for (int i = 0; i < 200; ++i) a_.lane->Send(head, bytes.Share(), i % 2 == 0 ? 1 : 2);
  };
  send();
  EXPECT_TRUE(Run([&] { return a_.done.size() == 200; }));
  // None is posted now: the fake device allocates for what it takes.
  for (int i = 0; i < 128; ++i) a_.lane->Send(head, {});
  EXPECT_FALSE(a_.lane->HasRoom());
  std::vector<Buffer> payloads;
  for (int i = 0; i < 60; ++i) payloads.push_back(bytes.Share());
  const int64_t before = AllocationsOnThisThread();
  for (Buffer& payload : payloads) a_.lane->Send(head, std::move(payload), 3);
  EXPECT_EQ(AllocationsOnThisThread(), before);
  EXPECT_TRUE(Run([&] { return b_.messages.size() == 388; }));
}

TEST_F(LaneTest, LanesThatWaitPinNothingOfTheirOwn) {
  const uint64_t bank = 2 * 1024 * 8192;
  EXPECT_EQ(fabric_.receive_bytes_posted(), bank);
  const size_t pinned = pool_->Stats().live;
  std::vector<std::unique_ptr<Lane>> lanes;
  for (int i = 0; i < 500; ++i) {
    lanes.push_back(NewLane(0, a_, 2));
    ASSERT_TRUE(lanes.back()->BringUp(hub_[1]->address()).ok());
  }
  EXPECT_EQ(fabric_.receive_bytes_posted(), bank);
  EXPECT_EQ(pool_->Stats().live, pinned);
  EXPECT_EQ(hub_[0]->available(), 24u);
  LaneUser user;
  EXPECT_EQ(Lane::Create(*hub_[0], user, 0, 25).status().code(),
            absl::StatusCode::kResourceExhausted);
  lanes.clear();
  EXPECT_EQ(hub_[0]->available(), 1024u);
}

// That a message has been acknowledged nobody waits for, and it is known soon all the same.
TEST_F(LaneTest, AnAcknowledgementWakesNobody) {
  Connect();
  // Somebody has waited for one, and the next may still wake.
  a_.lane->Send("x", {}, 1);
  a_.lane->Send("x", {});
  Run([] { return false; });
  const uint64_t events = hub_[0]->pump().stats().events;
  // Too long for the device to keep a copy of its own.
  a_.lane->Send(LaneText(1, 1000), {});
  EXPECT_GT(pool_->Stats().live, 0u);
  EXPECT_TRUE(RunShortly([&] { return b_.messages.size() == 3; }));
  RunShortly([] { return false; });
  EXPECT_EQ(a_.lane->out(), 1u);
  world_.Run([] { return false; }, absl::Milliseconds(50));
  EXPECT_EQ(a_.lane->out(), 0u);
  EXPECT_EQ(pool_->Stats().live, 0u);
  EXPECT_EQ(hub_[0]->pump().stats().events, events);
}

TEST_F(LaneTest, WhatSomebodyWaitsForIsToldAtOnce) {
  Connect();
  Run([] { return false; });
  for (uint64_t token = 1; token <= 20; ++token) {
    a_.lane->Send("x", {}, token);
    EXPECT_TRUE(RunShortly([&] { return a_.done.size() == token; })) << token;
  }
}

TEST_F(LaneTest, ALoneMessageThatIsNotAcknowledgedEndsTheLane) {
  Connect();
  b_.lane.reset();
  Run([] { return false; });
  a_.lane->Send("x", {});
  EXPECT_TRUE(Run([&] { return !a_.ends.empty(); }));
}

TEST_F(LaneTest, APeerThatIsNotThereEndsTheLaneOnce) {
  a_.lane = NewLane(0, a_);
  LaneAddress nowhere = hub_[1]->address();
  nowhere.qpn = 0x777;
  ASSERT_TRUE(a_.lane->BringUp(nowhere).ok());
  const uint32_t number = a_.lane->address().qpn;
  for (int i = 0; i < 300; ++i) a_.lane->Send("x", {});
  EXPECT_TRUE(Run([&] { return !a_.ends.empty(); }));
  Run([&] { return a_.lane->out() == 0; });
  EXPECT_EQ(a_.ends, std::vector<std::string>{
                         absl::StrCat("RDMA lane ", number, ": SEND: retries exceeded")});
}

TEST_F(LaneTest, ALaneMayGoInsideItsOwnCalls) {
  Connect();
  b_.on_message = [&] { b_.lane.reset(); };
  a_.on_end = [&] { a_.lane.reset(); };
  for (int i = 0; i < 200; ++i) a_.lane->Send(LaneText(1, 100), {});
  EXPECT_TRUE(Run([&] { return a_.lane == nullptr; }));
  EXPECT_EQ(b_.messages.size(), 1u);
  EXPECT_EQ(hub_[1]->posted(), 1024u);
}

TEST_F(LaneTest, APostThatFailsEndsTheLaneLater) {
  Connect();
  fabric_.FailNth(FakeCall::kPostSend, 1, EIO);
  a_.lane->Send("x", {});
  EXPECT_TRUE(a_.ends.empty());
  EXPECT_TRUE(Run([&] { return !a_.ends.empty(); }));
  EXPECT_NE(a_.ends[0].find("post work: input/output error"), std::string::npos) << a_.ends[0];
}

TEST_F(LaneTest, AReceiveIsPostedAgainBehindWhomItWoke) {
  Connect();
  uint32_t posted = 0;
  b_.on_message = [&] { posted = hub_[1]->posted(); };
  a_.lane->Send("x", {});
  EXPECT_TRUE(RunShortly([&] { return b_.messages.size() == 1; }));
  EXPECT_EQ(posted, 1023u);
  RunShortly([] { return false; });
  EXPECT_EQ(hub_[1]->posted(), 1024u);
}

TEST_F(LaneTest, WhatIsGrantedIsPostedAtAnyTime) {
  Connect();
  b_.on_message = [&] {
    // With the first of them all that are left are granted, this one too.
    EXPECT_TRUE(b_.lane->SetGrant(1024));
    EXPECT_EQ(hub_[1]->posted(), 1024u);
  };
  for (int i = 0; i < 20; ++i) a_.lane->Send("x", {});
  EXPECT_TRUE(RunShortly([&] { return b_.messages.size() == 20; }));
}

// What a queue pair that has gone received must not be taken for its successor's.
TEST_F(LaneTest, ANumberRestsUntilTheQueueHasBeenEmpty) {
  Connect();
  const uint32_t number = b_.lane->address().qpn;
  a_.lane->Send("for the old one", {});
  // It is in the completion queue, and nobody has looked.
  EXPECT_TRUE(Run([&] { return fabric_.stats().packets == 2; }));
  EXPECT_TRUE(b_.messages.empty());
  b_.lane.reset();
  b_.lane = NewLane(1, b_);
  EXPECT_NE(b_.lane->address().qpn, number);
  ASSERT_TRUE(b_.lane->BringUp(a_.lane->address()).ok());
  Run([&] { return false; });
  EXPECT_TRUE(b_.messages.empty());
}

// One that could receive has something to wait for, though it could never send: its device may be
// in the middle of a message.
TEST_F(LaneTest, AQueuePairThatCouldReceiveIsDrainedBeforeItGoes) {
  for (const FakeCall failing : {FakeCall::kToReadyToReceive, FakeCall::kToReadyToSend}) {
    a_.lane = NewLane(0, a_);
    b_.lane = NewLane(1, b_);
    ASSERT_TRUE(a_.lane->BringUp(b_.lane->address()).ok());
    fabric_.FailNth(failing, 1, EINVAL);
    EXPECT_FALSE(b_.lane->BringUp(a_.lane->address()).ok());
    const bool received = failing == FakeCall::kToReadyToSend;
    const uint64_t posted = fabric_.stats().sends_posted;
    const size_t pairs = fabric_.queue_pairs();
    b_.lane.reset();
    // A last send tells when nothing more comes.
    EXPECT_EQ(fabric_.stats().sends_posted, posted + (received ? 1 : 0));
    EXPECT_EQ(fabric_.queue_pairs(), pairs - (received ? 0 : 1));
    EXPECT_TRUE(RunShortly([&] { return fabric_.queue_pairs() == pairs - 1; }));
    a_.lane.reset();
  }
}

TEST_F(LaneTest, APoolWithoutRoomKeepsNothingBack) {
  Connect();
  std::vector<Buffer> hog;
  const auto fill = [&] {
    while (Buffer buffer = pool_->TryAllocate(8192)) hog.push_back(std::move(buffer));
  };
  world_.faults().map_failure = 1000;
  fill();
  for (uint32_t i = 0; i < 20; ++i) a_.lane->Send("m", {});
  EXPECT_TRUE(Run([&] { return b_.messages.size() == 20 && hub_[1]->posted() == 1024; }));
  world_.faults().map_failure = 0;
}

TEST_F(LaneTest, EveryCallMayFail) {
  int failures = 0;
  // The first round fails nowhere, and has the pool map what all need.
  for (uint64_t nth = 0; nth < 40; ++nth) {
    const size_t before = fabric_.objects();
    {
      const auto device = fabric_.Open("fake0");
      fabric_.FailNth(nth, ENOMEM);
      LaneHub::Options options;
      options.receives = 8;
      auto hub = LaneHub::Create(loop_->core(), **device, options);
      if (hub.ok()) {
        LaneUser user;
        auto lane = Lane::Create(**hub, user, 1, 4);
        if (lane.ok()) {
          const absl::Status up = (*lane)->BringUp(hub_[1]->address());
          failures += !up.ok();
        } else {
          ++failures;
        }
      } else {
        ++failures;
      }
      fabric_.FailNth(uint64_t{0}, 0);
    }
    const size_t after = fabric_.objects();
    if (nth > 0) {
      EXPECT_EQ(after, before) << nth;
    }
  }
  EXPECT_GT(failures, 15);
}

}  // namespace
}  // namespace penstock::internal
