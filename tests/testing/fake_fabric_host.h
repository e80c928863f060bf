// FakeHost: the clock and the descriptors under a FakeFabric. One of three: VirtualHost has a clock
// of its own and no loop, SimHost is a SimWorld's, and LoopHost a real loop's, for tests of
// programs that have no other clock. One thread; outlives its fabric.
#ifndef PENSTOCK_TESTS_TESTING_FAKE_FABRIC_HOST_H_
#define PENSTOCK_TESTS_TESTING_FAKE_FABRIC_HOST_H_

#include <penstock/loop.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "testing/sim_world.h"

namespace penstock::testing {

class FakeHost {
 public:
  using Action = absl::AnyInvocable<void()>;

  virtual ~FakeHost() = default;
  virtual int64_t now_ns() const = 0;
  // Actions of one time keep their order.
  virtual void After(int64_t delay_ns, Action action) = 0;
  virtual int OpenFd() = 0;
  virtual void CloseFd(int fd) = 0;
  // Makes `fd` readable, and not readable any more.
  virtual void RaiseFd(int fd) = 0;
  virtual void ClearFd(int fd) = 0;
};

// What is to happen, in the order of its time.
class FakeAgenda {
 public:
  void Add(int64_t at_ns, FakeHost::Action action) {
    queue_.push({at_ns, sequence_++, std::move(action)});
  }
  bool empty() const { return queue_.empty(); }
  int64_t next_ns() const { return queue_.top().at_ns; }
  FakeHost::Action Pop() {
    FakeHost::Action action = std::move(queue_.top().action);
    queue_.pop();
    return action;
  }

 private:
  struct Item {
    int64_t at_ns;
    uint64_t sequence;
    mutable FakeHost::Action action;
    bool operator<(const Item& other) const {
      return at_ns != other.at_ns ? at_ns > other.at_ns : sequence > other.sequence;
    }
  };
  std::priority_queue<Item> queue_;
  uint64_t sequence_ = 0;
};

class VirtualHost final : public FakeHost {
 public:
  int64_t now_ns() const override { return now_ns_; }
  void After(int64_t delay_ns, Action action) override {
    agenda_.Add(now_ns_ + delay_ns, std::move(action));
  }
  int OpenFd() override;
  void CloseFd(int fd) override { readable_[static_cast<size_t>(fd)] = false; }
  void RaiseFd(int fd) override { readable_[static_cast<size_t>(fd)] = true; }
  void ClearFd(int fd) override { readable_[static_cast<size_t>(fd)] = false; }

  bool readable(int fd) const { return readable_[static_cast<size_t>(fd)]; }
  // Lets things happen until `until()` holds (true), or nothing is left, or `limit` has passed.
  bool Run(const std::function<bool()>& until, absl::Duration limit = absl::Hours(1));
  // Lets everything happen that does within `time`, which then has passed.
  void Advance(absl::Duration time);

 private:
  int64_t now_ns_ = 1'000'000'000;
  FakeAgenda agenda_;
  std::vector<bool> readable_;
};

class SimHost final : public FakeHost {
 public:
  explicit SimHost(SimWorld& world) : world_(world) {}
  int64_t now_ns() const override { return world_.now_ns(); }
  void After(int64_t delay_ns, Action action) override {
    world_.After(absl::Nanoseconds(delay_ns), std::move(action));
  }
  int OpenFd() override { return world_.OpenFd(); }
  void CloseFd(int fd) override { world_.CloseFd(fd); }
  void RaiseFd(int fd) override { world_.RaiseFd(fd, kSimIn); }
  void ClearFd(int) override {}  // a simulated descriptor is an edge

 private:
  SimWorld& world_;
};

// What is due within a millisecond happens in the loop's next turn, in order. Must be destroyed, or
// stopped, before the loop.
class LoopHost final : public FakeHost {
 public:
  explicit LoopHost(Loop& loop) : loop_(loop), timer_(loop) {}
  int64_t now_ns() const override;
  void After(int64_t delay_ns, Action action) override;
  int OpenFd() override;
  void CloseFd(int fd) override;
  void RaiseFd(int fd) override;
  void ClearFd(int fd) override;
  // Nothing happens any more.
  void Stop() {
    posted_ = true;
    timer_.Cancel();
  }

 private:
  void Plan();
  void RunDue();

  Loop& loop_;
  Timer timer_;
  FakeAgenda agenda_;
  int64_t running_ns_ = 0;  // when what runs was due: time does not go back for it
  bool posted_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_FAKE_FABRIC_HOST_H_
