#include "rdma/endpoint_core.h"

#include <sys/random.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/error.h"
#include "engine/connection.h"
#include "rdma/control_codec.h"
#include "transport/socket_stream.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// How long an endpoint that has ended waits for the peer to take the reason.
constexpr absl::Duration kRetireMax = absl::Seconds(1);

AttemptId NewAttempt(const EndpointMember* member) {
  static const Bytes16 process = RandomBytes();
  static std::atomic<uint64_t> last{0};
  const uint64_t number = last.fetch_add(1, std::memory_order_relaxed) + 1;
  const Bytes16& incarnation = member == nullptr ? process : member->incarnation;
  return {.incarnation = incarnation, .endpoint = number, .attempt = number};
}

GateOptions OptionsOfGate(GateRole role, const RdmaOptions& options, const SocketAddress& peer,
                          const EndpointMember* member) {
  return {.role = role,
          .self = NewAttempt(member),
          .nonce = RandomBytes(),
          .features =
              kFeatureReady | kFeatureFallback | kFeatureOneSided | kFeatureOffers | kFeatureGrants,
          .policy = options.ready_policy,
          .handshake_deadline = options.open_deadline,
          .ready_deadline = options.ready_deadline,
          .peer = peer,
          .name = member == nullptr ? std::string() : member->name};
}

// Reads of one side that are not answered yet, whatever the other would take.
constexpr uint32_t kReadDepthMax = 1024;

uint32_t ReceiveDepth(const RdmaOptions& options) {
  const uint32_t depth = std::min(std::max(options.receive_depth, 1u), CreditWindow::kDepthMax);
  if (options.device == nullptr) return depth;
  return std::min(depth,
                  static_cast<const LaneDevice&>(*options.device).options().endpoint_receives);
}

}  // namespace

absl::Status CheckRdmaOptions(const RdmaOptions& options) {
  if (options.receive_depth < 2 || options.receive_depth > CreditWindow::kDepthMax) {
    return absl::InvalidArgumentError(absl::StrCat("receive_depth is ", options.receive_depth,
                                                   ", must be 2 to ", CreditWindow::kDepthMax));
  }
  if (options.read_depth < 1 || options.read_depth > kReadDepthMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("read_depth is ", options.read_depth, ", must be 1 to ", kReadDepthMax));
  }
  if (options.lanes < 1 || options.lanes > kLanesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("lanes is ", options.lanes, ", must be 1 to ", kLanesMax));
  }
  if (options.message_max < 1) {  // which a HELLO would not tell
    return absl::InvalidArgumentError("message_max must be at least 1 byte");
  }
  if (options.open_deadline <= absl::ZeroDuration() ||
      options.ready_deadline <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "open_deadline is ", absl::FormatDuration(options.open_deadline), ", ready_deadline ",
        absl::FormatDuration(options.ready_deadline), ": both must be positive"));
  }
  if (options.ping_interval <= absl::ZeroDuration() || options.pings_missed_max < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("ping_interval is ", absl::FormatDuration(options.ping_interval),
                     ", pings_missed_max ", options.pings_missed_max, ": both must be positive"));
  }
  return absl::OkStatus();
}

Bytes16 RandomBytes() {
  Bytes16 bytes;
  const ssize_t got = ::getrandom(bytes.data(), bytes.size(), 0);
  PENSTOCK_CHECK(got == static_cast<ssize_t>(bytes.size()), "the kernel has no random bytes");
  return bytes;
}

EndpointCore::EndpointCore(GateRole role, StreamPtr control, RdmaOptions options,
                           std::optional<EndpointMember> member)
    : Deferred([](Deferred* node) { static_cast<EndpointCore*>(node)->Service(); }),
      loop_(&control->loop()),
      core_(&loop_->core()),
      options_(std::move(options)),
      peer_(control->peer()),
      local_(control->local()),
      channel_(std::make_unique<ControlChannel>(std::move(control),
                                                static_cast<ControlChannel::Owner&>(*this))),
      connection_(channel_->stream().connection()),
      loop_end_([](Deferred* node) { static_cast<LoopEnd*>(node)->core.OnLoopEnd(); }, *this),
      gate_(OptionsOfGate(role, options_, peer_, member.has_value() ? &*member : nullptr),
            core_->sys().Now()),
      queue_(options_.queue_operations_max, options_.queue_bytes_max),
      window_(ReceiveDepth(options_)) {
  may_leave_stream_ =
      options_.unsealed_lanes || dynamic_cast<const SocketStream*>(&channel_->stream()) != nullptr;
  timer_.emplace(core_->timers());
  queue_timer_.emplace(core_->timers());
  leaving_timer_.emplace(core_->timers());
  core_->AtEnd(loop_end_);
  if (connection_ != nullptr) connection_->AddLayer(*this);
  if (member.has_value()) on_hello_ = std::move(member->on_hello);
}

