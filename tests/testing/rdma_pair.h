// Two RDMA endpoints that face each other over one stream, for tests.
//
// The fixture owns both; its loop is the harness's.
#ifndef PENSTOCK_TESTS_TESTING_RDMA_PAIR_H_
#define PENSTOCK_TESTS_TESTING_RDMA_PAIR_H_

#include <penstock/export.h>
#include <penstock/rdma.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "testing/fake_lanes.h"
#include "testing/fate.h"
#include "testing/harness.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct RdmaEndpoints {
  std::unique_ptr<RdmaEndpoint> active;
  std::unique_ptr<RdmaEndpoint> passive;
};

class RdmaHarness : public Harness {
 protected:
  void SetUp() override {
    Harness::SetUp();
    if (IsSkipped() || !GetParam().name.ends_with("Lanes")) return;
    lanes_ = std::make_unique<FakeLanes>(environment(), loop());
    device_ = lanes_->device();
    lanes_each_ = GetParam().name.ends_with("ThreeLanes") ? 3 : 1;
  }
  void TearDown() override {
    device_ = nullptr;
    // Streams over endpoints stay for a while.
    EXPECT_TRUE(Drive([this] { return lanes_ == nullptr || lanes_->device().use_count() == 1; }));
    lanes_ = nullptr;
    Harness::TearDown();
  }
  // Endpoints have devices. Where one is given to `Quiet`, it is for both sides.
  bool has_lanes() const { return lanes_ != nullptr; }
  FakeLanes& lanes() { return *lanes_; }

  // Without pings: a simulated clock goes on to the next timer when nothing else is left to do.
  static RdmaOptions Quiet() {
    RdmaOptions options;
    options.ping_interval = absl::InfiniteDuration();
    options.device = device_;
    options.lanes = lanes_each_;
    return options;
  }

  // Both have been made, and know nothing of each other yet.
  RdmaEndpoints Endpoints(RdmaOptions active = Quiet(), RdmaOptions passive = Quiet()) {
    StreamPair streams = Pair();
    return {RdmaEndpoint::Connect(std::move(streams.client), active),
            RdmaEndpoint::Accept(std::move(streams.server), passive)};
  }
  RdmaEndpoints OpenEndpoints(RdmaOptions active = Quiet(), RdmaOptions passive = Quiet()) {
    RdmaEndpoints both = Endpoints(active, passive);
    EXPECT_TRUE(Open(*both.active).ok());
    EXPECT_TRUE(Open(*both.passive).ok());
    return both;
  }

  // Start the operation, and run the loop until it has ended.
  absl::Status Open(RdmaEndpoint& endpoint) {
    Fate fate;
    endpoint.NotifyOpen(fate.OnDone());
    return Await(fate);
  }
  absl::Status Await(const Fate& fate) {
    EXPECT_TRUE(Drive([&] { return fate.ended(); }));
    return fate.status();
  }
  absl::Status Send(RdmaEndpoint& endpoint, std::string_view bytes) {
    Fate fate;
    endpoint.Send(Chain(bytes), fate.OnDone());
    return Await(fate);
  }
  absl::StatusOr<std::string> Receive(RdmaEndpoint& endpoint) {
    return AwaitBytes([&](auto done) { endpoint.Receive(std::move(done)); });
  }
  absl::Status Write(RdmaEndpoint& endpoint, const RdmaRemoteRegion& region, uint64_t offset,
                     std::string_view bytes) {
    Fate fate;
    endpoint.Write(region, offset, Chain(bytes), fate.OnDone());
    return Await(fate);
  }
  absl::StatusOr<std::string> Read(RdmaEndpoint& endpoint, const RdmaRemoteRegion& region,
                                   uint64_t offset, uint64_t size) {
    return AwaitBytes([&](auto done) { endpoint.Read(region, offset, size, std::move(done)); });
  }
  absl::StatusOr<RdmaRemoteRegion> AwaitRegion(RdmaEndpoint& endpoint) {
    auto result = std::make_shared<std::optional<absl::StatusOr<RdmaRemoteRegion>>>();
    endpoint.AwaitRegion([result](auto region) { *result = std::move(region); });
    EXPECT_TRUE(Drive([&] { return result->has_value(); }));
    return result->has_value() ? **result : absl::UnknownError("no region came");
  }

 private:
  inline static std::shared_ptr<RdmaDevice> device_;
  inline static uint32_t lanes_each_ = 1;
  std::unique_ptr<FakeLanes> lanes_;

  template <class Start>
  absl::StatusOr<std::string> AwaitBytes(Start start) {
    auto result = std::make_shared<std::optional<absl::StatusOr<std::string>>>();
    start([result](absl::StatusOr<BufferChain> bytes) {
      *result = bytes.ok() ? absl::StatusOr<std::string>(bytes->ToString()) : bytes.status();
    });
    EXPECT_TRUE(Drive([&] { return result->has_value(); }));
    return result->has_value() ? **result : absl::UnknownError("the callback has not run");
  }
};

inline std::vector<EnvironmentCase> EnvironmentsNamed(std::span<const std::string_view> names) {
  std::vector<EnvironmentCase> some;
  for (const EnvironmentCase& which : AllEnvironments()) {
    if (std::find(names.begin(), names.end(), which.name) != names.end()) some.push_back(which);
  }
  return some;
}

// Each engine over IPv4, and the simulated ones.
inline std::vector<EnvironmentCase> RdmaEnvironments() {
  constexpr std::string_view kNames[] = {"EpollIpv4", "UringIpv4", "SimulatedReadiness",
                                         "SimulatedCompletion"};
  return EnvironmentsNamed(kNames);
}
// The same with simulated devices, one lane for each endpoint or three.
inline std::vector<EnvironmentCase> WithLanes(const std::vector<EnvironmentCase>& below) {
  std::vector<EnvironmentCase> cases;
  for (const char* lanes : {"Lanes", "ThreeLanes"}) {
    for (const EnvironmentCase& which : below) {
      cases.push_back({absl::StrCat(which.name, lanes), which.make});
    }
  }
  return cases;
}
inline std::vector<EnvironmentCase> RdmaLaneEnvironments() { return WithLanes(RdmaEnvironments()); }
inline std::vector<EnvironmentCase> SimulatedRdmaEnvironments() {
  constexpr std::string_view kNames[] = {"SimulatedReadiness", "SimulatedCompletion"};
  return EnvironmentsNamed(kNames);
}

inline std::vector<EnvironmentCase> SimulatedLaneEnvironments() {
  return WithLanes(SimulatedRdmaEnvironments());
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_RDMA_PAIR_H_
