#include "rdma/lane_window.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rdma/credit_window.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

BufferChain LaneWindow::ShareOf(BufferChain& chain) {
  BufferChain shared;
  for (size_t left = chain.buffer_count(); left > 0; --left) {
    Buffer piece = chain.PopFront();
    shared.Append(piece.Share());
    chain.Append(std::move(piece));
  }
  return shared;
}

void LaneWindow::Open(uint32_t depth, uint32_t peer_depth) {
  limit_max_ = std::min(peer_depth, UINT32_MAX - kSpare) + kSpare;
  Limit(limit_max_);
  SetGranted(depth + kSpare);
}

void LaneWindow::Limit(uint32_t receives) {
  limit_ = receives;
  most_ = std::min(limit_, CreditWindow::kDepthMax + kSpare);
}

void LaneWindow::SetGranted(uint32_t receives) {
  granted_ = receives;
  // As many tellings as are reserved are enough for all that the peer can send without one.
  news_ = (receives + kReserved - 1) / kReserved;
}

absl::StatusOr<uint32_t> LaneWindow::SetLimit(uint32_t receives) {
  if (receives < kIdleGrant || receives > limit_max_) {
    return absl::InvalidArgumentError(absl::StrCat("GRANT of ", receives, " receives, ", kIdleGrant,
                                                   " to ", limit_max_, " can be"));
  }
  // What is reserved stays free: two sides that both gave it up could never tell each other again.
  if (receives >= limit_ || sent_.size() + kReserved <= receives) Limit(receives);
  return limit_;
}

void LaneWindow::OnSent(const MessageHeader& header, const std::optional<AccessPrefix>& access,
                        BufferChain payload) {
  sent_.push({.header = header, .access = access, .payload = std::move(payload)});
}

void LaneWindow::OnWriteSent(const AccessPrefix& access, uint32_t number, BufferChain& payload) {
  writes_.push({.access = access,
                .number = number,
                .payload = ShareOf(payload),
                .after = acknowledged_ + sent_.size()});
}

void LaneWindow::Acknowledge(uint64_t count) {
  acknowledged_ += count;
  for (; count > 0; --count) {
    const MessageType type = sent_.pop().header.type;
    if (type == MessageType::kMessage || type == MessageType::kOffer) ++pieces_acknowledged_;
  }
}

absl::Status LaneWindow::OnHeader(MessageHeader& header) {
  const auto news = static_cast<uint16_t>(header.received - static_cast<uint16_t>(acknowledged_));
  ++received_;
  // It cannot know of more than what it has been told.
  if (news > on_the_way() || received_ - told_ > granted_) [[unlikely]]
    return BadHeader(news);
  Acknowledge(news);
  header.received = acknowledged();
  return absl::OkStatus();
}

absl::Status LaneWindow::BadHeader(uint16_t news) const {
  if (news > on_the_way()) {
    return absl::InvalidArgumentError(absl::StrCat(news, " messages of the lane acknowledged, but ",
                                                   on_the_way(), " are on the way"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("more than ", granted_, " messages by the lane at once"));
}

absl::Status LaneWindow::OnFallback(uint64_t received) {
  if (received - acknowledged_ > on_the_way()) {
    return absl::InvalidArgumentError(absl::StrCat("FALLBACK after message ", received, ", but ",
                                                   acknowledged_, " to ",
                                                   acknowledged_ + on_the_way(), " can be"));
  }
  Acknowledge(received - acknowledged_);
  return absl::OkStatus();
}

std::optional<LaneWindow::Write> LaneWindow::TakeWriteBefore(uint64_t message) {
  if (!first_write_.has_value() && !writes_.empty()) first_write_ = writes_.pop();
  if (!first_write_.has_value() || first_write_->after >= message) return std::nullopt;
  return std::exchange(first_write_, std::nullopt);
}

std::optional<LaneWindow::Write> LaneWindow::TakeDoneWrite() {
  return TakeWriteBefore(acknowledged_);
}

std::optional<LaneWindow::Write> LaneWindow::TakeWrite() {
  return TakeWriteBefore(acknowledged_ + 1);
}

std::optional<LaneWindow::Sent> LaneWindow::TakeMessage() {
  if (sent_.empty()) return std::nullopt;
  ++acknowledged_;
  return sent_.pop();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
