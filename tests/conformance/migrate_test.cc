// The contract of changing loops: move.h, Migrate. Both loops run on the test's thread, one turn at
// a time; tests/transport/migrate_threads_test.cc has them on threads of their own.
#include <penstock/framed_reader.h>
#include <penstock/move.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

class MigrateTest : public Harness {
 protected:
  void SetUp() override {
    Harness::SetUp();
    if (!IsSkipped()) MakeOther({});
  }
  void MakeOther(LoopOptions options) {
    DestroyOther();
    absl::StatusOr<std::unique_ptr<Loop>> made = environment().NewLoop(std::move(options));
    ASSERT_TRUE(made.ok()) << made.status();
    other_ = *std::move(made);
    AlsoDrive(other_.get());
  }
  void DestroyOther() {
    if (other_ == nullptr) return;
    StopDriving(other_.get());
    other_ = nullptr;
  }
  void TearDown() override {
    accepted().clear();
    if (other_ != nullptr) {
      EXPECT_TRUE(Drive([&] { return other_->Snapshot().open == 0; }));
      EXPECT_EQ(other_->Snapshot().pinned_bytes, 0u);
      EXPECT_EQ(other_->Snapshot().sealed_pinned_bytes, 0u);
      EXPECT_EQ(other_->Snapshot().framed_pinned_bytes, 0u);
      EXPECT_EQ(other_->Snapshot().pool.live, 0u);
      EXPECT_EQ(other_->Snapshot().stranded, 0u);
    }
    // What waits in it goes back, or ends, before the loop that it came from is looked at.
    DestroyOther();
    Harness::TearDown();
  }

  Loop& other() { return *other_; }
  void Move(Stream& stream, Loop& to) {
    Fate moved;
    Migrate(stream, to.handle(), moved.OnDone());
    ASSERT_TRUE(Drive([&] { return moved.ended(); }));
    ASSERT_TRUE(moved.status().ok()) << moved.status();
    EXPECT_EQ(&stream.loop(), &to);
  }
  // Runs `loop` alone, until `done`.
  bool DriveAlone(Loop& loop, absl::FunctionRef<bool()> done) {
    Loop* const alone[] = {&loop};
    return environment().Drive(alone, done);
  }

 private:
  std::unique_ptr<Loop> other_;
};

TEST_P(MigrateTest, TheStreamGoesOnThereAndComesBack) {
  StreamPair pair = Pair();
  for (int i = 0; i < 10; ++i) {
    Move(*pair.server, i % 2 == 0 ? other() : loop());
    Exchange(*pair.client, *pair.server, "to the one that moved");
    Exchange(*pair.server, *pair.client, "and from it");
  }
  EXPECT_EQ(loop().Snapshot().moves_out, 5u);
  EXPECT_EQ(loop().Snapshot().moves_in, 5u);
  EXPECT_EQ(other().Snapshot().moves_out, 5u);
  EXPECT_EQ(loop().Snapshot().open + other().Snapshot().open, 2u);
}

TEST_P(MigrateTest, ToItsOwnLoopIsOk) {
  StreamPair pair = Pair();
  Move(*pair.server, loop());
  EXPECT_EQ(loop().Snapshot().moves_out, 0u);
}

TEST_P(MigrateTest, APendingReadEndsOnTheTarget) {
  StreamPair pair = Pair();
  Loop* ran_on = nullptr;
  std::string got;
  pair.server->ReadReady([&](absl::StatusOr<Buffer> data) {
    ASSERT_TRUE(data.ok()) << data.status();
    got = std::string(data->view());
    ran_on = &pair.server->loop();
  });
  Settle();
  Move(*pair.server, other());
  EXPECT_EQ(ran_on, nullptr);
  pair.client->Write(Chain("late"));
  ASSERT_TRUE(Drive([&] { return ran_on != nullptr; }));
  EXPECT_EQ(ran_on, &other());
  EXPECT_EQ(got, "late");
}

