#include "buffer/pool_core.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "buffer/pool_cache.h"
#include "buffer/slab_pinner.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr size_t kLargeUnit = 4096;
constexpr uint32_t kNodesPerChunk = 128;
// Slabs that became empty between two looks at how many empty ones are needed.
constexpr uint32_t kEmptiedPerLook = 64;
// A look at what is live reads what the threads of all caches write, under the lock.
constexpr uint32_t kRequestsPerLook = 64;

template <typename T>
void AddOnce(std::vector<T*>& list, T* item) {
  if (std::find(list.begin(), list.end(), item) == list.end()) list.push_back(item);
}

// A sum of counts that were read one by one while other threads went on: some may have crossed.
uint64_t Within(int64_t sum, uint64_t most) {
  return std::min(static_cast<uint64_t>(std::max<int64_t>(sum, 0)), most);
}

template <typename T>
void Erase(std::vector<T*>& list, T* item) {
  list.erase(std::remove(list.begin(), list.end(), item), list.end());
}

}  // namespace

PoolCore::PoolCore(const PoolOptions& options, Sys& sys)
    : options_(options), sys_(sys), empty_kept_(options.empty_slabs_kept) {}

PoolCore::~PoolCore() {
  UnmapEmptySlabs(0);
  PENSTOCK_CHECK(caches_ == nullptr, "a pool was destroyed before a loop that uses it");
}

BufferNode* PoolCore::Allocate(size_t size, BufferTag tag, Refusal* refusal) {
  if (size > kBlockSizeMax) return AllocateLarge(size, tag, nullptr, refusal);
  Lock lock(mutex_);
  uint32_t taken;
  BufferNode* node = TakeOrReclaim(ClassOf(size), 1, tag, nullptr, &taken, refusal);
  if (node != nullptr) counters_.Add(BlockOfFree(node), tag);
  CountRequest(tag);
  TellWaiters(lock);
  return node != nullptr ? StartBlock(BlockOfFree(node), tag) : nullptr;
}

BufferNode* PoolCore::AllocateLarge(size_t size, BufferTag tag, PoolCache* caller,
                                    Refusal* refusal) {
  Lock lock(mutex_);
  BufferNode* node = MapLarge(size, refusal);
  if (node == nullptr) {
    Reclaim(caller);
    node = MapLarge(size, refusal);
    node != nullptr ? NoteRoom() : Refuse(kLargeClass, size, tag, *refusal);
  }
  if (node != nullptr) counters_.Add(BlockOfFree(node), tag);
  NoteHighWater(tag);
  TellWaiters(lock);
  return node != nullptr ? StartBlock(BlockOfFree(node), tag) : nullptr;
}

BufferNode* PoolCore::MapLarge(size_t size, Refusal* refusal) {
  *refusal = 0;
  // The second keeps the sum below from overflowing.
  if (size > options_.bytes_max || size > SIZE_MAX - kLargeUnit) return nullptr;
  const size_t bytes = (size + kLargeUnit - 1) / kLargeUnit * kLargeUnit;
  if (bytes > options_.bytes_max - charged_) return nullptr;
  char* base = MapBlocks(sys_, bytes, options_, refusal);
  if (base == nullptr) return nullptr;
  Slab* slab = MakeSlab(sys_, this, base, bytes, kLargeClass, options_.secret, refusal);
  if (slab == nullptr) {
    UnmapBlocks(sys_, base, bytes);
    return nullptr;
  }
  ClassState& state = classes_[kLargeClass];
  state.mapped += bytes;
  state.full.PushBack(slab);
  for (SlabObserver* observer : observers_) observer->OnSlabBorn(base, bytes);
  Charge(kLargeClass, bytes);
  return &slab->Pop()->primary;
}

void PoolCore::Return(Block& block) {
  Lock lock(mutex_);
  counters_.Subtract(block, block.tag);
  ReturnToSlab(block);
  if (starved()) NoteRoom();
  TellWaiters(lock);
}

BufferNode* PoolCore::Take(uint8_t size_class, uint32_t count, BufferTag tag, PoolCache* caller,
                           uint32_t* taken, Refusal* refusal) {
  Lock lock(mutex_);
  CountRequest(tag);
  BufferNode* list = TakeOrReclaim(size_class, count, tag, caller, taken, refusal);
  TellWaiters(lock);
  return list;
}

