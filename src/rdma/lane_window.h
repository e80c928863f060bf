// LaneWindow: what one side has sent by its lane and the peer has not said it has, and how much of
// the peer's has come; both directions of one endpoint.
//
// Every message of a lane takes one receive of the peer's, whatever it is, so all are counted
// alike, in the order they were sent, and each header tells the peer how many have come (in
// `received`, which over a stream counts pieces of messages alone). Unacknowledged messages never
// exceed the receives that the peer has granted. The last few are kept for messages that say
// nothing but this (type kCredit), so two sides that have nothing left to send with can always tell
// each other.
//
// It keeps what is unacknowledged: when the lane fails, the two sides tell each other how many
// messages they have, and what follows is sent again over the stream, so nothing is lost and
// nothing comes twice, whatever the device may have done with it. Writes that the device makes are
// kept in their places among the messages until it has made them; one of which that is not known is
// made again.
//
// Sans-I/O; single thread.
#ifndef PENSTOCK_RDMA_LANE_WINDOW_H_
#define PENSTOCK_RDMA_LANE_WINDOW_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fifo.h"
#include "rdma/message_header.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class LaneWindow {
 public:
  // Receives that each side grants beyond the pieces that it has told it has room for.
  static constexpr uint32_t kSpare = 8;

  struct Sent {
    MessageHeader header;
    std::optional<AccessPrefix> access;
    BufferChain payload;
  };

  // A write that the device makes.
  struct Write {
    AccessPrefix access;  // of what is left of it
    uint32_t number = 0;
    BufferChain payload;
    uint64_t after = 0;  // messages had been sent before it
  };

  // Receives that an endpoint keeps while nothing comes: two messages are as fast as ever.
  static constexpr uint32_t kIdleGrant = kSpare + 2;

  // The lane is up: the depths of terms of this side and of the peer.
  void Open(uint32_t depth, uint32_t peer_depth);
  // Receives that the peer may use by now.
  uint32_t granted() const { return granted_; }
  // The peer has consented to fewer, or will be told of more.
  void SetGranted(uint32_t receives);
  // The peer grants so many by now. The number that holds from then on: a smaller one only if no
  // more are on the way. InvalidArgument for less than kIdleGrant, or more than it began with.
  absl::StatusOr<uint32_t> SetLimit(uint32_t receives);
  uint32_t limit() const { return limit_; }

  // --- Sending ---
  // Room for anything; room for a message of type kCredit.
  bool HasRoom() const { return sent_.size() + kReserved < most_; }
  bool HasCreditRoom() const { return sent_.size() < most_; }
  // In the order they go out. `payload` may have to be sent again: all of it, or a share.
  void OnSent(const MessageHeader& header, const std::optional<AccessPrefix>& access,
              BufferChain payload);
  // Windows onto the same bytes.
  static BufferChain ShareOf(BufferChain& chain);
  // The payload is shared with the caller's.
  void OnWriteSent(const AccessPrefix& access, uint32_t number, BufferChain& payload);
  // Of the messages that were sent, the last so many wait on this side: the peer can acknowledge
  // none of them, so that those that wait are bounded by the receives it has granted (I9).
  void SetHeld(size_t messages) { held_ = messages; }
  // The oldest is in the peer's memory.
  void OnWriteDone() { writes_.pop(); }
  // A message that has come by the lane. Afterwards `header` counts pieces, as over a stream.
  // InvalidArgument when the peer says what cannot be, or sends more than it may.
  absl::Status OnHeader(MessageHeader& header);

  // Pieces of messages that the peer has, modulo 2^16.
  uint16_t acknowledged() const { return static_cast<uint16_t>(pieces_acknowledged_); }

  // --- Receiving ---
  // A header with received() is on its way.
  void OnTold() { told_ = received_; }
  // Messages of the peer that have come.
  uint64_t received() const { return received_; }
  // That have come and that no header has told of.
  uint64_t untold() const { return received_ - told_; }
  // So many are untold that the peer may need to hear of it.
  bool NewsDue() const { return untold() >= news_; }

  // --- The end of the lane ---
  // The peer has so many and takes no more by the lane. InvalidArgument when that cannot be.
  absl::Status OnFallback(uint64_t received);
  bool empty() const { return sent_.empty(); }
  // A write that must be in the peer's memory, as the peer has a later message. Before the others.
  std::optional<Write> TakeDoneWrite();
  // Then what the peer may not have, in order: a write if it comes before the next message.
  std::optional<Write> TakeWrite();
  std::optional<Sent> TakeMessage();

 private:
  static constexpr uint32_t kReserved = kSpare / 2;

  void Limit(uint32_t receives);
  uint64_t on_the_way() const { return sent_.size() - held_; }
  void Acknowledge(uint64_t count);
  // Why such a header cannot be.
  [[gnu::cold]] absl::Status BadHeader(uint16_t news) const;
  std::optional<Write> TakeWriteBefore(uint64_t message);

  Fifo<Sent> sent_;
  Fifo<Write> writes_;
  std::optional<Write> first_write_;  // looked at
  size_t held_ = 0;
  uint32_t limit_ = 0;
  uint32_t most_ = 0;  // of these, as many as acknowledgements can count
  uint32_t limit_max_ = 0;
  uint32_t granted_ = 0;  // receives that the peer may use
  uint32_t news_ = 1;
  uint64_t acknowledged_ = 0;
  uint32_t pieces_acknowledged_ = 0;
  uint64_t received_ = 0;
  uint64_t told_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_LANE_WINDOW_H_
