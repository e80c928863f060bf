// Coroutines over the callbacks: Task, an awaitable for every operation, and cancellation.
//
//   coro::Task<void> Echo(StreamPtr stream) {
//     for (;;) {
//       absl::StatusOr<Buffer> data = co_await coro::Read(*stream);
//       if (!data.ok()) co_return;
//       absl::Status sent = co_await coro::Write(*stream, *std::move(data));
//       if (!sent.ok()) co_return;
//     }
//   }
//   ... coro::Spawn(loop, Echo(std::move(stream)));
//
// Threads: all of this belongs to the loop's thread, but for Spawn and SwitchTo. A wait ends in a
// turn of the loop, never inside the call that ended it; only ~Loop resumes what waits on it, so
// that every coroutine can leave.
//
// How a wait ends: once, with what the callback would have been given, or with Cancelled because
// its CancelSource was cancelled, or because what it waits on (stream, queue, loop) was destroyed
// and must not be used again.
//
// Destroying a Task that waits is safe: the wait is given up and every frame below goes with it. No
// byte is lost: a read that is given up leaves its bytes in the stream. A Task must not be
// destroyed while it runs, nor while it waits in SwitchTo or Migrate. One that waits in Sleep or
// Resolve must be cancelled or destroyed before its loop is, as a Timer must.
//
// Nothing throws; an exception out of a coroutine ends the program. Calling a coroutine allocates
// its frame. Reading and writing allocate nothing; Sleep allocates its timer, and what is posted
// (Spawn, Yield, SwitchTo) a place in the mailbox.
//
// g++ 12.2 destroys lambdas with captures and aggregates twice when they are temporaries in a
// co_await expression. So nothing here takes a callable, and options are taken by reference to a
// named object: a temporary does not compile. Coroutines of your own need the same care.
#ifndef PENSTOCK_CORO_H_
#define PENSTOCK_CORO_H_

#include <penstock/address.h>
#include <penstock/buffer.h>
#include <penstock/cancel.h>
#include <penstock/connect.h>
#include <penstock/coro_wait.h>
#include <penstock/export.h>
#include <penstock/framed_reader.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/move.h>
#include <penstock/resolve.h>
#include <penstock/stream.h>
#include <penstock/task.h>

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE
namespace coro {

class AcceptQueue;

namespace detail {

class ReadWait final : public ResultWait<absl::StatusOr<Buffer>> {
 public:
  ReadWait(Stream& stream, CancelToken token)
      : ResultWait(stream.loop(), std::move(token)), stream_(stream) {}
  ~ReadWait() {
    if (Forget()) stream_.CancelRead();
  }
  void await_suspend(std::coroutine_handle<> coroutine) {
    Suspend(coroutine);
    stream_.ReadReady(Callback());
  }

 private:
  void OnCancel() override { stream_.CancelRead(); }
  Stream& stream_;
};

class FrameWait final : public ResultWait<absl::StatusOr<Frame>> {
 public:
  FrameWait(FramedReader& reader, CancelToken token)
      : ResultWait(reader.stream().loop(), std::move(token)), reader_(reader) {}
  ~FrameWait() {
    if (Forget()) reader_.CancelRead();
  }
  void await_suspend(std::coroutine_handle<> coroutine) {
    Suspend(coroutine);
    reader_.ReadFrame(Callback());
  }

 private:
  void OnCancel() override { reader_.CancelRead(); }
  FramedReader& reader_;
};

class WriteWait final : public ResultWait<absl::Status> {
 public:
  WriteWait(Stream& stream, BufferChain data, CancelToken token)
      : ResultWait(stream.loop(), std::move(token)), stream_(stream), data_(std::move(data)) {}
  void await_suspend(std::coroutine_handle<> coroutine) {
    Suspend(coroutine);
    stream_.Write(std::move(data_), Callback());
  }

 private:
  Stream& stream_;
  BufferChain data_;
};

// A wait for one of a stream's methods that take a callback alone.
class StreamWait final : public ResultWait<absl::Status> {
 public:
  using Method = void (Stream::*)(Stream::DoneCallback);
  StreamWait(Stream& stream, Method method, CancelToken token)
      : ResultWait(stream.loop(), std::move(token)), stream_(stream), method_(method) {}
  void await_suspend(std::coroutine_handle<> coroutine) {
    Suspend(coroutine);
    (stream_.*method_)(Callback());
  }

