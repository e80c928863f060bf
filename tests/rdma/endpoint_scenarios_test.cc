// What endpoints do over the fake fabric and over the machine's own devices: the same scenarios
// with the same trace. Two devices are needed, as in the machine of tests/vm/run.py --rdma;
// elsewhere the second half is skipped.
#include <penstock/rdma.h>

#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "testing/endpoint_scenario.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

using EndpointScenarioTest = EndpointScenario;

// Of one receive, of many, and so large that the device reads them.
TEST_P(EndpointScenarioTest, MessagesOfEverySizeComeBack) {
  Echo(passive());
  for (const size_t size : {size_t{0}, size_t{64}, size_t{100'000}, size_t{1'000'000}}) {
    const std::string text = PatternBytes(size, 0, size);
    active().endpoint->Send(Payload(text),
                            [&](absl::Status status) { active().Note("sent", status); });
    bool back = false;
    active().endpoint->Receive([&](absl::StatusOr<BufferChain> message) {
      back = message.ok() && message->ToString() == text;
      active().Note(back ? "back" : "other");
    });
    ASSERT_TRUE(Run([&] { return back; })) << size;
  }
  EXPECT_EQ(active().endpoint->stats().offers, 1u);
  Close();
  ASSERT_TRUE(Run([&] { return passive().trace.ends_with("eof"); }));
  EXPECT_EQ(passive().trace, "open got0 got64 got100000 got1000000 eof");
  EXPECT_TRUE(active().trace.ends_with("closed")) << active().trace;
}

TEST_P(EndpointScenarioTest, MemoryIsWrittenReadAndTakenBack) {
  std::vector<char> memory(300'000, '-');
  absl::StatusOr<RdmaRegion> region = passive().endpoint->Expose(memory, RdmaAccess::kReadWrite);
  ASSERT_TRUE(region.ok()) << region.status();
  const std::string text = PatternBytes(1, 0, 200'000);
  Side& side = active();
  bool read = false;
  side.endpoint->AwaitRegion([&](absl::StatusOr<RdmaRemoteRegion> remote) {
    ASSERT_TRUE(remote.ok()) << remote.status();
    side.Note("region");
    side.endpoint->WriteThenSend(*remote, 1000, Payload(text), Payload("written"),
                                 [&](absl::Status status) { side.Note("written", status); });
    side.endpoint->Read(*remote, 900, 150'000, [&](absl::StatusOr<BufferChain> bytes) {
      side.Note("read", bytes.status());
      EXPECT_TRUE(bytes.ok() &&
                  bytes->ToString() == std::string(100, '-') + text.substr(0, 149'900));
      read = true;
    });
  });
  bool revoked = false;
  passive().endpoint->Receive([&](absl::StatusOr<BufferChain> message) {
    ASSERT_TRUE(message.ok()) << message.status();
    passive().Note(message->ToString());
    EXPECT_TRUE(std::string(memory.data() + 1000, text.size()) == text);
    region->Revoke([&](absl::Status status) {
      passive().Note("revoked", status);
      revoked = true;
    });
  });
  ASSERT_TRUE(Run([&] { return read && revoked; }));
  EXPECT_EQ(passive().trace, "open written revoked");
  Close();
}

// Written, read back, and sent as a message that is offered, each in slices by all of the lanes.
TEST_P(EndpointScenarioTest, SeveralLanesShareWhatIsLarge) {
  Leave();
  Open(/*lanes=*/4);
  std::vector<char> memory(1'000'000, '-');
  absl::StatusOr<RdmaRegion> region = passive().endpoint->Expose(memory, RdmaAccess::kReadWrite);
  ASSERT_TRUE(region.ok()) << region.status();
  RdmaEndpoint& endpoint = *active().endpoint;
  std::optional<RdmaRemoteRegion> remote;
  endpoint.AwaitRegion([&](absl::StatusOr<RdmaRemoteRegion> exposed) {
    ASSERT_TRUE(exposed.ok()) << exposed.status();
    remote = *exposed;
  });
  ASSERT_TRUE(Run([&] { return remote.has_value(); }));
  std::string expected(memory.size(), '-');
  for (uint64_t i = 1; i <= 5; ++i) {
    const std::string written = PatternBytes(i, 0, 700'000);
    expected.replace(10'000 * i, written.size(), written);
    bool news = false;
    passive().endpoint->Receive([&](absl::StatusOr<BufferChain> message) {
      EXPECT_TRUE(message.ok() && std::string(memory.data(), memory.size()) == expected) << i;
      news = true;
    });
    endpoint.WriteThenSend(*remote, 10'000 * i, Payload(written), Payload("news"),
                           [&](absl::Status status) { active().Note("written", status); });
    ASSERT_TRUE(Run([&] { return news; })) << i;
  }
  bool read = false, received = false;
  endpoint.Read(*remote, 4'321, 600'000, [&](absl::StatusOr<BufferChain> bytes) {
    active().Note("read", bytes.status());
    EXPECT_TRUE(bytes.ok() && bytes->ToString() == expected.substr(4'321, 600'000));
    read = true;
  });
  ASSERT_TRUE(Run([&] { return read; }));
  const std::string large = PatternBytes(6, 0, 900'000);
  endpoint.Send(Payload(large), [&](absl::Status status) { active().Note("sent", status); });
  passive().endpoint->Receive([&](absl::StatusOr<BufferChain> message) {
    EXPECT_TRUE(message.ok() && message->ToString() == large);
    received = true;
  });
  ASSERT_TRUE(Run([&] { return received; }));
  EXPECT_EQ(endpoint.stats().offers, 1u);
  EXPECT_EQ(endpoint.stats().lanes, 4u);
  Close();
  EXPECT_EQ(active().trace, "open open written written written written written read sent closed");
}

TEST_P(EndpointScenarioTest, AStreamCarriesMegabytes) {
  StreamPtr to = AsStream(std::move(active().endpoint));
  StreamPtr from = AsStream(std::move(passive().endpoint));
  Flow(*to, *from, LongRun() ? uint64_t{1} << 30 : 4 << 20);
}

// Every packet is lost from the middle of the talk on: the queue pairs give up, the stream takes
// over, and each message is answered once and in order all the same.
TEST_P(EndpointScenarioTest, ALostWireGivesWayToTheStream) {
  constexpr int kMessages = 30, kLost = 10, kWindow = 4;
  const auto unplug = [&](bool lost) {
    if (fake_) return fake_->set_drop([lost](const testing::FakePacket&) { return lost; });
    for (const std::string end : {"v0", "v1"}) {
      const std::string tc = absl::StrCat("tc qdisc ", lost ? "add" : "del", " dev ", end, " root",
                                          lost ? " netem loss 100%" : "");
      ASSERT_EQ(std::system(tc.c_str()), 0) << tc;
    }
  };
  Echo(passive());
  int sent = 0, back = 0;
  const auto text = [](int i) { return PatternBytes(i, 0, 3'000); };
  const auto send = [&] { active().endpoint->Send(Payload(text(sent++))); };
  const std::function<void()> receive = [&] {
    active().endpoint->Receive([&](absl::StatusOr<BufferChain> message) {
      ASSERT_TRUE(message.ok()) << message.status();
      ASSERT_TRUE(message->ToString() == text(back)) << back;
      if (++back == kLost) unplug(true);
      if (sent < kMessages) send();
      if (back < kMessages) receive();
    });
  };
  receive();
  for (int i = 0; i < kWindow; ++i) send();
  ASSERT_TRUE(Run([&] { return back == kMessages; })) << back;
  for (Side& side : sides_) {
    EXPECT_FALSE(side.endpoint->stats().over_device);
    EXPECT_NE(side.endpoint->stats().fallback, "");
    EXPECT_EQ(side.endpoint->stats().messages_received, static_cast<uint64_t>(kMessages));
  }
  unplug(false);
  Close();
}

TEST_P(EndpointScenarioTest, EndpointsComeAndGoAndMemoryStays) {
  const int cycles = LongRun() ? 1000 : 40;
  size_t pinned = 0, resident = 0;
  for (int i = 0; i < cycles; ++i) {
    if (i > 0) {
      ASSERT_NO_FATAL_FAILURE(Open());
    }
    Echo(passive());
    bool back = false;
    active().endpoint->Send(Payload(PatternBytes(i, 0, 5'000)));
    active().endpoint->Receive([&](absl::StatusOr<BufferChain> message) { back = message.ok(); });
    ASSERT_TRUE(Run([&] { return back; })) << i;
    // By turns with work under way.
    if (i % 2 == 0) active().endpoint->Send(Payload(PatternBytes(i, 0, 5'000)));
    Leave();
    if (i == cycles / 10) {
      pinned = loop_->pool().Stats().live;
      resident = ResidentBytes();
    }
  }
  // What was under way when its endpoint went is held until the device gives it up, or for a
  // second.
  EXPECT_TRUE(Run([&] { return loop_->pool().Stats().live <= pinned; }))
      << loop_->pool().Stats().live << " and not " << pinned;
  // The fake keeps count of what it has seen.
  if (GetParam() == EndpointsOn::kMachine) {
    EXPECT_LT(ResidentBytes(), resident + (1 << 20));
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, EndpointScenarioTest,
                         ::testing::Values(EndpointsOn::kFake, EndpointsOn::kMachine),
                         EndpointsName);

}  // namespace
}  // namespace penstock::internal
