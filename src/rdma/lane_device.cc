#include "rdma/lane_device.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "rdma/lane_window.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Work requests of all lanes that the device may have at once, besides receives.
constexpr uint32_t kLaneSendsMax = 16 * 1024;
constexpr uint32_t kDepthMin = 2;
constexpr uint32_t kReceiveSizeMin = 512;
constexpr uint32_t kReceiveSizeMax = 64 * 1024;
// Eight times as much is told, in milliseconds of 32 bits.
constexpr absl::Duration kRetryAfterMax = absl::Hours(1);

}  // namespace

LaneDevice::LoopEnd::LoopEnd(LaneDevice& owner)
    : Deferred([](Deferred* node) { static_cast<LoopEnd*>(node)->device.OnLoopEnd(); }),
      device(owner) {}

absl::StatusOr<std::shared_ptr<RdmaDevice>> LaneDevice::Open(LoopCore& loop, Fabric& fabric,
                                                             const RdmaDeviceOptions& options) {
  if (options.receive_size < kReceiveSizeMin || options.receive_size > kReceiveSizeMax ||
      options.endpoint_receives < kDepthMin ||
      uint64_t{options.endpoint_receives} + LaneWindow::kSpare > options.receives) {
    return absl::InvalidArgumentError(
        absl::StrCat("open RDMA device: receives ", options.receives, " of ", options.receive_size,
                     " bytes, endpoint_receives ", options.endpoint_receives,
                     ": an endpoint needs 2 and 8 more, of 512 bytes to 64 KiB"));
  }
  if (options.openings_max == 0 || options.retry_after < absl::ZeroDuration() ||
      options.retry_after > kRetryAfterMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("open RDMA device: openings_max ", options.openings_max, ", retry_after ",
                     absl::FormatDuration(options.retry_after), ": must be 1 at least, and 0 to ",
                     absl::FormatDuration(kRetryAfterMax)));
  }
  std::string name = options.name;
  if (name.empty()) {
    const absl::StatusOr<std::vector<std::string>> names = fabric.ListDevices();
    if (!names.ok()) return names.status();
    if (names->empty()) return absl::NotFoundError("open RDMA device: this machine has none");
    name = names->front();
  }
  absl::StatusOr<std::unique_ptr<FabricDevice>> opened = fabric.Open(name);
  if (!opened.ok()) return opened.status();
  std::shared_ptr<LaneDevice> device(new LaneDevice(loop, *std::move(opened), options));
  if (absl::Status status = device->Start(); !status.ok()) return status;
  return device;
}

absl::Status LaneDevice::CheckLimits() const {
  const FabricLimits& limits = device_->limits();
  const uint64_t bytes = uint64_t{options_.receives} * options_.receive_size;
  const auto exceeds = [this](uint64_t wanted, std::string_view what, uint64_t most) {
    return absl::ResourceExhaustedError(absl::StrCat("open RDMA device ", device_->name(), ": ",
                                                     wanted, " ", AbslView(what),
                                                     ", the device has ", most));
  };
  if (limits.shared_receive_queues == 0) return exceeds(1, "shared receive queue", 0);
  if (options_.receives > limits.shared_receive_depth) {
    return exceeds(options_.receives, "receives in a shared queue", limits.shared_receive_depth);
  }
  if (options_.receives >= limits.completion_depth) {
    return exceeds(uint64_t{options_.receives} + 1, "completions in a queue",
                   limits.completion_depth);
  }
  if (limits.read_depth == 0) return exceeds(1, "reads of a queue pair at once", 0);
  constexpr uint32_t kParts = FabricQpOptions().send_parts;
  if (limits.parts < kParts) return exceeds(kParts, "parts of a work request", limits.parts);
  if (bytes > limits.memory_region_size) {
    return exceeds(bytes, "bytes of receives in a memory region", limits.memory_region_size);
  }
  return absl::OkStatus();
}

absl::Status LaneDevice::Start() {
  if (absl::Status status = CheckLimits(); !status.ok()) return status;
  LaneHub::Options options;
  options.port = options_.port;
  options.gid_index = options_.gid_index;
  options.receives = options_.receives;
  options.receive_size = options_.receive_size;
  options.spin_max = options_.spin_max;
  // What is posted beyond this waits for its turn.
  options.completion_depth =
      std::min(device_->limits().completion_depth, options_.receives + kLaneSendsMax);
  auto hub = LaneHub::Create(loop_, *device_, options);
  if (!hub.ok()) return hub.status();
  hub_ = *std::move(hub);
  loop_.AtEnd(loop_end_);
  return absl::OkStatus();
}

LaneDevice::~LaneDevice() = default;

RdmaDeviceStats LaneDevice::stats() const {
  const AdmissionStats openings = admission_.stats();
  RdmaDeviceStats stats;
  stats.openings = static_cast<uint32_t>(openings.running);
  stats.openings_waiting = static_cast<uint32_t>(openings.waiting);
  stats.openings_admitted = openings.admitted;
  stats.openings_refused = openings.refused;
  if (hub_ == nullptr) return stats;
  stats.spins = hub_->pump().stats().spins;
  stats.spin_budget = hub_->pump().stats().spin_budget;
  stats.lost = std::string(hub_->lost().message());
  return stats;
}

absl::StatusOr<LaneHub*> LaneDevice::HubFor(const LoopCore& loop) const {
  if (hub_ == nullptr || &loop != &loop_) {
    return absl::FailedPreconditionError(
        absl::StrCat("RDMA device ", device_->name(), ": open on another loop"));
  }
  return hub_.get();
}

// Endpoints give their lanes up when the loop goes; the hub waits for the last.
void LaneDevice::OnLoopEnd() {
  if (hub_->lanes() > 0) return loop_.AtEnd(loop_end_);
  hub_.reset();
}

}  // namespace internal

absl::StatusOr<std::shared_ptr<RdmaDevice>> RdmaDevice::Open(Loop& loop,
                                                             const RdmaDeviceOptions& options) {
  return internal::LaneDevice::Open(loop.core(), internal::SystemFabric(), options);
}

PENSTOCK_END_NAMESPACE
