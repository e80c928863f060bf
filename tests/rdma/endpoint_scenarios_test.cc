// What endpoints do over the fake fabric and over the machine's own devices: the same scenarios
// with the same trace. Two devices are needed, as in the machine of tests/vm/run.py --rdma;
// elsewhere the second half is skipped.
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/rdma.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "rdma/lane_device.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_host.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

enum class EndpointsOn { kFake, kMachine };

class EndpointScenarioTest : public ::testing::TestWithParam<EndpointsOn> {
 protected:
  struct Side {
    std::shared_ptr<RdmaDevice> device;
    std::unique_ptr<RdmaEndpoint> endpoint;
    std::string trace;
    void Note(const std::string& what) { absl::StrAppend(&trace, trace.empty() ? "" : " ", what); }
    void Note(const std::string& what, const absl::Status& status) {
      Note(status.ok() ? what : absl::StrCat(what, ":", status.ToString()));
    }
  };

  void SetUp() override {
    loop_ = *Loop::Create();
    Fabric* fabric = &SystemFabric();
    if (GetParam() == EndpointsOn::kFake) {
      host_.emplace(*loop_);
      fake_.emplace(*host_, 1);
      fabric = &*fake_;
    }
    const auto names = fabric->ListDevices();
    if (!names.ok()) GTEST_SKIP() << names.status();
    if (names->size() < 2) {
      GTEST_SKIP() << "two RDMA devices are needed, here are " << names->size();
    }
    for (size_t i = 0; i < 2; ++i) {
      RdmaDeviceOptions options;
      options.name = (*names)[i];
      options.gid_index = 1;  // of rdma_rxe, its IPv4 address
      options.receives = 256;
      auto device = LaneDevice::Open(loop_->core(), *fabric, options);
      ASSERT_TRUE(device.ok()) << device.status();
      sides_[i].device = *std::move(device);
    }
    Open();
  }
  void TearDown() override {
    for (Side& side : sides_) side.endpoint = nullptr;
    // Streams over endpoints stay for a while.
    EXPECT_TRUE(Run(
        [&] { return sides_[0].device.use_count() <= 1 && sides_[1].device.use_count() <= 1; }));
    for (Side& side : sides_) side = {};
    if (fake_) {
      for (const std::string& what : fake_->violations()) ADD_FAILURE() << what;
      fake_.reset();
      host_.reset();
    }
    loop_.reset();
  }

  // Two streams' ends, then two endpoints, open over their devices.
  void Open() {
    StreamPtr accepted, connected;
    auto listener = Listener::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), {},
                                     [&](StreamPtr stream) { accepted = std::move(stream); });
    ASSERT_TRUE(listener.ok()) << listener.status();
    Connect(*loop_, (*listener)->address(), {}, [&](absl::StatusOr<StreamPtr> stream) {
      ASSERT_TRUE(stream.ok()) << stream.status();
      connected = *std::move(stream);
    });
    ASSERT_TRUE(Run([&] { return accepted != nullptr && connected != nullptr; }));
    RdmaOptions options;
    options.ping_interval = absl::InfiniteDuration();
    options.open_deadline = options.ready_deadline = absl::Seconds(60);
    options.device = sides_[0].device;
    sides_[0].endpoint = RdmaEndpoint::Connect(std::move(connected), options);
    options.device = sides_[1].device;
    sides_[1].endpoint = RdmaEndpoint::Accept(std::move(accepted), options);
    int open = 0;
    for (Side& side : sides_) {
      side.endpoint->NotifyOpen([&](absl::Status status) {
        side.Note("open", status);
        ++open;
      });
    }
    ASSERT_TRUE(Run([&] { return open == 2; }));
    for (Side& side : sides_) {
      EXPECT_TRUE(side.endpoint->stats().over_device) << side.endpoint->stats().fallback;
    }
  }
  BufferChain Payload(std::string_view text) {
    BufferChain chain;
    constexpr size_t kBlock = 256 * 1024;
    for (size_t at = 0; at < text.size(); at += kBlock) {
      chain.Append(*loop_->pool().Copy(text.substr(at, kBlock)));
    }
    return chain;
  }
  bool Run(std::function<bool()> until) {
    Timer limit(*loop_), look(*loop_);
    bool late = false;
    limit.Arm(absl::Seconds(60), [&] {
      late = true;
      loop_->Stop();
    });
    const std::function<void()> check = [&] {
      if (until()) return loop_->Stop();
      look.Arm(absl::Milliseconds(1), check);
    };
    check();
    loop_->Run();
    return !late;
  }
  // Each message goes back as it came.
  void Echo(Side& side) {
    side.endpoint->Receive([&](absl::StatusOr<BufferChain> message) {
      if (!message.ok()) return side.Note(IsEof(message.status()) ? "eof" : "failed");
      side.Note(absl::StrCat("got", message->size()));
      side.endpoint->Send(*std::move(message));
      Echo(side);
    });
  }
  void Close() {
    bool closed = false;
    active().endpoint->Close([&](absl::Status status) {
      active().Note("closed", status);
      closed = true;
    });
    EXPECT_TRUE(Run([&] { return closed; }));
  }
  Side& active() { return sides_[0]; }
  Side& passive() { return sides_[1]; }

  std::unique_ptr<Loop> loop_;
  std::optional<testing::LoopHost> host_;
  std::optional<testing::FakeFabric> fake_;
  Side sides_[2];
};

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

