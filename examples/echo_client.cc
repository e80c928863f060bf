// Loads an echo server, verifies every byte that comes back, and prints one JSON line. With --idle
// it holds connections that say nothing, for looking at what they cost the server.
#include <penstock/connect.h>
#include <penstock/loop.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/histogram.h"
#include "common/json.h"
#include "common/pattern.h"
#include "common/program.h"
#include "common/sealing.h"
#include "common/stopwatch.h"

ABSL_FLAG(std::string, connect, "127.0.0.1:7000", "address of the echo server");
ABSL_FLAG(int32_t, connections, 1, "connections to load it with");
ABSL_FLAG(int32_t, size, 64, "bytes of each request");
ABSL_FLAG(int32_t, depth, 1, "requests in flight on each connection");
ABSL_FLAG(absl::Duration, duration, absl::Seconds(5),
          "how long to load the server; with --idle, how long to stay at most");
ABSL_FLAG(int32_t, idle, 0,
          "instead of loading, hold this many connections idle after one request each, until "
          "--duration has passed or stdin, when it is a terminal or a pipe, is closed");
ABSL_FLAG(absl::Duration, patience, absl::Minutes(1),
          "how long to wait for replies while none comes; also for the first, when --duration has "
          "passed without any");
ABSL_FLAG(std::string, engine, "auto", "auto, epoll or uring");
ABSL_FLAG(absl::Duration, busy_poll, absl::ZeroDuration(),
          "how long to look for replies before sleeping: less delay for a core; 0: not at all");

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::ConnectOptions;
using penstock::Loop;
using penstock::SocketAddress;
using penstock::StreamPtr;

constexpr size_t kChunk = 64 * 1024;        // largest buffer of a request
constexpr size_t kConnectingMax = 256;      // connects in flight, below any backlog
constexpr uint64_t kComplaintsMax = 5;      // errors told in full, the rest are counted
constexpr int64_t kInFlightMax = 64 << 20;  // bytes of one connection
// --patience has passed after so many looks in which nothing had come. Looks and not a time, which
// passes as well while this program does not run.
constexpr int kLooksMax = 50;

struct Config {
  SocketAddress address;
  size_t connections;
  size_t size;
  size_t depth;
  absl::Duration duration;
  absl::Duration patience;
  bool idle;
  examples::Sealing sealing;
};

class Load;

// One connection: keeps requests in flight and compares what comes back.
class Client {
 public:
  Client(Load& load, uint64_t number) : load_(load), number_(number) {}

  void Connect();
  void Use(penstock::StreamPtr stream);
  void Send(size_t requests);
  // No more will be sent: ends it when nothing is in flight.
  void FinishIfQuiet();
  // Ends it, and counts what is in flight as lost.
  void GiveUp();

 private:
  void Read();
  void OnData(absl::StatusOr<Buffer> data);
  void Broken(const std::string& why);

  Load& load_;
  uint64_t number_;
  StreamPtr stream_;
  uint64_t sent_ = 0;                  // bytes
  uint64_t received_ = 0;              // bytes, all verified
  std::vector<absl::Duration> began_;  // when each request in flight was sent, a ring
};

// All connections of the program, and their figures.
class Load {
 public:
  Load(Loop& loop, const Config& config) : loop_(loop), config_(config), timer_(loop) {}

  // Connects, loads the server, and returns when every connection has ended; with --idle, when
  // every connection has had its reply.
  void Run();
  void PrintFigures() const;
  uint64_t errors() const { return errors_; }

  // Told by the connections.
  void OnConnect(const absl::Status& status);
  void OnReply(absl::Duration latency);
  void OnBytes(size_t bytes) { bytes_ += bytes; }
  void OnEnd();
  void OnError(const std::string& message);

  Loop& loop() { return loop_; }
  const Config& config() const { return config_; }
  // Whether a reply is answered by another request.
  bool sending() const { return sending_ && !config_.idle; }

 private:
  void ConnectMore();
  void Begin();
  void End();
  // Calls `give_up` once replies have stopped coming.
  void WatchReplies(void (Load::*give_up)());
  void GiveUp();

  Loop& loop_;
  const Config& config_;
  penstock::Timer timer_;
  std::vector<std::unique_ptr<Client>> clients_;
  size_t connecting_ = 0;
  size_t open_ = 0;
  bool sending_ = false;
  bool overdue_ = false;     // the load ends with the next reply
  int looks_ = 0;            // since replies came
  uint64_t bytes_seen_ = 0;  // by the last look
  absl::Duration began_;
  absl::Duration elapsed_;
  uint64_t requests_ = 0;
  uint64_t bytes_ = 0;
  uint64_t errors_ = 0;
  examples::Histogram latencies_;
};

void Client::Connect() {
  ConnectOptions options;
  options.stream.send_queue_max = 2 * kInFlightMax;
  penstock::Connect(load_.loop(), load_.config().address, std::move(options),
                    [this](absl::StatusOr<StreamPtr> stream) {
                      if (!stream.ok()) return load_.OnConnect(stream.status());
                      load_.config().sealing.Apply(*std::move(stream),
                                                   [this](absl::StatusOr<StreamPtr> ready) {
                                                     if (ready.ok()) Use(*std::move(ready));
                                                     load_.OnConnect(ready.status());
                                                   });
                    });
}

