#include <penstock/coro.h>

#include <gtest/gtest.h>

#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "testing/engine_loop.h"

PENSTOCK_BEGIN_NAMESPACE
namespace {

using coro::AcceptQueue;
using coro::CancelSource;
using coro::CancelToken;
using coro::Task;

constexpr size_t kBlock = 64 * 1024;

// Options that are temporaries of a co_await expression would be destroyed twice by g++ 12.2.
template <typename Options>
concept Connects = requires(Loop& loop, const SocketAddress& address, Options&& options) {
  coro::Connect(loop, address, std::forward<Options>(options));
};
static_assert(Connects<ConnectOptions&> && Connects<const ConnectOptions&>);
static_assert(!Connects<ConnectOptions> && !Connects<const ConnectOptions>);

// A sink for what a test's coroutines report, and the loop they run on.
class CoroTest : public internal::EngineLoopTest {
 protected:
  // Runs the loop until `done`, which may take as long as a slow machine needs but not for ever.
  void RunUntil(const std::function<bool()>& done) {
    Timer watchdog(*loop_);
    bool late = false;
    watchdog.Arm(absl::Seconds(60), [&late] { late = true; });
    while (!done() && !late) {
      bool turn = false;
      loop_->Post([this, &turn] {
        turn = true;
        loop_->Stop();
      });
      loop_->Run();
      ASSERT_TRUE(turn);
    }
    EXPECT_FALSE(late) << "the loop did not get there";
  }
  void RunToEnd(Task<void>& task) {
    RunUntil([&task] { return task.done(); });
  }
  // Everything that is under way has had its turn.
  void RunTurns(int turns = 20) {
    for (int i = 0; i < turns; ++i) RunUntil([ran = 0]() mutable { return ran++ > 0; });
  }

  void Listen(size_t depth_max = AcceptQueue::kDepthMax) {
    auto queue = AcceptQueue::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), ListenOptions(),
                                     depth_max);
    ASSERT_TRUE(queue.ok()) << queue.status();
    queue_ = *std::move(queue);
  }
  SocketAddress address() const { return queue_->listener().address(); }

  static Task<void> ConnectInto(Loop& loop, SocketAddress address, StreamPtr& stream) {
    absl::StatusOr<StreamPtr> connected = co_await coro::Connect(loop, address);
    EXPECT_TRUE(connected.ok()) << connected.status();
    if (connected.ok()) stream = *std::move(connected);
  }
  static Task<void> AcceptInto(AcceptQueue& queue, StreamPtr& stream) {
    absl::StatusOr<StreamPtr> accepted = co_await queue.Accept();
    EXPECT_TRUE(accepted.ok()) << accepted.status();
    if (accepted.ok()) stream = *std::move(accepted);
  }
  static Task<void> ReadInto(Stream& stream, CancelToken token, absl::StatusOr<std::string>& out) {
    absl::StatusOr<Buffer> data = co_await coro::Read(stream, token);
    if (data.ok()) {
      out = std::string(data->view());
    } else {
      out = data.status();
    }
  }

  // client_ and server_ are the two ends of one connection.
  void MakePair() {
    Listen();
    Task<void> connect = ConnectInto(*loop_, address(), client_);
    Task<void> accept = AcceptInto(*queue_, server_);
    connect.Start();
    accept.Start();
    RunToEnd(connect);
    RunToEnd(accept);
    ASSERT_NE(client_, nullptr);
    ASSERT_NE(server_, nullptr);
  }

  BufferChain Bytes(size_t blocks) {
    BufferChain chain;
    for (size_t i = 0; i < blocks; ++i) {
      chain.Append(*loop_->pool().Copy(std::string(kBlock, static_cast<char>('a' + i % 26))));
    }
    return chain;
  }

  std::unique_ptr<AcceptQueue> queue_;
  StreamPtr client_;
  StreamPtr server_;
};