void PoolCore::Give(BufferNode* list) {
  Lock lock(mutex_);
  GiveLocked(list);
  if (starved()) NoteRoom();
  TellWaiters(lock);
}

BufferNode* PoolCore::TakeOrReclaim(uint8_t size_class, uint32_t count, BufferTag tag,
                                    PoolCache* caller, uint32_t* taken, Refusal* refusal) {
  const uint64_t before = high_water_;
  BufferNode* list = TakeUpTo(size_class, count, taken, refusal);
  if (high_water_ > before) {
    // Rare. Whoever asks has the blocks before these in use: not one may be when somebody looks.
    for (size_t i = 0; i < kBufferTagCount; ++i) NoteHighWater(static_cast<BufferTag>(i));
  }
  if (list != nullptr) return list;
  Reclaim(caller);
  list = TakeUpTo(size_class, 1, taken, refusal);
  list != nullptr ? NoteRoom() : Refuse(size_class, kBlockSizes[size_class], tag, *refusal);
  return list;
}

BufferNode* PoolCore::TakeUpTo(uint8_t size_class, uint32_t count, uint32_t* taken,
                               Refusal* refusal) {
  *taken = 0;
  *refusal = 0;
  const size_t size = kBlockSizes[size_class];
  // While others wait, nobody stocks up.
  if (starved()) count = 1;
  count = static_cast<uint32_t>(std::min<size_t>(count, (options_.bytes_max - charged_) / size));
  BufferNode* list = nullptr;
  BufferNode** end = &list;
  ClassState& state = classes_[size_class];
  while (*taken < count) {
    Slab* slab = state.partial.front();
    if (slab == nullptr) {
      if (*taken != 0) break;  // a batch is no reason to map
      slab = AcquireSlab(size_class, refusal);
      if (slab == nullptr) break;
      state.partial.PushFront(slab);
    }
    Block* block = slab->Pop();
    if (slab->full()) {
      state.partial.Remove(slab);
      state.full.PushBack(slab);
    }
    *end = &block->primary;
    end = &block->primary.next;
    ++*taken;
  }
  *end = nullptr;
  Charge(size_class, size * *taken);
  return list;
}

void PoolCore::Reclaim(PoolCache* caller) {
  // From here to the end of the refusal, if it comes to that, without a gap: a loop that parks its
  // cache either sees this or has its cache emptied here.
  starved_.store(true, std::memory_order_seq_cst);
  for (PoolCache* cache = caches_; cache != nullptr; cache = cache->next_cache_) {
    if (cache == caller) {
      GiveLocked(cache->TakeAll());
    } else if (cache->TryBeginDrain()) {
      GiveLocked(cache->TakeAll());
      cache->EndDrain();
    }
  }
}

void PoolCore::Refuse(uint8_t size_class, size_t size, BufferTag tag, Refusal refusal) {
  ++classes_[size_class].refused;
  ++refused_by_tag_[static_cast<size_t>(tag)];
  NoteHighWater(tag);
  if (RoomForRefused()) MakeWaitersDue();
  wanted_ = std::min(wanted_, refusal == 0 ? std::min(size, options_.bytes_max) : 0);
  freed_ = false;
}

bool PoolCore::RoomForRefused() const { return freed_ && options_.bytes_max - charged_ >= wanted_; }

void PoolCore::MakeWaitersDue() {
  wanted_ = kNothingWanted;
  for (RoomWaiter* waiter : waiters_) AddOnce(due_, waiter);
  waiters_.clear();
}

void PoolCore::NoteRoom() {
  if (wanted_ != kNothingWanted) {
    if (!RoomForRefused()) return;
    MakeWaitersDue();
  }
  starved_.store(false, std::memory_order_seq_cst);
}

void PoolCore::GiveLocked(BufferNode* list) {
  while (list != nullptr) {
    Block& block = BlockOfFree(list);
    list = list->next;
    ReturnToSlab(block);
  }
}

