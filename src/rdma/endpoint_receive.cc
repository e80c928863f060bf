// EndpointCore: what the peer sends. Everything is judged before it changes anything; a peer that
// breaks the protocol is told so, and ends the endpoint.
#include <algorithm>
#include <array>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "rdma/control_codec.h"
#include "rdma/endpoint_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};
template <class... Cases>
Overloaded(Cases...) -> Overloaded<Cases...>;

absl::Status Violation(std::string text) { return absl::InvalidArgumentError(std::move(text)); }

absl::StatusCode CodeOfClose(CloseCode code) {
  switch (code) {
    case CloseCode::kNormal:
      return absl::StatusCode::kOutOfRange;  // IsEof
    case CloseCode::kViolation:
      return absl::StatusCode::kInvalidArgument;
    case CloseCode::kDeadline:
      return absl::StatusCode::kDeadlineExceeded;
    default:
      return absl::StatusCode::kUnavailable;
  }
}

}  // namespace

// --- Control messages ---

void EndpointCore::OnControl(const ControlMessage& message, std::string_view bytes) {
  if (dead()) return;
  heard_ = true;
  const int64_t now = core_->sys().Now();
  std::visit(Overloaded{
                 [&](const ControlHello& hello) { Act(gate_.OnHello(now, hello, bytes)); },
                 [&](const ControlAccept& accept) { Act(gate_.OnAccept(accept, bytes)); },
                 [&](const ControlReady& ready) { Act(gate_.OnReady(ready)); },
                 [&](const ControlReject& reject) { Act(gate_.OnReject(reject)); },
                 [&](const ControlPing& ping) {
                   channel_->Send(EncodeControl(ControlPong{.token = ping.token}));
                 },
                 [&](const ControlClose& close) { OnPeerClose(close); },
                 [&](const ControlPong& pong) { OnPong(pong); },
                 [&](const ControlFallback& fallback) { OnFallback(fallback); },
                 [&](const ControlSkipped&) {},
                 [&](const auto&) { OnOpenControl(message); },
             },
             message);
  Service();
}

// Those that have a place in an open endpoint alone.
void EndpointCore::OnOpenControl(const ControlMessage& message) {
  absl::Status status;
  // A peer without READY is open for itself: whatever it says first shows it.
  if (gate_.state() == GateState::kWaitData) Act(gate_.OnData(gate_.data_tag()));
  if (gate_.state() != GateState::kOpen) {
    status = Violation("a message of an open endpoint before it is open");
  } else if (const auto* region = std::get_if<ControlRegion>(&message)) {
    status = peer_regions_.Add(*region);
  } else if (const auto* credit = std::get_if<ControlCredit>(&message)) {
    status = window_.OnCredits(credit->granted);
  } else if (const auto* revoke = std::get_if<ControlRevoke>(&message)) {
    return OnRevoke(*revoke);
  } else if (const auto* drain = std::get_if<ControlDrain>(&message)) {
    return OnDrain(*drain);
  } else if (const auto* grant = std::get_if<ControlGrant>(&message)) {
    status = OnGrant(*grant);
  }
  if (!status.ok()) EndBy(status);
}

// Each ping is answered once at most, in order.
void EndpointCore::OnPong(const ControlPong& pong) {
  if (pong.token > answered_ && pong.token <= stats_.pings) {
    answered_ = pong.token;
    OnProbed(pong.token);
  } else {
    End(Explain(absl::StatusCode::kInvalidArgument, "RDMA endpoint to",
                absl::StrCat("PONG ", pong.token, " where ", answered_ + 1, " to ", stats_.pings,
                             " can be")));
  }
}

void EndpointCore::OnRevoke(const ControlRevoke& revoke) {
  if (revoke.reply) {
    absl::StatusOr<RegionTable::Revoked> revoked = regions_.OnRevoked(revoke.region, revoke.epoch);
    if (!revoked.ok()) return EndBy(revoked.status());
    return TellRevoked(*std::move(revoked));
  }
  const absl::StatusOr<bool> unused = peer_regions_.Revoke(revoke.region, revoke.epoch);
  if (!unused.ok()) return EndBy(unused.status());
  WorkList gone = queue_.TakeIf([this](const Work& work) {
    return work.kind != Work::Kind::kSend && peer_regions_.revoked(work.region);
  });
  while (!gone.empty()) {
    WorkList one;
    one.splice(one.end(), gone, gone.begin());
    Refuse(std::move(one), absl::FailedPreconditionError("the peer has revoked the region"));
  }
  // What is posted to it is done first.
  if (*unused) channel_->Send(EncodeControl(peer_regions_.Forget(revoke.region)));
}

