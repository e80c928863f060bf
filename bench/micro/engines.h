// Runs a micro bench once for each engine that works here. An engine that does not, as io_uring
// where it is forbidden, shows as skipped with the reason. Loops are used by the calling thread.
#ifndef PENSTOCK_BENCH_MICRO_ENGINES_H_
#define PENSTOCK_BENCH_MICRO_ENGINES_H_

#include <benchmark/benchmark.h>
#include <penstock/loop.h>

#include <initializer_list>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"

namespace penstock_bench {

// The first argument of a bench that takes an engine.
inline penstock::EngineKind EngineOf(const benchmark::State& state) {
  return static_cast<penstock::EngineKind>(state.range(0));
}

// Null, with the bench marked as failed, when the engine does not work here.
inline std::unique_ptr<penstock::Loop> MakeLoop(benchmark::State& state,
                                                penstock::LoopOptions options = {}) {
  options.engine = EngineOf(state);
  absl::StatusOr<std::unique_ptr<penstock::Loop>> loop = penstock::Loop::Create(std::move(options));
  if (!loop.ok()) {
    state.SkipWithError(loop.status().ToString().c_str());
    return nullptr;
  }
  state.SetLabel(std::string(penstock::EngineKindName((*loop)->engine())));
  return *std::move(loop);
}

// One run for each engine and each of `values`.
inline void EachEngine(benchmark::internal::Benchmark* bench,
                       std::initializer_list<int64_t> values) {
  for (auto engine : {penstock::EngineKind::kEpoll, penstock::EngineKind::kUring}) {
    for (int64_t value : values) bench->Args({static_cast<int64_t>(engine), value});
  }
}

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_MICRO_ENGINES_H_
