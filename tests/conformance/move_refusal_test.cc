// Moves that are refused, and where a stream goes when it is told which engine to go to; with
// switch_test.cc and migrate_test.cc the contract of move.h. Sealed handshakes are in
// tests/secure/sealed_moves_test.cc.
#include <penstock/listener.h>
#include <penstock/move.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/harness.h"
#include "testing/scripted_stream.h"

namespace penstock::internal {
namespace {

uint64_t RefusedOf(Loop& loop, MoveDirection direction, MoveRefusal why) {
  const LoopSnapshot now = loop.Snapshot();
  return now.moves_refused_by[static_cast<size_t>(direction)][static_cast<size_t>(why)];
}

class MoveRefusalTest : public Harness {
 protected:
  void SetUp() override {
    Harness::SetUp();
    if (IsSkipped()) return;
    if (const std::string why = MissingEngine(); !why.empty()) GTEST_SKIP() << why;
    other_ = environment().NewLoop({}).value();
    AlsoDrive(other_.get());
    second_ = loop().engine() == EngineKind::kUring ? EngineKind::kEpoll : EngineKind::kUring;
  }
  void TearDown() override {
    accepted().clear();
    if (other_ != nullptr) {
      EXPECT_TRUE(Drive([&] { return other_->Snapshot().open == 0; }));
      EXPECT_EQ(other_->Snapshot().stranded, 0u);
      StopDriving(other_.get());
    }
    other_ = nullptr;
    Harness::TearDown();
  }
  MoveCount MoveAll(Loop& from, Loop& to, EngineKind engine = EngineKind::kAuto) {
    MoveCount count;
    bool done = false;
    MigrateAll(
        from, to.handle(),
        [&](MoveCount result) {
          count = result;
          done = true;
        },
        engine);
    EXPECT_TRUE(Drive([&] { return done; }));
    return count;
  }

