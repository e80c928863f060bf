#include "secure/cipher_contexts.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

CipherContexts::CipherContexts(std::unique_ptr<RecordCrypto> crypto, size_t contexts_max)
    : crypto_(std::move(crypto)), contexts_max_(contexts_max) {}

Aead* CipherContexts::TakeAnew(KeySchedule& keys, Lease& lease) {
  Slot* held = nullptr;
  if (Holds(lease)) {
    held = &slots_[lease.slot];
    held->used = true;
    Unlink(*held);
    LinkNewest(*held);
    if (held->epoch == keys.epoch()) return held->aead.get();
  }
  return Renew(keys, lease, held);
}

Aead* CipherContexts::Renew(KeySchedule& keys, Lease& lease, Slot* held) {
  Slot* slot = held != nullptr ? held : NewSlot(lease);
  if (slot == nullptr) return nullptr;
  const AeadKey* key = keys.Key(*crypto_);
  if (key == nullptr || !slot->aead->SetKey(*key)) {
    Release(lease);
    return nullptr;
  }
  ++keys_set_;
  slot->epoch = keys.epoch();
  return slot->aead.get();
}

CipherContexts::Slot* CipherContexts::NewSlot(Lease& lease) {
  Slot* slot = nullptr;
  if (live_ >= contexts_max_) {
    slot = &slots_[oldest_];
    Unlink(*slot);
  } else {
    std::unique_ptr<Aead> aead = crypto_->NewAead();
    if (aead == nullptr) return nullptr;
    if (free_ == kNone) {
      free_ = static_cast<uint32_t>(slots_.size());
      slots_.emplace_back();
    }
    slot = &slots_[free_];
    free_ = slot->older;
    slot->aead = std::move(aead);
    ++live_;
  }
  slot->serial = ++serial_;
  slot->used = true;
  LinkNewest(*slot);
  lease = {slot->serial, IndexOf(*slot)};
  return slot;
}

void CipherContexts::Release(Lease& lease) {
  if (Holds(lease)) Free(slots_[lease.slot]);
  lease = {};
}

bool CipherContexts::Sweep() {
  // By age, so that the first one in use ends the search.
  while (oldest_ != kNone && !slots_[oldest_].used) Free(slots_[oldest_]);
  for (uint32_t index = oldest_; index != kNone && slots_[index].used;
       index = slots_[index].newer) {
    slots_[index].used = false;
  }
  return live_ > 0;
}

void CipherContexts::Free(Slot& slot) {
  Unlink(slot);
  slot.aead.reset();
  slot.serial = 0;
  slot.older = std::exchange(free_, IndexOf(slot));
  --live_;
}

void CipherContexts::Unlink(Slot& slot) {
  (slot.newer != kNone ? slots_[slot.newer].older : newest_) = slot.older;
  (slot.older != kNone ? slots_[slot.older].newer : oldest_) = slot.newer;
}

void CipherContexts::LinkNewest(Slot& slot) {
  const uint32_t index = IndexOf(slot);
  slot.newer = kNone;
  slot.older = newest_;
  (newest_ != kNone ? slots_[newest_].newer : oldest_) = index;
  newest_ = index;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
