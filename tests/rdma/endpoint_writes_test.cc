// Reads and writes of endpoints that their devices make: in order with messages, on the right
// memory only, and made again when the lane fails.
#include <penstock/rdma.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "testing/pattern.h"
#include "testing/rdma_pair.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;
using testing::FakePacket;
using testing::FakePacketKind;

class EndpointWritesTest : public RdmaHarness {
 protected:
  static constexpr size_t kSize = 200'000;

  struct Exposed {
    std::vector<char> memory = std::vector<char>(kSize);
    RdmaRegion region;
    RdmaRemoteRegion remote;
    std::string_view Bytes(size_t offset, size_t size) const {
      return {memory.data() + offset, size};
    }
  };
  // Memory of the passive side.
  std::unique_ptr<Exposed> Expose(RdmaEndpoints& both, RdmaAccess access = RdmaAccess::kReadWrite) {
    auto exposed = std::make_unique<Exposed>();
    absl::StatusOr<RdmaRegion> region = both.passive->Expose(exposed->memory, access);
    EXPECT_TRUE(region.ok()) << region.status();
    exposed->region = *std::move(region);
    exposed->remote = *AwaitRegion(*both.active);
    return exposed;
  }
  // Counts requests of the devices by kind.
  void Watch() {
    lanes().fabric().set_drop([this](const FakePacket& packet) {
      if (packet.kind == FakePacketKind::kRequest) {
        writes_ += packet.op == FabricOp::kWrite;
        reads_ += packet.op == FabricOp::kRead;
      }
      return false;
    });
  }

  int writes_ = 0;
  int reads_ = 0;
};

TEST_P(EndpointWritesTest, TheDeviceReadsAndWrites) {
  RdmaEndpoints both = OpenEndpoints();
  auto exposed = Expose(both);
  Watch();
  const std::string bytes = PatternBytes(1, 0, kSize - 10);
  EXPECT_TRUE(Write(*both.active, exposed->remote, 10, bytes).ok());
  EXPECT_TRUE(exposed->Bytes(10, bytes.size()) == bytes);
  EXPECT_GE(writes_, 4);
  const absl::StatusOr<std::string> got = Read(*both.active, exposed->remote, 5, 150'000);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_TRUE(*got == exposed->Bytes(5, 150'000));
  EXPECT_GE(reads_, 3);
  EXPECT_EQ(both.active->stats().writes, 1u);
  EXPECT_EQ(both.active->stats().reads, 1u);
  // The peer's endpoint was not told.
  EXPECT_EQ(both.passive->stats().bytes_in, 0u);
}

TEST_P(EndpointWritesTest, MemoryThatTheDeviceDoesNotTakeIsReachedByMessages) {
  RdmaEndpoints both = OpenEndpoints();
  lanes().fabric().FailNth(FakeCall::kRegister, 1, ENOMEM);
  auto exposed = Expose(both);
  Watch();
  EXPECT_TRUE(Write(*both.active, exposed->remote, 0, "by message").ok());
  EXPECT_EQ(exposed->Bytes(0, 10), "by message");
  EXPECT_EQ(*Read(*both.active, exposed->remote, 3, 7), "message");
  EXPECT_EQ(writes_ + reads_, 0);
  EXPECT_TRUE(both.active->stats().over_device);
}

