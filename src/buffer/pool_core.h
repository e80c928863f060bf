// PoolCore: the shared part of a BufferPool. It owns the slabs, charges every block that leaves it
// against the pool's limit, and tells those who were refused when there is room again (I9).
//
// Thread-safe under one lock. Threads that run a loop reach it through their PoolCache, in batches;
// others call Allocate and Return. Waiters are told with no lock held, slab observers under it.
#ifndef PENSTOCK_BUFFER_POOL_CORE_H_
#define PENSTOCK_BUFFER_POOL_CORE_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/sys.h"
#include "buffer/block.h"
#include "buffer/pool_counters.h"
#include "buffer/slab.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class PoolCache;

class PoolCore {
 public:
  // Why an allocation was refused: 0 for the limit, else the -errno of mmap(2).
  using Refusal = int;

  // `sys` must outlive the pool.
  PoolCore(const PoolOptions& options, Sys& sys);
  ~PoolCore();
  PoolCore(const PoolCore&) = delete;
  PoolCore& operator=(const PoolCore&) = delete;

  // A pool whose memory comes from `sys`, for tests.
  static std::unique_ptr<BufferPool> MakePool(const PoolOptions& options, Sys& sys);

  const PoolOptions& options() const { return options_; }

  // A live block for a thread without a cache; null when refused.
  BufferNode* Allocate(size_t size, BufferTag tag, Refusal* refusal);
  // A large block, for any thread; `caller` is its cache, or null.
  BufferNode* AllocateLarge(size_t size, BufferTag tag, PoolCache* caller, Refusal* refusal);
  // Takes back a block whose last window went on a thread without a cache, or a large block.
  void Return(Block& block);

  // A list of 1 to `count` free blocks for `caller`, which needs the first of them for `tag`; null
  // when refused. `taken`: how many.
  BufferNode* Take(uint8_t size_class, uint32_t count, BufferTag tag, PoolCache* caller,
                   uint32_t* taken, Refusal* refusal);
  // Takes back a list of free blocks.
  void Give(BufferNode* list);

  // 1 to `count` nodes for further windows onto blocks of this pool. `taken`: how many.
  BufferNode* TakeNodes(uint32_t count, uint32_t* taken);
  void GiveNodes(BufferNode* list);

  // Whether an allocation was refused and no room has come since: blocks are then returned here at
  // once, not kept in caches.
  bool starved() const { return starved_.load(std::memory_order_relaxed); }
  // As above, ordered after all that the caller did before: for a loop about to sleep.
  bool starved_now() const { return starved_.load(std::memory_order_seq_cst); }

  void CountTag(const Block& block, BufferTag from, BufferTag to);

  // Leaves the whole slab of a live block out of core dumps; false when the kernel refuses.
  [[nodiscard]] bool HideFromDumps(const Block& block);

  PoolStats Stats() const;
  // `caller`: the calling thread's cache, or null.
  void Trim(PoolCache* caller);
  void AddSlabObserver(SlabObserver* observer);
  void RemoveSlabObserver(SlabObserver* observer);
  // Whether pages must stay where they are: an observer is a SlabPinner (slab_pinner.h).
  bool HasPinner() const;
  bool NotifyRoom(RoomWaiter* waiter);
  void ForgetRoom(RoomWaiter* waiter);

  void AddCache(PoolCache* cache);
  void RemoveCache(PoolCache* cache);
  // Waits for another thread that is emptying a cache.
  void AwaitDrain() const { const std::lock_guard<std::mutex> lock(mutex_); }

  // The pool is going. False when buffers are still out (reported in debug builds): the core must
  // then stay for them.
  bool Close();

  uint64_t NextSequence() { return next_sequence_.fetch_add(1, std::memory_order_relaxed); }

 private:
  using Lock = std::unique_lock<std::mutex>;
  using ByTag = std::array<uint64_t, kBufferTagCount>;
  static constexpr size_t kNothingWanted = std::numeric_limits<size_t>::max();

