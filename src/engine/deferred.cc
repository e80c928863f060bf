#include "engine/deferred.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void Deferred::Cancel() {
  previous_->next_ = next_;
  next_->previous_ = previous_;
  previous_ = next_ = this;
}

DeferredList::~DeferredList() {
  while (!empty()) head_.next_->Cancel();
}

void DeferredList::Insert(Deferred& node, Deferred& before) {
  if (node.pending()) return;
  node.previous_ = before.previous_;
  node.next_ = &before;
  before.previous_->next_ = &node;
  before.previous_ = &node;
}

void DeferredList::Push(Deferred& node) { Insert(node, head_); }

void DeferredList::PushSoon(Deferred& node) { Insert(node, mark_.pending() ? mark_ : head_); }

void DeferredList::Run(size_t max) {
  if (empty()) return;
  Push(mark_);
  for (size_t i = 0; i < max && head_.next_ != &mark_; ++i) {
    Deferred* const node = head_.next_;
    node->Cancel();
    node->run_(node);
  }
  mark_.Cancel();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
