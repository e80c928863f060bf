// Moves live connections while they work: an echo server and clients that verify every byte, in one
// process, on two loops that have both engines. Every stream, of servers and of clients, changes
// engine and loop all the time; a table shows how often, and how long a move kept it from being
// served. Ends with status 1 when a byte was wrong, lost or repeated, or anything else failed.
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "common/json.h"
#include "common/move_figures.h"
#include "common/mover.h"
#include "common/pacer.h"
#include "common/pattern.h"
#include "common/program.h"
#include "common/progress.h"
#include "common/sealing.h"
#include "common/stopwatch.h"

ABSL_FLAG(int32_t, connections, 64, "connections, each an echo server and its client");
ABSL_FLAG(int32_t, seconds, 10, "how long to go on");
ABSL_FLAG(int64_t, moves, 0,
          "ends early, once streams have changed engine or loop so often; 0: goes by time alone");
ABSL_FLAG(absl::Duration, switch_every, absl::Milliseconds(2),
          "every stream changes engine at this interval; 0: never");
ABSL_FLAG(absl::Duration, move_every, absl::Milliseconds(5),
          "every stream changes loop at this interval; 0: never");
ABSL_FLAG(
    int32_t, rate, 0,
    "windows sent per second, by all clients together, each when the one before has come back; "
    "0: as many as they can");
ABSL_FLAG(int32_t, window, 0,
          "bytes that a connection has in flight; 0: 100 to 200000, another number for each");
ABSL_FLAG(bool, json, false, "print nothing but one JSON line at the end");

namespace {

using examples::MoveFigures;
using examples::Mover;
using examples::Stopwatch;
using penstock::Buffer;
using penstock::BufferChain;
using penstock::BufferPool;
using penstock::Listener;
using penstock::Loop;
using penstock::LoopHandle;
using penstock::LoopSnapshot;
using penstock::SocketAddress;
using penstock::Stream;
using penstock::StreamPtr;

constexpr size_t kLoops = 2;
constexpr size_t kChunk = 16 * 1024;
constexpr size_t kConnectingMax = 64;   // on each loop
constexpr uint64_t kComplaintsMax = 5;  // errors told in full, the rest are counted
constexpr auto kEndPatience = absl::Minutes(2);

// What all threads count in.
struct Tally {
  std::atomic<uint64_t> verified{0};  // bytes
  std::atomic<uint64_t> connected{0};
  std::atomic<uint64_t> ended{0};  // clients, one way or the other
  std::atomic<uint64_t> errors{0};
  std::atomic<bool> ending{false};

  void Error(const std::string& message) {
    const uint64_t before = errors.fetch_add(1);
    if (before < kComplaintsMax) examples::Complain(message);
    if (before == kComplaintsMax) examples::Complain("more errors follow, which are counted");
  }
};

// As in echo_server: the callbacks own the stream, so that it is they who move with it.
void Echo(StreamPtr stream) {
  Stream& in = *stream;
  in.ReadReady([stream = std::move(stream)](absl::StatusOr<Buffer> data) mutable {
    if (!data.ok()) return;
    Stream& out = *stream;
    out.Write(*std::move(data), [stream = std::move(stream)](absl::Status sent) mutable {
      if (sent.ok()) Echo(std::move(stream));
    });
  });
}

// How many bytes a connection keeps in flight: from small messages, one at a time, to a stream that
// never pauses and whose socket takes a part of it, so that its queue always holds some.
constexpr std::array<uint64_t, 4> kWindows = {100, 3000, 20'000, 200'000};
constexpr int kSmallSocket = 16 * 1024;

// What the flags say of a client's traffic.
struct Traffic {
  uint64_t window;          // 0: of kWindows
  absl::Duration interval;  // from one window to the next; zero: tops up what has come back
  uint64_t clients;

