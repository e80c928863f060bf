#include "common/rdma_device.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/program.h"

ABSL_FLAG(std::string, device, "auto", "RDMA device: a name, auto for the first, or none");
ABSL_FLAG(int32_t, gid_index, 0, "of the address of the device's port");
ABSL_FLAG(int32_t, lanes, 1, "queue pairs for each endpoint, 1 to 8; the peer may have fewer");
ABSL_FLAG(int32_t, spin, 0, "microseconds to look for more instead of sleeping, at most");

namespace examples {
namespace {

// Null: none, which has been said.
std::shared_ptr<penstock::RdmaDevice> OpenDevice(penstock::Loop& loop) {
  RangeOrFail("gid-index", absl::GetFlag(FLAGS_gid_index), 0, UINT8_MAX);
  RangeOrFail("spin", absl::GetFlag(FLAGS_spin), 0, 1'000'000);
  const std::string name = absl::GetFlag(FLAGS_device);
  if (name == "none") {
    Complain("--device=none: the stream carries the data");
    return nullptr;
  }
  penstock::RdmaDeviceOptions options;
  if (name != "auto") options.name = name;
  options.gid_index = static_cast<uint8_t>(absl::GetFlag(FLAGS_gid_index));
  options.spin_max = absl::Microseconds(absl::GetFlag(FLAGS_spin));
  auto device = penstock::RdmaDevice::Open(loop, options);
  if (device.ok()) return *std::move(device);
  Complain(absl::StrCat("no RDMA device is used, the stream carries the data: ",
                        std::string(device.status().message())));
  return nullptr;
}

}  // namespace

void OpenDeviceOfFlags(penstock::Loop& loop) { static_cast<void>(WithDevice(loop)); }

penstock::RdmaOptions WithDevice(penstock::Loop& loop, penstock::RdmaOptions options) {
  struct Opened {
    penstock::Loop* loop = nullptr;
    std::shared_ptr<penstock::RdmaDevice> device;
  };
  thread_local Opened opened;
  RangeOrFail("lanes", absl::GetFlag(FLAGS_lanes), 1, 8);
  if (opened.loop != &loop) opened = {&loop, OpenDevice(loop)};
  options.device = opened.device;
  options.lanes = static_cast<uint32_t>(absl::GetFlag(FLAGS_lanes));
  // The peer is a program that a machine may give no turn for a while.
  options.open_deadline = options.ready_deadline = absl::Seconds(30);
  options.ping_interval = absl::Seconds(15);
  return options;
}

void TellCarrier(const penstock::RdmaStats& stats) {
  if (!stats.fallback.empty()) {
    Complain(absl::StrCat("the stream carries the data: ", stats.fallback));
  }
}

}  // namespace examples