Task<void> EchoAll(StreamPtr stream) {
  for (;;) {
    absl::StatusOr<Buffer> data = co_await coro::Read(*stream);
    if (!data.ok()) {
      EXPECT_TRUE(IsEof(data.status())) << data.status();
      break;
    }
    const absl::Status sent = co_await coro::Write(*stream, *std::move(data));
    if (!sent.ok()) co_return;
  }
  const absl::Status shut = co_await coro::ShutdownWrite(*stream);
  EXPECT_TRUE(shut.ok()) << shut;
}

Task<void> ServeOne(Loop& loop, AcceptQueue& queue) {
  absl::StatusOr<StreamPtr> stream = co_await queue.Accept();
  if (stream.ok()) coro::Spawn(loop, EchoAll(*std::move(stream)));
}

Task<void> AskFor(Loop& loop, SocketAddress address, std::string text, std::string& reply) {
  ConnectOptions options;
  absl::StatusOr<StreamPtr> stream = co_await coro::Connect(loop, address, options);
  EXPECT_TRUE(stream.ok()) << stream.status();
  if (!stream.ok()) co_return;
  const absl::Status sent = co_await coro::Write(**stream, *loop.pool().Copy(text));
  EXPECT_TRUE(sent.ok()) << sent;
  const absl::Status shut = co_await coro::ShutdownWrite(**stream);
  EXPECT_TRUE(shut.ok()) << shut;
  for (;;) {
    absl::StatusOr<Buffer> data = co_await coro::Read(**stream);
    if (!data.ok()) break;
    reply += data->view();
  }
}

TEST_P(CoroTest, EchoesAndEnds) {
  Listen();
  std::string reply;
  Task<void> server = ServeOne(*loop_, *queue_);
  Task<void> client = AskFor(*loop_, address(), "hello", reply);
  server.Start();
  client.Start();
  RunToEnd(client);
  EXPECT_EQ(reply, "hello");
}

TEST_P(CoroTest, CancelledReadLosesNoByte) {
  MakePair();
  CancelSource source;
  absl::StatusOr<std::string> first, second;
  Task<void> cancelled = ReadInto(*server_, source.token(), first);
  cancelled.Start();
  RunTurns();
  client_->Write(*loop_->pool().Copy("kept"));
  source.Cancel();
  RunToEnd(cancelled);
  // The bytes may have won the race; they are there once either way.
  if (!first.ok()) {
    EXPECT_TRUE(IsCancelled(first.status())) << first.status();
    Task<void> again = ReadInto(*server_, CancelToken(), second);
    again.Start();
    RunToEnd(again);
    first = second;
  }
  EXPECT_EQ(*first, "kept");
}

TEST_P(CoroTest, CancelledTokenEndsTheNextWaitAtOnce) {
  MakePair();
  CancelSource source;
  source.Cancel();
  absl::StatusOr<std::string> out;
  Task<void> task = ReadInto(*server_, source.token(), out);
  task.Start();
  EXPECT_TRUE(task.done());
  EXPECT_TRUE(IsCancelled(out.status()));
}

TEST_P(CoroTest, DestroyingTheStreamEndsTheReadInALaterTurn) {
  MakePair();
  absl::StatusOr<std::string> out;
  Task<void> task = ReadInto(*server_, CancelToken(), out);
  task.Start();
  RunTurns();
  server_.reset();
  EXPECT_FALSE(task.done()) << "resumed inside the destructor";
  RunToEnd(task);
  EXPECT_TRUE(IsCancelled(out.status())) << out.status();
}

TEST_P(CoroTest, DestroyingATaskThatReadsLosesNoByte) {
  MakePair();
  absl::StatusOr<std::string> dropped, out;
  {
    Task<void> task = ReadInto(*server_, CancelToken(), dropped);
    task.Start();
    RunTurns();
  }
  client_->Write(*loop_->pool().Copy("kept"));
  RunTurns();
  Task<void> again = ReadInto(*server_, CancelToken(), out);
  again.Start();
  RunToEnd(again);
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(*out, "kept");
}

Task<void> WriteInto(Stream& stream, BufferChain data, CancelToken token,
                     std::optional<absl::Status>& out) {
  out = co_await coro::Write(stream, std::move(data), token);
}

