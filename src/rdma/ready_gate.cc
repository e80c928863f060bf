#include "rdma/ready_gate.h"

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/check.h"
#include "base/error.h"
#include "base/timer_wheel.h"
#include "rdma/control_codec.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// What becomes of an endpoint that is refused, on both sides. Unavailable may be tried again.
absl::StatusCode CodeOf(RejectCode code) {
  switch (code) {
    case RejectCode::kBusy:
    case RejectCode::kLanes:
    case RejectCode::kShutdown:
      return absl::StatusCode::kUnavailable;
    case RejectCode::kSuperseded:
      return absl::StatusCode::kAborted;
    default:
      return absl::StatusCode::kFailedPrecondition;
  }
}

// Of a passive side that ends before it has accepted.
RejectCode RejectCodeOf(CloseCode code) {
  switch (code) {
    case CloseCode::kViolation:
      return RejectCode::kMalformed;
    case CloseCode::kDeadline:  // it waited in line too long: another attempt may fare better
      return RejectCode::kShutdown;
    default:
      return RejectCode::kUnspecified;
  }
}

CloseCode CloseCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return CloseCode::kViolation;
    case absl::StatusCode::kDeadlineExceeded:
      return CloseCode::kDeadline;
    default:
      return CloseCode::kShutdown;
  }
}

}  // namespace

ReadyGate::ReadyGate(GateOptions options, int64_t now_ns)
    : options_(std::move(options)),
      limit_(options_.handshake_deadline),
      deadline_ns_(TimerWheel::DeadlineNs(now_ns, limit_)) {}

void ReadyGate::Limit(int64_t now_ns, absl::Duration limit) {
  const int64_t deadline_ns = TimerWheel::DeadlineNs(now_ns, limit);
  if (deadline_ns >= deadline_ns_) return;
  deadline_ns_ = deadline_ns;
  limit_ = limit;
}

// --- The active side ---

GateAction ReadyGate::Connect(GateOffer offer) {
  if (options_.role != GateRole::kActive || state_ != GateState::kIdle) return Late();
  lanes_offered_ = offer.lanes.size();
  ControlHello hello = {.features = options_.features,
                        .from = options_.self,
                        .nonce = options_.nonce,
                        .lanes = std::move(offer.lanes),
                        .terms = offer.terms,
                        .name = options_.name};
  if (options_.handshake_deadline < absl::Hours(1)) {
    hello.deadline_ms =
        static_cast<uint32_t>(absl::ToInt64Milliseconds(options_.handshake_deadline));
  }
  hello_ = EncodeControl(hello);
  outgoing_ += hello_;
  return Apply(GateEvent::kConnect);
}

std::string_view ReadyGate::AcceptProblem(const ControlAccept& accept) const {
  if (accept.version < kControlVersionMin || accept.version > kControlVersionMax) {
    return "ACCEPT of a version that was not offered";
  }
  if ((accept.features & ~options_.features) != 0)
    return "ACCEPT of features that were not offered";
  if (accept.lanes.size() > lanes_offered_) return "ACCEPT of more lanes than were offered";
  return {};
}

GateAction ReadyGate::OnAccept(const ControlAccept& accept, std::string_view bytes) {
  if (state_ == GateState::kClosed) return Late();
  if (options_.role != GateRole::kActive) return Violate("ACCEPT from the active side");
  if (accept.to != options_.self) return Late();
  if (state_ != GateState::kHelloSent) return Violate("ACCEPT out of turn");
  if (std::string_view problem = AcceptProblem(accept); !problem.empty()) return Violate(problem);
  if ((accept.features & kFeatureReady) == 0 && options_.policy == RdmaReadyPolicy::kRequire) {
    return End(absl::StatusCode::kFailedPrecondition, "the peer takes no READY",
               CloseCode::kViolation);
  }
  peer_ = accept.from;
  peer_nonce_ = accept.nonce;
  peer_offer_ = {.lanes = accept.lanes, .terms = accept.terms};
  features_ = accept.features;
  version_ = accept.version;
  transcript_ = TranscriptHash(std::exchange(hello_, {}), bytes);
  return Apply(GateEvent::kAccept);
}

GateAction ReadyGate::OnReject(const ControlReject& reject) {
  if (state_ == GateState::kClosed) return Late();
  if (options_.role != GateRole::kActive) return Violate("REJECT from the active side");
  if (reject.attempt != 0 && reject.attempt != options_.self.attempt) return Late();
  if (state_ != GateState::kHelloSent) return Violate("REJECT out of turn");
  retry_after_ = absl::Milliseconds(reject.retry_after_ms);
  status_ = ErrorOf(CodeOf(reject.code), absl::StrCat("the peer refuses: ", reject.text));
  return Apply(GateEvent::kEnd);
}

