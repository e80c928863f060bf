// EndpointCore: its lanes: how they come up, what comes by them, and the way back to the stream.
#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/timer_wheel.h"
#include "rdma/control_codec.h"
#include "rdma/endpoint_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// A receive of the peer's must hold some bytes besides what stands in front of them.
// How long the peer may take to say what it had from lanes that this side has given up. Pings find
// a peer that is gone sooner; this is for one that answers them and nothing else, and so leaves
// time for a stream that has lost its way together with the lanes.
constexpr absl::Duration kFallbackWaitMax = absl::Seconds(30);
constexpr uint32_t kPeerReceiveMin = 2 * (kMessageHeaderSize + kAccessPrefixSize);

uint32_t RandomPsn() {
  const Bytes16 bytes = RandomBytes();
  return uint32_t{bytes[0]} << 16 | uint32_t{bytes[1]} << 8 | bytes[2];
}

}  // namespace

// --- Opening ---

LaneDevice* EndpointCore::Device() const {
  return may_leave_stream_ ? static_cast<LaneDevice*>(options_.device.get()) : nullptr;
}

GateAction EndpointCore::AskToBringUp() {
  LaneDevice* const device = Device();
  const bool unused = device == nullptr || gate_.peer_offer().lanes.empty();
  if (unused || !device->HubFor(*core_).ok()) return BringUp();  // over the stream
  const size_t lanes = std::min<size_t>(options_.lanes, gate_.peer_offer().lanes.size());
  switch (device->admission().Ask(place_, lanes, [this] { OnAdmitted(); })) {
    case Admission::Answer::kAdmitted:
      return BringUp();
    case Admission::Answer::kWaiting:
      return GateAction::kNone;
    default:
      return gate_.OnBusy(device->admission().retry_after());
  }
}

// In another endpoint's call.
void EndpointCore::OnAdmitted() {
  calls_.push([this] {
    if (gate_.state() == GateState::kPassiveBringup) Act(BringUp());
  });
  MarkReady();
}

void EndpointCore::MakeLanes(size_t count) {
  if (options_.device == nullptr) return;
  LaneDevice* const device = Device();
  if (device == nullptr) {
    return GiveUpLanes("the control stream may be sealed, and unsealed_lanes is not set");
  }
  const absl::StatusOr<LaneHub*> hub = device->HubFor(*core_);
  if (!hub.ok()) return GiveUpLanes(MessageOf(hub.status()));
  auto lanes = LaneGroup::Create(**hub, *this, count, WholeGrant(), &RandomPsn);
  if (!lanes.ok()) return GiveUpLanes(MessageOf(lanes.status()));
  lanes_ = *std::move(lanes);
}

// All of ours are up when this returns, or there are none.
void EndpointCore::BringUpLanes() {
  const std::vector<LaneAddress>& peers = gate_.peer_offer().lanes;
  if (peers.empty()) return GiveUpLanes("the peer has no device");
  const ReceiveTerms& terms = gate_.peer_offer().terms;
  const bool active = gate_.role() == GateRole::kActive;
  if (!active) MakeLanes(std::min<size_t>(options_.lanes, peers.size()));
  absl::Status status = absl::UnavailableError(stats_.fallback);
  if (lanes_ != nullptr) {
    status = terms.size < kPeerReceiveMin
                 ? absl::FailedPreconditionError("the peer's receives are too small")
                 : lanes_->BringUp(peers, terms.read_depth);
  }
  if (status.ok()) {
    lane_window_.Open(window_.depth(), terms.depth);
    Apply(CarrierEvent::kUp);
  } else if (active) {
    // The peer's are up already: it hears of this before READY.
    LeaveLanes(MessageOf(status), /*reply=*/false);
  } else {
    GiveUpLanes(MessageOf(status));
  }
}

void EndpointCore::CountHeld() {
  if (lanes_ != nullptr) lane_window_.SetHeld(lanes_->held());
}

// While the peer does not count on them.
void EndpointCore::GiveUpLanes(std::string_view why) {
  CountHeld();
  const std::unique_ptr<LaneGroup> gone = std::move(lanes_);
  place_.Leave();
  if (options_.device != nullptr && stats_.fallback.empty()) stats_.fallback = why;
}

ExposedMemory EndpointCore::Register(std::span<char> memory, RdmaAccess access) {
  const bool opening = gate_.state() != GateState::kOpen;
  if (Device() == nullptr || !(opening || carrier_ == Carrier::kLane)) return {};
  const absl::StatusOr<LaneHub*> hub = Device()->HubFor(*core_);
  if (!hub.ok()) return {};
  absl::StatusOr<ExposedMemory> exposed = (*hub)->Expose(memory, access);
  if (exposed.ok()) return *std::move(exposed);
  ++stats_.unregistered;
  return {};
}

// --- Traffic ---

// Address 0: the peer's loop is to do it.
LaneTarget EndpointCore::TargetOf(const Work& work) const {
  const bool read = work.kind == Work::Kind::kRead;
  if (carrier_ != Carrier::kLane || (read ? work.size : work.data.size()) == 0) return {};
  return peer_regions_.TargetOf(work.region, work.offset);
}

void EndpointCore::PostWriteByLane(Work& work, const LaneTarget& target) {
  BeginWrite(work);
  const AccessPrefix access = {
      .region = work.region.id, .offset = work.offset, .epoch = work.region.epoch};
  lane_window_.OnWriteSent(access, work.number, work.data);
  queue_.OnPosted(work.data.size());
  lanes_->Write(work.number, target, std::exchange(work.data, {}));
  EndWrite(work, lane_writes_);
}