 private:
  Stream& stream_;
  Method method_;
};

class SwitchEngineWait final : public ResultWait<absl::Status> {
 public:
  SwitchEngineWait(Stream& stream, EngineKind to, CancelToken token)
      : ResultWait(stream.loop(), std::move(token)), stream_(stream), to_(to) {}
  void await_suspend(std::coroutine_handle<> coroutine) {
    Suspend(coroutine);
    penstock::SwitchEngine(stream_, to_, Callback());
  }

 private:
  Stream& stream_;
  EngineKind to_;
};

class ConnectWait final : public ResultWait<absl::StatusOr<StreamPtr>> {
 public:
  ConnectWait(Loop& loop, const SocketAddress& address, const ConnectOptions& options,
              CancelToken token)
      : ResultWait(loop, std::move(token)), address_(address), options_(options) {}
  ~ConnectWait() {
    if (Forget()) attempt_.Cancel();
  }
  void await_suspend(std::coroutine_handle<> coroutine) {
    Suspend(coroutine);
    attempt_ = penstock::Connect(loop(), address_, std::move(options_), Callback());
  }

 private:
  void OnCancel() override { attempt_.Cancel(); }
  SocketAddress address_;
  ConnectOptions options_;
  ConnectAttempt attempt_;
};

// The callback may be destroyed on the executor's thread, which must not touch the wait: what it
// has is a link that only the loop's thread looks into.
class ResolveWait final : public ResultWait<absl::StatusOr<std::vector<SocketAddress>>> {
 public:
  ResolveWait(Loop& loop, std::string host, uint16_t port, Executor& executor, CancelToken token)
      : ResultWait(loop, std::move(token)),
        host_(std::move(host)),
        port_(port),
        executor_(executor) {}
  ~ResolveWait() {
    if (link_ != nullptr) link_->wait = nullptr;
  }
  void await_suspend(std::coroutine_handle<> coroutine) {
    Suspend(coroutine);
    link_ = std::make_shared<Link>(this);
    penstock::Resolve(loop(), std::move(host_), port_, executor_,
                      [reply = Reply(link_, loop().handle())](Addresses result) mutable {
                        reply.Run(std::move(result));
                      });
  }

 private:
  using Addresses = absl::StatusOr<std::vector<SocketAddress>>;
  struct Link {
    explicit Link(ResolveWait* of) : wait(of) {}
    ResolveWait* wait;
  };
  class Reply {
   public:
    Reply(std::shared_ptr<Link> link, LoopHandle loop)
        : link_(std::move(link)), loop_(std::move(loop)) {}
    Reply(Reply&&) noexcept = default;
    Reply& operator=(Reply&&) = delete;
    ~Reply() {
      if (link_ == nullptr) return;
      loop_.Post([link = std::move(link_)] {
        if (link->wait != nullptr) link->wait->Lose("the executor has dropped the lookup");
      });
    }
    void Run(Addresses result) {
      const std::shared_ptr<Link> link = std::move(link_);
      if (link->wait != nullptr) link->wait->Answer(std::move(result));
    }

   private:
    std::shared_ptr<Link> link_;
    LoopHandle loop_;
  };

  void Answer(Addresses result) {
    link_->wait = nullptr;
    End(std::move(result));
  }
  void OnCancel() override {
    link_->wait = nullptr;
    Lose("cancelled");
  }

  std::string host_;
  uint16_t port_;
  Executor& executor_;
  std::shared_ptr<Link> link_;
};

class SleepWait final : public ResultWait<absl::Status> {
 public:
  SleepWait(Loop& loop, absl::Duration duration, CancelToken token)
      : ResultWait(loop, std::move(token)), timer_(loop), duration_(duration) {}
  ~SleepWait() { Forget(); }
  void await_suspend(std::coroutine_handle<> coroutine) {
    Suspend(coroutine);
    timer_.Arm(duration_, [ticket = Ticket(*this)]() mutable {
      if (Wait* wait = ticket.Take()) static_cast<SleepWait*>(wait)->Resume();
    });
  }

