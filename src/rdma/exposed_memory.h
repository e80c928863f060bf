// ExposedMemory: a user's memory as one device knows it, for peers to read or write by a key.
//
// Owns the registration, not the memory, which must stay until it has gone. Peers of every queue
// pair of the device may use the key, if they know it. Any thread; the device outlives it.
#ifndef PENSTOCK_RDMA_EXPOSED_MEMORY_H_
#define PENSTOCK_RDMA_EXPOSED_MEMORY_H_

#include <penstock/export.h>
#include <penstock/rdma.h>

#include <cstdint>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rdma/fabric.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class ExposedMemory {
 public:
  // None.
  ExposedMemory() = default;
  // Errors: what the device says.
  static absl::StatusOr<ExposedMemory> Create(FabricDevice& device, std::span<char> memory,
                                              RdmaAccess access);
  ~ExposedMemory() { Withdraw().IgnoreError(); }
  ExposedMemory(ExposedMemory&& other) noexcept
      : device_(std::exchange(other.device_, nullptr)),
        memory_(other.memory_),
        address_(other.address_) {}
  ExposedMemory& operator=(ExposedMemory&& other) noexcept;

  // For the peer's REGION message; 0 without memory.
  uint64_t address() const { return device_ == nullptr ? 0 : address_; }
  uint32_t key() const { return device_ == nullptr ? 0 : memory_.remote_key; }

  // No peer reaches the memory once this has returned OK; one that tries loses its lane. On an
  // error the device may still reach it: it must not be unmapped. May be tried again, as the end of
  // this does.
  absl::Status Withdraw();

 private:
  FabricDevice* device_ = nullptr;  // null: nothing is exposed
  FabricMemory memory_;
  uint64_t address_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_EXPOSED_MEMORY_H_