void Client::Use(StreamPtr stream) {
  stream_ = std::move(stream);
  began_.resize(load_.config().depth);
  Read();
}

void Client::Send(size_t requests) {
  if (stream_ == nullptr) return;
  const size_t size = load_.config().size;
  const absl::Duration now = examples::Monotonic();
  for (size_t i = 0; i < requests; ++i) began_[(sent_ / size + i) % began_.size()] = now;
  BufferChain data;
  for (size_t left = requests * size; left > 0;) {
    const size_t run = std::min(left, kChunk);
    absl::StatusOr<Buffer> buffer = load_.loop().pool().Allocate(run);
    if (!buffer.ok()) return Broken(std::string(buffer.status().message()));
    buffer->Extend(run);
    examples::FillPattern({buffer->mutable_data(), run}, number_, sent_);
    data.Append(*std::move(buffer));
    sent_ += run;
    left -= run;
  }
  stream_->Write(std::move(data));  // a failure shows in the pending read
}

void Client::Read() {
  stream_->ReadReady([this](absl::StatusOr<Buffer> data) { OnData(std::move(data)); });
}

void Client::OnData(absl::StatusOr<Buffer> data) {
  if (!data.ok()) return Broken(std::string(data.status().message()));
  if (const auto wrong = examples::FindMismatch(data->view(), number_, received_)) {
    return Broken(absl::StrCat("byte ", received_ + *wrong, " came back wrong"));
  }
  const uint64_t before = received_;
  received_ += data->size();
  if (received_ > sent_) return Broken("more came back than was sent");
  load_.OnBytes(data->size());

  const size_t size = load_.config().size;
  const size_t replies = received_ / size - before / size;
  const absl::Duration now = examples::Monotonic();
  for (size_t i = 0; i < replies; ++i) {
    load_.OnReply(now - began_[(before / size + i) % began_.size()]);
  }
  if (stream_ == nullptr) return;  // that was the last reply, and the end
  Read();
  if (load_.sending()) {
    if (replies > 0) Send(replies);
  } else if (!load_.config().idle) {
    FinishIfQuiet();
  }
}

void Client::FinishIfQuiet() {
  if (stream_ == nullptr || received_ != sent_) return;
  stream_.reset();
  load_.OnEnd();
}

void Client::GiveUp() {
  if (stream_ == nullptr || received_ == sent_) return;
  Broken(absl::StrCat(sent_ - received_, " bytes did not come back"));
}

void Client::Broken(const std::string& why) {
  stream_.reset();
  load_.OnError(absl::StrCat("connection ", number_, ": ", why));
  load_.OnEnd();
}

void Load::Run() {
  ConnectMore();
  loop_.Run();
}

void Load::ConnectMore() {
  while (connecting_ < kConnectingMax && clients_.size() < config_.connections) {
    ++connecting_;
    clients_.push_back(std::make_unique<Client>(*this, clients_.size()));
    clients_.back()->Connect();
  }
}

void Load::OnConnect(const absl::Status& status) {
  --connecting_;
  if (status.ok()) {
    ++open_;
  } else {
    OnError(std::string(status.message()));
  }
  ConnectMore();
  if (connecting_ == 0) Begin();
}

void Load::Begin() {
  if (open_ == 0) return loop_.Stop();
  sending_ = true;
  began_ = examples::Monotonic();
  if (config_.idle) {
    WatchReplies(&Load::End);
  } else {
    timer_.Arm(config_.duration, [this] {
      if (requests_ > 0) return End();
      overdue_ = true;  // without a reply nothing was measured
      WatchReplies(&Load::End);
    });
  }
  for (const auto& client : clients_) client->Send(config_.depth);
}

// The replies in flight are still verified, but no longer counted.
void Load::End() {
  sending_ = false;
  elapsed_ = examples::Monotonic() - began_;
  if (config_.idle) {
    timer_.Arm(absl::ZeroDuration(), [this] { GiveUp(); });
    return;
  }
  WatchReplies(&Load::GiveUp);
  for (const auto& client : clients_) client->FinishIfQuiet();
}

void Load::WatchReplies(void (Load::*give_up)()) {
  looks_ = bytes_ == bytes_seen_ ? looks_ + 1 : 0;
  bytes_seen_ = bytes_;
  if (looks_ > kLooksMax) return (this->*give_up)();
  timer_.Arm(config_.patience / kLooksMax, [this, give_up] { WatchReplies(give_up); });
}

void Load::GiveUp() {
  for (const auto& client : clients_) client->GiveUp();
  loop_.Stop();
}

void Load::OnReply(absl::Duration latency) {
  if (!sending_) return;
  ++requests_;
  latencies_.Record(latency);
  if (overdue_ || (config_.idle && requests_ == open_)) End();
}

void Load::OnEnd() {
  if (--open_ > 0) return;
  if (std::exchange(sending_, false)) elapsed_ = examples::Monotonic() - began_;
  loop_.Stop();
}

