// What moving costs: streams that wait for bytes, as idle connections of a server do, change engine
// all at once, there and back; and one changes loop, with both loops on the calling thread; and all
// change loop, there and back, with the other one on a thread of its own.
//
// Figures: CPU time for one switch (Time divided by the streams), and from LoopSnapshot how long a
// stream was not served (`pause_p50_us`, `pause_p99_us`: the upper ends of the buckets they fall
// in). Of BM_MigrateThreads, Time is the real time until all streams are back.
#include <benchmark/benchmark.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <sys/resource.h>

#include <cstdint>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "engines.h"

namespace penstock_bench {
namespace {

using penstock::Buffer;
using penstock::EngineKind;
using penstock::Listener;
using penstock::Loop;
using penstock::LoopSnapshot;
using penstock::Stream;
using penstock::StreamPtr;

// Streams of `loop` with both ends on it, each with a read pending.
std::vector<StreamPtr> WaitingStreams(Loop& loop, size_t count, absl::Status& status) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  std::vector<StreamPtr> streams;
  const auto keep = [&](StreamPtr stream) {
    stream->ReadReady([](absl::StatusOr<Buffer>) {});
    streams.push_back(std::move(stream));
  };
  penstock::ListenOptions listening;
  penstock::ConnectOptions connecting;
  listening.stream.migratable = connecting.stream.migratable = true;
  auto listener =
      Listener::Listen(loop, *penstock::SocketAddress::Parse("127.0.0.1:0"), listening, keep);
  status = listener.status();
  for (size_t made = 2; made <= count && status.ok(); made += 2) {
    penstock::Connect(loop, (*listener)->address(), connecting,
                      [&](absl::StatusOr<StreamPtr> stream) {
                        status.Update(stream.status());
                        if (stream.ok()) keep(*std::move(stream));
                      });
    while (status.ok() && streams.size() < made) loop.Poll();
  }
  return streams;
}

// The upper end, in us, of the bucket that the `part` smallest of the pauses end in.
double PauseUs(const LoopSnapshot& figures, double part) {
  uint64_t all = 0, seen = 0;
  for (const uint64_t count : figures.move_pauses) all += count;
  for (size_t i = 0; i < figures.move_pauses.size(); ++i) {
    seen += figures.move_pauses[i];
    if (static_cast<double>(seen) >= part * static_cast<double>(all)) {
      return static_cast<double>(uint64_t{1} << i);
    }
  }
  return 0;
}

void Report(benchmark::State& state, const LoopSnapshot& figures, int64_t moves) {
  state.SetItemsProcessed(moves);
  state.counters["pause_p50_us"] = PauseUs(figures, 0.5);
  state.counters["pause_p99_us"] = PauseUs(figures, 0.99);
  state.counters["stranded"] = static_cast<double>(figures.stranded);
}

// Every stream to the other engine, and back.
void BM_SwitchAll(benchmark::State& state) {
  auto loop = MakeLoop(state);
  if (loop == nullptr) return;
  absl::Status status;
  const auto count = static_cast<size_t>(state.range(1));
  const std::vector<StreamPtr> streams = WaitingStreams(*loop, count, status);
  const EngineKind own = loop->engine();
  const EngineKind other = own == EngineKind::kEpoll ? EngineKind::kUring : EngineKind::kEpoll;
  int64_t moves = 0;
  while (status.ok() && state.KeepRunning()) {
    for (const EngineKind to : {other, own}) {
      bool done = false;
      status.Update(penstock::SwitchAll(*loop, to, [&](penstock::MoveCount result) {
        moves += static_cast<int64_t>(result.moved);
        done = true;
      }));
      while (status.ok() && !done) loop->Poll();
    }
  }
  if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  Report(state, loop->Snapshot(), moves);
}
BENCHMARK(BM_SwitchAll)->Apply([](auto* bench) {
                         EachEngine(bench, {2, 1000, 10'000});
                       }) -> Unit(benchmark::kMicrosecond);

// One stream to the other loop, and back.
void BM_Migrate(benchmark::State& state) {
  auto loop = MakeLoop(state);
  auto other = MakeLoop(state);
  if (loop == nullptr || other == nullptr) return;
  absl::Status status;
  const std::vector<StreamPtr> streams = WaitingStreams(*loop, 2, status);
  int64_t moves = 0;
  while (status.ok() && state.KeepRunning()) {
    for (Loop* to : {other.get(), loop.get()}) {
      bool done = false;
      penstock::Migrate(*streams.front(), to->handle(), [&](absl::Status moved) {
        status.Update(moved);
        done = true;
      });
      while (!done) {
        loop->Poll();
        other->Poll();
      }
      ++moves;
    }
  }
  if (!status.ok()) state.SkipWithError(status.ToString().c_str());
  Report(state, loop->Snapshot(), moves);
}
BENCHMARK(BM_Migrate)->Apply([](auto* bench) { EachEngine(bench, {0}); });

// Every stream to a loop on another thread, and back.
void BM_MigrateThreads(benchmark::State& state) {
  penstock::BufferPool pool;
  const auto make = [&] {
    penstock::LoopOptions options;
    options.pool = &pool;
    return MakeLoop(state, std::move(options));
  };
  auto loop = make();
  auto other = make();
  if (loop == nullptr || other == nullptr) return;
  absl::Status status;
  {
    const auto count = static_cast<size_t>(state.range(1));
    const std::vector<StreamPtr> streams = WaitingStreams(*loop, count, status);
    std::thread thread([&] { other->Run(); });
    int64_t moves = 0;
    const auto count_and_stop = [&](penstock::MoveCount result) {
      moves += static_cast<int64_t>(result.moved);
      loop->Stop();
    };
    while (status.ok() && state.KeepRunning()) {
      penstock::MigrateAll(*loop, other->handle(), count_and_stop);
      loop->Run();
      other->Post([&] { penstock::MigrateAll(*other, loop->handle(), count_and_stop); });
      loop->Run();
    }
    other->Stop();
    thread.join();
    if (!status.ok()) state.SkipWithError(status.ToString().c_str());
    LoopSnapshot figures = loop->Snapshot();
    const LoopSnapshot there = other->Snapshot();
    for (size_t i = 0; i < figures.move_pauses.size(); ++i) {
      figures.move_pauses[i] += there.move_pauses[i];
    }
    figures.stranded += there.stranded;
    Report(state, figures, moves);
  }
}
BENCHMARK(BM_MigrateThreads)->Apply([](auto* bench) {
                              EachEngine(bench, {2, 1000});
                            }) -> UseRealTime() -> Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace penstock_bench
