// SealQueue: who may run a handshake now, and who waits, across loops; what is inside a
// SealLimiter.
//
// Thread-safe. A SealTicket is the right to run one handshake; dropping it, on any thread, passes
// it on to the next in the queue, on that one's loop. Both the queue's lengths are bounded (I9).
#ifndef PENSTOCK_SECURE_SEAL_QUEUE_H_
#define PENSTOCK_SECURE_SEAL_QUEUE_H_

#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/seal.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/functional/any_invocable.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class SealTicket {
 public:
  SealTicket() = default;
  explicit SealTicket(std::shared_ptr<SealQueue> queue) : queue_(std::move(queue)) {}
  SealTicket(SealTicket&& other) noexcept = default;
  SealTicket& operator=(SealTicket&& other) noexcept {
    Release();
    queue_ = std::move(other.queue_);
    return *this;
  }
  ~SealTicket() { Release(); }
  void Release();

 private:
  std::shared_ptr<SealQueue> queue_;
};

class SealQueue : public std::enable_shared_from_this<SealQueue> {
 public:
  enum class Answer : uint8_t { kAdmitted, kWaiting, kRefused };
  using Admit = absl::AnyInvocable<void(SealTicket) &&>;

  SealQueue(uint32_t running_max, uint32_t waiting_max)
      : running_max_(running_max), waiting_max_(waiting_max) {}

  // kAdmitted: `ticket` is set. kWaiting: `admit` runs on `loop` when it is `who`'s turn, unless it
  // is forgotten first. It is not run, and the next one's turn comes, when the loop is gone.
  Answer Enter(const void* who, LoopHandle loop, Admit admit, SealTicket& ticket);
  // No effect when `who` does not wait.
  void Forget(const void* who);
  SealLimiterStats stats() const;

 private:
  friend class SealTicket;

  struct Waiter {
    const void* who = nullptr;
    LoopHandle loop;
    Admit admit;
  };

  // Takes a ticket back. One caller at a time hands tickets out, and those of the others with its
  // own: however many wait for a loop that has gone, they are let go one after the other.
  void PassOn();

  const uint32_t running_max_;
  const uint32_t waiting_max_;
  mutable std::mutex mutex_;
  std::deque<Waiter> waiting_;
  uint32_t running_ = 0;
  uint32_t given_back_ = 0;  // tickets, not handed out again yet
  bool passing_on_ = false;
  uint64_t admitted_ = 0;
  uint64_t refused_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_SEAL_QUEUE_H_
