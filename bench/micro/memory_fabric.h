// MemoryFabric: an RDMA device that carries what is posted from memory to memory during the call,
// so that next to nothing but the library's own work is in a figure. Nothing fails, nothing is
// checked.
//
// Outlives its devices. One thread. Queue pairs of all its devices reach each other by number.
#ifndef PENSTOCK_BENCH_MICRO_MEMORY_FABRIC_H_
#define PENSTOCK_BENCH_MICRO_MEMORY_FABRIC_H_

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/fifo.h"
#include "rdma/fabric.h"

namespace penstock_bench {

using penstock::internal::FabricCompletion;
using penstock::internal::FabricOp;
using penstock::internal::FabricOutcome;
using penstock::internal::FabricPart;
using penstock::internal::FabricReceive;
using penstock::internal::FabricSend;
using penstock::internal::Fifo;

class MemoryCq final : public penstock::internal::FabricCq {
 public:
  ~MemoryCq() override { ::close(fd_); }
  int fd() const override { return fd_; }
  int Arm() override {
    armed_ = true;
    return 0;
  }
  int TakeEvents(uint32_t) override {
    uint64_t events = 0;
    return ::read(fd_, &events, sizeof events) == sizeof events ? static_cast<int>(events) : 0;
  }
  void AckEvents(uint32_t) override {}
  int Poll(std::span<FabricCompletion> out) override {
    size_t count = 0;
    while (count < out.size() && !waiting_.empty()) out[count++] = waiting_.pop();
    return static_cast<int>(count);
  }
  void Push(const FabricCompletion& completion) {
    waiting_.push(completion);
    const uint64_t one = 1;
    if (!std::exchange(armed_, false)) return;
    if (::write(fd_, &one, sizeof one) != sizeof one) std::abort();
  }

 private:
  const int fd_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  bool armed_ = false;
  Fifo<FabricCompletion> waiting_;
};

struct MemoryReceive {
  uint64_t id = 0;
  FabricPart part;
};

class MemorySrq final : public penstock::internal::FabricSrq {
 public:
  int PostReceive(const FabricReceive& receive) override {
    posted_.push({receive.id, receive.parts.front()});
    return 0;
  }
  int ArmLimit(uint32_t) override { return 0; }
  MemoryReceive Take() { return posted_.pop(); }

 private:
  Fifo<MemoryReceive> posted_;
};

class MemoryQp final : public penstock::internal::FabricQp {
 public:
  MemoryQp(std::vector<MemoryQp*>& all, const penstock::internal::FabricQpOptions& options)
      : all_(all), options_(options), number_(static_cast<uint32_t>(all.size())) {
    all_.push_back(this);
  }
  ~MemoryQp() override { all_[number_] = nullptr; }

  uint32_t number() const override { return number_; }
  penstock::internal::FabricQpLimits limits() const override {
    return {options_.send_depth, options_.receive_depth, options_.inlined};
  }
  absl::Status ToInit(const penstock::internal::FabricInit&) override { return absl::OkStatus(); }
  absl::Status ToReadyToReceive(const penstock::internal::FabricPath& path) override {
    peer_ = path.peer_qp_number;
    return absl::OkStatus();
  }
  absl::Status ToReadyToSend(const penstock::internal::FabricTiming&) override {
    return absl::OkStatus();
  }
  absl::Status ToError() override {
    failed_ = true;
    return absl::OkStatus();
  }
  int PostSends(std::span<const FabricSend> sends, size_t* posted) override {
    for (const FabricSend& send : sends) Post(send);
    *posted = sends.size();
    return 0;
  }
  int PostReceive(const FabricReceive&) override { return -EINVAL; }

