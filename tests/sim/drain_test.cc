// Drains that meet what the kernel still holds, and streams that are between two loops: the moments
// that real threads meet by chance.
#include <gtest/gtest.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <penstock/stream.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "testing/sim_styles.h"
#include "testing/sim_world.h"

namespace penstock::testing {
namespace {

uint64_t Refused(const Loop& loop, MoveDirection direction, MoveRefusal why) {
  return loop.Snapshot().moves_refused_by[static_cast<size_t>(direction)][static_cast<size_t>(why)];
}

// A stream of `loop_` whose peer is on a loop of its own.
class SimDrain : public ::testing::TestWithParam<SimStyle> {
 protected:
  SimDrain() {
    pool_ = world_.NewPool({});
    loop_ = NewLoop({});
    peers_ = NewLoop({});
    stream_ = Open(*loop_);
  }

  std::unique_ptr<Loop> NewLoop(LoopOptions options) {
    options.pool = pool_.get();
    return *world_.NewLoop(std::move(options), GetParam());
  }
  StreamPtr Open(Loop& loop) {
    StreamPtr stream;
    const auto listener =
        *Listener::Listen(*peers_, *SocketAddress::Parse("10.0.0.1:0"), {},
                          [this](StreamPtr accepted) { clients_.push_back(std::move(accepted)); });
    Connect(loop, listener->address(), {},
            [&](absl::StatusOr<StreamPtr> made) { stream = *std::move(made); });
    world_.Touch(loop);
    EXPECT_TRUE(world_.Run([&] { return stream != nullptr; }, absl::Seconds(60)));
    world_.Run([] { return false; }, absl::Seconds(1));
    return stream;
  }