ControlReady ReadyGate::ReadyMessage() const {
  const bool active = options_.role == GateRole::kActive;
  return {.active_attempt = active ? options_.self.attempt : peer_.attempt,
          .passive_attempt = active ? peer_.attempt : options_.self.attempt,
          .active_nonce = active ? options_.nonce : peer_nonce_,
          .passive_nonce = active ? peer_nonce_ : options_.nonce,
          .transcript = transcript_};
}

// --- The passive side ---

GateAction ReadyGate::OnHello(int64_t now_ns, const ControlHello& hello, std::string_view bytes) {
  if (state_ == GateState::kClosed) return Late();
  if (options_.role != GateRole::kPassive) return Violate("HELLO from the passive side");
  if (state_ != GateState::kIdle) return Violate("a second HELLO");
  peer_ = hello.from;
  peer_name_ = hello.name;
  peer_nonce_ = hello.nonce;
  const std::optional<uint8_t> version = ChooseVersion(hello);
  if (!version.has_value()) {
    return Refuse(RejectCode::kVersion, absl::StrCat("versions ", hello.version_min, " to ",
                                                     hello.version_max, " are not spoken here"));
  }
  version_ = *version;
  features_ = hello.features & options_.features;
  if ((features_ & kFeatureReady) == 0 && options_.policy == RdmaReadyPolicy::kRequire) {
    return Refuse(RejectCode::kFeature, "READY is required here");
  }
  peer_offer_ = {.lanes = hello.lanes, .terms = hello.terms};
  hello_ = bytes;
  if (hello.deadline_ms != 0) Limit(now_ns, absl::Milliseconds(hello.deadline_ms));
  return Apply(GateEvent::kHello);
}

void ReadyGate::SendAccept(int64_t now_ns, GateOffer offer) {
  PENSTOCK_CHECK(offer.lanes.size() <= peer_offer_.lanes.size(), "more lanes than the peer's");
  const std::string accept = EncodeControl(ControlAccept{.version = version_,
                                                         .features = features_,
                                                         .from = options_.self,
                                                         .to = peer_,
                                                         .nonce = options_.nonce,
                                                         .lanes = std::move(offer.lanes),
                                                         .terms = offer.terms});
  transcript_ = TranscriptHash(std::exchange(hello_, {}), accept);
  outgoing_ += accept;
  Limit(now_ns, options_.ready_deadline);
}

GateAction ReadyGate::OnReady(const ControlReady& ready) {
  if (state_ == GateState::kClosed) return Late();
  if (options_.role != GateRole::kPassive) return Violate("READY from the passive side");
  if (transcript_ == 0) return Violate("READY before ACCEPT");
  const ControlReady expected = ReadyMessage();
  if (ready.active_attempt != expected.active_attempt ||
      ready.passive_attempt != expected.passive_attempt) {
    return Late();
  }
  if (ready != expected) return Violate("READY of other messages than were sent");
  return Apply(GateEvent::kReady);
}

// --- Both ---

GateEvent ReadyGate::LanesUpEvent() const {
  if ((features_ & kFeatureReady) != 0) return GateEvent::kLanesUp;
  return options_.policy == RdmaReadyPolicy::kOpenAtOnce ? GateEvent::kLanesUpAtOnce
                                                         : GateEvent::kLanesUpWaitData;
}

GateAction ReadyGate::OnLanesUp(int64_t now_ns, uint64_t attempt, GateOffer offer) {
  if (attempt != options_.self.attempt) return Late();
  if (state_ == GateState::kPassiveBringup) SendAccept(now_ns, std::move(offer));
  return Apply(LanesUpEvent());
}

GateAction ReadyGate::OnLanesFailed(uint64_t attempt, const absl::Status& status) {
  const bool bringing_up =
      state_ == GateState::kActiveBringup || state_ == GateState::kPassiveBringup;
  if (attempt != options_.self.attempt || !bringing_up) return Late();
  status_ = status;
  TellPeer("the lanes could not be brought up", CloseCode::kLanes, RejectCode::kLanes);
  return Apply(GateEvent::kEnd);
}

GateAction ReadyGate::OnBusy(absl::Duration retry_after) {
  if (state_ != GateState::kPassiveBringup) return Late();
  return Refuse(RejectCode::kBusy, "too many endpoints are opening here", retry_after);
}

GateAction ReadyGate::OnSuperseded() {
  if (state_ != GateState::kPassiveBringup) return Late();
  return Refuse(RejectCode::kSuperseded, "another endpoint of the two lives on");
}

GateAction ReadyGate::OnUnusualData(uint32_t tag) {
  if (state_ == GateState::kClosed) return Late();
  if (transcript_ != 0 && tag != data_tag()) return Violate("data of another attempt");
  return Apply(GateEvent::kData);
}

