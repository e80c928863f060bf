#include <penstock/task.h>

#include <gtest/gtest.h>

#include <atomic>
#include <coroutine>
#include <cstddef>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "testing/sanitized.h"

PENSTOCK_BEGIN_NAMESPACE
namespace {

using coro::Task;

// A wait that the test ends by hand.
class Event {
 public:
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> coroutine) { coroutine_ = coroutine; }
  void await_resume() const {}
  void Fire() { std::exchange(coroutine_, nullptr).resume(); }
  bool awaited() const { return coroutine_ != nullptr; }

 private:
  std::coroutine_handle<> coroutine_;
};

// Counts how often values were made and destroyed, moves included.
class Tracked {
 public:
  explicit Tracked(int* balance) : balance_(balance) { ++*balance_; }
  Tracked(const Tracked& other) : balance_(other.balance_) { ++*balance_; }
  Tracked(Tracked&& other) noexcept : balance_(other.balance_) { ++*balance_; }
  Tracked& operator=(const Tracked&) = delete;
  ~Tracked() { --*balance_; }

 private:
  int* balance_;
};

// An awaitable of the shape of those in coro.h: a declared constructor, members that destroy.
class TrackedWait {
 public:
  TrackedWait(Event& event, Tracked value) : event_(event), value_(std::move(value)) {}
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> coroutine) { event_.await_suspend(coroutine); }
  Tracked await_resume() { return value_; }

 private:
  Event& event_;
  Tracked value_;
};

Task<int> Answer() { co_return 42; }

Task<int> Sum(int depth) {
  if (depth == 0) co_return 0;
  const int below = co_await Sum(depth - 1);
  co_return below + 1;
}

Task<std::unique_ptr<std::string>> MoveOnly() { co_return std::make_unique<std::string>("moved"); }

Task<void> WaitFor(Event& event, std::vector<std::string>& log, std::string name) {
  log.push_back(name + " begins");
  co_await event;
  log.push_back(name + " ends");
}

Task<void> Outer(Event& event, std::vector<std::string>& log) {
  co_await WaitFor(event, log, "inner");
  log.push_back("outer ends");
}

Task<Tracked> Pass(Event& event, Tracked value) {
  co_await event;
  co_return value;
}

TEST(Task, IsLazy) {
  Event event;
  std::vector<std::string> log;
  Task<void> task = WaitFor(event, log, "task");
  EXPECT_TRUE(log.empty());
  task.Start();
  EXPECT_EQ(log, std::vector<std::string>{"task begins"});
  EXPECT_FALSE(task.done());
  event.Fire();
  EXPECT_TRUE(task.done());
}

TEST(Task, ReturnsValues) {
  int answer = 0;
  std::string text;
  auto body = [](int* answer, std::string* text) -> Task<void> {
    *answer = co_await Answer();
    *text = *co_await MoveOnly();
  };
  Task<void> task = body(&answer, &text);
  task.Start();
  EXPECT_TRUE(task.done());
  EXPECT_EQ(answer, 42);
  EXPECT_EQ(text, "moved");
}

TEST(Task, ResumesItsAwaiter) {
  Event event;
  std::vector<std::string> log;
  Task<void> task = Outer(event, log);
  task.Start();
  event.Fire();
  EXPECT_EQ(log, (std::vector<std::string>{"inner begins", "inner ends", "outer ends"}));
}

TEST(Task, DestroyingOneThatWaitsDestroysAllBelow) {
  int balance = 0;
  Event event;
  auto body = [](Event& event, Tracked value) -> Task<void> { co_await Pass(event, value); };
  {
    Task<void> task = body(event, Tracked(&balance));
    task.Start();
    EXPECT_TRUE(event.awaited());
    EXPECT_GT(balance, 0);
  }
  EXPECT_EQ(balance, 0);
}

TEST(Task, DestroyingOneThatNeverBeganDestroysItsArguments) {
  int balance = 0;
  Event event;
  {
    Task<Tracked> task = Pass(event, Tracked(&balance));
    EXPECT_EQ(balance, 1);
  }
  EXPECT_EQ(balance, 0);
}

TEST(Task, MoveAssignmentDestroysTheOldOne) {
  int balance = 0;
  Event event;
  Task<Tracked> task = Pass(event, Tracked(&balance));
  task = Pass(event, Tracked(&balance));
  EXPECT_EQ(balance, 1);
}

// Guards against compilers that destroy temporaries of a co_await expression twice or never: g++
// 12.2 does so with aggregates and with lambdas that capture, which is why coro.h takes neither.
TEST(Task, TemporariesInAwaitExpressionsLiveOnce) {
  int balance = 0;
  Event event;
  auto body = [](Event& event, int* balance) -> Task<void> {
    co_await Pass(event, Tracked(balance));
    co_await TrackedWait(event, Tracked(balance));
    Tracked kept = co_await TrackedWait(event, co_await Pass(event, Tracked(balance)));
    (void)kept;
  };
  Task<void> task = body(event, &balance);
  task.Start();
  while (!task.done()) {
    EXPECT_GT(balance, 0);
    event.Fire();
  }
  EXPECT_EQ(balance, 0);
}

TEST(Task, DeepRecursionAwaits) {
  int sum = 0;
  auto body = [](int* sum) -> Task<void> { *sum = co_await Sum(1000); };
  Task<void> task = body(&sum);
  task.Start();
  EXPECT_EQ(sum, 1000);
}

TEST(Task, AwaitsInALoopDoNotGrowTheStack) {
  int last = 0;
  auto body = [](int* last) -> Task<void> {
    for (int i = 0; i < 1'000'000; ++i) *last = co_await Answer();
  };
  Task<void> task = body(&last);
  task.Start();
  EXPECT_TRUE(task.done());
}

// Hands its coroutine to a thread of its own, and is done only when that one has run all of it that
// it can: the order in which the one that awaits the coroutine has not yet suspended.
class OnThread {
 public:
  OnThread(std::thread& thread, std::atomic<bool>& ran) : thread_(thread), ran_(ran) {}
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> coroutine) {
    std::atomic<bool>& ran = ran_;
    thread_ = std::thread([coroutine] { coroutine.resume(); });
    while (!ran) std::this_thread::yield();
    for (int i = 0; i < 20; ++i) std::this_thread::yield();
  }
  void await_resume() const {}

 private:
  std::thread& thread_;
  std::atomic<bool>& ran_;
};

Task<void> ChangeThread(std::thread& thread, std::atomic<bool>& ran, std::thread::id& there) {
  co_await OnThread(thread, ran);
  there = std::this_thread::get_id();
  ran = true;
}

Task<void> GoOnThere(std::thread& thread, std::atomic<bool>& ran, std::thread::id& there,
                     std::thread::id& after) {
  co_await ChangeThread(thread, ran, there);
  after = std::this_thread::get_id();
}

TEST(Task, GoesOnWhereTheAwaitedOneEnded) {
  for (int round = 0; round < (testing::kSanitized ? 5 : 20); ++round) {
    std::thread thread;
    std::atomic<bool> ran{false};
    std::thread::id there, after;
    Task<void> task = GoOnThere(thread, ran, there, after);
    task.Start();
    thread.join();
    ASSERT_TRUE(task.done());
    ASSERT_EQ(after, there);
    ASSERT_NE(there, std::this_thread::get_id());
  }
}

TEST(TaskDeathTest, BeginningTwiceAborts) {
  Event event;
  std::vector<std::string> log;
  EXPECT_DEATH(
      {
        Task<void> task = WaitFor(event, log, "task");
        task.Start();
        task.Start();
      },
      "");
}

}  // namespace
PENSTOCK_END_NAMESPACE
