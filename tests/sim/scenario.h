// Scenario: one seed's story: loops, listeners and clients chosen by chance, which talk through the
// public API while the world misbehaves; then a liveness phase without faults, in which everything
// must end; then the checks that nothing is left. What it finds wrong are sentences in
// `violations`.
#ifndef PENSTOCK_TESTS_SIM_SCENARIO_H_
#define PENSTOCK_TESTS_SIM_SCENARIO_H_

#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "sim/actor.h"
#include "testing/sim_faults.h"
#include "testing/sim_wire.h"
#include "testing/sim_world.h"

namespace penstock::testing {

inline constexpr int64_t kNsPerMs = 1'000'000;

// A layer above every stream of a story, which seals what passes through it.
struct SimSealing {
  // Whether the ends of streams are authenticated.
  bool native = true;
  // Gives the sealed stream in a later turn.
  std::function<void(StreamPtr below, bool server,
                     absl::AnyInvocable<void(absl::StatusOr<StreamPtr>) &&> done)>
      seal;
};

struct ScenarioOptions {
  uint64_t seed = 0;
  bool tracing = false;
  SimMutant mutant = SimMutant::kNone;
  const SimSealing* sealing = nullptr;  // null: streams as they are
};

struct ScenarioResult {
  std::vector<std::string> violations;
  uint64_t trace_hash = 0;
  // What the story amounted to, so that tests can show that stories are not empty.
  uint64_t streams = 0;
  uint64_t bytes = 0;
  uint64_t clean_ends = 0;
  uint64_t resets = 0;
  uint64_t deadlines = 0;
  uint64_t refused_connects = 0;
  uint64_t switches = 0;
  uint64_t swaps = 0;  // loops that the engine waits for that was not made first
  uint64_t migrations = 0;
  uint64_t migrations_failed = 0;
};

class Scenario {
 public:
  explicit Scenario(const ScenarioOptions& options);
  ~Scenario();
  ScenarioResult Run();

  // --- For actors ---
  SimWorld& world() { return world_; }
  SimRandom& random() { return random_; }
  enum class Phase : uint8_t { kChaos, kCalm, kFinish };
  Phase phase() const { return phase_; }
  const StreamOptions& stream_options() const { return stream_options_; }
  // The engine that a loop may host beside its own.
  EngineKind second_engine() const { return second_engine_; }
  const SimSealing* sealing() const { return options_.sealing; }
  // Whether something was set up that makes the library refuse for want of room.
  bool scarce() const { return scarce_; }
  // The actor at the other end of `link`, or null.
  const Actor* Peer(const SimLink& link, int side) const;
  // The loop at that address; and any one, going and gone ones included.
  LoopState* StateOf(const Loop& loop) const;
  LoopState& RandomLoop() { return *loops_[random_.Below(loops_.size())]; }
  void Violation(std::string text);
  ScenarioResult& result() { return result_; }
  int64_t externals = 0;  // buffers of actors' own memory that are still referenced

 private:
  void MakeLoops();
  void MakeListeners();
  void MakeListener(LoopState& state);
  void PlanClients();
  void PlanChaos();
  void Chaos();
  void StartClient(LoopState& state, const SocketAddress& address);
  void Evacuate(LoopState& state);
  void DestroyLoop(LoopState& state);
  void RunChaosPhase();
  void RunFinishPhase();
  bool EverythingEnded() const;
  void CheckNothingLeft();
  void CheckIdle();

  const ScenarioOptions options_;
  ScenarioResult result_;
  SimWorld world_;
  SimRandom random_;  // of the story; the world has its own
  Phase phase_ = Phase::kChaos;
  bool scarce_ = false;
  EngineKind second_engine_ = EngineKind::kAuto;
  StreamOptions stream_options_;
  std::vector<std::unique_ptr<BufferPool>> pools_;
  std::vector<std::unique_ptr<LoopState>> loops_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::vector<SocketAddress> addresses_;
  std::vector<std::unique_ptr<Actor>> actors_;
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_SIM_SCENARIO_H_
