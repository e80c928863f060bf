#include "common/server.h"

#include <malloc.h>
#include <penstock/balance.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/json.h"
#include "common/move_figures.h"
#include "common/mover.h"
#include "common/program.h"
#include "common/sealing.h"

ABSL_FLAG(std::string, listen, "127.0.0.1:7000",
          "address to listen on: 127.0.0.1:7000, [::1]:7000, *:7000, unix:/path or unix:@name; "
          "port 0 takes a free one");
ABSL_FLAG(std::string, engine, "auto", "auto, epoll or uring");
ABSL_FLAG(int32_t, loops, 1, "event loops, one thread each; they share the port");
ABSL_FLAG(int32_t, max_connections, 100000,
          "connections open at once, at least one for each of the --loops, which share them; more "
          "wait in the backlog");
ABSL_FLAG(absl::Duration, grace, absl::Seconds(3),
          "after SIGTERM, how long open connections may take to end");
ABSL_FLAG(absl::Duration, write_timeout, absl::Minutes(1),
          "a peer that takes nothing of what is being sent to it for this long is cut off; inf: "
          "never");
ABSL_FLAG(absl::Duration, idle_timeout, absl::InfiniteDuration(),
          "a connection on which no byte moves for this long is closed; inf: as the server has it");
ABSL_FLAG(absl::Duration, switch_every, absl::ZeroDuration(),
          "every connection changes engine, from epoll to io_uring and back, at this interval; "
          "0: never");
ABSL_FLAG(absl::Duration, move_every, absl::ZeroDuration(),
          "every connection moves to the next of the --loops at this interval; 0: never");

ABSL_FLAG(bool, huge_pages, false,
          "ask for 2 MiB pages for the buffers; without any set aside, transparent ones");
ABSL_FLAG(
    absl::Duration, busy_poll, absl::ZeroDuration(),
    "how long a loop looks for events before it sleeps: less delay for a core; 0: not at all");

ABSL_FLAG(bool, adaptive, false,
          "each loop chooses between epoll and io_uring by measuring, and tells why on stderr at "
          "the end");

ABSL_FLAG(bool, balance, false,
          "connections move from the busiest of the --loops to the least busy one, and it is told "
          "why on stderr at the end");

namespace examples {
namespace {

using penstock::EngineKind;
using penstock::Listener;
using penstock::Loop;
using penstock::LoopSnapshot;
using penstock::SocketAddress;
using penstock::StreamPtr;

struct ServerConfig {
  EngineKind engine;
  penstock::ListenOptions listen;
  Serve serve;
  Prepare prepare;  // may be null
  Sealing sealing;
  MoveIntervals intervals;
  penstock::BufferPool* pool;  // null: one for each loop
  penstock::PoolOptions pool_options;
  uint32_t loops;
  uint32_t connections_max;  // of all loops

  // What loop number `index` accepts with: its share of the connections, of which the first loops
  // take one more where they cannot be split evenly.
  penstock::ListenOptions ListenOf(uint32_t index) const {
    penstock::ListenOptions options = listen;
    options.connections_max = connections_max / loops + (index < connections_max % loops ? 1 : 0);
    return options;
  }
};

// A loop and its listener. Both are made, run and destroyed on one thread, the only one that may
// use them: the main thread (Open, Run, Close) or one of its own (Start, Join).
class ServerLoop {
 public:
  absl::StatusOr<SocketAddress> Open(const ServerConfig& config, uint32_t index,
                                     const SocketAddress& address) {
    penstock::LoopOptions options;
    options.engine = config.engine;
    options.pool = config.pool;
    options.pool_options = config.pool_options;
    options.busy_poll = absl::GetFlag(FLAGS_busy_poll);
    absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
    if (!loop.ok()) return loop.status();
    loop_ = *std::move(loop);
    handle_ = loop_->handle();
    trim_.emplace(*loop_);
    mover_ = std::make_unique<Mover>(*loop_, config.intervals);
    adaptive_ = config.intervals.adaptive;
    if (absl::Status status = mover_->Prepare(); !status.ok()) {
      return absl::Status(
          status.code(),
          absl::StrCat(config.intervals.adaptive ? "--adaptive: " : "--switch-every: ",
                       status.message()));
    }
    if (config.prepare != nullptr) config.prepare(*loop_);
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Listen(*loop_, address, config.ListenOf(index), Accept(config));
    if (!listener.ok()) return listener.status();
    listener_ = *std::move(listener);
    return listener_->address();
  }

