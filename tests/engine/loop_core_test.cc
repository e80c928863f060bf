// What a loop asks of its program and leaves to it: options, threads, signals. The contract of its
// calls is in loop_test.cc.
#include "engine/loop_core.h"

#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include <gtest/gtest.h>

#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

class LoopCoreTest : public Harness {};

TEST_P(LoopCoreTest, EveryOptionThatMakesNoSenseIsNamedWithWhatIsAccepted) {
  struct Case {
    void (*spoil)(LoopOptions&);
    const char* says;
  };
  const Case cases[] = {
      {[](LoopOptions& o) { o.turn_events_max = 0; },
       "loop options: turn_events_max must be at least 1"},
      {[](LoopOptions& o) { o.turn_tasks_max = 0; },
       "loop options: turn_tasks_max must be at least 1"},
      {[](LoopOptions& o) { o.connections_max = 0; },
       "loop options: connections_max must be at least 1"},
      {[](LoopOptions& o) { o.pool_options.bytes_max = 255; },
       "loop options: pool_options.bytes_max must be at least 256, the smallest block"},
      {[](LoopOptions& o) { o.busy_poll = absl::Nanoseconds(-1); },
       "loop options: busy_poll must not be negative"},
      {[](LoopOptions& o) { o.idle_trim = absl::Nanoseconds(-1); },
       "loop options: idle_trim must not be negative"},
  };
  for (const Case& each : cases) {
    LoopOptions options;
    each.spoil(options);
    const absl::Status refused = environment().NewLoop(std::move(options)).status();
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
    EXPECT_EQ(refused.message(), each.says);
  }
}

TEST_P(LoopCoreTest, StartsNoThreadAndTakesNoSignal) {
  const auto tasks = [] {
    const std::filesystem::directory_iterator all("/proc/self/task");
    return std::distance(begin(all), end(all));
  };
  // SigCgt of proc(5): which signals have a handler.
  const auto handlers = [] {
    std::ifstream status("/proc/self/status");
    std::string line;
    while (std::getline(status, line) && !line.starts_with("SigCgt:")) {
    }
    return line;
  };
  const auto before = tasks();
  const std::string caught = handlers();
  ASSERT_FALSE(caught.empty());
  std::unique_ptr<Loop> fresh = environment().NewLoop({}).value();
  fresh->Post([] {});
  while (fresh->Poll()) {
  }
  StreamPair pair = Pair();
  Exchange(*pair.client, *pair.server, PatternBytes(1, 0, 1 << 20));
  EXPECT_LE(tasks(), before);  // a thread that was joined may still have been listed
  EXPECT_EQ(handlers(), caught);
}

TEST_P(LoopCoreTest, AStreamUsedOffItsLoopsThreadEndsADebugBuild) {
#ifdef NDEBUG
  GTEST_SKIP() << "release builds do not look";
#else
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto misuse = [this] {
    StreamPair pair = Pair();
    std::promise<void> begun, used;
    loop().Post([&] {
      begun.set_value();
      used.get_future().wait();
    });
    std::thread other([&] {
      begun.get_future().wait();
      pair.client->Write(Buffer());
      used.set_value();
    });
    loop().Run();
  };
  EXPECT_DEATH(misuse(), "a stream used off its loop's thread");
#endif
}

INSTANTIATE_TEST_SUITE_P(Engines, LoopCoreTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
