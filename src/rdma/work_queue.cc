#include "rdma/work_queue.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

absl::Status WorkQueue::Admit(uint64_t bytes) const {
  if (works_.size() >= operations_max_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("queue_operations_max ", operations_max_, " are waiting already"));
  }
  if (bytes > bytes_max_ - std::min(bytes_max_, bytes_)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        bytes, " bytes on top of ", bytes_, " waiting exceed queue_bytes_max ", bytes_max_));
  }
  return absl::OkStatus();
}

void WorkQueue::Push(WorkList work) {
  bytes_ += Bytes(work.front());
  next_deadline_ns_ = std::min(next_deadline_ns_, work.front().deadline_ns);
  works_.splice(works_.end(), work);
}

WorkList WorkQueue::TakeFront() {
  WorkList first;
  first.splice(first.end(), works_, works_.begin());
  bytes_ -= Bytes(first.front());
  if (works_.empty()) next_deadline_ns_ = Work::kNever;
  return first;
}

WorkList WorkQueue::TakeExpired(int64_t now_ns) {
  WorkList expired = TakeIf([now_ns](const Work& work) { return work.deadline_ns <= now_ns; });
  next_deadline_ns_ = Work::kNever;
  for (const Work& work : works_) {
    if (!work.posted) next_deadline_ns_ = std::min(next_deadline_ns_, work.deadline_ns);
  }
  return expired;
}

WorkList WorkQueue::TakeAll() {
  bytes_ = 0;
  next_deadline_ns_ = Work::kNever;
  return std::exchange(works_, {});
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
