// What tests ask of their process: whether it is to take its time, and how much memory it holds.
#ifndef PENSTOCK_TESTS_TESTING_LONG_RUN_H_
#define PENSTOCK_TESTS_TESTING_LONG_RUN_H_

#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <fstream>

namespace penstock::internal {

// PENSTOCK_TESTS_LONG is set: counts as issues and guides name them instead of those of every day.
inline bool LongRun() { return std::getenv("PENSTOCK_TESTS_LONG") != nullptr; }

// What this process has in memory, in bytes; proc_pid_statm(5).
inline size_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  size_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * static_cast<size_t>(::sysconf(_SC_PAGESIZE));
}

}  // namespace penstock::internal

#endif  // PENSTOCK_TESTS_TESTING_LONG_RUN_H_
