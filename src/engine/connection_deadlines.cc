// The deadlines of a Connection; the rest of it is in connection.cc.
#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

uint64_t Connection::NextDeadline() const {
  uint64_t next = UINT64_MAX;
  const auto consider = [&next](uint64_t since, uint32_t ms) {
    // One tick more than the deadline: `since` is a tick that had begun earlier.
    if (ms != kNever) next = std::min(next, since + ms + 1);
  };
  if (read_done_) consider(read_since_, read_deadline_ms_);
  if (!tx_.empty()) consider(write_since_, write_deadline_ms_);
  if (state_ == ConnectionState::kOpen) consider(active_at_, idle_deadline_ms_);
  return next;
}

void Connection::ArmTimer() {
  if (!alive()) return;
  // Queued bytes are waited for from here on, when a send has left them behind: what it takes at
  // once needs no look at the clock.
  if (write_since_ == 0 && !tx_.empty() && write_deadline_ms_ != kNever) {
    write_since_ = loop_->FreshTick();
  }
  const uint64_t next = NextDeadline();
  if (next == UINT64_MAX) return;
  if (!armed() || tick() > next) loop_->timers().Schedule(*this, next);
}

void Connection::OnTimer(TimerNode* node) { static_cast<Connection*>(node)->CheckDeadlines(); }

void Connection::CheckDeadlines() {
  const uint64_t now = loop_->FreshTick();
  const auto passed = [now](uint64_t since, uint32_t ms) {
    return ms != kNever && now >= since + ms + 1;
  };
  const auto end = [this](const char* what, uint32_t ms) {
    loop_->counters().deadlines.Add(1);
    End(absl::DeadlineExceededError(
            absl::StrCat("connection to ", peer_.ToString(), ": ", what, " for ", ms, " ms")),
        true);
  };
  if (!tx_.empty() && write_since_ != 0 && passed(write_since_, write_deadline_ms_)) {
    return end("queued bytes made no progress", write_deadline_ms_);
  }
  if (state_ == ConnectionState::kOpen && passed(active_at_, idle_deadline_ms_)) {
    return end("no byte either way", idle_deadline_ms_);
  }
  if (read_done_ && passed(read_since_, read_deadline_ms_)) {
    loop_->counters().deadlines.Add(1);
    read_timed_out_ = true;
    return MarkReady();
  }
  ArmDeadlines();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
