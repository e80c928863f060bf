#include "rdma/slab_registry.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

SlabRegistry::SlabRegistry(BufferPool& pool, FabricDevice& device, uint8_t access)
    : pool_(pool), device_(device), access_(access) {
  pool_.AddSlabObserver(this);
}

SlabRegistry::~SlabRegistry() {
  pool_.RemoveSlabObserver(this);
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [base, entry] : slabs_) Drop(entry);
}

std::optional<FabricMemory> SlabRegistry::Find(const void* data, size_t size) const {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const std::lock_guard<std::mutex> lock(mutex_);
  auto after = slabs_.upper_bound(address);
  if (after == slabs_.begin()) return std::nullopt;
  const auto& [base, entry] = *--after;
  if (size > entry.size || address - base > entry.size - size) return std::nullopt;
  return entry.memory;
}

SlabRegistry::Figures SlabRegistry::figures() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return figures_;
}

absl::Status SlabRegistry::refusal() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return refusal_;
}

void SlabRegistry::OnSlabBorn(void* base, size_t size) {
  absl::StatusOr<FabricMemory> memory = device_.Register(base, size, access_);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!memory.ok()) {
    ++figures_.refused;
    refusal_ = memory.status();
    return;
  }
  slabs_[reinterpret_cast<uintptr_t>(base)] = {size, *memory};
  ++figures_.slabs;
  figures_.bytes += size;
}

void SlabRegistry::OnSlabDied(void* base, size_t) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = slabs_.find(reinterpret_cast<uintptr_t>(base));
  if (found == slabs_.end()) return;
  Drop(found->second);
  slabs_.erase(found);
}

// A region that stays registered keeps its pages, which then belong to nobody: memory is lost, but
// nothing is written where others are.
void SlabRegistry::Drop(const Entry& entry) {
  if (!device_.Deregister(entry.memory).ok()) ++figures_.leaked;
  --figures_.slabs;
  figures_.bytes -= entry.size;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
