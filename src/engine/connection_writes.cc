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
  Fifo<PendingWrite>& waiting = extras().more_writes;
  waiting.push(std::move(write));
  if (waiting.size() <= kWritesWaitingMax || !write_end_.ok()) [[likely]]
    return;
  loop_->counters().writes_refused.Add(1);
  End(absl::ResourceExhaustedError(absl::StrCat("write to ", peer_.ToString(), ": ",
                                                kWritesWaitingMax,
                                                " callbacks of earlier writes wait already")),
      true);
}

void Connection::UnqueueWrite() {
  if (!extras_->more_writes.empty()) first_write_ = extras_->more_writes.pop();
}

void Connection::AddRefusedWrite(DoneCallback&& done, absl::Status refusal) {
  if (!done) return;
  PendingWrite write{std::move(done), bytes_out_ + tx_.size(), std::move(refusal)};
  if (!first_write_.done) {
    first_write_ = std::move(write);
  } else {
    QueueWrite(std::move(write));
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