  void Close() {
    listener_.reset();
    if (mover_ != nullptr) NoteDecisions();
    mover_.reset();
    trim_.reset();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (loop_ == nullptr) return;
    snapshot_ = loop_->Snapshot();
    engine_ = loop_->engine();
    engine_reason_ = loop_->engine_reason();
    loop_.reset();
  }

  // Returns once the loop listens on a thread of its own, with the address.
  absl::StatusOr<SocketAddress> Start(const ServerConfig& config, uint32_t index,
                                      const SocketAddress& address) {
    std::promise<absl::StatusOr<SocketAddress>> started;
    auto address_bound = started.get_future();
    thread_ = std::thread([this, &config, index, &address, started = std::move(started)]() mutable {
      absl::StatusOr<SocketAddress> bound = Open(config, index, address);
      const bool ok = bound.ok();
      started.set_value(std::move(bound));  // from here on `config` and `address` may be gone
      if (ok) loop_->Run();
      Close();
    });
    return address_bound.get();
  }

  // Any thread.
  void Drain(absl::Duration grace) {
    handle_.Post([this, grace] { loop_->Drain(grace); });
  }
  void Join() {
    if (thread_.joinable()) thread_.join();
  }

  Loop& loop() { return *loop_; }
  const penstock::LoopHandle& handle() const { return handle_; }
  Mover& mover() { return *mover_; }

  // Has decisions() tell those of now. Thread of the loop.
  void NoteDecisions() {
    const Decisions now = mover_->decisions();
    const std::lock_guard<std::mutex> lock(mutex_);
    decisions_ = now;
  }
  // Any thread.
  Decisions decisions() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return decisions_;
  }
  bool adaptive() const { return adaptive_; }

  // Any thread. Also after Close, when they are the last figures.
  LoopSnapshot Snapshot() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (loop_ != nullptr) snapshot_ = loop_->Snapshot();
    return snapshot_;
  }
  // Thread of the loop. Also after Close, when they are the last ones.
  EngineKind engine() const { return loop_ != nullptr ? loop_->engine() : engine_; }
  const std::string& engine_reason() const {
    return loop_ != nullptr ? loop_->engine_reason() : engine_reason_;
  }

 private:
  // A peer that is refused costs a line on stderr.
  Listener::AcceptCallback Accept(const ServerConfig& config) {
    return [this, serve = config.serve, sealing = config.sealing](StreamPtr stream) {
      if (!trim_->armed()) TrimLater();
      sealing.Apply(std::move(stream), [serve](absl::StatusOr<StreamPtr> ready) {
        if (!ready.ok()) return Complain(std::string(ready.status().message()));
        serve(*std::move(ready));
      });
    };
  }

  // Once the streams have gone, or are idle for more than two seconds, what malloc keeps of their
  // memory goes back to the kernel, as the pool's does. Sealed streams let go within two seconds.
  void TrimLater() {
    trim_->Arm(absl::Seconds(1), [this] {
      const LoopSnapshot now = loop_->Snapshot();
      const uint64_t traffic = now.bytes_in + now.bytes_out;
      quiet_seconds_ = std::exchange(traffic_, traffic) == traffic ? quiet_seconds_ + 1 : 0;
      if (now.open == 0 || quiet_seconds_ == 2) malloc_trim(0);
      if (now.open > 0) TrimLater();
    });
  }

  std::mutex mutex_;  // of the loop's end, which a snapshot of another thread must not meet
  LoopSnapshot snapshot_;
  Decisions decisions_;
  bool adaptive_ = false;
  EngineKind engine_ = EngineKind::kAuto;
  std::string engine_reason_;
  std::unique_ptr<Loop> loop_;
  penstock::LoopHandle handle_;
  std::optional<penstock::Timer> trim_;
  uint64_t traffic_ = 0;  // when trim_ fired last
  uint64_t quiet_seconds_ = 0;
  std::unique_ptr<Mover> mover_;
  std::unique_ptr<Listener> listener_;
  std::thread thread_;
};

