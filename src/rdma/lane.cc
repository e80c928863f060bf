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
// How long a lane may find no memory before others do its work.
constexpr absl::Duration kDryMax = absl::Seconds(1);
// One less than there may be: rdma_rxe takes that for ever.
constexpr uint8_t kLaneRetries = 6;
// A device that has not said by then what became of the work of a queue pair in error never will.
constexpr absl::Duration kDrainMax = absl::Seconds(1);
// Up to here a copy costs less than telling the device of several parts.
constexpr size_t kCopiedMax = 1024;

void AppendBytes(Buffer& buffer, std::string_view bytes) {
  const size_t size = buffer.size();
  buffer.Extend(bytes.size());
  std::memcpy(buffer.mutable_data() + size, bytes.data(), bytes.size());
}

void AppendChain(Buffer& buffer, const BufferChain& chain, size_t bytes) {
  const size_t size = buffer.size();
  buffer.Extend(bytes);
  chain.CopyTo({buffer.mutable_data() + size, bytes});
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
  // What the peer may reach is decided by the keys it is given.
  const uint8_t access = kFabricRemoteRead | kFabricRemoteWrite;
  if (absl::Status status = lane->qp_->ToInit({.port = hub.options().port, .access = access});
      !status.ok()) {
    return status;
  }
  lane->address_ = hub.address();
  lane->address_.qpn = lane->qp_->number();
  lane->address_.psn = psn & kFabricNumberMask;
  return lane;
}

Lane::~Lane() {
  if (gone_ != nullptr) *gone_ = true;
  if (qp_ != nullptr) {
    // Nothing has come by one that could not receive.
    hub_.Leave(std::move(qp_), out_, depth_ == 0 ? LaneHub::End::kDrained : drain_);
  }
  hub_.GiveBack(grant_);
}

bool Lane::SetGrant(uint32_t grant) {
  if (grant > grant_ && !hub_.Grant(grant - grant_)) return false;
  if (grant < grant_) hub_.GiveBack(grant_ - grant);
  grant_ = grant;
  return true;
}

absl::Status Lane::BringUp(const LaneAddress& peer, uint32_t peer_read_depth) {
  FabricPath path;
  path.port = hub_.options().port;
  path.gid_index = hub_.options().gid_index;
  path.peer_gid = peer.gid;
  path.peer_lid = peer.lid;
  path.peer_qp_number = peer.qpn;
  path.peer_psn = peer.psn;
  path.mtu = std::min(LaneMtuBytes(address_), LaneMtuBytes(peer));
  path.read_depth = static_cast<uint8_t>(hub_.read_depth());
  if (absl::Status status = qp_->ToReadyToReceive(path); !status.ok()) return status;
  // From here on something may come by it, so that it is to be drained, whatever follows.
  depth_ = qp_->limits().send_depth;
  FabricTiming timing;
  timing.psn = address_.psn;
  timing.retry_count = kLaneRetries;
  timing.read_depth = static_cast<uint8_t>(std::min(hub_.read_depth(), peer_read_depth));
  if (absl::Status status = qp_->ToReadyToSend(timing); !status.ok()) return status;
  read_depth_ = timing.read_depth;
  inlined_max_ = std::min<size_t>(kInlinedMax, qp_->limits().inlined);
  return absl::OkStatus();
}

// --- Starting ---

void Lane::Send(std::string_view head, BufferChain payload, std::optional<uint64_t> token) {
  if (!token.has_value() && SendAtOnce(head, payload)) return;
  const uint64_t size = head.size() + payload.size();
  Start({.op = FabricOp::kSend,
         .token = token,
         .head = {head.begin(), head.end()},
         .data = std::move(payload),
         .target = {},
         .left = size,
         .into = {}});
}

void Lane::Write(uint64_t token, const LaneTarget& target, BufferChain data) {
  const uint64_t size = data.size();
  Start({.op = FabricOp::kWrite,
         .token = token,
         .head = {},
         .data = std::move(data),
         .target = target,
         .left = size,
         .into = {}});
}

void Lane::Read(uint64_t token, const LaneTarget& target, uint64_t size, BufferChain into) {
  Start({.op = FabricOp::kRead,
         .token = token,
         .head = {},
         .data = {},
         .target = target,
         .left = size,
         .into = std::move(into)});
}

BufferChain Lane::NewMemory(uint64_t size) {
  BufferChain memory;
  while (memory.size() < size) {
    const uint64_t slice = std::min<uint64_t>(size - memory.size(), kSliceMax);
    Buffer buffer = hub_.NewBuffer(slice);
    if (!buffer) return {};
    buffer.Extend(slice);
    memory.Append(std::move(buffer));
  }
  return memory;
}