  SimWorld world_{1};
  std::unique_ptr<BufferPool> pool_;
  std::unique_ptr<Loop> peers_;
  std::unique_ptr<Loop> loop_;
  std::vector<StreamPtr> clients_;
  StreamPtr stream_;
};

INSTANTIATE_TEST_SUITE_P(Styles, SimDrain, SimStyles(), SimStyleName);

TEST_P(SimDrain, RunReturnsWhenTheKernelHasLetGoOfTheLastStream) {
  world_.faults().event_delay_max = 50'000'000;
  loop_->Post([this] {
    stream_->ReadReady([](absl::StatusOr<Buffer>) {});
    loop_->Post([this] {
      loop_->Drain(absl::Hours(1));
      stream_ = nullptr;
    });
  });
  world_.Drive(*loop_);
  EXPECT_TRUE(loop_->drained());
  const LoopSnapshot now = loop_->Snapshot();
  EXPECT_EQ(now.closing, 0u);
  EXPECT_EQ(now.closed, 1u);
}

TEST_P(SimDrain, AfterItsGraceTooTheKernelIsWaitedFor) {
  world_.faults().event_delay_max = 50'000'000;
  std::optional<absl::Status> end;
  loop_->Post([&] {
    stream_->ReadReady([&](absl::StatusOr<Buffer> data) { end = data.status(); });
    loop_->Drain(absl::Milliseconds(20));
  });
  world_.Drive(*loop_);
  EXPECT_TRUE(end.has_value() && absl::IsCancelled(*end));
  EXPECT_EQ(loop_->Snapshot().closed, 1u);
}

// It has left the loop and is in nobody's hands when the loop looks whether it is empty.
TEST_P(SimDrain, AStreamThatIsSentBackIsWaitedFor) {
  LoopOptions full;
  full.connections_max = 1;
  const std::unique_ptr<Loop> other = NewLoop(std::move(full));
  const StreamPtr in_its_place = Open(*other);
  std::optional<absl::Status> moved;
  loop_->Post([&] {
    Migrate(*stream_, other->handle(), [&](absl::Status status) {
      EXPECT_EQ(&stream_->loop(), loop_.get());
      moved = std::move(status);
      stream_ = nullptr;
    });
    loop_->Drain(absl::Hours(1));
  });
  world_.Drive(*loop_);
  ASSERT_TRUE(moved.has_value()) << "Run returned while the stream was on its way";
  EXPECT_TRUE(absl::IsResourceExhausted(*moved)) << *moved;
  EXPECT_EQ(Refused(*other, MoveDirection::kIn, MoveRefusal::kNoRoom), 1u);
  EXPECT_EQ(loop_->Snapshot().moves_back, 1u);
}

TEST_P(SimDrain, AStreamThatHasArrivedLetsTheLoopGo) {
  const std::unique_ptr<Loop> other = NewLoop({});
  std::optional<absl::Status> moved;
  loop_->Post([&] {
    Migrate(*stream_, other->handle(), [&](absl::Status status) { moved = std::move(status); });
    loop_->Drain(absl::Hours(1));
  });
  const int64_t before = world_.now_ns();
  world_.Drive(*loop_);
  EXPECT_LT(world_.now_ns() - before, 1'000'000'000);
  ASSERT_TRUE(moved.has_value());
  EXPECT_TRUE(moved->ok()) << *moved;
  EXPECT_EQ(other->Snapshot().open, 1u);
  stream_ = nullptr;
}

// Nobody may ever look into its mailbox again.
TEST_P(SimDrain, ALoopWhoseRunHasReturnedTakesNoStreamIntoItsMailbox) {
  const std::unique_ptr<Loop> other = NewLoop({});
  other->Drain(absl::ZeroDuration());
  world_.Drive(*other);
  std::optional<absl::Status> moved;
  Migrate(*stream_, other->handle(), [&](absl::Status status) { moved = std::move(status); });
  world_.Touch(*loop_);
  ASSERT_TRUE(world_.Run([&] { return moved.has_value(); }, absl::Seconds(1)));
  EXPECT_TRUE(absl::IsUnavailable(*moved)) << *moved;
  EXPECT_EQ(&stream_->loop(), loop_.get());
  EXPECT_EQ(Refused(*loop_, MoveDirection::kOut, MoveRefusal::kGone), 1u);
  EXPECT_EQ(other->Snapshot().moves_refused, 0u);
}

TEST_P(SimDrain, AHandleOfNoLoopTakesNoStream) {
  std::optional<absl::Status> moved;
  Migrate(*stream_, LoopHandle(), [&](absl::Status status) { moved = std::move(status); });
  world_.Touch(*loop_);
  ASSERT_TRUE(world_.Run([&] { return moved.has_value(); }, absl::Seconds(1)));
  EXPECT_TRUE(absl::IsUnavailable(*moved)) << *moved;
}

TEST_P(SimDrain, WhatCameBeforeRunReturnsIsSentBack) {
  const std::unique_ptr<Loop> other = NewLoop({});
  std::optional<absl::Status> moved;
  // In one instant: the stream goes into the mailbox of a loop that looks no more but once.
  other->Post([&] {
    other->Drain(absl::ZeroDuration());
    Migrate(*stream_, other->handle(), [&](absl::Status status) { moved = std::move(status); });
    world_.Touch(*loop_);
    world_.TakeTurn(*loop_);
    world_.TakeTurn(*loop_);
  });
  world_.Drive(*other);
  ASSERT_TRUE(world_.Run([&] { return moved.has_value(); }, absl::Seconds(1)));
  EXPECT_TRUE(absl::IsUnavailable(*moved)) << *moved;
  EXPECT_EQ(&stream_->loop(), loop_.get());
}

// --- Ownership that is handed in and out ---

TEST_P(SimDrain, AStreamThatIsHandedInComesOutOnTheOtherThread) {
  const std::unique_ptr<Loop> other = NewLoop({});
  StreamPtr out;
  Migrate(std::move(stream_), other->handle(), [&](absl::Status status, StreamPtr stream) {
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(world_.Busy(*other));
    out = std::move(stream);
  });
  EXPECT_EQ(out, nullptr) << "inside the call";
  world_.Touch(*loop_);
  ASSERT_TRUE(world_.Run([&] { return out != nullptr; }, absl::Seconds(1)));
  EXPECT_EQ(&out->loop(), other.get());
  out = nullptr;
}

TEST_P(SimDrain, AStreamThatIsRefusedComesOutWhereItWentIn) {
  std::unique_ptr<Loop> other = NewLoop({});
  const LoopHandle gone = other->handle();
  other = nullptr;
  StreamPtr out;
  std::optional<absl::Status> how;
  Migrate(std::move(stream_), gone, [&](absl::Status status, StreamPtr stream) {
    EXPECT_TRUE(world_.Busy(*loop_));
    how = std::move(status);
    out = std::move(stream);
  });
  world_.Touch(*loop_);
  ASSERT_TRUE(world_.Run([&] { return out != nullptr; }, absl::Seconds(1)));
  EXPECT_TRUE(absl::IsUnavailable(*how)) << *how;
  EXPECT_EQ(&out->loop(), loop_.get());
  out = nullptr;
}

TEST_P(SimDrain, AStreamThatIsHandedInGoesWithBothLoops) {
  std::unique_ptr<Loop> other = NewLoop({});
  bool ran = false;
  auto alive = std::make_shared<bool>(true);
  Migrate(std::move(stream_), other->handle(),
          [&ran, alive](const absl::Status&, const StreamPtr&) { ran = true; });
  world_.Touch(*loop_);
  for (int i = 0; i < 4 && world_.HasTurn(*loop_); ++i) world_.TakeTurn(*loop_);
  EXPECT_EQ(loop_->Snapshot().moves_out + loop_->Snapshot().closing, 1u) << "it is on its way";
  loop_ = nullptr;
  other = nullptr;
  EXPECT_FALSE(ran);
  EXPECT_EQ(alive.use_count(), 1) << "the callback is destroyed, and the stream with it";
}

}  // namespace
}  // namespace penstock::testing
