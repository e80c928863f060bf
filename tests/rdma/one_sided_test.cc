// Reads and writes of exposed memory over a stream.
#include <penstock/rdma.h>

#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "rdma/message_header.h"
#include "rdma/region_table.h"
#include "testing/pattern.h"
#include "testing/rdma_pair.h"

namespace penstock::internal {
namespace {

class OneSidedTest : public RdmaHarness {
 protected:
  void TearDown() override {
    both_ = {};
    RdmaHarness::TearDown();
  }

  static constexpr size_t kSize = 300 * 1024;

  void OpenWith(RdmaAccess access, RdmaOptions options = Quiet()) {
    both_ = OpenEndpoints(options, options);
    memory_ = PatternBytes(3, 0, kSize);
    absl::StatusOr<RdmaRegion> region = both_.passive->Expose(memory_, access);
    ASSERT_TRUE(region.ok()) << region.status();
    region_ = *std::move(region);
    const absl::StatusOr<RdmaRemoteRegion> remote = AwaitRegion(*both_.active);
    ASSERT_TRUE(remote.ok()) << remote.status();
    remote_ = *remote;
    EXPECT_EQ(remote_.size, kSize);
    EXPECT_EQ(remote_.id, region_.id());
    EXPECT_EQ(remote_.epoch, region_.epoch());
  }