TEST_P(MigrateTest, UnreadAndUnsentBytesGoAlong) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  constexpr size_t kTotal = 1 << 20;
  Fate there, back;
  pair.client->Write(Chain(PatternBytes(1, 0, kTotal)), there.OnDone());
  pair.server->Write(Chain(PatternBytes(2, 0, kTotal)), back.OnDone());
  std::string at_server = Read(*pair.server).value_or("");
  Settle();
  ASSERT_FALSE(there.ended());
  ASSERT_FALSE(back.ended());
  Move(*pair.server, other());
  at_server += ReadUpTo(*pair.server, kTotal / 2).data;
  Move(*pair.server, loop());
  at_server += ReadUpTo(*pair.server, kTotal - at_server.size()).data;
  const std::string at_client = ReadUpTo(*pair.client, kTotal).data;
  EXPECT_EQ(at_server.size(), kTotal);
  EXPECT_EQ(at_client.size(), kTotal);
  EXPECT_FALSE(FirstMismatch(at_server, 1, 0).has_value());
  EXPECT_FALSE(FirstMismatch(at_client, 2, 0).has_value());
  ASSERT_TRUE(Drive([&] { return there.ended() && back.ended(); }));
  EXPECT_TRUE(there.status().ok() && back.status().ok());
}

TEST_P(MigrateTest, ATargetThatDrainsSendsItBack) {
  StreamPair pair = Pair();
  other().Drain(absl::InfiniteDuration());
  Fate moved;
  Migrate(*pair.server, other().handle(), moved.OnDone());
  ASSERT_TRUE(Drive([&] { return moved.ended(); }));
  EXPECT_TRUE(absl::IsUnavailable(moved.status())) << moved.status();
  EXPECT_EQ(&pair.server->loop(), &loop());
  EXPECT_EQ(loop().Snapshot().moves_back, 1u);
  EXPECT_EQ(loop().Snapshot().moves_refused, 0u) << "it counts for the one that refused";
  EXPECT_EQ(other().Snapshot().moves_refused, 1u);
  Exchange(*pair.client, *pair.server, "it goes on where it was");
}

TEST_P(MigrateTest, ATargetThatIsFullSendsItBack) {
  LoopOptions options;
  options.connections_max = 1;
  MakeOther(std::move(options));
  StreamPair first = Pair();
  StreamPair second = Pair();
  Move(*first.server, other());
  Fate read;
  second.server->ReadReady(read.OnRead());
  Fate moved;
  Migrate(*second.server, other().handle(), moved.OnDone());
  ASSERT_TRUE(Drive([&] { return moved.ended(); }));
  EXPECT_TRUE(absl::IsResourceExhausted(moved.status())) << moved.status();
  EXPECT_FALSE(read.ended());
  second.client->Write(Chain("still reading"));
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_EQ(read.data(), "still reading");
}

TEST_P(MigrateTest, ATargetThatIsGoneSendsItBack) {
  StreamPair pair = Pair();
  const LoopHandle gone = other().handle();
  DestroyOther();
  Fate moved;
  Migrate(*pair.server, gone, moved.OnDone());
  ASSERT_TRUE(Drive([&] { return moved.ended(); }));
  EXPECT_TRUE(absl::IsUnavailable(moved.status())) << moved.status();
  EXPECT_EQ(loop().Snapshot().moves_back, 1u);
  EXPECT_EQ(loop().Snapshot().moves_refused, 1u) << "nobody else is left to count it";
  Exchange(*pair.client, *pair.server, "it goes on");
}

TEST_P(MigrateTest, ATargetThatGoesMeanwhileSendsItBackWithEveryByte) {
  if (!environment().drives_alone()) GTEST_SKIP() << "the simulator has such moves by its seeds";
  StreamPair pair = Pair();
  Fate read, moved;
  pair.server->ReadReady(read.OnRead());
  Settle();
  Migrate(*pair.server, other().handle(), moved.OnDone());
  ASSERT_TRUE(DriveAlone(loop(), [&] { return loop().Snapshot().moves_out == 1; }));
  pair.client->Write(Chain("on its way"));
  DestroyOther();
  ASSERT_TRUE(Drive([&] { return moved.ended() && read.ended(); }));
  EXPECT_TRUE(absl::IsUnavailable(moved.status())) << moved.status();
  EXPECT_EQ(read.data(), "on its way");
}

TEST_P(MigrateTest, WhenBothLoopsGoItIsClosedAndItsCallbacksAreDropped) {
  if (!environment().drives_alone()) GTEST_SKIP() << "the simulator has such moves by its seeds";
  StreamPair pair = Pair();
  Fate read, write, moved;
  pair.server->ReadReady(read.OnRead());
  Settle();
  pair.server->NotifyWritable(write.OnDone());
  Migrate(*pair.server, other().handle(), moved.OnDone());
  ASSERT_TRUE(DriveAlone(loop(), [&] { return loop().Snapshot().moves_out == 1; }));
  pair.client.reset();
  TakeLoop().reset();
  EXPECT_FALSE(read.ended() || moved.ended());
  DestroyOther();
  EXPECT_EQ(read.dropped(), 1);
  EXPECT_EQ(moved.dropped(), 1);
  EXPECT_EQ(write.runs() + write.dropped(), 1);
  pair.server.reset();
}