void EndpointCore::OnDrain(const ControlDrain& drain) {
  if (!drain.reply) {
    if (drain.sequence != window_.received()) {
      return End(Explain(absl::StatusCode::kInvalidArgument, "RDMA endpoint to",
                         absl::StrCat("DRAIN after piece ", drain.sequence, ", but ",
                                      window_.received(), " have come")));
    }
    channel_->Send(EncodeControl(ControlDrain{.reply = true, .sequence = drain.sequence}));
  } else if (state_ != EndpointState::kFlushing || drain.sequence != window_.sent()) {
    End(Explain(absl::StatusCode::kInvalidArgument, "RDMA endpoint to",
                "an answer to no DRAIN of ours"));
  } else {
    FinishClose();
  }
}

void EndpointCore::OnPeerClose(const ControlClose& close) {
  const bool normal = close.code == CloseCode::kNormal;
  // Both close, and the peer was faster: everything of ours had been acknowledged.
  if (normal && state_ == EndpointState::kFlushing) return FinishClose();
  gate_.OnClose(close);
  End(Explain(CodeOfClose(close.code), "RDMA endpoint to",
              normal ? std::string("closed by the peer")
                     : absl::StrCat("the peer has ended it: ", close.text)));
}

void EndpointCore::OnChannelEnd(absl::Status status) {
  if (dead()) return DropChannel();
  if (IsEof(status)) {
    status = Explain(absl::StatusCode::kUnavailable, "RDMA endpoint to",
                     "the peer has gone without closing it");
  }
  const bool ours = absl::IsInvalidArgument(status) || absl::IsResourceExhausted(status);
  End(std::move(status));
  // Nobody reads what would be said there.
  if (!ours) DropChannel();
  Service();
}

// --- Data ---

void EndpointCore::OnData(const MessageHeader& header, BufferChain body) {
  Take(header, std::move(body), /*by_lane=*/false);
  Service();
}

absl::Status EndpointCore::TakeHeader(MessageHeader& header, bool by_lane) {
  if (gate_.state() != GateState::kOpen) return Violation("data before the endpoint is open");
  if (!by_lane && carrier_ != Carrier::kStream) return Violation("data beside the lane");
  if (by_lane) {
    lane_heard_ = lane_heard_ || header.type != MessageType::kCredit;
    CountHeld();
    if (absl::Status status = lane_window_.OnHeader(header); !status.ok()) return status;
  }
  return window_.OnHeader(header.credits, header.received);
}

void EndpointCore::Take(MessageHeader header, BufferChain&& body, bool by_lane) {
  if (dead()) return;
  heard_ = true;
  const GateAction action = gate_.OnData(header.tag);
  // Lanes come up within one call: nothing comes by one before the gate knows that it is up.
  PENSTOCK_CHECK(action != GateAction::kHold, "data in the middle of a bring-up");
  if (action != GateAction::kNone) Act(action);
  if (!dead()) {
    absl::Status status = TakeHeader(header, by_lane);
    if (status.ok()) status = TakeData(header, std::move(body));
    if (!status.ok()) EndBy(status);
  }
  if (!dead()) FinishAcknowledged();
}

absl::Status EndpointCore::TakeData(const MessageHeader& header, BufferChain&& body) {
  if (body.size() > kStreamPieceMax + kAccessPrefixSize) {
    return Violation(absl::StrCat("a piece of ", body.size(), " bytes"));
  }
  switch (header.type) {
    case MessageType::kMessage:
      return TakePiece(header, std::move(body));
    case MessageType::kWrite:
      return TakeWrite(header, std::move(body));
    case MessageType::kWritten:
      return TakeWritten(header.sequence);
    case MessageType::kRead:
      return TakeRead(header, body);
    case MessageType::kReadData:
      return TakeReadData(header, std::move(body));
    case MessageType::kOffer:
      return TakeOffer(header, body);
    case MessageType::kFetched:
      return TakeFetched(header.sequence);
    default:
      return absl::OkStatus();
  }
}

absl::Status EndpointCore::TakePiece(const MessageHeader& header, BufferChain&& body) {
  if (absl::Status status = window_.OnPiece(header.sequence); !status.ok()) return status;
  if (body.size() > options_.message_max - arriving_) {
    return Violation(absl::StrCat("a message of more than message_max ", options_.message_max));
  }
  if (!behind_.empty()) {
    const uint64_t size = body.size();
    Arrive(header, size).data = std::move(body);
    return absl::OkStatus();
  }
  const bool last = (header.flags & kMessageLast) != 0;
  CountArriving(body.size(), last);
  AddPiece(std::move(body), /*fetched=*/0, last);
  return absl::OkStatus();
}