 private:
  void OnCancel() override {
    Forget();
    timer_.Cancel();
    Lose("cancelled");  // last: in a loop that is going it may resume, and destroy this
  }
  Timer timer_;
  absl::Duration duration_;
};

class YieldWait final : public ResultWait<absl::Status> {
 public:
  YieldWait(Loop& loop, CancelToken token) : ResultWait(loop, std::move(token)) {}
  void await_suspend(std::coroutine_handle<> coroutine) {
    Suspend(coroutine);
    loop().Post([ticket = Ticket(*this)]() mutable {
      if (Wait* wait = ticket.Take()) static_cast<YieldWait*>(wait)->Resume();
    });
  }
};

class AcceptWait final : public ResultWait<absl::StatusOr<StreamPtr>> {
 public:
  AcceptWait(AcceptQueue& queue, CancelToken token);
  bool await_ready();
  void await_suspend(std::coroutine_handle<> coroutine);

 private:
  friend class coro::AcceptQueue;
  AcceptQueue& queue_;
};

// Another thread may resume the coroutine, and destroy this, before the call that posted it
// returns: so nothing here is touched after Post, and compilers may not keep its locals in the
// frame.
class SwitchWait {
 public:
  explicit SwitchWait(LoopHandle target) : target_(std::move(target)) {}
  SwitchWait(const SwitchWait&) = delete;
  SwitchWait& operator=(const SwitchWait&) = delete;
  bool await_ready() const { return false; }
  [[gnu::noinline]] void await_suspend(std::coroutine_handle<> coroutine) {
    coroutine_ = coroutine;
    const LoopHandle target = target_;
    target.Post([baton = Baton(this)]() mutable { baton.Run(absl::OkStatus()); });
  }
  absl::Status await_resume() { return std::move(result_); }

 private:
  // Runs the coroutine exactly once, on whichever thread ends up with it.
  class Baton {
   public:
    explicit Baton(SwitchWait* wait) : wait_(wait) {}
    Baton(Baton&& other) noexcept : wait_(std::exchange(other.wait_, nullptr)) {}
    Baton& operator=(Baton&&) = delete;
    ~Baton() { Run(absl::CancelledError("the loop to switch to is gone")); }
    void Run(absl::Status result) {
      if (wait_ == nullptr) return;
      SwitchWait* wait = std::exchange(wait_, nullptr);
      wait->result_ = std::move(result);
      wait->coroutine_.resume();
    }

   private:
    SwitchWait* wait_;
  };

  LoopHandle target_;
  std::coroutine_handle<> coroutine_;
  absl::Status result_;
};

// Like SwitchWait: the coroutine goes on on whichever thread the stream is on.
class MigrateWait {
 public:
  MigrateWait(Stream& stream, LoopHandle target, EngineKind engine)
      : stream_(stream), target_(std::move(target)), engine_(engine) {}
  MigrateWait(const MigrateWait&) = delete;
  MigrateWait& operator=(const MigrateWait&) = delete;
  bool await_ready() const { return false; }
  [[gnu::noinline]] void await_suspend(std::coroutine_handle<> coroutine) {
    coroutine_ = coroutine;
    const LoopHandle target = target_;
    penstock::Migrate(
        stream_, target,
        [baton = Baton(this, stream_.loop().handle())](absl::Status moved) mutable {
          baton.Run(std::move(moved));
        },
        engine_);
  }
  absl::Status await_resume() { return std::move(result_); }

 private:
  // Runs the coroutine exactly once. Destroyed unrun, for the stream has gone: in a later turn of
  // the loop where the wait began, or, when that has gone too, here and now.
  class Baton {
   public:
    Baton(MigrateWait* wait, LoopHandle home) : wait_(wait), home_(std::move(home)) {}
    Baton(Baton&& other) noexcept
        : wait_(std::exchange(other.wait_, nullptr)),
          home_(std::move(other.home_)),
          last_(other.last_) {}
    Baton& operator=(Baton&&) = delete;
    ~Baton() {
      if (wait_ == nullptr) return;
      if (last_) {
        Run(absl::CancelledError("the stream that was to move was destroyed"));
        return;
      }
      Baton last(std::exchange(wait_, nullptr), LoopHandle());
      last.last_ = true;
      home_.Post([baton = std::move(last)] {});
    }
    void Run(absl::Status result) {
      MigrateWait* wait = std::exchange(wait_, nullptr);
      wait->result_ = std::move(result);
      wait->coroutine_.resume();
    }

   private:
    MigrateWait* wait_;
    LoopHandle home_;
    bool last_ = false;
  };

