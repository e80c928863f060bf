#include "secure/plain_queue.h"

#include <utility>

#include "buffer/block.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Bytes of the block that the end of `first` and the beginning of `second` share, 0 when they do
// not: what counting the blocks of both counts twice.
size_t SharedBlock(const BufferChain& first, const BufferChain& second) {
  if (first.empty() || second.empty()) return 0;
  const Block& block = *BufferAccess::Tail(first)->block;
  return &block == BufferAccess::Head(second)->block ? BlockSize(block) : 0;
}

}  // namespace

void PlainQueue::AppendBehind(BufferChain data) {
  blocks_ += data.block_bytes() - SharedBlock(chain_, data);
  chain_.Append(std::move(data));
}

void PlainQueue::PutBack(BufferChain data) {
  blocks_ += data.block_bytes() - SharedBlock(data, chain_);
  data.Append(std::move(chain_));
  chain_ = std::move(data);
}

BufferChain PlainQueue::CutFront(size_t size) {
  BufferChain front;
  while (front.size() < size) front.Append(chain_.PopFront());
  blocks_ -= front.block_bytes() - SharedBlock(front, chain_);
  return front;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
