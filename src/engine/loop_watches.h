// What a LoopCore itself is woken by. Owned by the loop; its thread.
#ifndef PENSTOCK_ENGINE_LOOP_WATCHES_H_
#define PENSTOCK_ENGINE_LOOP_WATCHES_H_

#include <penstock/export.h>

#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Wakes the loop when another thread has posted. The eventfd is not read while an engine watches
// it: each write is a new edge, and its counter takes 2^64 - 2 of them (eventfd(2)).
class LoopCore::WakeWatch : public Watch {
 public:
  void OnReadable() override {}
};

// Wakes the loop, and makes fd() readable, when it must run again. Not read while an engine watches
// it: each expiry is a new edge, and setting it anew clears the old one (timerfd_create(2)).
class LoopCore::TimerWatch : public Watch {
 public:
  explicit TimerWatch(LoopCore& core) : core_(core) {}
  void OnReadable() override {
    core_.alarm_ = true;
    core_.timer_at_ns_ = 0;
  }

 private:
  LoopCore& core_;
};

// Runs the secondary engine when the primary sees its descriptor readable.
class LoopCore::EngineWatch : public Watch {
 public:
  explicit EngineWatch(LoopCore& core) : core_(core) {}
  void OnReadable() override { core_.secondary_ready_ = true; }

 private:
  LoopCore& core_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_LOOP_WATCHES_H_
