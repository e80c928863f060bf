// MemorySys: the real kernel's memory calls, recorded, with a failure at the nth Map or for ever.
//
// Owns nothing. Set up before the pool is used; the counters are for one thread.
#ifndef PENSTOCK_TESTS_BUFFER_MEMORY_SYS_H_
#define PENSTOCK_TESTS_BUFFER_MEMORY_SYS_H_

#include <penstock/export.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "base/sys.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class MemorySys : public Sys {
 public:
  static constexpr int kNever = std::numeric_limits<int>::max();

  struct Advice {
    void* base;
    size_t size;
    int advice;
  };

  void* Map(size_t size, int flags, int* error) override {
    ++maps;
    map_flags.push_back(flags);
    if (maps == fail_map || (maps > fail_map && fail_map_on) || (flags & refused_flags) != 0) {
      ++failed;
      *error = -map_error;
      return nullptr;
    }
    void* base = Sys::Map(size, flags, error);
    if (base != nullptr) mapped += static_cast<int64_t>(size);
    return base;
  }
  int Unmap(void* base, size_t size) override {
    mapped -= static_cast<int64_t>(size);
    return Sys::Unmap(base, size);
  }
  int Advise(void* base, size_t size, int advice) override {
    advices.push_back({base, size, advice});
    if (advice == refused_advice) return -22;
    return Sys::Advise(base, size, advice);
  }

  int fail_map = kNever;     // counts from 1
  bool fail_map_on = false;  // also every later one
  int map_error = 12;        // ENOMEM
  int refused_flags = 0;     // of mmap(2)
  int refused_advice = -1;   // of madvise(2)

  int maps = 0;
  int failed = 0;
  int64_t mapped = 0;  // bytes
  std::vector<int> map_flags;
  std::vector<Advice> advices;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_BUFFER_MEMORY_SYS_H_
