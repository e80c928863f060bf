#include "testing/fake_fabric_host.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/sys.h"

namespace penstock::testing {

int VirtualHost::OpenFd() {
  readable_.push_back(false);
  return static_cast<int>(readable_.size()) - 1;
}

bool VirtualHost::Run(const std::function<bool()>& until, absl::Duration limit) {
  const int64_t end_ns = now_ns_ + absl::ToInt64Nanoseconds(limit);
  while (!until()) {
    if (agenda_.empty() || agenda_.next_ns() > end_ns) return false;
    now_ns_ = std::max(now_ns_, agenda_.next_ns());
    agenda_.Pop()();
  }
  return true;
}

void VirtualHost::Advance(absl::Duration time) {
  const int64_t end_ns = now_ns_ + absl::ToInt64Nanoseconds(time);
  Run([] { return false; }, time);
  now_ns_ = end_ns;
}

int64_t LoopHost::now_ns() const { return std::max(internal::RealSys().Now(), running_ns_); }

void LoopHost::After(int64_t delay_ns, Action action) {
  agenda_.Add(now_ns() + delay_ns, std::move(action));
  Plan();
}

void LoopHost::Plan() {
  if (posted_ || agenda_.empty()) return;
  const int64_t wait_ns = agenda_.next_ns() - now_ns();
  if (wait_ns > 1'000'000) {
    timer_.Arm(absl::Nanoseconds(wait_ns), [this] { RunDue(); });
    return;
  }
  posted_ = true;
  loop_.Post([this, alive = std::weak_ptr<bool>(alive_)] {
    if (alive.expired()) return;
    posted_ = false;
    RunDue();
  });
}

void LoopHost::RunDue() {
  // No more than what is there now: an action may add others for ever.
  const int64_t until_ns = now_ns() + 1'000'000;
  const std::weak_ptr<bool> alive = alive_;
  for (int count = 0; count < 1000 && !agenda_.empty() && agenda_.next_ns() <= until_ns; ++count) {
    running_ns_ = agenda_.next_ns();
    agenda_.Pop()();
    if (alive.expired()) return;
  }
  Plan();
}

int LoopHost::OpenFd() {
  const int fd = internal::RealSys().EventFd();
  PENSTOCK_CHECK(fd >= 0, "no descriptor for the fake fabric");
  return fd;
}

void LoopHost::CloseFd(int fd) { internal::RealSys().Close(fd); }

void LoopHost::RaiseFd(int fd) {
  const uint64_t one = 1;
  internal::RealSys().Write(fd, &one, sizeof(one));
}

void LoopHost::ClearFd(int fd) {
  uint64_t count;
  internal::RealSys().Read(fd, &count, sizeof(count));
}

}  // namespace penstock::testing
