// ChainCursor: a place in a chain's bytes, for walking the pieces without taking them off.
//
// Borrows the chain, which must not change meanwhile. One thread at a time.
#ifndef PENSTOCK_SECURE_CHAIN_CURSOR_H_
#define PENSTOCK_SECURE_CHAIN_CURSOR_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "buffer/block.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class ChainCursor {
 public:
  explicit ChainCursor(const BufferChain& chain) : node_(BufferAccess::Head(chain)) {}

  // The rest of the piece that the cursor is in: room() > 0 bytes, unless the chain has ended.
  char* here() const { return node_->data + at_; }
  size_t room() const { return node_ != nullptr ? node_->size - at_ : 0; }
  // `n` <= room().
  void Skip(size_t n) {
    at_ += n;
    if (at_ < node_->size) return;
    node_ = node_->next;
    at_ = 0;
  }
  // `n` <= what is left of the chain.
  void Advance(size_t n) {
    while (n > 0) {
      const size_t piece = std::min(n, room());
      Skip(piece);
      n -= piece;
    }
  }
  // Copies the next `n` bytes, no more than are left, and passes them.
  void Read(char* out, size_t n) {
    while (n > 0) {
      const size_t piece = std::min(n, room());
      std::memcpy(out, here(), piece);
      Skip(piece);
      out += piece;
      n -= piece;
    }
  }

 private:
  BufferNode* node_;
  size_t at_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_CHAIN_CURSOR_H_
