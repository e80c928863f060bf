// WorkQueue: the operations of one endpoint that wait to be posted, in order and bounded (I9), each
// with its own time limit.
//
// Sans-I/O, single thread. Waiting costs nothing: it is only looked at when something has changed
// or when next_deadline_ns() has come. A Work moves from list to list by its node, so an operation
// is one allocation from its start to its end.
#ifndef PENSTOCK_RDMA_WORK_QUEUE_H_
#define PENSTOCK_RDMA_WORK_QUEUE_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/rdma.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <list>
#include <optional>

#include "absl/status/status.h"
#include "rdma/message_header.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct Arrival;  // endpoint_core.h

struct Work {
  // kFetch: a read of what the peer has offered; nobody has started it.
  enum class Kind : uint8_t { kSend, kWrite, kRead, kFetch };
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  Kind kind = Kind::kSend;
  bool posted = false;     // some of it
  bool on_region = false;  // counted as posted to `region`
  bool messaged = false;   // a write that the peer's loop carries out
  bool in_pieces = false;  // a message that cannot be offered
  bool offered = false;    // a message, some of it
  uint64_t size = 0;       // of the whole operation, in bytes
  BufferChain data;        // still to be sent; of a read: what has come
  // kWrite, kRead, kFetch.
  RdmaRemoteRegion region;
  uint64_t offset = 0;
  // kWrite: is sent afterwards, when this turns into a kSend.
  std::optional<BufferChain> then;
  // kSend: of its last piece. Others: its own.
  uint32_t number = 0;
  // kSend: offers begun when its last piece was posted.
  uint32_t offers = 0;
  // kFetch.
  OfferPart part;
  Arrival* into = nullptr;
  int64_t deadline_ns = kNever;
  RdmaEndpoint::DoneCallback done;
  RdmaEndpoint::ReadCallback read_done;
  absl::Status status;  // once it has ended
};

using WorkList = std::list<Work>;

class WorkQueue {
 public:
  WorkQueue(uint32_t operations_max, uint64_t bytes_max)
      : operations_max_(operations_max), bytes_max_(bytes_max) {}

  bool empty() const { return works_.empty(); }
  size_t size() const { return works_.size(); }
  uint64_t bytes() const { return bytes_; }

  // ResourceExhausted when one of `bytes` does not fit.
  absl::Status Admit(uint64_t bytes) const;
  // The one element of `work`, at the end.
  void Push(WorkList work);
  // Reads that were posted and must be posted again, in front.
  void Return(WorkList reads) { works_.splice(works_.begin(), reads); }
  Work& front() { return works_.front(); }
  // The first, as a list of one. Its bytes count no more.
  WorkList TakeFront();
  // So many bytes of the first have been posted.
  void OnPosted(uint64_t bytes) { bytes_ -= bytes; }
  // Those that are not posted and due; those of which some is posted stay.
  WorkList TakeExpired(int64_t now_ns);
  // Those not posted that want a region which is gone.
  template <class Gone>
  WorkList TakeIf(Gone gone) {
    WorkList taken;
    for (auto at = works_.begin(); at != works_.end();) {
      const auto next = std::next(at);
      if (!at->posted && gone(*at)) {
        bytes_ -= Bytes(*at);
        taken.splice(taken.end(), works_, at);
      }
      at = next;
    }
    return taken;
  }
  WorkList TakeAll();
  // Not later than when TakeExpired finds something; Work::kNever.
  int64_t next_deadline_ns() const { return next_deadline_ns_; }

 private:
  // What it still holds.
  static uint64_t Bytes(const Work& work) {
    const uint64_t data = work.kind == Work::Kind::kRead ? 0 : work.data.size();
    return data + (work.then.has_value() ? work.then->size() : 0);
  }

  uint32_t operations_max_;
  uint64_t bytes_max_;
  uint64_t bytes_ = 0;
  int64_t next_deadline_ns_ = Work::kNever;
  WorkList works_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_WORK_QUEUE_H_
