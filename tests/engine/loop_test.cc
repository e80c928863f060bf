// The contract of loop.h: turns, tasks, timers, Stop, Drain, embedding, and the choice of engine.
#include <penstock/loop.h>

#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "base/sys.h"
#include "testing/harness.h"
#include "testing/patient_poll.h"
#include "testing/pattern.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

class LoopTest : public Harness {
 protected:
  bool Readable(int timeout_ms) { return PatientPoll(loop().fd(), POLLIN, timeout_ms); }
};

// --- Tasks ---

TEST_P(LoopTest, TasksRunInALaterTurnInTheOrderTheyWerePosted) {
  std::vector<int> ran;
  for (int i = 0; i < 10; ++i) {
    loop().Post([&ran, i] { ran.push_back(i); });
  }
  EXPECT_TRUE(ran.empty());
  ASSERT_TRUE(Drive([&] { return ran.size() == 10; }));
  for (int i = 0; i < 10; ++i) EXPECT_EQ(ran[i], i);
  EXPECT_GE(loop().Snapshot().tasks, 10u);
}

TEST_P(LoopTest, ATaskPostedByATaskRunsInALaterTurn) {
  bool inner = false, outer = false, inner_at_end_of_outer = false;
  loop().Post([&] {
    loop().Post([&] { inner = true; });
    inner_at_end_of_outer = inner;
    outer = true;
  });
  ASSERT_TRUE(Drive([&] { return inner; }));
  EXPECT_TRUE(outer);
  EXPECT_FALSE(inner_at_end_of_outer);
}

TEST_P(LoopTest, ATurnRunsABoundedNumberOfTasks) {
  LoopOptions options;
  options.turn_tasks_max = 10;
  RemakeLoop(std::move(options));
  int ran = 0;
  for (int i = 0; i < 95; ++i) loop().Post([&] { ++ran; });
  for (int turn = 1; turn <= 9; ++turn) {
    EXPECT_TRUE(loop().Poll()) << "work is left";
    EXPECT_LE(ran, turn * 10);
  }
  ASSERT_TRUE(Drive([&] { return ran == 95; }));
}

TEST_P(LoopTest, TasksOfOneOfManyThreadsKeepTheirOrder) {
  constexpr int kThreads = 4;
  const int tasks = Scaled(20'000);
  std::vector<int> next(kThreads);
  bool in_order = true, on_loop = true;
  std::atomic<int> total{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < tasks; ++i) {
        loop().Post([&, t, i] {
          in_order = in_order && next[t]++ == i;
          on_loop = on_loop && loop().InLoopThread();
          total.fetch_add(1);
          if (total.load() == kThreads * tasks) loop().Stop();
        });
      }
    });
  }
  loop().Run();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(total.load(), kThreads * tasks);
  EXPECT_TRUE(in_order);
  EXPECT_TRUE(on_loop);
}

TEST_P(LoopTest, AHandleOutlivesItsLoop) {
  LoopHandle handle = loop().handle();
  Fate run, dropped, late;
  EXPECT_TRUE(handle.Post(run.OnEvent()));
  ASSERT_TRUE(Drive([&] { return run.ended(); }));
  EXPECT_TRUE(handle.Post(dropped.OnEvent()));
  TakeLoop().reset();
  EXPECT_EQ(dropped.runs(), 0);
  EXPECT_EQ(dropped.dropped(), 1);
  EXPECT_FALSE(handle.Post(late.OnEvent()));
  EXPECT_EQ(late.dropped(), 1);
  EXPECT_FALSE(LoopHandle().Post([] {}));
}