TEST_P(MigrateTest, TheSourceMayGoOnceItHasLeft) {
  StreamPair pair = Pair();
  Move(*pair.server, other());
  Move(*pair.client, other());
  TakeLoop().reset();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  absl::StatusOr<Buffer> bytes = other().pool().Copy("alone");
  ASSERT_TRUE(bytes.ok());
  pair.client->Write(*std::move(bytes));
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_EQ(read.data(), "alone");
}

TEST_P(MigrateTest, ADeadlineFiresOnTheTarget) {
  StreamPair pair = Pair();
  pair.server->SetReadDeadline(absl::Milliseconds(30));
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Move(*pair.server, other());
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(absl::IsDeadlineExceeded(read.status())) << read.status();
  EXPECT_EQ(other().Snapshot().deadlines, 1u);
  EXPECT_EQ(loop().Snapshot().deadlines, 0u);
}

TEST_P(MigrateTest, ItsListenerHearsOfItsEnd) {
  std::unique_ptr<Listener> listener = Listen();
  absl::StatusOr<StreamPtr> client = ConnectTo(listener->address(), Connecting());
  ASSERT_TRUE(client.ok());
  ASSERT_TRUE(Drive([&] { return !accepted().empty(); }));
  StreamPtr server = std::move(accepted().front());
  accepted().pop_front();
  Move(*server, other());
  EXPECT_EQ(listener->stats().open, 1u);
  server.reset();
  ASSERT_TRUE(Drive([&] { return listener->stats().open == 0; }));
}

TEST_P(MigrateTest, AnEndIsCarriedAlong) {
  StreamPair pair = Pair();
  pair.client->Write(Chain("and out"));
  pair.client->ShutdownWrite();
  Move(*pair.server, other());
  const Received all = ReadToEnd(*pair.server);
  EXPECT_EQ(all.data, "and out");
  EXPECT_TRUE(IsEof(all.end)) << all.end;
  Move(*pair.server, loop());
  EXPECT_TRUE(IsEof(Read(*pair.server).status()));
  Exchange(*pair.server, *pair.client, "half open");
}

TEST_P(MigrateTest, AFramedReaderGoesAlongInTheMiddleOfAFrame) {
  StreamPair pair = Pair();
  FramedReader reader(std::move(pair.server), FrameFormat::Grpc());
  const std::string body = PatternBytes(5, 0, 3000);
  std::string frame = std::string("\0\0\0\x0b\xb8", 5) + body;
  std::string got;
  int frames = 0;
  std::function<void(absl::StatusOr<Frame>)> next = [&](absl::StatusOr<Frame> result) {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->body.ToString(), body);
    ++frames;
    reader.ReadFrame(next);
  };
  reader.ReadFrame(next);
  for (int i = 0; i < 20; ++i) {
    const size_t cut = static_cast<size_t>(i) * 157 % frame.size();
    pair.client->Write(Chain(frame.substr(0, cut)));
    Settle();
    Move(reader.stream(), i % 2 == 0 ? other() : loop());
    pair.client->Write(Chain(frame.substr(cut)));
    ASSERT_TRUE(Drive([&] { return frames == i + 1; }));
  }
}

