// SimFaults: what a simulated world does wrong, and how often. One per world; may change while the
// world runs: a liveness phase is the same world without faults.
#ifndef PENSTOCK_TESTS_TESTING_SIM_FAULTS_H_
#define PENSTOCK_TESTS_TESTING_SIM_FAULTS_H_

#include <cstddef>
#include <cstdint>

#include "penstock/loop.h"
#include "testing/sim_random.h"

namespace penstock::testing {

// An engine that is wrong on purpose, to show that the checks on a simulation see it.
enum class SimMutant : uint8_t {
  kNone,
  kDropLateData,  // bytes received after a cancel are thrown away
  kResetAsEof,    // a reset is reported as an end of stream
  kEndOvertakes,  // an end of stream is reported before the bytes that came before it
  kRepeatBytes,   // a receive delivers its last byte again
  kLoseWakeup,    // an event is forgotten
  kLeakBuffer,    // a received buffer is never given back
  kSkipTerminal,  // a connection is let go of while the kernel still holds an operation of it
  kTwoOwners,     // the same, and the operation is not even told to end
};

// Chances are in thousandths, times in nanoseconds; zero: never, at once.
struct SimFaults {
  // The wire.
  int64_t wire_delay_max = 0;  // of a segment
  uint32_t split_segment = 0;  // what one send took arrives in pieces
  uint32_t link_stall = 0;     // per send: the link carries nothing for a while
  uint32_t link_reset = 0;     // per send: both ends get a reset
  int64_t stall_max = 0;       // of a link or a loop

  // Calls.
  uint32_t short_receive = 0;  // fewer bytes than asked for and waiting
  uint32_t receive_again = 0;  // EAGAIN although bytes wait; an event follows
  uint32_t short_send = 0;     // fewer bytes than there is room for
  uint32_t send_again = 0;     // EAGAIN although there is room; an event follows
  uint32_t send_error = 0;     // ENOBUFS, EIO or EHOSTUNREACH; the bytes are refused
  uint32_t attach_failure = 0;
  EngineKind attach_failure_of = EngineKind::kAuto;  // that engine alone; kAuto: each
  uint32_t map_failure = 0;                          // the pool gets no memory

  // Events and completions.
  int64_t event_delay_max = 0;  // of one; events of one socket keep their order
  uint32_t reorder = 0;         // events of different sockets overtake each other
  uint32_t spurious = 0;        // per wait: an event that means nothing
  uint32_t early_terminal = 0;  // a multishot operation ends with the data it carries
  uint32_t ring_exhausted = 0;  // ENOBUFS although the pool has room
  uint32_t cancel_refused = 0;  // of a stream that is to move: its receive cannot be ended

  // Connecting and accepting.
  uint32_t connect_refused = 0;
  uint32_t connect_unreachable = 0;
  uint32_t connect_lost = 0;    // nothing ever answers
  uint32_t accept_aborted = 0;  // ECONNABORTED, and the connection is gone
  uint32_t accept_no_memory = 0;
  size_t descriptors_max = SIZE_MAX;  // EMFILE beyond it

  // Threads.
  uint32_t loop_stall = 0;  // per turn: the loop's thread sleeps for a while

  // Each fault of the menu by a coin, each as strong as chance has it.
  static SimFaults Swarm(SimRandom& random);
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_SIM_FAULTS_H_