void PoolCore::ReturnToSlab(Block& block) {
  Slab* slab = SlabOf(block);
  ClassState& state = classes_[slab->size_class];
  Uncharge(slab->size_class, BlockSize(block));
  if (slab->full()) {
    state.full.Remove(slab);
    if (slab->size_class == kLargeClass) return UnmapSlab(slab);
    state.partial.PushBack(slab);
  }
  slab->Push(block);
  if (slab->out != 0) return;
  state.partial.Remove(slab);
  empty_.PushFront(slab);
  if (++emptied_ % kEmptiedPerLook == 0) KeepFewerEmptySlabs();
  regretted_ += UnmapEmptySlabs(empty_kept_);
}

void PoolCore::KeepFewerEmptySlabs() {
  // Of those that no burst has reached since the last look, half goes.
  const size_t idle = std::min(empty_low_, empty_kept_ - options_.empty_slabs_kept);
  empty_kept_ -= (idle + 1) / 2;
  empty_low_ = empty_.size();
  regretted_ /= 2;
}

void PoolCore::Charge(uint8_t size_class, size_t bytes) {
  ClassState& state = classes_[size_class];
  state.out += bytes;
  state.high_water = std::max(state.high_water, state.out);
  charged_ += bytes;
  high_water_ = std::max<uint64_t>(high_water_, charged_);
}

void PoolCore::Uncharge(uint8_t size_class, size_t bytes) {
  classes_[size_class].out -= bytes;
  charged_ -= bytes;
  freed_ = true;
}

Slab* PoolCore::AcquireSlab(uint8_t size_class, int* error) {
  for (Slab* slab = empty_.front(); slab != nullptr; slab = slab->next) {
    if (slab->size_class != size_class) continue;
    empty_.Remove(slab);
    empty_low_ = std::min(empty_low_, empty_.size());
    return slab;
  }
  if (Slab* slab = empty_.front()) return AdoptEmptySlab(slab, size_class, error);
  char* base = MapBlocks(sys_, kSlabSize, options_, error);
  if (base == nullptr) return nullptr;
  Slab* slab = MakeSlab(sys_, this, base, kSlabSize, size_class, options_.secret, error);
  if (slab == nullptr) {
    UnmapBlocks(sys_, base, kSlabSize);
    return nullptr;
  }
  classes_[size_class].mapped += kSlabSize;
  empty_low_ = 0;
  if (regretted_ > 0) {
    --regretted_;
    ++empty_kept_;
  }
  for (SlabObserver* observer : observers_) observer->OnSlabBorn(base, kSlabSize);
  return slab;
}

// Cuts a slab that another class left into blocks of `size_class`.
Slab* PoolCore::AdoptEmptySlab(Slab* slab, uint8_t size_class, int* error) {
  Slab* adopted = MakeSlab(sys_, this, slab->base, kSlabSize, size_class, options_.secret, error);
  if (adopted == nullptr) return nullptr;
  adopted->undumped.store(slab->undumped.load(std::memory_order_relaxed),
                          std::memory_order_relaxed);
  empty_.Remove(slab);
  empty_low_ = std::min(empty_low_, empty_.size());
  classes_[slab->size_class].mapped -= kSlabSize;
  classes_[size_class].mapped += kSlabSize;
  DropSlab(sys_, slab);
  PoisonMemory(adopted->base, kSlabSize);
  return adopted;
}

void PoolCore::UnmapSlab(Slab* slab) {
  for (SlabObserver* observer : observers_) observer->OnSlabDied(slab->base, slab->size);
  classes_[slab->size_class].mapped -= slab->size;
  UnmapBlocks(sys_, slab->base, slab->size);
  DropSlab(sys_, slab);
}

size_t PoolCore::UnmapEmptySlabs(size_t kept) {
  size_t unmapped = 0;
  for (; empty_.size() > kept; ++unmapped) {
    Slab* coldest = empty_.back();
    empty_.Remove(coldest);
    UnmapSlab(coldest);
  }
  return unmapped;
}

BufferNode* PoolCore::TakeNodes(uint32_t count, uint32_t* taken) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (nodes_ == nullptr) {
    node_chunks_.push_back(std::make_unique<BufferNode[]>(kNodesPerChunk));
    BufferNode* chunk = node_chunks_.back().get();
    for (uint32_t i = 0; i < kNodesPerChunk; ++i) chunk[i].next = i == 0 ? nullptr : &chunk[i - 1];
    nodes_ = &chunk[kNodesPerChunk - 1];
  }
  BufferNode* list = nodes_;
  BufferNode* last = list;
  for (*taken = 1; *taken < count && last->next != nullptr; ++*taken) last = last->next;
  nodes_ = std::exchange(last->next, nullptr);
  return list;
}