EndpointCore::~EndpointCore() { DropChannel(); }

// --- Opening ---

void EndpointCore::Start() {
  if (const absl::Status problem = CheckRdmaOptions(options_); !problem.ok()) {
    // Nothing the peer has done: it may come again.
    gate_.Close(absl::UnavailableError("the options of this side are none"));
    return End(Explain(problem.code(), "open RDMA endpoint to", MessageOf(problem)));
  }
  // Its own pings, and its operations' limits, say how long to wait.
  channel_->stream().SetReadDeadline(absl::InfiniteDuration());
  channel_->stream().SetIdleDeadline(absl::InfiniteDuration());
  channel_->Start();
  if (gate_.role() == GateRole::kActive) {
    MakeLanes(options_.lanes);
    Act(gate_.Connect(Offer()));
  }
  ArmGateTimer();
  MarkReady();
}

GateOffer EndpointCore::Offer() const {
  GateOffer offer{.lanes = {},
                  .terms = {.depth = window_.depth(),
                            .size = static_cast<uint32_t>(kStreamPieceMax),
                            .read_depth = options_.read_depth,
                            .message_max = options_.message_max}};
  if (lanes_ != nullptr) {
    offer.lanes = lanes_->addresses();
    offer.terms.size = Device()->options().receive_size;
    offer.terms.read_depth = std::min(options_.read_depth, Device()->read_depth());
  }
  return offer;
}

absl::Status EndpointCore::PeerProblem() const {
  constexpr uint64_t kNeeded = kFeatureFallback | kFeatureOneSided;
  if ((gate_.features() & kNeeded) != kNeeded) {
    return Explain(absl::StatusCode::kFailedPrecondition, "open RDMA endpoint to",
                   "the peer needs a device, and there is none here");
  }
  const ReceiveTerms& terms = gate_.peer_offer().terms;
  if (terms.depth == 0 || terms.size == 0 || terms.read_depth == 0) {
    return Explain(absl::StatusCode::kFailedPrecondition, "open RDMA endpoint to",
                   "the peer has room for nothing");
  }
  return absl::OkStatus();
}

void EndpointCore::Act(GateAction action) {
  if (action == GateAction::kBringUp) {
    const bool active = gate_.role() == GateRole::kActive;
    action = active ? BringUp() : on_hello_ ? AskOwner() : AskToBringUp();
  }
  const std::string outgoing = gate_.TakeOutgoing();
  if (!outgoing.empty() && channel_ != nullptr) channel_->Send(outgoing);
  switch (action) {
    case GateAction::kSendReadyAndOpen:
    case GateAction::kSendAcceptAndOpen:
    case GateAction::kOpen:
      OnOpen();
      break;
    case GateAction::kClose:
    case GateAction::kViolation:
      End(gate_.status());
      break;
    default:
      ArmGateTimer();
      break;
  }
}

GateAction EndpointCore::BringUp() {
  // Without lanes: the stream that brought this carries the data, and is up.
  const absl::Status problem = PeerProblem();
  if (problem.ok()) BringUpLanes();
  if (lanes_ == nullptr) place_.Leave();
  const uint64_t attempt = gate_.self().attempt;
  return problem.ok() ? gate_.OnLanesUp(core_->sys().Now(), attempt, Offer())
                      : gate_.OnLanesFailed(attempt, problem);
}

void EndpointCore::OnOpen() {
  Apply(EndpointEvent::kGateOpen);
  place_.Leave();
  const ReceiveTerms& terms = gate_.peer_offer().terms;
  window_.Open(terms.depth);
  // Of a side with lanes `size` is what one of its receives holds.
  if (gate_.peer_offer().lanes.empty()) piece_max_ = std::min<size_t>(terms.size, kStreamPieceMax);
  if (carrier_ == Carrier::kLane) {
    const size_t payload = terms.size - kMessageHeaderSize - kAccessPrefixSize;
    piece_max_ = std::min(payload, kStreamPieceMax);
  }
  peer_read_depth_ = std::min(terms.read_depth, kReadDepthMax);
  if (terms.message_max != 0) peer_message_max_ = terms.message_max;
  RefuseTooLarge();
  for (const ControlRegion& region : regions_.All()) channel_->Send(EncodeControl(region));
  while (!open_waiters_.empty()) {
    calls_.push([done = open_waiters_.pop()]() mutable { std::move(done)(absl::OkStatus()); });
  }
  if (closing_) Apply(EndpointEvent::kClose);
  ArmPing();
}

