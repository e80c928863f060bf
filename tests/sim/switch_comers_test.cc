// Who connects, comes or is on its way when all streams of a loop are switched to its other engine:
// nobody is left on the old one, or has to be looked for.
#include <gtest/gtest.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <penstock/stream.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "testing/sim_styles.h"
#include "testing/sim_world.h"

namespace penstock::testing {
namespace {

class SimComers : public ::testing::TestWithParam<SimStyle> {
 protected:
  SimComers() {
    pool_ = world_.NewPool({});
    loop_ = NewLoop(GetParam());
    other_ = NewLoop(GetParam());
    listener_ =
        *Listener::Listen(*other_, *SocketAddress::Parse("10.0.0.1:0"), {},
                          [this](StreamPtr stream) { accepted_.push_back(std::move(stream)); });
  }
  ~SimComers() override {
    client_ = nullptr;
    accepted_.clear();
    listener_ = nullptr;
  }

  std::unique_ptr<Loop> NewLoop(SimStyle style) {
    LoopOptions options;
    options.pool = pool_.get();
    return *world_.NewLoop(std::move(options), style);
  }
  void StartConnect(ConnectOptions options = {}) {
    Connect(*loop_, listener_->address(), std::move(options),
            [this](absl::StatusOr<StreamPtr> stream) { client_ = *std::move(stream); });
    world_.Touch(*loop_);
  }
  bool Opened() {
    return world_.Run([this] { return client_ != nullptr; }, absl::Minutes(1));
  }
  // To kUring; the end of the sweep.
  MoveCount SwitchTheLoop() {
    std::optional<MoveCount> swept;
    EXPECT_TRUE(
        SwitchAll(*loop_, EngineKind::kUring, [&](MoveCount count) { swept = count; }).ok());
    world_.Touch(*loop_);
    EXPECT_TRUE(world_.Run([&] { return swept.has_value(); }, absl::Minutes(1)));
    return swept.value_or(MoveCount());
  }
  void Settle() {
    world_.Run([] { return false; }, absl::Seconds(10));
    EXPECT_TRUE(world_.errors().empty()) << world_.errors().front();
  }
  // That the stream is served where it now is.
  void ExpectHears(const std::string& text) {
    std::string got;
    client_->ReadReady([&](absl::StatusOr<Buffer> bytes) { got = std::string(bytes->view()); });
    world_.Touch(*loop_);
    accepted_.front()->Write(*pool_->Copy(text));
    world_.Touch(*other_);
    EXPECT_TRUE(world_.Run([&] { return got == text; }, absl::Minutes(1))) << got;
  }

