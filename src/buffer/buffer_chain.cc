#include <algorithm>
#include <cstring>

#include <penstock/buffer.h>

#include "base/check.h"
#include "buffer/pool_cache.h"

PENSTOCK_BEGIN_NAMESPACE

using internal::BufferAccess;
using internal::BufferNode;

size_t BufferChain::buffer_count() const {
  size_t count = 0;
  for (const BufferNode* node = head_; node != nullptr; node = node->next) ++count;
  return count;
}

size_t BufferChain::block_bytes() const {
  size_t bytes = 0;
  const internal::Block* previous = nullptr;
  for (const BufferNode* node = head_; node != nullptr; node = node->next) {
    if (node->block != previous) bytes += internal::BlockSize(*node->block);
    previous = node->block;
  }
  return bytes;
}

void BufferChain::Append(Buffer buffer) {
  BufferNode* node = BufferAccess::Node(buffer);
  if (node == nullptr || node->size == 0) return;
  BufferAccess::Append(*this, BufferAccess::Release(std::move(buffer)));
}

void BufferChain::Append(BufferChain chain) {
  if (chain.head_ == nullptr) return;
  (head_ != nullptr ? tail_->next : head_) = std::exchange(chain.head_, nullptr);
  tail_ = std::exchange(chain.tail_, nullptr);
  size_ += std::exchange(chain.size_, 0);
}

void BufferChain::Prepend(Buffer buffer) {
  if (buffer.empty()) return;
  BufferNode* node = BufferAccess::Release(std::move(buffer));
  node->next = head_;
  if (head_ == nullptr) tail_ = node;
  head_ = node;
  size_ += node->size;
}

std::string_view BufferChain::front() const {
  if (head_ == nullptr) return {};
  return {head_->data, head_->size};
}

Buffer BufferChain::PopFront() {
  return head_ != nullptr ? BufferAccess::PopFront(*this) : Buffer();
}

BufferChain BufferChain::SplitFront(size_t n) {
  PENSTOCK_CHECK(n <= size_, "SplitFront() beyond the chain");
  BufferChain front;
  while (n > 0 && head_->size <= n) {
    n -= head_->size;
    front.Append(PopFront());
  }
  if (n > 0) {
    front.Append(Buffer(internal::SplitNode(*head_, n)));
    size_ -= n;
  }
  return front;
}

void BufferChain::TrimFront(size_t n) {
  PENSTOCK_CHECK(n <= size_, "TrimFront() beyond the chain");
  // Released last: an external buffer's release may come back to this chain.
  BufferChain gone;
  while (n > 0 && head_->size <= n) {
    n -= head_->size;
    gone.Append(PopFront());
  }
  if (n == 0) return;
  head_->data += n;
  head_->size -= n;
  size_ -= n;
}

void BufferChain::Clear() {
  BufferNode* node = std::exchange(head_, nullptr);
  tail_ = nullptr;
  size_ = 0;
  while (node != nullptr) {
    BufferNode* next = node->next;
    internal::ReleaseNode(node);
    node = next;
  }
}

size_t BufferChain::FillIovec(std::span<iovec> out) const {
  return BufferAccess::FillIovec(*this, out);
}

size_t BufferChain::CopyTo(std::span<char> out) const {
  size_t copied = 0;
  for (const BufferNode* node = head_; node != nullptr && copied < out.size(); node = node->next) {
    const size_t n = std::min(node->size, out.size() - copied);
    std::memcpy(out.data() + copied, node->data, n);
    copied += n;
  }
  return copied;
}

std::string BufferChain::ToString() const {
  std::string text(size_, '\0');
  CopyTo(text);
  return text;
}

PENSTOCK_END_NAMESPACE
