// EndpointCore: its turn: callbacks first, then what can be posted.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/timer_wheel.h"
#include "rdma/control_codec.h"
#include "rdma/endpoint_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Callbacks one endpoint may have before the next one's turn (I9).
constexpr int kEndpointSteps = 32;
// Bytes handed to the stream at once.
constexpr size_t kFlushSize = 64 * 1024;

std::string_view OperationName(Work::Kind kind) {
  switch (kind) {
    case Work::Kind::kWrite:
      return "RDMA write to";
    case Work::Kind::kRead:
      return "RDMA read from";
    default:
      return "RDMA send to";
  }
}

}  // namespace

void EndpointCore::MarkReady() {
  if (core_ != nullptr && !in_service_ && !released_) core_->Defer(*this);
}

void EndpointCore::MarkReadySoon() {
  if (core_ != nullptr && !in_service_ && !released_) core_->DeferSoon(*this);
}

void EndpointCore::Service() {
  if (in_service_ || core_ == nullptr || released_) return;
  const auto self = shared_from_this();
  in_service_ = true;
  int steps = kEndpointSteps;
  while (steps > 0 && Step()) --steps;
  if (!released_ && core_ != nullptr) Settle();
  in_service_ = false;
  if (!released_ && core_ != nullptr && HasCallbacks()) MarkReady();
}

bool EndpointCore::HasCallbacks() const {
  return !calls_.empty() || !finished_.empty() ||
         (receive_done_ && (receive_cancelled_ || !ready_.empty() || !end_.ok())) ||
         (region_done_ && (peer_regions_.has_new() || !end_.ok()));
}

bool EndpointCore::Step() {
  if (released_) return false;
  bool did = !calls_.empty() && RunCall();
  did |= RunFinished();
  did |= RunReceive();
  did |= RunRegion();
  return did;
}

bool EndpointCore::RunCall() {
  Call call = calls_.pop();
  std::move(call)();
  return true;
}

bool EndpointCore::RunFinished() {
  if (finished_.empty()) return false;
  WorkList one;
  one.splice(one.end(), finished_, finished_.begin());
  Work& work = one.front();
  if (work.read_done) {
    if (work.status.ok()) {
      std::move(work.read_done)(std::move(work.data));
    } else {
      std::move(work.read_done)(std::move(work.status));
    }
  } else if (work.done) {
    std::move(work.done)(std::move(work.status));
  }
  return true;
}

bool EndpointCore::RunReceive() {
  if (!receive_done_) return false;
  if (receive_cancelled_ || ready_.empty()) return EndReceive();
  Message message = ready_.pop();
  window_.Release(message.held);
  fetched_bytes_ -= message.fetched;
  // What is being received goes on, as it is the next to be delivered.
  if (ready_.empty()) window_.Release(std::exchange(partial_.held, 0));
  ++stats_.messages_received;
  stats_.bytes_in += message.data.size();
  auto done = std::exchange(receive_done_, nullptr);
  std::move(done)(std::move(message.data));
  return true;
}

// Without a message, if that is its end.
bool EndpointCore::EndReceive() {
  if (!receive_cancelled_ && end_.ok()) return false;
  absl::Status status = end_;
  if (std::exchange(receive_cancelled_, false)) {
    status = Explain(absl::StatusCode::kCancelled, "receive from", "cancelled by CancelReceive");
  }
  auto done = std::exchange(receive_done_, nullptr);
  std::move(done)(std::move(status));
  return true;
}

bool EndpointCore::RunRegion() {
  if (!region_done_) return false;
  const std::optional<RdmaRemoteRegion> region = peer_regions_.TakeNew();
  if (!region.has_value() && end_.ok()) return false;
  auto done = std::exchange(region_done_, nullptr);
  if (end_.ok()) {
    std::move(done)(*region);
  } else {
    std::move(done)(end_);
  }
  return true;
}

