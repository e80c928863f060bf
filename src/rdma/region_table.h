// RegionTable: the memory that one endpoint has exposed, and PeerRegions: what its peer has.
//
// Sans-I/O, single thread. RegionTable owns no memory, only who may reach it; nothing is reached
// but by Find, which checks the region, its epoch, the access and both bounds. A slot is used
// again, with a new epoch, when the peer has said that it has let go, so a late operation never
// meets another region than it was meant for.
#ifndef PENSTOCK_RDMA_REGION_TABLE_H_
#define PENSTOCK_RDMA_REGION_TABLE_H_

#include <penstock/export.h>
#include <penstock/rdma.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fifo.h"
#include "rdma/control_message.h"
#include "rdma/exposed_memory.h"
#include "rdma/lane.h"
#include "rdma/message_header.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

inline constexpr size_t kRegionsMax = 1024;

class RegionTable {
 public:
  // Whether Add would take it: InvalidArgument for no memory or no access, ResourceExhausted beyond
  // kRegionsMax.
  absl::Status Check(std::span<char> memory, RdmaAccess access) const;
  // What the peer is to be told of a new region. Errors: Check's. `exposed`: the same memory as a
  // device knows it, if one does; withdrawn as soon as nothing is to be reached.
  absl::StatusOr<ControlRegion> Add(std::span<char> memory, RdmaAccess access,
                                    ExposedMemory exposed = {});
  // The memory of an access, InvalidArgument when there is none such.
  absl::StatusOr<std::span<char>> Find(const AccessPrefix& access, uint64_t size,
                                       RdmaAccess wanted) const;
  // For a region that has gone already, the three that follow do nothing.
  //
  // The peer is to be asked to let go; `done` is taken, and kept until it has. FailedPrecondition,
  // `done` not taken, when it is being asked already.
  absl::StatusOr<ControlRevoke> Revoke(uint64_t id, uint32_t epoch, Stream::DoneCallback& done);
  // Nothing is reached from now on, though the peer may not know; what it is to be told, if it has
  // not been asked already.
  std::optional<ControlRevoke> Remove(uint64_t id, uint32_t epoch);
  // The peer has never been told of it. FailedPrecondition when it has gone already, or what the
  // device says, which then may still reach the memory.
  absl::Status Forget(uint64_t id, uint32_t epoch);
  // What Revoke was given, perhaps nothing, and what it is to be run with: OK, or what the device
  // says, which then may still reach the memory.
  struct Revoked {
    Stream::DoneCallback done;
    absl::Status status;
  };
  // The peer has let go. InvalidArgument when it was not asked.
  absl::StatusOr<Revoked> OnRevoked(uint64_t id, uint32_t epoch);
  // Nothing is reached any more by peers' loops, nor by devices but where `Kept` says so.
  Fifo<Revoked> Clear();
  // Of a region that Clear has found: what the device said to that.
  absl::Status Kept(uint64_t id, uint32_t epoch) const;
  // Every region that is there, for a peer that could not be told before.
  std::vector<ControlRegion> All() const;

 private:
  enum class Use : uint8_t { kFree, kExposed, kRevoking };
  struct Slot {
    std::span<char> memory;  // empty: removed
    RdmaAccess access = RdmaAccess::kRead;
    uint32_t epoch = 0;
    Use use = Use::kFree;
    ExposedMemory exposed;
    Stream::DoneCallback revoked;
    absl::Status kept;
  };
  static absl::Status Free(Slot& slot);
  // The number of the next region, not below kRegionsMax when there is no room for it.
  size_t FindFree() const;
  ControlRegion Describe(uint64_t id) const;
  bool Has(uint64_t id, uint32_t epoch) const;

  std::vector<Slot> slots_;
};

class PeerRegions {
 public:
  // InvalidArgument: it is there already, there are too many, or it makes no sense.
  absl::Status Add(const ControlRegion& region);
  // OK, or why an operation is refused here: see RdmaEndpoint::Write.
  absl::Status Check(const RdmaRemoteRegion& region, uint64_t offset, uint64_t size,
                     RdmaAccess wanted) const;
  // An operation on it is posted, or has ended. True when a revocation has waited for that end.
  void OnPosted(uint64_t id) { ++regions_[id].posted; }
  bool OnDone(uint64_t id);
  // The peer revokes it: nothing is posted to it from now on. True when nothing is out.
  // InvalidArgument when there is none such.
  absl::StatusOr<bool> Revoke(uint64_t id, uint32_t epoch);
  bool revoked(const RdmaRemoteRegion& region) const;
  // Where a device finds `offset` of a region that is there; address 0 when none does.
  LaneTarget TargetOf(const RdmaRemoteRegion& region, uint64_t offset) const;
  // The reply to a revocation; it is forgotten.
  ControlRevoke Forget(uint64_t id);
  // Perhaps there is a next one that nobody has been given.
  bool has_new() const { return !new_.empty(); }
  size_t kept_new() const { return new_.size(); }
  std::optional<RdmaRemoteRegion> TakeNew();

 private:
  struct Region {
    RdmaRemoteRegion value;
    LaneTarget target;
    uint32_t posted = 0;
    bool revoked = false;
  };
  const Region* Find(const RdmaRemoteRegion& region) const;

  std::map<uint64_t, Region> regions_;
  Fifo<RdmaRemoteRegion> new_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_REGION_TABLE_H_