  uint64_t WindowOf(uint64_t number) const {
    return window != 0 ? window : kWindows[number % kWindows.size()];
  }
};

// Of the loop whose thread this is.
thread_local examples::Pacer* pacer_here = nullptr;

// One connection's other end: keeps some bytes in flight and compares what comes back. Owned by the
// read that is pending on its stream, and so used by one thread at a time, whichever that is.
class Client {
 public:
  Client(Tally& tally, const Traffic& traffic, uint64_t number, StreamPtr stream)
      : tally_(tally), traffic_(traffic), number_(number), stream_(std::move(stream)) {
    if (paced()) mail_.emplace(*stream_);
  }

  static void Run(std::unique_ptr<Client> client) {
    // Evenly spread over the interval from the beginning on.
    client->due_ = client->stream_->loop().now() +
                   client->traffic_.interval * client->number_ / client->traffic_.clients;
    if (client->Go()) Read(std::move(client));
  }

 private:
  static void Read(std::unique_ptr<Client> client) {
    Stream& stream = *client->stream_;
    stream.ReadReady([client = std::move(client)](absl::StatusOr<Buffer> data) mutable {
      if (client->Check(data) && client->Go()) Read(std::move(client));
    });
  }

  // Sends what is to be sent now, and sees to what comes later. False when this client has ended.
  bool Go() {
    if (!paced()) return Send();
    if (received_ < sent_ || shut_) return true;
    pacer_here->At(due_, mail_->handle(), [this](Stream& stream) {
      due_ = std::max(due_, stream.loop().now()) + traffic_.interval;
      if (const absl::Status sent = Queue(); !sent.ok()) {
        tally_.Error(absl::StrCat("connection ", number_, ": ", sent.message()));
        stream.Abort();  // which the pending read hears of
      }
    });
    return true;
  }
  bool paced() const { return traffic_.interval > absl::ZeroDuration(); }

  // False when this client has ended.
  bool Check(const absl::StatusOr<Buffer>& data) {
    if (!data.ok()) {
      if (shut_ && received_ == sent_ && penstock::IsEof(data.status())) return End();
      return Fail(std::string(data.status().message()));
    }
    if (const auto wrong = examples::FindMismatch(data->view(), number_, received_)) {
      return Fail(absl::StrCat("byte ", received_ + *wrong, " came back wrong"));
    }
    received_ += data->size();
    if (received_ > sent_) return Fail("more came back than was sent");
    tally_.verified += data->size();
    return true;
  }

  bool Send() {
    const absl::Status queued = Queue();
    return queued.ok() || Fail(std::string(queued.message()));
  }

  // Tops up what is in flight, or, at the end, waits for the rest and says goodbye.
  absl::Status Queue() {
    if (tally_.ending) {
      if (received_ == sent_ && !std::exchange(shut_, true)) stream_->ShutdownWrite();
      return absl::OkStatus();
    }
    BufferChain data;
    uint64_t left = received_ + traffic_.WindowOf(number_) - sent_;
    while (left > 0) {
      const size_t run = std::min<uint64_t>(left, kChunk);
      absl::StatusOr<Buffer> buffer = stream_->loop().pool().Allocate(run);
      if (!buffer.ok()) return buffer.status();
      buffer->Extend(run);
      examples::FillPattern({buffer->mutable_data(), run}, number_, sent_);
      data.Append(*std::move(buffer));
      sent_ += run;
      left -= run;
    }
    stream_->Write(std::move(data));  // a failure shows in the pending read
    return absl::OkStatus();
  }

  bool Fail(const std::string& why) {
    tally_.Error(absl::StrCat("connection ", number_, ": ", why));
    return End();
  }
  bool End() {
    mail_.reset();
    stream_.reset();
    ++tally_.ended;
    return false;
  }

