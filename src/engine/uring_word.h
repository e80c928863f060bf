// The io_uring engine's state of one slot, packed into the slot's engine word, and the tokens of
// its operations. Loop's thread.
#ifndef PENSTOCK_ENGINE_URING_WORD_H_
#define PENSTOCK_ENGINE_URING_WORD_H_

#include <penstock/export.h>

#include <bit>
#include <cstdint>

#include "base/sys.h"
#include "engine/slot_table.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// The engine word of a slot.
struct UringWord {
  uint8_t armed = 0;       // operations the kernel holds, a bit each
  uint8_t cancelling = 0;  // of these, told to end
  uint8_t flags = 0;
  uint8_t run = 0;      // pieces in a row that speak for the other strategy
  uint8_t cancels = 0;  // repeated
  uint8_t round = 0;    // of UringEngine::LookAtReleases, when it was told to let go
  uint8_t large = 0;    // the last piece was
  uint8_t unused = 0;
};
static_assert(sizeof(UringWord) == sizeof(uint64_t));

struct UringBit {
  static constexpr uint8_t kReadable = 1;      // bytes or an end may wait for a plain recv
  static constexpr uint8_t kEnding = 2;        // an end is near: a short receive proves nothing
  static constexpr uint8_t kPollStrategy = 4;  // poll, then receive
  static constexpr uint8_t kPollOnly = 8;      // for good
  static constexpr uint8_t kLeaving = 16;      // detaching, or its acceptor forgotten
  static constexpr uint8_t kNeedsBuffer = 32;  // on waiting_for_room_
  static constexpr uint8_t kAccepting = 64;    // an acceptor that takes connections
  static constexpr uint8_t kReleasing = 128;   // on its way to another engine
  static constexpr uint8_t kParting = kLeaving | kReleasing;
};

inline UringWord UringWordOf(const Slot& slot) {
  return std::bit_cast<UringWord>(slot.engine_word);
}

// Changes the word of a slot in place.
class UringWordRef {
 public:
  explicit UringWordRef(Slot& slot) : slot_(slot), word_(UringWordOf(slot)) {}
  ~UringWordRef() { slot_.engine_word = std::bit_cast<uint64_t>(word_); }
  UringWord* operator->() { return &word_; }

 private:
  Slot& slot_;
  UringWord word_;
};

inline void SetFlag(Slot& slot, uint8_t flag) { UringWordRef(slot)->flags |= flag; }
inline void ClearFlag(Slot& slot, uint8_t flag) {
  UringWordRef(slot)->flags &= static_cast<uint8_t>(~flag);
}
inline bool HasFlag(const Slot& slot, uint8_t flag) { return UringWordOf(slot).flags & flag; }

constexpr uint8_t BitOf(RingOp op) { return static_cast<uint8_t>(1u << static_cast<unsigned>(op)); }
static_assert(static_cast<unsigned>(RingOp::kWatch) < 8);

// A cancel's token is its target's with this bit in the operation.
constexpr uint8_t kCancelBit = 0x80;

inline Token WithOp(const SlotTable& slots, uint32_t slot, RingOp op, uint8_t extra = 0) {
  return slots.TokenOf(slot, static_cast<uint8_t>(op) | extra);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_URING_WORD_H_
