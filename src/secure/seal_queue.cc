#include "secure/seal_queue.h"

#include <algorithm>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void SealTicket::Release() {
  if (const std::shared_ptr<SealQueue> queue = std::move(queue_)) queue->PassOn();
}

SealQueue::Answer SealQueue::Enter(const void* who, LoopHandle loop, Admit admit,
                                   SealTicket& ticket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (running_ < running_max_) {
    ++running_;
    ++admitted_;
    ticket = SealTicket(shared_from_this());
    return Answer::kAdmitted;
  }
  if (waiting_.size() < waiting_max_) {
    waiting_.push_back({who, std::move(loop), std::move(admit)});
    return Answer::kWaiting;
  }
  ++refused_;
  return Answer::kRefused;
}

void SealQueue::Forget(const void* who) {
  Waiter forgotten;  // destroyed without the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto at = std::ranges::find(waiting_, who, &Waiter::who);
  if (at == waiting_.end()) return;
  forgotten = std::move(*at);
  waiting_.erase(at);
}

void SealQueue::PassOn() {
  std::unique_lock<std::mutex> lock(mutex_);
  ++given_back_;
  if (passing_on_) return;
  passing_on_ = true;
  while (given_back_ > 0) {
    --given_back_;
    if (waiting_.empty()) {
      --running_;
      continue;
    }
    Waiter next = std::move(waiting_.front());
    waiting_.pop_front();
    ++admitted_;
    lock.unlock();
    // A ticket that nobody takes up, because the loop has gone, comes back here inside this call.
    next.loop.Post(
        [admit = std::move(next.admit), ticket = SealTicket(shared_from_this())]() mutable {
          std::move(admit)(std::move(ticket));
        });
    lock.lock();
  }
  passing_on_ = false;
}

SealLimiterStats SealQueue::stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return {running_, static_cast<uint32_t>(waiting_.size()), admitted_, refused_};
}

}  // namespace internal

SealLimiter::SealLimiter(uint32_t running_max, uint32_t waiting_max)
    : queue_(
          std::make_shared<internal::SealQueue>(std::max<uint32_t>(running_max, 1), waiting_max)) {}

SealLimiter::~SealLimiter() = default;

SealLimiterStats SealLimiter::stats() const { return queue_->stats(); }

PENSTOCK_END_NAMESPACE
