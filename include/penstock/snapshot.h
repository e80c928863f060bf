// What a loop is doing, as plain integers.
//
// A LoopSnapshot can be taken from any thread at any time. The loop keeps the figures as it goes,
// each in a counter only it writes, so reading them disturbs nothing and costs the loop nothing,
// and keeping one is a plain load, add and store; figures of one snapshot may be a few operations
// apart.
#ifndef PENSTOCK_SNAPSHOT_H_
#define PENSTOCK_SNAPSHOT_H_

#include <penstock/export.h>
#include <penstock/pool_stats.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

PENSTOCK_BEGIN_NAMESPACE

// Buckets of LoopSnapshot::move_pauses.
inline constexpr size_t kPauseBuckets = 24;

// Where a stream was to go.
enum class MoveDirection : uint8_t { kToEpoll, kToUring, kOut, kIn };
inline constexpr size_t kMoveDirections = 4;

// Why it did not.
enum class MoveRefusal : uint8_t {
  kUnsupported,  // no such engine here, or no socket of Penstock's below (UNIMPLEMENTED)
  kBusy,         // something lies on it that may not leave now, a handshake (FAILED_PRECONDITION)
  kNoRoom,       // connections_max, descriptors, memory or kernel limits (RESOURCE_EXHAUSTED)
  kGone,         // the other loop is draining or gone, or an engine has failed (UNAVAILABLE)
  kHeld,         // the kernel does not end what it was told to end
  kError,        // of the engine that was to take it
};
inline constexpr size_t kMoveRefusals = 6;

struct LoopSnapshot {
  // Connections, by state.
  uint64_t connecting = 0;
  uint64_t open = 0;
  uint64_t open_uring = 0;  // of these: served by io_uring
  uint64_t closing = 0;     // given up by their owner, the kernel not yet done with them
  // Open connections that hold no byte either way.
  uint64_t idle = 0;
  // Memory held, by layer: bytes of blocks in connections' receive chains, and bytes in their send
  // queues; the same of the sealed streams above them; blocks in framed readers.
  uint64_t pinned_bytes = 0;
  uint64_t sealed_pinned_bytes = 0;
  uint64_t framed_pinned_bytes = 0;
  uint64_t listeners = 0;
  uint64_t listeners_paused = 0;  // by owner, bound, want of descriptors, policy

  // Since the loop was made.
  uint64_t accepted = 0;
  uint64_t connected = 0;
  uint64_t closed = 0;
  uint64_t receives = 0;  // pieces that came from the kernel
  uint64_t bytes_in = 0;
  uint64_t bytes_out = 0;
  uint64_t turns = 0;
  uint64_t tasks = 0;
  uint64_t timers_fired = 0;
  // Waits, receives, sends, accepts, registrations with the engine and settings of the loop's own
  // timer. Not what opens, sets up, shuts down and closes sockets, nor others' wake-ups
  // (`wakeups`).
  uint64_t syscalls = 0;
  uint64_t sqes = 0;            // io_uring submissions
  uint64_t cqes = 0;            // io_uring completions
  uint64_t wakeups = 0;         // wake-ups written because the loop slept
  uint64_t buffer_waits = 0;    // receives put off for want of a buffer
  uint64_t ring_exhausted = 0;  // receives the kernel ended with ENOBUFS

  // Refusals and ends, by cause.
  uint64_t accept_errors = 0;    // accept(2) failures other than those below
  uint64_t fd_exhausted = 0;     // EMFILE or ENFILE on accept
  uint64_t accepts_refused = 0;  // of these, peers that were taken off the backlog and closed
  // Connect and moves at LoopOptions::connections_max, and Connect while the loop is draining.
  uint64_t connections_refused = 0;
  uint64_t writes_refused = 0;  // at StreamOptions::send_queue_max
  // Connections that ended with IsReset: by their peer, or because it could not be reached any
  // more.
  uint64_t peer_resets = 0;
  // Deadlines that passed: of reads, writes, idle streams, Connect, Seal and, with wait_max,
  // operations of RDMA endpoints.
  uint64_t deadlines = 0;
  uint64_t faults = 0;  // errors that are no peer's doing: the count to alarm on
  // Of these, of an engine: waits, watches and cancels that fail, streams that it cannot keep.
  uint64_t faults_epoll = 0;
  uint64_t faults_uring = 0;

  // Moves (penstock/move.h), by direction and outcome.
  uint64_t switches_to_epoll = 0;
  uint64_t switches_to_uring = 0;
  uint64_t moves_in = 0;    // streams that came from another loop
  uint64_t moves_out = 0;   // streams that left for one
  uint64_t moves_back = 0;  // of these, came back: the target refused or was gone
  // Moves of open streams that left them where they were, each counted once: by the loop that
  // refused to take the stream (kIn), and otherwise by the one that keeps it. All of them, and by
  // MoveDirection and MoveRefusal.
  uint64_t moves_refused = 0;
  std::array<std::array<uint64_t, kMoveRefusals>, kMoveDirections> moves_refused_by{};
  uint64_t stranded = 0;          // ended because no engine took them any more: stays 0
  uint64_t late_completions = 0;  // receives that completed after their cancel, and were kept
  uint64_t bytes_carried = 0;     // unread and unsent, taken along by moves
  // How long moves kept streams from being served: bucket i counts those below 2^i us, and not
  // below half of that; the last one all longer ones.
  std::array<uint64_t, kPauseBuckets> move_pauses{};
  uint64_t move_pause_ns = 0;  // all of them together
  // Listeners that changed engine, and changes that left one where it was, or with no engine: one
  // that is tried again and again counts once.
  uint64_t listener_switches = 0;
  uint64_t listener_switches_refused = 0;

  uint64_t timers = 0;  // armed now
  PoolStats pool;       // of the loop's pool, which other loops may share
};

// The Prometheus text exposition format (version 0.0.4) of `loops`, one `loop` label each, numbered
// from 0. A string for the caller to serve: the library opens no port.
PENSTOCK_EXPORT std::string PrometheusText(std::span<const LoopSnapshot> loops);

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SNAPSHOT_H_
