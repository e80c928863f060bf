// Drives an echo server, or an HTTP server with one answer, with requests over many connections and
// checks every byte that comes back.
//
// One thread and raw edge-triggered epoll, which looks at each socket once less than
// level-triggered does: it shares no code with the servers it measures and must not saturate much
// before them. Closed loop by default (each connection keeps `depth` requests in flight); with a
// rate, requests fall due at fixed intervals and a request's latency counts from the moment it was
// due, so that a stalled server cannot hide the requests it kept from being sent.
#ifndef PENSTOCK_BENCH_LOADGEN_LOAD_GENERATOR_H_
#define PENSTOCK_BENCH_LOADGEN_LOAD_GENERATOR_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "dialogue.h"
#include "histogram.h"
#include "process_usage.h"
#include "socket.h"

namespace penstock_bench {

struct LoadOptions {
  Address address;
  int connections = 1;
  size_t size_bytes = 64;  // of an echo
  bool http = false;
  int depth = 1;
  absl::Duration warmup;
  absl::Duration duration;
  double rate_per_second = 0;      // 0: closed loop
  std::optional<pid_t> watch_pid;  // a process whose usage to report, usually the server's
};

// Everything here is of the measured window alone, errors excepted.
struct LoadResult {
  absl::Duration window;
  size_t reply_bytes = 0;  // of each
  uint64_t requests = 0;
  uint64_t errors = 0;  // connections lost, wrong bytes, replies that never came; whole run
  std::string first_error;
  Histogram latency;  // nanoseconds
  ProcessUsage own;
  std::optional<ProcessUsage> watched;
};

class LoadGenerator {
 public:
  explicit LoadGenerator(const LoadOptions& options);
  ~LoadGenerator();
  LoadGenerator(const LoadGenerator&) = delete;
  LoadGenerator& operator=(const LoadGenerator&) = delete;

  // Connects all; an error names the connection that failed, or what an HTTP server answered.
  absl::Status Connect();

  // Warms up, measures, then collects the replies still due. Call once, after Connect().
  LoadResult Run();

 private:
  enum class Phase { kWarmUp, kMeasure, kDrain, kDone };

  struct Connection {
    int fd = -1;
    uint32_t send_offset = 0;     // of the next byte, in the pattern
    uint32_t receive_offset = 0;  // likewise, of the replies
    uint64_t unsent = 0;          // bytes of issued requests that the socket has not taken
    uint64_t received = 0;        // bytes of the oldest reply that is due
    int outstanding = 0;
    int oldest = 0;  // index of its start time, in this connection's `depth` slots
    bool blocked = false;
  };

  struct Mark {
    int64_t time_ns;
    ProcessUsage own;
    std::optional<ProcessUsage> watched;
  };

  Mark TakeMark() const;
  void NextPhase();
  int WaitMilliseconds(int64_t now) const;
  void IssueDue(int64_t now);
  void Issue(Connection& connection, int count, int64_t start);
  void Flush(Connection& connection);
  void OnReadable(Connection& connection);
  void OnBytes(Connection& connection, size_t got);
  void OnReplies(Connection& connection, int count, int64_t now);
  void Fail(Connection& connection, std::string_view what);
  int64_t& StartTime(const Connection& connection, int index);

  const LoadOptions options_;
  Dialogue dialogue_;
  std::vector<Connection> connections_;
  std::vector<int64_t> start_times_;
  std::vector<char> buffer_;
  int epoll_fd_ = -1;
  Phase phase_ = Phase::kWarmUp;
  int64_t phase_end_ = 0;
  int idle_waits_ = 0;    // in a row
  int64_t next_due_ = 0;  // with a rate
  double interval_ns_ = 0;
  size_t next_connection_ = 0;
  int alive_ = 0;
  int64_t outstanding_ = 0;
  Mark begin_ = {};
  LoadResult result_;
};

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_LOADGEN_LOAD_GENERATOR_H_