  Tally& tally_;
  const Traffic& traffic_;
  const uint64_t number_;
  StreamPtr stream_;
  std::optional<penstock::StreamMailbox> mail_;  // of a paced one
  absl::Time due_;                               // its next window
  uint64_t sent_ = 0;
  uint64_t received_ = 0;  // all verified
  bool shut_ = false;
};

struct Plan {
  uint64_t connections;
  absl::Duration duration;
  uint64_t moves;  // UINT64_MAX: no end to them
  examples::MoveIntervals intervals;
  Traffic traffic;
  examples::Sealing server;
  examples::Sealing client;
};

// A loop on a thread of its own.
class LoopThread {
 public:
  // Returns once the loop is there.
  absl::Status Start(const Plan& plan, BufferPool& pool) {
    std::promise<absl::Status> made;
    auto result = made.get_future();
    thread_ = std::thread([this, &plan, &pool, made = std::move(made)]() mutable {
      const absl::Status status = Make(plan, pool);
      made.set_value(status);
      if (status.ok()) loop_->Run();
      if (loop_ != nullptr) last_ = loop_->Snapshot();
      listener_ = nullptr;
      pacer_ = nullptr;
      mover_ = nullptr;
      loop_ = nullptr;
    });
    return result.get();
  }
  void Join() {
    if (thread_.joinable()) thread_.join();
  }

  // Begins to serve; returns the address.
  absl::StatusOr<SocketAddress> Listen(const Plan& plan) {
    std::promise<absl::StatusOr<SocketAddress>> bound;
    auto result = bound.get_future();
    handle_.Post([this, &plan, bound = std::move(bound)]() mutable {
      penstock::ListenOptions options;
      options.stream.migratable = true;
      auto listener =
          Listener::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), options,
                           [sealing = plan.server](StreamPtr stream) {
                             sealing.Apply(std::move(stream), [](absl::StatusOr<StreamPtr> ready) {
                               if (ready.ok())
                                 Echo(*std::move(ready));  // if not, the client says it
                             });
                           });
      if (listener.ok()) listener_ = *std::move(listener);
      bound.set_value(listener.ok() ? listener_->address()
                                    : absl::StatusOr<SocketAddress>(listener.status()));
    });
    return result.get();
  }

  // Begins to make the clients with the numbers `first`, `first` + kLoops and so on.
  void Connect(const Plan& plan, const SocketAddress& address, uint64_t first, Tally& tally) {
    handle_.Post([this, &plan, address, first, &tally] {
      next_ = first;
      for (size_t i = 0; i < kConnectingMax; ++i) ConnectNext(plan, address, tally);
    });
  }

  // Any thread, until Join.
  LoopSnapshot Snapshot() const { return loop_->Snapshot(); }
  const LoopHandle& handle() const { return handle_; }
  Mover& mover() { return *mover_; }
  void Drain() {
    handle_.Post([this] { loop_->Drain(absl::Seconds(3)); });
  }
  // After Join.
  const LoopSnapshot& last() const { return last_; }

 private:
  absl::Status Make(const Plan& plan, BufferPool& pool) {
    penstock::LoopOptions options;
    options.pool = &pool;
    absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
    if (!loop.ok()) return loop.status();
    loop_ = *std::move(loop);
    handle_ = loop_->handle();
    mover_ = std::make_unique<Mover>(*loop_, plan.intervals);
    pacer_ = std::make_unique<examples::Pacer>(*loop_);
    pacer_here = pacer_.get();
    return mover_->Prepare();
  }

  void ConnectNext(const Plan& plan, const SocketAddress& address, Tally& tally) {
    if (next_ >= plan.connections) return;
    const uint64_t number = std::exchange(next_, next_ + kLoops);
    penstock::ConnectOptions options;
    options.stream.migratable = true;
    if (plan.traffic.WindowOf(number) == kWindows.back()) {
      options.stream.send_buffer = options.stream.receive_buffer = kSmallSocket;
    }
    const auto begin = [this, &plan, address, number, &tally](absl::StatusOr<StreamPtr> stream) {
      ++tally.connected;
      ConnectNext(plan, address, tally);
      if (stream.ok()) {
        return Client::Run(
            std::make_unique<Client>(tally, plan.traffic, number, *std::move(stream)));
      }
      tally.Error(absl::StrCat("connection ", number, ": ", stream.status().message()));
      ++tally.ended;
    };
    penstock::Connect(*loop_, address, options, [&plan, begin](absl::StatusOr<StreamPtr> stream) {
      if (!stream.ok()) return begin(std::move(stream));
      plan.client.Apply(*std::move(stream), begin);
    });
  }

  LoopHandle handle_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<Mover> mover_;
  std::unique_ptr<examples::Pacer> pacer_;
  std::unique_ptr<Listener> listener_;
  uint64_t next_ = 0;
  LoopSnapshot last_;
  std::thread thread_;
};