void EndpointCore::ArmGateTimer() {
  if (dead()) return;
  if (gate_.deadline_ns() == ReadyGate::kNever) return;
  timer_->Arm(TimerWheel::TickAtOrAfter(gate_.deadline_ns()), [this] {
    Act(gate_.OnTime(core_->sys().Now()));
    Service();
  });
}

// --- Time ---

void EndpointCore::ArmPing() {
  if (options_.ping_interval == absl::InfiniteDuration()) return timer_->Cancel();
  const int64_t now = core_->sys().Now();
  timer_->Arm(TimerWheel::DeadlineTick(now, options_.ping_interval), [this] { OnPingTime(); });
}

void EndpointCore::OnPingTime() {
  if (std::exchange(heard_, false)) {
    pings_missed_ = 0;
  } else if (pings_missed_ >= options_.pings_missed_max) {
    End(Explain(absl::StatusCode::kDeadlineExceeded, "RDMA endpoint to",
                absl::StrCat("the peer has not answered ", pings_missed_, " pings")));
    return Service();
  } else {
    ++pings_missed_;
    ++stats_.pings;
    channel_->Send(EncodeControl(ControlPing{.token = stats_.pings}));
  }
  LookForQuiet();
  ArmPing();
  Service();
}

void EndpointCore::ArmQueueTimer() {
  const int64_t deadline = queue_.next_deadline_ns();
  if (deadline == Work::kNever) return queue_timer_->Cancel();
  queue_timer_->Arm(TimerWheel::TickAtOrAfter(deadline), [this] {
    WorkList expired = queue_.TakeExpired(core_->sys().Now());
    while (!expired.empty()) {
      WorkList one;
      one.splice(one.end(), expired, expired.begin());
      ++stats_.expired;
      core_->counters().deadlines.Add(1);
      Finish(std::move(one),
             Explain(absl::StatusCode::kDeadlineExceeded, "RDMA operation to",
                     "wait_max has passed before it was posted"),
             RdmaOutcome::kNeverPosted);
    }
    Service();
  });
}

// --- Ends ---

void EndpointCore::End(absl::Status status) {
  if (dead()) return;
  Apply(EndpointEvent::kEnd);
  end_ = status;
  if (gate_.state() != GateState::kClosed) gate_.Close(end_);
  FailAll();
  Retire();
  MarkReady();
}

void EndpointCore::EndBy(const absl::Status& problem) {
  End(Explain(problem.code(), "RDMA endpoint to", MessageOf(problem)));
}

// The peer's end in order is an end for who receives; what was to reach the peer has not.
absl::Status EndpointCore::EndOfOperations() const {
  if (!IsEof(end_)) return end_;
  return Explain(absl::StatusCode::kUnavailable, "RDMA endpoint to", "closed by the peer");
}

void EndpointCore::FailAll() {
  const absl::Status end = EndOfOperations();
  place_.Leave();
  for (WorkList* out : {&sends_out_, &writes_out_, &reads_out_, &lane_writes_, &lane_reads_}) {
    while (!out->empty()) {
      WorkList one;
      one.splice(one.end(), *out, out->begin());
      if (one.front().kind == Work::Kind::kFetch) continue;
      Finish(std::move(one), end, RdmaOutcome::kInDoubt);
    }
  }
  quiet_out_ = {};
  WorkList waiting = queue_.TakeAll();
  while (!waiting.empty()) {
    WorkList one;
    one.splice(one.end(), waiting, waiting.begin());
    const bool posted = one.front().posted;
    Finish(std::move(one), end, posted ? RdmaOutcome::kInDoubt : RdmaOutcome::kNeverPosted);
  }
  const auto tell = [this](RdmaEndpoint::DoneCallback done, absl::Status status) {
    calls_.push([done = std::move(done), status = std::move(status)]() mutable {
      std::move(done)(std::move(status));
    });
  };
  while (!open_waiters_.empty()) tell(open_waiters_.pop(), end_);
  if (close_done_) tell(std::exchange(close_done_, nullptr), end_);
  for (Fifo<RegionTable::Revoked> revoked = regions_.Clear(); !revoked.empty();) {
    TellRevoked(revoked.pop());
  }
  // Only whole messages are delivered.
  partial_ = Message();
  fetches_.clear();
  behind_.clear();
  WithdrawOffers();
  offers_out_.clear();
  while (!serving_.empty()) serving_.pop();
  served_.reset();
  TellWatcher();
}

