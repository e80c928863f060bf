// Writes that are refused, and callbacks that wait behind the first.
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void Connection::RefuseWrite(size_t size, DoneCallback&& done) {
  absl::Status refusal = write_end_;
  if (write_side_ != WriteSide::kOpen) {
    refusal = Refusal("write", "after ShutdownWrite");
  } else if (refusal.ok()) {
    loop_->counters().writes_refused.Add(1);
    refusal = absl::ResourceExhaustedError(
        absl::StrCat("write to ", peer_.ToString(), ": ", size, " bytes on top of ", tx_.size(),
                     " queued exceed send_queue_max ", send_queue_max_));
  }
  // Nobody would learn that bytes of the stream are missing.
  if (!done && size > 0 && write_end_.ok()) return End(std::move(refusal), true);
  AddRefusedWrite(std::move(done), std::move(refusal));
}

void Connection::QueueWrite(PendingWrite&& write) {
  Extras& rare = extras();
  const bool empty = write.empty;
  rare.more_writes.push(std::move(write));
  if (!empty || ++rare.empty_writes <= kEmptyWritesMax || !write_end_.ok()) [[likely]]
    return;
  loop_->counters().writes_refused.Add(1);
  End(absl::ResourceExhaustedError(
          absl::StrCat("write to ", peer_.ToString(), ": ", kEmptyWritesMax,
                       " callbacks of writes without a byte wait already")),
      true);
}

void Connection::UnqueueWrite() {
  if (extras_->more_writes.empty()) return;
  first_write_ = extras_->more_writes.pop();
  extras_->empty_writes -= first_write_.empty;
}

void Connection::AddRefusedWrite(DoneCallback&& done, absl::Status refusal) {
  if (!done) return;
  PendingWrite write{std::move(done), bytes_out_ + tx_.size(), true, std::move(refusal)};
  if (!first_write_.done) {
    first_write_ = std::move(write);
  } else {
    QueueWrite(std::move(write));
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