void Lane::Start(LaneWork work) {
  if (ended_) return;
  if (work.op == FabricOp::kSend) ++unsent_;
  std::list<LaneWork> one = hub_.TakeWork();
  one.front() = std::move(work);
  waiting_.splice(waiting_.end(), one);
  if (waiting_.size() == 1 && !failed_) PostWaiting();
}

// --- Posting ---

void Lane::PostWaiting() {
  Step step = PostReads();
  while (step == Step::kPosted && !waiting_.empty()) step = PostFirst();
  if (failed_) return;
  if (step != Step::kPosted) hub_.AwaitSends();  // what has ended makes room
  const bool dry = step == Step::kDry || reads_dry_;
  if (!dry || out_ > 0) dry_since_ns_ = 0;
  if (!dry) return retry_.Cancel();
  // Room in the pool may come unheard; or never, where memory cannot be registered.
  const int64_t now_ns = hub_.loop().now_ns();
  if (dry_since_ns_ == 0) dry_since_ns_ = now_ns;
  if (out_ == 0 && now_ns - dry_since_ns_ >= absl::ToInt64Nanoseconds(kDryMax)) {
    return Fail(Broken("post work", "no registered memory"));
  }
  retry_.Arm(TimerWheel::DeadlineTick(hub_.loop().now_ns(), kLanePause), [this] { GoOn(); });
}

Lane::Step Lane::PostFirst() {
  LaneWork& work = waiting_.front();
  if (work.op == FabricOp::kRead) {
    reads_waiting_.splice(reads_waiting_.end(), waiting_, waiting_.begin());
    return PostReads();
  }
  const Step step = work.op == FabricOp::kSend ? PostMessage(work) : PostWrite(work);
  if (step == Step::kPosted && work.left == 0) MoveOn(waiting_);
  return step;
}

// kPosted also when what is left waits for other reads, or for memory: others may overtake it.
Lane::Step Lane::PostReads() {
  reads_dry_ = false;
  while (!reads_waiting_.empty() && reads_out_ < read_depth_) {
    LaneWork& work = reads_waiting_.front();
    const Step step = PostRead(work);
    if (step == Step::kDry) {
      reads_dry_ = true;
      break;
    }
    if (step != Step::kPosted) return step;
    if (work.left == 0) MoveOn(reads_waiting_);
  }
  return Step::kPosted;
}

// All of the first of `from` is posted.
void Lane::MoveOn(std::list<LaneWork>& from) {
  if (from.front().op == FabricOp::kSend) --unsent_;
  if (from.front().token.has_value()) {
    posted_.splice(posted_.end(), from, from.begin());
  } else {
    std::list<LaneWork> one;
    one.splice(one.end(), from, from.begin());
    hub_.ReturnWork(std::move(one));
  }
}

Lane::Step Lane::PostMessage(LaneWork& work) {
  FabricSend send;
  Parts gathered;
  if (work.left <= inlined_max_) {
    Inline({work.head.data(), work.head.size()}, work.data, send, gathered);
  } else if (!GatherMessage(work, gathered)) {
    return Step::kDry;
  }
  send.parts = {gathered.parts.data(), gathered.count};
  LaneSlot* slot;
  const Step step = Post(work, send, work.left, &slot);
  if (step != Step::kPosted) return step;
  slot->held.Append(std::move(gathered.copied));
  if (gathered.in_place) slot->held.Append(std::move(work.data));
  work.data.Clear();
  return step;
}

Lane::Step Lane::PostWrite(LaneWork& work) {
  FabricSend send;
  send.op = FabricOp::kWrite;
  send.remote_address = work.target.address;
  send.remote_key = work.target.key;
  Parts gathered;
  uint64_t size = work.left;
  if (size <= inlined_max_) {
    Inline({}, work.data, send, gathered);
  } else {
    size = GatherSlice(work.data, gathered);
    if (size == 0) return Step::kDry;
  }
  send.parts = {gathered.parts.data(), gathered.count};
  LaneSlot* slot;
  const Step step = Post(work, send, size, &slot);
  if (step != Step::kPosted) return step;
  if (gathered.in_place) {
    slot->held = work.data.SplitFront(size);
  } else {
    slot->held.Append(std::move(gathered.copied));
    work.data.TrimFront(size);
  }
  return step;
}

Lane::Step Lane::PostRead(LaneWork& work) {
  const uint64_t size = std::min<uint64_t>(work.left, kSliceMax);
  FabricSend send;
  send.op = FabricOp::kRead;
  send.remote_address = work.target.address;
  send.remote_key = work.target.key;
  FabricPart part;
  Buffer buffer;
  if (size > 0) {
    if (work.into.empty()) work.into = NewMemory(size);
    if (work.into.empty()) return Step::kDry;
    buffer = work.into.PopFront();
    part = {buffer.mutable_data(), static_cast<uint32_t>(size), 0};
    hub_.FindKey(part.data, part.size, &part.local_key);
    send.parts = {&part, 1};
  }
  LaneSlot* slot;
  const Step step = Post(work, send, size, &slot);
  if (step != Step::kPosted) {
    work.into.Prepend(std::move(buffer));
    return step;
  }
  slot->held.Append(std::move(buffer));
  ++reads_out_;
  return step;
}

