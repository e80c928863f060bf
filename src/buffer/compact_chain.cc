#include "buffer/compact_chain.h"

#include <bit>
#include <cstring>
#include <string>

#include "base/check.h"
#include "buffer/block.h"
#include "buffer/heap_buffer.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// A block that is filled gradually is no larger: more of them cost a reader nothing.
constexpr size_t kTailMax = 64 * 1024;
// A smaller piece is cheaper to copy than to carry along.
constexpr size_t kKeptMin = 256;

// Whether a piece stays in the block it came in. Such a piece pins so much less than twice its size
// that it pays for starting the smallest block behind it; so does a full block of ours. (A piece
// of 129 bytes and more pays for its own.) The bound thus holds after every step of Compact.
bool WellFilled(const Buffer& piece) {
  return piece.size() >= kKeptMin && piece.size() >= piece.block_size() / 4 * 3;
}

}  // namespace

CompactChain& CompactChain::operator=(CompactChain&& other) noexcept {
  std::memcpy(inline_, other.inline_, sizeof inline_);
  inline_size_ = std::exchange(other.inline_size_, 0);
  settled_ = std::move(other.settled_);
  tail_ = std::move(other.tail_);
  fresh_ = std::move(other.fresh_);
  settled_blocks_ = std::exchange(other.settled_blocks_, 0);
  fresh_blocks_ = std::exchange(other.fresh_blocks_, 0);
  return *this;
}

void CompactChain::Append(Buffer bytes) {
  if (bytes.empty()) return;
  const Block* const block = BufferAccess::Node(bytes)->block;
  const BufferNode* const last = BufferAccess::Tail(fresh_);
  if (last == nullptr || last->block != block) fresh_blocks_ += BlockSize(*block);
  fresh_.Append(std::move(bytes));
}

size_t CompactChain::CopyTo(std::span<char> out) const {
  const size_t room = out.size();
  const auto copy = [&out](const char* data, size_t size) {
    const size_t n = std::min(size, out.size());
    if (n > 0) std::memcpy(out.data(), data, n);
    out = out.subspan(n);
  };
  copy(inline_, inline_size_);
  out = out.subspan(settled_.CopyTo(out));
  copy(tail_.data(), tail_.size());
  out = out.subspan(fresh_.CopyTo(out));
  return room - out.size();
}

void CompactChain::TrimFront(size_t n) {
  PENSTOCK_CHECK(n <= size(), "TrimFront() beyond the bytes");
  const size_t first = std::min<size_t>(n, inline_size_);
  inline_size_ -= first;
  std::memmove(inline_, inline_ + first, inline_size_);
  if (n == first) return;
  Unsettle();
  n -= first;
  while (n > 0 && fresh_.front().size() <= n) n -= PopFresh().size();
  fresh_.TrimFront(n);
}

BufferChain CompactChain::SplitFront(size_t n, BufferPool& pool, BufferTag tag) {
  PENSTOCK_CHECK(n <= size(), "SplitFront() beyond the bytes");
  BufferChain front;
  const size_t first = std::min<size_t>(n, inline_size_);
  if (first > 0) front.Append(TakeInline(first, pool, tag));
  if (n == first) return front;
  Unsettle();
  n -= first;
  while (n > 0 && fresh_.front().size() <= n) {
    n -= fresh_.front().size();
    front.Append(PopFresh());
  }
  front.Append(fresh_.SplitFront(n));
  return front;
}

void CompactChain::Clear() {
  // The last of them to go may run the code of whoever lent external memory.
  const CompactChain gone = std::move(*this);
}

size_t CompactChain::Compact(BufferPool& pool, BufferTag tag) {
  if (size() <= kInlineMax) return MoveInline();
  if (settled_blocks_ + fresh_blocks_ <= PinnedMax(size())) return 0;
  size_t copied = 0;
  if (inline_size_ > 0) {
    if (!StartTail(inline_, inline_size_, pool, tag)) return Evacuate(pool, tag);
    copied += std::exchange(inline_size_, 0);
  }
  while (!fresh_.empty()) {
    Buffer piece = PopFresh();
    const size_t fits = std::min(piece.size(), tail_.tailroom());
    FillTail(piece.data(), fits);
    piece.TrimFront(fits);
    copied += fits;
    if (piece.empty()) continue;
    CloseTail();
    if (WellFilled(piece)) {
      settled_blocks_ += piece.block_size();
      tail_ = std::move(piece);
    } else if (StartTail(piece.data(), piece.size(), pool, tag)) {
      copied += piece.size();
    } else {
      fresh_.Prepend(std::move(piece));
      return copied + Evacuate(pool, tag);
    }
  }
  return copied;
}

size_t CompactChain::Evacuate(BufferPool& pool, BufferTag tag) {
  size_t copied = 0;
  BufferChain pieces = std::exchange(fresh_, {});
  while (!pieces.empty()) {
    Buffer piece = pieces.PopFront();
    if (piece.block_size() > PinnedMax(piece.size())) {
      copied += piece.size();
      piece = HeapBuffer(std::string(piece.view()));
      // The block it was in has made room, unless somebody else holds on to it.
      if (Buffer own = pool.TryAllocate(piece.size(), tag)) {
        own.Extend(piece.size());
        std::memcpy(own.mutable_data(), piece.data(), piece.size());
        piece = std::move(own);
      }
    }
    fresh_.Append(std::move(piece));
  }
  fresh_blocks_ = fresh_.block_bytes();
  return copied;
}

size_t CompactChain::MoveInline() {
  Unsettle();
  const size_t copied = fresh_.CopyTo(std::span(inline_).subspan(inline_size_));
  inline_size_ += copied;
  fresh_.Clear();
  fresh_blocks_ = 0;
  return copied;
}

bool CompactChain::StartTail(const char* data, size_t size, BufferPool& pool, BufferTag tag) {
  const size_t held = settled_.size();
  const size_t allowed = PinnedMax(held + size) - settled_blocks_;
  const size_t room = std::bit_floor(std::min({held, allowed, kTailMax}));
  tail_ = pool.TryAllocate(std::max(size, room), tag);
  if (!tail_) return false;
  settled_blocks_ += tail_.block_size();
  FillTail(data, size);
  return true;
}

void CompactChain::FillTail(const char* data, size_t size) {
  if (size == 0) return;
  const size_t filled = tail_.size();
  tail_.Extend(size);
  std::memcpy(tail_.mutable_data() + filled, data, size);
}

void CompactChain::Unsettle() {
  if (settled_.empty() && !tail_) return;
  CloseTail();
  settled_.Append(std::move(fresh_));
  fresh_ = std::move(settled_);
  settled_blocks_ = 0;
  fresh_blocks_ = fresh_.block_bytes();
}

Buffer CompactChain::PopFresh() {
  Buffer front = fresh_.PopFront();
  const Block* const block = BufferAccess::Node(front)->block;
  const BufferNode* const next = BufferAccess::Head(fresh_);
  if (next == nullptr || next->block != block) fresh_blocks_ -= BlockSize(*block);
  return front;
}

Buffer CompactChain::TakeInline(size_t n, BufferPool& pool, BufferTag tag) {
  Buffer taken = pool.TryAllocate(n, tag);
  if (taken) {
    taken.Extend(n);
    std::memcpy(taken.mutable_data(), inline_, n);
  } else {
    taken = HeapBuffer(std::string(inline_, n));
  }
  inline_size_ -= n;
  std::memmove(inline_, inline_ + n, inline_size_);
  return taken;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
