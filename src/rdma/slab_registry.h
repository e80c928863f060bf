// SlabRegistry: registers the slabs of one pool with one device, each once, as they are mapped, and
// finds the key of a buffer in them. So no buffer of the pool is ever registered by itself.
//
// Thread-safe: the pool tells of slabs on any thread, under its lock. A slab that the device
// refuses (memory that may be locked has run out) is counted and has no key; bytes in it must be
// copied. The pool and the device must outlive it, and what was posted from its slabs must have
// ended before it goes.
#ifndef PENSTOCK_RDMA_SLAB_REGISTRY_H_
#define PENSTOCK_RDMA_SLAB_REGISTRY_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "buffer/slab_pinner.h"
#include "rdma/fabric.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class SlabRegistry final : private SlabPinner {
 public:
  struct Figures {
    uint64_t slabs = 0;  // registered now
    uint64_t bytes = 0;  // of these
    uint64_t refused = 0;
    uint64_t leaked = 0;  // the device would not let go of them
  };

  // `access`: of FabricAccess.
  SlabRegistry(BufferPool& pool, FabricDevice& device, uint8_t access);
  ~SlabRegistry() override;
  SlabRegistry(const SlabRegistry&) = delete;
  SlabRegistry& operator=(const SlabRegistry&) = delete;

  // The registration that holds all of [data, data + size). It stays as long as a buffer there
  // does.
  std::optional<FabricMemory> Find(const void* data, size_t size) const;
  Figures figures() const;
  // Why the device refused last; OK when it has not.
  absl::Status refusal() const;

 private:
  struct Entry {
    size_t size;
    FabricMemory memory;
  };

  void OnSlabBorn(void* base, size_t size) override;
  void OnSlabDied(void* base, size_t size) override;
  void Drop(const Entry& entry);  // with mutex_ held

  BufferPool& pool_;
  FabricDevice& device_;
  const uint8_t access_;
  mutable std::mutex mutex_;
  std::map<uintptr_t, Entry> slabs_;  // by base
  Figures figures_;
  absl::Status refusal_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_SLAB_REGISTRY_H_
