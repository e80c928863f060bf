// PlainQueue: what was written to a sealed stream and is not yet sealed, with the bytes of the
// blocks that it keeps.
//
// A value of its stream's, on the loop's thread. No operation but Take() looks at more of the queue
// than it adds or takes, however long it is.
#ifndef PENSTOCK_SECURE_PLAIN_QUEUE_H_
#define PENSTOCK_SECURE_PLAIN_QUEUE_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <cstddef>
#include <cstdint>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class PlainQueue {
 public:
  bool empty() const { return chain_.empty(); }
  // As BufferChain::block_bytes.
  uint64_t block_bytes() const { return blocks_; }

  void Append(BufferChain&& data) {
    if (!chain_.empty()) return AppendBehind(std::move(data));
    chain_ = std::move(data);
    blocks_ = chain_.block_bytes();
  }
  // Puts back in front what was taken and not used.
  void Prepend(BufferChain&& data) {
    if (!data.empty()) PutBack(std::move(data));
  }
  // Whole pieces from the front: `size` bytes or more, or all there are.
  BufferChain TakeFront(size_t size) { return chain_.size() <= size ? Take() : CutFront(size); }
  BufferChain Take() {
    blocks_ = 0;
    return std::move(chain_);  // leaves it empty
  }

 private:
  // These look for blocks that both parts have.
  void AppendBehind(BufferChain data);
  void PutBack(BufferChain data);
  BufferChain CutFront(size_t size);

  BufferChain chain_;
  uint64_t blocks_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_PLAIN_QUEUE_H_
