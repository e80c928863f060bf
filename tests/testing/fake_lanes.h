// FakeLanes: simulated RDMA devices for endpoints on a harness's loop, real or simulated.
//
// Owns the fabric and one device, open for endpoints of both sides. Made before endpoints, and
// gone, or stopped, before the loop. One thread.
#ifndef PENSTOCK_TESTS_TESTING_FAKE_LANES_H_
#define PENSTOCK_TESTS_TESTING_FAKE_LANES_H_

#include <penstock/export.h>
#include <penstock/rdma.h>

#include <memory>
#include <string>

#include <gtest/gtest.h>

#include "rdma/lane_device.h"
#include "testing/environment.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_host.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class FakeLanes {
 public:
  FakeLanes(Environment& environment, Loop& loop, const RdmaDeviceOptions& options = {},
            const testing::FakeFabricOptions& fabric = {})
      : loop_(loop),
        host_(HostOf(environment, loop)),
        fabric_(std::make_unique<testing::FakeFabric>(*host_, 7, fabric)),
        device_(NewDevice(options)) {}
  ~FakeLanes() {
    device_.reset();
    EXPECT_EQ(fabric_->objects(), 0u);
    EXPECT_EQ(fabric_->receive_bytes_posted(), 0u);
    for (const std::string& what : fabric_->violations()) ADD_FAILURE() << what;
  }

  // The loop is going.
  void Stop() {
    if (auto* const host = dynamic_cast<testing::LoopHost*>(host_.get())) host->Stop();
  }
  testing::FakeFabric& fabric() { return *fabric_; }
  const std::shared_ptr<RdmaDevice>& device() { return device_; }
  std::shared_ptr<RdmaDevice> NewDevice(const RdmaDeviceOptions& options) {
    auto device = LaneDevice::Open(loop_.core(), *fabric_, options);
    EXPECT_TRUE(device.ok()) << device.status();
    return device.ok() ? *std::move(device) : nullptr;
  }

 private:
  static std::unique_ptr<testing::FakeHost> HostOf(Environment& environment, Loop& loop) {
    if (testing::SimWorld* const world = environment.world()) {
      return std::make_unique<testing::SimHost>(*world);
    }
    return std::make_unique<testing::LoopHost>(loop);
  }

  Loop& loop_;
  std::unique_ptr<testing::FakeHost> host_;
  std::unique_ptr<testing::FakeFabric> fabric_;
  std::shared_ptr<RdmaDevice> device_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_FAKE_LANES_H_
