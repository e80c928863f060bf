#include "buffer/pool_cache.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/check.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr uint32_t kHotBlocksMax = 64;
constexpr uint32_t kHotBytesMax = 256 << 10;
constexpr uint32_t kHotBlocksMin = 2;
constexpr uint32_t kSpareNodesMax = 128;

void Wipe(Block& block) {
  // The kernel may have written to a ring's block behind any window.
  const bool whole =
      block.tag == BufferTag::kRing || block.used_end == std::numeric_limits<uint32_t>::max();
  explicit_bzero(block.base, whole ? BlockSize(block) : block.used_end);
  block.secret.store(block.core->options().secret, std::memory_order_relaxed);
#if PENSTOCK_POOL_CHECKS
  block.wiped = true;
#endif
}

}  // namespace

constinit thread_local PoolCache* current_cache = nullptr;

PoolCache::PoolCache(PoolCore& core) : core_(core) {
  for (size_t i = 0; i < kBlockClasses; ++i) {
    hot_[i].max = std::clamp(kHotBytesMax / kBlockSizes[i], kHotBlocksMin, kHotBlocksMax);
  }
  core_.AddCache(this);
}

PoolCache::~PoolCache() {
  PENSTOCK_CHECK(depth_ == 0, "a cache was destroyed inside its scope");
  Unpark();
  GiveAll();
  core_.GiveNodes(spare_nodes_);
  core_.RemoveCache(this);
}

void PoolCache::UnparkDrained() {
  State expected;
  do {
    core_.AwaitDrain();
    expected = State::kParked;
  } while (!state_.compare_exchange_strong(expected, State::kActive, std::memory_order_acquire));
}

void PoolCache::ParkEmpty() {
  Unpark();
  GiveAll();
  state_.store(State::kParked, std::memory_order_release);
}

bool PoolCache::TryBeginDrain() {
  State expected = State::kParked;
  return state_.compare_exchange_strong(expected, State::kDraining, std::memory_order_seq_cst);
}

bool PoolCache::Refill(uint8_t size_class, BufferTag tag, PoolCore::Refusal* refusal) {
  PENSTOCK_CHECK(depth_ != 0, "a cache was used outside its scope");
  HotList& hot = hot_[size_class];
  uint32_t taken;
  BufferNode* const list = core_.Take(size_class, hot.max / 2, tag, this, &taken, refusal);
  if (list == nullptr) return hot.head != nullptr;
  // Whoever was told of room meanwhile, on this thread, may have filled the list as well.
  BufferNode* last = list;
  if (hot.head != nullptr) {
    while (last->next != nullptr) last = last->next;
    last->next = hot.head;
  }
  hot.head = list;
  hot.SetCount(hot.Count() + taken);
  return true;
}

void PoolCache::Overflow(Block& block) {
  HotList& hot = hot_[block.size_class];
  // A list with room means that the core was starved, even if it no longer is.
  if (hot.Count() < hot.max || core_.starved()) {
    block.primary.next = TakeAll();
    return core_.Give(&block.primary);
  }
  // The blocks used last stay.
  const uint32_t kept = hot.Count() / 2;
  BufferNode* last = hot.head;
  for (uint32_t i = 1; i < kept; ++i) last = last->next;
  BufferNode* cold = std::exchange(last->next, nullptr);
  block.primary.next = hot.head;
  hot.head = &block.primary;
  hot.SetCount(kept + 1);
  core_.Give(cold);
}

BufferNode* PoolCache::TakeAll() {
  BufferNode* all = nullptr;
  for (HotList& hot : hot_) {
    if (hot.head == nullptr) continue;
    BufferNode* last = hot.head;
    while (last->next != nullptr) last = last->next;
    last->next = all;
    all = std::exchange(hot.head, nullptr);
    hot.SetCount(0);
  }
  return all;
}

void PoolCache::Flush() {
  PENSTOCK_CHECK(depth_ != 0, "a cache was flushed outside its scope");
  GiveAll();
}

void PoolCache::GiveAll() {
  if (BufferNode* all = TakeAll()) core_.Give(all);
}

BufferNode* PoolCache::TakeSpareNode() {
  if (spare_nodes_ == nullptr) {
    spare_nodes_ = core_.TakeNodes(kSpareNodesMax / 4, &spare_node_count_);
  }
  --spare_node_count_;
  return std::exchange(spare_nodes_, spare_nodes_->next);
}

void PoolCache::KeepSpareNode(BufferNode* node) {
  node->next = spare_nodes_;
  spare_nodes_ = node;
  if (++spare_node_count_ <= kSpareNodesMax) return;
  BufferNode* last = spare_nodes_;
  for (uint32_t i = 1; i < kSpareNodesMax / 2; ++i) last = last->next;
  spare_node_count_ = kSpareNodesMax / 2;
  core_.GiveNodes(std::exchange(last->next, nullptr));
}

void ReturnBlock(Block& block) {
  PoolCore* core = block.core;
  if (core == nullptr) {
    const std::unique_ptr<ExternalBlock> external(static_cast<ExternalBlock*>(&block));
    if (external->release) std::move(external->release)();
    return;
  }
  if (block.secret.load(std::memory_order_relaxed)) Wipe(block);
  if constexpr (kPoolChecks) CheckReturned(block);
  PoolCache* cache = PoolCache::CurrentFor(core);
  if (cache != nullptr && block.size_class < kBlockClasses) return cache->KeepBlock(block);
  core->Return(block);
}

BufferNode* NewNode(Block& block) {
  BufferNode* node;
  if (block.core == nullptr) {
    node = new BufferNode;
  } else if (PoolCache* cache = PoolCache::CurrentFor(block.core)) {
    node = cache->TakeSpareNode();
  } else {
    uint32_t taken;
    node = block.core->TakeNodes(1, &taken);
  }
  node->next = nullptr;
  node->block = &block;
#if PENSTOCK_POOL_CHECKS
  node->live = true;
  node->shared = false;
#endif
  return node;
}

void FreeNode(PoolCore* core, BufferNode* node) {
  if (core == nullptr) {
    delete node;
  } else if (PoolCache* cache = PoolCache::CurrentFor(core)) {
    cache->KeepSpareNode(node);
  } else {
    node->next = nullptr;
    core->GiveNodes(node);
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