// What has not been done for certain is seen to when the lane has ended.
void EndpointCore::OnLaneDone(uint64_t token, RdmaOutcome outcome, BufferChain data) {
  if (dead() || outcome != RdmaOutcome::kDone) return;
  if ((token & kReadToken) != 0) {
    lane_reads_.front().data = std::move(data);
    FinishFirst(lane_reads_);
  } else {
    lane_window_.OnWriteDone();
    // They end in the order they were made, but one that the peer's loop did may be known earlier.
    const auto number = static_cast<uint32_t>(token);
    if (SequenceReached(writes_done_, number)) writes_done_ = number;
    // Of a WriteThenSend the message is waited for.
    if (!lane_writes_.empty() && lane_writes_.front().number == token) FinishFirst(lane_writes_);
  }
  MarkReadySoon();
}

// Callbacks run in a turn of their own: never inside the pump, which they may destroy.
void EndpointCore::OnLaneMessage(Buffer message) {
  if (dead()) return;
  const absl::StatusOr<MessageHeader> header = DecodeMessageHeader(message.view());
  if (!header.ok()) return EndBy(header.status());
  message.TrimFront(kMessageHeaderSize);
  Take(*header, std::move(message), /*by_lane=*/true);
  MarkReadySoon();
}

void EndpointCore::OnLaneStray() {
  if (dead()) return;
  End(Explain(absl::StatusCode::kInvalidArgument, "RDMA endpoint to",
              "a message by another lane than the first"));
}

// --- From the lanes to the stream ---

void EndpointCore::OnLaneEnd(absl::Status status) {
  if (dead()) return;
  if (carrier_ != Carrier::kLane) return GiveUpLanes(MessageOf(status));
  LeaveLanes(MessageOf(status), /*reply=*/false);
  MarkReadySoon();
}

void EndpointCore::LeaveLanes(std::string_view why, bool reply) {
  const std::string reason(why);
  // The loops do again what the devices may not have done: from here on the devices do none of it.
  if (lanes_ != nullptr) lanes_->Stop();
  WithdrawOffers();
  SendFallback({.reply = reply, .text = reason.substr(0, kControlTextMax)});
  GiveUpLanes(reason);
  if (!reply) ArmLeavingTimer();
}

// Nothing can be posted before the peer answers.
void EndpointCore::ArmLeavingTimer() {
  leaving_timer_->Arm(TimerWheel::DeadlineTick(core_->sys().Now(), kFallbackWaitMax), [this] {
    End(Explain(absl::StatusCode::kDeadlineExceeded, "RDMA endpoint to",
                absl::StrCat("the peer has not given up its lanes within ",
                             absl::FormatDuration(kFallbackWaitMax), ", as this side has")));
    Service();
  });
}

void EndpointCore::SendFallback(ControlFallback fallback) {
  Apply(CarrierEvent::kTold);
  fallback.received = lane_window_.received();
  channel_->Send(EncodeControl(fallback));
}

void EndpointCore::OnFallback(const ControlFallback& fallback) {
  absl::Status status;
  if (carrier_ == Carrier::kStream) {
    status = absl::InvalidArgumentError("FALLBACK, but the stream carries the data already");
  } else {
    CountHeld();
    status = lane_window_.OnFallback(fallback.received);
  }
  if (!status.ok()) return EndBy(status);
  if (carrier_ == Carrier::kLane) {
    LeaveLanes(fallback.closing ? std::string()
                                : absl::StrCat("the peer has given up its lane: ", fallback.text),
               /*reply=*/true);
  }
  Apply(CarrierEvent::kHeard);
  leaving_timer_->Cancel();
  piece_max_ = kStreamPieceMax;
  window_.TellAgain();
  status = window_.OnHeader(window_.limit(), lane_window_.acknowledged());
  if (!status.ok()) return EndBy(status);
  FinishAcknowledged();
  while (const std::optional<LaneWindow::Write> write = lane_window_.TakeDoneWrite()) {
    if (!lane_writes_.empty() && lane_writes_.front().number == write->number) {
      FinishFirst(lane_writes_);
    }
  }
  // The peer's loop answers for all of them now.
  writes_out_.merge(lane_writes_, [](const Work& one, const Work& other) {
    return !SequenceReached(other.number, one.number);
  });
  ReturnReads();
}

// True: something has been seen to; before all of it has, nothing new may be posted.
bool EndpointCore::Resend() {
  if (carrier_ != Carrier::kStream) return false;
  if (!rewrite_.has_value()) rewrite_ = lane_window_.TakeWrite();
  if (rewrite_.has_value()) {
    ResendWrite(*std::exchange(rewrite_, std::nullopt));
    return true;
  }
  std::optional<LaneWindow::Sent> sent = lane_window_.TakeMessage();
  if (!sent.has_value()) return false;
  // What these said is said anew, as of now.
  if (sent->header.type == MessageType::kCredit) return true;
  if (sent->header.type == MessageType::kWritten) {
    written_due_ = true;
    return true;
  }
  if (sent->header.type == MessageType::kFetched) {
    fetched_due_ = true;
    return true;
  }
  const bool last = (sent->header.flags & kMessageLast) != 0;
  channel_->SendData(Header(sent->header.type, sent->header.sequence, last), sent->access,
                     std::move(sent->payload));
  return true;
}

void EndpointCore::ResendWrite(LaneWindow::Write write) {
  BufferChain piece = write.payload.SplitFront(std::min(write.payload.size(), kStreamPieceMax));
  const size_t size = piece.size();
  const bool last = write.payload.empty();
  channel_->SendData(Header(MessageType::kWrite, write.number, last), write.access,
                     std::move(piece));
  write.access.offset += size;
  if (!last) rewrite_ = std::move(write);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
