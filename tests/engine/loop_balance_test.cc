// A balancer on loops with real traffic; how busy their threads are is made up. Its rules are in
// balance_controller_test.cc.
#include <penstock/balance.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/functional/function_ref.h"
#include "base/sys.h"
#include "engine/balance_controller.h"
#include "engine/loop_balance.h"
#include "engine/loop_core.h"
#include "testing/fate.h"
#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

// The real kernel, but for the part of the time that the thread is on a CPU.
class BusySys : public Sys {
 public:
  explicit BusySys(double busy) : busy_(busy) {}
  int64_t ThreadCpu() override { return static_cast<int64_t>(static_cast<double>(Now()) * busy_); }

 private:
  const double busy_;
};

BalanceOptions EagerBalance() {
  BalanceOptions options;
  options.tick = absl::Milliseconds(20);
  options.sustain = 2;
  options.rest = 2;
  return options;
}

class LoopBalanceTest : public Harness {
 protected:
  void SetUp() override {
    Harness::SetUp();
    if (IsSkipped()) return;
    other_ = Make(other_sys_);
    AlsoDrive(other_.get());
    busy_ = Make(busy_sys_);
    AlsoDrive(busy_.get());
  }
  void TearDown() override {
    balancer_ = nullptr;
    flows_.clear();
    if (busy_ != nullptr) {
      EXPECT_TRUE(Drive([&] { return busy_->Snapshot().open + OpenThere() == 0; }));
      EXPECT_EQ(busy_->Snapshot().stranded, 0u);
    }
    DestroyOther();
    if (busy_ != nullptr) StopDriving(busy_.get());
    busy_ = nullptr;
    Harness::TearDown();
  }
  void DestroyOther() {
    if (other_ != nullptr) StopDriving(other_.get());
    other_ = nullptr;
  }
  uint64_t OpenThere() const { return other_ == nullptr ? 0 : other_->Snapshot().open; }
  Loop& busy() { return *busy_; }
  Loop& other() { return *other_; }
  LoopBalancer& balancer() { return *balancer_; }

  void Balance() { Balance({busy().handle(), other().handle()}); }
  void Balance(std::vector<LoopHandle> loops) {
    absl::StatusOr<std::unique_ptr<LoopBalancer>> made =
        LoopBalancer::Create(loop(), std::move(loops), EagerBalance());
    ASSERT_TRUE(made.ok()) << made.status();
    balancer_ = *std::move(made);
  }

  // A stream of the busy loop that echoes what a client of the test's loop sends, piece by piece.
  void Flow(bool migratable) {
    ListenOptions listening;
    listening.stream.migratable = migratable;
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Listen(busy(), environment().NewAddress(), listening,
                         [](StreamPtr stream) { EchoForever(std::move(stream)); });
    ASSERT_TRUE(listener.ok()) << listener.status();
    absl::StatusOr<StreamPtr> client = ConnectTo((*listener)->address(), Connecting());
    ASSERT_TRUE(client.ok()) << client.status();
    flows_.push_back(std::make_unique<Flowing>(*std::move(client), flows_.size()));
    flows_.back()->Start();
  }
  bool Intact() const {
    for (const auto& flow : flows_) {
      if (!flow->intact || flow->received == 0) return false;
    }
    return true;
  }
  bool Traced(const std::string& words) const {
    for (const std::string& line : balancer_->trace()) {
      if (line.find(words) != std::string::npos) return true;
    }
    return false;
  }

 private:
  // The next piece goes out when the one before is back. All streams then carry the same in any
  // tick, and a round of the three loops takes a moment, however slow the build: of a flood one
  // tick may see two streams alone, each too large to go, and the balancer rests longer each time.
  struct Flowing {
    static constexpr size_t kPiece = 4096;
    Flowing(StreamPtr stream, uint64_t seed) : stream(std::move(stream)), seed(seed) {}
    void Start() {
      Send();
      Read();
    }
    void Send() {
      stream->Write(*stream->loop().pool().Copy(PatternBytes(seed, sent, kPiece)));
      sent += kPiece;
    }
    void Read() {
      stream->ReadReady([this](absl::StatusOr<Buffer> data) {
        if (!data.ok()) return;
        intact = intact && !FirstMismatch(data->view(), seed, received).has_value();
        received += data->size();
        if (received == sent) Send();
        Read();
      });
    }
    StreamPtr stream;
    const uint64_t seed;
    uint64_t sent = 0;
    uint64_t received = 0;
    bool intact = true;
  };

