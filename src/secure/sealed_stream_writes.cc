// What a sealed stream refuses, callbacks that wait behind the first, and the room for these.
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "secure/sealed_stream.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Room for callbacks beyond the first is given back after one to two of these without use.
constexpr absl::Duration kRestAfter = absl::Seconds(1);

}  // namespace

void SealedStream::RefuseRead(ReadCallback&& done) { extras().refused_reads.push(std::move(done)); }

void SealedStream::RefuseWrite(size_t size, DoneCallback&& done) {
  absl::Status refusal = write_end_;
  if (write_side_ != WriteSide::kOpen) {
    refusal = Refusal("write", "after ShutdownWrite");
  } else if (refusal.ok()) {
    seal_loop_->core().counters().writes_refused.Add(1);
    refusal = absl::ResourceExhaustedError(
        absl::StrCat("write to ", peer().ToString(), ": ", size, " bytes on top of ", queued(),
                     " queued exceed send_queue_max ", bounds_.max));
  }
  // Nobody would learn that bytes of the stream are missing.
  if (!done && size > 0 && write_end_.ok()) return Fail(std::move(refusal));
  AddRefusedWrite(std::move(done), std::move(refusal));
}

void SealedStream::AddRefusedWrite(DoneCallback&& done, absl::Status refusal) {
  if (!done) return;
  PendingWrite write{written_, std::move(done), std::move(refusal)};
  if (first_write_.done) return QueueWrite(std::move(write));
  first_write_ = std::move(write);
}

void SealedStream::QueueWrite(PendingWrite&& write) { extras().more_writes.push(std::move(write)); }

void SealedStream::UnqueueWrite() {
  if (!extras_->more_writes.empty()) first_write_ = extras_->more_writes.pop();
}

void SealedStream::WatchExtras() {
  if (extras_->rest.armed() || !extras_->idle()) return;
  extras_->used = false;
  LoopCore& core = seal_loop_->core();
  core.timers().Schedule(extras_->rest, TimerWheel::DeadlineTick(core.sys().Now(), kRestAfter));
}

void SealedStream::OnRested() {
  if (extras_->used) {
    WatchExtras();  // or the next Settle does
  } else {
    extras_ = nullptr;
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
