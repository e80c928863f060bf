// The only memory that carries bytes: Buffer, BufferChain, and the BufferPool they come from.
//
// A BufferPool maps slabs of 2 MiB, cuts each into blocks of one size class and hands them out as
// Buffers. A Buffer is a window onto one block, owned by one holder (I2); dropping it, on any
// thread, gives the block back when it was the last window. A BufferChain is a queue of Buffers: it
// gathers without copying and without allocating.
//
// Threads: a BufferPool may be used from any thread. Each Loop keeps a small cache of blocks in
// front of it (LIFO, so that the block used last, still warm in the processor's cache, is the next
// one handed out); other threads take the pool's lock. A Buffer or BufferChain is a value: use it
// from one thread at a time, move it where you like.
//
// Bounds: PoolOptions::bytes_max is a hard limit on bytes handed out. At the limit Allocate returns
// RESOURCE_EXHAUSTED and counts it; connections do not fail there, they wait (I9).
#ifndef PENSTOCK_BUFFER_H_
#define PENSTOCK_BUFFER_H_

#include <penstock/export.h>
#include <penstock/pool_stats.h>
#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

class BufferPool;

namespace internal {
struct BufferNode;  // one window onto a block; src/buffer/block.h
struct BufferAccess;
class PoolCore;
}  // namespace internal

// A window [data, data + size) onto one block. Move-only; eight bytes; empty when default-made.
class PENSTOCK_EXPORT Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept : node_(std::exchange(other.node_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      if (node_ != nullptr) Reset();
      node_ = std::exchange(other.node_, nullptr);
    }
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (node_ != nullptr) Reset();
  }

  // A buffer over memory that the pool does not own (a mapped file, a cache entry). `release` runs
  // once, on whichever thread drops the last window. Allocates a small header on the heap.
  static Buffer FromExternal(const void* data, size_t size, absl::AnyInvocable<void() &&> release);

  // True when the buffer holds a block, even if its window is empty.
  explicit operator bool() const { return node_ != nullptr; }

  const char* data() const;
  size_t size() const;
  bool empty() const { return size() == 0; }
  std::string_view view() const { return {data(), size()}; }

  // Writable access to the window. The holder must be the only one to see these bytes: not after
  // Share() and not over external memory (checked in debug builds).
  char* mutable_data();

  // Bytes between the end of the window and the end of the block that Extend may claim; 0 when
  // another window onto the block exists.
  size_t tailroom() const;
  // Grows the window by `n` <= tailroom() bytes, whose content is unspecified.
  void Extend(size_t n);
  // Keeps the first `n` <= size() bytes.
  void Truncate(size_t n);
  // Drops the first `n` <= size() bytes.
  void TrimFront(size_t n);
  // Cuts off the first `n` <= size() bytes as a window of its own onto the same block.
  Buffer SplitFront(size_t n);
  // A second window onto the same bytes, for another holder. Both must only read from then on.
  Buffer Share() const;

  // Marks the block secret: it is wiped when it returns to the pool, and its slab is left out of
  // core dumps (MADV_DONTDUMP) from the slab's first mark on, with whatever else lies there. False:
  // it may still be dumped, for the kernel refuses, or the memory is not the pool's (then it is not
  // wiped either).
  bool MarkSecret();

  // Gives the window up.
  void Reset();

  // Bytes of the block behind this window: what it pins.
  size_t block_size() const;

 private:
  friend class BufferChain;
  friend class BufferPool;
  friend struct internal::BufferAccess;
  explicit Buffer(internal::BufferNode* node) : node_(node) {}

  internal::BufferNode* node_ = nullptr;
};

