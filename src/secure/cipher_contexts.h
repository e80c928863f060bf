// CipherContexts: the keyed cipher contexts of one loop's sealed streams, given to whoever works
// and taken from whoever rests; and RecordCipher, one direction's keys with its claim to such a
// context.
//
// A context of OpenSSL is more than a kilobyte of heap, which an idle stream must not hold (I1). So
// a stream keeps its key material and counters, and a context is its own only while it is busy:
// when there are no more, the one that was taken up longest ago goes to the next who needs one,
// those not used since the last Sweep() before all others; and Sweep() frees those that nobody used
// for a while. A busy stream finds its context keyed, and only a new AES key costs a key schedule.
//
// Owned together by the loop and its streams, so that a stream that outlives its loop can still
// give its context up; used by one thread at a time.
#ifndef PENSTOCK_SECURE_CIPHER_CONTEXTS_H_
#define PENSTOCK_SECURE_CIPHER_CONTEXTS_H_

#include <penstock/export.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "secure/aead.h"
#include "secure/key_schedule.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class CipherContexts {
 public:
  // At about 1.5 KiB each, two to a busy stream; with more streams than that in turns each pays a
  // key schedule, about 0.4 us, for each turn.
  static constexpr size_t kContextsMax = 4096;

  // One direction's claim to a context; it may have lapsed.
  struct Lease {
    uint64_t serial = 0;  // 0: none
    uint32_t slot = 0;
  };

  explicit CipherContexts(std::unique_ptr<RecordCrypto> crypto, size_t contexts_max = kContextsMax);
  CipherContexts(const CipherContexts&) = delete;
  CipherContexts& operator=(const CipherContexts&) = delete;

  // The context for the record keys.counter(), keyed. Null when the library refused.
  Aead* Take(KeySchedule& keys, Lease& lease) {
    if (Holds(lease)) [[likely]] {
      const Slot& held = slots_[lease.slot];
      if (held.used && held.epoch == keys.epoch()) [[likely]]
        return held.aead.get();
    }
    return TakeAnew(keys, lease);
  }
  // Frees the leased context, and its key with it.
  void Release(Lease& lease);
  // Frees the contexts that nobody took since the last call; called every second or so while it
  // says that some are left.
  bool Sweep();

  // Contexts that exist.
  size_t live() const { return live_; }
  // Key schedules so far.
  uint64_t keys_set() const { return keys_set_; }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  struct Slot {
    std::unique_ptr<Aead> aead;  // null: the slot is free
    uint64_t serial = 0;
    uint64_t epoch = 0;
    uint32_t newer = kNone;
    uint32_t older = kNone;  // free: the next free slot
    bool used = false;       // since the last Sweep
  };

  bool Holds(const Lease& lease) const {
    return lease.serial != 0 && slots_[lease.slot].serial == lease.serial;
  }
  // For one that has no context, or not used it since the last Sweep, or needs another key.
  Aead* TakeAnew(KeySchedule& keys, Lease& lease);
  Aead* Renew(KeySchedule& keys, Lease& lease, Slot* held);
  Slot* NewSlot(Lease& lease);
  void Free(Slot& slot);
  void Unlink(Slot& slot);
  void LinkNewest(Slot& slot);
  uint32_t IndexOf(const Slot& slot) const { return static_cast<uint32_t>(&slot - slots_.data()); }

  std::unique_ptr<RecordCrypto> crypto_;
  const size_t contexts_max_;
  std::vector<Slot> slots_;
  uint32_t free_ = kNone;
  uint32_t newest_ = kNone;
  uint32_t oldest_ = kNone;
  size_t live_ = 0;
  uint64_t serial_ = 0;
  uint64_t keys_set_ = 0;
};

// Move-only; the context is given up with it.
class RecordCipher {
 public:
  RecordCipher(std::shared_ptr<CipherContexts> contexts, KeySchedule keys)
      : contexts_(std::move(contexts)), keys_(std::move(keys)) {}
  RecordCipher(RecordCipher&& other) noexcept
      : contexts_(std::move(other.contexts_)),
        keys_(std::move(other.keys_)),
        lease_(std::exchange(other.lease_, {})) {}
  RecordCipher& operator=(RecordCipher&& other) noexcept {
    std::swap(contexts_, other.contexts_);
    std::swap(keys_, other.keys_);
    std::swap(lease_, other.lease_);
    return *this;
  }
  ~RecordCipher() {
    if (contexts_ != nullptr) contexts_->Release(lease_);
  }

  // Gives the context up, on the thread of the loop that is left, and takes those of another loop.
  void Leave() {
    if (contexts_ != nullptr) contexts_->Release(lease_);
    contexts_ = nullptr;
  }
  void Join(std::shared_ptr<CipherContexts> contexts) { contexts_ = std::move(contexts); }

  KeySchedule& keys() { return keys_; }
  const KeySchedule& keys() const { return keys_; }

  // Start the next record and count it. The context to put it through; null when the library
  // refused: the caller must not go on.
  Aead* StartSeal() {
    const Next next = TakeNext();
    return next.aead != nullptr && next.aead->StartSeal(next.nonce) ? next.aead : nullptr;
  }
  Aead* StartOpen(const char* tag) {
    const Next next = TakeNext();
    return next.aead != nullptr && next.aead->StartOpen(next.nonce, tag) ? next.aead : nullptr;
  }
  // The next record whole, in one piece. Whatever comes of it, it is counted; as in Aead.
  bool SealPiece(const char* in, char* out, size_t size, char* tag) {
    const Next next = TakeNext();
    return next.aead != nullptr && next.aead->SealPiece(next.nonce, in, out, size, tag);
  }
  Aead::Opened OpenPiece(const char* tag, const char* in, char* out, size_t size) {
    const Next next = TakeNext();
    if (next.aead == nullptr) return Aead::Opened::kBroken;
    return next.aead->OpenPiece(next.nonce, tag, in, out, size);
  }

 private:
  // Of one record, which has been counted.
  struct Next {
    Aead* aead;
    AeadNonce nonce;
  };
  Next TakeNext() {
    const Next next{contexts_->Take(keys_, lease_), keys_.Nonce()};
    keys_.Advance();
    return next;
  }

  std::shared_ptr<CipherContexts> contexts_;
  KeySchedule keys_;
  CipherContexts::Lease lease_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_CIPHER_CONTEXTS_H_
