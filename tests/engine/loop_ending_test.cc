// How a loop is told to end: by signal handlers, and by a host that does not call Run.
#include <gtest/gtest.h>
#include <penstock/loop.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>

#include <thread>

#include "testing/harness.h"
#include "testing/patient_poll.h"

namespace penstock::internal {
namespace {

class LoopEndingTest : public Harness {};

TEST_P(LoopEndingTest, AHostHearsOfAShorterGrace) {
  StreamPair pair = Pair();
  ASSERT_GE(loop().fd(), 0);
  loop().Drain(absl::Hours(1));
  while (loop().Poll()) {
  }
  loop().Drain(absl::ZeroDuration());
  EXPECT_TRUE(PatientPoll(loop().fd(), POLLIN, 300'000)) << "the host waits by the longer grace";
  ASSERT_TRUE(Drive([&] { return loop().drained(); }));
}

TEST_P(LoopEndingTest, StopMayBeCalledByASignalHandler) {
  static Loop* interrupted;
  interrupted = &loop();
  struct sigaction action = {}, before = {};
  action.sa_handler = [](int) { interrupted->Stop(); };
  ASSERT_EQ(::sigaction(SIGUSR2, &action, &before), 0);
  loop().Post([] { ::raise(SIGUSR2); });
  loop().Run();
  // Also while it sleeps.
  const pthread_t self = ::pthread_self();
  Timer never(loop());
  bool slept_on = false;
  never.Arm(absl::Minutes(5), [&] {
    slept_on = true;
    loop().Stop();
  });
  std::thread sender;
  loop().Post([&] { sender = std::thread([&] { ::pthread_kill(self, SIGUSR2); }); });
  loop().Run();
  sender.join();
  EXPECT_FALSE(slept_on);
  ASSERT_EQ(::sigaction(SIGUSR2, &before, nullptr), 0);
}

INSTANTIATE_TEST_SUITE_P(Environments, LoopEndingTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