  SimWorld world_{1};
  std::unique_ptr<BufferPool> pool_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<Loop> other_;
  std::unique_ptr<Listener> listener_;
  std::vector<StreamPtr> accepted_;
  StreamPtr client_;
};

INSTANTIATE_TEST_SUITE_P(Styles, SimComers, SimStyles(), SimStyleName);

TEST_P(SimComers, WhoIsConnectingFollowsWhenItIsOpen) {
  world_.faults().wire_delay_max = 5'000'000'000;
  StartConnect();
  const MoveCount count = SwitchTheLoop();
  ASSERT_EQ(loop_->Snapshot().connecting, 1u) << "the sweep was to end before";
  EXPECT_EQ(count.moved + count.failed + count.ended, 0u);
  ASSERT_TRUE(Opened());
  Settle();
  EXPECT_EQ(client_->stats().engine, EngineKind::kUring);
  EXPECT_EQ(loop_->Snapshot().switches_to_uring, 1u);
  ExpectHears("it is served");
}

TEST_P(SimComers, APinnedOneThatIsConnectingStays) {
  world_.faults().wire_delay_max = 5'000'000'000;
  ConnectOptions options;
  options.stream.pinned_engine = true;
  StartConnect(options);
  SwitchTheLoop();
  ASSERT_TRUE(Opened());
  Settle();
  EXPECT_EQ(client_->stats().engine, EngineKind::kSimulated);
}

TEST_P(SimComers, WhoIsConnectingFollowsTheLastOfTwoSwitches) {
  world_.faults().wire_delay_max = 5'000'000'000;
  StartConnect();
  SwitchTheLoop();
  ASSERT_TRUE(SwitchAll(*loop_, EngineKind::kSimulated).ok());
  ASSERT_TRUE(Opened());
  Settle();
  EXPECT_EQ(client_->stats().engine, EngineKind::kSimulated);
  EXPECT_EQ(loop_->Snapshot().switches_to_uring, 0u);
}

TEST_P(SimComers, WhoConnectsMeanwhileBeginsOnTheNewEngine) {
  ASSERT_TRUE(SwitchAll(*loop_, EngineKind::kUring).ok());
  EXPECT_EQ(loop_->engine(), EngineKind::kUring);
  EXPECT_EQ(loop_->engine_reason(), "every stream was switched to it");
  StartConnect();
  ASSERT_TRUE(Opened());
  EXPECT_EQ(client_->stats().engine, EngineKind::kUring);
  EXPECT_EQ(loop_->Snapshot().switches_to_uring, 0u) << "nobody had to fetch it";
}

TEST_P(SimComers, WhoComesFromAnotherLoopMeanwhileBeginsOnTheNewEngine) {
  StartConnect();
  ASSERT_TRUE(world_.Run([&] { return client_ && !accepted_.empty(); }, absl::Minutes(1)));
  ASSERT_TRUE(SwitchAll(*loop_, EngineKind::kUring).ok());
  std::optional<absl::Status> moved;
  Migrate(*accepted_.front(), loop_->handle(), [&](absl::Status status) { moved = status; });
  world_.Touch(*other_);
  ASSERT_TRUE(world_.Run([&] { return moved.has_value(); }, absl::Minutes(1)));
  EXPECT_TRUE(moved->ok()) << *moved;
  EXPECT_EQ(accepted_.front()->stats().engine, EngineKind::kUring);
}

class SimReturners : public SimComers {
 protected:
  SimReturners() {
    StartConnect();
    EXPECT_TRUE(world_.Run([&] { return client_ && !accepted_.empty(); }, absl::Minutes(1)));
    Settle();
    // The other loop has two engines, and neither is the one that will be asked for.
    EXPECT_TRUE(other_->EnableEngine(EngineKind::kUring).ok());
  }
  // To the other loop, which will refuse it.
  void Leave() {
    Migrate(
        *client_, other_->handle(), [this](absl::Status status) { moved_ = status; },
        EngineKind::kEpoll);
    world_.Touch(*loop_);
  }
  void Switch() { EXPECT_TRUE(SwitchAll(*loop_, EngineKind::kUring).ok()); }
  void ExpectBackOn(EngineKind engine) {
    ASSERT_TRUE(world_.Run([&] { return moved_.has_value(); }, absl::Minutes(1)));
    EXPECT_TRUE(absl::IsUnimplemented(*moved_)) << *moved_;
    Settle();
    EXPECT_EQ(client_->stats().engine, engine);
    EXPECT_EQ(loop_->Snapshot().stranded, 0u);
    ExpectHears("it is back");
  }

  std::optional<absl::Status> moved_;
};

INSTANTIATE_TEST_SUITE_P(Styles, SimReturners, SimStyles(), SimStyleName);

// It finds what it left for another engine, on which all others are.
TEST_P(SimReturners, WhoIsAwayMeanwhileComesBackToTheNewEngine) {
  Leave();
  for (int i = 0; i < 100 && loop_->Snapshot().moves_out == 0; ++i) {
    world_.TakeTurn(*loop_);
    world_.TakeActions();
  }
  ASSERT_EQ(loop_->Snapshot().moves_out, 1u);
  const MoveCount count = SwitchTheLoop();
  EXPECT_EQ(count.moved, 0u) << "it was away";
  ExpectBackOn(EngineKind::kUring);
}

TEST_P(SimReturners, WhoIsAboutToLeaveAsTheSweepBeginsComesBackToTheNewEngine) {
  Leave();
  Switch();
  ExpectBackOn(EngineKind::kUring);
}

TEST_P(SimReturners, WhoLeavesBeforeTheSweepHasComeToItComesBackToTheNewEngine) {
  Switch();
  Leave();
  ExpectBackOn(EngineKind::kUring);
}

TEST_P(SimReturners, WhomTheNewEngineDoesNotTakeIsBackOnTheOldOne) {
  world_.faults().attach_failure = 1000;
  world_.faults().attach_failure_of = EngineKind::kUring;
  Leave();
  Switch();
  ExpectBackOn(EngineKind::kSimulated);
}

TEST_P(SimReturners, WhoLeavesAfterTheSweepComesBackToWhereItWas) {
  SwitchTheLoop();
  ASSERT_EQ(client_->stats().engine, EngineKind::kUring);
  SwitchEngine(*client_, EngineKind::kSimulated, [](absl::Status) {});
  Settle();
  Leave();
  ExpectBackOn(EngineKind::kSimulated);
}

// A host that watches the loop's descriptor keeps the engine that waits, but not the default.
TEST_P(SimComers, OnAnEmbeddedLoopTooWhoComesLaterBeginsOnTheNewEngine) {
  loop_->fd();
  SwitchTheLoop();
  EXPECT_EQ(loop_->engine(), EngineKind::kUring);
  StartConnect();
  ASSERT_TRUE(Opened());
  EXPECT_EQ(client_->stats().engine, EngineKind::kUring);
  ExpectHears("it is served");
}

}  // namespace
}  // namespace penstock::testing
