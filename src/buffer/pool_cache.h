// PoolCache: one loop's stock of free blocks in front of a PoolCore, and the inline paths on which
// engines take and give up buffers.
//
// Owned by a loop. The loop's thread uses it inside a Scope, without locks; outside, and while the
// thread sleeps, the cache is parked, and the core may empty it for others that were refused or to
// trim. Hot lists are LIFO, so that the block handed out next is the one used last, still in the
// processor's cache. Bounded (I9): 64 blocks or 256 KiB a class, whichever is less, but at least 2
// blocks.
#ifndef PENSTOCK_BUFFER_POOL_CACHE_H_
#define PENSTOCK_BUFFER_POOL_CACHE_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "buffer/block.h"
#include "buffer/pool_core.h"
#include "buffer/pool_counters.h"
#include "buffer/size_class.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// The calling thread's cache. Initial-exec: 8 bytes of static TLS for an access without a call.
extern constinit thread_local PoolCache* current_cache __attribute__((tls_model("initial-exec")));

class PoolCache {
 public:
  explicit PoolCache(PoolCore& core);
  // Not inside a Scope of this cache.
  ~PoolCache();
  PoolCache(const PoolCache&) = delete;
  PoolCache& operator=(const PoolCache&) = delete;

  // Makes a cache the calling thread's current one, and the previous one again at the end. May be
  // nested. On leaving the outermost scope a starved pool gets the cache's blocks.
  class Scope {
   public:
    explicit Scope(PoolCache& cache) : cache_(cache), previous_(current_cache) {
      cache_.Enter();
      current_cache = &cache_;
    }
    ~Scope() {
      current_cache = previous_;
      cache_.Leave();
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    PoolCache& cache_;
    PoolCache* previous_;
  };

  // Inside a Scope, while the thread blocks in the kernel: parks the cache, so that others can have
  // its blocks. The thread has no cache meanwhile. Outside a Scope: nothing.
  class Parked {
   public:
    explicit Parked(PoolCache& cache) : cache_(cache), current_(current_cache) {
      if (cache_.depth_ == 0) return;
      current_cache = nullptr;
      cache_.Park();
    }
    ~Parked() {
      if (cache_.depth_ == 0) return;
      cache_.Unpark();
      current_cache = current_;
    }
    Parked(const Parked&) = delete;
    Parked& operator=(const Parked&) = delete;

   private:
    PoolCache& cache_;
    PoolCache* current_;
  };

  // The calling thread's cache if it serves `core`, else null.
  static PoolCache* CurrentFor(const PoolCore* core) {
    PoolCache* cache = current_cache;
    return cache != nullptr && &cache->core_ == core ? cache : nullptr;
  }

  PoolCore& core() const { return core_; }

  // Inside a Scope: a buffer with an empty window and tailroom() >= `size`; empty when refused.
  Buffer TryAllocate(size_t size, BufferTag tag) {
    PoolCore::Refusal refusal;
    return BufferAccess::Adopt(TakeNode(size, tag, &refusal));
  }
  BufferNode* TakeNode(size_t size, BufferTag tag, PoolCore::Refusal* refusal) {
    if (size > kBlockSizeMax) [[unlikely]]
      return core_.AllocateLarge(size, tag, this, refusal);
    const uint8_t size_class = ClassOf(size);
    HotList& hot = hot_[size_class];
    if (hot.head == nullptr && !Refill(size_class, tag, refusal)) [[unlikely]]
      return nullptr;
    Block& block = BlockOfFree(hot.head);
    hot.head = block.primary.next;
    hot.SetCount(hot.Count() - 1);
    counters_.AddSmall(block, tag);
    return StartBlock(block, tag);
  }

  // Inside a Scope: takes a returned block of the core, wiped if it was secret.
  void KeepBlock(Block& block) {
    counters_.SubtractSmall(block, block.tag);
    HotList& hot = hot_[block.size_class];
    if (hot.Count() >= hot.max || core_.starved()) [[unlikely]]
      return Overflow(block);
    block.primary.next = hot.head;
    hot.head = &block.primary;
    hot.SetCount(hot.Count() + 1);
  }

  void CountTag(const Block& block, BufferTag from, BufferTag to) {
    counters_.Subtract(block, from);
    counters_.Add(block, to);
  }

  // Inside a Scope: nodes for further windows.
  BufferNode* TakeSpareNode();
  void KeepSpareNode(BufferNode* node);