 protected:
  std::unique_ptr<Loop> Make(Sys& sys, LoopOptions options = {}) {
    options.engine = environment().listen_engine();
    absl::StatusOr<std::unique_ptr<Loop>> made =
        LoopCore::CreateLoop(std::move(options), {.sys = &sys, .engines = {}});
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : nullptr;
  }

 private:
  BusySys busy_sys_{0.9};
  BusySys other_sys_{0.1};
  std::unique_ptr<Loop> busy_;
  std::unique_ptr<Loop> other_;
  std::vector<std::unique_ptr<Flowing>> flows_;

 protected:
  std::unique_ptr<LoopBalancer> balancer_;
};

TEST_P(LoopBalanceTest, GivesStreamsToTheLoopThatHasLessToDo) {
  for (int i = 0; i < 8; ++i) Flow(true);
  Balance();
  ASSERT_TRUE(Drive([&] { return other().Snapshot().moves_in >= 2; }));
  EXPECT_TRUE(Drive([&] { return balancer().moves() >= 2; }));
  EXPECT_TRUE(Traced("loop 0 is busy for 90 % of the time and loop 1 for 10 %"));
  EXPECT_TRUE(Drive([&] { return Intact(); }));
}

TEST_P(LoopBalanceTest, LeavesAStreamThatWouldCarryTheLoadElsewhere) {
  Flow(true);
  Balance();
  ASSERT_TRUE(Drive([&] { return Traced("no stream may go, is small enough or is taken"); }));
  EXPECT_EQ(balancer().moves(), 0u);
  EXPECT_EQ(other().Snapshot().moves_in, 0u);
}

TEST_P(LoopBalanceTest, LeavesStreamsAloneThatMayNotGo) {
  for (int i = 0; i < 4; ++i) Flow(false);
  Balance();
  ASSERT_TRUE(Drive([&] { return Traced("no stream may go, is small enough or is taken"); }));
  EXPECT_EQ(other().Snapshot().moves_in, 0u);
}

TEST_P(LoopBalanceTest, RestsWhenTheOtherLoopTakesNoStream) {
  for (int i = 0; i < 8; ++i) Flow(true);
  other().Drain(absl::Hours(1));
  Balance();
  ASSERT_TRUE(Drive([&] { return busy().Snapshot().moves_back > 0; }));
  ASSERT_TRUE(Drive([&] { return Traced("no stream may go, is small enough or is taken"); }));
  EXPECT_EQ(balancer().moves(), 0u);
  EXPECT_TRUE(Drive([&] { return Intact(); }));
}

TEST_P(LoopBalanceTest, StopTellsWhenNothingIsUnderWay) {
  for (int i = 0; i < 8; ++i) Flow(true);
  Balance();
  ASSERT_TRUE(Drive([&] { return other().Snapshot().moves_in >= 1; }));
  Fate stopped;
  balancer().Stop(stopped.OnEvent());
  EXPECT_FALSE(stopped.ended()) << "inside its own call";
  ASSERT_TRUE(Drive([&] { return stopped.ended(); }));
  EXPECT_EQ(busy().Snapshot().moves_out, other().Snapshot().moves_in);
}

TEST_P(LoopBalanceTest, ALoopThatHasGoneIsNoLongerBalanced) {
  for (int i = 0; i < 4; ++i) Flow(false);
  Balance();
  DestroyOther();
  EXPECT_TRUE(Drive([&] { return Traced("loop 1 is left out: it has gone"); }));
  Pass(absl::Milliseconds(200));
  EXPECT_EQ(balancer().trace().size(), 1u) << "said once, and nothing is tried";
}

TEST_P(LoopBalanceTest, ALoopThatIsTooLateToAnswerIsRelieved) {
  for (int i = 0; i < 8; ++i) Flow(true);
  Balance();
  ASSERT_TRUE(Drive([&] { return Intact(); }));
  StopDriving(&busy());
  // From here on it comes to its tasks every third tick at most.
  for (int i = 0; i < 500 && other().Snapshot().moves_in == 0; ++i) {
    Pass(absl::Milliseconds(60));
    busy().Poll();
    busy().Poll();
  }
  EXPECT_GE(other().Snapshot().moves_in, 1u);
  AlsoDrive(&busy());
  EXPECT_TRUE(Drive([&] { return Traced("loop 0 is busy for"); }));
}

