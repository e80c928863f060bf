#include <penstock/buffer.h>

#include "base/check.h"
#include "buffer/block.h"
#include "buffer/pool_cache.h"
#include "buffer/pool_core.h"
#include "buffer/slab.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

size_t OddBlockSize(const Block& block) {
  if (block.core == nullptr) return static_cast<const ExternalBlock&>(block).size;
  return SlabOf(block)->size;
}

}  // namespace internal

using internal::Block;
using internal::BufferNode;

namespace {

void Expect([[maybe_unused]] const BufferNode* node) {
#if PENSTOCK_POOL_CHECKS
  if (node != nullptr) CheckLive(*node, "used");
#endif
}

}  // namespace

Buffer Buffer::FromExternal(const void* data, size_t size, absl::AnyInvocable<void() &&> release) {
  auto* block = new internal::ExternalBlock;
  block->size = size;
  block->release = std::move(release);
  block->base = static_cast<char*>(const_cast<void*>(data));
  block->primary.block = block;
  block->primary.data = block->base;
  block->primary.size = size;
#if PENSTOCK_POOL_CHECKS
  block->primary.live = true;
#endif
  return Buffer(&block->primary);
}

const char* Buffer::data() const {
  Expect(node_);
  return node_ != nullptr ? node_->data : nullptr;
}

size_t Buffer::size() const {
  Expect(node_);
  return node_ != nullptr ? node_->size : 0;
}

char* Buffer::mutable_data() {
  Expect(node_);
  if (node_ == nullptr) return nullptr;
#if PENSTOCK_POOL_CHECKS
  PENSTOCK_CHECK(node_->block->core != nullptr, "mutable_data() of external memory");
  PENSTOCK_CHECK(!node_->shared || node_->block->windows.load(std::memory_order_acquire) == 1,
                 "mutable_data() of a shared buffer");
#endif
  return node_->data;
}

size_t Buffer::tailroom() const {
  Expect(node_);
  return node_ != nullptr ? NodeTailroom(*node_) : 0;
}

void Buffer::Extend(size_t n) {
  PENSTOCK_CHECK(n <= tailroom(), "Extend() beyond the tailroom");
  if (node_ != nullptr) NodeExtend(*node_, n);
}

void Buffer::Truncate(size_t n) {
  PENSTOCK_CHECK(n <= size(), "Truncate() beyond the window");
  if (node_ != nullptr) node_->size = n;
}

void Buffer::TrimFront(size_t n) {
  PENSTOCK_CHECK(n <= size(), "TrimFront() beyond the window");
  if (node_ == nullptr) return;
  node_->data += n;
  node_->size -= n;
}

Buffer Buffer::SplitFront(size_t n) {
  PENSTOCK_CHECK(n <= size(), "SplitFront() beyond the window");
  if (node_ == nullptr) return Buffer();
  BufferNode* front = internal::SplitNode(*node_, n);
  return Buffer(front);
}

Buffer Buffer::Share() const {
  Expect(node_);
  if (node_ == nullptr) return Buffer();
  node_->block->windows.fetch_add(1, std::memory_order_relaxed);
  BufferNode* other = internal::NewNode(*node_->block);
  other->data = node_->data;
  other->size = node_->size;
#if PENSTOCK_POOL_CHECKS
  node_->shared = true;
  other->shared = true;
#endif
  return Buffer(other);
}

bool Buffer::MarkSecret() {
  Expect(node_);
  if (node_ == nullptr || node_->block->core == nullptr) return false;
  node_->block->secret.store(true, std::memory_order_relaxed);
  return node_->block->core->HideFromDumps(*node_->block);
}

void Buffer::Reset() {
  if (node_ != nullptr) internal::ReleaseNode(std::exchange(node_, nullptr));
}

size_t Buffer::block_size() const {
  Expect(node_);
  return node_ != nullptr ? BlockSize(*node_->block) : 0;
}

PENSTOCK_END_NAMESPACE
