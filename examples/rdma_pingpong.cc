// Latency and rate of the three RDMA operations between two programs:
//   rdma_pingpong --listen=ADDR
//   rdma_pingpong --connect=ADDR --op=send|write|read
//
// The listening side sends every message back and exposes memory; it does not know which operation
// the other one measures. Messages go over an RDMA device when both have one
// (common/rdma_device.h), and over the stream between them otherwise, which the program then says
// on stderr. Over a device reads and writes are the device's, over a stream the listening program's
// loop carries them out.
#include <penstock/connect.h>
#include <penstock/loop.h>
#include <penstock/rdma.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/histogram.h"
#include "common/json.h"
#include "common/pattern.h"
#include "common/program.h"
#include "common/rdma_device.h"
#include "common/sealing.h"
#include "common/server.h"

ABSL_FLAG(std::string, connect, "",
          "address of a program that listens; without it, this one does (--listen)");
ABSL_FLAG(std::string, op, "send", "send (there and back), write or read");
ABSL_FLAG(int32_t, size, 64, "bytes of each operation");
ABSL_FLAG(int64_t, iters, 10000, "operations that are measured; a tenth more goes before them");
ABSL_FLAG(int32_t, depth, 1, "operations in flight");
ABSL_DECLARE_FLAG(std::string, engine);

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::RdmaEndpoint;
using penstock::RdmaRemoteRegion;
using penstock::StreamPtr;

constexpr int32_t kSizeMax = 8 << 20;
constexpr int32_t kDepthMax = 1024;

// --- The listening side ---

// Owned by the callback that waits for the next message.
struct Echoer {
  explicit Echoer(StreamPtr stream) {
    penstock::RdmaOptions options = examples::WithDevice(stream->loop());
    endpoint = RdmaEndpoint::Accept(std::move(stream), std::move(options));
  }

  std::vector<char> memory = std::vector<char>(kSizeMax);
  std::unique_ptr<RdmaEndpoint> endpoint;
  penstock::RdmaRegion region;
};

void EchoNext(std::unique_ptr<Echoer> echoer) {
  RdmaEndpoint& endpoint = *echoer->endpoint;
  endpoint.Receive([echoer = std::move(echoer)](absl::StatusOr<BufferChain> message) mutable {
    if (!message.ok()) return;  // the peer has closed, or is gone
    echoer->endpoint->Send(*std::move(message));
    EchoNext(std::move(echoer));
  });
}

void Serve(StreamPtr stream) {
  auto echoer = std::make_unique<Echoer>(std::move(stream));
  RdmaEndpoint& endpoint = *echoer->endpoint;  // which its callbacks do not outlive
  endpoint.NotifyOpen([&endpoint](absl::Status opened) {
    if (opened.ok()) examples::TellCarrier(endpoint.stats());
  });
  auto region = endpoint.Expose(echoer->memory, penstock::RdmaAccess::kReadWrite);
  if (!region.ok()) return;
  echoer->region = *std::move(region);
  EchoNext(std::move(echoer));
}

// --- The connecting side ---

// A number of the clock itself: what is measured is a few microseconds.
int64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

enum class Op { kSend, kWrite, kRead };

struct Config {
  penstock::SocketAddress address;
  Op op;
  std::string op_name;
  size_t size;
  uint64_t iterations;
  uint64_t depth;
  examples::Sealing sealing;
};

class Pinger {
 public:
  Pinger(penstock::Loop& loop, const Config& config) : loop_(loop), config_(config) {
    content_.resize(config.size);
    examples::FillPattern(content_, 1, 0);
    began_ns_.resize(config.depth);
  }

  void Start() {
    penstock::Connect(loop_, config_.address, {}, [this](absl::StatusOr<StreamPtr> stream) {
      if (!stream.ok()) return End(stream.status());
      config_.sealing.Apply(*std::move(stream), [this](absl::StatusOr<StreamPtr> ready) {
        if (!ready.ok()) return End(ready.status());
        endpoint_ = RdmaEndpoint::Connect(*std::move(ready), examples::WithDevice(loop_));
        endpoint_->AwaitRegion([this](absl::StatusOr<RdmaRemoteRegion> region) {
          if (!region.ok()) return End(region.status());
          region_ = *region;
          Begin();
        });
      });
    });
  }
  const absl::Status& status() const { return status_; }
  void PrintFigures() const;

