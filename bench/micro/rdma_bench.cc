// What an RDMA endpoint costs beside its device: messages there and back, and one-sided writes,
// between two endpoints on one loop that spins, over a device that carries everything during the
// call that posts it. Instructions for each of them are counted by
//   valgrind --tool=callgrind --toggle-collect='*RunMeasured*' rdma_bench --benchmark_filter=...
// `allocations` counts calls of operator new for each iteration.
#include <benchmark/benchmark.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/rdma.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "allocations.h"
#include "memory_fabric.h"
#include "rdma/lane_device.h"

namespace penstock_bench {
namespace {

using penstock::BufferChain;
using penstock::Loop;
using penstock::RdmaEndpoint;
using penstock::StreamPtr;

constexpr int64_t kIterations = 20000;

// Both ends, open, on one loop.
class RdmaPair {
 public:
  explicit RdmaPair(benchmark::State& state) : state_(state) { Open(); }

  bool ok() const { return status_.ok(); }
  Loop& loop() { return *loop_; }
  RdmaEndpoint& active() { return *active_; }
  RdmaEndpoint& passive() { return *passive_; }
  void Fail(const absl::Status& status) {
    if (status_.ok()) state_.SkipWithError(status.ToString().c_str());
    status_ = status;
    if (loop_ != nullptr) loop_->Stop();
  }
  // By value: a window onto bytes that all of them share.
  BufferChain Bytes(size_t size) {
    if (!bytes_) bytes_ = *loop_->pool().Copy(std::string(size, 'x'));
    return bytes_.Share();
  }
  // False, from some iteration on: the bench has seen enough.
  bool KeepRunning() {
    if (more_ && !state_.KeepRunning()) {
      more_ = false;
      loop_->Stop();
    }
    return more_;
  }
  // Lets the loop run until then.
  [[gnu::noinline]] void RunMeasured() {
    const int64_t before = Allocations();
    loop_->Run();
    state_.counters["allocations"] =
        static_cast<double>(Allocations() - before) / static_cast<double>(kIterations);
  }

 private:
  void Open() {
    penstock::LoopOptions options;
    options.engine = penstock::EngineKind::kEpoll;
    auto loop = Loop::Create(std::move(options));
    if (!loop.ok()) return Fail(loop.status());
    loop_ = *std::move(loop);
    penstock::RdmaDeviceOptions device;
    device.spin_max = absl::Seconds(1);
    auto opened = penstock::internal::LaneDevice::Open(loop_->core(), fabric_, device);
    if (!opened.ok()) return Fail(opened.status());
    options_.device = *std::move(opened);
    Connect();
  }
  void Connect() {
    auto listener = penstock::Listener::Listen(
        *loop_, *penstock::SocketAddress::Parse("127.0.0.1:0"), {},
        [this](StreamPtr stream) { passive_ = RdmaEndpoint::Accept(std::move(stream), options_); });
    if (!listener.ok()) return Fail(listener.status());
    penstock::Connect(*loop_, (*listener)->address(), {}, [this](absl::StatusOr<StreamPtr> stream) {
      if (!stream.ok()) return Fail(stream.status());
      active_ = RdmaEndpoint::Connect(*std::move(stream), options_);
    });
    while (ok() && !(active_ != nullptr && active_->stats().open && passive_->stats().open)) {
      loop_->Poll();
    }
    if (ok() && !active_->stats().over_device) Fail(absl::InternalError("not over the device"));
  }

  benchmark::State& state_;
  absl::Status status_;
  bool more_ = true;
  MemoryFabric fabric_;
  std::unique_ptr<Loop> loop_;
  penstock::RdmaOptions options_;
  penstock::Buffer bytes_;
  std::unique_ptr<RdmaEndpoint> active_;
  std::unique_ptr<RdmaEndpoint> passive_;
};

void Echo(RdmaPair& pair) {
  pair.passive().Receive([&pair](absl::StatusOr<BufferChain> message) {
    if (!message.ok()) return pair.Fail(message.status());
    pair.passive().Send(*std::move(message));
    Echo(pair);
  });
}

void Ping(RdmaPair& pair, size_t size) {
  if (!pair.KeepRunning()) return;
  pair.active().Receive([&pair, size](absl::StatusOr<BufferChain> message) {
    if (!message.ok()) return pair.Fail(message.status());
    Ping(pair, size);
  });
  pair.active().Send(pair.Bytes(size));
}

// There and back: two messages.
void BM_RdmaPingPong(benchmark::State& state) {
  RdmaPair pair(state);
  if (!pair.ok()) return;
  Echo(pair);
  Ping(pair, static_cast<size_t>(state.range(0)));
  pair.RunMeasured();
}
BENCHMARK(BM_RdmaPingPong)->Arg(64)->Arg(4096)->Iterations(kIterations);

// All of the region.
void Put(RdmaPair& pair, const penstock::RdmaRemoteRegion& region) {
  if (!pair.KeepRunning()) return;
  pair.active().Write(region, 0, pair.Bytes(region.size),
                      [&pair, &region](const absl::Status& status) {
                        if (!status.ok()) return pair.Fail(status);
                        Put(pair, region);
                      });
}

void BM_RdmaWrite(benchmark::State& state) {
  constexpr int kDepth = 64;
  RdmaPair pair(state);
  if (!pair.ok()) return;
  std::vector<char> memory(static_cast<size_t>(state.range(0)));
  const auto exposed = pair.passive().Expose(memory, penstock::RdmaAccess::kWrite);
  if (!exposed.ok()) return pair.Fail(exposed.status());
  penstock::RdmaRemoteRegion region;
  pair.active().AwaitRegion([&](absl::StatusOr<penstock::RdmaRemoteRegion> told) {
    if (told.ok()) region = *told;
  });
  while (region.size == 0) pair.loop().Poll();
  for (int i = 0; i < kDepth; ++i) Put(pair, region);
  pair.RunMeasured();
}
BENCHMARK(BM_RdmaWrite)->Arg(64)->Arg(64 << 10)->Iterations(kIterations);

}  // namespace
}  // namespace penstock_bench
