#include "sim/scenario.h"

#include <penstock/move.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/loop_core.h"

namespace penstock::testing {
namespace {

// The least queue below a sealed stream: a record has to fit.
constexpr uint32_t kSealedQueueMin = 1024;
// Sentences kept of one seed: the first ones tell the story.
constexpr size_t kViolationsMax = 10;

StreamOptions DrawStreamOptions(SimRandom& random) {
  StreamOptions options;
  const auto deadline = [&random] {
    if (random.Chance(850)) return absl::InfiniteDuration();
    return absl::Milliseconds(static_cast<int64_t>(random.Size(2000)));
  };
  options.read_deadline = deadline();
  options.write_deadline = deadline();
  options.idle_deadline = deadline();
  options.send_queue_low = static_cast<uint32_t>(random.Size(64 * 1024)) - 1;
  options.send_queue_high =
      options.send_queue_low + static_cast<uint32_t>(random.Size(64 * 1024)) - 1;
  options.send_queue_max = static_cast<uint32_t>(
      random.Between(1, random.Chance(500) ? options.send_queue_high + 1024u : 64u * 1024 * 1024));
  options.receive_max = static_cast<uint32_t>(random.Size(128 * 1024));
  return options;
}

}  // namespace

Scenario::Scenario(const ScenarioOptions& options)
    : options_(options), world_(options.seed), random_(SimMix(~options.seed)) {
  world_.set_mutant(options.mutant);
  world_.set_tracing(options.tracing);
}

Scenario::~Scenario() = default;

void Scenario::Violation(std::string text) {
  if (result_.violations.size() < kViolationsMax) result_.violations.push_back(std::move(text));
}

const Actor* Scenario::Peer(const SimLink& link, int side) const {
  for (const auto& actor : actors_) {
    if (actor->link() == &link && actor->side() != side) return actor.get();
  }
  return nullptr;
}

LoopState* Scenario::StateOf(const Loop& loop) const {
  for (const auto& state : loops_) {
    if (state->loop.get() == &loop) return state.get();
  }
  return nullptr;
}

ScenarioResult Scenario::Run() {
  stream_options_ = DrawStreamOptions(random_);
  if (sealing() != nullptr) {
    stream_options_.send_queue_max = std::max(stream_options_.send_queue_max, kSealedQueueMin);
  }
  world_.wire().set_buffers(random_.Size(128 * 1024), random_.Size(128 * 1024));
  second_engine_ = random_.Chance(500) ? EngineKind::kUring : EngineKind::kEpoll;
  MakeLoops();
  MakeListeners();
  PlanClients();
  PlanChaos();
  const SimFaults faults = SimFaults::Swarm(random_);
  scarce_ |=
      faults.attach_failure > 0 || faults.descriptors_max != SIZE_MAX || faults.cancel_refused > 0;
  world_.faults() = faults;
  RunChaosPhase();
  world_.faults() = SimFaults();
  world_.wire().Heal();
  CheckIdle();
  RunFinishPhase();
  CheckNothingLeft();
  for (const std::string& error : world_.errors()) Violation(error);
  result_.trace_hash = world_.trace_hash();
  return std::move(result_);
}

// --- The cast ---

void Scenario::MakeLoops() {
  const size_t count = random_.Between(1, 3);
  const bool shared_pool = random_.Chance(300);
  for (size_t i = 0; i < count; ++i) {
    auto state = std::make_unique<LoopState>();
    state->index = i;
    if (pools_.empty() || !shared_pool) {
      PoolOptions pool;
      if (random_.Chance(300)) pool.bytes_max = random_.Between(128 * 1024, 1024 * 1024);
      pool.secret = random_.Chance(100);
      pools_.push_back(world_.NewPool(pool));
      state->pool_is_tight = pool.bytes_max <= 1024 * 1024;
    } else {
      state->pool_is_tight = loops_.back()->pool_is_tight;
    }
    state->pool = pools_.back().get();
    LoopOptions options;
    options.pool = state->pool;
    options.turn_events_max = random_.Chance(300) ? static_cast<uint32_t>(random_.Size(16)) : 256;
    options.turn_tasks_max = random_.Chance(300) ? static_cast<uint32_t>(random_.Size(16)) : 1024;
    if (random_.Chance(200)) {
      options.connections_max = static_cast<uint32_t>(random_.Between(1, 6));
      scarce_ = true;
    }
    options.idle_trim = absl::Milliseconds(static_cast<int64_t>(random_.Size(2000)));
    const SimStyle style = random_.Chance(500) ? SimStyle::kReadiness : SimStyle::kCompletion;
    absl::StatusOr<std::unique_ptr<Loop>> loop = world_.NewLoop(std::move(options), style);
    if (!loop.ok()) return Violation("loop: " + loop.status().ToString());
    state->loop = *std::move(loop);
    if (random_.Chance(200))
      state->loop->fd();  // of a host, for whom its engines keep their places
    state->handle = state->loop->handle();
    loops_.push_back(std::move(state));
  }
}

void Scenario::MakeListeners() {
  const size_t count = random_.Between(1, 2);
  for (size_t i = 0; i < count; ++i) MakeListener(RandomLoop());
  addresses_.push_back(*SocketAddress::Parse("10.0.0.9:9"));  // nobody listens there
}

void Scenario::MakeListener(LoopState& state) {
  ListenOptions options;
  options.stream = stream_options_;
  options.backlog = static_cast<int>(random_.Size(64));
  if (random_.Chance(300)) options.connections_max = static_cast<uint32_t>(random_.Between(1, 4));
  if (random_.Chance(250)) options.engine = second_engine_;
  // A group shares one port.
  options.reuse_port = true;
  SocketAddress address = *SocketAddress::Parse("10.0.0.1:0");
  if (!addresses_.empty() && random_.Chance(300)) address = addresses_.back();
  absl::StatusOr<std::unique_ptr<Listener>> listener =
      Listener::Listen(*state.loop, address, options, [this, &state](StreamPtr stream) {
        actors_.push_back(std::make_unique<Actor>(*this, state, 1));
        actors_.back()->Begin(std::move(stream));
      });
  if (!listener.ok()) return Violation("listen: " + listener.status().ToString());
  addresses_.push_back((*listener)->address());
  listeners_.push_back(*std::move(listener));
}

void Scenario::PlanClients() {
  const uint64_t count = random_.Between(1, 8);
  for (uint64_t i = 0; i < count; ++i) {
    LoopState& state = RandomLoop();
    const SocketAddress address =
        addresses_[random_.Chance(50) ? addresses_.size() - 1 : random_.Below(listeners_.size())];
    world_.At(world_.now_ns() + static_cast<int64_t>(random_.Below(200 * kNsPerMs)),
              [this, &state, address] { StartClient(state, address); });
  }
}

void Scenario::StartClient(LoopState& state, const SocketAddress& address) {
  if (state.gone || phase_ != Phase::kChaos) return;
  const auto start = [this, &state, address] {
    actors_.push_back(std::make_unique<Actor>(*this, state, 0));
    actors_.back()->Connect(address);
  };
  if (world_.Busy(*state.loop)) {
    state.loop->Post(start);
  } else {
    start();
    world_.Touch(*state.loop);
  }
}

// --- Chaos ---

void Scenario::PlanChaos() {
  if (!random_.Chance(500)) return;
  const uint64_t count = random_.Between(1, 6);
  for (uint64_t i = 0; i < count; ++i) {
    world_.At(world_.now_ns() + static_cast<int64_t>(random_.Below(600 * kNsPerMs)),
              [this] { Chaos(); });
  }
}

void Scenario::Chaos() {
  LoopState& state = RandomLoop();
  const uint64_t what = random_.Below(16);
  world_.Note("chaos", what, state.index);
  if (what < 4) {
    if (!world_.wire().links().empty()) {
      world_.wire().Reset(1 + random_.Below(world_.wire().links().size()));
    }
    return;
  }
  if (phase_ != Phase::kChaos || state.gone || world_.Busy(*state.loop)) return;
  world_.Touch(*state.loop);
  if (what < 7) {
    for (const auto& listener : listeners_) {
      random_.Chance(500) ? listener->Pause() : listener->Resume();
    }
  } else if (what < 8) {
    listeners_.clear();
  } else if (what < 10) {
    state.drained = true;
    const absl::Duration grace = absl::Milliseconds(static_cast<int64_t>(random_.Size(500)));
    state.loop->Drain(grace);
  } else if (what < 11) {
    state.loop->Stop();
  } else if (what < 13) {
    const EngineKind to = random_.Chance(500) ? EngineKind::kSimulated : second_engine_;
    const absl::Status begun = SwitchAll(*state.loop, to, [this](MoveCount count) {
      result_.switches += count.moved;
      if (count.failed > 0 && !scarce_) Violation("a sweep of switches failed without a cause");
    });
    if (!begun.ok() && !scarce_) Violation("a sweep of switches: " + begun.ToString());
  } else if (what < 15) {
    Evacuate(state);
  } else {
    DestroyLoop(state);
  }
}

// Everything goes to one other loop, and something may happen to either while it is on its way.
void Scenario::Evacuate(LoopState& state) {
  LoopState& target = RandomLoop();
  for (size_t i = 0; i < actors_.size(); ++i) {
    Actor& actor = *actors_[i];
    if (&actor.loop() == &state && actor.MayAct()) actor.Migrate(target);
  }
  if (random_.Chance(300)) return;
  LoopState& victim = random_.Chance(700) ? target : state;
  const uint64_t what = random_.Below(3);
  const int64_t at =
      world_.now_ns() + static_cast<int64_t>(random_.Chance(500) ? 0 : random_.Size(10 * kNsPerMs));
  world_.At(at, [this, &victim, what] {
    if (victim.gone || world_.Busy(*victim.loop)) return;
    if (what == 0) {
      victim.drained = true;
      victim.loop->Drain(absl::Milliseconds(static_cast<int64_t>(random_.Size(500))));
      world_.Touch(*victim.loop);
    } else if (what == 1) {
      DestroyLoop(victim);
    }
  });
}

void Scenario::DestroyLoop(LoopState& state) {
  if (state.gone) return;
  for (const auto& actor : actors_) actor->OnLoopGoing(state);
  world_.Note("destroy loop", state.index);
  state.gone = true;
  state.loop.reset();
}

void Scenario::RunChaosPhase() {
  const absl::Duration duration = absl::Milliseconds(static_cast<int64_t>(random_.Size(3000)));
  const int64_t end = world_.now_ns() + absl::ToInt64Nanoseconds(duration);
  LoopState& state = RandomLoop();
  if (random_.Chance(300)) {
    // One loop lends itself a thread, as most loops do.
    world_.At(end, [&state] {
      if (!state.gone) state.loop->Stop();
    });
    world_.Drive(*state.loop);
  }
  world_.Run([] { return false; }, absl::Nanoseconds(std::max<int64_t>(0, end - world_.now_ns())));
}

// --- The end ---

void Scenario::CheckIdle() {
  phase_ = Phase::kCalm;
  for (const auto& listener : listeners_) listener->Resume();
  for (size_t i = 0; i < actors_.size(); ++i) actors_[i]->Calm();
  for (const auto& state : loops_) {
    if (!state->gone) world_.Touch(*state->loop);
  }
  world_.Run([] { return false; }, absl::Seconds(10));
  const bool sending = std::any_of(actors_.begin(), actors_.end(),
                                   [](const auto& actor) { return actor->sending(); });
  if (sending) return;  // to a peer that does not read
  // A record that was cut off by a send that failed stays a part for as long as its stream lives.
  const bool cut =
      sealing() != nullptr && std::any_of(actors_.begin(), actors_.end(),
                                          [](const auto& actor) { return actor->write_failed(); });
  if (cut) return;
  for (const auto& state : loops_) {
    if (state->gone) continue;
    const LoopSnapshot snapshot = state->loop->Snapshot();
    const uint64_t pinned = snapshot.pinned_bytes + snapshot.sealed_pinned_bytes;
    if (pinned != 0 || snapshot.idle != snapshot.open || snapshot.pool.live != 0) {
      Violation(absl::StrCat("idle loop ", state->index, " holds bytes (I1): pinned ", pinned,
                             ", idle ", snapshot.idle, " of ", snapshot.open, ", pool live ",
                             snapshot.pool.live));
    }
  }
}

bool Scenario::EverythingEnded() const {
  return std::all_of(actors_.begin(), actors_.end(),
                     [](const auto& actor) { return actor->ended() || actor->lost(); });
}

void Scenario::RunFinishPhase() {
  phase_ = Phase::kFinish;
  for (size_t i = 0; i < actors_.size(); ++i) actors_[i]->Finish();
  for (const auto& state : loops_) {
    if (!state->gone) world_.Touch(*state->loop);
  }
  const auto ended = [this] { return EverythingEnded(); };
  if (!world_.Run(ended, absl::Minutes(1))) {
    // A peer may be waiting in the backlog of a loop that was drained.
    listeners_.clear();
    world_.Run(ended, absl::Minutes(10));
  }
  if (!EverythingEnded()) {
    for (const auto& actor : actors_) {
      if (!actor->ended() && !actor->lost()) Violation("does not end: " + actor->Describe());
    }
  }
  // Whatever the kernel still holds comes back; and sealed streams take up to 5 s to say their end
  // to peers that do not read.
  world_.Run([] { return false; }, absl::Seconds(sealing() != nullptr ? 6 : 1));
}

void Scenario::CheckNothingLeft() {
  for (const auto& state : loops_) {
    if (state->gone) continue;
    const LoopSnapshot s = state->loop->Snapshot();
    if (state->loop->core().primary().kind() != EngineKind::kSimulated) ++result_.swaps;
    if (s.stranded > 0 && !scarce_) Violation("a move has left a stream without an engine");
    const uint64_t pinned = s.pinned_bytes + s.sealed_pinned_bytes;
    if (s.connecting + s.open + s.closing + pinned + s.idle + s.timers > 0) {
      Violation(absl::StrCat("loop ", state->index, " is left with ", s.connecting, " connecting, ",
                             s.open, " open, ", s.closing, " closing, ", s.idle, " idle, ",
                             s.timers, " timers, ", pinned, " bytes pinned"));
    }
    if (s.pool.live + s.pool.ring > 0) {
      Violation(absl::StrCat("loop ", state->index, " is left with ", s.pool.live, " + ",
                             s.pool.ring, " live bytes in its pool (I2)"));
    }
  }
  listeners_.clear();
  for (const auto& state : loops_) DestroyLoop(*state);
  actors_.clear();
  if (externals != 0) Violation(absl::StrCat(externals, " buffers were never given back"));
  for (const auto& pool : pools_) {
    const PoolStats stats = pool->Stats();
    if (stats.live + stats.ring > 0) {
      Violation(absl::StrCat("a pool is left with ", stats.live, " + ", stats.ring, " live bytes"));
    }
  }
  if (world_.descriptors_open() != 0) {
    Violation(absl::StrCat(world_.descriptors_open(), " descriptors were never closed"));
  }
}

}  // namespace penstock::testing
