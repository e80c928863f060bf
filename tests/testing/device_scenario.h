// What scenarios over RDMA devices share, of lanes and of endpoints: a loop that runs until
// something holds, and payloads in blocks.
#ifndef PENSTOCK_TESTS_TESTING_DEVICE_SCENARIO_H_
#define PENSTOCK_TESTS_TESTING_DEVICE_SCENARIO_H_

#include <penstock/buffer.h>
#include <penstock/loop.h>

#include <cstddef>
#include <functional>
#include <string_view>

#include "absl/time/time.h"

namespace penstock::internal {

// Looks every millisecond; false when it did not hold within `limit`.
inline bool RunLoopUntil(Loop& loop, absl::Duration limit, const std::function<bool()>& until) {
  Timer end(loop), look(loop);
  bool late = false;
  end.Arm(limit, [&] {
    late = true;
    loop.Stop();
  });
  const std::function<void()> check = [&] {
    if (until()) return loop.Stop();
    look.Arm(absl::Milliseconds(1), check);
  };
  check();
  loop.Run();
  return !late;
}

inline BufferChain CopyInBlocks(BufferPool& pool, std::string_view text, size_t block) {
  BufferChain chain;
  for (size_t at = 0; at < text.size(); at += block) {
    chain.Append(*pool.Copy(text.substr(at, block)));
  }
  return chain;
}

}  // namespace penstock::internal

#endif  // PENSTOCK_TESTS_TESTING_DEVICE_SCENARIO_H_