GateAction ReadyGate::OnClose(const ControlClose& close) {
  if (state_ == GateState::kClosed) return Late();
  status_ = close.code == CloseCode::kNormal
                ? ErrorOf(absl::StatusCode::kOutOfRange, "closed by the peer")
                : ErrorOf(absl::StatusCode::kUnavailable,
                          absl::StrCat("the peer gives up: ", close.text));
  return Apply(GateEvent::kEnd);
}

GateAction ReadyGate::Close(const absl::Status& status) {
  PENSTOCK_CHECK(!status.ok(), "an end needs a reason");
  if (state_ == GateState::kClosed) return Late();
  status_ = status;
  const std::string_view reason(status.message().data(), status.message().size());
  const CloseCode code = CloseCodeOf(status);
  TellPeer(reason, code,
           code == CloseCode::kViolation ? RejectCode::kMalformed : RejectCode::kShutdown);
  return Apply(GateEvent::kEnd);
}

GateAction ReadyGate::OnTime(int64_t now_ns) {
  if (now_ns < deadline_ns_) return GateAction::kNone;
  std::string_view what;
  switch (state_) {
    case GateState::kIdle:
      what = options_.role == GateRole::kPassive ? "no HELLO" : "not begun";
      break;
    case GateState::kHelloSent:
      what = "no ACCEPT";
      break;
    case GateState::kWaitReady:
    case GateState::kWaitData:
      what = state_ == GateState::kWaitReady ? "no READY" : "no data";
      break;
    default:
      what = "the lanes are not up";
  }
  return End(absl::StatusCode::kDeadlineExceeded,
             absl::StrCat(AbslView(what), " within ", absl::FormatDuration(limit_)),
             CloseCode::kDeadline);
}

// --- Ends ---

GateAction ReadyGate::Late() {
  ++counts_.late;
  return GateAction::kIgnore;
}

absl::Status ReadyGate::ErrorOf(absl::StatusCode code, std::string_view reason) const {
  return options_.peer.has_value()
             ? PeerStatus(code, "open RDMA endpoint to", &*options_.peer, reason)
             : PeerStatus(code, "open RDMA endpoint", nullptr, reason);
}

void ReadyGate::TellPeer(std::string_view reason, CloseCode code, RejectCode reject,
                         absl::Duration retry_after) {
  const std::string text(reason.substr(0, kControlTextMax));
  const bool before_accept = state_ == GateState::kIdle || state_ == GateState::kPassiveBringup;
  if (options_.role == GateRole::kPassive && before_accept) {
    outgoing_ += EncodeControl(ControlReject{
        .code = reject,
        .retry_after_ms = static_cast<uint32_t>(absl::ToInt64Milliseconds(retry_after)),
        .attempt = peer_.attempt,
        .text = text});
  } else if (state_ != GateState::kIdle) {
    outgoing_ += EncodeControl(ControlClose{.code = code, .text = text});
  }
}

GateAction ReadyGate::End(absl::StatusCode status, std::string_view reason, CloseCode code) {
  status_ = ErrorOf(status, reason);
  TellPeer(reason, code, RejectCodeOf(code));
  return Apply(GateEvent::kEnd);
}

GateAction ReadyGate::Refuse(RejectCode code, std::string_view reason, absl::Duration retry_after) {
  status_ = ErrorOf(CodeOf(code), reason);
  TellPeer(reason, CloseCode::kViolation, code, retry_after);
  return Apply(GateEvent::kEnd);
}

GateAction ReadyGate::Violate(std::string_view what) {
  End(absl::StatusCode::kInvalidArgument, what, CloseCode::kViolation);
  return GateAction::kViolation;
}

GateAction ReadyGate::Apply(GateEvent event) {
  const GateTransition step =
      kGateTransitions[static_cast<size_t>(state_)][static_cast<size_t>(event)];
  if (step.action == GateAction::kViolation) return Violate("a message out of turn");
  const GateState from = std::exchange(state_, step.next);
  if (state_ != from && (state_ == GateState::kOpen || state_ == GateState::kClosed)) {
    deadline_ns_ = kNever;
    hello_.clear();
  }
  switch (step.action) {
    case GateAction::kSendReadyAndOpen:
      outgoing_ += EncodeControl(ReadyMessage());
      break;
    case GateAction::kOpen:
      counts_.opened_by_data = event == GateEvent::kData;
      break;
    case GateAction::kHold:
      ++counts_.held;
      break;
    case GateAction::kIgnore:
      ++(event == GateEvent::kReady ? counts_.repeated : counts_.late);
      break;
    default:
      break;
  }
  return step.action;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