TEST_P(LoopBalanceTest, ALoopThatNobodyRunsHoldsNobodyUp) {
  BusySys sys(0.5);
  const std::unique_ptr<Loop> still = Make(sys);
  AlsoDrive(still.get());
  for (int i = 0; i < 8; ++i) Flow(true);
  Balance({still->handle(), busy().handle(), other().handle()});
  Pass(absl::Milliseconds(50));  // it has told once, or counts for nothing
  StopDriving(still.get());
  EXPECT_TRUE(Drive([&] { return other().Snapshot().moves_in >= 1; }));
  EXPECT_TRUE(Drive([&] { return Traced("loop 0 is left out: it does not come to answer"); }));
  AlsoDrive(still.get());
  EXPECT_TRUE(Drive([&] { return Traced("loop 0 answers again"); }));
  StopDriving(still.get());
  balancer_ = nullptr;
}

// The test has the two loops run, and sees what the balancer waits for.
class LateBalanceTest : public LoopBalanceTest {
 protected:
  void TearDown() override {
    balance_ = nullptr;
    LoopBalanceTest::TearDown();
  }
  // So many streams on the one loop, until moves are due. Neither loop runs any more then.
  bool UntilMoving(int streams) {
    for (int i = 0; i < streams; ++i) Flow(true);
    if (!Drive([&] { return Intact(); })) return false;
    balance_ = std::make_shared<LoopBalance>(
        loop().core(), std::vector<LoopHandle>{busy().handle(), other().handle()}, EagerBalance());
    balance_->Start();
    StopDriving(&busy());
    StopDriving(&other());
    for (int i = 0; i < 100'000; ++i) {
      Pass(absl::Milliseconds(1));
      if (balance_->controller().state() == BalanceState::kMoving) return true;
      busy().Poll();
      other().Poll();
    }
    return false;
  }
  // How many streams leave while the loop that they go to does not run.
  uint64_t FirstToLeave() {
    AlsoDrive(&busy());
    EXPECT_TRUE(Drive([&] { return busy().Snapshot().moves_out > 0; }));
    for (int i = 0; i < 1000; ++i) busy().Poll();
    return busy().Snapshot().moves_out;
  }
  // The other loop takes these, `done` then, and no others leave.
  void ExpectNoMore(uint64_t left, absl::FunctionRef<bool()> done) {
    AlsoDrive(&other());
    ASSERT_TRUE(Drive(done));
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(ComesToWhatItHas(busy()));
    EXPECT_EQ(busy().Snapshot().moves_out, left);
    EXPECT_TRUE(Drive([&] { return Intact(); }));
  }
  // Nothing is under way that it would wait for, and nothing begins when the loops run again.
  void StopAndExpectNoneBegun() {
    Fate stopped;
    balance_->Stop(stopped.OnEvent());
    EXPECT_TRUE(Drive([&] { return stopped.ended(); }));
    AlsoDrive(&busy());
    AlsoDrive(&other());
    ASSERT_TRUE(ComesToWhatItHas(busy()));
    EXPECT_EQ(busy().Snapshot().moves_out, 0u) << "begun after all";
  }
  // Whatever was posted to `loop` has run.
  bool ComesToWhatItHas(Loop& loop) {
    bool ran = false;
    loop.Post([&] { ran = true; });
    return Drive([&] { return ran; });
  }
  bool Says(std::string_view words) const {
    for (const std::string& line : balance_->controller().trace()) {
      if (line.find(words) != std::string::npos) return true;
    }
    return false;
  }

  std::shared_ptr<LoopBalance> balance_;
};

TEST_P(LateBalanceTest, WhatALoopDoesNotBeginIsCalledOff) {
  ASSERT_TRUE(UntilMoving(8));
  ASSERT_TRUE(Drive([&] { return Says("after 8 ticks the loop has not come to it"); }));
  EXPECT_EQ(balance_->controller().state(), BalanceState::kWatching);
  StopAndExpectNoneBegun();
  EXPECT_EQ(balance_->controller().moves(), 0u);
}

TEST_P(LateBalanceTest, StopCallsOffWhatHasNotBegun) {
  ASSERT_TRUE(UntilMoving(8));
  StopAndExpectNoneBegun();
}