Task<void> Drain(Stream& stream, size_t& received) {
  for (;;) {
    absl::StatusOr<Buffer> data = co_await coro::Read(stream);
    if (!data.ok()) co_return;
    received += data->size();
  }
}

TEST_P(CoroTest, CancellingAWriteGivesUpTheWaitNotTheBytes) {
  MakePair();
  constexpr size_t kBlocks = 320;  // more than sockets hold
  CancelSource source;
  std::optional<absl::Status> out;
  Task<void> write = WriteInto(*client_, Bytes(kBlocks), source.token(), out);
  write.Start();
  RunTurns();
  ASSERT_FALSE(out.has_value());
  source.Cancel();
  EXPECT_FALSE(write.done()) << "resumed inside Cancel";
  RunToEnd(write);
  EXPECT_TRUE(IsCancelled(*out)) << *out;

  size_t received = 0;
  Task<void> drain = Drain(*server_, received);
  drain.Start();
  RunUntil([&received] { return received == kBlocks * kBlock; });
}

Task<void> WaitWritable(Stream& stream, std::optional<absl::Status>& out) {
  out = co_await coro::NotifyWritable(stream);
}

TEST_P(CoroTest, NotifyWritableWaitsForRoom) {
  MakePair();
  client_->Write(Bytes(320));
  RunTurns();
  ASSERT_FALSE(client_->writable());
  std::optional<absl::Status> out;
  Task<void> room = WaitWritable(*client_, out);
  room.Start();
  RunTurns();
  EXPECT_FALSE(out.has_value());
  size_t received = 0;
  Task<void> drain = Drain(*server_, received);
  drain.Start();
  RunToEnd(room);
  EXPECT_TRUE(out->ok()) << *out;
}

Task<void> SleepInto(Loop& loop, absl::Duration duration, CancelToken token,
                     std::optional<absl::Status>& out) {
  out = co_await coro::Sleep(loop, duration, token);
}

TEST_P(CoroTest, SleepsNoLessThanAsked) {
  std::optional<absl::Status> out;
  const absl::Time began = loop_->now();
  Task<void> task = SleepInto(*loop_, absl::Milliseconds(20), CancelToken(), out);
  task.Start();
  RunToEnd(task);
  EXPECT_TRUE(out->ok()) << *out;
  EXPECT_GE(loop_->now() - began, absl::Milliseconds(20));
}

TEST_P(CoroTest, CancelEndsASleep) {
  CancelSource source;
  std::optional<absl::Status> out;
  Task<void> task = SleepInto(*loop_, absl::Hours(1), source.token(), out);
  task.Start();
  RunTurns();
  source.Cancel();
  EXPECT_FALSE(task.done()) << "resumed inside Cancel";
  RunToEnd(task);
  EXPECT_TRUE(IsCancelled(*out)) << *out;
}

TEST_P(CoroTest, OneCancelEndsManyWaits) {
  MakePair();
  CancelSource source;
  std::vector<std::optional<absl::Status>> outs(10);
  std::vector<Task<void>> tasks;
  for (auto& out : outs) tasks.push_back(SleepInto(*loop_, absl::Hours(1), source.token(), out));
  for (Task<void>& task : tasks) task.Start();
  source.Cancel();
  for (size_t i = 0; i < tasks.size(); ++i) {
    RunToEnd(tasks[i]);
    EXPECT_TRUE(IsCancelled(*outs[i]));
  }
}

Task<void> ConnectStatus(Loop& loop, SocketAddress address, CancelToken token, absl::Status& out) {
  ConnectOptions options;
  absl::StatusOr<StreamPtr> stream = co_await coro::Connect(loop, address, options, token);
  out = stream.status();
}

TEST_P(CoroTest, ConnectReportsRefusal) {
  Listen();
  const SocketAddress gone = address();
  queue_.reset();
  RunTurns();
  absl::Status out;
  Task<void> task = ConnectStatus(*loop_, gone, CancelToken(), out);
  task.Start();
  RunToEnd(task);
  EXPECT_TRUE(IsReset(out)) << out;
}

