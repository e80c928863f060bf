#include "rdma/lane_group.h"

#include <algorithm>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr uint64_t kSlice = Lane::kSliceMax;

// For each lane, of what has been started and not been told: as much as its queue of work holds,
// and twice what it has on the way at the greatest read depth.
constexpr uint64_t kWritesUntoldMax = 8 << 20;
constexpr uint64_t kReadsUntoldMax = 2 << 20;

// The token of a slice on its lane: whether it reads, the number of its operation, and which slice
// of that it is. Reads are bounded by 32 bits of bytes, and the place of a write's slice is of no
// interest.
constexpr uint64_t kReads = uint64_t{1} << 63;
constexpr int kSliceBits = 24;
constexpr uint64_t kSliceMask = (uint64_t{1} << kSliceBits) - 1;

constexpr uint64_t SliceToken(bool reads, uint64_t number, uint64_t slice) {
  return (reads ? kReads : 0) | uint64_t{static_cast<uint32_t>(number)} << kSliceBits | slice;
}
constexpr uint32_t NumberOf(uint64_t token) { return static_cast<uint32_t>(token >> kSliceBits); }

// Of `left` bytes from `address` on, those that go by one lane.
constexpr uint64_t SliceAt(uint64_t address, uint64_t left) {
  return std::min(left, kSlice - address % kSlice);
}
constexpr uint32_t SlicesOf(uint64_t address, uint64_t size) {
  return static_cast<uint32_t>((address % kSlice + size + kSlice - 1) / kSlice);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LaneGroup>> LaneGroup::Create(LaneHub& hub, Owner& owner,
                                                             size_t count, uint32_t grant,
                                                             absl::FunctionRef<uint32_t()> psn) {
  std::unique_ptr<LaneGroup> group(new LaneGroup(owner));
  while (group->lanes_.size() < count) {
    const bool first = group->lanes_.empty();
    auto member = std::make_unique<Member>(*group);
    auto lane = Lane::Create(hub, *member, psn(), first ? grant : 0);
    if (!lane.ok()) {
      if (first) return lane.status();
      break;
    }
    member->lane = *std::move(lane);
    group->lanes_.push_back(std::move(member));
  }
  return group;
}

std::vector<LaneAddress> LaneGroup::addresses() const {
  std::vector<LaneAddress> addresses;
  for (const auto& member : lanes_) addresses.push_back(member->lane->address());
  return addresses;
}

absl::Status LaneGroup::BringUp(std::span<const LaneAddress> peers, uint32_t peer_read_depth) {
  if (peers.size() < lanes_.size()) lanes_.resize(peers.size());
  for (size_t i = 0; i < lanes_.size(); ++i) {
    const absl::Status status = lanes_[i]->lane->BringUp(peers[i], peer_read_depth);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

// --- Starting ---

Lane& LaneGroup::LaneAt(uint64_t address) const {
  return *lanes_[address / kSlice % lanes_.size()]->lane;
}

void LaneGroup::Send(std::string_view head, BufferChain payload) {
  if (held_.empty() && MaySend(barrier_)) {
    return lanes_.front()->lane->Send(head, std::move(payload));
  }
  held_.push_back({{head.begin(), head.end()}, std::move(payload), barrier_});
}

void LaneGroup::SendHeld() {
  while (!held_.empty() && MaySend(held_.front().after)) {
    Held& next = held_.front();
    lanes_.front()->lane->Send({next.head.data(), next.head.size()}, std::move(next.payload));
    held_.pop_front();
  }
}

void LaneGroup::Write(uint64_t token, const LaneTarget& target, BufferChain data) {
  if (single()) return lanes_.front()->lane->Write(token, target, std::move(data));
  const uint64_t number = writes_.next++;
  writes_.bytes += data.size();
  writes_.works[static_cast<uint32_t>(number)] = {.token = token,
                                                  .size = data.size(),
                                                  .slices = SlicesOf(target.address, data.size()),
                                                  .read = {}};
  for (LaneTarget at = target; !data.empty();) {
    const uint64_t size = SliceAt(at.address, data.size());
    Lane& lane = LaneAt(at.address);
    if (&lane != lanes_.front()->lane.get()) barrier_ = writes_.next;
    lane.Write(SliceToken(false, number, 0), at, data.SplitFront(size));
    at.address += size;
  }
}

void LaneGroup::Read(uint64_t token, const LaneTarget& target, uint64_t size, BufferChain into) {
  if (single()) return lanes_.front()->lane->Read(token, target, size, std::move(into));
  HeldRead read = {.token = token, .target = target, .size = size, .into = std::move(into)};
  if (held_reads_.empty() && MayRead()) return StartRead(std::move(read));
  held_reads_.push(std::move(read));
}

// A lane that has ended would not tell of any more.
bool LaneGroup::MayRead() const {
  return reads_.bytes < kReadsUntoldMax * lanes_.size() && !reads_.broken && end_.ok();
}

void LaneGroup::StartRead(HeldRead read) {
  const uint64_t number = reads_.next++;
  reads_.bytes += read.size;
  Striped& work = reads_.works[static_cast<uint32_t>(number)];
  work.token = read.token;
  work.size = read.size;
  work.slices = SlicesOf(read.target.address, read.size);
  work.read.resize(work.slices);
  LaneTarget at = read.target;
  for (uint64_t slice = 0; slice < work.read.size(); ++slice) {
    const uint64_t part = SliceAt(at.address, read.size);
    LaneAt(at.address).Read(SliceToken(true, number, slice), at, part, read.into.PopFront());
    at.address += part;
    read.size -= part;
  }
}

BufferChain LaneGroup::NewMemory(const LaneTarget& target, uint64_t size) {
  if (single()) return lanes_.front()->lane->NewMemory(size);
  BufferChain memory;
  for (uint64_t at = target.address; size > 0;) {
    const uint64_t part = SliceAt(at, size);
    BufferChain one = lanes_.front()->lane->NewMemory(part);
    if (one.empty()) return {};
    memory.Append(std::move(one));
    at += part;
    size -= part;
  }
  return memory;
}

void LaneGroup::Stop() {
  for (const auto& member : lanes_) member->lane->Stop();
}

bool LaneGroup::HasRoom() const {
  return writes_.bytes < kWritesUntoldMax * lanes_.size() &&
         std::all_of(lanes_.begin(), lanes_.end(),
                     [](const auto& member) { return member->lane->HasRoom(); });
}

// --- What the lanes tell ---

void LaneGroup::Member::OnLaneMessage(Buffer message) {
  if (this != group.lanes_.front().get()) return group.owner_.OnLaneStray();
  group.owner_.OnLaneMessage(std::move(message));
}

void LaneGroup::Member::OnLaneRoom() {
  if (group.HasRoom()) group.owner_.OnLaneRoom();
}

void LaneGroup::Member::OnLaneDone(uint64_t token, RdmaOutcome outcome, BufferChain data) {
  if (group.single()) return group.owner_.OnLaneDone(token, outcome, std::move(data));
  group.OnSliceDone(token, outcome, std::move(data));
}

void LaneGroup::OnSliceDone(uint64_t token, RdmaOutcome outcome, BufferChain data) {
  const bool reads = (token & kReads) != 0;
  Line& line = reads ? reads_ : writes_;
  Striped& work = line.works.find(NumberOf(token))->second;
  if (reads) work.read[token & kSliceMask] = std::move(data);
  work.outcome = work.ended == 0 || work.outcome == outcome ? outcome : RdmaOutcome::kInDoubt;
  if (++work.ended < work.slices) return;
  if (!TellDone(line)) return;
  while (!held_reads_.empty() && MayRead()) StartRead(held_reads_.pop());
  SendHeld();
}

// Those that have ended and that nothing older keeps from being told. False: the owner has
// destroyed the group.
bool LaneGroup::TellDone(Line& line) {
  bool gone = false;
  gone_ = &gone;
  for (auto at = line.works.find(static_cast<uint32_t>(line.first));
       at != line.works.end() && at->second.ended == at->second.slices;
       at = line.works.find(static_cast<uint32_t>(line.first))) {
    Striped work = std::move(at->second);
    line.works.erase(at);
    ++line.first;
    line.bytes -= work.size;
    // What is done again goes in its order: with one, all that follow.
    if (work.outcome != RdmaOutcome::kDone) line.broken = true;
    if (line.broken && work.outcome == RdmaOutcome::kDone) work.outcome = RdmaOutcome::kInDoubt;
    BufferChain data;
    for (BufferChain& part : work.read) data.Append(std::move(part));
    owner_.OnLaneDone(work.token, work.outcome, std::move(data));
    if (gone) return false;
  }
  gone_ = nullptr;
  return true;
}

void LaneGroup::OnEnd(absl::Status status) {
  if (end_.ok()) end_ = std::move(status);
  if (++ended_ == lanes_.size()) return TellEnd();
  for (const auto& member : lanes_) member->lane->OnFailed("retire", "another lane has failed");
}

void LaneGroup::TellEnd() {
  bool gone = false;
  gone_ = &gone;
  while (!held_reads_.empty()) {
    owner_.OnLaneDone(held_reads_.pop().token, RdmaOutcome::kNeverPosted, {});
    if (gone) return;
  }
  gone_ = nullptr;
  owner_.OnLaneEnd(std::move(end_));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