void EndpointCore::Settle() {
  if (channel_ == nullptr) return;
  if (!dead()) {
    TakeGrantAgain();
    // The peer waits for these, and what is queued may leave no room behind it.
    TellEnds();
    Pump();
    Announce();
    DrainOut();
    if (!dead()) ArmQueueTimer();
  }
  if (channel_ != nullptr && !channel_->Flush() && !dead()) {
    End(Explain(absl::StatusCode::kResourceExhausted, "RDMA endpoint to",
                "the peer takes nothing off the control stream"));
  }
}

// --- Posting ---

void EndpointCore::Pump() {
  while (HasToPost() && gate_.MayPost(gate_.self().attempt) && HasRoom()) {
    bool did = Resend();
    if (!did) {
      did = ServeRead();
      const bool fetch_first = fetch_first_;
      // Each may take the last room there is.
      const auto fetch = [this] {
        return !fetches_.empty() && !dead() && HasRoom() && PostFetch();
      };
      if (fetch_first) did |= fetch();
      did |= !queue_.empty() && !dead() && HasRoom() && PostNext();
      if (!fetch_first) did |= fetch();
    }
    if (!did) return;
    if (channel_->unsent() >= kFlushSize && !channel_->Flush()) return;
  }
}

// What the lanes have left behind is looked for by Resend.
bool EndpointCore::HasToPost() const {
  return carrier_ != Carrier::kLane || !queue_.empty() || !fetches_.empty() || !serving_.empty() ||
         served_.has_value();
}

bool EndpointCore::HasRoom() const {
  switch (carrier_) {
    case Carrier::kStream:
      return channel_->HasRoom();
    case Carrier::kLane:
      return lane_window_.HasRoom() && lanes_->HasRoom();
    default:
      return false;
  }
}

void EndpointCore::PostData(MessageHeader header, const std::optional<AccessPrefix>& access,
                            BufferChain&& payload) {
  if (carrier_ == Carrier::kStream) {
    return channel_->SendData(header, access, std::move(payload));
  }
  header.received = static_cast<uint16_t>(lane_window_.received());
  lane_window_.OnTold();
  const MessageFront front(header, access);
  if (lanes_->SendAtOnce(front.view(), payload)) {
    return lane_window_.OnSent(header, access, std::move(payload));
  }
  lane_window_.OnSent(header, access, LaneWindow::ShareOf(payload));
  lanes_->Send(front.view(), std::move(payload));
}

MessageHeader EndpointCore::Header(MessageType type, uint32_t sequence, bool last) {
  window_.OnTold();
  return {.type = type,
          .flags = last ? kMessageLast : uint8_t{0},
          .received = static_cast<uint16_t>(window_.received()),
          .tag = gate_.data_tag(),
          .sequence = sequence,
          .credits = window_.granted()};
}

bool EndpointCore::PostNext() {
  Work& work = queue_.front();
  switch (work.kind) {
    case Work::Kind::kSend:
      return PostPieceOfMessage(work);
    case Work::Kind::kWrite:
      return PostPieceOfWrite(work);
    default:
      return PostRead(work);
  }
}

bool EndpointCore::PostPieceOfMessage(Work& work) {
  if (window_.available() == 0) {
    if (!std::exchange(credit_waited_, true)) ++stats_.credit_waits;
    return false;
  }
  credit_waited_ = false;
  if (WantsOffer(work)) {
    if (OffersFull()) return false;
    if (PostOffer(work)) return true;
  }
  work.posted = true;
  BufferChain piece = work.data.SplitFront(std::min(work.data.size(), piece_max_));
  queue_.OnPosted(piece.size());
  work.number = window_.TakeNext();
  PostData(Header(MessageType::kMessage, work.number, work.data.empty()), std::nullopt,
           std::move(piece));
  EndPiece(work);
  return true;
}

void EndpointCore::EndPiece(Work& work) {
  if (!work.data.empty()) return;
  work.offers = offers_begun_;
  sends_out_.splice(sends_out_.end(), queue_.TakeFront());
}