  // Gives every block back to the core, where empty slabs go back to the kernel. Inside a Scope;
  // for a loop that has had no traffic for a while.
  void Flush();

 private:
  friend class PoolCore;

  enum class State : uint8_t {
    kParked,    // between scopes
    kActive,    // in the hands of the loop's thread
    kDraining,  // in the hands of the core, under its lock
  };
  struct HotList {
    BufferNode* head = nullptr;
    std::atomic<uint32_t> count{0};  // read by Stats()
    uint32_t max = 0;

    uint32_t Count() const { return count.load(std::memory_order_relaxed); }
    void SetCount(uint32_t value) { count.store(value, std::memory_order_relaxed); }
  };

  void Enter() {
    if (depth_++ == 0) Unpark();
  }
  void Leave() {
    if (--depth_ == 0) Park();
  }
  void Park() {
    // Either this sees that the pool is starved, or the one who starves sees the cache parked.
    state_.store(State::kParked, std::memory_order_seq_cst);
    if (core_.starved_now()) [[unlikely]]
      ParkEmpty();
  }
  void Unpark() {
    State expected = State::kParked;
    if (!state_.compare_exchange_strong(expected, State::kActive, std::memory_order_acquire))
        [[unlikely]]
      UnparkDrained();
  }
  // The pool is starved: parks again, with no block left.
  [[gnu::cold]] void ParkEmpty();
  // The core is emptying the cache just now: waits for it.
  [[gnu::cold]] void UnparkDrained();
  bool Refill(uint8_t size_class, BufferTag tag, PoolCore::Refusal* refusal);
  void Overflow(Block& block);
  // All hot blocks as one list, which the cache no longer holds.
  BufferNode* TakeAll();
  void GiveAll();
  bool TryBeginDrain();
  void EndDrain() { state_.store(State::kParked, std::memory_order_release); }

  PoolCore& core_;
  std::array<HotList, kBlockClasses> hot_;
  PoolCounters counters_;
  BufferNode* spare_nodes_ = nullptr;
  uint32_t spare_node_count_ = 0;
  uint32_t depth_ = 0;  // of nested scopes
  std::atomic<State> state_{State::kParked};
  PoolCache* next_cache_ = nullptr;  // in the core's list, under its lock
};

// The last window of a block that does not go the short way: secret, large, external, or on a
// thread without a cache.
void ReturnBlock(Block& block);
BufferNode* NewNode(Block& block);
void FreeNode(PoolCore* core, BufferNode* node);

// Cuts the first `n` <= size bytes off `node`, as a window of their own.
inline BufferNode* SplitNode(BufferNode& node, size_t n) {
  Block& block = *node.block;
  block.windows.fetch_add(1, std::memory_order_relaxed);
  BufferNode* front = NewNode(block);
  front->data = node.data;
  front->size = n;
#if PENSTOCK_POOL_CHECKS
  front->shared = node.shared;
#endif
  node.data += n;
  node.size -= n;
  return front;
}

// Gives up one window.
inline void ReleaseNode(BufferNode* node) {
  Block& block = *node->block;
#if PENSTOCK_POOL_CHECKS
  if (!CheckLive(*node, "returned")) return;
  node->live = false;
#endif
  PoolCore* core = block.core;
  if (node != &block.primary) [[unlikely]]
    FreeNode(core, node);
  // The only window needs no atomic write: nobody else can make another.
  if (block.windows.load(std::memory_order_acquire) != 1) {
    if (block.windows.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    block.windows.store(1, std::memory_order_relaxed);
  }
  PoolCache* cache = PoolCache::CurrentFor(core);
  if (cache == nullptr || block.size_class >= kBlockClasses ||
      block.secret.load(std::memory_order_relaxed)) [[unlikely]] {
    return ReturnBlock(block);
  }
  if constexpr (kPoolChecks) CheckReturned(block);
  cache->KeepBlock(block);
}

// Counts the block under another tag: a ring's buffer that the kernel has filled belongs to a
// connection from then on. For the only window.
inline void SetTag(Buffer& buffer, BufferTag tag) {
  Block& block = *BufferAccess::Node(buffer)->block;
  PoolCore* core = block.core;
  if (core == nullptr) return;
  if (PoolCache* cache = PoolCache::CurrentFor(core)) [[likely]] {
    cache->CountTag(block, block.tag, tag);
  } else {
    core->CountTag(block, block.tag, tag);
  }
  block.tag = tag;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_POOL_CACHE_H_