using Loops = std::array<LoopThread, kLoops>;

std::string FormatUs(double us) {
  return us < 1000 ? absl::StrFormat("%.0f us", us) : absl::StrFormat("%.1f ms", us / 1000);
}

// The figures while they change: on a terminal a table that is drawn again in place, elsewhere a
// plain line each second.
class Table {
 public:
  explicit Table(bool quiet) : terminal_(!quiet && isatty(STDOUT_FILENO) == 1), quiet_(quiet) {}

  absl::Duration interval() const { return terminal_ ? absl::Milliseconds(250) : absl::Seconds(1); }

  void Show(const Loops& loops, const Tally& tally, absl::Duration elapsed) {
    if (quiet_) return;
    terminal_ ? Draw(loops, tally, elapsed) : PrintLine(loops, tally, elapsed);
    std::fflush(stdout);
  }

 private:
  void Draw(const Loops& loops, const Tally& tally, absl::Duration elapsed) {
    // "ESC [ n A" goes n lines up, "ESC [ K" clears the rest of a line (ECMA-48: CUU, EL).
    if (std::exchange(drawn_, true)) absl::PrintF("\033[%dA", static_cast<int>(kLoops) + 2);
    absl::PrintF("%8s %9s %9s %12s %10s %9s %9s %10s\033[K\n", "", "on epoll", "io_uring",
                 "switches", "moves in", "pause p50", "p99", "carried");
    for (size_t i = 0; i < kLoops; ++i) {
      const LoopSnapshot loop = loops[i].Snapshot();
      MoveFigures moves;
      moves.Add(loop);
      absl::PrintF("loop %-3d %9d %9d %12d %10d %9s %9s %10s\033[K\n", i,
                   loop.open - std::min(loop.open, loop.open_uring), loop.open_uring,
                   moves.engine_switches(), moves.loop_moves, FormatUs(moves.PauseUs(0.5)),
                   FormatUs(moves.PauseUs(0.99)),
                   examples::FormatBytes(static_cast<double>(moves.bytes_carried)));
    }
    absl::PrintF("%3.0f s: %s verified, %d errors\033[K\n", absl::ToDoubleSeconds(elapsed),
                 examples::FormatBytes(static_cast<double>(tally.verified)), tally.errors.load());
  }

  static void PrintLine(const Loops& loops, const Tally& tally, absl::Duration elapsed) {
    MoveFigures moves;
    uint64_t open = 0, uring = 0;
    for (const LoopThread& loop : loops) {
      const LoopSnapshot snapshot = loop.Snapshot();
      moves.Add(snapshot);
      open += snapshot.open;
      uring += snapshot.open_uring;
    }
    absl::PrintF(
        "%.0f s: %d streams on epoll, %d on io_uring; %d switches, %d moves; pause p50 %s, "
        "p99 %s; %s verified, %d errors\n",
        absl::ToDoubleSeconds(elapsed), open - std::min(open, uring), uring,
        moves.engine_switches(), moves.loop_moves, FormatUs(moves.PauseUs(0.5)),
        FormatUs(moves.PauseUs(0.99)), examples::FormatBytes(static_cast<double>(tally.verified)),
        tally.errors.load());
  }

  const bool terminal_;
  const bool quiet_;
  bool drawn_ = false;
};

// SIGINT and SIGTERM end the program early, and in order. Threads made later do not get them.
sigset_t BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  return set;
}

// Waits for a signal; false when none has come.
bool SignalWithin(const sigset_t& set, absl::Duration wait) {
  const timespec limit = absl::ToTimespec(std::max(wait, absl::ZeroDuration()));
  return sigtimedwait(&set, nullptr, &limit) > 0;
}

