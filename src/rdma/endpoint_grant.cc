// EndpointCore: the receives that its peer may use: fewer while nothing comes by its lanes.
#include <utility>

#include "rdma/control_codec.h"
#include "rdma/endpoint_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

void EndpointCore::OnGrantEvent(GrantEvent event) {
  switch (idle_grant_.On(event)) {
    case GrantAction::kAsk:
      channel_->Send(EncodeControl(ControlGrant{.receives = LaneWindow::kIdleGrant}));
      break;
    case GrantAction::kGiveBack:
      lane_window_.SetGranted(LaneWindow::kIdleGrant);
      lanes_->SetGrant(LaneWindow::kIdleGrant);
      break;
    case GrantAction::kTake:
      if (lanes_->SetGrant(WholeGrant())) OnGrantEvent(GrantEvent::kTaken);
      break;
    case GrantAction::kTell:
      lane_window_.SetGranted(WholeGrant());
      channel_->Send(EncodeControl(ControlGrant{.receives = WholeGrant()}));
      break;
    case GrantAction::kViolate:
      End(Explain(absl::StatusCode::kInvalidArgument, "RDMA endpoint to",
                  "an answer to no GRANT of ours"));
      break;
    case GrantAction::kNone:
      break;
  }
}

// An interval between two looks at the peer has passed.
void EndpointCore::LookForQuiet() {
  const bool quiet = !std::exchange(lane_heard_, false);
  const bool agreed = (gate_.features() & kFeatureGrants) != 0;
  if (!quiet || !agreed || carrier_ != Carrier::kLane || state_ != EndpointState::kOpen) return;
  if (WholeGrant() <= LaneWindow::kIdleGrant) return;
  // What it does not know to have come counts as on the way.
  if (lane_window_.untold() > LaneWindow::kIdleGrant / 2 && lane_window_.HasCreditRoom()) {
    PostData(Header(MessageType::kCredit, 0, true), std::nullopt, {});
  }
  OnGrantEvent(GrantEvent::kQuiet);
}

void EndpointCore::TakeGrantAgain() {
  if (lane_heard_ && carrier_ == Carrier::kLane) OnGrantEvent(GrantEvent::kTraffic);
}

absl::Status EndpointCore::OnGrant(const ControlGrant& grant) {
  if ((gate_.features() & kFeatureGrants) == 0) {
    return absl::InvalidArgumentError("GRANT, which was not agreed on");
  }
  // The peer cannot know yet that the lanes are given up.
  if (carrier_ != Carrier::kLane) return absl::OkStatus();
  if (grant.reply) {
    if (grant.receives != LaneWindow::kIdleGrant && grant.receives != WholeGrant()) {
      return absl::InvalidArgumentError("an answer to another GRANT than ours");
    }
    OnGrantEvent(grant.receives == LaneWindow::kIdleGrant ? GrantEvent::kConsent
                                                          : GrantEvent::kRefusal);
    return absl::OkStatus();
  }
  const uint32_t before = lane_window_.limit();
  const absl::StatusOr<uint32_t> holds = lane_window_.SetLimit(grant.receives);
  if (!holds.ok()) return holds.status();
  if (grant.receives < before) {
    channel_->Send(EncodeControl(ControlGrant{.reply = true, .receives = *holds}));
  }
  return absl::OkStatus();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
