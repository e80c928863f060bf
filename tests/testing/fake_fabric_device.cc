#include "testing/fake_fabric_device.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/error.h"
#include "testing/fake_fabric_qp.h"

namespace penstock::testing {

using internal::FabricCompletion;
using internal::FabricEvent;
using internal::FabricEventKind;
using internal::FabricGid;
using internal::FabricMemory;
using internal::FabricPart;
using internal::FabricPort;

uint64_t FakeReceive::bytes() const {
  uint64_t sum = 0;
  for (const FabricPart& part : parts) sum += part.size;
  return sum;
}

bool FakeUses(const std::vector<FabricPart>& parts, uint32_t key) {
  return std::any_of(parts.begin(), parts.end(),
                     [key](const FabricPart& part) { return part.local_key == key; });
}

// --- FakeCq ---

FakeCq::FakeCq(FakeDevice& device, uint32_t depth, uint64_t owner)
    : device_(device), depth_(depth), owner_(owner), fd_(device.fabric().host().OpenFd()) {
  device_.CountObjects(1);
}

FakeCq::~FakeCq() {
  FakeFabric& fabric = device_.fabric();
  if (!users_.empty()) fabric.Violate("a completion queue was destroyed before its queue pairs");
  if (unacked_ != 0) {
    fabric.Violate(absl::StrCat("a completion queue was destroyed with ", unacked_,
                                " events not acknowledged: verbs wait for ever"));
  }
  fabric.host().CloseFd(fd_);
  device_.CountObjects(-1);
}

int FakeCq::Arm() {
  if (const int error = device_.fabric().Fault(FakeCall::kArm)) return -error;
  armed_ = true;
  return 0;
}

int FakeCq::TakeEvents(uint32_t max) {
  if (const int error = device_.fabric().Fault(FakeCall::kTakeEvents)) return -error;
  const uint32_t taken = std::min(max, events_);
  events_ -= taken;
  if (events_ == 0) device_.fabric().host().ClearFd(fd_);
  unacked_ += taken;
  return static_cast<int>(taken);
}

void FakeCq::AckEvents(uint32_t count) {
  if (count > unacked_) device_.fabric().Violate("more events were acknowledged than taken");
  unacked_ -= std::min(count, unacked_);
}

int FakeCq::Poll(std::span<FabricCompletion> out) {
  if (const int error = device_.fabric().Fault(FakeCall::kPoll)) return -error;
  if (lost_) return -EIO;
  size_t count = 0;
  for (; count < out.size() && !entries_.empty(); ++count) {
    const Entry entry = entries_.front();
    entries_.pop_front();
    out[count] = entry.completion;
    if (FakeQp* const qp = device_.fabric().FindQp(entry.serial)) {
      qp->GiveRoom(entry.sends, entry.receives);
    }
  }
  return static_cast<int>(count);
}

void FakeCq::RemoveUser(uint64_t serial) {
  users_.erase(serial);
  if (!device_.fabric().options().takes_back) return;
  std::erase_if(entries_, [serial](const Entry& entry) { return entry.serial == serial; });
}

void FakeCq::Push(FabricCompletion completion, uint64_t serial, uint32_t sends, uint32_t receives) {
  if (lost_) return;
  if (entries_.size() == depth_) return Overflow();
  entries_.push_back({completion, serial, sends, receives});
  if (!std::exchange(armed_, false)) return;
  ++events_;
  device_.fabric().host().RaiseFd(fd_);
}

void FakeCq::Overflow() {
  lost_ = true;
  device_.PushEvent({.kind = FabricEventKind::kCqError, .owner = owner_, .port = 0});
  for (const uint64_t serial : std::set<uint64_t>(users_.begin(), users_.end())) {
    if (FakeQp* const qp = device_.fabric().FindQp(serial)) qp->Lose();
  }
}

// --- FakeSrq ---

FakeSrq::FakeSrq(FakeDevice& device, uint32_t depth, uint32_t parts, uint64_t owner)
    : device_(device), depth_(depth), parts_(parts), owner_(owner) {
  device_.CountObjects(1);
  device_.AddSrq(this);
}

FakeSrq::~FakeSrq() {
  if (users_ != 0) {
    device_.fabric().Violate("a shared receive queue was destroyed before its queue pairs");
  }
  for (const FakeReceive& receive : receives_) {
    device_.fabric().CountReceiveBytes(-static_cast<int64_t>(receive.bytes()));
  }
  device_.RemoveSrq(this);
  device_.CountObjects(-1);
}

int FakeSrq::PostReceive(const internal::FabricReceive& receive) {
  if (const int error = device_.fabric().Fault(FakeCall::kPostShared)) return -error;
  if (receive.parts.size() > parts_) return -EINVAL;
  if (receives_.size() == depth_) return -ENOMEM;
  receives_.push_back({receive.id, {receive.parts.begin(), receive.parts.end()}});
  device_.fabric().CountReceiveBytes(static_cast<int64_t>(receives_.back().bytes()));
  ++device_.fabric().counts().receives_posted;
  return 0;
}

int FakeSrq::ArmLimit(uint32_t limit) {
  if (const int error = device_.fabric().Fault(FakeCall::kArmLimit)) return -error;
  if (limit > depth_) return -EINVAL;
  limit_ = limit;
  return 0;
}

bool FakeSrq::Take(FakeReceive* receive) {
  if (receives_.empty()) return false;
  *receive = std::move(receives_.front());
  receives_.pop_front();
  device_.fabric().CountReceiveBytes(-static_cast<int64_t>(receive->bytes()));
  if (receives_.size() < limit_) {
    limit_ = 0;
    device_.PushEvent({.kind = FabricEventKind::kSrqLimit, .owner = owner_, .port = 0});
  }
  return true;
}

bool FakeSrq::Uses(uint32_t key) const {
  return std::any_of(receives_.begin(), receives_.end(),
                     [key](const FakeReceive& receive) { return FakeUses(receive.parts, key); });
}

// --- FakeDevice ---

FakeDevice::FakeDevice(FakeFabric& fabric, FakeFabric::Nic& nic)
    : fabric_(fabric), nic_(nic), fd_(fabric.host().OpenFd()) {
  nic_.devices.push_back(this);
  fabric_.CountObjects(1);
}

FakeDevice::~FakeDevice() {
  if (objects_ != 0) {
    fabric_.Violate(absl::StrCat("device ", name(), " was closed with ", objects_, " objects"));
  }
  std::erase(nic_.devices, this);
  fabric_.host().CloseFd(fd_);
  fabric_.CountObjects(-1);
}

void FakeDevice::CountObjects(int change) {
  objects_ += change;
  fabric_.CountObjects(change);
}

absl::Status FakeDevice::Failure(std::string_view operation, int error) const {
  return internal::ErrnoStatus(error,
                               absl::StrCat(internal::AbslView(operation), " on ", nic_.name));
}

absl::StatusOr<FabricPort> FakeDevice::QueryPort(uint8_t port) {
  int error = fabric_.Fault(FakeCall::kQueryPort);
  if (error == 0 && (port == 0 || port > limits().ports)) error = EINVAL;
  if (error != 0) return Failure("query port", error);
  FabricPort out;
  out.active = nic_.up;
  out.ethernet = fabric_.options().ethernet;
  out.lid = out.ethernet ? 0 : static_cast<uint16_t>(nic_.gid[15]);
  out.mtu = fabric_.options().mtu;
  out.gids = 2;
  return out;
}

absl::StatusOr<FabricGid> FakeDevice::QueryGid(uint8_t port, uint32_t index) {
  if (const int error = fabric_.Fault(FakeCall::kQueryGid)) return Failure("query GID", error);
  if (port == 0 || port > limits().ports || index > 1) {
    return absl::NotFoundError(absl::StrCat("query GID ", index, " on ", nic_.name, ": none"));
  }
  return nic_.gid;
}

absl::StatusOr<FabricMemory> FakeDevice::Register(void* data, size_t size, uint8_t access) {
  int error = fabric_.Fault(FakeCall::kRegister);
  const bool writable = access & internal::kFabricLocalWrite;
  if (error == 0 && (access & internal::kFabricRemoteWrite) && !writable) error = EINVAL;
  if (error == 0 && size > limits().memory_region_size) error = EINVAL;
  if (error == 0 && memory_.size() >= limits().memory_regions) error = ENOMEM;
  if (error != 0) return Failure("register memory", error);
  const uint32_t key = fabric_.NewKey();
  memory_[key] = {reinterpret_cast<uint64_t>(data), size, access};
  CountObjects(1);
  return FabricMemory{data, key, key};
}

absl::Status FakeDevice::Deregister(const FabricMemory& memory) {
  int error = fabric_.Fault(FakeCall::kDeregister);
  if (error == 0 && memory_.count(memory.local_key) == 0) error = EINVAL;
  if (error != 0) return Failure("deregister memory", error);
  bool used = std::any_of(srqs_.begin(), srqs_.end(),
                          [&](FakeSrq* srq) { return srq->Uses(memory.local_key); });
  for (const auto& [number, qp] : nic_.qps) {
    used = used || (&qp->device() == this && qp->Uses(memory.local_key));
  }
  if (used) fabric_.Violate("memory was deregistered while posted");
  memory_.erase(memory.local_key);
  CountObjects(-1);
  return absl::OkStatus();
}

bool FakeDevice::Allows(uint32_t key, uint64_t address, uint64_t size, uint8_t access) const {
  const auto found = memory_.find(key);
  if (found == memory_.end()) return false;
  const Memory& memory = found->second;
  return (memory.access & access) == access && address >= memory.address && size <= memory.size &&
         address - memory.address <= memory.size - size;
}

absl::StatusOr<std::unique_ptr<internal::FabricCq>> FakeDevice::CreateCq(uint32_t depth,
                                                                         uint64_t owner) {
  int error = fabric_.Fault(FakeCall::kCreateCq);
  if (error == 0 && (depth == 0 || depth > limits().completion_depth)) error = EINVAL;
  if (error != 0) return Failure("create completion queue", error);
  return std::make_unique<FakeCq>(*this, depth, owner);
}

absl::StatusOr<std::unique_ptr<internal::FabricSrq>> FakeDevice::CreateSrq(uint32_t depth,
                                                                           uint32_t parts,
                                                                           uint64_t owner) {
  int error = fabric_.Fault(FakeCall::kCreateSrq);
  if (error == 0 && limits().shared_receive_queues == 0) error = EOPNOTSUPP;
  if (error == 0 && srqs_.size() >= limits().shared_receive_queues) error = ENOMEM;
  if (error == 0 && (depth == 0 || depth > limits().shared_receive_depth)) error = EINVAL;
  if (error == 0 && parts > limits().parts) error = EINVAL;
  if (error != 0) return Failure("create shared receive queue", error);
  return std::make_unique<FakeSrq>(*this, depth, parts, owner);
}

absl::StatusOr<std::unique_ptr<internal::FabricQp>> FakeDevice::CreateQp(
    const internal::FabricQpOptions& options) {
  int error = fabric_.Fault(FakeCall::kCreateQp);
  if (error == 0 && nic_.qps.size() >= limits().queue_pairs) error = ENOMEM;
  if (error == 0 && (options.send_cq == nullptr || options.receive_cq == nullptr)) error = EINVAL;
  const uint32_t receives = options.srq == nullptr ? options.receive_depth : 0;
  if (error == 0 && std::max(options.send_depth, receives) > limits().queue_depth) error = EINVAL;
  if (error == 0 && std::max(options.send_parts, options.receive_parts) > limits().parts) {
    error = EINVAL;
  }
  if (error != 0) return Failure("create queue pair", error);
  return std::make_unique<FakeQp>(*this, options);
}

void FakeDevice::PushEvent(FabricEvent event) {
  events_.push_back(event);
  fabric_.host().RaiseFd(fd_);
}

bool FakeDevice::TakeEvent(FabricEvent* event) {
  if (events_.empty()) {
    fabric_.host().ClearFd(fd_);
    return false;
  }
  *event = events_.front();
  events_.pop_front();
  return true;
}

}  // namespace penstock::testing
