// LaneDevice: an open device as the endpoints of one loop use it: what RdmaDevice stands for.
//
// Owns the fabric's device and the hub of its lanes. Shared by the program and by endpoints. Loop's
// thread. When the loop goes, the hub goes with it, after the last lane.
#ifndef PENSTOCK_RDMA_LANE_DEVICE_H_
#define PENSTOCK_RDMA_LANE_DEVICE_H_

#include <penstock/export.h>
#include <penstock/rdma.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/deferred.h"
#include "engine/loop_core.h"
#include "rdma/admission.h"
#include "rdma/fabric.h"
#include "rdma/lane_hub.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class LaneDevice final : public RdmaDevice {
 public:
  // `fabric` is not needed afterwards.
  static absl::StatusOr<std::shared_ptr<RdmaDevice>> Open(LoopCore& loop, Fabric& fabric,
                                                          const RdmaDeviceOptions& options);
  ~LaneDevice() override;

  const std::string& name() const override { return device_->name(); }
  RdmaDeviceStats stats() const override;
  const RdmaDeviceOptions& options() const { return options_; }
  // READs that a peer may have outstanding. While the loop is there.
  uint32_t read_depth() const { return hub_->read_depth(); }
  // Of endpoints that open on the passive side.
  Admission& admission() { return admission_; }
  // For lanes of endpoints on `loop`. The error says why there can be none.
  absl::StatusOr<LaneHub*> HubFor(const LoopCore& loop) const;

 private:
  struct LoopEnd : Deferred {
    explicit LoopEnd(LaneDevice& owner);
    LaneDevice& device;
  };

  LaneDevice(LoopCore& loop, std::unique_ptr<FabricDevice> device, const RdmaDeviceOptions& options)
      : loop_(loop),
        device_(std::move(device)),
        options_(options),
        admission_({.concurrent = options.openings_max,
                    .waiting = options.openings_waiting_max,
                    .retry_after = options.retry_after}) {}
  // ResourceExhausted names the limit of the device that the options exceed.
  absl::Status CheckLimits() const;
  absl::Status Start();
  void OnLoopEnd();

  LoopCore& loop_;
  const std::unique_ptr<FabricDevice> device_;
  const RdmaDeviceOptions options_;
  Admission admission_;
  std::unique_ptr<LaneHub> hub_;
  LoopEnd loop_end_{*this};
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_LANE_DEVICE_H_
