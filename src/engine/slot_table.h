// Names for what the kernel tells a loop about: a Token goes in as epoll data or io_uring user data
// and comes back with every event. It holds an index and a generation, never a pointer, so an event
// that arrives after its object has gone finds nothing (P6 of the migration design; I4).
//
// Owned by one loop; its thread only.
#ifndef PENSTOCK_ENGINE_SLOT_TABLE_H_
#define PENSTOCK_ENGINE_SLOT_TABLE_H_

#include <penstock/export.h>

#include <algorithm>
#include <cstdint>
#include <vector>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

enum class SlotKind : uint8_t { kFree, kConnection, kAcceptor, kWatch };

// [63..56] operation, the engine's own business; [55..32] generation; [31..0] index.
class Token {
 public:
  Token(uint32_t index, uint32_t generation, uint8_t op)
      : bits_(uint64_t{op} << 56 | uint64_t{generation & kGenerationMask} << 32 | index) {}
  explicit Token(uint64_t bits) : bits_(bits) {}

  uint64_t bits() const { return bits_; }
  uint32_t index() const { return static_cast<uint32_t>(bits_); }
  uint32_t generation() const { return static_cast<uint32_t>(bits_ >> 32) & kGenerationMask; }
  uint8_t op() const { return static_cast<uint8_t>(bits_ >> 56); }

  static constexpr uint32_t kGenerationMask = 0xffffff;

 private:
  uint64_t bits_;
};

struct Slot {
  void* object = nullptr;  // null once the owner has gone and only the kernel is left
  uint32_t generation : 24 = 0;
  uint32_t kind_bits : 8 = 0;
  uint32_t next_free = 0;
  uint64_t engine_word = 0;  // the engine's state of this object

  SlotKind kind() const { return static_cast<SlotKind>(kind_bits); }
};

class SlotTable {
 public:
  uint32_t Take(SlotKind kind, void* object) {
    uint32_t index;
    if (free_head_ != kNone) {
      index = free_head_;
      free_head_ = slots_[index].next_free;
    } else {
      index = static_cast<uint32_t>(slots_.size());
      slots_.emplace_back();
      ++count_;
      slots_.back().generation = first_generation_ & Token::kGenerationMask;
    }
    Slot& slot = slots_[index];
    slot.object = object;
    slot.kind_bits = static_cast<uint8_t>(kind);
    slot.engine_word = 0;
    return index;
  }

  void Free(uint32_t index) {
    Slot& slot = slots_[index];
    slot.object = nullptr;
    slot.kind_bits = static_cast<uint8_t>(SlotKind::kFree);
    slot.generation = (slot.generation + 1) & Token::kGenerationMask;
    slot.next_free = free_head_;
    free_head_ = index;
  }

  // As Free and Take at the same place: tokens of before find nothing (P6), the engine word is new.
  void Renew(uint32_t index) {
    Slot& slot = slots_[index];
    slot.generation = (slot.generation + 1) & Token::kGenerationMask;
    slot.engine_word = 0;
  }

  // Gives memory back after a crowd: drops the free slots at the end. Slots made later start from a
  // generation that no dropped one had, so a late event still finds nothing.
  void Trim() {
    size_t keep = slots_.size();
    while (keep > 0 && slots_[keep - 1].kind() == SlotKind::kFree) {
      first_generation_ = std::max<uint32_t>(first_generation_, slots_[--keep].generation);
    }
    if (slots_.size() - keep < kTrimMin) return;
    slots_.resize(keep);
    slots_.shrink_to_fit();
    count_ = static_cast<uint32_t>(keep);
    free_head_ = kNone;
    for (size_t i = keep; i-- > 0;) {
      if (slots_[i].kind() != SlotKind::kFree) continue;
      slots_[i].next_free = free_head_;
      free_head_ = static_cast<uint32_t>(i);
    }
  }

  Token TokenOf(uint32_t index, uint8_t op = 0) const {
    return Token(index, slots_[index].generation, op);
  }

  // The slot `token` names, or null when it has been freed since.
  Slot* Find(Token token) {
    if (token.index() >= count_) return nullptr;
    Slot& slot = slots_[token.index()];
    if (slot.generation != token.generation() || slot.kind() == SlotKind::kFree) return nullptr;
    return &slot;
  }

  // Has the processor fetch the object of an event that comes next: of many connections each has
  // left the cache when its turn comes. Harmless whatever the slot holds.
  void Prefetch(Token token) const {
    if (token.index() >= count_) return;
    const char* const object = static_cast<const char*>(slots_[token.index()].object);
    if (object == nullptr) return;
    for (size_t at = 0; at < kPrefetchBytes; at += kCacheLine) __builtin_prefetch(object + at);
  }

  Slot& at(uint32_t index) { return slots_[index]; }
  uint32_t size() const { return count_; }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr size_t kTrimMin = 256;
  static constexpr size_t kCacheLine = 64;
  static constexpr size_t kPrefetchBytes = 320;  // of a Connection every request uses these

  std::vector<Slot> slots_;
  uint32_t count_ = 0;  // of slots_, without a division by their size
  uint32_t free_head_ = kNone;
  uint32_t first_generation_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_SLOT_TABLE_H_