// A queue of buffers, read as one run of bytes. Move-only; 24 bytes; never allocates.
class PENSTOCK_EXPORT BufferChain {
 public:
  BufferChain() = default;
  BufferChain(Buffer buffer) { Append(std::move(buffer)); }  // NOLINT: a buffer is a chain of one
  BufferChain(BufferChain&& other) noexcept
      : head_(std::exchange(other.head_, nullptr)),
        tail_(std::exchange(other.tail_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  BufferChain& operator=(BufferChain&& other) noexcept {
    if (this != &other) {
      if (head_ != nullptr) Clear();
      head_ = std::exchange(other.head_, nullptr);
      tail_ = std::exchange(other.tail_, nullptr);
      size_ = std::exchange(other.size_, 0);
    }
    return *this;
  }
  BufferChain(const BufferChain&) = delete;
  BufferChain& operator=(const BufferChain&) = delete;
  ~BufferChain() {
    if (head_ != nullptr) Clear();
  }

  // Bytes in the chain.
  size_t size() const { return size_; }
  bool empty() const { return head_ == nullptr; }
  size_t buffer_count() const;
  // Bytes of the blocks behind the chain: what it pins. Neighbours on one block count once.
  size_t block_bytes() const;

  // Empty buffers are dropped, not queued.
  void Append(Buffer buffer);
  void Append(BufferChain chain);
  void Prepend(Buffer buffer);

  // Views the first buffer, empty for an empty chain.
  std::string_view front() const;
  Buffer PopFront();
  // Cuts off the first `n` <= size() bytes.
  BufferChain SplitFront(size_t n);
  void TrimFront(size_t n);
  void Clear();

  // Describes the front of the chain for writev(2); returns how many entries were filled.
  size_t FillIovec(std::span<iovec> out) const;
  // Copies min(size(), out.size()) bytes from the front without consuming them; returns how many.
  size_t CopyTo(std::span<char> out) const;
  std::string ToString() const;

 private:
  friend struct internal::BufferAccess;

  internal::BufferNode* head_ = nullptr;
  internal::BufferNode* tail_ = nullptr;
  size_t size_ = 0;
};

// Told of every slab of a pool, so that memory can be registered once (io_uring, RDMA). Called with
// the pool's lock held, on whichever thread maps or unmaps: must not call the pool.
class PENSTOCK_EXPORT SlabObserver {
 public:
  virtual ~SlabObserver() = default;
  virtual void OnSlabBorn(void* base, size_t size) = 0;
  virtual void OnSlabDied(void* base, size_t size) = 0;
};

// Told once when a pool that refused an allocation has room again. Called on any thread, inside
// whatever call gave the room, with no lock of the pool held; typically wakes a loop.
class PENSTOCK_EXPORT RoomWaiter {
 public:
  virtual ~RoomWaiter() = default;
  virtual void OnRoom() = 0;
};

struct PoolOptions {
  // Hard limit on bytes of blocks handed out or kept in loops' caches. Mapped memory may exceed it:
  // by up to a slab for each size class in use, and by more where slabs have emptied but for a few
  // blocks; Trim() returns the free pages of those.
  size_t bytes_max = size_t{1} << 30;
  // Ask for 2 MiB pages: MAP_HUGETLB, else MADV_HUGEPAGE, else plain pages. Off: plain pages, whose
  // memory grows only as blocks are touched.
  bool huge_pages = false;
  // Every block is secret: wiped on return, slabs left out of core dumps (MADV_DONTDUMP).
  bool secret = false;
  // Empty slabs kept mapped for reuse; more while bursts need them again and again. Trim() releases
  // these too.
  size_t empty_slabs_kept = 1;
};

class PENSTOCK_EXPORT BufferPool {
 public:
  explicit BufferPool(PoolOptions options = {});
  // Every Buffer must have been returned (I2). Debug builds report the ones that were not, with
  // their tag and sequence number, and abort; release builds leave their slabs mapped.
  ~BufferPool();
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // A buffer with an empty window and tailroom() >= `size`. Sizes above 1 MiB get a mapping of
  // their own. RESOURCE_EXHAUSTED at the limit or when the kernel gives no memory.
  absl::StatusOr<Buffer> Allocate(size_t size, BufferTag tag = BufferTag::kApplication);
  // The same without a status: an empty Buffer on refusal.
  Buffer TryAllocate(size_t size, BufferTag tag = BufferTag::kApplication);
  // A buffer that holds a copy of `bytes`.
  absl::StatusOr<Buffer> Copy(std::string_view bytes, BufferTag tag = BufferTag::kApplication);

  PoolStats Stats() const;

  // Unmaps empty slabs and returns the free pages of the rest to the kernel (MADV_DONTNEED); not
  // the latter while an RDMA device knows the pool. Takes the blocks in the calling loop's cache,
  // and in those of loops that sleep, too.
  void Trim();

  // `observer` hears of existing slabs at once and of later ones as they come and go, until
  // removed.
  void AddSlabObserver(SlabObserver* observer);
  void RemoveSlabObserver(SlabObserver* observer);

  // After a refusal: `waiter` is told once when blocks came back, inside this call if they already
  // have. Adding it again is harmless. False when it may have to try again by itself, after a
  // while: the kernel gave no memory, and may have some without a block coming back; or none is
  // out.
  bool NotifyRoom(RoomWaiter* waiter);
  // Afterwards `waiter` is not called, nor being called by another thread.
  void ForgetRoom(RoomWaiter* waiter);

  internal::PoolCore& core() { return *core_; }

 private:
  friend class internal::PoolCore;
  explicit BufferPool(std::unique_ptr<internal::PoolCore> core);

  std::unique_ptr<internal::PoolCore> core_;
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_H_
