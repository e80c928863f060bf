#include "buffer/heap_buffer.h"

#include <cstring>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

Buffer HeapBuffer(std::string bytes) {
  auto* const kept = new std::string(std::move(bytes));
  return Buffer::FromExternal(kept->data(), kept->size(), [kept] {
    ::explicit_bzero(kept->data(), kept->size());
    delete kept;
  });
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
