// Processor time and run-queue delay of a process, from the kernel's own accounts.
#ifndef PENSTOCK_BENCH_LOADGEN_PROCESS_USAGE_H_
#define PENSTOCK_BENCH_LOADGEN_PROCESS_USAGE_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>

namespace penstock_bench {

struct ProcessUsage {
  int64_t cpu_ns = 0;    // on a processor, all threads, io_uring workers included
  int64_t delay_ns = 0;  // ready to run but waiting for a processor, all threads
};

// The processor time is that of the process's CPU clock (clock_getcpuclockid(3)), which also counts
// threads that ended; of a process that is running now it can lag by one scheduler tick. The delay
// sums /proc/PID/task/*/schedstat (Documentation/scheduler/sched-stats.rst) and is 0 where the
// kernel keeps none. Empty when there is no such process.
std::optional<ProcessUsage> ReadProcessUsage(pid_t pid);

}  // namespace penstock_bench

#endif  // PENSTOCK_BENCH_LOADGEN_PROCESS_USAGE_H_
