// Environments whose streams are AsStream of RDMA endpoints, over streams of some of the others,
// and over simulated devices as well.
#include <penstock/rdma.h>

#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/deferred.h"
#include "engine/loop_core.h"
#include "rdma/message_header.h"
#include "testing/environment.h"
#include "testing/fake_lanes.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// The devices of one loop, which the test may end at any time.
struct LoopLanes : Deferred {
  LoopLanes(Environment& environment, Loop& loop, const RdmaDeviceOptions& options)
      : Deferred([](Deferred* node) { static_cast<LoopLanes*>(node)->lanes.Stop(); }),
        lanes(environment, loop, options) {
    loop.core().AtEnd(*this);
  }
  FakeLanes lanes;
};

class RdmaEnvironment final : public Environment {
 public:
  RdmaEnvironment(std::unique_ptr<Environment> below, bool with_device)
      : below_(std::move(below)), with_device_(with_device) {}

  std::string missing() override { return below_->missing(); }
  absl::StatusOr<std::unique_ptr<Loop>> NewLoop(LoopOptions options) override {
    absl::StatusOr<std::unique_ptr<Loop>> loop = below_->NewLoop(std::move(options));
    if (!with_device_ || !loop.ok()) return loop;
    RdmaDeviceOptions device;
    device.receives = 512;
    lanes_[loop->get()] = std::make_unique<LoopLanes>(*below_, **loop, device);
    return loop;
  }
  SocketAddress NewAddress() override { return below_->NewAddress(); }
  EngineKind listen_engine() const override { return below_->listen_engine(); }
  EngineKind connect_engine() const override { return below_->connect_engine(); }
  bool has_kernel() const override { return false; }
  bool drives_alone() const override { return below_->drives_alone(); }
  size_t unit_max() const override { return kStreamPieceMax; }

  void Wrap(StreamPtr stream, bool server, StreamCallback done) override {
    const SendBounds bounds = stream->send_bounds();
    StreamOptions options;
    options.send_queue_low = bounds.low;
    options.send_queue_high = bounds.high;
    options.send_queue_max = bounds.max;
    RdmaOptions rdma;
    if (with_device_) rdma.device = lanes_[&stream->loop()]->lanes.device();
    // A simulated clock goes on to the next timer when nothing else is left to do.
    rdma.ping_interval = absl::InfiniteDuration();
    // Less than the megabyte that tests write to see a stream fill up, and more than the ten writes
    // that they make before they read.
    rdma.receive_depth = 12;
    // Tests that let the pool run dry before they connect make opening wait for it.
    rdma.open_deadline = rdma.ready_deadline = absl::InfiniteDuration();
    std::move(done)(AsStream(server ? RdmaEndpoint::Accept(std::move(stream), rdma)
                                    : RdmaEndpoint::Connect(std::move(stream), rdma),
                             options));
  }
  bool Drive(std::span<Loop* const> loops, absl::FunctionRef<bool()> done) override {
    return below_->Drive(loops, done);
  }
  void Settle(std::span<Loop* const> loops) override { below_->Settle(loops); }

 private:
  std::unique_ptr<Environment> below_;
  const bool with_device_;
  std::map<const Loop*, std::unique_ptr<LoopLanes>> lanes_;
};

}  // namespace

std::vector<EnvironmentCase> RdmaStreamEnvironments() {
  std::vector<EnvironmentCase> cases;
  for (const EnvironmentCase& which : AllEnvironments()) {
    for (std::string_view name :
         {"EpollIpv4", "UringIpv4", "SimulatedReadiness", "SimulatedCompletion"}) {
      if (which.name != name) continue;
      for (const bool with_device : {false, true}) {
        cases.push_back({absl::StrCat(which.name, with_device ? "RdmaLanes" : "Rdma"),
                         [make = which.make, with_device] {
                           return std::make_unique<RdmaEnvironment>(make(), with_device);
                         }});
      }
    }
  }
  return cases;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
