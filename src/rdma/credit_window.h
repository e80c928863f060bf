// CreditWindow: how many pieces of messages may be sent, and which have arrived; both directions of
// one endpoint.
//
// Sans-I/O, a plain value, single thread. All counts are cumulative, modulo 2^32, so that a header
// that is lost with its piece costs nothing, and what a header says is judged before it is
// believed: credits never go back and never exceed what the peer has room for. Messages without
// pieces need no credit, so two sides without one can always tell each other (no deadlock).
#ifndef PENSTOCK_RDMA_CREDIT_WINDOW_H_
#define PENSTOCK_RDMA_CREDIT_WINDOW_H_

#include <penstock/export.h>

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class CreditWindow {
 public:
  // Most pieces in flight one way: acknowledgements have 16 bits.
  static constexpr uint32_t kDepthMax = 32 * 1024;

  // `depth`, to kDepthMax: the pieces that this side has room for.
  explicit CreditWindow(uint32_t depth) : depth_(depth), granted_(depth), told_granted_(depth) {}
  uint32_t depth() const { return depth_; }
  // The endpoint is open: the peer has room for so many.
  void Open(uint32_t peer_depth);

  // --- Sending ---
  // Pieces that may be sent now. A peer may have more room than its acknowledgements can count: the
  // rest of it waits for them.
  uint32_t available() const {
    return std::min(limit_ - sent_, kDepthMax - (sent_ - acknowledged_));
  }
  // Pieces that the peer lets this side send, since the endpoint opened.
  uint32_t limit() const { return limit_; }
  // The number of the next piece; only while available() > 0.
  uint32_t TakeNext() { return ++sent_; }
  uint32_t sent() const { return sent_; }
  // Pieces that the peer has.
  uint32_t acknowledged() const { return acknowledged_; }
  // What the header of any message of the peer says. InvalidArgument when it cannot be.
  absl::Status OnHeader(uint32_t credits, uint16_t received);
  // The same for credits alone, which may be for pieces that no header has acknowledged yet.
  absl::Status OnCredits(uint32_t credits);

  // --- Receiving ---
  // A piece has come. InvalidArgument when it is not the next one or goes beyond the credits.
  absl::Status OnPiece(uint32_t sequence);
  // There is room for so many more.
  void Release(uint32_t pieces) { granted_ += pieces; }
  uint32_t received() const { return received_; }
  uint32_t granted() const { return granted_; }
  // Something is to be told that no message has told: what has come, or half a window of room.
  bool NewsDue() const {
    return untold_ || received_ != told_received_ || granted_ - told_granted_ >= (depth_ + 1) / 2;
  }
  // What was told may not have arrived: it is to be told once more.
  void TellAgain() { untold_ = true; }
  // A header with received() and granted() is on its way.
  void OnTold() {
    untold_ = false;
    told_received_ = received_;
    told_granted_ = granted_;
  }

 private:
  bool MayGrant(uint32_t credits) const;
  // Why they cannot be.
  [[gnu::cold]] absl::Status BadHeader(uint32_t credits, uint16_t news) const;
  [[gnu::cold]] absl::Status BadPiece(uint32_t sequence) const;

  uint32_t depth_;
  uint32_t peer_depth_ = 0;
  uint32_t limit_ = 0;
  uint32_t sent_ = 0;
  uint32_t acknowledged_ = 0;
  uint32_t received_ = 0;
  uint32_t granted_;
  uint32_t told_received_ = 0;
  uint32_t told_granted_;
  bool untold_ = false;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_CREDIT_WINDOW_H_
