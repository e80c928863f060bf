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
// destroyed while it runs, nor while it waits in SwitchTo. One that waits in Sleep must be
// cancelled or destroyed before its loop is, as a Timer must.
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
#include <penstock/export.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/stream.h>
#include <penstock/task.h>

#include <coroutine>
#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE
namespace coro {

class AcceptQueue;

namespace detail {

class Wait;

// Goes into the callback of an operation and leads back to the wait, for as long as both live: each
// end tells the other when it moves or goes. A ticket that is destroyed unused ends its wait.
class Ticket {
 public:
  explicit Ticket(Wait& wait);
  Ticket(Ticket&& other) noexcept;
  Ticket& operator=(Ticket&&) = delete;
  ~Ticket();
  // The wait, once; null when it is gone.
  Wait* Take();
  bool active() const { return wait_ != nullptr; }

 private:
  friend class Wait;
  Wait* wait_;
};

class Wait : private CancelLink {
 public:
  bool await_ready() {
    if (!token_.cancelled()) return false;
    SetCancelled("cancelled before it began");
    return true;
  }

 protected:
  Wait(Loop& loop, CancelToken token) : loop_(loop), token_(std::move(token)) {}
  ~Wait() { Forget(); }

  void Suspend(std::coroutine_handle<> coroutine) {
    coroutine_ = coroutine;
    if (CancelState* state = CancelTokenAccess::State(token_)) state->Add(*this);
  }
  // Makes the ticket mean nothing. True when the operation still had it.
  bool Forget() {
    if (ticket_ == nullptr) return false;
    std::exchange(ticket_, nullptr)->wait_ = nullptr;
    return !lost_;
  }
  void Resume() {
    Unlink();
    coroutine_.resume();
  }
  // Ends the wait with Cancelled in a later turn.
  void Lose(const char* why) {
    lost_ = true;
    Unlink();
    Forget();
    SetCancelled(why);
    loop_.Post([ticket = Ticket(*this)]() mutable {
      if (Wait* wait = ticket.Take()) wait->Resume();
    });
  }
  void OnCancel() override { Lose("cancelled"); }
  virtual void SetCancelled(const char* why) = 0;

  Loop& loop() const { return loop_; }

 private:
  friend class Ticket;
  void OnTicketDestroyed() {
    // The posted one is destroyed when the loop goes: there is no later turn.
    lost_ ? Resume() : Lose("what the coroutine waited on was destroyed");
  }

  Loop& loop_;
  CancelToken token_;
  std::coroutine_handle<> coroutine_;
  Ticket* ticket_ = nullptr;
  bool lost_ = false;
};

inline Ticket::Ticket(Wait& wait) : wait_(&wait) { wait.ticket_ = this; }
inline Ticket::Ticket(Ticket&& other) noexcept : wait_(std::exchange(other.wait_, nullptr)) {
  if (wait_ != nullptr) wait_->ticket_ = this;
}
inline Ticket::~Ticket() {
  if (Wait* wait = Take()) wait->OnTicketDestroyed();
}
inline Wait* Ticket::Take() {
  if (wait_ != nullptr) wait_->ticket_ = nullptr;
  return std::exchange(wait_, nullptr);
}

// A wait for a callback that is given one `Result`: a Status or a StatusOr.
template <typename Result>
class ResultWait : public Wait {
 public:
  Result await_resume() { return std::move(result_); }

 protected:
  using Wait::Wait;
  ~ResultWait() = default;

  auto Callback() {
    return [ticket = Ticket(*this)](Result result) mutable {
      if (Wait* wait = ticket.Take()) static_cast<ResultWait*>(wait)->End(std::move(result));
    };
  }
  void End(Result result) {
    result_ = std::move(result);
    this->Resume();
  }
  void SetCancelled(const char* why) override { result_ = absl::CancelledError(why); }
  void SetResult(Result result) { result_ = std::move(result); }

 private:
  Result result_;
};

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

}  // namespace detail

// The operations of Stream, Connect and Timer. `token` can end each wait with Cancelled; what that
// means for the operation is said below. A token that is cancelled already ends the wait at once,
// and the operation is not begun.

// As Stream::ReadReady. Cancelled: no byte is lost.
inline detail::ReadWait Read(Stream& stream, CancelToken token = CancelToken()) {
  return detail::ReadWait(stream, std::move(token));
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
// queue; at `depth_max` the listener pauses, and peers wait in the kernel's backlog. (Streams that
// the kernel had accepted by then still join the queue.)
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
        [raw = queue.get()](StreamPtr stream) { raw->OnAccept(std::move(stream)); });
    if (!listener.ok()) return listener.status();
    queue->listener_ = *std::move(listener);
    return queue;
  }

  // The next stream. FailedPrecondition when another Accept waits already.
  detail::AcceptWait Accept(CancelToken token = CancelToken()) {
    return detail::AcceptWait(*this, std::move(token));
  }
  // Pause and Resume are the queue's own to call.
  Listener& listener() { return *listener_; }

 private:
  friend class detail::AcceptWait;
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
  std::unique_ptr<Listener> listener_;
};

namespace detail {
inline AcceptWait::AcceptWait(AcceptQueue& queue, CancelToken token)
    : ResultWait(queue.loop_, std::move(token)), queue_(queue) {}
inline bool AcceptWait::await_ready() {
  if (Wait::await_ready()) return true;
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
