#include "rdma/region_table.h"

#include <utility>

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

bool Allows(RdmaAccess access, RdmaAccess wanted) {
  return (static_cast<uint8_t>(access) & static_cast<uint8_t>(wanted)) ==
         static_cast<uint8_t>(wanted);
}

bool Within(uint64_t offset, uint64_t size, uint64_t whole) {
  return offset <= whole && size <= whole - offset;
}

}  // namespace

size_t RegionTable::FindFree() const {
  size_t id = 0;
  while (id < slots_.size() && slots_[id].use != Use::kFree) ++id;
  return id;
}

absl::Status RegionTable::Check(std::span<char> memory, RdmaAccess access) const {
  if (memory.empty()) return absl::InvalidArgumentError("expose: empty memory");
  if (access < RdmaAccess::kRead || access > RdmaAccess::kReadWrite) {
    return absl::InvalidArgumentError(
        absl::StrCat("expose: access ", static_cast<int>(access), " is none"));
  }
  if (FindFree() < kRegionsMax) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("expose: ", kRegionsMax, " regions are exposed already"));
}

absl::StatusOr<ControlRegion> RegionTable::Add(std::span<char> memory, RdmaAccess access,
                                               ExposedMemory exposed) {
  if (absl::Status status = Check(memory, access); !status.ok()) return status;
  const size_t id = FindFree();
  if (id == slots_.size()) slots_.emplace_back();
  Slot& slot = slots_[id];
  slot.memory = memory;
  slot.access = access;
  slot.exposed = std::move(exposed);
  slot.use = Use::kExposed;
  slot.kept = absl::OkStatus();
  ++slot.epoch;
  return Describe(id);
}

ControlRegion RegionTable::Describe(uint64_t id) const {
  const Slot& slot = slots_[id];
  // Address and key are the device's; without one memory is found by region and offset.
  return {.region = id,
          .epoch = slot.epoch,
          .address = slot.exposed.address(),
          .length = slot.memory.size(),
          .rkey = slot.exposed.key(),
          .access = static_cast<uint32_t>(slot.access)};
}

absl::StatusOr<std::span<char>> RegionTable::Find(const AccessPrefix& access, uint64_t size,
                                                  RdmaAccess wanted) const {
  if (access.region >= slots_.size() || slots_[access.region].memory.empty() ||
      slots_[access.region].epoch != access.epoch) {
    return absl::InvalidArgumentError(absl::StrCat("access to region ", access.region, " of epoch ",
                                                   access.epoch, ", which is not there"));
  }
  const Slot& slot = slots_[access.region];
  if (!Allows(slot.access, wanted)) {
    return absl::InvalidArgumentError(
        absl::StrCat("access to region ", access.region, " that it does not allow"));
  }
  if (!Within(access.offset, size, slot.memory.size())) {
    return absl::InvalidArgumentError(absl::StrCat("access to ", size, " bytes at ", access.offset,
                                                   " of region ", access.region, ", which has ",
                                                   slot.memory.size()));
  }
  return slot.memory.subspan(access.offset, size);
}

absl::StatusOr<ControlRevoke> RegionTable::Revoke(uint64_t id, uint32_t epoch,
                                                  Stream::DoneCallback& done) {
  if (!Has(id, epoch) || slots_[id].use != Use::kExposed) {
    return absl::FailedPreconditionError("the region has been revoked already");
  }
  Slot& slot = slots_[id];
  slot.use = Use::kRevoking;
  slot.revoked = std::exchange(done, nullptr);
  return ControlRevoke{.region = id, .epoch = slot.epoch};
}

std::optional<ControlRevoke> RegionTable::Remove(uint64_t id, uint32_t epoch) {
  if (!Has(id, epoch)) return std::nullopt;
  Slot& slot = slots_[id];
  slot.memory = {};
  slot.exposed = {};
  if (slot.use != Use::kExposed) return std::nullopt;
  slot.use = Use::kRevoking;
  return ControlRevoke{.region = id, .epoch = slot.epoch};
}

bool RegionTable::Has(uint64_t id, uint32_t epoch) const {
  return id < slots_.size() && slots_[id].use != Use::kFree && slots_[id].epoch == epoch;
}

absl::Status RegionTable::Free(Slot& slot) {
  slot.use = Use::kFree;
  slot.memory = {};
  slot.kept = slot.exposed.Withdraw();
  return slot.kept;
}

absl::Status RegionTable::Forget(uint64_t id, uint32_t epoch) {
  if (Has(id, epoch)) return Free(slots_[id]);
  return absl::FailedPreconditionError("the region has been revoked already");
}

absl::StatusOr<RegionTable::Revoked> RegionTable::OnRevoked(uint64_t id, uint32_t epoch) {
  if (id >= slots_.size() || slots_[id].use != Use::kRevoking || slots_[id].epoch != epoch) {
    return absl::InvalidArgumentError(
        absl::StrCat("region ", id, " of epoch ", epoch, " given back unasked"));
  }
  absl::Status status = Free(slots_[id]);
  return Revoked{std::exchange(slots_[id].revoked, nullptr), std::move(status)};
}

