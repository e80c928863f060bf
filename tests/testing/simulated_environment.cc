// The simulated engines as environments of the conformance suite: without faults, so that the
// contract is the only thing under test, and with a clock that costs no time.
#include <penstock/address.h>
#include <penstock/loop.h>

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "testing/environment.h"
#include "testing/sim_world.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

class SimulatedEnvironment final : public Environment {
 public:
  explicit SimulatedEnvironment(testing::SimStyle style) : style_(style) {}

  std::string missing() override { return ""; }
  absl::StatusOr<std::unique_ptr<Loop>> NewLoop(LoopOptions options) override {
    options.engine = EngineKind::kSimulated;
    return world_.NewLoop(std::move(options), style_);
  }
  SocketAddress NewAddress() override { return *SocketAddress::Parse("10.0.0.1:0"); }
  EngineKind listen_engine() const override { return EngineKind::kSimulated; }
  EngineKind connect_engine() const override { return EngineKind::kSimulated; }
  bool has_kernel() const override { return false; }
  bool drives_alone() const override { return false; }
  testing::SimWorld* world() override { return &world_; }

  bool Drive(std::span<Loop* const> loops, absl::FunctionRef<bool()> done) override {
    for (Loop* loop : loops) world_.Touch(*loop);
    return world_.Run([&done] { return done(); }, absl::Hours(1));
  }
  void Settle(std::span<Loop* const> loops) override {
    for (Loop* loop : loops) world_.Touch(*loop);
    world_.Run([] { return false; }, absl::Milliseconds(1));
  }

 private:
  static constexpr uint64_t kSeed = 1;

  const testing::SimStyle style_;
  testing::SimWorld world_{kSeed};
};

}  // namespace

namespace {

std::vector<EnvironmentCase> WithSimulated(std::vector<EnvironmentCase> cases) {
  cases.push_back({"SimulatedReadiness", [] {
                     return std::make_unique<SimulatedEnvironment>(testing::SimStyle::kReadiness);
                   }});
  cases.push_back({"SimulatedCompletion", [] {
                     return std::make_unique<SimulatedEnvironment>(testing::SimStyle::kCompletion);
                   }});
  return cases;
}

}  // namespace

std::vector<EnvironmentCase> AllEnvironments() { return WithSimulated(KernelEnvironments()); }
std::vector<EnvironmentCase> AllEngines() { return WithSimulated(KernelEngines()); }

}  // namespace internal
PENSTOCK_END_NAMESPACE