// `size`: of the bytes of `work` that this is.
Lane::Step Lane::Post(LaneWork& work, FabricSend& send, uint64_t size, LaneSlot** slot) {
  const Step step = Post(send, slot);
  if (step != Step::kPosted) return step;
  if (work.token.has_value()) hub_.AwaitSends();
  work.begun = true;
  work.left -= size;
  work.target.address += size;
  (*slot)->work = work.token.has_value() ? &work : nullptr;
  (*slot)->last = work.left == 0;
  return step;
}

Lane::Step Lane::Post(FabricSend& send, LaneSlot** slot) {
  if (failed_) return Step::kFailed;
  if (out_ + 1 >= depth_ || starving_) return Step::kFull;
  const uint32_t number = hub_.TakeSlot(address_.qpn);
  if (number == LaneHub::kNoSlot) {
    starving_ = true;
    return Step::kFull;
  }
  send.id = hub_.SendTag(number);
  if (const int error = qp_->PostSend(send)) {
    hub_.ReturnSlot(number);
    if (error == -ENOMEM) return out_ > 0 ? Step::kFull : Step::kDry;
    Fail(Broken("post work", ErrnoText(-error)));
    return Step::kFailed;
  }
  ++out_;
  *slot = &hub_.slot(number);
  (*slot)->op = send.op;
  return Step::kPosted;
}

// What is so small is taken by the device during the call.
void Lane::Inline(std::string_view head, const BufferChain& data, FabricSend& send, Parts& out) {
  const size_t size = head.size() + data.size();
  head.copy(out.bytes.data(), head.size());
  data.CopyTo({out.bytes.data() + head.size(), data.size()});
  out.parts[0] = {out.bytes.data(), static_cast<uint32_t>(size), 0};
  out.count = size > 0 ? 1 : 0;
  send.inlined = size > 0;
}

bool Lane::SendAtOnce(std::string_view head, const BufferChain& payload) {
  if (!waiting_.empty() || !reads_waiting_.empty() || failed_) return false;
  if (head.size() + payload.size() > inlined_max_) return false;
  FabricSend send;
  Parts gathered;
  Inline(head, payload, send, gathered);
  send.parts = {gathered.parts.data(), gathered.count};
  LaneSlot* slot;
  return Post(send, &slot) == Step::kPosted;
}

// The front of `data`, at most `max` bytes and `room` parts of it, as parts of registered memory:
// how many bytes, 0 when the first of them are not registered.
uint64_t Lane::FindParts(const BufferChain& data, uint64_t max, size_t room, FabricPart* parts,
                         size_t* count) const {
  std::array<iovec, kPartsMax> pieces;
  const size_t pieces_count = data.FillIovec({pieces.data(), room});
  uint64_t size = 0;
  *count = 0;
  for (size_t i = 0; i < pieces_count && size < max; ++i) {
    FabricPart part{pieces[i].iov_base, 0, 0};
    part.size = static_cast<uint32_t>(std::min<uint64_t>(pieces[i].iov_len, max - size));
    if (!hub_.FindKey(part.data, part.size, &part.local_key)) break;
    parts[(*count)++] = part;
    size += part.size;
  }
  return size;
}

bool Lane::GatherMessage(LaneWork& work, Parts& out) {
  size_t count = 0;
  out.in_place = work.left > kCopiedMax && FindParts(work.data, work.data.size(), kPartsMax - 1,
                                                     &out.parts[1], &count) == work.data.size();
  out.copied = hub_.NewBuffer(out.in_place ? work.head.size() : work.left);
  if (!out.copied) return false;
  AppendBytes(out.copied, {work.head.data(), work.head.size()});
  if (!out.in_place) AppendChain(out.copied, work.data, work.data.size());
  out.parts[0] = {out.copied.mutable_data(), static_cast<uint32_t>(out.copied.size()), 0};
  hub_.FindKey(out.parts[0].data, out.parts[0].size, &out.parts[0].local_key);
  out.count = out.in_place ? count + 1 : 1;
  return true;
}

uint64_t Lane::GatherSlice(const BufferChain& data, Parts& out) {
  uint64_t size = FindParts(data, kSliceMax, kPartsMax, out.parts.data(), &out.count);
  out.in_place = size > kCopiedMax || size == data.size();
  if (out.in_place) return size;
  size = std::min<uint64_t>(data.size(), kSliceMax);
  out.copied = hub_.NewBuffer(size);
  if (!out.copied) return 0;
  AppendChain(out.copied, data, size);
  out.parts[0] = {out.copied.mutable_data(), static_cast<uint32_t>(size), 0};
  hub_.FindKey(out.parts[0].data, out.parts[0].size, &out.parts[0].local_key);
  out.count = 1;
  return size;
}