  Stream& stream_;
  LoopHandle target_;
  EngineKind engine_;
  std::coroutine_handle<> coroutine_;
  absl::Status result_;
};

}  // namespace detail

// The operations of Stream, FramedReader, Connect, Resolve, Timer and penstock/move.h. `token` can
// end each wait with Cancelled; what that means for the operation is said below. A token that is
// cancelled already ends the wait at once, and the operation is not begun.

// As Stream::ReadReady. Cancelled: no byte is lost.
inline detail::ReadWait Read(Stream& stream, CancelToken token = CancelToken()) {
  return detail::ReadWait(stream, std::move(token));
}
// As FramedReader::ReadFrame. Cancelled: no byte is lost.
inline detail::FrameWait ReadFrame(FramedReader& reader, CancelToken token = CancelToken()) {
  return detail::FrameWait(reader, std::move(token));
}
// As Stream::Write. Cancelled: the wait alone is given up, the bytes stay queued.
inline detail::WriteWait Write(Stream& stream, BufferChain data,
                               CancelToken token = CancelToken()) {
  return detail::WriteWait(stream, std::move(data), std::move(token));
}
// As Stream::ShutdownWrite. Cancelled: the wait alone is given up.
inline detail::StreamWait ShutdownWrite(Stream& stream, CancelToken token = CancelToken()) {
  return detail::StreamWait(stream, &Stream::ShutdownWrite, std::move(token));
}
// As Stream::NotifyWritable. Cancelled: the wait alone is given up, and another can begin when the
// stream has become writable.
inline detail::StreamWait NotifyWritable(Stream& stream, CancelToken token = CancelToken()) {
  return detail::StreamWait(stream, &Stream::NotifyWritable, std::move(token));
}
// As penstock::Connect. Cancelled: the attempt is given up.
inline detail::ConnectWait Connect(Loop& loop, const SocketAddress& address,
                                   const ConnectOptions& options,
                                   CancelToken token = CancelToken()) {
  return detail::ConnectWait(loop, address, options, std::move(token));
}
detail::ConnectWait Connect(Loop& loop, const SocketAddress& address,
                            const ConnectOptions&& options,
                            CancelToken token = CancelToken()) = delete;
inline detail::ConnectWait Connect(Loop& loop, const SocketAddress& address,
                                   CancelToken token = CancelToken()) {
  const ConnectOptions defaults;
  return detail::ConnectWait(loop, address, defaults, std::move(token));
}
// As penstock::Resolve. Cancelled: the wait alone is given up, the lookup goes on. `executor` is
// used when the wait begins, and may then go.
inline detail::ResolveWait Resolve(Loop& loop, std::string host, uint16_t port, Executor& executor,
                                   CancelToken token = CancelToken()) {
  return detail::ResolveWait(loop, std::move(host), port, executor, std::move(token));
}
// As penstock::SwitchEngine. Cancelled: the wait alone is given up, the stream still switches.
inline detail::SwitchEngineWait SwitchEngine(Stream& stream, EngineKind to,
                                             CancelToken token = CancelToken()) {
  return detail::SwitchEngineWait(stream, to, std::move(token));
}
// As penstock::Migrate: goes on where the stream then is, with OK on the thread of `target`, and
// with the stream's own operations to wait for there. Begin it when no other coroutine waits for
// anything of the stream. What this coroutine was given of the old loop stays behind: timers,
// tokens, queues.
inline detail::MigrateWait Migrate(Stream& stream, LoopHandle target,
                                   EngineKind engine = EngineKind::kAuto) {
  return detail::MigrateWait(stream, std::move(target), engine);
}
// OK after `duration`, never earlier.
inline detail::SleepWait Sleep(Loop& loop, absl::Duration duration,
                               CancelToken token = CancelToken()) {
  return detail::SleepWait(loop, duration, std::move(token));
}
// OK in a later turn of the same loop: lets others run.
inline detail::YieldWait Yield(Loop& loop, CancelToken token = CancelToken()) {
  return detail::YieldWait(loop, std::move(token));
}
// Goes on on the thread of the loop that `target` names. Cancelled when that loop is gone: then the
// coroutine goes on where it was, or on the thread that destroyed the loop.
inline detail::SwitchWait SwitchTo(LoopHandle target) {
  return detail::SwitchWait(std::move(target));
}

// A listener whose streams are awaited: co_await queue->Accept(). Streams that nobody awaits yet
// queue; at `depth_max` (0 counts as 1) the listener pauses, and peers wait in the kernel's
// backlog.
class AcceptQueue {
 public:
  static constexpr size_t kDepthMax = 64;

