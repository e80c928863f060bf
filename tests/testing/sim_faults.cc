#include "testing/sim_faults.h"

namespace penstock::testing {

SimFaults SimFaults::Swarm(SimRandom& random) {
  constexpr int64_t kMs = 1'000'000;
  SimFaults f;
  const auto coin = [&random] { return random.Chance(500); };
  const auto chance = [&](uint32_t max) {
    return coin() ? static_cast<uint32_t>(random.Size(max)) : 0;
  };
  const auto time = [&](int64_t max) {
    return coin() ? static_cast<int64_t>(random.Size(static_cast<uint64_t>(max))) : 0;
  };
  f.wire_delay_max = time(50 * kMs);
  f.split_segment = chance(1000);
  f.link_stall = chance(50);
  f.link_reset = chance(30);
  f.stall_max = 1 + time(500 * kMs);
  f.short_receive = chance(1000);
  f.receive_again = chance(300);
  f.short_send = chance(800);
  f.send_again = chance(300);
  f.send_error = coin() ? chance(20) : 0;
  f.attach_failure = coin() ? chance(100) : 0;
  f.map_failure = coin() ? chance(500) : 0;
  f.event_delay_max = time(20 * kMs);
  f.reorder = chance(1000);
  f.spurious = chance(300);
  f.early_terminal = chance(500);
  f.ring_exhausted = chance(200);
  f.cancel_refused = coin() ? chance(300) : 0;
  f.connect_refused = chance(200);
  f.connect_unreachable = chance(100);
  f.connect_lost = chance(100);
  f.accept_aborted = chance(200);
  f.accept_no_memory = chance(200);
  f.descriptors_max = coin() && coin() ? random.Between(12, 24) : SIZE_MAX;
  f.loop_stall = chance(50);
  return f;
}

}  // namespace penstock::testing