// --- Completions ---

void Lane::OnDone(LaneSlot slot, const FabricCompletion& completion) {
  --out_;
  if (slot.op == FabricOp::kRead) --reads_out_;
  if (out_ == 0 && drain_ == LaneHub::End::kFlushing) drain_ = LaneHub::End::kDrained;
  if (ended_) return;
  if (completion.outcome != FabricOutcome::kOk) {
    if (!failed_) Fail(Broken(FabricOpName(slot.op), FabricOutcomeName(completion.outcome)));
  } else if (slot.work != nullptr && !Succeed(slot)) {
    return;
  }
  if (!failed_) return GoOn();
  if (out_ == 0 && drain_ != LaneHub::End::kFailed) EndLater();
}

// False: the owner has destroyed the lane.
bool Lane::Succeed(LaneSlot& slot) {
  if (slot.op == FabricOp::kRead) slot.work->data.Append(std::move(slot.held));
  if (!slot.last) return true;
  std::list<LaneWork> done;
  done.splice(done.end(), posted_, posted_.begin());
  const uint64_t token = *done.front().token;
  BufferChain data = std::move(done.front().data);
  hub_.ReturnWork(std::move(done));
  bool gone = false;
  gone_ = &gone;
  owner_.OnLaneDone(token, RdmaOutcome::kDone, std::move(data));
  if (!gone) gone_ = nullptr;
  return !gone;
}

void Lane::GoOn() {
  if (waiting_.empty() && reads_waiting_.empty()) return;
  const bool full = !waiting_.empty();
  PostWaiting();
  if (full && HasRoom()) owner_.OnLaneRoom();
}

void Lane::OnSlots() {
  starving_ = false;
  if (!failed_) return GoOn();
  if (drain_ != LaneHub::End::kFailed) return;
  Mark();
  if (out_ == 0 && drain_ != LaneHub::End::kFailed) EndLater();
}

void Lane::OnReceived(Buffer buffer) {
  if (!ended_) owner_.OnLaneMessage(std::move(buffer));
}

void Lane::OnFailed(std::string_view operation, std::string_view reason) {
  if (!failed_) Fail(Broken(operation, reason));
}

void Lane::OnQueueLost(const absl::Status& status) {
  Break(Broken("completion queue", {status.message().data(), status.message().size()}));
  EndLater();
}

absl::Status Lane::Broken(std::string_view operation, std::string_view reason) const {
  return absl::UnavailableError(
      absl::StrCat("RDMA lane ", address_.qpn, ": ", AbslView(operation), ": ", AbslView(reason)));
}

// --- The end ---

// The one way out of working, which a lane goes once.
void Lane::Break(absl::Status status) {
  if (failed_) return;
  failed_ = true;
  end_ = std::move(status);
  retry_.Cancel();
  hub_.AwaitSends();
  // Where that fails the hub tries again.
  if (qp_->ToError().ok()) drain_ = LaneHub::End::kFailed;
}

void Lane::Stop() {
  Break(absl::CancelledError("stopped"));
  ended_ = true;
  retry_.Cancel();
}

void Lane::Fail(absl::Status status) {
  Break(std::move(status));
  if (drain_ == LaneHub::End::kFailed && !starving_) Mark();
  if (out_ == 0 && drain_ != LaneHub::End::kFailed) return EndLater();
  retry_.Arm(TimerWheel::DeadlineTick(hub_.loop().now_ns(), kDrainMax), [this] { End(); });
}

// One that could not receive has nothing to wait for.
void Lane::Mark() {
  const LaneHub::Marked marked = depth_ == 0 ? LaneHub::Marked::kNever : hub_.PostMarker(*qp_);
  starving_ = marked == LaneHub::Marked::kLater;
  if (starving_) return;
  drain_ = LaneHub::End::kFlushing;
  if (marked == LaneHub::Marked::kPosted) ++out_;
}

void Lane::EndLater() {
  if (ended_) return;
  retry_.Arm(TimerWheel::TickAt(hub_.loop().now_ns()), [this] { End(); });
}

void Lane::End() {
  ended_ = true;
  bool gone = false;
  gone_ = &gone;
  std::list<LaneWork> works = std::exchange(posted_, {});
  works.splice(works.end(), reads_waiting_);
  works.splice(works.end(), waiting_);
  for (LaneWork& work : works) {
    if (!work.token.has_value()) continue;
    owner_.OnLaneDone(*work.token, work.begun ? RdmaOutcome::kInDoubt : RdmaOutcome::kNeverPosted,
                      {});
    if (gone) return;
  }
  gone_ = nullptr;
  owner_.OnLaneEnd(std::move(end_));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