void Load::OnError(const std::string& message) {
  if (++errors_ <= kComplaintsMax) examples::Complain(message);
  if (errors_ == kComplaintsMax + 1) examples::Complain("more errors follow, which are counted");
}

void Load::PrintFigures() const {
  const double seconds = absl::ToDoubleSeconds(elapsed_);
  const auto us = [](absl::Duration d) { return absl::ToDoubleMicroseconds(d); };
  examples::JsonLine()
      .Add("engine", penstock::EngineKindName(loop_.engine()))
      .Add("connections", uint64_t{config_.connections})
      .Add("size", uint64_t{config_.size})
      .Add("depth", uint64_t{config_.depth})
      .Add("seconds", seconds)
      .Add("requests", requests_)
      .Add("requests_per_s", seconds > 0 ? static_cast<double>(requests_) / seconds : 0.0)
      .Add("bytes", bytes_)
      .Add("p50_us", us(latencies_.Percentile(0.5)))
      .Add("p90_us", us(latencies_.Percentile(0.9)))
      .Add("p99_us", us(latencies_.Percentile(0.99)))
      .Add("p999_us", us(latencies_.Percentile(0.999)))
      .Add("max_us", us(latencies_.max()))
      .Add("errors", errors_)
      .Print();
}

// Stays idle until `most` has passed or stdin ends. This thread has two things to watch, so the
// loop is driven by poll(2) here instead of by Loop::Run.
void HoldIdle(Loop& loop, absl::Duration most) {
  struct stat input;
  const bool ends = isatty(STDIN_FILENO) || (fstat(STDIN_FILENO, &input) == 0 &&
                                             (S_ISFIFO(input.st_mode) || S_ISSOCK(input.st_mode)));
  pollfd watched[] = {{loop.fd(), POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
  const absl::Duration until = examples::Monotonic() + most;
  for (;;) {
    while (loop.Poll()) {
    }
    const absl::Duration left = until - examples::Monotonic();
    if (left <= absl::ZeroDuration()) return;
    const absl::Duration wait = std::min(left, absl::Hours(1)) + absl::Milliseconds(1);
    poll(watched, ends ? 2 : 1, static_cast<int>(absl::ToInt64Milliseconds(wait)));
    if (ends && watched[1].revents != 0) {
      char ignored[4096];
      const ssize_t got = read(STDIN_FILENO, ignored, sizeof(ignored));
      if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) return;
    }
  }
}

Config ConfigFromFlags() {
  using examples::RangeOrFail;
  const int64_t idle = absl::GetFlag(FLAGS_idle);
  const int64_t connections = idle > 0 ? idle : absl::GetFlag(FLAGS_connections);
  const int64_t size = absl::GetFlag(FLAGS_size);
  const int64_t depth = idle > 0 ? 1 : absl::GetFlag(FLAGS_depth);
  RangeOrFail("idle", idle, 0, 1 << 20);
  RangeOrFail("connections", connections, 1, 1 << 20);
  RangeOrFail("size", size, 1, 16 << 20);
  RangeOrFail("depth", depth, 1, 65536);
  if (size * depth > kInFlightMax) {
    examples::Fail(absl::StrCat("--depth: ", depth, " requests of ", size, " bytes are ",
                                size * depth, " bytes in flight, ", kInFlightMax,
                                " on each connection are accepted"));
  }
  const absl::Duration duration = absl::GetFlag(FLAGS_duration);
  if (duration <= absl::ZeroDuration()) {
    examples::Fail("--duration: only durations above zero are accepted, such as 500ms, 10s or 2m");
  }
  const absl::Duration patience = absl::GetFlag(FLAGS_patience);
  if (patience <= absl::ZeroDuration()) {
    examples::Fail("--patience: only durations above zero are accepted, such as 500ms, 10s or 2m");
  }
  return {examples::AddressOrFail("connect", absl::GetFlag(FLAGS_connect)),
          static_cast<size_t>(connections),
          static_cast<size_t>(size),
          static_cast<size_t>(depth),
          duration,
          patience,
          idle > 0,
          examples::Sealing::FromFlags(false)};
}

}  // namespace

int main(int argc, char** argv) {
  examples::ParseFlagsOnly(
      argc, argv,
      "[flags]\n\nLoads an echo server, verifies every byte, prints one JSON line.\n"
      "Ends with status 1 when anything was wrong.");
  const Config config = ConfigFromFlags();
  examples::RaiseDescriptorLimit();

  penstock::LoopOptions options;
  options.engine = examples::EngineOrFail("engine", absl::GetFlag(FLAGS_engine));
  options.busy_poll = examples::NotNegativeOrFail("busy-poll", absl::GetFlag(FLAGS_busy_poll));
  options.pool_options.bytes_max = size_t{16} << 30;  // requests in flight; see kInFlightMax
  absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
  if (!loop.ok()) examples::Fail(std::string(loop.status().message()));

  Load load(**loop, config);
  load.Run();
  load.PrintFigures();
  if (config.idle) HoldIdle(**loop, config.duration);
  return load.errors() == 0 ? 0 : 1;
}