uint64_t MovesSoFar(const Loops& loops) {
  MoveFigures moves;
  for (const LoopThread& loop : loops) moves.Add(loop.Snapshot());
  return moves.engine_switches() + moves.loop_moves;
}

// Has the clients work for their time, and ends them. Returns how long they have worked.
absl::Duration Work(const Plan& plan, Loops& loops, Tally& tally, const sigset_t& signals,
                    bool quiet) {
  Table table(quiet);
  const Stopwatch watch;
  // A handshake stays on its loop.
  const auto all_connected = [&] { return tally.connected == plan.connections; };
  while (!all_connected() && !SignalWithin(signals, absl::Milliseconds(5))) {
  }
  for (size_t i = 0; i < kLoops; ++i) loops[i].mover().Start(loops[(i + 1) % kLoops].handle());
  absl::Duration left = plan.duration;
  bool interrupted = !all_connected();
  while (!interrupted && left > absl::ZeroDuration() && tally.ended < plan.connections &&
         MovesSoFar(loops) < plan.moves) {
    interrupted = SignalWithin(signals, std::min(left, table.interval()));
    table.Show(loops, tally, watch.elapsed());
    left = plan.duration - watch.elapsed();
  }
  const absl::Duration elapsed = watch.elapsed();

  tally.ending = true;
  const Stopwatch ending;
  while (tally.ended < plan.connections && ending.elapsed() < kEndPatience) {
    SignalWithin(signals, absl::Milliseconds(5));
  }
  if (const uint64_t ended = tally.ended; ended < plan.connections && !interrupted) {
    tally.Error(absl::StrCat(plan.connections - ended, " connections did not end"));
  }
  std::promise<void> stopped;
  const auto still = stopped.get_future();
  std::vector<Mover*> movers;
  for (LoopThread& loop : loops) movers.push_back(&loop.mover());
  examples::StopMovers(movers, [stopped = std::move(stopped)]() mutable { stopped.set_value(); });
  still.wait();
  return elapsed;
}

// What is there at the end and was not at the beginning.
struct Left {
  uint64_t connections = 0;
  uint64_t descriptors = 0;  // or the other way round
  uint64_t bytes = 0;        // of buffers
};

void Report(const Plan& plan, const MoveFigures& moves, const Tally& tally, const Left& left,
            absl::Duration elapsed, bool json) {
  const double seconds = absl::ToDoubleSeconds(elapsed);
  const double rate = seconds > 0 ? static_cast<double>(tally.verified) / seconds : 0;
  if (!json) {
    absl::PrintF(
        "%d connections in %.1f s: %d engine switches and %d moves between loops, %s carried "
        "along; "
        "pause p50 %s, p99 %s; %s verified (%s/s), %d errors, %d stranded\n",
        plan.connections, seconds, moves.engine_switches(), moves.loop_moves,
        examples::FormatBytes(static_cast<double>(moves.bytes_carried)),
        FormatUs(moves.PauseUs(0.5)), FormatUs(moves.PauseUs(0.99)),
        examples::FormatBytes(static_cast<double>(tally.verified)), examples::FormatBytes(rate),
        tally.errors.load(), moves.stranded);
    return;
  }
  examples::JsonLine line;
  line.Add("connections", plan.connections)
      .Add("loops", uint64_t{kLoops})
      .Add("seconds", seconds)
      .Add("bytes", tally.verified.load())
      .Add("bytes_per_s", rate)
      .Add("errors", tally.errors.load())
      .Add("connections_left", left.connections)
      .Add("descriptors_left", left.descriptors)
      .Add("bytes_left", left.bytes);
  moves.AddTo(line);
  line.Print();
}

