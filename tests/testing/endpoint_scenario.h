// EndpointScenario: a test of two endpoints, open over two devices: those of a fake fabric, or the
// first two of this machine (as in that of tests/vm/run.py --rdma; elsewhere it is skipped). What
// it notes must be the same on both.
#ifndef PENSTOCK_TESTS_TESTING_ENDPOINT_SCENARIO_H_
#define PENSTOCK_TESTS_TESTING_ENDPOINT_SCENARIO_H_

#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/rdma.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "rdma/lane_device.h"
#include "testing/device_scenario.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_host.h"
#include "testing/long_run.h"
#include "testing/pattern.h"

namespace penstock::internal {

enum class EndpointsOn { kFake, kMachine };

class EndpointScenario : public ::testing::TestWithParam<EndpointsOn> {
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
    Leave();
    for (Side& side : sides_) side = {};
    if (fake_) {
      for (const std::string& what : fake_->violations()) ADD_FAILURE() << what;
      fake_.reset();
      host_.reset();
    }
    loop_.reset();
  }

  // Two streams' ends, then two endpoints, open over their devices.
  void Open(uint32_t lanes = 1) {
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
    options.lanes = lanes;
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
      EXPECT_EQ(side.endpoint->stats().lanes, lanes) << side.endpoint->stats().fallback;
    }
  }
  // The endpoints go, and so does what they leave for a while: streams that have to end, say.
  void Leave() {
    for (Side& side : sides_) side.endpoint = nullptr;
    EXPECT_TRUE(Run(
        [&] { return sides_[0].device.use_count() <= 1 && sides_[1].device.use_count() <= 1; }));
  }
  BufferChain Payload(std::string_view text) {
    return CopyInBlocks(loop_->pool(), text, 256 * 1024);
  }
  bool Run(const std::function<bool()>& until) {
    return RunLoopUntil(*loop_, absl::Seconds(LongRun() ? 3600 : 60), until);
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
  // `size` bytes and the end, by a writer that waits for room.
  void Flow(Stream& to, Stream& from, uint64_t size) {
    constexpr uint64_t kPiece = 256 * 1024, kSeed = 9;
    uint64_t sent = 0, received = 0;
    bool ended = false;
    const std::function<void()> write = [&] {
      while (sent < size && to.writable()) {
        const size_t piece = std::min(kPiece, size - sent);
        to.Write(Payload(PatternBytes(kSeed, sent, piece)));
        sent += piece;
      }
      if (sent == size) return to.ShutdownWrite();
      to.NotifyWritable([&](absl::Status status) {
        ASSERT_TRUE(status.ok()) << status;
        write();
      });
    };
    const std::function<void()> read = [&] {
      from.ReadReady([&](absl::StatusOr<Buffer> bytes) {
        if (!bytes.ok()) {
          EXPECT_TRUE(IsEof(bytes.status())) << bytes.status();
          ended = true;
          return;
        }
        ASSERT_EQ(FirstMismatch(bytes->view(), kSeed, received), std::nullopt);
        received += bytes->size();
        read();
      });
    };
    write();
    read();
    EXPECT_TRUE(Run([&] { return ended; }));
    EXPECT_EQ(received, size);
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

inline std::string EndpointsName(const ::testing::TestParamInfo<EndpointsOn>& info) {
  return info.param == EndpointsOn::kFake ? "Fake" : "Machine";
}

}  // namespace penstock::internal

#endif  // PENSTOCK_TESTS_TESTING_ENDPOINT_SCENARIO_H_