  std::unique_ptr<Loop> other_;
  EngineKind second_ = EngineKind::kAuto;  // not the one that loops begin with
};

TEST_P(MoveRefusalTest, AStreamThatIsMadeUponNoSocketStays) {
  ScriptedStream stream(loop());
  Fate switched, migrated;
  SwitchEngine(stream, EngineKind::kEpoll, switched.OnDone());
  Migrate(stream, other_->handle(), migrated.OnDone());
  EXPECT_FALSE(switched.ended() || migrated.ended()) << "inside the call";
  ASSERT_TRUE(Drive([&] { return switched.ended() && migrated.ended(); }));
  for (const Fate* fate : {&switched, &migrated}) {
    EXPECT_TRUE(absl::IsUnimplemented(fate->status())) << fate->status();
  }
  EXPECT_EQ(RefusedOf(loop(), MoveDirection::kToEpoll, MoveRefusal::kUnsupported), 1u);
  EXPECT_EQ(RefusedOf(loop(), MoveDirection::kOut, MoveRefusal::kUnsupported), 1u);
  EXPECT_EQ(loop().Snapshot().moves_refused, 2u);
  SwitchEngine(stream, EngineKind::kUring);  // nobody asks what becomes of it
  EXPECT_EQ(RefusedOf(loop(), MoveDirection::kToUring, MoveRefusal::kUnsupported), 1u);
}

TEST_P(MoveRefusalTest, AnEngineThatTheTargetDoesNotHaveSendsItBack) {
  StreamPair pair = Pair();
  Fate moved;
  Migrate(*pair.server, other_->handle(), moved.OnDone(), EngineKind::kSimulated);
  ASSERT_TRUE(Drive([&] { return moved.ended(); }));
  EXPECT_TRUE(absl::IsUnimplemented(moved.status())) << moved.status();
  EXPECT_EQ(&pair.server->loop(), &loop());
  EXPECT_EQ(RefusedOf(*other_, MoveDirection::kIn, MoveRefusal::kUnsupported), 1u);
  EXPECT_EQ(loop().Snapshot().moves_refused, 0u) << "counted once";
  EXPECT_EQ(loop().Snapshot().moves_back, 1u);
  Exchange(*pair.client, *pair.server, "it stays");
}

TEST_P(MoveRefusalTest, MigrateGoesToTheEngineThatItIsTold) {
  StreamPair pair = Pair();
  for (const EngineKind engine : {second_, EngineKind::kAuto, second_}) {
    Loop& to = &pair.server->loop() == &loop() ? *other_ : loop();
    Fate moved;
    Migrate(*pair.server, to.handle(), moved.OnDone(), engine);
    ASSERT_TRUE(Drive([&] { return moved.ended(); }));
    ASSERT_TRUE(moved.status().ok()) << moved.status();
    EXPECT_EQ(&pair.server->loop(), &to);
    EXPECT_EQ(pair.server->stats().engine, engine == EngineKind::kAuto ? to.engine() : engine);
    Exchange(*pair.client, *pair.server, "to the one that moved");
    Exchange(*pair.server, *pair.client, "and from it");
  }
  EXPECT_EQ(other_->engine(), loop().engine()) << "the loops keep their own";
}

TEST_P(MoveRefusalTest, MigrateAllGoesToTheEngineThatItIsTold) {
  StreamOptions migratable;
  migratable.migratable = true;
  std::vector<StreamPair> pairs;
  for (int i = 0; i < 20; ++i) pairs.push_back(Pair({}, migratable));
  EXPECT_EQ(MoveAll(loop(), *other_, second_).moved, pairs.size());
  for (StreamPair& pair : pairs) {
    EXPECT_EQ(&pair.server->loop(), other_.get());
    EXPECT_EQ(pair.server->stats().engine, second_);
  }
  Exchange(*pairs.back().client, *pairs.back().server, "hello");
  EXPECT_EQ(MoveAll(*other_, loop()).moved, pairs.size());
  for (StreamPair& pair : pairs) EXPECT_EQ(pair.server->stats().engine, loop().engine());
}

TEST_P(MoveRefusalTest, MigrateAllKeepsAPinnedStreamOnItsEngine) {
  ListenOptions listening;
  listening.engine = second_;
  listening.stream.migratable = listening.stream.pinned_engine = true;
  const auto listener =
      Listener::Listen(loop(), environment().NewAddress(), listening, [&](StreamPtr stream) {
        accepted().push_back(std::move(stream));
      }).value();
  const StreamPtr client = ConnectTo(listener->address(), Connecting()).value();
  ASSERT_TRUE(Drive([&] { return !accepted().empty(); }));
  Stream& server = *accepted().front();
  ASSERT_EQ(server.stats().engine, second_);
  for (Loop* const to : {other_.get(), &loop()}) {
    EXPECT_EQ(MoveAll(server.loop(), *to).moved, 1u);
    EXPECT_EQ(&server.loop(), to);
    EXPECT_EQ(server.stats().engine, second_);
    Exchange(*client, server, "hello");
  }
}

TEST_P(MoveRefusalTest, APinnedListenerKeepsItsEngine) {
  ListenOptions pinned;
  pinned.stream.pinned_engine = true;
  const std::unique_ptr<Listener> stays = Listen(pinned);
  const std::unique_ptr<Listener> goes = Listen();
  const EngineKind before = environment().listen_engine();
  const EngineKind to = before == EngineKind::kUring ? EngineKind::kEpoll : EngineKind::kUring;
  MoveCount count;
  bool done = false;
  ASSERT_TRUE(SwitchAll(loop(), to, [&](MoveCount result) {
                count = result;
                done = true;
              }).ok());
  ASSERT_TRUE(Drive([&] { return done; }));
  EXPECT_EQ(count.listeners_moved, 1u);
  EXPECT_EQ(count.listeners_failed, 0u);
  EXPECT_EQ(loop().Snapshot().listener_switches, 1u);
  EXPECT_EQ(loop().Snapshot().listener_switches_refused, 0u);
  for (const auto& [listener, engine] :
       {std::pair(stays.get(), before), std::pair(goes.get(), to)}) {
    accepted().clear();
    const StreamPtr client = ConnectTo(listener->address(), Connecting()).value();
    ASSERT_TRUE(Drive([&] { return !accepted().empty(); }));
    EXPECT_EQ(accepted().front()->stats().engine, engine);
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, MoveRefusalTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
