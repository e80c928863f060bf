#include "rdma/exposed_memory.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

absl::StatusOr<ExposedMemory> ExposedMemory::Create(FabricDevice& device, std::span<char> memory,
                                                    RdmaAccess access) {
  uint8_t flags = 0;
  if (access != RdmaAccess::kWrite) flags |= kFabricRemoteRead;
  if (access != RdmaAccess::kRead) flags |= kFabricLocalWrite | kFabricRemoteWrite;
  absl::StatusOr<FabricMemory> registered = device.Register(memory.data(), memory.size(), flags);
  if (!registered.ok()) return registered.status();
  ExposedMemory made;
  made.device_ = &device;
  made.memory_ = *registered;
  made.address_ = reinterpret_cast<uint64_t>(memory.data());
  return made;
}

ExposedMemory& ExposedMemory::operator=(ExposedMemory&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(memory_, other.memory_);
  std::swap(address_, other.address_);
  return *this;
}

absl::Status ExposedMemory::Withdraw() {
  if (device_ == nullptr) return absl::OkStatus();
  absl::Status status = device_->Deregister(memory_);
  if (status.ok()) device_ = nullptr;
  return status;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
