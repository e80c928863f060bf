#include "rdma/credit_window.h"

#include "absl/strings/str_cat.h"
#include "rdma/message_header.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void CreditWindow::Open(uint32_t peer_depth) {
  peer_depth_ = peer_depth;
  limit_ = peer_depth;
}

inline bool CreditWindow::MayGrant(uint32_t credits) const {
  return SequenceReached(limit_, credits) && credits - sent_ <= peer_depth_;
}

absl::Status CreditWindow::OnHeader(uint32_t credits, uint16_t received) {
  const auto news = static_cast<uint16_t>(received - static_cast<uint16_t>(acknowledged_));
  // What is acknowledged and what there is room for come from one count of the peer's.
  const bool can_be = MayGrant(credits) && news <= sent_ - acknowledged_ &&
                      credits - (acknowledged_ + news) <= peer_depth_;
  if (!can_be) [[unlikely]]
    return BadHeader(credits, news);
  limit_ = credits;
  acknowledged_ += news;
  return absl::OkStatus();
}

absl::Status CreditWindow::OnCredits(uint32_t credits) {
  if (!MayGrant(credits)) return BadHeader(credits, 0);
  limit_ = credits;
  return absl::OkStatus();
}

absl::Status CreditWindow::BadHeader(uint32_t credits, uint16_t news) const {
  if (!SequenceReached(limit_, credits)) {
    return absl::InvalidArgumentError(
        absl::StrCat("credits went back from ", limit_, " to ", credits));
  }
  if (credits - sent_ > peer_depth_) {
    return absl::InvalidArgumentError(
        absl::StrCat(credits - sent_, " credits, but the peer has room for ", peer_depth_));
  }
  if (news > sent_ - acknowledged_) {
    return absl::InvalidArgumentError(
        absl::StrCat(news, " pieces acknowledged, but ", sent_ - acknowledged_, " are on the way"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("credits for ", credits - (acknowledged_ + news),
                   " pieces beyond those acknowledged, but the peer has room for ", peer_depth_));
}

absl::Status CreditWindow::OnPiece(uint32_t sequence) {
  if (sequence != received_ + 1 || received_ == granted_) [[unlikely]]
    return BadPiece(sequence);
  ++received_;
  return absl::OkStatus();
}

absl::Status CreditWindow::BadPiece(uint32_t sequence) const {
  if (sequence != received_ + 1) {
    return absl::InvalidArgumentError(absl::StrCat("piece ", sequence, " after piece ", received_));
  }
  return absl::InvalidArgumentError(absl::StrCat("piece ", sequence, " without a credit"));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