// Writes of both kinds, to memory that two regions share: the last one started is the last one
// made.
TEST_P(EndpointWritesTest, WritesOfBothKindsKeepTheirOrder) {
  RdmaEndpoints both = OpenEndpoints();
  auto exposed = Expose(both);
  lanes().fabric().FailNth(FakeCall::kRegister, 1, ENOMEM);
  absl::StatusOr<RdmaRegion> region = both.passive->Expose(exposed->memory, RdmaAccess::kReadWrite);
  ASSERT_TRUE(region.ok());
  const RdmaRemoteRegion by_message = *AwaitRegion(*both.active);
  std::deque<Fate> fates;
  for (int i = 0; i < 40; ++i) {
    const RdmaRemoteRegion& remote = i % 3 == 0 ? by_message : exposed->remote;
    const std::string bytes = PatternBytes(i, 0, 30'000);
    fates.emplace_back();
    if (i % 4 == 1) {
      both.active->WriteThenSend(remote, 0, Chain(bytes), Chain("news"), fates.back().OnDone());
    } else {
      both.active->Write(remote, 0, Chain(bytes), fates.back().OnDone());
    }
  }
  EXPECT_TRUE(*Read(*both.active, by_message, 0, 30'000) == PatternBytes(39, 0, 30'000));
  for (const Fate& fate : fates) EXPECT_TRUE(Await(fate).ok()) << fate.status();
  EXPECT_TRUE(exposed->Bytes(0, 30'000) == PatternBytes(39, 0, 30'000));
}

TEST_P(EndpointWritesTest, ARegionThatHasGoneIsOutOfReach) {
  RdmaEndpoints both = OpenEndpoints();
  auto exposed = Expose(both);
  std::vector<char>& memory = exposed->memory;
  exposed->region = RdmaRegion();
  // The revocation is on its way.
  Fate written;
  both.active->Write(exposed->remote, 0, Chain("too late"), written.OnDone());
  EXPECT_FALSE(Await(written).ok());
  EXPECT_EQ(std::count(memory.begin(), memory.end(), 0), static_cast<ptrdiff_t>(kSize));
  if (OutcomeOf(written.status()) == RdmaOutcome::kInDoubt) {
    EXPECT_FALSE(Receive(*both.passive).ok());
  }
}

TEST_P(EndpointWritesTest, ARevocationWaitsForTheDevice) {
  RdmaEndpoints both = OpenEndpoints();
  auto exposed = Expose(both);
  const std::string bytes = PatternBytes(9, 0, kSize);
  Fate written, revoked;
  both.active->Write(exposed->remote, 0, Chain(bytes), written.OnDone());
  ASSERT_TRUE(Drive([&] { return both.active->stats().operations_posted == 1; }));
  exposed->region.Revoke(revoked.OnDone());
  EXPECT_TRUE(Await(revoked).ok());
  EXPECT_TRUE(exposed->Bytes(0, kSize) == bytes);
  EXPECT_TRUE(Await(written).ok());
}

TEST_P(EndpointWritesTest, NoMoreReadsAreOutThanThePeerServes) {
  RdmaOptions few = Quiet();
  few.read_depth = 2;
  RdmaEndpoints both = OpenEndpoints(Quiet(), few);
  auto exposed = Expose(both);
  Watch();
  std::deque<Fate> fates(20);
  for (Fate& fate : fates) {
    both.active->Read(exposed->remote, 0, 100'000,
                      [done = fate.OnDone()](absl::StatusOr<BufferChain> bytes) mutable {
                        std::move(done)(bytes.status());
                      });
  }
  for (const Fate& fate : fates) EXPECT_TRUE(Await(fate).ok()) << fate.status();
  EXPECT_GE(reads_, 40);
}

// The device's queue is never free: what the peer waits to hear goes all the same.
TEST_P(EndpointWritesTest, MessagesAreAcknowledgedBesideWritesThatRenewThemselves) {
  RdmaEndpoints both = OpenEndpoints();
  auto exposed = Expose(both);
  const Buffer bytes = *loop().pool().Copy(std::string(4096, 'w'));
  int left = 1000;
  std::function<void()> write = [&] {
    BufferChain data;
    while (data.size() + bytes.size() <= kSize) data.Append(bytes.Share());
    both.active->Write(exposed->remote, 0, std::move(data), [&](absl::Status) {
      if (left > 0 && --left > 0) write();
    });
  };
  // More than the queues of three lanes take.
  for (int i = 0; i < 150; ++i) write();
  // Too few for the lane to tell of them by itself.
  std::deque<Fate> fates(3);
  for (Fate& fate : fates) {
    both.passive->Send(Chain("x"), fate.OnDone());
    EXPECT_TRUE(Receive(*both.active).ok());
  }
  for (const Fate& fate : fates) EXPECT_TRUE(Await(fate).ok()) << fate.status();
  EXPECT_GT(left, 0) << "it waited for the writes to stop";
  left = 0;
  EXPECT_TRUE(Drive([&] { return both.active->stats().operations_posted == 0; }));
}

INSTANTIATE_TEST_SUITE_P(Lanes, EndpointWritesTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);

// Where waiting for a device's timeouts costs nothing.
class EndpointRewritesTest : public EndpointWritesTest {};

// Whoever has the message finds the write; and what comes later is never undone.
TEST_P(EndpointRewritesTest, ALinkThatBreaksAmongWritesAndMessagesLosesNothing) {
  constexpr size_t kEach = 9'000;
  bool fell_back = false;
  for (uint64_t packets = 0; packets < 100; packets += kSanitized ? 9 : 3) {
    RdmaEndpoints both = OpenEndpoints();
    auto exposed = Expose(both);
    uint64_t left = packets;
    lanes().fabric().set_drop([&](const FakePacket&) { return left == 0 || left-- == 0; });
    std::deque<Fate> fates;
    std::deque<std::string> read;
    for (size_t i = 0; i < 20; ++i) {
      const std::string bytes = PatternBytes(i, 0, kEach);
      if (i % 3 == 0) {
        fates.emplace_back();
        both.active->Write(exposed->remote, i * kEach, Chain(bytes), fates.back().OnDone());
        fates.emplace_back();
        both.active->Send(Chain(absl::StrCat(i)), fates.back().OnDone());
      } else {
        fates.emplace_back();
        both.active->WriteThenSend(exposed->remote, i * kEach, Chain(bytes), Chain(absl::StrCat(i)),
                                   fates.back().OnDone());
      }
      std::string& into = read.emplace_back();
      fates.emplace_back();
      both.active->Read(
          exposed->remote, i * kEach, kEach,
          [&into, done = fates.back().OnDone()](absl::StatusOr<BufferChain> got) mutable {
            if (got.ok()) into = got->ToString();
            std::move(done)(got.status());
          });
    }
    for (size_t i = 0; i < 20; ++i) {
      ASSERT_EQ(*Receive(*both.passive), absl::StrCat(i)) << packets;
      EXPECT_TRUE(exposed->Bytes(i * kEach, kEach) == PatternBytes(i, 0, kEach)) << i;
    }
    for (const Fate& fate : fates) EXPECT_TRUE(Await(fate).ok()) << fate.status();
    for (size_t i = 0; i < 20; ++i) EXPECT_TRUE(read[i] == PatternBytes(i, 0, kEach)) << i;
    fell_back = fell_back || !both.active->stats().over_device;
    lanes().fabric().set_drop(nullptr);
    Fate closed;
    both.active->Close(closed.OnDone());
    EXPECT_TRUE(Await(closed).ok()) << closed.status();
  }
  EXPECT_TRUE(fell_back);
}

INSTANTIATE_TEST_SUITE_P(Simulated, EndpointRewritesTest,
                         ::testing::ValuesIn(SimulatedLaneEnvironments()), EnvironmentName);

}  // namespace
}  // namespace penstock::internal