Fifo<RegionTable::Revoked> RegionTable::Clear() {
  Fifo<Revoked> waiting;
  for (Slot& slot : slots_) {
    if (slot.use == Use::kFree) continue;
    Free(slot).IgnoreError();  // Kept tells
    if (slot.revoked) waiting.push({std::exchange(slot.revoked, nullptr), slot.kept});
  }
  return waiting;
}

absl::Status RegionTable::Kept(uint64_t id, uint32_t epoch) const {
  return slots_[id].epoch == epoch ? slots_[id].kept : absl::OkStatus();
}

std::vector<ControlRegion> RegionTable::All() const {
  std::vector<ControlRegion> all;
  for (size_t id = 0; id < slots_.size(); ++id) {
    if (slots_[id].use == Use::kExposed) all.push_back(Describe(id));
  }
  return all;
}

absl::Status PeerRegions::Add(const ControlRegion& region) {
  const bool sound = region.region < kRegionsMax && region.length > 0 && region.access >= 1 &&
                     region.access <= static_cast<uint32_t>(RdmaAccess::kReadWrite);
  if (!sound || regions_.contains(region.region)) {
    return absl::InvalidArgumentError(absl::StrCat("region ", region.region, " of ", region.length,
                                                   " bytes, access ", region.access,
                                                   sound ? ", twice" : ", which cannot be"));
  }
  const RdmaRemoteRegion value = {.id = region.region,
                                  .epoch = region.epoch,
                                  .size = region.length,
                                  .access = static_cast<RdmaAccess>(region.access)};
  regions_[region.region].value = value;
  regions_[region.region].target = {.address = region.address, .key = region.rkey};
  // Those revoked before anybody asked must not pile up.
  if (new_.size() >= 2 * kRegionsMax) {
    Fifo<RdmaRemoteRegion> still;
    while (const std::optional<RdmaRemoteRegion> next = TakeNew()) still.push(*next);
    new_ = std::move(still);
    // Only one that takes back and gives anew under the same epoch, which a number lives only once.
    if (new_.size() >= 2 * kRegionsMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("region ", region.region, " given again and again under one epoch"));
    }
  }
  new_.push(value);
  return absl::OkStatus();
}

const PeerRegions::Region* PeerRegions::Find(const RdmaRemoteRegion& region) const {
  const auto at = regions_.find(region.id);
  const bool there =
      at != regions_.end() && !at->second.revoked && at->second.value.epoch == region.epoch;
  return there ? &at->second : nullptr;
}

absl::Status PeerRegions::Check(const RdmaRemoteRegion& region, uint64_t offset, uint64_t size,
                                RdmaAccess wanted) const {
  const Region* const found = Find(region);
  if (found == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("region ", region.id, " has been revoked by the peer"));
  }
  if (!Allows(found->value.access, wanted)) {
    return absl::PermissionDeniedError(absl::StrCat(
        "region ", region.id, " is not ", wanted == RdmaAccess::kRead ? "readable" : "writable"));
  }
  if (!Within(offset, size, found->value.size)) {
    return absl::OutOfRangeError(absl::StrCat(size, " bytes at ", offset, " of region ", region.id,
                                              ", which has ", found->value.size));
  }
  return absl::OkStatus();
}

bool PeerRegions::OnDone(uint64_t id) {
  Region& region = regions_[id];
  return --region.posted == 0 && region.revoked;
}

absl::StatusOr<bool> PeerRegions::Revoke(uint64_t id, uint32_t epoch) {
  const auto at = regions_.find(id);
  if (at == regions_.end() || at->second.revoked || at->second.value.epoch != epoch) {
    return absl::InvalidArgumentError(
        absl::StrCat("region ", id, " of epoch ", epoch, " revoked, which is not there"));
  }
  at->second.revoked = true;
  return at->second.posted == 0;
}

bool PeerRegions::revoked(const RdmaRemoteRegion& region) const { return Find(region) == nullptr; }

LaneTarget PeerRegions::TargetOf(const RdmaRemoteRegion& region, uint64_t offset) const {
  const Region* const found = Find(region);
  if (found == nullptr || found->target.address == 0) return {};
  return {.address = found->target.address + offset, .key = found->target.key};
}

ControlRevoke PeerRegions::Forget(uint64_t id) {
  const ControlRevoke reply = {.reply = true, .region = id, .epoch = regions_[id].value.epoch};
  regions_.erase(id);
  return reply;
}

std::optional<RdmaRemoteRegion> PeerRegions::TakeNew() {
  while (!new_.empty()) {
    const RdmaRemoteRegion region = new_.pop();
    if (!revoked(region)) return region;
  }
  return std::nullopt;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
