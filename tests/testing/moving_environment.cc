// Environments whose streams change engine all the time: whatever a test does, it does to streams
// in the middle of a move. The contract must not show any of it (I5).
#include <penstock/move.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "testing/environment.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Sweeps begun at one instant, for a simulated clock stands still while there is work.
constexpr int kSweepsAtOnce = 3;

class MovingEnvironment final : public Environment {
 public:
  explicit MovingEnvironment(std::unique_ptr<Environment> still) : still_(std::move(still)) {}

  std::string missing() override {
    if (std::string why = still_->missing(); !why.empty()) return why;
    return MissingEngine();
  }
  absl::StatusOr<std::unique_ptr<Loop>> NewLoop(LoopOptions options) override {
    return still_->NewLoop(std::move(options));
  }
  SocketAddress NewAddress() override { return still_->NewAddress(); }
  EngineKind listen_engine() const override { return still_->listen_engine(); }
  EngineKind connect_engine() const override { return still_->connect_engine(); }
  bool has_kernel() const override { return still_->has_kernel(); }
  bool moves() const override { return true; }
  size_t unit_max() const override { return still_->unit_max(); }
  void Wrap(StreamPtr stream, bool server, StreamCallback done) override {
    still_->Wrap(std::move(stream), server, std::move(done));
  }
  bool Drive(std::span<Loop* const> loops, absl::FunctionRef<bool()> done) override {
    return still_->Drive(loops, [&] {
      SwitchAllOf(loops);
      return done();
    });
  }
  void Settle(std::span<Loop* const> loops) override {
    still_->Settle(loops);
    SwitchAllOf(loops);
    still_->Settle(loops);
  }

 private:
  struct Sweeps {
    absl::Time at;
    int begun = 0;
    uint64_t count = 0;
    EngineKind own = EngineKind::kAuto;  // that it was made with
  };

  void SwitchAllOf(std::span<Loop* const> loops) {
    for (Loop* loop : loops) {
      Sweeps& sweeps = sweeps_[loop];
      if (std::exchange(sweeps.at, loop->now()) != loop->now()) sweeps.begun = 0;
      if (sweeps.begun++ >= kSweepsAtOnce) continue;
      // Not loop->engine(), which changes with a sweep.
      if (sweeps.own == EngineKind::kAuto) sweeps.own = loop->engine();
      const EngineKind to = ++sweeps.count % 2 == 0 ? sweeps.own : Other(sweeps.own);
      const absl::Status status = SwitchAll(*loop, to);
      EXPECT_TRUE(status.ok()) << status;
    }
  }
  static EngineKind Other(EngineKind kind) {
    return kind == EngineKind::kUring ? EngineKind::kEpoll : EngineKind::kUring;
  }

  std::unique_ptr<Environment> still_;
  std::map<Loop*, Sweeps> sweeps_;
};

}  // namespace

std::vector<EnvironmentCase> MovingEnvironments() {
  std::vector<EnvironmentCase> moving;
  for (const auto& cases : {AllEnvironments(), SealedEnvironments()}) {
    for (const EnvironmentCase& which : cases) {
      constexpr std::string_view kSome[] = {
          "EpollIpv4",           "UringIpv4",   "UringUnix", "SimulatedReadiness",
          "SimulatedCompletion", "EpollNative", "UringGrpc", "SimulatedCompletionNative"};
      if (std::ranges::find(kSome, which.name) == std::end(kSome)) continue;
      moving.push_back({absl::StrCat(which.name, "Moving"), [make = which.make] {
                          return std::make_unique<MovingEnvironment>(make());
                        }});
    }
  }
  return moving;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