  // As Listener::Listen.
  static absl::StatusOr<std::unique_ptr<AcceptQueue>> Listen(Loop& loop,
                                                             const SocketAddress& address,
                                                             const ListenOptions& options,
                                                             size_t depth_max = kDepthMax) {
    std::unique_ptr<AcceptQueue> queue(new AcceptQueue(loop, depth_max));
    absl::StatusOr<std::unique_ptr<Listener>> listener = Listener::Listen(
        loop, address, options,
        [link = Link(*queue)](StreamPtr stream) { link.queue()->OnAccept(std::move(stream)); });
    if (!listener.ok()) return listener.status();
    queue->listener_ = *std::move(listener);
    return queue;
  }

  ~AcceptQueue() {
    if (link_ != nullptr) link_->Cut();
  }
  AcceptQueue(const AcceptQueue&) = delete;
  AcceptQueue& operator=(const AcceptQueue&) = delete;

  // The next stream. FailedPrecondition when another Accept waits already, Cancelled when the loop
  // goes or has gone.
  detail::AcceptWait Accept(CancelToken token = CancelToken()) {
    return detail::AcceptWait(*this, std::move(token));
  }
  // Pause and Resume are the queue's own to call.
  Listener& listener() { return *listener_; }

 private:
  friend class detail::AcceptWait;

  // The listener's way here, which goes with the listener's callback: when the loop does, if the
  // queue is still there.
  class Link {
   public:
    explicit Link(AcceptQueue& queue) : queue_(&queue) { queue.link_ = this; }
    Link(Link&& other) noexcept : queue_(std::exchange(other.queue_, nullptr)) {
      if (queue_ != nullptr) queue_->link_ = this;
    }
    Link& operator=(Link&&) = delete;
    ~Link() {
      if (queue_ != nullptr) queue_->OnLoopGone();
    }
    AcceptQueue* queue() const { return queue_; }
    void Cut() { queue_ = nullptr; }

   private:
    AcceptQueue* queue_;
  };

  AcceptQueue(Loop& loop, size_t depth_max)
      : loop_(loop), depth_max_(depth_max == 0 ? 1 : depth_max) {}

  void OnAccept(StreamPtr stream) {
    if (waiter_.has_value()) {
      detail::Wait* wait = waiter_->Take();
      waiter_.reset();
      if (wait != nullptr) {
        static_cast<detail::AcceptWait*>(wait)->End(std::move(stream));
        return;
      }
    }
    streams_.push_back(std::move(stream));
    if (streams_.size() >= depth_max_) listener_->Pause();
  }
  void OnLoopGone() {
    link_ = nullptr;
    const std::deque<StreamPtr> unwanted = std::exchange(streams_, {});
    if (!waiter_.has_value()) return;
    // The coroutine may destroy this queue.
    const detail::Ticket last = *std::move(waiter_);
    waiter_.reset();
  }
  StreamPtr Pop() {
    if (streams_.size() == depth_max_) listener_->Resume();
    StreamPtr stream = std::move(streams_.front());
    streams_.pop_front();
    return stream;
  }

  Loop& loop_;
  size_t depth_max_;
  std::deque<StreamPtr> streams_;
  std::optional<detail::Ticket> waiter_;
  Link* link_ = nullptr;  // null once the loop has gone
  std::unique_ptr<Listener> listener_;
};

namespace detail {
inline AcceptWait::AcceptWait(AcceptQueue& queue, CancelToken token)
    : ResultWait(queue.loop_, std::move(token)), queue_(queue) {}
inline bool AcceptWait::await_ready() {
  if (Wait::await_ready()) return true;
  if (queue_.link_ == nullptr) {
    SetCancelled("the queue's loop has gone");
    return true;
  }
  if (!queue_.streams_.empty()) {
    SetResult(queue_.Pop());
    return true;
  }
  if (queue_.waiter_.has_value() && queue_.waiter_->active()) {
    SetResult(absl::FailedPreconditionError("another Accept waits on this queue"));
    return true;
  }
  return false;
}
inline void AcceptWait::await_suspend(std::coroutine_handle<> coroutine) {
  Suspend(coroutine);
  queue_.waiter_.emplace(*this);
}
}  // namespace detail

}  // namespace coro
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_CORO_H_
