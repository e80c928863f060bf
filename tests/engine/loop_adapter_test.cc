// An adapter on a loop with real traffic: what it decides depends on the machine, that it decides,
// and what that does to the streams, does not. Its rules are in engine_controller_test.cc.
//
// The test is the host of the loop, by fd() and Poll(): once it has asked for fd(), its engines
// keep their places, and whoever serves, the loop wakes its host.
#include <penstock/adaptive.h>
#include <penstock/move.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/loop_core.h"
#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

class LoopAdapterTest : public Harness {
 protected:
  void SetUp() override {
    Harness::SetUp();
    if (IsSkipped()) return;
    if (const std::string why = MissingEngine(); !why.empty()) GTEST_SKIP() << why;
  }
};

// Sends a little of a pattern, and more when it has come back.
class Pinger {
 public:
  Pinger(StreamPtr stream, uint64_t seed) : stream_(std::move(stream)), seed_(seed) {}
  void Send() {
    stream_->Write(*stream_->loop().pool().Copy(PatternBytes(seed_, sent_, kSize)));
    sent_ += kSize;
    Receive();
  }
  bool intact() const { return intact_; }
  uint64_t received() const { return received_; }

 private:
  static constexpr size_t kSize = 100;

  void Receive() {
    stream_->ReadReady([this](absl::StatusOr<Buffer> data) {
      intact_ &= data.ok() && !FirstMismatch(data->view(), seed_, received_).has_value();
      if (!intact_) return;
      received_ += data->size();
      received_ < sent_ ? Receive() : Send();
    });
  }

  StreamPtr stream_;
  uint64_t seed_;
  uint64_t sent_ = 0;
  uint64_t received_ = 0;
  bool intact_ = true;
};

// Every load is tried, and nothing is believed for long.
AdaptiveOptions EagerAdapter() {
  AdaptiveOptions options;
  options.tick = absl::Milliseconds(IsSlow() ? 1000 : 50);  // long enough for 200 reads
  options.slice = options.tick / 5;
  options.pairs_max = 8;
  options.sustain = 1;
  options.busy = 0;
  options.dwell = absl::ZeroDuration();
  return options;
}

TEST_P(LoopAdapterTest, TriesUnderLoadAndLosesNoByte) {
  ASSERT_GE(loop().fd(), 0);  // from now on a host watches it
  const std::unique_ptr<Listener> listening = Listen();
  std::vector<std::unique_ptr<Pinger>> pingers;
  for (uint64_t i = 0; i < 16; ++i) {
    StreamPair pair = Pair();
    EchoForever(std::move(pair.server));
    pingers.push_back(std::make_unique<Pinger>(std::move(pair.client), i));
    pingers.back()->Send();
  }
  absl::StatusOr<std::unique_ptr<EngineAdapter>> adapter =
      EngineAdapter::Create(loop(), EagerAdapter());
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  ASSERT_TRUE(Drive([&] {
    const AdaptiveCounts counts = (*adapter)->counts();
    return counts.sweeps >= 9 && counts.kept + counts.returned >= 1;
  }));
  const LoopSnapshot now = loop().Snapshot();
  EXPECT_GT(now.switches_to_epoll + now.switches_to_uring, 8u);
  EXPECT_EQ(now.stranded, 0u);
  for (auto& pinger : pingers) {
    EXPECT_TRUE(pinger->intact());
    EXPECT_GT(pinger->received(), 0u);
  }
  // Whatever it has come to: new streams begin where the loop says, and are served there.
  adapter->reset();
  EXPECT_EQ(loop().core().primary().kind(), environment().listen_engine());
  StreamPtr late = ConnectTo(listening->address(), ConnectOptions()).value();
  EXPECT_EQ(late->stats().engine, loop().engine());
  ASSERT_TRUE(Drive([&] { return !accepted().empty(); }));
  Exchange(*late, *accepted().back(), "woken");
}

TEST_P(LoopAdapterTest, LeavesAnIdleLoopAlone) {
  absl::StatusOr<std::unique_ptr<EngineAdapter>> adapter =
      EngineAdapter::Create(loop(), EagerAdapter());
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  StreamPair pair = Pair();
  Pass(6 * EagerAdapter().tick);
  EXPECT_EQ((*adapter)->switches(), 0u);
  EXPECT_TRUE((*adapter)->trace().empty());
}

TEST_P(LoopAdapterTest, MayGoInTheMiddleOfATrial) {
  absl::StatusOr<std::unique_ptr<EngineAdapter>> adapter =
      EngineAdapter::Create(loop(), EagerAdapter());
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  StreamPair pair = Pair();
  adapter->reset();
  Exchange(*pair.client, *pair.server, "goes on");
}

TEST_P(LoopAdapterTest, RefusesOptionsThatContradictThemselves) {
  AdaptiveOptions options;
  options.pairs_max = 1;
  EXPECT_TRUE(absl::IsInvalidArgument(EngineAdapter::Create(loop(), options).status()));
}

TEST_P(LoopAdapterTest, RefusesALoopThatPollsItsTimeAway) {
  LoopOptions polls;
  polls.busy_poll = absl::Microseconds(50);
  RemakeLoop(std::move(polls));
  const absl::Status status = EngineAdapter::Create(loop(), {}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  EXPECT_NE(std::string(status.message()).find("busy_poll"), std::string::npos) << status;
}

INSTANTIATE_TEST_SUITE_P(Engines, LoopAdapterTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
