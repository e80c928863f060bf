#include "rdma/lane_window.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rdma/credit_window.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void LaneWindow::Open(uint32_t depth, uint32_t peer_depth) {
  limit_ = std::min(peer_depth, CreditWindow::kDepthMax) + kSpare;
  // As many tellings as are reserved are enough for all that the peer can send without one.
  news_ = (depth + kSpare + kReserved - 1) / kReserved;
}

void LaneWindow::OnSent(const MessageHeader& header, std::string prefix, BufferChain& payload) {
  Sent sent{.header = header, .prefix = std::move(prefix), .payload = {}};
  for (size_t left = payload.buffer_count(); left > 0; --left) {
    Buffer piece = payload.PopFront();
    sent.payload.Append(piece.Share());
    payload.Append(std::move(piece));
  }
  sent_.push(std::move(sent));
}

void LaneWindow::Acknowledge(uint64_t count) {
  acknowledged_ += count;
  for (; count > 0; --count) {
    if (sent_.pop().header.type == MessageType::kMessage) ++pieces_acknowledged_;
  }
}

absl::Status LaneWindow::OnHeader(MessageHeader& header) {
  const auto news = static_cast<uint16_t>(header.received - static_cast<uint16_t>(acknowledged_));
  if (news > sent_.size()) {
    return absl::InvalidArgumentError(absl::StrCat(news, " messages of the lane acknowledged, but ",
                                                   sent_.size(), " are on the way"));
  }
  ++received_;
  Acknowledge(news);
  header.received = static_cast<uint16_t>(pieces_acknowledged_);
  return absl::OkStatus();
}

absl::Status LaneWindow::OnFallback(uint64_t received) {
  if (received - acknowledged_ > sent_.size()) {
    return absl::InvalidArgumentError(absl::StrCat("FALLBACK after message ", received, ", but ",
                                                   acknowledged_, " to ",
                                                   acknowledged_ + sent_.size(), " can be"));
  }
  Acknowledge(received - acknowledged_);
  return absl::OkStatus();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
