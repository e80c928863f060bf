#include "engine/deferred.h"

#include <gtest/gtest.h>
#include <penstock/loop.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "engine/loop_core.h"
#include "testing/engine_loop.h"

namespace penstock::internal {
namespace {

class Job : public Deferred {
 public:
  explicit Job(std::function<void(Job&)> act) : Deferred(&Act), act_(std::move(act)) {}

 private:
  static void Act(Deferred* node) {
    // Kept here: it may destroy its job.
    const std::function<void(Job&)> act = static_cast<Job*>(node)->act_;
    act(*static_cast<Job*>(node));
  }
  std::function<void(Job&)> act_;
};

TEST(DeferredList, RunsInTheOrderOfDeferringAndEachOnce) {
  DeferredList list;
  std::vector<int> ran;
  Job one([&](Job&) { ran.push_back(1); });
  Job two([&](Job&) { ran.push_back(2); });
  EXPECT_TRUE(list.empty());
  list.Push(two);
  list.Push(one);
  list.Push(two);
  EXPECT_FALSE(list.empty());
  EXPECT_TRUE(one.pending());
  list.Run(10);
  EXPECT_EQ(ran, (std::vector<int>{2, 1}));
  EXPECT_TRUE(list.empty());
  EXPECT_FALSE(one.pending());
  list.Run(10);
  EXPECT_EQ(ran.size(), 2u);
}

TEST(DeferredList, RunsAtMostTheBoundAndGoesOnLater) {
  DeferredList list;
  int ran = 0;
  std::vector<std::unique_ptr<Job>> jobs;
  for (int i = 0; i < 10; ++i) {
    jobs.push_back(std::make_unique<Job>([&](Job&) { ++ran; }));
    list.Push(*jobs.back());
  }
  list.Run(4);
  EXPECT_EQ(ran, 4);
  EXPECT_FALSE(list.empty());
  list.Run(4);
  list.Run(4);
  EXPECT_EQ(ran, 10);
  EXPECT_TRUE(list.empty());
}

TEST(DeferredList, WhatDefersItselfWaitsForTheNextRun) {
  DeferredList list;
  int ran = 0;
  Job again([&](Job& self) {
    ++ran;
    list.Push(self);
  });
  list.Push(again);
  list.Run(100);
  EXPECT_EQ(ran, 1);
  EXPECT_TRUE(again.pending());
  list.Run(100);
  EXPECT_EQ(ran, 2);
}

TEST(DeferredList, WhatIsWantedSoonRunsInTheSameRunAfterThoseThatWereThere) {
  DeferredList list;
  std::vector<int> ran;
  Job later([&](Job&) { ran.push_back(4); });
  Job soon([&](Job&) {
    ran.push_back(3);
    EXPECT_FALSE(list.empty());  // `later`
  });
  Job there([&](Job&) { ran.push_back(2); });
  Job first([&](Job&) {
    ran.push_back(1);
    list.Push(later);
    list.PushSoon(soon);
    list.PushSoon(later);  // waits already
  });
  list.PushSoon(first);
  list.Push(there);
  list.Run(100);
  EXPECT_EQ(ran, (std::vector<int>{1, 2, 3}));
  list.Run(100);
  EXPECT_EQ(ran, (std::vector<int>{1, 2, 3, 4}));
}

TEST(DeferredList, IsEmptyForTheLastThatRuns) {
  DeferredList list;
  std::vector<bool> empty;
  Job one([&](Job&) { empty.push_back(list.empty()); });
  Job two([&](Job&) { empty.push_back(list.empty()); });
  list.Push(one);
  list.Push(two);
  list.Run(100);
  EXPECT_EQ(empty, (std::vector<bool>{false, true}));
}

TEST(DeferredList, ADestroyedOrCancelledNodeIsNotRun) {
  DeferredList list;
  int ran = 0;
  auto gone = std::make_unique<Job>([&](Job&) { ++ran; });
  std::unique_ptr<Job> suicide;
  suicide = std::make_unique<Job>([&](Job&) {
    ++ran;
    suicide.reset();
  });
  auto victim = std::make_unique<Job>([&](Job&) { ran += 100; });
  Job killer([&](Job&) {
    ++ran;
    victim.reset();
  });
  Job cancelled([&](Job&) { ran += 100; });
  list.Push(*gone);
  list.Push(*suicide);
  list.Push(killer);
  list.Push(*victim);
  list.Push(cancelled);
  gone.reset();
  cancelled.Cancel();
  cancelled.Cancel();
  list.Run(100);
  EXPECT_EQ(ran, 2);
  EXPECT_TRUE(list.empty());
}

TEST(DeferredList, ForgetsItsNodesWhenItGoesFirst) {
  int ran = 0;
  Job job([&](Job&) { ++ran; });
  {
    DeferredList list;
    list.Push(job);
  }
  EXPECT_FALSE(job.pending());
  EXPECT_EQ(ran, 0);
}

class LoopDeferred : public EngineLoopTest {};

TEST_P(LoopDeferred, RunsInALaterTurnAndKeepsTheLoopAwake) {
  int ran = 0;
  Job job([&](Job& self) {
    if (++ran < 3) loop_->core().Defer(self);
    if (ran == 3) loop_->Stop();
  });
  loop_->core().Defer(job);
  EXPECT_EQ(ran, 0) << "not inside the call";
  // A loop that went to sleep with work left would never return.
  loop_->Run();
  EXPECT_EQ(ran, 3);
}

TEST_P(LoopDeferred, MakesAnEmbeddedLoopAskToBePolled) {
  int ran = 0;
  Job job([&](Job&) { ++ran; });
  while (loop_->Poll()) {
  }
  loop_->core().Defer(job);
  while (ran == 0) loop_->Poll();
  Job forever([&](Job& self) { loop_->core().Defer(self); });
  loop_->core().Defer(forever);
  EXPECT_TRUE(loop_->Poll());
  forever.Cancel();
}

TEST_P(LoopDeferred, IsForgottenWithTheLoop) {
  int ran = 0;
  Job job([&](Job&) { ++ran; });
  loop_->core().Defer(job);
  loop_.reset();
  EXPECT_FALSE(job.pending());
  EXPECT_EQ(ran, 0);
}

TEST_P(LoopDeferred, RunsAtTheLoopsEndWhatWaitsForIt) {
  std::vector<int> ran;
  Job gone([&](Job&) { ran.push_back(0); });
  auto other = std::make_unique<Job>([&](Job&) { ran.push_back(1); });
  LoopCore& core = loop_->core();
  Job one([&](Job&) {
    ran.push_back(2);
    other.reset();
    core.AtEnd(gone);
  });
  Job cancelled([&](Job&) { ran.push_back(3); });
  core.AtEnd(one);
  core.AtEnd(*other);
  core.AtEnd(cancelled);
  cancelled.Cancel();
  loop_->Poll();
  EXPECT_TRUE(ran.empty());
  loop_.reset();
  EXPECT_EQ(ran, (std::vector<int>{2, 0}));
}

// What a layer keeps with a loop.
class Keepsake : public LoopAttachment {
 public:
  // Stops `stops`, when given, on hearing of room.
  explicit Keepsake(std::vector<const char*>& story, Loop* stops = nullptr)
      : story_(story), stops_(stops) {}
  ~Keepsake() override { story_.push_back("destroyed"); }
  void OnRoom() override {
    story_.push_back("room");
    if (stops_ != nullptr) stops_->Stop();
  }
  void OnLoopGone() override { story_.push_back("gone"); }