TEST_P(CoroTest, CancelEndsAConnect) {
  Listen();
  CancelSource source;
  absl::Status out;
  Task<void> task = ConnectStatus(*loop_, address(), source.token(), out);
  task.Start();
  source.Cancel();
  RunToEnd(task);
  EXPECT_TRUE(IsCancelled(out)) << out;
}

TEST_P(CoroTest, DestroyingTasksThatWaitIsSafe) {
  MakePair();
  StreamPtr stream, other;
  std::optional<absl::Status> slept, written, writable;
  absl::StatusOr<std::string> read;
  {
    Task<void> tasks[] = {SleepInto(*loop_, absl::Hours(1), CancelToken(), slept),
                          ConnectInto(*loop_, address(), stream),
                          AcceptInto(*queue_, other),
                          WriteInto(*client_, Bytes(320), CancelToken(), written),
                          WaitWritable(*client_, writable),
                          ReadInto(*client_, CancelToken(), read)};
    for (Task<void>& task : tasks) task.Start();
  }
  RunTurns();
  EXPECT_FALSE(slept || written || writable);
  EXPECT_EQ(stream, nullptr);
}

Task<void> YieldTwice(Loop& loop, int& turns) {
  for (int i = 0; i < 2; ++i) {
    const absl::Status status = co_await coro::Yield(loop);
    EXPECT_TRUE(status.ok()) << status;
    ++turns;
  }
}

TEST_P(CoroTest, YieldLetsOthersRun) {
  int turns = 0;
  Task<void> task = YieldTwice(*loop_, turns);
  task.Start();
  EXPECT_EQ(turns, 0);
  RunToEnd(task);
  EXPECT_EQ(turns, 2);
}

// ---- AcceptQueue ----

TEST_P(CoroTest, QueueOfNoDepthAcceptsOneAtATime) {
  Listen(0);
  for (int i = 0; i < 3; ++i) {
    StreamPtr client, server;
    Task<void> connect = ConnectInto(*loop_, address(), client);
    connect.Start();
    RunToEnd(connect);
    Task<void> accept = AcceptInto(*queue_, server);
    accept.Start();
    RunToEnd(accept);
    EXPECT_NE(server, nullptr);
  }
}

TEST_P(CoroTest, QueuePausesWhenFullAndLosesNobody) {
  Listen(2);
  std::vector<StreamPtr> clients(8), servers(8);
  std::vector<Task<void>> connects;
  for (StreamPtr& client : clients) {
    connects.push_back(ConnectInto(*loop_, address(), client));
    connects.back().Start();
  }
  for (Task<void>& connect : connects) RunToEnd(connect);
  RunUntil([this] { return queue_->listener().stats().paused; });
  for (StreamPtr& server : servers) {
    Task<void> accept = AcceptInto(*queue_, server);
    accept.Start();
    RunToEnd(accept);
    EXPECT_NE(server, nullptr);
  }
}

Task<void> AcceptStatus(AcceptQueue& queue, CancelToken token, absl::Status& out) {
  absl::StatusOr<StreamPtr> stream = co_await queue.Accept(token);
  out = stream.status();
}

TEST_P(CoroTest, OneAcceptWaitsAtATime) {
  Listen();
  CancelSource source;
  absl::Status first, second, third;
  Task<void> waits = AcceptStatus(*queue_, source.token(), first);
  waits.Start();
  Task<void> refused = AcceptStatus(*queue_, CancelToken(), second);
  refused.Start();
  EXPECT_TRUE(absl::IsFailedPrecondition(second)) << second;
  source.Cancel();
  RunToEnd(waits);
  EXPECT_TRUE(IsCancelled(first)) << first;
  Task<void> next = AcceptStatus(*queue_, CancelToken(), third);
  next.Start();
  EXPECT_FALSE(next.done());
  queue_.reset();
  EXPECT_FALSE(next.done()) << "resumed inside the destructor";
  RunToEnd(next);
  EXPECT_TRUE(IsCancelled(third)) << third;
}

// ---- Threads and loops ----

Task<void> SetWhenRun(bool& ran) {
  ran = true;
  co_return;
}

