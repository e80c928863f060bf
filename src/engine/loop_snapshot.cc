// LoopCore::Snapshot; the rest of the loop is in loop_core.cc.
#include <algorithm>
#include <cstddef>

#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

LoopSnapshot LoopCore::Snapshot() const {
  const LoopCounters& c = counters_;
  LoopSnapshot s;
  s.connecting = c.connecting.value();
  s.open = c.open.value();
  s.open_uring = c.open_uring.value();
  s.closing = c.closing.value();
  s.idle = s.open - std::min(s.open, c.busy.value());
  s.pinned_bytes = c.pinned_bytes.value();
  s.sealed_pinned_bytes = c.sealed_pinned_bytes.value();
  s.framed_pinned_bytes = c.framed_pinned_bytes.value();
  s.listeners = c.listeners.value();
  s.listeners_paused = c.listeners_paused.value();
  s.accepted = c.accepted.value();
  s.connected = c.connected.value();
  s.closed = c.closed.value();
  s.receives = c.receives.value();
  s.bytes_in = c.bytes_in.value();
  s.bytes_out = c.bytes_out.value();
  s.turns = c.turns.value();
  s.tasks = c.tasks.value();
  s.timers_fired = c.timers_fired.value();
  s.syscalls = c.syscalls.value();
  s.sqes = c.sqes.value();
  s.cqes = c.cqes.value();
  s.wakeups = mailbox_->wakeups();
  s.buffer_waits = c.buffer_waits.value();
  s.ring_exhausted = c.ring_exhausted.value();
  s.accept_errors = c.accept_errors.value();
  s.fd_exhausted = c.fd_exhausted.value();
  s.accepts_refused = c.accepts_refused.value();
  s.connections_refused = c.connections_refused.value();
  s.writes_refused = c.writes_refused.value();
  s.peer_resets = c.peer_resets.value();
  s.deadlines = c.deadlines.value();
  s.faults = c.faults.value();
  s.faults_epoll = c.faults_epoll.value();
  s.faults_uring = c.faults_uring.value();
  s.switches_to_epoll = c.switches_to_epoll.value();
  s.switches_to_uring = c.switches_to_uring.value();
  s.moves_in = c.moves_in.value();
  s.moves_out = c.moves_out.value();
  s.moves_back = c.moves_back.value();
  for (size_t direction = 0; direction < kMoveDirections; ++direction) {
    for (size_t why = 0; why < kMoveRefusals; ++why) {
      const uint64_t count = c.moves_refused[direction][why].value();
      s.moves_refused_by[direction][why] = count;
      s.moves_refused += count;
    }
  }
  s.stranded = c.stranded.value();
  s.late_completions = c.late_completions.value();
  s.bytes_carried = c.bytes_carried.value();
  for (size_t i = 0; i < kPauseBuckets; ++i) s.move_pauses[i] = c.pauses[i].value();
  s.move_pause_ns = c.pause_ns.value();
  s.listener_switches = c.listener_switches.value();
  s.listener_switches_refused = c.listener_switches_refused.value();
  s.timers = c.timers.value();
  s.pool = pool_->Stats();
  return s;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
