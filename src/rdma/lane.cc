#include "rdma/lane.h"

#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/error.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr absl::Duration kLanePause = absl::Milliseconds(5);
// Up to here a copy costs less than telling the device of several parts.
constexpr size_t kCopiedMax = 1024;

void AppendBytes(Buffer& buffer, std::string_view bytes) {
  const size_t size = buffer.size();
  buffer.Extend(bytes.size());
  std::memcpy(buffer.mutable_data() + size, bytes.data(), bytes.size());
}

}  // namespace

absl::StatusOr<std::unique_ptr<Lane>> Lane::Create(LaneHub& hub, Owner& owner, uint32_t psn,
                                                   uint32_t grant) {
  std::unique_ptr<Lane> lane(new Lane(hub, owner));
  if (!hub.Grant(grant)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("RDMA lane: ", grant, " receives wanted, ", hub.available(), " are left"));
  }
  lane->grant_ = grant;
  auto qp = hub.NewQp(*lane, kSendDepth);
  if (!qp.ok()) return qp.status();
  lane->qp_ = *std::move(qp);
  if (absl::Status status = lane->qp_->ToInit({.port = hub.options().port, .access = 0});
      !status.ok()) {
    return status;
  }
  lane->sink_ = hub.pump().AddSink(*lane);
  lane->address_ = hub.address();
  lane->address_.qpn = lane->qp_->number();
  lane->address_.psn = psn & kFabricNumberMask;
  return lane;
}

Lane::~Lane() {
  if (address_.qpn != 0) hub_.pump().RemoveSink(sink_);
  // From here on the device reads nothing of what is held.
  if (qp_ != nullptr) hub_.Leave(std::move(qp_));
  hub_.GiveBack(grant_);
}

absl::Status Lane::BringUp(const LaneAddress& peer) {
  FabricPath path;
  path.port = hub_.options().port;
  path.gid_index = hub_.options().gid_index;
  path.peer_gid = peer.gid;
  path.peer_lid = peer.lid;
  path.peer_qp_number = peer.qpn;
  path.peer_psn = peer.psn;
  path.mtu = std::min(LaneMtuBytes(address_), LaneMtuBytes(peer));
  if (absl::Status status = qp_->ToReadyToReceive(path); !status.ok()) return status;
  FabricTiming timing;
  timing.psn = address_.psn;
  if (absl::Status status = qp_->ToReadyToSend(timing); !status.ok()) return status;
  held_.resize(kSendDepth);
  for (uint32_t slot = kSendDepth; slot-- > 0;) free_slots_.push_back(slot);
  return absl::OkStatus();
}

// --- Sending ---

void Lane::Send(std::string_view head, BufferChain payload) {
  if (failed_) return;
  waiting_.push_back({std::string(head), std::move(payload)});
  if (waiting_.size() == 1) PostWaiting();
}

void Lane::PostWaiting() {
  while (!waiting_.empty() && !failed_) {
    if (!Post(waiting_.front())) break;
    waiting_.pop_front();
  }
  if (failed_) return;
  // Completions bring room in the queue; room in the pool may come unheard.
  if (waiting_.empty() || free_slots_.empty()) return retry_.Cancel();
  retry_.Arm(TimerWheel::DeadlineTick(hub_.loop().now_ns(), kLanePause), [this] {
    PostWaiting();
    if (HasRoom()) owner_.OnLaneRoom();
  });
}

bool Lane::Post(Message& message) {
  if (free_slots_.empty()) return false;
  const size_t size = message.head.size() + message.payload.size();
  BufferChain held;
  int error;
  if (size <= std::min<size_t>(kInlinedMax, qp_->limits().inlined)) {
    std::array<char, kInlinedMax> bytes;
    message.head.copy(bytes.data(), message.head.size());
    message.payload.CopyTo({bytes.data() + message.head.size(), message.payload.size()});
    const FabricPart part{bytes.data(), static_cast<uint32_t>(size), 0};
    error = PostParts({&part, 1}, true);
  } else {
    std::array<FabricPart, kPartsMax> parts;
    const size_t count = Gather(message, parts, held);
    if (count == 0) return false;
    error = PostParts({parts.data(), count}, false);
  }
  if (error == 0) {
    held_[free_slots_.back()] = std::move(held);
    free_slots_.pop_back();
    ++out_;
    return true;
  }
  if (error != -ENOMEM) FailLater(Broken("post a send", ErrnoText(-error)));
  return false;
}

