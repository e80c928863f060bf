// A balancer of loops on threads of their own: moves of one decision begin on one thread and end on
// another, a few at a time. What it decides is in loop_balance_test.cc.
#include <penstock/balance.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include <gtest/gtest.h>

#include "base/sys.h"
#include "engine/loop_core.h"

namespace penstock::internal {
namespace {

// The real kernel, but for the part of the time that the thread is on a CPU.
class BusyThreadSys : public Sys {
 public:
  explicit BusyThreadSys(double busy) : busy_(busy) {}
  int64_t ThreadCpu() override { return static_cast<int64_t>(static_cast<double>(Now()) * busy_); }

 private:
  const double busy_;
};

// A loop and its thread.
class BusyThread {
 public:
  BusyThread(BufferPool& pool, double busy) : sys_(busy) {
    std::promise<void> made;
    thread_ = std::thread([&] {
      LoopOptions options;
      options.pool = &pool;
      loop_ = LoopCore::CreateLoop(std::move(options), {.sys = &sys_, .engines = {}}).value();
      Loop& loop = *loop_;
      made.set_value();
      loop.Run();
    });
    made.get_future().wait();
  }
  void On(absl::AnyInvocable<void()> what) {
    std::promise<void> done;
    loop_->Post([&] {
      what();
      done.set_value();
    });
    done.get_future().wait();
  }
  void End() {
    On([this] { loop_->Drain(absl::ZeroDuration()); });
    thread_.join();
  }
  Loop& loop() { return *loop_; }

 private:
  BusyThreadSys sys_;
  std::unique_ptr<Loop> loop_;
  std::thread thread_;
};

// Owned by its pending read, so that it moves with it: sends on whatever comes.
void PassOn(StreamPtr stream) {
  Stream& in = *stream;
  in.ReadReady([stream = std::move(stream)](absl::StatusOr<Buffer> data) mutable {
    if (!data.ok()) return;
    stream->Write(*std::move(data));
    PassOn(std::move(stream));
  });
}

TEST(BalanceThreads, StreamsGoWhileTheyWork) {
  constexpr int kStreams = 40;
  BufferPool pool;
  BusyThread busy(pool, 0.9), idle(pool, 0.1), home(pool, 0.5);
  std::unique_ptr<Listener> listener;
  busy.On([&] {
    ListenOptions listening;
    listening.stream.migratable = true;
    listener =
        Listener::Listen(busy.loop(), *SocketAddress::Parse("127.0.0.1:0"), listening, PassOn)
            .value();
  });
  std::unique_ptr<LoopBalancer> balancer;
  home.On([&] {
    for (int i = 0; i < kStreams; ++i) {
      Connect(home.loop(), listener->address(), {}, [&](absl::StatusOr<StreamPtr> stream) {
        ASSERT_TRUE(stream.ok()) << stream.status();
        (*stream)->Write(pool.Copy("around").value());
        PassOn(*std::move(stream));
      });
    }
    BalanceOptions options;
    options.tick = absl::Milliseconds(20);
    options.sustain = 2;
    options.rest = 2;
    balancer =
        LoopBalancer::Create(home.loop(), {busy.loop().handle(), idle.loop().handle()}, options)
            .value();
  });
  // More than are under way at once: some have begun when others had ended.
  std::promise<void> moved;
  std::unique_ptr<Timer> look;
  const std::function<void()> look_again = [&] {
    if (balancer->moves() > 10) return moved.set_value();
    look->Arm(absl::Milliseconds(10), [&] { look_again(); });
  };
  home.On([&] {
    look = std::make_unique<Timer>(home.loop());
    look_again();
  });
  EXPECT_EQ(moved.get_future().wait_for(std::chrono::minutes(2)), std::future_status::ready);
  std::promise<void> stopped;
  home.On([&] {
    look = nullptr;
    balancer->Stop([&] { stopped.set_value(); });
  });
  stopped.get_future().wait();
  home.On([&] { balancer = nullptr; });
  busy.On([&] { listener = nullptr; });
  const LoopSnapshot left = busy.loop().Snapshot(), joined = idle.loop().Snapshot();
  EXPECT_GT(joined.moves_in, 10u);
  EXPECT_EQ(left.moves_out, joined.moves_in) << "nothing is under way after Stop";
  EXPECT_EQ(left.stranded + joined.stranded, 0u);
  for (BusyThread* each : {&home, &busy, &idle}) each->End();
}

}  // namespace
}  // namespace penstock::internal