// Everything before it is there.
void EndpointCore::AddPiece(BufferChain&& data, uint64_t fetched, bool last) {
  if (last && partial_.data.empty() && partial_.held == 0) {  // a message of one piece
    ++messages_whole_;
    return ready_.push({.data = std::move(data), .held = 1, .fetched = fetched});
  }
  partial_.data.Append(std::move(data));
  partial_.fetched += fetched;
  ++partial_.held;
  if (last) {
    ++messages_whole_;
    ready_.push(std::exchange(partial_, {}));
  } else if (ready_.empty()) {
    // The next to be delivered: it must come whole, however many pieces that takes.
    window_.Release(std::exchange(partial_.held, 0));
  }
}

absl::Status EndpointCore::TakeWrite(const MessageHeader& header, BufferChain body) {
  std::array<char, kAccessPrefixSize> bytes;
  if (body.CopyTo(bytes) < bytes.size()) return Violation("a write without its region");
  body.TrimFront(bytes.size());
  const AccessPrefix access = DecodeAccessPrefix({bytes.data(), bytes.size()});
  const absl::StatusOr<std::span<char>> memory =
      regions_.Find(access, body.size(), RdmaAccess::kWrite);
  if (!memory.ok()) return memory.status();
  body.CopyTo(*memory);
  stats_.bytes_in += body.size();
  if ((header.flags & kMessageLast) != 0) {
    written_ = header.sequence;
    written_due_ = true;
  }
  return absl::OkStatus();
}

absl::Status EndpointCore::TakeWritten(uint32_t number) {
  if (SequenceReached(number, writes_done_)) return absl::OkStatus();  // told again
  if (number - writes_done_ > writes_begun_ - writes_done_) {
    return Violation(absl::StrCat("write ", number, " acknowledged, which was not made"));
  }
  writes_done_ = number;
  return absl::OkStatus();
}

absl::Status EndpointCore::TakeRead(const MessageHeader& header, const BufferChain& body) {
  std::array<char, kAccessPrefixSize> bytes;
  if (body.CopyTo(bytes) < bytes.size()) return Violation("a read without its region");
  const AccessPrefix access = DecodeAccessPrefix({bytes.data(), bytes.size()});
  if (serving_.size() + (served_.has_value() ? 1 : 0) >= options_.read_depth) {
    return Violation(absl::StrCat("more than read_depth ", options_.read_depth, " reads at once"));
  }
  const absl::Status status = CheckRead(access);
  if (status.ok()) serving_.push({.number = header.sequence, .access = access});
  return status;
}

absl::Status EndpointCore::TakeReadData(const MessageHeader& header, BufferChain body) {
  if (reads_out_.empty() || reads_out_.front().number != header.sequence) {
    return Violation(absl::StrCat("bytes of read ", header.sequence, ", which is not the next"));
  }
  Work& read = reads_out_.front();
  read.data.Append(std::move(body));
  const bool last = (header.flags & kMessageLast) != 0;
  if (read.data.size() > read.size || (last && read.data.size() < read.size)) {
    return Violation(absl::StrCat(read.data.size(), " bytes for a read of ", read.size));
  }
  if (last) {
    FinishFirst(reads_out_);
    // Until it hears of this, a peer on a lane keeps the bytes.
    if (carrier_ == Carrier::kLane) window_.TellAgain();
  }
  return absl::OkStatus();
}

void EndpointCore::FinishAcknowledged() {
  while (!sends_out_.empty() &&
         SequenceReached(sends_out_.front().number, window_.acknowledged()) &&
         SequenceReached(sends_out_.front().offers, offers_fetched_)) {
    FinishFirst(sends_out_);
  }
  const QuietSends::Ended quiet = quiet_out_.Take(window_.acknowledged());
  stats_.messages_sent += quiet.messages;
  stats_.bytes_out += quiet.bytes;
  while (!writes_out_.empty() && SequenceReached(writes_out_.front().number, writes_done_)) {
    FinishFirst(writes_out_);
  }
}

void EndpointCore::FinishFirst(WorkList& out) {
  WorkList one;
  one.splice(one.end(), out, out.begin());
  const Work& work = one.front();
  if (work.kind == Work::Kind::kFetch) return FinishFetch(std::move(one));
  switch (work.kind) {
    case Work::Kind::kRead:
      ++stats_.reads;
      stats_.bytes_in += work.size;
      break;
    case Work::Kind::kSend:
      ++stats_.messages_sent;
      stats_.writes += work.on_region ? 1 : 0;
      stats_.bytes_out += work.size;
      break;
    default:
      ++stats_.writes;
      stats_.bytes_out += work.size;
  }
  messaged_writes_ -= work.messaged ? 1 : 0;
  const uint64_t region = work.region.id;
  const bool revocation_waited = work.on_region && peer_regions_.OnDone(region);
  if (work.done || work.read_done) Finish(std::move(one), absl::OkStatus(), RdmaOutcome::kDone);
  if (revocation_waited) channel_->Send(EncodeControl(peer_regions_.Forget(region)));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