void PoolCore::GiveNodes(BufferNode* list) {
  const std::lock_guard<std::mutex> lock(mutex_);
  while (list != nullptr) {
    BufferNode* node = std::exchange(list, list->next);
    node->next = nodes_;
    nodes_ = node;
  }
}

void PoolCore::CountTag(const Block& block, BufferTag from, BufferTag to) {
  const std::lock_guard<std::mutex> lock(mutex_);
  counters_.Subtract(block, from);
  counters_.Add(block, to);
}

bool PoolCore::HideFromDumps(const Block& block) {
  Slab* const slab = SlabOf(block);
  if (slab->undumped.load(std::memory_order_relaxed)) return true;
  // Without the lock: the slab stays while the caller has a block of it, and to ask twice is no
  // harm. A kernel that refuses is asked again by each mark.
  if (sys_.Advise(slab->base, slab->size, MADV_DONTDUMP) != 0) return false;
  slab->undumped.store(true, std::memory_order_relaxed);
  return true;
}

void PoolCore::Trim(PoolCache* caller) {
  Lock lock(mutex_);
  Reclaim(caller);
  NoteRoom();
  UnmapEmptySlabs(0);
  empty_kept_ = options_.empty_slabs_kept;
  empty_low_ = 0;
  regretted_ = 0;
  const bool pinned = HasPinnerLocked();
  for (ClassState& state : classes_) {
    if (pinned) break;  // see slab_pinner.h
    for (Slab* slab = state.partial.front(); slab != nullptr; slab = slab->next) {
      ReleaseFreePages(sys_, *slab);
    }
  }
  TellWaiters(lock);
}

bool PoolCore::HasPinner() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return HasPinnerLocked();
}

bool PoolCore::HasPinnerLocked() const {
  return std::any_of(observers_.begin(), observers_.end(), [](SlabObserver* observer) {
    return dynamic_cast<SlabPinner*>(observer) != nullptr;
  });
}

template <typename Visit>
void PoolCore::ForEachSlab(Visit visit) const {
  const auto walk = [&](const SlabList& list) {
    for (Slab* slab = list.front(); slab != nullptr; slab = slab->next) visit(*slab);
  };
  walk(empty_);
  for (const ClassState& state : classes_) {
    walk(state.partial);
    walk(state.full);
  }
}

void PoolCore::AddSlabObserver(SlabObserver* observer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  observers_.push_back(observer);
  ForEachSlab([&](Slab& slab) { observer->OnSlabBorn(slab.base, slab.size); });
}

void PoolCore::RemoveSlabObserver(SlabObserver* observer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Erase(observers_, observer);
}

bool PoolCore::NotifyRoom(RoomWaiter* waiter) {
  Lock lock(mutex_);
  if (starved()) {
    AddOnce(waiters_, waiter);
    return charged_ != 0 && wanted_ != 0;
  }
  // Room came between the refusal and this call.
  AddOnce(due_, waiter);
  TellWaiters(lock);
  return true;
}

void PoolCore::ForgetRoom(RoomWaiter* waiter) {
  Lock lock(mutex_);
  Erase(waiters_, waiter);
  Erase(due_, waiter);
  // Another thread may be inside its OnRoom(); this one may be too, and must not wait for itself.
  told_.wait(lock, [&] {
    return std::none_of(telling_.begin(), telling_.end(), [&](const Telling& telling) {
      return telling.waiter == waiter && telling.thread != std::this_thread::get_id();
    });
  });
}

void PoolCore::TellWaiters(Lock& lock) {
  while (!due_.empty()) {
    RoomWaiter* waiter = due_.back();
    due_.pop_back();
    const auto self = std::this_thread::get_id();
    telling_.push_back({waiter, self});
    lock.unlock();
    waiter->OnRoom();
    lock.lock();
    telling_.erase(std::find_if(telling_.begin(), telling_.end(), [&](const Telling& telling) {
      return telling.waiter == waiter && telling.thread == self;
    }));
    told_.notify_all();
  }
}

