// CompactChain: received bytes of a unit (a record, a frame) that has not come whole, kept in
// little memory while its reader waits for the rest.
//
// Owns the blocks behind its bytes (I2). One thread at a time. Plain movable state: it knows no
// loop, engine or pool. Whenever it rests (after Rest, until the next Append) it pins at most
// PinnedMax(size()) bytes of blocks, and none while size() <= kInlineMax, however large the blocks
// were that the bytes came in and whatever length the unit's header announces. When the pool has no
// room to compact into, each piece by itself keeps to that, in memory of the heap if need be: were
// blocks kept for want of room, many chains could hold all the room there is and wait for each
// other for ever.
//
// Copying is linear: a byte is copied once at most from Append until units are split off, however
// small the pieces it comes in, because blocks are filled one after the other, each as large as all
// before it, and none is outgrown; well-filled blocks are kept as they came.
#ifndef PENSTOCK_BUFFER_COMPACT_CHAIN_H_
#define PENSTOCK_BUFFER_COMPACT_CHAIN_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class CompactChain {
 public:
  // As many bytes rest without a block: the header of a record (8) or of an HTTP/2 frame (9).
  static constexpr size_t kInlineMax = 16;
  // Bytes of blocks that `size` resting bytes may pin.
  static constexpr size_t PinnedMax(size_t size) { return std::max<size_t>(256, 2 * size); }

  CompactChain() = default;
  CompactChain(CompactChain&& other) noexcept { *this = std::move(other); }
  CompactChain& operator=(CompactChain&& other) noexcept;
  ~CompactChain() = default;

  size_t size() const { return inline_size_ + settled_.size() + tail_.size() + fresh_.size(); }
  bool empty() const {
    return inline_size_ == 0 && settled_.empty() && fresh_.empty() && (!tail_ || tail_.empty());
  }
  // Bytes of the blocks behind the bytes. Counted along, so it costs nothing; neighbours on one
  // block, which count once when they come, may count twice while they rest.
  size_t pinned_bytes() const { return settled_blocks_ + fresh_blocks_; }

  void Append(Buffer bytes);

  // Copies min(size(), out.size()) bytes from the front without consuming them; returns how many.
  size_t CopyTo(std::span<char> out) const;
  // Drops the first `n` <= size() bytes.
  void TrimFront(size_t n);
  // Cuts off the first `n` <= size() bytes, as windows onto the blocks they are in. Those that
  // rested without a block get one from `pool`, or from the heap when it has no room.
  BufferChain SplitFront(size_t n, BufferPool& pool, BufferTag tag);
  void Clear();

  // The owner is about to wait. Keeps the bound above with blocks from `pool`, or without; returns
  // how many bytes were copied.
  size_t Rest(BufferPool& pool, BufferTag tag) {
    return settled_.empty() && fresh_.empty() && !tail_ ? 0 : Compact(pool, tag);
  }

 private:
  size_t Compact(BufferPool& pool, BufferTag tag);
  size_t MoveInline();
  // What Compact comes to without room: moves every piece that pins more than its share.
  size_t Evacuate(BufferPool& pool, BufferTag tag);
  // Makes the `size` bytes at `data` the first of a new tail that more may follow; false without
  // room.
  bool StartTail(const char* data, size_t size, BufferPool& pool, BufferTag tag);
  void FillTail(const char* data, size_t size);
  void CloseTail() { settled_.Append(std::exchange(tail_, Buffer())); }
  // All bytes in blocks are to be looked at again: some of them are about to leave.
  void Unsettle();
  Buffer PopFresh();
  Buffer TakeInline(size_t n, BufferPool& pool, BufferTag tag);

  // In order: inline bytes, which only rest beside fresh ones; blocks that are full or well filled;
  // the block that is being filled; what came since.
  char inline_[kInlineMax];
  uint8_t inline_size_ = 0;
  BufferChain settled_;
  Buffer tail_;
  BufferChain fresh_;
  // Bytes of blocks.
  size_t settled_blocks_ = 0;  // of settled_ and tail_
  size_t fresh_blocks_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_COMPACT_CHAIN_H_