void EndpointCore::Retire() {
  queue_timer_->Cancel();
  leaving_timer_->Cancel();
  timer_->Cancel();
  lanes_.reset();
  lane_window_ = {};
  rewrite_.reset();
  if (channel_ == nullptr) return;
  // A stream that is closed with bytes unread or unsent would take the reason along.
  channel_->Send(gate_.TakeOutgoing());
  channel_->Finish();
  timer_->Arm(TimerWheel::DeadlineTick(core_->sys().Now(), kRetireMax), [this] { DropChannel(); });
}

void EndpointCore::DropChannel() {
  if (connection_ != nullptr) std::exchange(connection_, nullptr)->RemoveLayer(*this);
  lanes_.reset();
  channel_.reset();
}

void EndpointCore::Close(RdmaEndpoint::DoneCallback done) {
  if (core_ == nullptr) return;
  if (dead() || closing_) {
    const absl::Status status =
        dead() ? end_
               : Explain(absl::StatusCode::kFailedPrecondition, "close RDMA endpoint to",
                         "it is being closed already");
    calls_.push([done = std::move(done), status]() mutable {
      if (done) std::move(done)(status);
    });
  } else {
    closing_ = true;
    close_done_ = std::move(done);
    Apply(EndpointEvent::kClose);
  }
  MarkReady();
}

void EndpointCore::FinishClose() {
  if (close_done_) {
    calls_.push([done = std::exchange(close_done_, nullptr)]() mutable {
      std::move(done)(absl::OkStatus());
    });
  }
  // What it has acknowledged on the lane may still be there: the peer hears how much it was.
  // Its lane ends in order, so that these arrive.
  if (carrier_ == Carrier::kLane) {
    SendFallback({.closing = true, .text = "closing"});
    lanes_.reset();
  }
  // Neither do offers count as read that the peer hears of on the lane alone, or that are due.
  if (fetched_ > 0) {
    channel_->SendData(Header(MessageType::kFetched, fetched_, true), std::nullopt, {});
  }
  // CLOSE with code 0: the peer's end is an end of stream.
  channel_->Send(EncodeControl(ControlClose{}));
  Apply(EndpointEvent::kEnd);
  end_ = Explain(absl::StatusCode::kCancelled, "RDMA endpoint to", "closed");
  gate_.Close(end_);
  gate_.TakeOutgoing();
  FailAll();
  Retire();
}

void EndpointCore::Abort() {
  if (core_ == nullptr || dead()) return;
  if (channel_ != nullptr) channel_->stream().Abort();
  DropChannel();
  End(Explain(absl::StatusCode::kCancelled, "RDMA endpoint to", "aborted"));
}

EndpointCore::Leftovers EndpointCore::TakeLeftovers() {
  Leftovers left;
  left.calls = std::move(calls_);
  left.works = queue_.TakeAll();
  for (WorkList* list :
       {&sends_out_, &writes_out_, &reads_out_, &lane_writes_, &lane_reads_, &finished_}) {
    left.works.splice(left.works.end(), *list);
  }
  quiet_out_ = {};
  left.probe = std::exchange(probe_, nullptr);
  left.watcher = std::exchange(watcher_, nullptr);
  left.receive_done = std::exchange(receive_done_, nullptr);
  left.region_done = std::exchange(region_done_, nullptr);
  left.close_done = std::exchange(close_done_, nullptr);
  left.open_waiters = std::move(open_waiters_);
  left.revocations = regions_.Clear();
  left.ready = std::move(ready_);
  left.partial = std::exchange(partial_, {});
  left.works.splice(left.works.end(), fetches_);
  left.behind = std::exchange(behind_, {});
  WithdrawOffers();
  left.offers = std::exchange(offers_out_, {});
  left.sent = std::exchange(lane_window_, {});
  calls_ = {};
  open_waiters_ = {};
  ready_ = {};
  return left;
}

void EndpointCore::Release() {
  released_ = true;
  const Leftovers unrun = TakeLeftovers();
  Deferred::Cancel();
  Apply(EndpointEvent::kEnd);
  place_.Leave();
  DropChannel();
  timer_.reset();
  queue_timer_.reset();
  leaving_timer_.reset();
}

void EndpointCore::OnLoopEnd() {
  const auto self = shared_from_this();
  const Leftovers unrun = TakeLeftovers();
  Deferred::Cancel();
  Apply(EndpointEvent::kEnd);
  place_.Leave();
  DropChannel();
  timer_.reset();
  queue_timer_.reset();
  leaving_timer_.reset();
  core_ = nullptr;
}

absl::Status EndpointCore::MayLeave() const {
  return absl::FailedPreconditionError("an RDMA endpoint is on it, which stays on its loop");
}

absl::Status EndpointCore::Explain(absl::StatusCode code, std::string_view operation,
                                   std::string_view reason) const {
  return PeerStatus(code, operation, &peer_, reason);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
