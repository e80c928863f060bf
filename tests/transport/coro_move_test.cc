// The awaitables of coro.h for what is more than a stream: moves, frames and names. Two loops run
// on the test's thread; coro_test.cc has the rest.
#include <penstock/coro.h>

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "testing/harness.h"

namespace penstock::internal {
namespace {

using coro::CancelSource;
using coro::CancelToken;
using coro::Task;

class CoroMoveTest : public Harness {
 protected:
  void SetUp() override {
    Harness::SetUp();
    if (IsSkipped()) return;
    other_ = environment().NewLoop({}).value();
    AlsoDrive(other_.get());
  }
  void TearDown() override {
    if (other_ != nullptr) {
      EXPECT_TRUE(Drive([&] { return other_->Snapshot().open == 0; }));
      DestroyOther();
    }
    Harness::TearDown();
  }
  void DestroyOther() {
    StopDriving(other_.get());
    other_ = nullptr;
  }
  Loop& other() { return *other_; }
  bool RunToEnd(Task<void>& task) {
    return Drive([&] { return task.done(); });
  }

 private:
  std::unique_ptr<Loop> other_;
};

Task<void> EchoOnceEverywhere(Stream& stream, Loop& home, Loop& other, std::string& order) {
  for (Loop* const to : {&other, &home}) {
    const absl::Status moved = co_await coro::Migrate(stream, to->handle());
    EXPECT_TRUE(moved.ok()) << moved;
    EXPECT_EQ(&stream.loop(), to);
    absl::StatusOr<Buffer> data = co_await coro::Read(stream);
    EXPECT_TRUE(data.ok()) << data.status();
    if (!data.ok()) co_return;
    order += data->view();
    const absl::Status sent = co_await coro::Write(stream, *std::move(data));
    EXPECT_TRUE(sent.ok()) << sent;
  }
}

TEST_P(CoroMoveTest, MigrateGoesOnWhereTheStreamIs) {
  StreamPair pair = Pair();
  std::string order;
  Task<void> echo = EchoOnceEverywhere(*pair.server, loop(), other(), order);
  echo.Start();
  EXPECT_EQ(Write(*pair.client, "there").ok() ? Read(*pair.client).value_or("") : "", "there");
  EXPECT_EQ(Write(*pair.client, "back").ok() ? Read(*pair.client).value_or("") : "", "back");
  ASSERT_TRUE(RunToEnd(echo));
  EXPECT_EQ(order, "thereback");
  EXPECT_EQ(other().Snapshot().moves_in, 1u);
}

Task<void> MigrateInto(Stream& stream, LoopHandle target, absl::Status& out) {
  out = co_await coro::Migrate(stream, target);
}

TEST_P(CoroMoveTest, MigrateThatIsRefusedGoesOnAtHome) {
  StreamPair pair = Pair();
  other().Drain(absl::InfiniteDuration());
  absl::Status moved;
  Task<void> task = MigrateInto(*pair.server, other().handle(), moved);
  task.Start();
  ASSERT_TRUE(RunToEnd(task));
  EXPECT_TRUE(absl::IsUnavailable(moved)) << moved;
  EXPECT_EQ(&pair.server->loop(), &loop());
  Exchange(*pair.client, *pair.server, "it goes on");
}

TEST_P(CoroMoveTest, MigrateOfAStreamThatIsDestroyedEndsLater) {
  StreamPair pair = Pair();
  absl::Status moved;
  Task<void> task = MigrateInto(*pair.server, other().handle(), moved);
  task.Start();
  pair.server = nullptr;
  EXPECT_FALSE(task.done()) << "inside the destructor";
  ASSERT_TRUE(RunToEnd(task));
  EXPECT_TRUE(absl::IsCancelled(moved)) << moved;
}

TEST_P(CoroMoveTest, MigrateEndsThoughBothLoopsGo) {
  StreamPair pair = Pair();
  // The stream is on its way to a loop that takes no turn, from one that goes first.
  std::unique_ptr<Loop> home = environment().NewLoop({}).value();
  AlsoDrive(home.get());
  Fate moved;
  penstock::Migrate(*pair.server, home->handle(), moved.OnDone());
  ASSERT_TRUE(Drive([&] { return moved.ended(); }));
  absl::Status gone;
  Task<void> task = MigrateInto(*pair.server, other().handle(), gone);
  task.Start();
  Loop* const alone[] = {home.get()};
  ASSERT_TRUE(environment().Drive(alone, [&] { return home->Snapshot().moves_out == 1; }));
  StopDriving(home.get());
  home = nullptr;
  EXPECT_FALSE(task.done());
  DestroyOther();
  EXPECT_TRUE(task.done());
  EXPECT_TRUE(absl::IsCancelled(gone)) << gone;
}

Task<void> SwitchInto(Stream& stream, EngineKind to, CancelToken token, absl::Status& out) {
  out = co_await coro::SwitchEngine(stream, to, token);
}

TEST_P(CoroMoveTest, SwitchEngineEndsWithTheSwitchOrItsToken) {
  if (const std::string why = MissingEngine(); !why.empty()) GTEST_SKIP() << why;
  StreamPair pair = Pair();
  for (const EngineKind to : {EngineKind::kEpoll, EngineKind::kUring}) {
    absl::Status switched = absl::UnknownError("not yet");
    Task<void> task = SwitchInto(*pair.server, to, {}, switched);
    task.Start();
    EXPECT_FALSE(task.done());
    ASSERT_TRUE(RunToEnd(task));
    EXPECT_TRUE(switched.ok()) << switched;
    EXPECT_EQ(pair.server->stats().engine, to);
  }
  CancelSource source;
  absl::Status given_up;
  Task<void> task = SwitchInto(*pair.server, EngineKind::kEpoll, source.token(), given_up);
  task.Start();
  source.Cancel();
  ASSERT_TRUE(RunToEnd(task));
  EXPECT_TRUE(absl::IsCancelled(given_up)) << given_up;
  EXPECT_TRUE(Drive([&] { return pair.server->stats().engine == EngineKind::kEpoll; }))
      << "the wait alone was given up";
}

Task<void> ReadFrames(FramedReader& reader, CancelToken token, std::vector<std::string>& out,
                      absl::Status& end) {
  for (;;) {
    absl::StatusOr<Frame> frame = co_await coro::ReadFrame(reader, token);
    end = frame.status();
    if (!frame.ok()) co_return;
    std::string body;
    while (!frame->body.empty()) body += frame->body.PopFront().view();
    out.push_back(std::move(body));
  }
}

std::string GrpcFrame(const std::string& body) {
  return std::string("\0\0\0\0", 4) + static_cast<char>(body.size()) + body;
}

TEST_P(CoroMoveTest, ReadFrameGivesFramesAndLosesNoneToACancel) {
  StreamPair pair = Pair();
  FramedReader reader(std::move(pair.server), FrameFormat::Grpc());
  std::vector<std::string> frames;
  absl::Status end;
  CancelSource source;
  Task<void> first = ReadFrames(reader, source.token(), frames, end);
  first.Start();
  ASSERT_TRUE(Write(*pair.client, GrpcFrame("one") + GrpcFrame("two").substr(0, 6)).ok());
  ASSERT_TRUE(Drive([&] { return frames.size() == 1; }));
  source.Cancel();
  ASSERT_TRUE(RunToEnd(first));
  EXPECT_TRUE(absl::IsCancelled(end)) << end;
  Task<void> second = ReadFrames(reader, {}, frames, end);
  second.Start();
  ASSERT_TRUE(Write(*pair.client, GrpcFrame("two").substr(6)).ok());
  ASSERT_TRUE(Shutdown(*pair.client).ok());
  ASSERT_TRUE(RunToEnd(second));
  EXPECT_TRUE(IsEof(end)) << end;
  EXPECT_EQ(frames, (std::vector<std::string>{"one", "two"}));
}

using FoundAddresses = absl::StatusOr<std::vector<SocketAddress>>;

Task<void> ResolveInto(Loop& loop, std::string host, Executor& executor, CancelToken token,
                       FoundAddresses& out) {
  out = co_await coro::Resolve(loop, std::move(host), 80, executor, token);
}

TEST_P(CoroMoveTest, ResolveGivesAddressesFromTheExecutorsThread) {
  std::thread thread;
  Executor executor = [&](absl::AnyInvocable<void() &&> job) {
    thread = std::thread([job = std::move(job)]() mutable { std::move(job)(); });
  };
  FoundAddresses found;
  Task<void> named = ResolveInto(loop(), "localhost", executor, {}, found);
  named.Start();
  EXPECT_FALSE(named.done());
  ASSERT_TRUE(RunToEnd(named));
  thread.join();
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_FALSE(found->empty());
  EXPECT_EQ(found->front().port(), 80);
  Task<void> numeric = ResolveInto(loop(), "192.0.2.1", executor, {}, found);
  numeric.Start();
  ASSERT_TRUE(RunToEnd(numeric));
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->front().ToString(), "192.0.2.1:80");
}

TEST_P(CoroMoveTest, ResolveEndsWhenItsTokenOrItsExecutorSaysSo) {
  absl::AnyInvocable<void() &&> kept;
  Executor executor = [&](absl::AnyInvocable<void() &&> job) { kept = std::move(job); };
  FoundAddresses found;
  CancelSource source;
  Task<void> cancelled = ResolveInto(loop(), "localhost", executor, source.token(), found);
  cancelled.Start();
  source.Cancel();
  ASSERT_TRUE(RunToEnd(cancelled));
  EXPECT_TRUE(absl::IsCancelled(found.status())) << found.status();
  std::move(kept)();  // nobody waits for its answer
  Settle();
  Task<void> dropped = ResolveInto(loop(), "localhost", executor, {}, found);
  dropped.Start();
  std::thread([&] { kept = nullptr; }).join();
  EXPECT_FALSE(dropped.done());
  ASSERT_TRUE(RunToEnd(dropped));
  EXPECT_TRUE(absl::IsCancelled(found.status())) << found.status();
  {
    Task<void> destroyed = ResolveInto(loop(), "localhost", executor, {}, found);
    destroyed.Start();
  }
  std::move(kept)();
  Settle();
}

INSTANTIATE_TEST_SUITE_P(Engines, CoroMoveTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
