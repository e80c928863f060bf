// Deferred: something a loop shall do once, in a ready step: of a later turn, or the one that runs.
// For work that must not be done inside the call that asked for it (I3), or is done best together.
//
// The node is embedded in its owner and belongs to one loop's thread; deferring it allocates
// nothing. Destroying it takes it off the list, so an owner may go at any time. DeferredList is the
// loop's side: it runs a bounded number a turn (I9), in the order they were deferred, and forgets
// its nodes, unrun, when it goes first.
#ifndef PENSTOCK_ENGINE_DEFERRED_H_
#define PENSTOCK_ENGINE_DEFERRED_H_

#include <penstock/export.h>

#include <cstddef>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Embed or derive. LoopCore::Defer takes it.
class Deferred {
 public:
  // Gets the node back, which is no longer pending then: it may defer it again, or destroy it or
  // any other.
  using Run = void (*)(Deferred* node);
  explicit Deferred(Run run) : run_(run) {}
  ~Deferred() { Cancel(); }
  Deferred(const Deferred&) = delete;
  Deferred& operator=(const Deferred&) = delete;

  bool pending() const { return next_ != this; }
  // No effect when it is not pending.
  void Cancel();

 private:
  friend class DeferredList;

  Run run_;
  Deferred* previous_ = this;
  Deferred* next_ = this;
};

class DeferredList {
 public:
  DeferredList() = default;
  ~DeferredList();
  DeferredList(const DeferredList&) = delete;
  DeferredList& operator=(const DeferredList&) = delete;

  // Inside Run: of those that are still to run, now or in the next one.
  bool empty() const {
    const Deferred* const first = head_.next_ == &mark_ ? mark_.next_ : head_.next_;
    return first == &head_;
  }
  // No effect when it is pending already, on this list or another.
  void Push(Deferred& node);
  // The same, but inside Run it is one of those that run now, if `max` allows, or else first next.
  void PushSoon(Deferred& node);
  // Runs what was there when it began, at most `max` nodes; what they Push waits.
  void Run(size_t max);

 private:
  static void Insert(Deferred& node, Deferred& before);

  Deferred head_{nullptr};
  // While running: where those end that were there. Any of them may take others off, but not this.
  Deferred mark_{nullptr};
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_DEFERRED_H_
