// CancelSource and CancelToken: how whoever started a coroutine ends its waits.
//
// A token is given to each operation that may be ended; see penstock/coro.h. All of it belongs to
// one loop's thread: the ring of waits is not locked.
#ifndef PENSTOCK_CANCEL_H_
#define PENSTOCK_CANCEL_H_

#include <penstock/export.h>

#include <memory>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace coro {

namespace detail {

// A link of the ring of waits that one CancelSource can end.
class CancelLink {
 public:
  CancelLink(const CancelLink&) = delete;
  CancelLink& operator=(const CancelLink&) = delete;

  void Unlink() {
    previous_->next_ = next_;
    next_->previous_ = previous_;
    previous_ = next_ = this;
  }

 protected:
  CancelLink() = default;
  ~CancelLink() { Unlink(); }
  virtual void OnCancel() {}

 private:
  friend class CancelState;
  CancelLink* previous_ = this;
  CancelLink* next_ = this;
};

class CancelState final : private CancelLink {
 public:
  bool cancelled() const { return cancelled_; }
  void Add(CancelLink& link) {
    link.previous_ = previous_;
    link.next_ = this;
    previous_->next_ = &link;
    previous_ = &link;
  }
  void Cancel() {
    cancelled_ = true;
    while (next_ != this) {
      CancelLink* link = next_;
      link->Unlink();
      link->OnCancel();
    }
  }

 private:
  bool cancelled_ = false;
};

}  // namespace detail

// Names a CancelSource to the operations it may end. Copyable; the default one is never cancelled.
class CancelToken {
 public:
  CancelToken() {}  // NOLINT: declared, see the top of this file
  bool cancelled() const { return state_ != nullptr && state_->cancelled(); }

 private:
  friend class CancelSource;
  friend class CancelTokenAccess;
  explicit CancelToken(std::shared_ptr<detail::CancelState> state) : state_(std::move(state)) {}
  std::shared_ptr<detail::CancelState> state_;
};

// Ends the waits that were given its token, with Cancelled, and every later one at once. Dropping
// it cancels nothing.
class CancelSource {
 public:
  CancelSource() : state_(std::make_shared<detail::CancelState>()) {}
  CancelToken token() const { return CancelToken(state_); }
  void Cancel() {
    const std::shared_ptr<detail::CancelState> state = state_;  // a wait may own this source
    state->Cancel();
  }

 private:
  std::shared_ptr<detail::CancelState> state_;
};

// The waits' way into a token.
class CancelTokenAccess {
 public:
  static detail::CancelState* State(const CancelToken& token) { return token.state_.get(); }
};

}  // namespace coro
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_CANCEL_H_