TEST_P(MigrateTest, SaturatedBothWaysThroughManyMoves) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  const int wanted = Scaled(environment().has_kernel() ? 500 : 100);
  int moves = 0;
  Stream* const server = pair.server.get();
  std::function<void(absl::Status)> again = [&](absl::Status status) {
    ASSERT_TRUE(status.ok()) << status;
    if (++moves >= wanted) return;
    Migrate(*server, (&server->loop() == &loop() ? other() : loop()).handle(), again);
  };
  constexpr uint64_t kEndless = uint64_t{1} << 40;
  PatternWriter from_client(*pair.client, 1, kEndless, 30'000);
  PatternWriter from_server(*pair.server, 2, kEndless, 30'000);
  PatternReader at_server(std::move(pair.server), 1);
  PatternReader at_client(std::move(pair.client), 2);
  at_server.Start();
  at_client.Start();
  from_client.Start();
  from_server.Start();
  Migrate(*server, other().handle(), again);
  ASSERT_TRUE(Drive([&] { return moves >= wanted; })) << moves;
  const uint64_t at = at_server.received() + at_client.received();
  ASSERT_TRUE(Drive([&] { return at_server.received() + at_client.received() > at + 500'000; }));
  EXPECT_TRUE(at_server.intact());
  EXPECT_TRUE(at_client.intact());
}

TEST_P(MigrateTest, ASwitchAskedForMeanwhileTakesItsPlace) {
  StreamPair pair = Pair();
  Fate move, stay;
  Migrate(*pair.server, other().handle(), move.OnDone());
  SwitchEngine(*pair.server, EngineKind::kAuto, stay.OnDone());
  ASSERT_TRUE(Drive([&] { return move.ended() && stay.ended(); }));
  EXPECT_TRUE(absl::IsCancelled(move.status())) << move.status();
  EXPECT_TRUE(stay.status().ok()) << stay.status();
  EXPECT_EQ(&pair.server->loop(), &loop());
}

TEST_P(MigrateTest, AllThatMayLeaveALoop) {
  constexpr int kStreams = 300;
  StreamOptions migratable;
  migratable.migratable = true;
  std::vector<StreamPair> pairs;
  for (int i = 0; i < kStreams; ++i) pairs.push_back(Pair({}, migratable));
  MoveCount count;
  bool done = false;
  const auto move_all = [&](Loop& from, Loop& to) {
    done = false;
    MigrateAll(from, to.handle(), [&](MoveCount result) {
      EXPECT_TRUE(from.InLoopThread());
      count = result;
      done = true;
    });
    EXPECT_FALSE(done) << "inside the call";
    ASSERT_TRUE(Drive([&] { return done; }));
    EXPECT_EQ(count.moved, static_cast<uint64_t>(kStreams));
    EXPECT_EQ(count.failed, 0u);
  };
  move_all(loop(), other());
  for (const StreamPair& pair : pairs) {
    ASSERT_EQ(&pair.server->loop(), &other());
    ASSERT_EQ(&pair.client->loop(), &loop());
  }
  EXPECT_EQ(other().Snapshot().open, static_cast<uint64_t>(kStreams));
  EXPECT_EQ(loop().Snapshot().open, static_cast<uint64_t>(kStreams));
  for (int i = 0; i < kStreams; i += 30) Exchange(*pairs[i].client, *pairs[i].server, "there");
  move_all(other(), loop());
  for (int i = 0; i < kStreams; i += 30) Exchange(*pairs[i].client, *pairs[i].server, "back");
  EXPECT_EQ(other().Snapshot().open, 0u);
  EXPECT_EQ(other().Snapshot().open_uring, 0u);
}

TEST_P(MigrateTest, ALoopThatIsLeftByAllServesOthersMeanwhile) {
  constexpr uint64_t kStreams = 300;
  constexpr uint64_t kSlice = 64;
  StreamOptions migratable;
  migratable.migratable = true;
  std::vector<StreamPair> pairs;
  for (uint64_t i = 0; i < kStreams; ++i) pairs.push_back(Pair({}, migratable));
  bool done = false;
  const LoopSnapshot before = loop().Snapshot();
  uint64_t left = before.moves_out, most = 0;
  MigrateAll(loop(), other().handle(), [&](MoveCount) { done = true; });
  ASSERT_TRUE(Drive([&] {
    const uint64_t now = loop().Snapshot().moves_out;
    most = std::max(most, now - std::exchange(left, now));
    return done;
  }));
  EXPECT_EQ(left - before.moves_out, kStreams);
  EXPECT_GE(loop().Snapshot().turns - before.turns, kStreams / kSlice) << "no more begin in a turn";
  // An engine that lets go at once shows each slice as it is.
  if (environment().listen_engine() == EngineKind::kEpoll) {
    EXPECT_LE(most, kSlice);
  }
}

TEST_P(MigrateTest, AllOfALoopWhoseTargetIsGoneStay) {
  StreamOptions migratable;
  migratable.migratable = true;
  StreamPair pair = Pair(migratable, migratable);
  const LoopHandle gone = other().handle();
  DestroyOther();
  MoveCount count;
  bool done = false;
  MigrateAll(loop(), gone, [&](MoveCount result) {
    count = result;
    done = true;
  });
  ASSERT_TRUE(Drive([&] { return done; }));
  EXPECT_EQ(count.moved, 0u);
  EXPECT_EQ(count.failed, 2u);
  Exchange(*pair.client, *pair.server, "it goes on where it was");
}

TEST_P(MigrateTest, ASecondSweepEndsTheFirstAndAnEmptyOneEnds) {
  StreamOptions migratable;
  migratable.migratable = true;
  std::vector<StreamPair> pairs;
  for (int i = 0; i < 20; ++i) pairs.push_back(Pair({}, migratable));
  MoveCount first, second, third;
  int done = 0;
  MigrateAll(loop(), other().handle(), [&](MoveCount count) { first = count, ++done; });
  MigrateAll(loop(), other().handle(), [&](MoveCount count) { second = count, ++done; });
  ASSERT_TRUE(Drive([&] { return done == 2; }));
  EXPECT_EQ(first.moved, 0u);
  EXPECT_EQ(second.moved, 20u);
  MigrateAll(loop(), other().handle(), [&](MoveCount count) { third = count, ++done; });
  ASSERT_TRUE(Drive([&] { return done == 3; }));
  EXPECT_EQ(third.moved + third.failed, 0u);
}

TEST_P(MigrateTest, ASweepEndsThoughStreamsGoMeanwhile) {
  StreamOptions migratable;
  migratable.migratable = true;
  std::vector<StreamPair> pairs;
  for (int i = 0; i < 20; ++i) pairs.push_back(Pair({}, migratable));
  StreamPair first = Pair();
  MoveCount count;
  bool done = false;
  MigrateAll(loop(), other().handle(), [&](MoveCount result) {
    count = result;
    done = true;
  });
  // Its callback comes when the moves of the others are asked for, and none has begun.
  SwitchEngine(*first.server, EngineKind::kAuto, [&](absl::Status) { pairs.clear(); });
  ASSERT_TRUE(Drive([&] { return done; }));
  EXPECT_TRUE(pairs.empty());
  EXPECT_EQ(count.moved + count.failed, 0u);
}

// Gives the server's stream of `pair`, which other() has, to a loop that never runs.
class MigrateOfADrainTest : public MigrateTest {
 protected:
  void SetUp() override {
    MigrateTest::SetUp();
    if (IsSkipped()) return;
    StreamOptions migratable;
    migratable.migratable = true;
    pair_ = Pair({}, migratable);
    Move(*pair_.server, other());
    deaf_ = environment().NewLoop({}).value();
    MigrateAll(other(), deaf_->handle(), [this](MoveCount result) { count_ = result; });
    ASSERT_TRUE(DriveAlone(other(), [this] { return other().Snapshot().open == 0; }));
  }
  void TearDown() override {
    pair_ = {};
    MigrateTest::TearDown();
  }

  StreamPair pair_;
  std::unique_ptr<Loop> deaf_;
  std::optional<MoveCount> count_;
};

TEST_P(MigrateOfADrainTest, TheLoopWaitsForWhatMayComeBack) {
  other().Drain(absl::InfiniteDuration());
  Settle();
  EXPECT_FALSE(other().drained());
  deaf_ = nullptr;
  ASSERT_TRUE(Drive([this] { return count_.has_value(); }));
  EXPECT_EQ(count_->failed, 1u);
  EXPECT_FALSE(other().drained());
  Exchange(*pair_.client, *pair_.server, "it goes on where it was");
  pair_.server.reset();
  ASSERT_TRUE(Drive([this] { return other().drained(); }));
}

TEST_P(MigrateOfADrainTest, WhatComesBackTooLateEnds) {
  other().Drain(absl::ZeroDuration());
  ASSERT_TRUE(Drive([this] { return other().drained(); })) << "it waits longer than its grace";
  deaf_ = nullptr;
  ASSERT_TRUE(Drive([this] { return count_.has_value(); }));
  const absl::StatusOr<std::string> read = Read(*pair_.server);
  EXPECT_TRUE(absl::IsCancelled(read.status())) << read.status();
  EXPECT_TRUE(other().drained());
}

TEST_P(MigrateTest, MayBeDestroyedInTheCallback) {
  StreamPair pair = Pair();
  bool destroyed = false;
  Migrate(*pair.server, other().handle(), [&](absl::Status status) {
    EXPECT_TRUE(status.ok()) << status;
    pair.server.reset();
    destroyed = true;
  });
  ASSERT_TRUE(Drive([&] { return destroyed; }));
}

TEST_P(MigrateTest, DestroyedBeforeItLeavesItIsGone) {
  StreamPair pair = Pair();
  Fate moved;
  Migrate(*pair.server, other().handle(), moved.OnDone());
  pair.server.reset();
  EXPECT_EQ(moved.dropped(), 1);
  EXPECT_FALSE(Read(*pair.client).ok());
}

// A simulated world runs every loop that it has.
INSTANTIATE_TEST_SUITE_P(Engines, MigrateOfADrainTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Environments, MigrateTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, MigrateTest, ::testing::ValuesIn(SealedEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