// What the adapters of all loops have decided: together, and what each of them did last.
void AddDecisions(std::vector<ServerLoop>& loops, JsonLine& line) {
  penstock::AdaptiveCounts sum;
  std::string last;
  for (size_t i = 0; i < loops.size(); ++i) {
    const Decisions decisions = loops[i].decisions();
    sum.trials += decisions.counts.trials;
    sum.kept += decisions.counts.kept;
    sum.returned += decisions.counts.returned;
    sum.recalled += decisions.counts.recalled;
    sum.held += decisions.counts.held;
    sum.adopted += decisions.counts.adopted;
    sum.sweeps += decisions.counts.sweeps;
    if (decisions.last.empty()) continue;
    absl::StrAppend(&last, last.empty() ? "" : "; ", "loop ", i, ": ", decisions.last);
  }
  line.Add("adaptive_trials", sum.trials)
      .Add("adaptive_kept", sum.kept)
      .Add("adaptive_returned", sum.returned)
      .Add("adaptive_recalled", sum.recalled)
      .Add("adaptive_held", sum.held)
      .Add("adaptive_adopted", sum.adopted)
      .Add("adaptive_sweeps", sum.sweeps)
      .Add("adaptive_last", last);
}

// What the balancer has decided, also once it has gone.
class BalanceFigures {
 public:
  void Note(const penstock::LoopBalancer& balancer) {
    balances_ = true;
    counts_ = balancer.counts();
    const std::vector<std::string> trace = balancer.trace();
    if (!trace.empty()) last_ = trace.back();
  }
  void AddTo(JsonLine& line) const {
    if (!balances_) return;
    line.Add("balance_moved", counts_.moved)
        .Add("balance_none", counts_.none)
        .Add("balance_given_up", counts_.given_up)
        .Add("balance_held", counts_.held)
        .Add("balance_last", last_);
  }

 private:
  bool balances_ = false;
  penstock::BalanceCounts counts_;
  std::string last_;
};

// `pool`: the one that the loops share, if they do.
void PrintSnapshot(std::vector<ServerLoop>& loops, const penstock::BufferPool* pool,
                   const BalanceFigures& balance) {
  LoopSnapshot sum;
  MoveFigures moves;
  for (ServerLoop& each : loops) {
    const LoopSnapshot snapshot = each.Snapshot();
    moves.Add(snapshot);
    sum.open += snapshot.open;
    sum.open_uring += snapshot.open_uring;
    sum.idle += snapshot.idle;
    sum.pinned_bytes += snapshot.pinned_bytes;
    sum.sealed_pinned_bytes += snapshot.sealed_pinned_bytes;
    sum.framed_pinned_bytes += snapshot.framed_pinned_bytes;
    sum.pool.live += snapshot.pool.live;
    sum.pool.ring += snapshot.pool.ring;
    sum.pool.mapped += snapshot.pool.mapped;
    sum.bytes_in += snapshot.bytes_in;
    sum.bytes_out += snapshot.bytes_out;
    sum.faults += snapshot.faults;
    sum.accepted += snapshot.accepted;
    sum.closed += snapshot.closed;
  }
  if (pool != nullptr) sum.pool = pool->Stats();
  JsonLine line;
  line.Add("engine", penstock::EngineKindName(loops[0].engine()))
      .Add("engine_reason", loops[0].engine_reason())
      .Add("loops", uint64_t{loops.size()})
      .Add("connections", sum.open)
      .Add("uring_connections", sum.open_uring)
      .Add("idle_connections", sum.idle)
      .Add("pinned_bytes", sum.pinned_bytes)
      .Add("sealed_pinned_bytes", sum.sealed_pinned_bytes)
      .Add("framed_pinned_bytes", sum.framed_pinned_bytes)
      .Add("pool_live_bytes", sum.pool.live)
      .Add("pool_ring_bytes", sum.pool.ring)
      .Add("pool_mapped_bytes", sum.pool.mapped)
      .Add("bytes_in", sum.bytes_in)
      .Add("bytes_out", sum.bytes_out)
      .Add("errors", sum.faults)
      .Add("accepted", sum.accepted)
      .Add("closed", sum.closed);
  moves.AddTo(line);
  if (loops[0].adaptive()) AddDecisions(loops, line);
  balance.AddTo(line);
  line.Print();
}

// Runs `print` on the thread of the first loop, at once or, when there are decisions to be told
// that belong to the threads of the loops, once each of these has noted them.
void WhenNoted(std::vector<ServerLoop>& loops, const std::function<void()>& print) {
  if (!loops[0].adaptive()) return print();
  const std::shared_ptr<void> last(
      nullptr, [first = loops[0].handle(), print](void*) { first.Post(print); });
  for (ServerLoop& each : loops) {
    each.handle().Post([&each, last] { each.NoteDecisions(); });
  }
}

