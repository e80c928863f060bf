// What streams that change threads are tested with: loops on threads of their own, echoes that hop
// from one to the next, and clients that check every byte.
//
// A test owns the loops; what belongs to a stream belongs to whichever thread has the stream.
#ifndef PENSTOCK_TESTS_TESTING_HOP_KIT_H_
#define PENSTOCK_TESTS_TESTING_HOP_KIT_H_

#include <penstock/buffer.h>
#include <penstock/connect.h>
#include <penstock/export.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <penstock/stream.h>

#include <atomic>
#include <cstdint>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/functional/any_invocable.h"
#include "testing/pattern.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Loops with a thread each and one pool.
class LoopThreads {
 public:
  LoopThreads(size_t count, EngineKind engine) {
    for (size_t i = 0; i < count; ++i) {
      LoopOptions options;
      options.engine = engine;
      options.pool = &pool_;
      loops_.push_back(std::move(Loop::Create(std::move(options))).value());
    }
    for (auto& loop : loops_) threads_.emplace_back([&loop] { loop->Run(); });
  }
  ~LoopThreads() { Stop(); }
  void Stop() {
    for (auto& loop : loops_) loop->Stop();
    Join();
    loops_.clear();
  }
  // Has each loop drain and waits until all have.
  void Drain(absl::Duration grace) {
    for (auto& loop : loops_) {
      loop->Post([drained = loop.get(), grace] { drained->Drain(grace); });
    }
    Join();
  }
  void Join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  Loop& loop(size_t i) { return *loops_[i % loops_.size()]; }
  size_t size() const { return loops_.size(); }

  // Runs `what` on the thread of loop `i` and waits for it.
  void On(size_t i, absl::AnyInvocable<void() &&> what) {
    std::promise<void> done;
    loop(i).Post([&] {
      std::move(what)();
      done.set_value();
    });
    done.get_future().wait();
  }

 private:
  BufferPool pool_;
  std::vector<std::unique_ptr<Loop>> loops_;
  std::vector<std::thread> threads_;
};

// Echoes what it reads, and asks for the next loop every few reads. Its fields belong to whichever
// thread has the stream.
class Hopper {
 public:
  Hopper(LoopThreads& threads, StreamPtr stream, std::atomic<uint64_t>& hops)
      : threads_(threads), stream_(std::move(stream)), hops_(hops) {}
  void Next() {
    stream_->ReadReady([this](absl::StatusOr<Buffer> data) {
      ASSERT_TRUE(stream_->loop().InLoopThread());
      if (!data.ok()) {
        ++ends;
        return stream_->ShutdownWrite();
      }
      stream_->Write(*std::move(data));
      if (++reads_ % 3 == 0) {
        Migrate(*stream_, threads_.loop(++at_).handle(), [this](absl::Status moved) {
          EXPECT_TRUE(moved.ok() || may_be_refused) << moved;
          EXPECT_TRUE(stream_->loop().InLoopThread());
          hops_.fetch_add(1, std::memory_order_relaxed);
        });
      }
      Next();
    });
  }

  bool may_be_refused = false;
  int ends = 0;  // of its stream, told

 private:
  LoopThreads& threads_;
  StreamPtr stream_;
  std::atomic<uint64_t>& hops_;
  uint64_t reads_ = 0;
  size_t at_ = 0;
};

// A hopper for each stream that connects to a listener of the first loop. To be destroyed when the
// threads have stopped.
class Hoppers {
 public:
  explicit Hoppers(LoopThreads& threads, bool may_be_refused = false) : threads_(threads) {
    threads_.On(0, [this, may_be_refused] {
      listener_ = Listener::Listen(threads_.loop(0), *SocketAddress::Parse("127.0.0.1:0"), {},
                                   [this, may_be_refused](StreamPtr stream) {
                                     all_.push_back(std::make_unique<Hopper>(
                                         threads_, std::move(stream), hops_));
                                     all_.back()->may_be_refused = may_be_refused;
                                     all_.back()->Next();
                                   })
                      .value();
    });
  }
  SocketAddress address() const { return listener_->address(); }
  void StopListening() {
    threads_.On(0, [this] { listener_ = nullptr; });
  }
  uint64_t hops() const { return hops_.load(); }
  const std::vector<std::unique_ptr<Hopper>>& all() const { return all_; }

 private:
  LoopThreads& threads_;
  std::atomic<uint64_t> hops_{0};
  std::vector<std::unique_ptr<Hopper>> all_;
  std::unique_ptr<Listener> listener_;
};

// Sends a pattern in pieces, each when the echo of the one before is back, and checks every byte.
struct PingPong {
  StreamPtr stream;
  uint64_t seed = 0;
  uint64_t total = 0;
  uint64_t sent = 0;
  uint64_t received = 0;
  std::promise<bool> intact;

  void Send() {
    const size_t size = 1 + static_cast<size_t>(sent * 31 % 3000);
    stream->Write(*stream->loop().pool().Copy(PatternBytes(seed, sent, size)));
    sent += size;
  }
  void Next() {
    stream->ReadReady([this](absl::StatusOr<Buffer> data) {
      if (!data.ok() || FirstMismatch(data->view(), seed, received).has_value()) {
        return intact.set_value(false);
      }
      received += data->size();
      if (received == sent) {
        if (received >= total) return intact.set_value(true);
        Send();
      }
      Next();
    });
  }
  // From the thread of loop `at`.
  void Start(LoopThreads& threads, size_t at, const SocketAddress& address) {
    threads.On(at, [this, &threads, at, &address] {
      Connect(threads.loop(at), address, {}, [this](absl::StatusOr<StreamPtr> made) {
        if (!made.ok()) return intact.set_value(false);
        stream = *std::move(made);
        Send();
        Next();
      });
    });
  }
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_HOP_KIT_H_