 private:
  void Post(const FabricSend& send) {
    FabricCompletion done;
    done.id = send.id;
    done.op = send.op;
    done.qp_number = number_;
    MemoryQp* const peer = failed_ ? nullptr : all_[peer_];
    done.outcome = peer != nullptr ? FabricOutcome::kOk : FabricOutcome::kFlushed;
    if (peer != nullptr) Carry(send, *peer);
    if (send.signalled || peer == nullptr) static_cast<MemoryCq*>(options_.send_cq)->Push(done);
  }
  static void Carry(const FabricSend& send, MemoryQp& peer) {
    auto* memory = reinterpret_cast<char*>(send.remote_address);
    MemoryReceive receive;
    if (send.op == FabricOp::kSend) {
      receive = static_cast<MemorySrq*>(peer.options_.srq)->Take();
      memory = static_cast<char*>(receive.part.data);
    }
    uint32_t bytes = 0;
    for (const FabricPart& part : send.parts) {
      char* const there = memory + bytes;
      const bool read = send.op == FabricOp::kRead;
      std::memcpy(read ? part.data : there, read ? there : part.data, part.size);
      bytes += part.size;
    }
    if (send.op != FabricOp::kSend) return;
    FabricCompletion come;
    come.id = receive.id;
    come.outcome = FabricOutcome::kOk;
    come.op = FabricOp::kReceive;
    come.bytes = bytes;
    come.qp_number = peer.number_;
    static_cast<MemoryCq*>(peer.options_.receive_cq)->Push(come);
  }

  std::vector<MemoryQp*>& all_;
  const penstock::internal::FabricQpOptions options_;
  const uint32_t number_;
  uint32_t peer_ = 0;
  bool failed_ = false;
};

class MemoryDevice final : public penstock::internal::FabricDevice {
 public:
  explicit MemoryDevice(std::vector<MemoryQp*>& all) : all_(all) {
    limits_ = {.queue_pairs = 1024,
               .queue_depth = 16384,
               .completion_depth = 1 << 20,
               .shared_receive_queues = 16,
               .shared_receive_depth = 65536,
               .parts = 16,
               .read_depth = 16,
               .memory_regions = 65536,
               .memory_region_size = uint64_t{1} << 40,
               .ports = 1};
  }
  ~MemoryDevice() override { ::close(event_fd_); }

  const std::string& name() const override { return name_; }
  const penstock::internal::FabricLimits& limits() const override { return limits_; }
  absl::StatusOr<penstock::internal::FabricPort> QueryPort(uint8_t) override {
    return penstock::internal::FabricPort{.active = true, .ethernet = true, .mtu = 1024, .gids = 1};
  }
  absl::StatusOr<penstock::internal::FabricGid> QueryGid(uint8_t, uint32_t) override {
    return penstock::internal::FabricGid{1};
  }
  absl::StatusOr<penstock::internal::FabricMemory> Register(void* data, size_t, uint8_t) override {
    return penstock::internal::FabricMemory{data, 1, 1};
  }
  absl::Status Deregister(const penstock::internal::FabricMemory&) override {
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<penstock::internal::FabricCq>> CreateCq(uint32_t,
                                                                         uint64_t) override {
    return std::make_unique<MemoryCq>();
  }
  absl::StatusOr<std::unique_ptr<penstock::internal::FabricSrq>> CreateSrq(uint32_t, uint32_t,
                                                                           uint64_t) override {
    return std::make_unique<MemorySrq>();
  }
  absl::StatusOr<std::unique_ptr<penstock::internal::FabricQp>> CreateQp(
      const penstock::internal::FabricQpOptions& options) override {
    return std::make_unique<MemoryQp>(all_, options);
  }
  int event_fd() const override { return event_fd_; }
  bool TakeEvent(penstock::internal::FabricEvent*) override { return false; }

 private:
  std::vector<MemoryQp*>& all_;
  const std::string name_ = "memory";
  const int event_fd_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  penstock::internal::FabricLimits limits_;
};

class MemoryFabric final : public penstock::internal::Fabric {
 public:
  absl::StatusOr<std::vector<std::string>> ListDevices() override {
    return std::vector<std::string>{"memory"};
  }
  absl::StatusOr<std::unique_ptr<penstock::internal::FabricDevice>> Open(
      std::string_view) override {
    return std::make_unique<MemoryDevice>(queue_pairs_);
  }

 private:
  std::vector<MemoryQp*> queue_pairs_ = std::vector<MemoryQp*>(1);  // by number; 0 is none
};

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_MICRO_MEMORY_FABRIC_H_