TEST_P(CoroTest, SpawnFromAnotherThread) {
  bool ran = false;
  std::thread([&ran, handle = loop_->handle()] { coro::Spawn(handle, SetWhenRun(ran)); }).join();
  EXPECT_FALSE(ran);
  RunUntil([&ran] { return ran; });
}

TEST_P(CoroTest, SpawnOnALoopThatIsGoneDestroysTheTask) {
  const LoopHandle handle = loop_->handle();
  loop_.reset();
  bool ran = false;
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = held;
  auto body = [](std::shared_ptr<int>, bool& ran) -> Task<void> {
    ran = true;
    co_return;
  };
  coro::Spawn(handle, body(std::move(held), ran));
  EXPECT_TRUE(watch.expired());
  EXPECT_FALSE(ran);
}

Task<void> GoAndReturn(Loop& home, Loop& other, bool& there, bool& back) {
  const absl::Status gone = co_await coro::SwitchTo(other.handle());
  EXPECT_TRUE(gone.ok()) << gone;
  there = other.InLoopThread() && !home.InLoopThread();
  const absl::Status came = co_await coro::SwitchTo(home.handle());
  EXPECT_TRUE(came.ok()) << came;
  back = home.InLoopThread();
}

TEST_P(CoroTest, SwitchesBetweenLoops) {
  std::promise<Loop*> made;
  std::thread thread([&made] {
    LoopOptions options;
    options.engine = GetParam();
    absl::StatusOr<std::unique_ptr<Loop>> other = Loop::Create(std::move(options));
    ASSERT_TRUE(other.ok()) << other.status();
    made.set_value(other->get());
    (*other)->Run();
  });
  Loop* other = made.get_future().get();
  for (int i = 0; i < 100; ++i) {
    bool there = false, back = false;
    Task<void> task = GoAndReturn(*loop_, *other, there, back);
    task.Start();
    RunUntil([&back] { return back; });
    EXPECT_TRUE(there);
    EXPECT_TRUE(task.done());
  }
  other->Stop();
  thread.join();
}

Task<void> SwitchStatus(LoopHandle target, absl::Status& out) {
  out = co_await coro::SwitchTo(target);
}

TEST_P(CoroTest, SwitchToALoopThatIsGoneIsCancelled) {
  LoopHandle handle = loop_->handle();
  loop_.reset();
  absl::Status out;
  Task<void> task = SwitchStatus(handle, out);
  task.Start();
  EXPECT_TRUE(task.done());
  EXPECT_TRUE(IsCancelled(out)) << out;
}

Task<void> ReadOwned(StreamPtr stream, std::shared_ptr<int> held, absl::Status& out) {
  absl::StatusOr<Buffer> data = co_await coro::Read(*stream);
  out = data.status();
  *held = 1;
}

TEST_P(CoroTest, LoopThatGoesResumesWhatWaitsOnIt) {
  MakePair();
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = held;
  absl::Status out;
  coro::Spawn(*loop_, ReadOwned(std::move(server_), std::move(held), out));
  RunTurns();
  EXPECT_FALSE(watch.expired());
  client_.reset();
  queue_.reset();
  loop_.reset();
  EXPECT_TRUE(watch.expired()) << "the coroutine leaked";
  EXPECT_TRUE(IsCancelled(out)) << out;
}

TEST_P(CoroTest, CoroutineMayOwnItsCancelSource) {
  auto body = [](Loop& loop, CancelSource** where, absl::Status& out) -> Task<void> {
    CancelSource source;
    *where = &source;
    out = co_await coro::Sleep(loop, absl::Hours(1), source.token());
  };
  CancelSource* source = nullptr;
  absl::Status out;
  Task<void> task = body(*loop_, &source, out);
  task.Start();
  source->Cancel();
  RunToEnd(task);
  EXPECT_TRUE(IsCancelled(out)) << out;
}

INSTANTIATE_TEST_SUITE_P(Engines, CoroTest,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         internal::EngineName);

}  // namespace
PENSTOCK_END_NAMESPACE