// The server's own deadlines stay where they are the shorter ones.
void SetTimeouts(penstock::StreamOptions& options) {
  options.write_deadline = std::min(
      options.write_deadline, TimeoutOrFail("write-timeout", absl::GetFlag(FLAGS_write_timeout)));
  options.idle_deadline = std::min(
      options.idle_deadline, TimeoutOrFail("idle-timeout", absl::GetFlag(FLAGS_idle_timeout)));
}

ServerConfig ConfigFromFlags(const SocketAddress& address, Serve serve,
                             const penstock::StreamOptions& options, MayChangeLoop may_change_loop,
                             Prepare prepare) {
  const int loops = absl::GetFlag(FLAGS_loops);
  const int connections = absl::GetFlag(FLAGS_max_connections);
  RangeOrFail("loops", loops, 1, 256);
  RangeOrFail("max-connections", connections, 1, 1 << 20);
  if (connections < loops) {
    Fail(absl::StrCat("--max-connections: ", connections, " leaves some of ", loops,
                      " loops without any; ", loops, " and more is accepted"));
  }
  NotNegativeOrFail("grace", absl::GetFlag(FLAGS_grace));
  NotNegativeOrFail("busy-poll", absl::GetFlag(FLAGS_busy_poll));
  if (loops > 1 && address.family() == AF_UNIX) {
    Fail("--loops: a Unix socket cannot be shared by several loops; --loops=1 is accepted");
  }
  const MoveIntervals intervals{IntervalOrFail("switch-every", absl::GetFlag(FLAGS_switch_every)),
                                IntervalOrFail("move-every", absl::GetFlag(FLAGS_move_every)),
                                absl::GetFlag(FLAGS_adaptive)};
  if (intervals.adaptive && intervals.switch_every > absl::ZeroDuration()) {
    Fail("--adaptive: --switch-every already says when to switch; one of the two is accepted");
  }
  if (absl::GetFlag(FLAGS_busy_poll) > absl::ZeroDuration() &&
      (intervals.adaptive || absl::GetFlag(FLAGS_balance))) {
    Fail(absl::StrCat(intervals.adaptive ? "--adaptive" : "--balance",
                      ": with --busy-poll the time a loop is on a CPU does not tell what it has to "
                      "do; one of the two is accepted"));
  }
  const bool moves = intervals.move_every > absl::ZeroDuration() || absl::GetFlag(FLAGS_balance);
  if (moves && may_change_loop == MayChangeLoop::kNo) {
    Fail(absl::StrCat(absl::GetFlag(FLAGS_balance) ? "--balance" : "--move-every",
                      ": what this server keeps for a connection stays with its loop; only "
                      "without it is accepted"));
  }
  if (moves && loops < 2) {
    Fail(absl::StrCat(absl::GetFlag(FLAGS_balance) ? "--balance" : "--move-every",
                      ": there is no other loop to move to; --loops=2 and more is accepted"));
  }
  ServerConfig config{EngineOrFail("engine", absl::GetFlag(FLAGS_engine)),
                      {},
                      serve,
                      prepare,
                      Sealing::FromFlags(true),
                      intervals,
                      nullptr,
                      {.huge_pages = absl::GetFlag(FLAGS_huge_pages)},
                      static_cast<uint32_t>(loops),
                      static_cast<uint32_t>(connections)};
  config.listen.reuse_port = loops > 1;
  config.listen.stream = options;
  config.listen.stream.migratable = moves;
  SetTimeouts(config.listen.stream);
  return config;
}

// What the signals have asked for. A handler may call Loop::Stop: Run then returns to look here.
std::atomic<bool> print_wanted = false;
std::atomic<bool> end_wanted = false;
std::atomic<Loop*> main_loop = nullptr;

void OnSignal(int signal) {
  (signal == SIGUSR1 ? print_wanted : end_wanted) = true;
  if (Loop* loop = main_loop) loop->Stop();
}

constexpr int kSignals[] = {SIGUSR1, SIGTERM, SIGINT};

// Holds the signals back; threads started meanwhile never get them.
void BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kSignals) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void TakeSignals() {
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kSignals) {
    sigaction(signal, &action, nullptr);
    sigaddset(&set, signal);
  }
  pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