 private:
  std::vector<const char*>& story_;
  Loop* stops_;
};

TEST_P(LoopDeferred, AnAttachmentLivesAsLongAsTheLoop) {
  std::vector<const char*> story;
  EXPECT_EQ(loop_->core().attachment(), nullptr);
  auto keepsake = std::make_unique<Keepsake>(story);
  const Keepsake* const raw = keepsake.get();
  loop_->core().Attach(std::move(keepsake));
  EXPECT_EQ(loop_->core().attachment(), raw);
  loop_.reset();
  ASSERT_EQ(story.size(), 2u);
  EXPECT_STREQ(story[0], "gone");
  EXPECT_STREQ(story[1], "destroyed");
}

TEST_P(LoopDeferred, AnAttachmentHearsThatThePoolHasRoomAgain) {
  std::vector<const char*> story;
  BufferPool pool({.bytes_max = 4 << 20});
  LoopOptions options;
  options.engine = GetParam();
  options.pool = &pool;
  absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
  ASSERT_TRUE(loop.ok()) << loop.status();
  (*loop)->core().Attach(std::make_unique<Keepsake>(story));
  std::vector<Buffer> all;
  while (Buffer block = pool.TryAllocate(64 * 1024)) all.push_back(std::move(block));
  (*loop)->core().WaitForRoom();
  (*loop)->Poll();
  EXPECT_TRUE(story.empty());
  all.clear();
  for (int i = 0; i < 1000 && story.empty(); ++i) (*loop)->Poll();
  ASSERT_EQ(story.size(), 1u);
  EXPECT_STREQ(story[0], "room");
}

TEST_P(LoopDeferred, RoomMadeByATimerIsTakenUpBeforeTheLoopSleeps) {
  std::vector<const char*> story;
  BufferPool pool({.bytes_max = 4 << 20});
  LoopOptions options;
  options.engine = GetParam();
  options.pool = &pool;
  options.idle_trim = absl::InfiniteDuration();
  absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(std::move(options));
  ASSERT_TRUE(loop.ok()) << loop.status();
  LoopCore& core = (*loop)->core();
  core.Attach(std::make_unique<Keepsake>(story, loop->get()));
  std::vector<Buffer> all;
  while (Buffer block = pool.TryAllocate(64 * 1024)) all.push_back(std::move(block));
  core.WaitForRoom();
  const int64_t begin = core.now_ns();
  {
    CallbackTimer frees(core.timers());
    frees.Arm(core.now_tick() + 1, [&] { all.clear(); });
    // Ends the wait of a loop that has not heard of the room.
    CallbackTimer gives_up(core.timers());
    gives_up.Arm(TimerWheel::DeadlineTick(begin, absl::Seconds(60)), [&] { (*loop)->Stop(); });
    (*loop)->Run();
  }
  EXPECT_LT(core.now_ns() - begin, absl::ToInt64Nanoseconds(absl::Seconds(30)));
  ASSERT_EQ(story.size(), 1u);
  EXPECT_STREQ(story[0], "room");
}

INSTANTIATE_TEST_SUITE_P(Engines, LoopDeferred,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring), EngineName);

}  // namespace
}  // namespace penstock::internal
