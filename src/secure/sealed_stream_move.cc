// How a sealed stream changes loops, and ends with one.
#include <utility>

#include "secure/sealed_stream.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void SealedStream::OnLeave() {
  Cancel();
  if (extras_ != nullptr) seal_loop_->core().timers().Cancel(extras_->rest);
  seal_loop_->core().counters().sealed_pinned_bytes.Sub(std::exchange(pinned_, 0));
  if (opener_.has_value()) opener_->Leave();
  if (sealer_.has_value()) sealer_->Leave();
  SealMember::Leave();
  seal_loop_ = nullptr;
}

absl::Status SealedStream::OnJoin(LoopCore& loop) {
  const absl::StatusOr<SealLoop*> joined = SealLoop::Of(loop);
  if (!joined.ok()) return joined.status();
  seal_loop_ = *joined;
  seal_loop_->Join(*this);
  if (opener_.has_value()) opener_->Join(seal_loop_->contexts(), loop.pool());
  if (sealer_.has_value()) sealer_->Join(seal_loop_->contexts(), loop.pool());
  UpdatePinned();
  MarkReady();
  return absl::OkStatus();
}

void SealedStream::EndWithLoop() {
  Hold();
  {
    const Callbacks unrun = TakeCallbacks();
    const BufferChain unsent = plain_.Take();
    Cancel();
    DropReceived();
    UpdatePinned();
    // Its cipher context goes back now, on the loop's thread; what is left may go on any.
    sealer_.reset();
    seal_loop_ = nullptr;
    if (written_ > bytes_out_ + batch_ && below_ != nullptr) below_->Abort();
    if (lingering_) FinishLinger();
  }
  Drop();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
