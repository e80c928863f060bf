// The off switch of ready reads: a Connection that receives into a buffer it holds from its birth
// on; the rest of it is in connection.cc.
#include <cstdlib>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

absl::StatusOr<bool> PinnedReadsByEnvironment() {
  const char* const text = std::getenv("PENSTOCK_PINNED_READS");
  const std::string_view value = text != nullptr ? text : "";
  if (value.empty() || value == "0") return false;
  if (value == "1") return true;
  return absl::InvalidArgumentError(
      absl::StrCat("environment PENSTOCK_PINNED_READS: '", text, "' is neither 0 nor 1"));
}

void Connection::PinReads() {
  pinned_reads_ = true;
  KeepPinnedBuffer(Buffer());
  UpdatePinned();
}

Buffer Connection::TakePinnedBuffer() { return std::exchange(extras().pinned_buffer, Buffer()); }

void Connection::KeepPinnedBuffer(Buffer buffer) {
  if (!buffer) buffer = loop_->pool().TryAllocate(receive_max_, BufferTag::kReceive);
  extras().pinned_buffer = std::move(buffer);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