 private:
  uint64_t total() const { return config_.iterations + warm_up_; }
  void Begin();
  bool Matches(const BufferChain& bytes);
  void StartOne(int64_t now_ns);
  // `bytes`: what has come, to be compared when the next is on its way.
  void OnOne(const absl::Status& status, const BufferChain* bytes = nullptr);
  void OnBytes(absl::StatusOr<BufferChain> bytes);
  void ReceiveNext();
  void End(absl::Status status);

  penstock::Loop& loop_;
  const Config& config_;
  const uint64_t warm_up_ = std::max<uint64_t>(1, config_.iterations / 10);
  std::string content_;
  Buffer bytes_;      // the same, of the pool: all that is sent are windows onto them
  std::string came_;  // where what came in pieces is put to be compared
  std::unique_ptr<RdmaEndpoint> endpoint_;
  RdmaRemoteRegion region_;
  uint64_t started_ = 0;
  uint64_t done_ = 0;
  std::vector<int64_t> began_ns_;  // of those in flight, a ring
  int64_t measured_from_ns_ = 0;
  int64_t elapsed_ns_ = 0;
  penstock::RdmaStats stats_;  // at the end
  int64_t least_ns_ = INT64_MAX;
  examples::Histogram latencies_;
  absl::Status status_;
};

void Pinger::Begin() {
  if (region_.size < config_.size) {
    return End(absl::OutOfRangeError(
        absl::StrCat("the listening side exposes ", region_.size, " bytes only")));
  }
  auto bytes = loop_.pool().Copy(content_);
  if (!bytes.ok()) return End(bytes.status());
  bytes_ = *std::move(bytes);
  // So that what is read can be told from what was there.
  if (config_.op == Op::kRead) endpoint_->Write(region_, 0, bytes_.Share());
  if (config_.op == Op::kSend) ReceiveNext();
  while (started_ < std::min(config_.depth, total())) StartOne(NowNs());
}

void Pinger::StartOne(int64_t now_ns) {
  began_ns_[started_++ % config_.depth] = now_ns;
  if (config_.op == Op::kRead) {
    endpoint_->Read(region_, 0, config_.size,
                    [this](absl::StatusOr<BufferChain> bytes) { OnBytes(std::move(bytes)); });
    return;
  }
  if (config_.op == Op::kWrite) {
    endpoint_->Write(region_, 0, bytes_.Share(), [this](absl::Status status) { OnOne(status); });
  } else {
    endpoint_->Send(bytes_.Share());
  }
}

void Pinger::ReceiveNext() {
  endpoint_->Receive([this](absl::StatusOr<BufferChain> message) {
    OnBytes(std::move(message));
    if (status_.ok() && done_ < total()) ReceiveNext();
  });
}

bool Pinger::Matches(const BufferChain& bytes) {
  if (bytes.size() != content_.size()) return false;
  if (bytes.front().size() == bytes.size()) return bytes.front() == content_;
  came_.resize(bytes.size());
  bytes.CopyTo(came_);
  return came_ == content_;
}

void Pinger::OnBytes(absl::StatusOr<BufferChain> bytes) {
  if (!bytes.ok()) return OnOne(bytes.status());
  OnOne(absl::OkStatus(), &*bytes);
}

void Pinger::OnOne(const absl::Status& status, const BufferChain* bytes) {
  if (!status.ok()) return End(status);
  const int64_t now_ns = NowNs();
  const int64_t took_ns = now_ns - began_ns_[done_ % config_.depth];
  // What is measured next does not wait for the figures.
  if (started_ < total()) StartOne(now_ns);
  if (bytes != nullptr && !Matches(*bytes)) {
    return End(absl::DataLossError("other bytes came back than were sent"));
  }
  if (done_ == warm_up_) measured_from_ns_ = now_ns - took_ns;
  if (done_ >= warm_up_) {
    latencies_.Record(absl::Nanoseconds(took_ns));
    least_ns_ = std::min(least_ns_, took_ns);
  }
  if (++done_ < total()) return;
  elapsed_ns_ = now_ns - measured_from_ns_;
  stats_ = endpoint_->stats();
  endpoint_->Close([this](absl::Status closed) { End(std::move(closed)); });
}

