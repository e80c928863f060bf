// What the awaitables of coro.h and coro_seal.h are made of: a wait, the ticket by which a callback
// finds it, and a wait for a callback that is given one result. Include those headers, not this
// one.
//
// A wait lives in the frame of the coroutine that awaits it and belongs to its loop's thread; the
// ticket belongs to the callback, and each end tells the other when it goes.
#ifndef PENSTOCK_CORO_WAIT_H_
#define PENSTOCK_CORO_WAIT_H_

#include <penstock/cancel.h>
#include <penstock/export.h>
#include <penstock/loop.h>

#include <coroutine>
#include <utility>

#include "absl/status/status.h"

PENSTOCK_BEGIN_NAMESPACE
namespace coro {
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

}  // namespace detail
}  // namespace coro
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_CORO_WAIT_H_