  std::string memory_;
  RdmaEndpoints both_;
  RdmaRegion region_;
  RdmaRemoteRegion remote_;
};

TEST_P(OneSidedTest, ReadsBringWhatIsThere) {
  OpenWith(RdmaAccess::kRead);
  EXPECT_TRUE(remote_.readable());
  EXPECT_FALSE(remote_.writable());
  EXPECT_TRUE(*Read(*both_.active, remote_, 0, kSize) == memory_);
  EXPECT_TRUE(*Read(*both_.active, remote_, 1000, 70'000) == memory_.substr(1000, 70'000));
  EXPECT_EQ(*Read(*both_.active, remote_, kSize, 0), "");
  EXPECT_EQ(both_.active->stats().reads, 3u);
}

TEST_P(OneSidedTest, WritesAreThereWhenTheyAreDone) {
  OpenWith(RdmaAccess::kWrite);
  const std::string bytes = PatternBytes(9, 0, 150'000);
  std::string expected = memory_;
  expected.replace(777, bytes.size(), bytes);
  EXPECT_TRUE(Write(*both_.active, remote_, 777, bytes).ok());
  EXPECT_TRUE(memory_ == expected);
  EXPECT_TRUE(Write(*both_.active, remote_, kSize, "").ok());
  EXPECT_EQ(both_.active->stats().writes, 2u);
}

TEST_P(OneSidedTest, AMessageAfterAWriteFindsItDone) {
  OpenWith(RdmaAccess::kReadWrite);
  const std::string bytes = PatternBytes(9, 0, kSize);
  Fate done;
  both_.active->WriteThenSend(remote_, 0, Chain(bytes), Chain("written"), done.OnDone());
  bool there = false;
  both_.passive->Receive([&](absl::StatusOr<BufferChain> message) {
    there = message.ok() && message->ToString() == "written" && memory_ == bytes;
  });
  EXPECT_TRUE(Await(done).ok()) << done.status();
  Settle();
  EXPECT_TRUE(there);
  EXPECT_EQ(both_.active->stats().writes, 1u);
  EXPECT_EQ(both_.active->stats().messages_sent, 1u);
}

TEST_P(OneSidedTest, WhatCannotBeIsRefusedHere) {
  OpenWith(RdmaAccess::kRead);
  const absl::Status beyond = Read(*both_.active, remote_, kSize - 1, 2).status();
  EXPECT_TRUE(absl::IsOutOfRange(beyond)) << beyond;
  const absl::Status forbidden = Write(*both_.active, remote_, 0, "x");
  EXPECT_TRUE(absl::IsPermissionDenied(forbidden)) << forbidden;
  RdmaRemoteRegion other = remote_;
  other.id = 17;
  const absl::Status unknown = Read(*both_.active, other, 0, 1).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(unknown)) << unknown;
  for (const absl::Status& status : {beyond, forbidden, unknown}) {
    EXPECT_EQ(OutcomeOf(status), RdmaOutcome::kNeverPosted);
  }
  EXPECT_TRUE(Read(*both_.active, remote_, 0, 1).ok());
}

TEST_P(OneSidedTest, ReadsBeyondThePeersDepthWaitTheirTurn) {
  RdmaOptions options = Quiet();
  options.read_depth = 2;
  OpenWith(RdmaAccess::kRead, options);
  std::vector<std::string> read;
  for (int i = 0; i < 20; ++i) {
    both_.active->Read(remote_, i, 100'000, [&](absl::StatusOr<BufferChain> bytes) {
      read.push_back(bytes.ok() ? bytes->ToString() : bytes.status().ToString());
    });
  }
  ASSERT_TRUE(Drive([&] { return read.size() == 20; }));
  for (int i = 0; i < 20; ++i) EXPECT_TRUE(read[i] == memory_.substr(i, 100'000)) << i;
}

TEST_P(OneSidedTest, RegionsExposedBeforeTheGateOpensAreTold) {
  both_ = Endpoints();
  memory_ = "exposed early";
  absl::StatusOr<RdmaRegion> gone = both_.passive->Expose(memory_, RdmaAccess::kWrite);
  absl::StatusOr<RdmaRegion> region = both_.passive->Expose(memory_, RdmaAccess::kRead);
  ASSERT_TRUE(region.ok());
  Fate revoked;
  gone->Revoke(revoked.OnDone());
  EXPECT_TRUE(Await(revoked).ok());
  const absl::StatusOr<RdmaRemoteRegion> remote = AwaitRegion(*both_.active);
  ASSERT_TRUE(remote.ok());
  EXPECT_TRUE(remote->readable());
  EXPECT_EQ(*Read(*both_.active, *remote, 0, memory_.size()), memory_);
}

TEST_P(OneSidedTest, RevokingWaitsForWhatIsUnderWayAndThenNothingComes) {
  OpenWith(RdmaAccess::kReadWrite);
  std::optional<absl::StatusOr<BufferChain>> read;
  both_.active->Read(remote_, 0, kSize, [&](auto bytes) { read = std::move(bytes); });
  both_.active->Write(remote_, 0, Chain("written"));
  // Posted, and not yet answered.
  ASSERT_TRUE(Drive([&] { return both_.active->stats().operations_posted == 2; }));
  Fate revoked, again;
  region_.Revoke(revoked.OnDone());
  region_.Revoke(again.OnDone());
  EXPECT_TRUE(absl::IsFailedPrecondition(Await(again)));
  EXPECT_TRUE(Await(revoked).ok());
  ASSERT_TRUE(read.has_value());
  EXPECT_TRUE(read->ok()) << read->status();
  EXPECT_EQ(memory_.substr(0, 7), "written");
  const absl::Status late = Write(*both_.active, remote_, 0, "x");
  EXPECT_TRUE(absl::IsFailedPrecondition(late)) << late;
  EXPECT_EQ(OutcomeOf(late), RdmaOutcome::kNeverPosted);
  // The endpoint goes on, and the slot with another epoch.
  const uint32_t epoch = region_.epoch();
  region_ = *both_.passive->Expose(memory_, RdmaAccess::kRead);
  EXPECT_EQ(region_.id(), remote_.id);
  EXPECT_GT(region_.epoch(), epoch);
  EXPECT_TRUE(absl::IsFailedPrecondition(Read(*both_.active, remote_, 0, 1).status()));
  EXPECT_EQ(Read(*both_.active, *AwaitRegion(*both_.active), 0, 7)->size(), 7u);
}

TEST_P(OneSidedTest, WaitingWorkOnARevokedRegionWasNeverPosted) {
  RdmaOptions options = Quiet();
  options.receive_depth = 2;
  OpenWith(RdmaAccess::kWrite, options);
  // Without a credit the first holds up the write.
  for (int i = 0; i < 3; ++i) both_.active->Send(Chain("full"));
  Fate write;
  both_.active->Write(remote_, 0, Chain("never"), write.OnDone());
  Settle();
  EXPECT_FALSE(write.ended());
  Fate revoked;
  region_.Revoke(revoked.OnDone());
  EXPECT_TRUE(Await(revoked).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(Await(write))) << write.status();
  EXPECT_EQ(OutcomeOf(write.status()), RdmaOutcome::kNeverPosted);
}

TEST_P(OneSidedTest, ARegionThatGoesUnderAnOperationEndsTheEndpoint) {
  OpenWith(RdmaAccess::kReadWrite);
  Fate write;
  both_.active->Write(remote_, 0, Chain("xxxx"), write.OnDone());
  region_ = RdmaRegion();
  EXPECT_TRUE(absl::IsInvalidArgument(Await(write))) << write.status();
  EXPECT_EQ(OutcomeOf(write.status()), RdmaOutcome::kInDoubt);
  EXPECT_TRUE(memory_ == PatternBytes(3, 0, kSize));
  EXPECT_TRUE(absl::IsInvalidArgument(Receive(*both_.passive).status()));
}

TEST_P(OneSidedTest, RevokingEndsWithTheEndpoint) {
  OpenWith(RdmaAccess::kRead);
  both_.active->Abort();
  Fate revoked;
  region_.Revoke(revoked.OnDone());
  EXPECT_TRUE(Await(revoked).ok());
  EXPECT_TRUE(absl::IsCancelled(AwaitRegion(*both_.active).status()));
  EXPECT_FALSE(both_.active->Expose(memory_, RdmaAccess::kRead).ok());
}

// A device that does not let go of memory could still write there.
TEST_P(OneSidedTest, RevokingTellsWhatTheDeviceDoesNotLetGo) {
  if (!has_lanes()) GTEST_SKIP() << "only devices can refuse to";
  // By the peer's answer, by the end of the endpoint, and before the peer has heard of it.
  for (const char way : {'a', 'e', 'u'}) {
    if (way == 'u') {
      both_ = Endpoints();
      region_ = *both_.passive->Expose(memory_, RdmaAccess::kReadWrite);
    } else {
      OpenWith(RdmaAccess::kReadWrite);
    }
    lanes().fabric().FailNth(testing::FakeCall::kDeregister, 1, EBUSY);
    Fate revoked;
    if (way == 'e') both_.passive->Abort();
    region_.Revoke(revoked.OnDone());
    const absl::Status status = Await(revoked);
    EXPECT_FALSE(status.ok()) << way;
    EXPECT_NE(status.message().find("deregister memory"), absl::string_view::npos) << status;
    region_ = RdmaRegion();
    // What goes tries again: nothing is left in the end.
    both_ = {};
  }
}

TEST_P(OneSidedTest, MemoryThatCannotBeExposedIsRefused) {
  both_ = OpenEndpoints();
  EXPECT_TRUE(absl::IsInvalidArgument(
      both_.passive->Expose(std::span<char>(), RdmaAccess::kRead).status()));
  memory_ = "some";
  std::vector<RdmaRegion> regions;
  for (size_t i = 0; i < kRegionsMax; ++i) {
    regions.push_back(*both_.passive->Expose(memory_, RdmaAccess::kRead));
  }
  EXPECT_TRUE(
      absl::IsResourceExhausted(both_.passive->Expose(memory_, RdmaAccess::kRead).status()));
}

// What is refused the device never hears of: to register memory is slow, and gives it to the peer.
TEST_P(OneSidedTest, WhatCannotBeExposedIsNotRegistered) {
  both_ = OpenEndpoints();
  memory_ = "some";
  std::vector<RdmaRegion> regions;
  const auto expose = [&](std::span<char> memory, int access) {
    absl::StatusOr<RdmaRegion> region =
        both_.passive->Expose(memory, static_cast<RdmaAccess>(access));
    if (region.ok()) regions.push_back(*std::move(region));
    return region.status();
  };
  while (regions.size() + 1 < kRegionsMax) ASSERT_TRUE(expose(memory_, 3).ok());
  int registered = 0;
  if (has_lanes()) {
    lanes().fabric().set_on_call(
        [&](testing::FakeCall call) { registered += call == testing::FakeCall::kRegister; });
    // Would be counted, too.
    lanes().fabric().FailNth(testing::FakeCall::kRegister, 1, ENOMEM);
  }
  for (const int access : {0, 4, 255}) {
    const absl::Status status = expose(memory_, access);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << access << " " << status;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(expose({}, 1)));
  EXPECT_EQ(registered, 0);
  EXPECT_EQ(both_.passive->stats().unregistered, 0u);
  EXPECT_TRUE(expose(memory_, 1).ok());
  EXPECT_EQ(registered, has_lanes() ? 1 : 0);
  EXPECT_TRUE(absl::IsResourceExhausted(expose(memory_, 1)));
  EXPECT_EQ(registered, has_lanes() ? 1 : 0);
  EXPECT_EQ(both_.passive->stats().unregistered, has_lanes() ? 1u : 0u);
  if (has_lanes()) lanes().fabric().set_on_call(nullptr);
  EXPECT_EQ(Send(*both_.active, "alive"), absl::OkStatus());
}

// OUT_OF_RANGE would say that it is beyond the region, and that the endpoint lives.
TEST_P(OneSidedTest, OperationsThatThePeersEndOvertakesAreUnavailable) {
  RdmaOptions options = Quiet();
  options.receive_depth = 2;
  OpenWith(RdmaAccess::kReadWrite, options);
  // Without a credit the first holds up the others.
  for (int i = 0; i < 3; ++i) both_.active->Send(Chain("full"));
  Fate write, read, message, late_write, late_read, late_message;
  const auto into = [](Fate& fate) {
    return [done = fate.OnDone()](absl::StatusOr<BufferChain> bytes) mutable {
      std::move(done)(bytes.status());
    };
  };
  both_.active->Write(remote_, 0, Chain("never"), write.OnDone());
  both_.active->Read(remote_, 0, 1, into(read));
  both_.active->Send(Chain("never"), message.OnDone());
  Settle();
  Fate closed;
  both_.passive->Close(closed.OnDone());
  EXPECT_TRUE(Await(closed).ok()) << closed.status();
  const absl::Status end = Receive(*both_.active).status();
  EXPECT_TRUE(IsEof(end)) << end;
  EXPECT_TRUE(IsEof(AwaitRegion(*both_.active).status()));
  both_.active->Write(remote_, 0, Chain("never"), late_write.OnDone());
  both_.active->Read(remote_, 0, 1, into(late_read));
  both_.active->Send(Chain("never"), late_message.OnDone());
  for (Fate* fate : {&write, &read, &message, &late_write, &late_read, &late_message}) {
    EXPECT_TRUE(absl::IsUnavailable(Await(*fate))) << fate->status();
    EXPECT_EQ(OutcomeOf(fate->status()), RdmaOutcome::kNeverPosted);
  }
}

INSTANTIATE_TEST_SUITE_P(Lanes, OneSidedTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Environments, OneSidedTest, ::testing::ValuesIn(RdmaEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
