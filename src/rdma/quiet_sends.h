// QuietSends: messages that are out, and of whose end nobody is to be told: they are counted when
// the peer has them, and nothing else is known of them.
//
// A plain value, sans-I/O, single thread. One that is out alone takes no memory of its own.
#ifndef PENSTOCK_RDMA_QUIET_SENDS_H_
#define PENSTOCK_RDMA_QUIET_SENDS_H_

#include <penstock/export.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/fifo.h"
#include "rdma/message_header.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class QuietSends {
 public:
  struct Ended {
    uint64_t messages = 0;
    uint64_t bytes = 0;
  };

  bool empty() const { return !any_; }
  size_t size() const { return (any_ ? 1 : 0) + rest_.size(); }

  // `number`: of its piece, as CreditWindow counts, later than those of all before it.
  void Push(uint32_t number, uint64_t bytes) {
    const Send send{number, bytes};
    if (std::exchange(any_, true)) return rest_.push(send);
    first_ = send;
  }
  // The peer has every piece up to this one: what has ended by that.
  Ended Take(uint32_t acknowledged) {
    Ended ended;
    while (any_ && SequenceReached(first_.number, acknowledged)) {
      ++ended.messages;
      ended.bytes += first_.bytes;
      any_ = !rest_.empty();
      if (any_) first_ = rest_.pop();
    }
    return ended;
  }

 private:
  struct Send {
    uint32_t number = 0;
    uint64_t bytes = 0;
  };

  bool any_ = false;
  Send first_;
  Fifo<Send> rest_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_QUIET_SENDS_H_
