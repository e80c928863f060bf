#include "process_usage.h"

#include <dirent.h>
#include <stdio.h>
#include <time.h>

#include <memory>
#include <string>

namespace penstock_bench {

std::optional<ProcessUsage> ReadProcessUsage(pid_t pid) {
  ProcessUsage usage;
  clockid_t clock;
  timespec now;
  if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &now) != 0) {
    return std::nullopt;
  }
  usage.cpu_ns = int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;

  std::string tasks = "/proc/" + std::to_string(pid) + "/task";
  std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir(tasks.c_str()), closedir);
  if (directory == nullptr) return std::nullopt;
  while (const dirent* entry = readdir(directory.get())) {
    if (entry->d_name[0] == '.') continue;
    std::string path = tasks + "/" + entry->d_name + "/schedstat";
    std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path.c_str(), "re"), fclose);
    unsigned long long on_cpu;
    unsigned long long delayed;
    if (file != nullptr && fscanf(file.get(), "%llu %llu", &on_cpu, &delayed) == 2) {
      usage.delay_ns += static_cast<int64_t>(delayed);
    }
  }
  return usage;
}

}  // namespace penstock_bench