TEST_P(LoopTest, TheKernelIsAskedToWakeTheLoopOnlyWhenItSleeps) {
  Settle();
  const uint64_t before = loop().Snapshot().wakeups;
  for (int i = 0; i < 1000; ++i) loop().Post([] {});
  // Asleep as far as posters knew: the first of them wakes it, and no other.
  EXPECT_LE(loop().Snapshot().wakeups - before, 1u);
  EXPECT_TRUE(Readable(300'000));
}

// --- Run, Stop, Drain ---

TEST_P(LoopTest, RunReturnsAfterStopAndMayBeCalledAgain) {
  for (int round = 0; round < 3; ++round) {
    int ran = 0;
    loop().Post([&] {
      ++ran;
      loop().Stop();
    });
    loop().Run();
    EXPECT_EQ(ran, 1);
  }
}

TEST_P(LoopTest, StopBeforeRunEndsItAtOnce) {
  loop().Stop();
  loop().Run();
  // It is used up: the next Run needs its own.
  bool ran = false;
  loop().Post([&] {
    ran = true;
    loop().Stop();
  });
  loop().Run();
  EXPECT_TRUE(ran);
}

TEST_P(LoopTest, PollTakesNoNoticeOfStop) {
  loop().Stop();
  bool ran = false;
  loop().Post([&] { ran = true; });
  ASSERT_TRUE(Drive([&] { return ran; }));
  Timer give_up(loop());
  give_up.Arm(absl::Minutes(5), [&] {
    ADD_FAILURE() << "the next Run did not end";
    loop().Stop();
  });
  loop().Run();
}

TEST_P(LoopTest, StopFromAnotherThreadWakesASleepingLoop) {
  std::unique_ptr<Loop> other = *environment().NewLoop({});
  std::atomic<bool> running{false};
  std::thread thread([&] {
    other->Post([&] { running.store(true); });
    other->Run();
  });
  while (!running.load()) std::this_thread::yield();
  other->Stop();
  thread.join();
}

TEST_P(LoopTest, DrainWithNothingOpenEndsRun) {
  loop().Post([this] { loop().Drain(absl::Minutes(10)); });
  loop().Run();
  EXPECT_EQ(loop().Snapshot().listeners, 0u);
}

TEST_P(LoopTest, DrainStopsAcceptingAndEndsRunWithTheLastStream) {
  LoopOptions options;
  options.idle_trim = absl::Minutes(10);  // it wakes for nothing else
  RemakeLoop(std::move(options));
  std::unique_ptr<Listener> listener = Listen();
  StreamPair pair = Pair();
  PlainSocket late;
  // It must not sleep past the end of the last stream, whatever ends that: here, a timer.
  Timer server_leaves(loop());
  Fate read;
  pair.server->ReadReady([&, read_ended = read.OnRead()](absl::StatusOr<Buffer> got) mutable {
    std::move(read_ended)(std::move(got));
    server_leaves.Arm(absl::Milliseconds(20), [&] { pair.server.reset(); });
  });
  EXPECT_FALSE(loop().draining());
  loop().Post([&] {
    loop().Drain(absl::Minutes(10));
    EXPECT_TRUE(loop().draining() && !loop().drained());
    late = PlainSocket::Connect(listener->address());
    // A few turns later the streams go in order.
    loop().Post([&] {
      pair.client->Write(Chain("last words"), [&](absl::Status status) {
        EXPECT_TRUE(status.ok()) << status;
        pair.client.reset();
      });
    });
  });
  bool slept_on = false;
  Timer give_up(loop());
  give_up.Arm(absl::Minutes(5), [&] {
    slept_on = true;
    loop().Stop();
  });
  loop().Run();
  ASSERT_FALSE(slept_on);
  EXPECT_TRUE(loop().drained());
  EXPECT_EQ(read.data(), "last words");
  EXPECT_EQ(pair.server, nullptr);
  EXPECT_TRUE(accepted().empty());
  // Peers are refused, so that a successor on the address may have them.
  EXPECT_TRUE(listener->stats().paused);
  EXPECT_EQ(loop().Snapshot().listeners, 0u);
  PlainSocket latest = PlainSocket::Connect(listener->address());
  char byte;
  EXPECT_TRUE(!latest.valid() || latest.Receive(&byte, 1) < 0);
  const absl::Status unheard =
      Listener::Listen(loop(), environment().NewAddress(), {}, [](StreamPtr) {}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(unheard)) << unheard;
  const absl::Status switched = listener->SwitchEngine(EngineKind::kAuto);
  EXPECT_TRUE(absl::IsFailedPrecondition(switched)) << switched;
  const absl::Status refused = ConnectTo(listener->address(), Connecting()).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
}

TEST_P(LoopTest, DrainAbortsWhatIsLeftAfterTheGrace) {
  StreamPair pair = Pair();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  const absl::Time began = loop().now();
  loop().Post([this] { loop().Drain(absl::Milliseconds(30)); });
  loop().Run();
  EXPECT_GE(loop().now() - began, absl::Milliseconds(30));
  EXPECT_TRUE(IsCancelled(read.status())) << read.status();
  EXPECT_EQ(read.runs(), 1);
}

// --- Timers ---

TEST_P(LoopTest, ATimerFiresOnceAndNeverEarly) {
  for (int ms : {0, 1, 2, 5, 17, 30}) {
    Timer timer(loop());
    int fired = 0;
    EXPECT_FALSE(timer.armed());
    const int64_t began = RealSys().Now();
    timer.Arm(absl::Milliseconds(ms), [&] { ++fired; });
    EXPECT_TRUE(timer.armed());
    EXPECT_EQ(fired, 0);
    ASSERT_TRUE(Drive([&] { return fired > 0; }));
    EXPECT_GE(RealSys().Now() - began, int64_t{ms} * 1'000'000);
    EXPECT_FALSE(timer.armed());
    Settle();
    EXPECT_EQ(fired, 1);
  }
}

TEST_P(LoopTest, TimersFireInTheOrderOfTheirTimes) {
  std::vector<std::unique_ptr<Timer>> timers;
  std::vector<int> fired;
  // Apart by more than this process may be kept waiting between two of them.
  for (int ms : {250, 50, 150, 350}) {
    timers.push_back(std::make_unique<Timer>(loop()));
    timers.back()->Arm(absl::Milliseconds(ms), [&fired, ms] { fired.push_back(ms); });
  }
  loop().Poll();
  EXPECT_EQ(loop().Snapshot().timers + fired.size(), 4u);
  ASSERT_TRUE(Drive([&] { return fired.size() == 4; }));
  EXPECT_EQ(fired, std::vector<int>({50, 150, 250, 350}));
  EXPECT_EQ(loop().Snapshot().timers, 0u);
}

TEST_P(LoopTest, ACancelledReplacedOrDestroyedTimerDoesNotFire) {
  Fate cancelled, replaced, destroyed;
  Timer first(loop()), second(loop());
  auto third = std::make_unique<Timer>(loop());
  first.Arm(absl::Milliseconds(5), cancelled.OnEvent());
  second.Arm(absl::Milliseconds(5), replaced.OnEvent());
  third->Arm(absl::Milliseconds(5), destroyed.OnEvent());
  first.Cancel();
  Fate instead;
  second.Arm(absl::Milliseconds(10), instead.OnEvent());
  third.reset();
  ASSERT_TRUE(Drive([&] { return instead.ended(); }));
  for (const Fate* fate : {&cancelled, &replaced, &destroyed}) {
    EXPECT_EQ(fate->runs(), 0);
    EXPECT_EQ(fate->dropped(), 1);
  }
}

TEST_P(LoopTest, ATimerMayDestroyItselfAndOthersAndArmItselfAgain) {
  auto suicidal = std::make_unique<Timer>(loop());
  auto victim = std::make_unique<Timer>(loop());
  Timer again(loop());
  Fate never;
  int count = 0;
  suicidal->Arm(absl::Milliseconds(5), [&] {
    victim.reset();
    suicidal.reset();
  });
  victim->Arm(absl::Milliseconds(6), never.OnEvent());
  std::function<void()> tick = [&] {
    if (++count < 5) again.Arm(absl::Milliseconds(1), [&] { tick(); });
  };
  tick();
  ASSERT_TRUE(Drive([&] { return count == 5 && suicidal == nullptr; }));
  EXPECT_EQ(never.runs(), 0);
}

TEST_P(LoopTest, TimersFireWhileTheLoopIsBusy) {
  // A task that posts itself again keeps every turn busy.
  bool fired = false;
  std::function<void()> spin = [&] {
    if (!fired) loop().Post([&] { spin(); });
  };
  spin();
  Timer timer(loop());
  timer.Arm(absl::Milliseconds(5), [&] { fired = true; });
  ASSERT_TRUE(Drive([&] { return fired; }));
  Settle();
}

TEST_P(LoopTest, NowAdvancesOnceATurn) {
  const absl::Time before = loop().now();
  Pass(absl::Milliseconds(5));
  EXPECT_GE(loop().now() - before, absl::Milliseconds(5));
  absl::Time first, second;
  bool done = false;
  loop().Post([&] {
    first = loop().now();
    const int64_t until = RealSys().Now() + 2'000'000;
    while (RealSys().Now() < until) {
    }
    second = loop().now();
    done = true;
  });
  ASSERT_TRUE(Drive([&] { return done; }));
  EXPECT_EQ(first, second);
}

// --- Embedding ---

TEST_P(LoopTest, FdIsQuietWhenThereIsNothingToDo) {
  StreamPair pair = Pair();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  EXPECT_FALSE(Readable(0)) << "a host would spin";
  const uint64_t turns = loop().Snapshot().turns;
  EXPECT_FALSE(Readable(20));
  EXPECT_EQ(loop().Snapshot().turns, turns) << "nobody lent the loop a thread";
}

TEST_P(LoopTest, FdBecomesReadableForBytesTasksAndTimers) {
  std::unique_ptr<Listener> listener = Listen();
  PlainSocket peer = PlainSocket::Connect(listener->address());
  ASSERT_TRUE(Drive([this] { return !accepted().empty(); }));
  Fate read;
  accepted().front()->ReadReady(read.OnRead());
  Settle();
  ASSERT_FALSE(Readable(0));
  ASSERT_EQ(peer.Send("x"), 1);
  EXPECT_TRUE(Readable(300'000));
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  Settle();
  ASSERT_FALSE(Readable(0));
  loop().Post([] {});
  EXPECT_TRUE(Readable(300'000));
  Settle();
  Timer timer(loop());
  Fate fired;
  // Armed outside a turn: the host still hears of it.
  timer.Arm(absl::Milliseconds(10), fired.OnEvent());
  loop().Poll();
  EXPECT_TRUE(Readable(300'000));
  ASSERT_TRUE(Drive([&] { return fired.ended(); }));
}

// Each time anew: newer kernels tell a watched ring's eventfd of some events only once.
TEST_P(LoopTest, FdTellsOfEveryTaskAndEveryTimer) {
  Timer timer(loop());
  for (int round = 0; round < 4; ++round) {
    Settle();
    ASSERT_FALSE(Readable(0)) << round;
    Fate ran;
    loop().Post(ran.OnEvent());
    ASSERT_TRUE(Readable(300'000)) << "of task " << round;
    Settle();
    ASSERT_TRUE(ran.ended());
    Fate fired;
    timer.Arm(absl::Milliseconds(5), fired.OnEvent());
    ASSERT_TRUE(Drive([&] { return fired.ended(); })) << "of timer " << round;
  }
}

TEST_P(LoopTest, PollSaysWhenBoundedWorkIsLeft) {
  LoopOptions options;
  options.turn_tasks_max = 1;
  RemakeLoop(std::move(options));
  int ran = 0;
  loop().Post([&] { ++ran; });
  loop().Post([&] { ++ran; });
  EXPECT_TRUE(loop().Poll());
  EXPECT_EQ(ran, 1);
  while (loop().Poll()) {
  }
  EXPECT_EQ(ran, 2);
}

TEST_P(LoopTest, RunsInsideAnotherEpollLoop) {
  const int host = ::epoll_create1(EPOLL_CLOEXEC);
  ASSERT_GE(host, 0);
  epoll_event interest{.events = EPOLLIN, .data = {}};
  ASSERT_EQ(::epoll_ctl(host, EPOLL_CTL_ADD, loop().fd(), &interest), 0);
  StreamPair pair = Pair();
  constexpr uint64_t kTotal = 4 << 20;
  PatternWriter writer(*pair.client, 1, kTotal);
  PatternReader reader(std::move(pair.server), 1);
  writer.Start();
  reader.Start();
  Timer timer(loop());
  Fate fired;
  timer.Arm(absl::Milliseconds(10), fired.OnEvent());
  bool more = loop().Poll();
  while (!reader.ended() || !fired.ended()) {
    ASSERT_TRUE(PatientEpollWait(host, more ? 0 : 300'000) || more)
        << "the host was not told, at " << reader.received();
    more = loop().Poll();
  }
  EXPECT_EQ(reader.received(), kTotal);
  EXPECT_TRUE(reader.intact());
  ::close(host);
}

TEST_P(LoopTest, RunsByPollAndByRunInTurns) {
  StreamPair pair = Pair();
  EchoForever(std::move(pair.server));
  for (int round = 0; round < 5; ++round) {
    Exchange(*pair.client, *pair.client, "by Poll");
    std::string received;
    pair.client->Write(Chain("by Run"));
    std::function<void()> next = [&] {
      pair.client->ReadReady([&](absl::StatusOr<Buffer> data) {
        ASSERT_TRUE(data.ok()) << data.status();
        received += data->view();
        if (received.size() < 6) return next();
        loop().Stop();
      });
    };
    next();
    loop().Run();
    EXPECT_EQ(received, "by Run");
  }
}

TEST_P(LoopTest, BusyPollServesTheSameAndStillSleeps) {
  LoopOptions options;
  options.busy_poll = absl::Microseconds(200);
  RemakeLoop(std::move(options));
  StreamPair pair = Pair();
  EchoForever(std::move(pair.server));
  int rounds = 0;
  std::function<void()> round = [&] {
    pair.client->Write(Chain("ping"));
    pair.client->ReadReady([&](absl::StatusOr<Buffer> data) {
      ASSERT_TRUE(data.ok()) << data.status();
      if (++rounds == 100) return loop().Stop();
      round();
    });
  };
  round();
  loop().Run();
  EXPECT_EQ(rounds, 100);
  // With nothing to do it sleeps until its timer, or polling would take some 100 turns of 200 us.
  Timer timer(loop());
  timer.Arm(absl::Milliseconds(20), [this] { loop().Stop(); });
  const uint64_t before = loop().Snapshot().turns;
  loop().Run();
  EXPECT_LT(loop().Snapshot().turns - before, 20u);
}

TEST_P(LoopTest, BusyPollHearsTasksAndTimers) {
  LoopOptions options;
  options.busy_poll = absl::InfiniteDuration();
  options.idle_trim = absl::Hours(24 * 365 * 1000);
  RemakeLoop(std::move(options));
  std::thread poster;
  uint64_t wakeups = 0;
  Timer timer(loop());
  timer.Arm(absl::Milliseconds(2), [&] {
    const LoopSnapshot before = loop().Snapshot();
    wakeups = before.wakeups;
    poster = std::thread([this, before] {
      // One that sleeps makes no call, and this would go on until the test's time is up.
      while (loop().Snapshot().syscalls < before.syscalls + 100) std::this_thread::yield();
      loop().Post([this] { loop().Stop(); });
    });
  });
  loop().Run();
  poster.join();
  EXPECT_EQ(loop().Snapshot().wakeups, wakeups) << "who polls need not be woken";
}

// --- Engines ---

TEST_P(LoopTest, SaysItsEngineAndWhy) {
  EXPECT_EQ(loop().engine(), environment().listen_engine());
  EXPECT_EQ(loop().engine_reason(), "requested");
}

TEST_P(LoopTest, MakesTheOtherEngineReadyOnDemand) {
  EXPECT_TRUE(loop().EnableEngine(loop().engine()).ok());
  EXPECT_TRUE(loop().EnableEngine(EngineKind::kAuto).ok());
  const absl::Status simulated = loop().EnableEngine(EngineKind::kSimulated);
  EXPECT_TRUE(absl::IsUnimplemented(simulated)) << simulated;
  const EngineKind other =
      loop().engine() == EngineKind::kEpoll ? EngineKind::kUring : EngineKind::kEpoll;
  if (const std::string why = MissingEngine(other); !why.empty()) GTEST_SKIP() << why;
  EXPECT_TRUE(loop().EnableEngine(other).ok());
  EXPECT_TRUE(loop().EnableEngine(other).ok());
  EXPECT_EQ(loop().engine(), environment().listen_engine()) << "the default stays";
}

TEST_P(LoopTest, ServesStreamsOfBothEnginesAtOnce) {
  const EngineKind other =
      loop().engine() == EngineKind::kEpoll ? EngineKind::kUring : EngineKind::kEpoll;
  if (const std::string why = MissingEngine(other); !why.empty()) GTEST_SKIP() << why;
  std::unique_ptr<Listener> listener = Listen();
  std::vector<StreamPtr> clients;
  for (int i = 0; i < 40; ++i) {
    ConnectOptions options;
    options.engine = i % 2 == 0 ? EngineKind::kEpoll : EngineKind::kUring;
    absl::StatusOr<StreamPtr> client = ConnectTo(listener->address(), options);
    ASSERT_TRUE(client.ok()) << client.status();
    EXPECT_EQ((*client)->stats().engine, options.engine);
    clients.push_back(*std::move(client));
    ASSERT_TRUE(Drive([this] { return !accepted().empty(); }));
    EchoForever(std::move(accepted().front()));
    accepted().pop_front();
  }
  for (int round = 0; round < 3; ++round) {
    for (StreamPtr& client : clients) Exchange(*client, *client, PatternBytes(2, 0, 5000));
  }
}

TEST_P(LoopTest, PoolsMayBeShared) {
  BufferPool pool;
  LoopOptions options;
  options.pool = &pool;
  RemakeLoop(std::move(options));
  EXPECT_EQ(&loop().pool(), &pool);
  StreamPair pair = Pair();
  Exchange(*pair.client, *pair.server, PatternBytes(3, 0, 100'000));
  pair = {};
  Settle();
  TakeLoop().reset();
  EXPECT_EQ(pool.Stats().live, 0u);
  EXPECT_EQ(pool.Stats().ring, 0u);
}

TEST_P(LoopTest, ASnapshotMayBeTakenFromAnyThread) {
  StreamPair pair = Pair();
  std::atomic<bool> stop{false};
  uint64_t turns = 0;
  std::thread watcher([&] {
    while (!stop.load()) {
      const LoopSnapshot now = loop().Snapshot();
      EXPECT_GE(now.turns, turns);
      turns = now.turns;
    }
  });
  for (int i = 0; i < Scaled(500); ++i) Exchange(*pair.client, *pair.server, "watched");
  stop.store(true);
  watcher.join();
  const LoopSnapshot last = loop().Snapshot();
  EXPECT_EQ(last.bytes_in, last.bytes_out);
  EXPECT_EQ(last.bytes_in, 7u * Scaled(500));
  EXPECT_GT(last.syscalls, 0u);
}

INSTANTIATE_TEST_SUITE_P(Engines, LoopTest, ::testing::ValuesIn(KernelEngines()), EnvironmentName);

TEST(EngineKind, ReadsAndWritesItsNames) {
  for (EngineKind kind : {EngineKind::kAuto, EngineKind::kEpoll, EngineKind::kUring}) {
    EXPECT_EQ(*ParseEngineKind(EngineKindName(kind)), kind);
  }
  const absl::Status error = ParseEngineKind("kqueue").status();
  EXPECT_TRUE(absl::IsInvalidArgument(error)) << error;
  for (const char* word : {"kqueue", "auto", "epoll", "uring"}) {
    EXPECT_NE(error.message().find(word), std::string::npos) << error;
  }
  EXPECT_FALSE(ParseEngineKind("simulated").ok());
}

}  // namespace
}  // namespace penstock::internal