bool EndpointCore::PostPieceOfWrite(Work& work) {
  if (!work.posted) {
    // A peer that carries out nothing holds as many as the queue may hold.
    if (writes_out_.size() + lane_writes_.size() >= options_.queue_operations_max) return false;
    if (const LaneTarget target = TargetOf(work); target.address != 0) {
      // What the peer's loop is to write first, the device must not overtake.
      if (messaged_writes_ > 0) return false;
      PostWriteByLane(work, target);
      return true;
    }
    BeginWrite(work);
    work.messaged = true;
    ++messaged_writes_;
  }
  BufferChain piece = work.data.SplitFront(std::min(work.data.size(), piece_max_));
  queue_.OnPosted(piece.size());
  const bool last = work.data.empty();
  const AccessPrefix access = {
      .region = work.region.id, .offset = work.offset, .epoch = work.region.epoch};
  work.offset += piece.size();
  PostData(Header(MessageType::kWrite, work.number, last), access, std::move(piece));
  if (last) EndWrite(work, writes_out_);
  return true;
}

void EndpointCore::BeginWrite(Work& work) {
  work.posted = true;
  work.number = ++writes_begun_;
  work.on_region = true;
  peer_regions_.OnPosted(work.region.id);
}

// All of the first in the queue is posted.
void EndpointCore::EndWrite(Work& work, WorkList& out) {
  if (work.then.has_value()) {
    // Its message follows on the same carrier, so the end of that is the end of both.
    work.kind = Work::Kind::kSend;
    work.data = *std::exchange(work.then, std::nullopt);
  } else {
    out.splice(out.end(), queue_.TakeFront());
  }
}

bool EndpointCore::PostRead(Work& work) {
  if (reads_out_.size() + lane_reads_.size() >= peer_read_depth_) return false;
  const LaneTarget target = TargetOf(work);
  if (target.address != 0 && messaged_writes_ > 0) return false;
  work.posted = true;
  work.number = ++reads_begun_;
  fetch_first_ = true;
  if (!std::exchange(work.on_region, true)) peer_regions_.OnPosted(work.region.id);
  if (target.address != 0) {
    lanes_->Read(kReadToken | work.number, target, work.size);
    lane_reads_.splice(lane_reads_.end(), queue_.TakeFront());
    return true;
  }
  const AccessPrefix access = {.region = work.region.id,
                               .offset = work.offset,
                               .size = work.size,
                               .epoch = work.region.epoch};
  PostData(Header(MessageType::kRead, work.number, true), access, {});
  reads_out_.splice(reads_out_.end(), queue_.TakeFront());
  return true;
}

// A stream takes news at any time, a lane when the peer has receives for it; the last of these are
// for credits alone. Room of the lane's own is not asked for: writes that renew themselves leave
// none, and the window bounds what waits.
bool EndpointCore::MayTell() const {
  if (dead() || !gate_.MayPost(gate_.self().attempt)) return false;
  // With neither, what is due stays due until the peer has told what it had from the lanes.
  return carrier_ == Carrier::kStream || (carrier_ == Carrier::kLane && lane_window_.HasRoom());
}

void EndpointCore::TellEnds() {
  if (written_due_ && MayTell()) {
    written_due_ = false;
    PostData(Header(MessageType::kWritten, written_, true), std::nullopt, {});
  }
  if (fetched_due_ && MayTell()) {
    fetched_due_ = false;
    PostData(Header(MessageType::kFetched, fetched_, true), std::nullopt, {});
  }
}

void EndpointCore::Announce() {
  TellEnds();
  if (window_.NewsDue() && MayTell()) {
    PostData(Header(MessageType::kCredit, 0, true), std::nullopt, {});
  }
  if (dead() || carrier_ != Carrier::kLane) return;
  if (lane_window_.NewsDue() && lane_window_.HasCreditRoom()) {
    PostData(Header(MessageType::kCredit, 0, true), std::nullopt, {});
  }
}

void EndpointCore::DrainOut() {
  if (state_ != EndpointState::kDraining || !queue_.empty()) return;
  if (!quiet_out_.empty() || (carrier_ != Carrier::kLane && !lane_window_.empty())) return;
  for (const WorkList* out :
       {&sends_out_, &writes_out_, &reads_out_, &lane_writes_, &lane_reads_}) {
    for (const Work& work : *out) {
      if (work.kind != Work::Kind::kFetch) return;
    }
  }
  Apply(EndpointEvent::kSent);
  channel_->Send(EncodeControl(ControlDrain{.sequence = window_.sent()}));
}

