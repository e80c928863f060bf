// Environments whose streams are AsStream of RDMA endpoints, over streams of some of the others.
#include <penstock/rdma.h>

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "rdma/message_header.h"
#include "testing/environment.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

class RdmaEnvironment final : public Environment {
 public:
  explicit RdmaEnvironment(std::unique_ptr<Environment> below) : below_(std::move(below)) {}

  std::string missing() override { return below_->missing(); }
  absl::StatusOr<std::unique_ptr<Loop>> NewLoop(LoopOptions options) override {
    return below_->NewLoop(std::move(options));
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
};

}  // namespace

std::vector<EnvironmentCase> RdmaStreamEnvironments() {
  std::vector<EnvironmentCase> cases;
  for (const EnvironmentCase& which : AllEnvironments()) {
    for (std::string_view name :
         {"EpollIpv4", "UringIpv4", "SimulatedReadiness", "SimulatedCompletion"}) {
      if (which.name != name) continue;
      cases.push_back({absl::StrCat(which.name, "Rdma"),
                       [make = which.make] { return std::make_unique<RdmaEnvironment>(make()); }});
    }
  }
  return cases;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