void Pinger::End(absl::Status status) {
  if (status_.ok()) status_ = std::move(status);
  loop_.Stop();
}

void Pinger::PrintFigures() const {
  const double seconds = static_cast<double>(elapsed_ns_) / 1e9;
  const double rate = seconds > 0 ? static_cast<double>(config_.iterations) / seconds : 0.0;
  examples::TellCarrier(stats_);
  examples::JsonLine()
      .Add("op", config_.op_name)
      .Add("transport", stats_.over_device ? "device" : "stream")
      .Add("fallback", stats_.fallback)
      .Add("lanes", uint64_t{stats_.lanes})
      .Add("size", uint64_t{config_.size})
      .Add("iters", config_.iterations)
      .Add("depth", config_.depth)
      .Add("min_us", static_cast<double>(least_ns_) / 1e3)
      .Add("p50_us", absl::ToDoubleMicroseconds(latencies_.Percentile(0.5)))
      .Add("p99_us", absl::ToDoubleMicroseconds(latencies_.Percentile(0.99)))
      .Add("per_s", rate)
      .Add("bytes_per_s", rate * static_cast<double>(config_.size))
      .Print();
}

Config ConfigFromFlags() {
  const int32_t size = absl::GetFlag(FLAGS_size);
  const int64_t iterations = absl::GetFlag(FLAGS_iters);
  const int32_t depth = absl::GetFlag(FLAGS_depth);
  examples::RangeOrFail("size", size, 0, kSizeMax);
  examples::RangeOrFail("iters", iterations, 1, int64_t{1} << 40);
  examples::RangeOrFail("depth", depth, 1, kDepthMax);
  // What the endpoint's queue takes by default.
  examples::RangeOrFail("depth", int64_t{depth} * size, 0, 64 << 20);
  Op op = Op::kSend;
  const std::string name = absl::GetFlag(FLAGS_op);
  if (name == "write") {
    op = Op::kWrite;
  } else if (name == "read") {
    op = Op::kRead;
  } else if (name != "send") {
    examples::Fail(absl::StrCat("--op: '", name, "' is none of send, write, read"));
  }
  return {.address = examples::AddressOrFail("connect", absl::GetFlag(FLAGS_connect)),
          .op = op,
          .op_name = name,
          .size = static_cast<size_t>(size),
          .iterations = static_cast<uint64_t>(iterations),
          .depth = static_cast<uint64_t>(depth),
          .sealing = examples::Sealing::FromFlags(false)};
}

int Ping() {
  const Config config = ConfigFromFlags();
  penstock::LoopOptions options;
  options.engine = examples::EngineOrFail("engine", absl::GetFlag(FLAGS_engine));
  auto loop = penstock::Loop::Create(std::move(options));
  if (!loop.ok()) examples::Fail(std::string(loop.status().message()));
  examples::OpenDeviceOfFlags(**loop);
  Pinger pinger(**loop, config);
  pinger.Start();
  (*loop)->Run();
  if (!pinger.status().ok()) examples::Fail(std::string(pinger.status().message()));
  pinger.PrintFigures();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  examples::ParseFlagsOnly(argc, argv,
                           "--listen=ADDR | --connect=ADDR --op=send|write|read [flags]\n\n"
                           "Measures RDMA operations between two programs, over a device when "
                           "both have one.");
  if (!absl::GetFlag(FLAGS_connect).empty()) return Ping();
  // An endpoint belongs to its loop.
  return examples::RunServer(&Serve, {}, examples::MayChangeLoop::kNo,
                             &examples::OpenDeviceOfFlags);
}