// --- Operations ---

// What the peer is to be told goes first, and so does what waits already.
bool EndpointCore::SendAtOnce(BufferChain& message) {
  if (state_ != EndpointState::kOpen || carrier_ != Carrier::kLane || HasToPost()) return false;
  if (!gate_.MayPost(gate_.self().attempt) || written_due_ || fetched_due_) return false;
  if (message.size() > std::min<uint64_t>(piece_max_, options_.rendezvous_min)) return false;
  if (message.size() > peer_message_max_) return false;
  if (window_.available() == 0 || !HasRoom()) return false;
  const uint32_t number = window_.TakeNext();
  quiet_out_.Push(number, message.size());
  PostData(Header(MessageType::kMessage, number, /*last=*/true), std::nullopt, std::move(message));
  MarkReady();
  return true;
}

void EndpointCore::Add(WorkList one, absl::Duration wait_max) {
  if (core_ == nullptr) return;
  Work& work = one.front();
  const uint64_t size = work.data.size() + (work.then.has_value() ? work.then->size() : 0);
  const bool read = work.kind == Work::Kind::kRead;
  if (!read) work.size = size;
  absl::Status problem;
  if (dead()) {
    problem = EndOfOperations();
  } else if (closing_) {
    problem = absl::FailedPreconditionError("the endpoint is being closed");
  } else if (read && work.size > options_.message_max) {
    problem = absl::InvalidArgumentError(
        absl::StrCat("a read of ", work.size, " bytes, message_max is ", options_.message_max));
  } else if (problem = CheckMessage(work); problem.ok()) {
    problem = queue_.Admit(size);
    if (!problem.ok()) ++stats_.refused;
  }
  if (problem.ok() && work.kind != Work::Kind::kSend) {
    problem = peer_regions_.Check(work.region, work.offset, read ? work.size : work.data.size(),
                                  read ? RdmaAccess::kRead : RdmaAccess::kWrite);
  }
  if (!problem.ok()) return Refuse(std::move(one), std::move(problem));
  if (wait_max != absl::InfiniteDuration()) {
    work.deadline_ns = TimerWheel::DeadlineNs(core_->sys().Now(), wait_max);
  }
  queue_.Push(std::move(one));
  MarkReady();
}

absl::Status EndpointCore::CheckMessage(const Work& work) const {
  uint64_t size = work.kind == Work::Kind::kSend ? work.data.size() : 0;
  if (work.then.has_value()) size = work.then->size();
  if (size <= peer_message_max_) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a message of ", size, " bytes, the peer takes ", peer_message_max_));
}

void EndpointCore::RefuseTooLarge() {
  WorkList refused = queue_.TakeIf([this](const Work& work) { return !CheckMessage(work).ok(); });
  while (!refused.empty()) {
    WorkList one;
    one.splice(one.end(), refused, refused.begin());
    absl::Status problem = CheckMessage(one.front());
    Refuse(std::move(one), std::move(problem));
  }
}

void EndpointCore::Refuse(WorkList one, absl::Status status) {
  const std::string_view operation = OperationName(one.front().kind);
  if (!dead()) status = Explain(status.code(), operation, MessageOf(status));
  Finish(std::move(one), std::move(status), RdmaOutcome::kNeverPosted);
  MarkReady();
}

void EndpointCore::Finish(WorkList one, absl::Status status, RdmaOutcome outcome) {
  one.front().status = status.ok() ? status : WithOutcome(std::move(status), outcome);
  finished_.splice(finished_.end(), one);
}

RdmaStats EndpointCore::stats() const {
  RdmaStats stats = stats_;
  stats.open = gate_.state() == GateState::kOpen && !dead();
  stats.over_device = stats.open && carrier_ == Carrier::kLane;
  stats.lanes = stats.over_device ? static_cast<uint32_t>(lanes_->size()) : 0;
  stats.operations_queued = static_cast<uint32_t>(queue_.size());
  stats.bytes_queued = queue_.bytes();
  for (const WorkList* out :
       {&sends_out_, &writes_out_, &reads_out_, &lane_writes_, &lane_reads_}) {
    for (const Work& work : *out) {
      stats.operations_posted += work.kind == Work::Kind::kFetch ? 0 : 1;
    }
  }
  stats.operations_posted += static_cast<uint32_t>(quiet_out_.size());
  stats.credits = dead() ? 0 : window_.available();
  stats.late = gate_.counts().late;
  return stats;
}