void PoolCore::AddCache(PoolCache* cache) {
  const std::lock_guard<std::mutex> lock(mutex_);
  cache->next_cache_ = caches_;
  caches_ = cache;
}

void PoolCore::RemoveCache(PoolCache* cache) {
  const std::lock_guard<std::mutex> lock(mutex_);
  counters_.Merge(cache->counters_);
  PoolCache** link = &caches_;
  while (*link != cache) link = &(*link)->next_cache_;
  *link = cache->next_cache_;
}

int64_t PoolCore::LiveOf(size_t size_class, size_t tag) const {
  int64_t live = counters_.live(size_class, tag);
  for (const PoolCache* cache = caches_; cache != nullptr; cache = cache->next_cache_) {
    live += cache->counters_.live(size_class, tag);
  }
  return live;
}

void PoolCore::CountRequest(BufferTag tag) {
  if (++requests_[static_cast<size_t>(tag)] % kRequestsPerLook == 0) NoteHighWater(tag);
}

void PoolCore::NoteHighWater(BufferTag tag) {
  const auto note = [this](BufferTag of) {
    const auto index = static_cast<size_t>(of);
    if (charged_ <= high_by_tag_[index]) return;
    int64_t live = 0;
    for (size_t i = 0; i < kClassCount; ++i) live += LiveOf(i, index);
    high_by_tag_[index] = std::max(high_by_tag_[index], Within(live, charged_));
  };
  note(tag);
  if (tag == BufferTag::kRing) note(BufferTag::kReceive);
}

PoolStats PoolCore::Stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  PoolStats stats;
  stats.class_count = kClassCount;
  stats.high_water = high_water_;
  stats.refused_by_tag = refused_by_tag_;
  std::array<int64_t, kBufferTagCount> live_by_tag{};
  for (size_t i = 0; i < kClassCount; ++i) {
    PoolStats::Class& result = stats.classes[i];
    const ClassState& state = classes_[i];
    result.block_size = i == kLargeClass ? 0 : kBlockSizes[i];
    result.mapped = state.mapped;
    result.high_water = state.high_water;
    result.refused = state.refused;
    int64_t live = 0;
    for (size_t tag = 0; tag < kBufferTagCount; ++tag) {
      const int64_t of_tag = LiveOf(i, tag);
      live += of_tag;
      live_by_tag[tag] += of_tag;
    }
    result.live = Within(live, state.out);
    if (i != kLargeClass) {
      for (const PoolCache* cache = caches_; cache != nullptr; cache = cache->next_cache_) {
        result.cached += uint64_t{cache->hot_[i].Count()} * kBlockSizes[i];
      }
    }
    stats.cached += result.cached;
    stats.mapped += result.mapped;
    stats.refused += result.refused;
  }
  int64_t live = 0;
  for (size_t tag = 0; tag < kBufferTagCount; ++tag) {
    stats.live_by_tag[tag] = Within(live_by_tag[tag], charged_);
    high_by_tag_[tag] = std::max(high_by_tag_[tag], stats.live_by_tag[tag]);
    if (tag != static_cast<size_t>(BufferTag::kRing)) live += live_by_tag[tag];
  }
  stats.live = Within(live, charged_);
  stats.high_water_by_tag = high_by_tag_;
  stats.ring = stats.live_by_tag[static_cast<size_t>(BufferTag::kRing)];
  return stats;
}

#if PENSTOCK_POOL_CHECKS
std::string PoolCore::LeakReport() const {
  constexpr int kLinesMax = 16;
  int count = 0;
  std::string lines;
  ForEachSlab([&](Slab& slab) {
    for (uint32_t i = 0; i < slab.carved; ++i) {
      const Block& block = slab.blocks()[i];
      if (block.live && count++ < kLinesMax) {
        absl::StrAppend(&lines, "\n  ", DescribeBlock(block));
      }
    }
  });
  if (count > kLinesMax) absl::StrAppend(&lines, "\n  and ", count - kLinesMax, " more");
  return absl::StrCat("a pool was destroyed with ", count, " buffers (", charged_,
                      " bytes) not returned:", lines);
}
#endif

bool PoolCore::Close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (charged_ == 0 || caches_ != nullptr) return true;
  observers_.clear();
  waiters_.clear();
#if PENSTOCK_POOL_CHECKS
  PoolFailure(LeakReport());
#endif
  return false;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