  struct ClassState {
    SlabList partial;
    SlabList full;
    uint64_t out = 0;         // bytes, live plus cached
    uint64_t high_water = 0;  // bytes
    uint64_t mapped = 0;      // bytes
    uint64_t refused = 0;
  };
  struct Telling {
    RoomWaiter* waiter;
    std::thread::id thread;
  };

  // All of these with mutex_ held.
  BufferNode* TakeOrReclaim(uint8_t size_class, uint32_t count, BufferTag tag, PoolCache* caller,
                            uint32_t* taken, Refusal* refusal);
  BufferNode* TakeUpTo(uint8_t size_class, uint32_t count, uint32_t* taken, Refusal* refusal);
  BufferNode* MapLarge(size_t size, Refusal* refusal);
  // Empties the caller's cache and those of sleeping loops. Leaves the pool starved: NoteRoom or
  // Refuse must follow.
  void Reclaim(PoolCache* caller);
  void Refuse(uint8_t size_class, size_t size, BufferTag tag, Refusal refusal);
  void GiveLocked(BufferNode* list);
  void ReturnToSlab(Block& block);
  void Charge(uint8_t size_class, size_t bytes);
  void Uncharge(uint8_t size_class, size_t bytes);
  // Bytes, as far as the caches have told.
  int64_t LiveOf(size_t size_class, size_t tag) const;
  // `tag` may be at its highest; and bytes that the kernel received, which were lent to it as
  // kRing.
  void NoteHighWater(BufferTag tag);
  // Does so now and then.
  void CountRequest(BufferTag tag);
  Slab* AcquireSlab(uint8_t size_class, int* error);
  Slab* AdoptEmptySlab(Slab* slab, uint8_t size_class, int* error);
  void UnmapSlab(Slab* slab);
  // The coldest, until `kept` are left; returns how many.
  size_t UnmapEmptySlabs(size_t kept);
  void KeepFewerEmptySlabs();
  template <typename Visit>
  void ForEachSlab(Visit visit) const;
#if PENSTOCK_POOL_CHECKS
  std::string LeakReport() const;
#endif
  bool HasPinnerLocked() const;
  bool RoomForRefused() const;
  void MakeWaitersDue();
  // Ends being starved, and makes the waiters due, if there is room for the least of the refused.
  void NoteRoom();
  // Calls the waiters that are due; gives the lock up meanwhile.
  void TellWaiters(Lock& lock);

  const PoolOptions options_;
  Sys& sys_;
  std::atomic<bool> starved_{false};
  std::atomic<uint64_t> next_sequence_{1};

  mutable std::mutex mutex_;
  std::array<ClassState, kClassCount> classes_;
  SlabList empty_;  // most recently used first; of any class but the large one
  // A burst that empties slabs and fills them again soon would map and fault them in each time. So
  // a slab that is mapped after another was unmapped raises how many are kept, until the bursts
  // need fewer, or Trim.
  size_t empty_kept_;
  size_t regretted_ = 0;         // unmapped and not yet mapped again
  size_t empty_low_ = 0;         // fewest empty slabs since the last look
  uint32_t emptied_ = 0;         // slabs, ever
  PoolCounters counters_;        // of threads without a cache, and of caches that are gone
  size_t charged_ = 0;           // bytes, live plus cached
  uint64_t high_water_ = 0;      // of charged_
  mutable ByTag high_by_tag_{};  // raised by who looks
  ByTag refused_by_tag_{};
  ByTag requests_{};  // for blocks, by caches and by threads without one
  PoolCache* caches_ = nullptr;
  BufferNode* nodes_ = nullptr;
  std::vector<std::unique_ptr<BufferNode[]>> node_chunks_;
  std::vector<SlabObserver*> observers_;

  // The least that would satisfy a refused allocation, in bytes; 0 when the kernel refused it.
  size_t wanted_ = kNothingWanted;
  bool freed_ = false;  // a block has come back since the last refusal
  std::vector<RoomWaiter*> waiters_;
  std::vector<RoomWaiter*> due_;  // to be told
  std::vector<Telling> telling_;  // being told, by which thread
  std::condition_variable told_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_POOL_CORE_H_
