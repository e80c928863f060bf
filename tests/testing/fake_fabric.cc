#include "testing/fake_fabric.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/error.h"
#include "testing/fake_fabric_device.h"
#include "testing/fake_fabric_qp.h"

namespace penstock::testing {

using internal::FabricEvent;
using internal::FabricEventKind;
using internal::FabricGid;

FakeFabric::FakeFabric(FakeHost& host, uint64_t seed, FakeFabricOptions options)
    : host_(host), random_(seed), options_(options) {
  for (uint32_t index = 0; index < options_.devices; ++index) {
    auto nic = std::make_unique<Nic>();
    nic->name = absl::StrCat("fake", index);
    // 10.77.0.(index + 1), as RoCE maps it.
    nic->gid = {0, 0, 0,    0,    0,  0,  0, 0,
                0, 0, 0xff, 0xff, 10, 77, 0, static_cast<uint8_t>(index + 1)};
    nics_.push_back(std::move(nic));
  }
}

FakeFabric::~FakeFabric() = default;

FakeFabric::Nic* FakeFabric::FindNic(std::string_view name) {
  const auto found =
      std::find_if(nics_.begin(), nics_.end(), [&](const auto& nic) { return nic->name == name; });
  return found == nics_.end() ? nullptr : found->get();
}

const FakeFabric::Nic* FakeFabric::FindNic(std::string_view name) const {
  return const_cast<FakeFabric*>(this)->FindNic(name);
}

absl::StatusOr<std::vector<std::string>> FakeFabric::ListDevices() {
  if (const int error = Fault(FakeCall::kListDevices)) {
    return internal::ErrnoStatus(error, "list RDMA devices");
  }
  std::vector<std::string> names;
  for (const auto& nic : nics_) names.push_back(nic->name);
  return names;
}

absl::StatusOr<std::unique_ptr<internal::FabricDevice>> FakeFabric::Open(std::string_view name) {
  if (const int error = Fault(FakeCall::kOpen)) {
    return internal::ErrnoStatus(error,
                                 absl::StrCat("open RDMA device ", internal::AbslView(name)));
  }
  Nic* const nic = FindNic(name);
  if (nic == nullptr) {
    return absl::NotFoundError(
        absl::StrCat("open RDMA device ", internal::AbslView(name), ": no such device"));
  }
  return std::make_unique<FakeDevice>(*this, *nic);
}

void FakeFabric::FailNth(uint64_t nth, int error) { fail_any_ = {nth, error}; }

void FakeFabric::FailNth(FakeCall call, uint64_t nth, int error) {
  fail_[static_cast<size_t>(call)] = {nth, error};
}

int FakeFabric::Fault(FakeCall call) {
  ++stats_.calls;
  if (on_call_) on_call_(call);
  for (Failure* failure : {&fail_any_, &fail_[static_cast<size_t>(call)]}) {
    if (failure->nth != 0 && --failure->nth == 0) return failure->error;
  }
  return 0;
}

void FakeFabric::SetLink(std::string_view device, bool up) {
  Nic* const nic = FindNic(device);
  if (nic->up == up) return;
  nic->up = up;
  PushEvent(device, {.kind = up ? FabricEventKind::kPortActive : FabricEventKind::kPortError,
                     .owner = 0,
                     .port = 1});
}

void FakeFabric::SetGid(std::string_view device, FabricGid gid) {
  FindNic(device)->gid = gid;
  PushEvent(device, {.kind = FabricEventKind::kAddressChange, .owner = 0, .port = 1});
}

void FakeFabric::PushEvent(std::string_view device, FabricEvent event) {
  for (FakeDevice* open : FindNic(device)->devices) open->PushEvent(event);
}

FabricGid FakeFabric::gid(std::string_view device) const { return FindNic(device)->gid; }

void FakeFabric::Later(uint64_t serial, int64_t delay_ns, std::function<void(FakeQp&)> action) {
  host_.After(delay_ns,
              [this, serial, action = std::move(action), alive = std::weak_ptr<bool>(alive_)] {
                if (alive.expired()) return;
                if (FakeQp* const qp = FindQp(serial)) action(*qp);
              });
}

int64_t FakeFabric::Delay() {
  return static_cast<int64_t>(random_.Between(static_cast<uint64_t>(options_.latency_min_ns),
                                              static_cast<uint64_t>(options_.latency_max_ns)));
}

uint64_t FakeFabric::AddQp(Nic& nic, FakeQp& qp, uint32_t* number) {
  if (nic.free_numbers.empty()) {
    *number = nic.next_number++;
  } else {
    *number = nic.free_numbers.back();
    nic.free_numbers.pop_back();
  }
  nic.qps[*number] = &qp;
  qps_[next_serial_] = &qp;
  return next_serial_++;
}

void FakeFabric::RemoveQp(Nic& nic, uint64_t serial, uint32_t number) {
  nic.qps.erase(number);
  nic.free_numbers.push_back(number);
  qps_.erase(serial);
}

FakeQp* FakeFabric::FindQp(uint64_t serial) {
  const auto found = qps_.find(serial);
  return found == qps_.end() ? nullptr : found->second;
}

void FakeFabric::Transmit(Nic& from, FakePacket packet, int64_t* last_due_ns) {
  packet.from = from.gid;
  ++stats_.packets;
  if (!from.up || (drop_ && drop_(packet)) || random_.Chance(options_.loss)) {
    ++stats_.lost;
    return;
  }
  // Packets of one queue pair do not overtake one another.
  *last_due_ns = std::max(*last_due_ns, host_.now_ns() + Delay());
  host_.After(*last_due_ns - host_.now_ns(),
              [this, packet = std::move(packet), alive = std::weak_ptr<bool>(alive_)] {
                if (!alive.expired()) Deliver(packet);
              });
}

void FakeFabric::Deliver(const FakePacket& packet) {
  const auto nic = std::find_if(nics_.begin(), nics_.end(),
                                [&](const auto& each) { return each->gid == packet.to; });
  if (nic == nics_.end() || !(*nic)->up) {
    ++stats_.lost;
    return;
  }
  const auto qp = (*nic)->qps.find(packet.to_number);
  if (qp == (*nic)->qps.end()) {
    ++stats_.dropped_unknown;
    return;
  }
  qp->second->OnPacket(packet);
}

}  // namespace penstock::testing