TEST_P(LateBalanceTest, StreamsForALoopThatDoesNotRunAreNotWaitedFor) {
  ASSERT_TRUE(UntilMoving(8));
  AlsoDrive(&busy());
  ASSERT_TRUE(Drive([&] { return Says("after 8 ticks streams are still on their way"); }));
  EXPECT_EQ(balance_->controller().state(), BalanceState::kWatching);
  EXPECT_GE(busy().Snapshot().moves_out, 1u);
  Fate stopped;
  balance_->Stop(stopped.OnEvent());
  Pass(absl::Milliseconds(50));
  EXPECT_FALSE(stopped.ended()) << "they are under way";
  AlsoDrive(&other());
  ASSERT_TRUE(Drive([&] { return stopped.ended(); }));
  EXPECT_EQ(other().Snapshot().moves_in, busy().Snapshot().moves_out);
  EXPECT_EQ(balance_->controller().moves(), other().Snapshot().moves_in);
  EXPECT_TRUE(Says("have arrived after all"));
}

// In the tests below four tenths of 40 streams go, as a rule: fewer where a slow machine has not
// had all of them carry something in time.
TEST_P(LateBalanceTest, FewStreamsAreOnTheirWayAtOnceAndTheOthersFollow) {
  ASSERT_TRUE(UntilMoving(40));
  EXPECT_LE(FirstToLeave(), 8u);
  AlsoDrive(&other());
  if (!IsSlow()) {
    EXPECT_TRUE(Drive([&] { return other().Snapshot().moves_in > 8; }));
  }
  EXPECT_TRUE(Drive([&] { return Intact(); }));
}

TEST_P(LateBalanceTest, WhatHasNotLeftWhenItIsGivenUpStays) {
  ASSERT_TRUE(UntilMoving(40));
  const uint64_t left = FirstToLeave();
  ASSERT_TRUE(Drive([&] { return Says("after 8 ticks streams are still on their way"); }));
  Fate stopped;
  balance_->Stop(stopped.OnEvent());
  ExpectNoMore(left, [&] { return stopped.ended(); });
}

TEST_P(LateBalanceTest, WhatHasNotLeftWhenItIsStoppedStays) {
  ASSERT_TRUE(UntilMoving(40));
  const uint64_t left = FirstToLeave();
  Fate stopped;
  balance_->Stop(stopped.OnEvent());
  ExpectNoMore(left, [&] { return stopped.ended(); });
  EXPECT_EQ(balance_->controller().moves(), left);
}

TEST_P(LateBalanceTest, WhatHasNotLeftWhenTheBalancerGoesStays) {
  ASSERT_TRUE(UntilMoving(40));
  const uint64_t left = FirstToLeave();
  balance_ = nullptr;
  ExpectNoMore(left, [&] { return other().Snapshot().moves_in == left; });
}

TEST_P(LoopBalanceTest, ALoopThatPollsItsTimeAwayIsLeftOut) {
  LoopOptions polls;
  polls.busy_poll = absl::Microseconds(1);
  BusySys sys(1);
  const std::unique_ptr<Loop> polling = Make(sys, std::move(polls));
  AlsoDrive(polling.get());
  Balance({polling->handle(), other().handle()});
  EXPECT_TRUE(Drive([&] { return Traced("loop 0 is left out: it has a LoopOptions::busy_poll"); }));
  Pass(absl::Milliseconds(300));
  EXPECT_EQ(balancer().trace().size(), 1u) << "said once, and nothing is tried";
  balancer_ = nullptr;
  StopDriving(polling.get());
}

TEST_P(LoopBalanceTest, RefusesWhatCannotBeBalanced) {
  EXPECT_TRUE(absl::IsInvalidArgument(LoopBalancer::Create(loop(), {busy().handle()}).status()));
  const absl::Status twice =
      LoopBalancer::Create(loop(), {busy().handle(), other().handle(), busy().handle()}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(twice));
  EXPECT_NE(std::string(twice.message()).find("twice"), std::string::npos) << twice;
  const absl::Status empty = LoopBalancer::Create(loop(), {busy().handle(), LoopHandle()}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(empty));
  EXPECT_NE(std::string(empty.message()).find("empty"), std::string::npos) << empty;
  BalanceOptions options;
  options.sustain = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(
      LoopBalancer::Create(loop(), {busy().handle(), other().handle()}, options).status()));
}

INSTANTIATE_TEST_SUITE_P(Engines, LoopBalanceTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Engines, LateBalanceTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