absl::Status Run(const Plan& plan, const sigset_t& signals, bool json, Tally& tally) {
  Left left;
  const uint64_t descriptors = examples::DescriptorsOpen();
  BufferPool pool;  // of both loops: buffers travel with the streams that hold them
  MoveFigures moves;
  absl::Duration elapsed;
  {
    Loops loops;
    absl::Status status;
    for (LoopThread& loop : loops) {
      if (status.ok()) status = loop.Start(plan, pool);
    }
    absl::StatusOr<SocketAddress> address =
        status.ok() ? loops[0].Listen(plan) : absl::StatusOr<SocketAddress>(status);
    if (address.ok()) {
      for (size_t i = 0; i < kLoops; ++i) loops[i].Connect(plan, *address, i, tally);
      elapsed = Work(plan, loops, tally, signals, json);
    }
    for (LoopThread& loop : loops) loop.Drain();
    for (LoopThread& loop : loops) loop.Join();
    if (!address.ok()) return address.status();
    for (const LoopThread& loop : loops) {
      moves.Add(loop.last());
      left.connections += loop.last().connecting + loop.last().open + loop.last().closing;
      if (loop.last().faults > 0) {
        tally.Error(absl::StrCat(loop.last().faults, " faults of a loop, said above"));
      }
    }
  }
  left.bytes = pool.Stats().live;
  const uint64_t descriptors_now = examples::DescriptorsOpen();
  left.descriptors =
      std::max(descriptors_now, descriptors) - std::min(descriptors_now, descriptors);
  if (left.connections > 0 || left.descriptors > 0 || left.bytes > 0) {
    tally.Error(absl::StrCat(left.connections, " connections, ", left.descriptors,
                             " descriptors and ", left.bytes, " bytes of buffers are left"));
  }
  if (moves.stranded > 0) tally.Error(absl::StrCat(moves.stranded, " connections were stranded"));
  Report(plan, moves, tally, left, elapsed, json);
  return absl::OkStatus();
}

Plan PlanFromFlags() {
  const int64_t connections = absl::GetFlag(FLAGS_connections);
  const int64_t seconds = absl::GetFlag(FLAGS_seconds);
  const int64_t moves = absl::GetFlag(FLAGS_moves);
  const int64_t rate = absl::GetFlag(FLAGS_rate);
  const int64_t window = absl::GetFlag(FLAGS_window);
  examples::RangeOrFail("connections", connections, 1, 5000);
  examples::RangeOrFail("seconds", seconds, 1, 1'000'000);
  examples::RangeOrFail("moves", moves, 0, INT64_MAX);
  examples::RangeOrFail("rate", rate, 0, 1'000'000);
  examples::RangeOrFail("window", window, 0, 1'000'000);
  // A connection hears of the end when its next window is due.
  if (rate > 0 && connections / rate > 10) {
    examples::Fail(absl::StrCat("--rate: ", rate, " leaves each of ", connections,
                                " connections more than 10 s between two windows; ",
                                (connections + 9) / 10, " and more is accepted"));
  }
  const absl::Duration interval =
      rate == 0 ? absl::ZeroDuration() : absl::Seconds(connections) / rate;
  return {static_cast<uint64_t>(connections),
          absl::Seconds(seconds),
          moves == 0 ? UINT64_MAX : static_cast<uint64_t>(moves),
          {examples::IntervalOrFail("switch-every", absl::GetFlag(FLAGS_switch_every)),
           examples::IntervalOrFail("move-every", absl::GetFlag(FLAGS_move_every))},
          {static_cast<uint64_t>(window), interval, static_cast<uint64_t>(connections)},
          examples::Sealing::FromFlags(true),
          examples::Sealing::FromFlags(false)};
}

}  // namespace

int main(int argc, char** argv) {
  examples::ParseFlagsOnly(
      argc, argv,
      "[flags]\n\nMoves live connections between epoll and io_uring and between two threads, and\n"
      "verifies every byte. Ends with status 1 when anything was wrong.");
  const Plan plan = PlanFromFlags();
  examples::RaiseDescriptorLimit();
  const sigset_t signals = BlockSignals();
  Tally tally;
  const absl::Status status = Run(plan, signals, absl::GetFlag(FLAGS_json), tally);
  if (!status.ok()) examples::Fail(std::string(status.message()));
  return tally.errors == 0 ? 0 : 1;
}