TEST_P(EndpointScenarioTest, AStreamCarriesMegabytes) {
  constexpr size_t kSize = 4 << 20;
  StreamPtr to = AsStream(std::move(active().endpoint));
  StreamPtr from = AsStream(std::move(passive().endpoint));
  const std::string text = PatternBytes(9, 0, kSize);
  std::string received;
  bool ended = false;
  to->Write(Payload(text));
  to->ShutdownWrite();
  const std::function<void()> next = [&] {
    from->ReadReady([&](absl::StatusOr<Buffer> bytes) {
      if (!bytes.ok()) {
        EXPECT_TRUE(IsEof(bytes.status())) << bytes.status();
        ended = true;
        return;
      }
      received += bytes->view();
      next();
    });
  };
  next();
  ASSERT_TRUE(Run([&] { return ended; })) << received.size();
  EXPECT_TRUE(received == text);
}

std::string EndpointsName(const ::testing::TestParamInfo<EndpointsOn>& info) {
  return info.param == EndpointsOn::kFake ? "Fake" : "Machine";
}

INSTANTIATE_TEST_SUITE_P(Devices, EndpointScenarioTest,
                         ::testing::Values(EndpointsOn::kFake, EndpointsOn::kMachine),
                         EndpointsName);

// --- A peer that is killed ---

// How far the peer has come when it is.
enum class EndpointKilled { kBeforeItsAnswer, kOpen, kTalking };

// Answers every message until it is killed; tells its address by `pipe`.
[[noreturn]] void BeTheEndpoint(const std::string& device, EndpointKilled killed, int pipe) {
  std::unique_ptr<Loop> loop = *Loop::Create();
  RdmaOptions options;
  RdmaDeviceOptions of;
  of.name = device;
  of.gid_index = 1;
  options.device = *RdmaDevice::Open(*loop, of);
  StreamPtr mute;
  std::unique_ptr<RdmaEndpoint> endpoint;
  std::function<void()> echo = [&] {
    endpoint->Receive([&](absl::StatusOr<BufferChain> message) {
      if (!message.ok()) std::abort();
      endpoint->Send(*std::move(message));
      echo();
    });
  };
  auto listener =
      Listener::Listen(*loop, *SocketAddress::Parse("127.0.0.1:0"), {}, [&](StreamPtr stream) {
        if (killed == EndpointKilled::kBeforeItsAnswer) {
          mute = std::move(stream);
          return;
        }
        endpoint = RdmaEndpoint::Accept(std::move(stream), options);
        echo();
      });
  const std::string address = (*listener)->address().ToString();
  if (::write(pipe, address.data(), address.size()) < 0) std::abort();
  loop->Run();
  std::abort();
}

