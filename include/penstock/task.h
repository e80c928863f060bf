// Task: a coroutine as a value that owns it.
//
// A task is lazy and has one owner; it may await other tasks to any depth without growing the
// stack. It knows no loop: what it waits on (see penstock/coro.h) says which thread runs it.
// Nothing throws (an exception out of a coroutine ends the program), and calling a coroutine
// allocates its frame.
#ifndef PENSTOCK_TASK_H_
#define PENSTOCK_TASK_H_

#include <penstock/export.h>

#include <atomic>
#include <coroutine>
#include <cstdlib>
#include <exception>
#include <optional>
#include <thread>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace coro {

template <typename T = void>
class Task;

namespace detail {

class PromiseBase {
 public:
  // Hands the thread to whoever awaits the task, once that one has suspended.
  class FinalAwaiter {
   public:
    FinalAwaiter() {}  // NOLINT: declared, see penstock/coro.h on g++ 12.2
    bool await_ready() const noexcept { return false; }
    template <typename Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) const noexcept {
      PromiseBase& promise = self.promise();
      if (promise.detached_) {
        self.destroy();
        return std::noop_coroutine();
      }
      return promise.GoesOn() ? promise.awaiter_ : std::noop_coroutine();
    }
    void await_resume() const noexcept {}
  };

  std::suspend_always initial_suspend() const noexcept { return {}; }
  FinalAwaiter final_suspend() const noexcept { return FinalAwaiter(); }
  [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }

  // The one start of the task; a second is a mistake that cannot be gone on from.
  void Begin(std::coroutine_handle<> awaiter) {
    if (std::exchange(begun_, true)) std::abort();
    awaiter_ = awaiter;
    thread_ = std::this_thread::get_id();
  }
  void Detach() { detached_ = true; }
  // The task calls it when it has ended, its awaiter when it has suspended. True for the later of
  // the two, which goes on.
  bool Meet() { return met_.exchange(true, std::memory_order_acq_rel); }
  // Whether the task, which has ended, resumes its awaiter. That one goes on where the task ended:
  // on another thread than it began on (SwitchTo) once it has suspended on that one, which is the
  // matter of an instant.
  bool GoesOn() {
    if (thread_ == std::this_thread::get_id()) return Meet();
    while (!met_.load(std::memory_order_acquire)) std::this_thread::yield();
    return true;
  }

 private:
  std::thread::id thread_;  // where it began
  std::coroutine_handle<> awaiter_ = std::noop_coroutine();
  std::atomic<bool> met_ = false;
  bool begun_ = false;
  bool detached_ = false;
};

template <typename T>
class Promise : public PromiseBase {
 public:
  Task<T> get_return_object();
  template <typename U>
  void return_value(U&& value) {
    value_.emplace(std::forward<U>(value));
  }
  T Take() { return *std::move(value_); }

 private:
  std::optional<T> value_;
};

template <>
class Promise<void> : public PromiseBase {
 public:
  Task<void> get_return_object();
  void return_void() const noexcept {}
  void Take() const noexcept {}
};

}  // namespace detail

// A coroutine that returns T. Lazy: it runs when it is awaited (once), started or spawned. Owns its
// frame; move-only.
template <typename T>
class [[nodiscard]] Task {
 public:
  using promise_type = detail::Promise<T>;

  Task(Task&& other) noexcept : frame_(std::exchange(other.frame_, nullptr)) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      if (frame_) frame_.destroy();
      frame_ = std::exchange(other.frame_, nullptr);
    }
    return *this;
  }
  ~Task() {
    if (frame_) frame_.destroy();
  }

  // Runs it up to its first wait, inside this call. It goes on by itself for as long as this object
  // lives: the way to own a coroutine that nobody awaits.
  void Start() {
    frame_.promise().Begin(std::noop_coroutine());
    frame_.promise().Meet();  // nobody waits for it
    frame_.resume();
  }
  bool done() const { return frame_.done(); }

  class Awaiter {
   public:
    explicit Awaiter(std::coroutine_handle<promise_type> frame) : frame_(frame) {}
    bool await_ready() const noexcept { return false; }
    // Never inlined, because another thread may destroy the awaiter's frame before it returns.
    [[gnu::noinline]] bool await_suspend(std::coroutine_handle<> awaiter) const {
      promise_type& promise = frame_.promise();
      promise.Begin(awaiter);
      frame_.resume();
      return !promise.Meet();
    }
    T await_resume() const { return frame_.promise().Take(); }

   private:
    std::coroutine_handle<promise_type> frame_;
  };
  Awaiter operator co_await() && { return Awaiter(frame_); }

 private:
  friend promise_type;
  template <typename Target>
  friend void Spawn(Target&& target, Task<void> task);
  explicit Task(std::coroutine_handle<promise_type> frame) : frame_(frame) {}

  std::coroutine_handle<promise_type> frame_;
};

namespace detail {
template <typename T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise>::from_promise(*this));
}
}  // namespace detail

// Runs `task` on the loop's thread from a later turn on, and lets it own itself. `target` is a Loop
// or a LoopHandle; from any thread. The task is destroyed when the loop goes before it begins.
template <typename Target>
void Spawn(Target&& target, Task<void> task) {
  target.Post([task = std::move(task)]() mutable {
    auto frame = std::exchange(task.frame_, nullptr);
    frame.promise().Begin(std::noop_coroutine());
    frame.promise().Detach();
    frame.resume();
  });
}

}  // namespace coro
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TASK_H_
