// HeapBuffer: bytes of the heap as a Buffer, for the few that must not wait for the pool: what is
// owed to a peer, and what has to leave its block before the pool can have room again.
//
// A function; any thread. The bytes are wiped and freed with the last window onto them.
#ifndef PENSTOCK_BUFFER_HEAP_BUFFER_H_
#define PENSTOCK_BUFFER_HEAP_BUFFER_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <string>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

Buffer HeapBuffer(std::string bytes);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BUFFER_HEAP_BUFFER_H_