class EndpointPeerTest : public ::testing::TestWithParam<EndpointKilled> {};

// Whoever speaks to a peer that has gone learns it, by its stream, and what was under way has
// failed.
TEST_P(EndpointPeerTest, ThatIsKilledEndsTheEndpoint) {
  const auto names = SystemFabric().ListDevices();
  if (!names.ok()) GTEST_SKIP() << names.status();
  if (names->size() < 2) GTEST_SKIP() << "two RDMA devices are needed, here are " << names->size();
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) BeTheEndpoint((*names)[1], GetParam(), pipe[1]);
  std::string address(64, '\0');
  const ssize_t got = ::read(pipe[0], address.data(), address.size());
  ASSERT_GT(got, 0);
  address.resize(static_cast<size_t>(got));
  const auto kill = [child] {
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  };

  std::unique_ptr<Loop> loop = *Loop::Create();
  RdmaOptions options;
  options.open_deadline = options.ready_deadline = absl::Seconds(60);
  RdmaDeviceOptions of;
  of.name = (*names)[0];
  of.gid_index = 1;
  auto device = RdmaDevice::Open(*loop, of);
  ASSERT_TRUE(device.ok()) << device.status();
  options.device = *device;
  std::unique_ptr<RdmaEndpoint> endpoint;
  absl::Status sent, received;
  int echoes = 0;
  const std::string text = PatternBytes(1, 0, 300'000);
  const std::function<void()> talk = [&] {
    endpoint->Send(*loop->pool().Copy(text), [&](absl::Status status) {
      if (!status.ok()) sent = status;
    });
    endpoint->Receive([&](absl::StatusOr<BufferChain> message) {
      if (!message.ok()) {
        received = message.status();
        return loop->Stop();
      }
      if (++echoes == 3) kill();
      talk();
    });
  };
  penstock::Connect(
      *loop, *SocketAddress::Parse(address), {}, [&](absl::StatusOr<StreamPtr> stream) {
        ASSERT_TRUE(stream.ok()) << stream.status();
        endpoint = RdmaEndpoint::Connect(*std::move(stream), options);
        endpoint->NotifyOpen([&](absl::Status status) {
          EXPECT_EQ(status.ok(), GetParam() != EndpointKilled::kBeforeItsAnswer) << status;
          if (status.ok()) {
            EXPECT_TRUE(endpoint->stats().over_device) << endpoint->stats().fallback;
          }
          if (GetParam() == EndpointKilled::kOpen) kill();
        });
        talk();
        if (GetParam() == EndpointKilled::kBeforeItsAnswer) kill();
      });
  Timer limit(*loop);
  limit.Arm(absl::Seconds(60), [&] { loop->Stop(); });
  loop->Run();
  EXPECT_TRUE(absl::IsUnavailable(received)) << received;
  EXPECT_FALSE(sent.ok());
  EXPECT_EQ(OutcomeOf(sent), GetParam() == EndpointKilled::kBeforeItsAnswer
                                 ? RdmaOutcome::kNeverPosted
                                 : RdmaOutcome::kInDoubt);
  EXPECT_EQ(echoes, GetParam() == EndpointKilled::kTalking ? 3 : 0);
  endpoint = nullptr;
  for (const int end : pipe) ::close(end);
}

std::string EndpointKilledName(const ::testing::TestParamInfo<EndpointKilled>& info) {
  constexpr const char* kNames[] = {"BeforeItsAnswer", "Open", "Talking"};
  return kNames[static_cast<size_t>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Machine, EndpointPeerTest,
                         ::testing::Values(EndpointKilled::kBeforeItsAnswer, EndpointKilled::kOpen,
                                           EndpointKilled::kTalking),
                         EndpointKilledName);

}  // namespace
}  // namespace penstock::internal
