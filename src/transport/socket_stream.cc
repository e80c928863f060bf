#include "transport/socket_stream.h"

#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

Loop& SocketStream::loop() const { return connection_.loop()->loop(); }

}  // namespace internal
PENSTOCK_END_NAMESPACE