// Drains the loops once no stream is between two of them.
void StopAndDrain(std::vector<ServerLoop>& loops) {
  std::vector<Mover*> movers;
  for (ServerLoop& each : loops) movers.push_back(&each.mover());
  StopMovers(movers, [&loops] {
    for (ServerLoop& each : loops) each.Drain(absl::GetFlag(FLAGS_grace));
  });
}

// Null without --balance.
std::unique_ptr<penstock::LoopBalancer> BalancerOf(std::vector<ServerLoop>& loops) {
  if (!absl::GetFlag(FLAGS_balance)) return nullptr;
  std::vector<penstock::LoopHandle> handles;
  for (ServerLoop& each : loops) handles.push_back(each.handle());
  absl::StatusOr<std::unique_ptr<penstock::LoopBalancer>> balancer =
      penstock::LoopBalancer::Create(loops[0].loop(), std::move(handles));
  if (!balancer.ok()) Fail(absl::StrCat("--balance: ", balancer.status().message()));
  return *std::move(balancer);
}

// Runs the first loop until a signal has asked for the end and the last stream has gone, or the
// grace has passed.
BalanceFigures RunUntilEnded(std::vector<ServerLoop>& loops, const penstock::BufferPool* pool) {
  Loop& loop = loops[0].loop();
  const std::unique_ptr<penstock::LoopBalancer> balancer = BalancerOf(loops);
  BalanceFigures figures;
  bool ending = false;
  absl::Time ending_since;
  while (!loop.drained()) {
    loop.Run();
    if (print_wanted.exchange(false)) {
      WhenNoted(loops, [&loops, pool, &figures, &balancer] {
        if (balancer != nullptr) figures.Note(*balancer);
        PrintSnapshot(loops, pool, figures);
      });
    }
    if (!end_wanted.exchange(false)) continue;
    // Told twice: at once. Some senders tell the process and its group: that is one and the same.
    const absl::Time now = absl::Now();
    if (std::exchange(ending, true)) {
      if (now - ending_since < absl::Milliseconds(500)) continue;
      for (ServerLoop& each : loops) each.Drain(absl::ZeroDuration());
      continue;
    }
    ending_since = now;
    if (balancer == nullptr) {
      StopAndDrain(loops);
    } else {
      balancer->Stop([&loops, &balancer] {
        for (const std::string& line : balancer->trace()) Complain("balance: " + line);
        Complain(absl::StrCat("balance: moves: ", balancer->moves()));
        StopAndDrain(loops);
      });
    }
  }
  if (balancer != nullptr) figures.Note(*balancer);
  return figures;
}

}  // namespace

int RunServer(Serve serve, const penstock::StreamOptions& options, MayChangeLoop may_change_loop,
              Prepare prepare) {
  SocketAddress address = AddressOrFail("listen", absl::GetFlag(FLAGS_listen));
  ServerConfig config = ConfigFromFlags(address, serve, options, may_change_loop, prepare);
  // Buffers travel with the streams that hold them.
  std::optional<penstock::BufferPool> pool;
  if (config.listen.stream.migratable) config.pool = &pool.emplace(config.pool_options);
  RaiseDescriptorLimit();
  BlockSignals();
  signal(SIGPIPE, SIG_IGN);  // who reads its first line alone goes on being served

  std::vector<ServerLoop> loops(static_cast<size_t>(absl::GetFlag(FLAGS_loops)));
  for (uint32_t i = 0; i < loops.size(); ++i) {
    absl::StatusOr<SocketAddress> bound =
        i == 0 ? loops[0].Open(config, i, address) : loops[i].Start(config, i, address);
    if (!bound.ok()) {
      for (uint32_t j = 1; j < i; ++j) loops[j].Drain(absl::ZeroDuration());
      for (ServerLoop& loop : loops) loop.Join();
      Complain(std::string(bound.status().message()));
      return 1;
    }
    // Port 0 is settled by the first loop, and the others share what it got.
    address = *std::move(bound);
  }
  std::printf("listening on %s\n", address.ToString().c_str());
  std::fflush(stdout);

  for (size_t i = 0; i < loops.size(); ++i) {
    loops[i].mover().Start(loops[(i + 1) % loops.size()].handle());
  }
  main_loop = &loops[0].loop();
  TakeSignals();
  const BalanceFigures balance = RunUntilEnded(loops, config.pool);
  for (ServerLoop& loop : loops) loop.Join();
  BlockSignals();
  main_loop = nullptr;
  loops[0].Close();
  PrintSnapshot(loops, config.pool, balance);
  return 0;
}

}  // namespace examples