// --- The rest of what an owner may ask for ---

void EndpointCore::NotifyOpen(RdmaEndpoint::DoneCallback done) {
  if (core_ == nullptr) return;
  if (dead() || gate_.state() == GateState::kOpen) {
    calls_.push([done = std::move(done), status = end_]() mutable { std::move(done)(status); });
  } else {
    open_waiters_.push(std::move(done));
  }
  MarkReady();
}

void EndpointCore::Receive(RdmaEndpoint::ReceiveCallback&& done) {
  if (core_ == nullptr) return;
  if (receive_done_) {
    calls_.push([this, done = std::move(done)]() mutable {
      std::move(done)(
          Explain(absl::StatusCode::kFailedPrecondition, "receive from", "one is pending already"));
    });
  } else {
    receive_done_ = std::move(done);
  }
  MarkReady();
}

void EndpointCore::CancelReceive() {
  if (core_ == nullptr || !receive_done_) return;
  receive_cancelled_ = true;
  MarkReady();
}

void EndpointCore::AwaitRegion(RdmaEndpoint::RegionCallback done) {
  if (core_ == nullptr) return;
  if (region_done_) {
    calls_.push([this, done = std::move(done)]() mutable {
      std::move(done)(Explain(absl::StatusCode::kFailedPrecondition, "await a region of",
                              "one is pending already"));
    });
  } else {
    region_done_ = std::move(done);
  }
  MarkReady();
}

absl::StatusOr<RdmaRegion> EndpointCore::Expose(std::span<char> memory, RdmaAccess access) {
  if (core_ == nullptr || dead() || closing_) {
    return Explain(absl::StatusCode::kFailedPrecondition, "expose memory to",
                   "the endpoint has ended");
  }
  if (const absl::Status problem = regions_.Check(memory, access); !problem.ok()) {
    return Explain(problem.code(), "expose memory to", MessageOf(problem));
  }
  const ControlRegion region = *regions_.Add(memory, access, Register(memory, access));
  // Those exposed earlier are told when the gate opens.
  if (gate_.MayPost(gate_.self().attempt)) channel_->Send(EncodeControl(region));
  MarkReady();
  return RdmaRegion(weak_from_this(), region.region, region.epoch);
}

void EndpointCore::Revoke(uint64_t id, uint32_t epoch, Stream::DoneCallback done) {
  if (core_ == nullptr) return;
  absl::Status status;
  const bool told = gate_.MayPost(gate_.self().attempt);
  if (dead()) {
    status = regions_.Kept(id, epoch);
  } else if (told) {
    const absl::StatusOr<ControlRevoke> revoke = regions_.Revoke(id, epoch, done);
    if (revoke.ok()) channel_->Send(EncodeControl(*revoke));
    status = revoke.status();
  } else {
    // The peer has never heard of it.
    status = regions_.Forget(id, epoch);
  }
  TellRevoked({std::move(done), status});
  MarkReady();
}

void EndpointCore::TellRevoked(RegionTable::Revoked revoked) {
  if (!revoked.done) return;
  if (!revoked.status.ok()) {
    revoked.status =
        Explain(revoked.status.code(), "revoke a region of", MessageOf(revoked.status));
  }
  calls_.push([revoked = std::move(revoked)]() mutable {
    std::move(revoked.done)(std::move(revoked.status));
  });
}

void EndpointCore::Remove(uint64_t id, uint32_t epoch) {
  if (core_ == nullptr || dead()) return;
  if (!gate_.MayPost(gate_.self().attempt)) {
    regions_.Forget(id, epoch).IgnoreError();  // nobody is there to be told
    return;
  }
  const std::optional<ControlRevoke> revoke = regions_.Remove(id, epoch);
  if (revoke.has_value()) channel_->Send(EncodeControl(*revoke));
  MarkReady();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