int Lane::PostParts(std::span<const FabricPart> parts, bool inlined) {
  FabricSend send;
  send.id = CompletionPump::Tag(sink_, free_slots_.back());
  send.parts = parts;
  send.inlined = inlined;
  return qp_->PostSend(send);
}

size_t Lane::Gather(Message& message, std::array<FabricPart, kPartsMax>& parts, BufferChain& held) {
  const size_t size = message.head.size() + message.payload.size();
  std::array<iovec, kPartsMax> pieces;
  const size_t pieces_count = message.payload.FillIovec(pieces);
  bool in_place = size > kCopiedMax && pieces_count < kPartsMax;
  for (size_t i = 0; in_place && i < pieces_count; ++i) {
    parts[i + 1] = {pieces[i].iov_base, static_cast<uint32_t>(pieces[i].iov_len), 0};
    in_place = hub_.FindKey(parts[i + 1].data, parts[i + 1].size, &parts[i + 1].local_key);
  }
  Buffer first = hub_.NewBuffer(in_place ? message.head.size() : size);
  if (!first) return 0;
  AppendBytes(first, message.head);
  if (!in_place) {
    const size_t at = first.size();
    first.Extend(message.payload.size());
    message.payload.CopyTo({first.mutable_data() + at, message.payload.size()});
  }
  parts[0] = {first.mutable_data(), static_cast<uint32_t>(first.size()), 0};
  hub_.FindKey(parts[0].data, parts[0].size, &parts[0].local_key);
  held.Append(std::move(first));
  if (!in_place) return 1;
  // Kept also when posting fails for want of room: the message is gathered anew then.
  for (size_t i = 0; i < pieces_count; ++i) {
    Buffer piece = message.payload.PopFront();
    message.payload.Append(piece.Share());
    held.Append(std::move(piece));
  }
  return pieces_count + 1;
}

// --- Completions ---

void Lane::OnCompletion(uint32_t word, const FabricCompletion& completion) {
  held_[word].Clear();
  free_slots_.push_back(word);
  --out_;
  if (completion.outcome != FabricOutcome::kOk) {
    return Fail(Broken("send", FabricOutcomeName(completion.outcome)));
  }
  if (waiting_.empty() || failed_) return;
  PostWaiting();
  if (HasRoom()) owner_.OnLaneRoom();
}

void Lane::OnReceived(Buffer buffer) {
  if (!failed_) owner_.OnLaneMessage(std::move(buffer));
}

void Lane::OnReceiveFailed(FabricOutcome outcome) {
  Fail(Broken("receive", FabricOutcomeName(outcome)));
}

void Lane::OnQueueLost(const absl::Status& status) {
  Fail(Broken("completion queue", {status.message().data(), status.message().size()}));
}

absl::Status Lane::Broken(std::string_view operation, std::string_view reason) const {
  return absl::UnavailableError(
      absl::StrCat("RDMA lane ", address_.qpn, ": ", AbslView(operation), ": ", AbslView(reason)));
}

// Not inside the call that found it (I3).
void Lane::FailLater(absl::Status status) {
  failed_ = true;
  retry_.Arm(TimerWheel::TickAt(hub_.loop().now_ns()),
             [this, status = std::move(status)] { owner_.OnLaneEnd(status); });
}

void Lane::Fail(absl::Status status) {
  if (std::exchange(failed_, true)) return;
  retry_.Cancel();
  waiting_.clear();
  owner_.OnLaneEnd(std::move(status));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
