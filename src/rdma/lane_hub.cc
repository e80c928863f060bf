#include "rdma/lane_hub.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "rdma/lane.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr absl::Duration kRefillPause = absl::Milliseconds(5);
// Queue pairs that are made to find one whose number has rested.
constexpr size_t kNumberTries = 64;
constexpr size_t kRestingMax = 1024;

}  // namespace

LaneHub::LaneHub(LoopCore& loop, FabricDevice& device, const Options& options)
    : loop_(loop),
      device_(device),
      options_(options),
      registry_(loop.pool(), device, kFabricLocalWrite),
      retry_(loop.timers()) {}

absl::StatusOr<std::unique_ptr<LaneHub>> LaneHub::Create(LoopCore& loop, FabricDevice& device,
                                                         const Options& options) {
  std::unique_ptr<LaneHub> hub(new LaneHub(loop, device, options));
  if (absl::Status status = hub->Start(); !status.ok()) return status;
  return hub;
}

absl::Status LaneHub::Start() {
  const absl::StatusOr<FabricPort> port = device_.QueryPort(options_.port);
  if (!port.ok()) return port.status();
  if (!port->active) {
    return absl::UnavailableError(
        absl::StrCat("RDMA port ", options_.port, " of ", device_.name(), ": not active"));
  }
  const absl::StatusOr<FabricGid> gid = device_.QueryGid(options_.port, options_.gid_index);
  if (!gid.ok()) return gid.status();
  address_.gid = *gid;
  address_.lid = port->lid;
  for (address_.mtu = 1; address_.mtu < 5 && LaneMtuBytes(address_) < port->mtu;) ++address_.mtu;

  CompletionPump::Options pump;
  pump.depth = options_.completion_depth;
  pump.spin_max = options_.spin_max;
  pump.on_lost = [this](absl::Status status) { OnLost(std::move(status)); };
  auto made = CompletionPump::Create(loop_, device_, std::move(pump));
  if (!made.ok()) return made.status();
  pump_ = *std::move(made);
  sink_ = pump_->AddSink(*this);
  auto srq = device_.CreateSrq(options_.receives, 1, 0);
  if (!srq.ok()) return srq.status();
  srq_ = *std::move(srq);
  receives_.resize(options_.receives);
  for (uint32_t slot = 0; slot < options_.receives; ++slot) {
    if (PostReceive(slot)) continue;
    const absl::Status refusal = registry_.refusal();
    if (!refusal.ok()) return refusal;
    return absl::ResourceExhaustedError(
        absl::StrCat("RDMA receives on ", device_.name(), ": no room for ", options_.receives));
  }
  return absl::OkStatus();
}

// The queue must be gone before the buffers that lie in it are.
LaneHub::~LaneHub() {
  srq_.reset();
  pump_.reset();
}

bool LaneHub::FindKey(const void* data, size_t size, uint32_t* key) const {
  const std::optional<FabricMemory> memory = registry_.Find(data, size);
  if (!memory.has_value()) return false;
  *key = memory->local_key;
  return true;
}

Buffer LaneHub::NewBuffer(size_t size) {
  Buffer buffer = loop_.pool().TryAllocate(size, BufferTag::kRdma);
  uint32_t key;
  if (buffer && !FindKey(buffer.data(), buffer.tailroom(), &key)) buffer.Reset();
  return buffer;
}

bool LaneHub::PostReceive(uint32_t slot) {
  Buffer buffer = NewBuffer(options_.receive_size);
  if (!buffer) return false;
  buffer.Extend(options_.receive_size);
  FabricPart part{buffer.mutable_data(), options_.receive_size, 0};
  FindKey(part.data, part.size, &part.local_key);
  const FabricReceive receive{CompletionPump::Tag(sink_, slot), {&part, 1}};
  if (srq_->PostReceive(receive) != 0) return false;
  receives_[slot] = std::move(buffer);
  ++posted_;
  return true;
}

void LaneHub::FillUp() {
  while (!free_slots_.empty()) {
    if (!PostReceive(free_slots_.back())) {
      retry_.Arm(TimerWheel::DeadlineTick(loop_.now_ns(), kRefillPause), [this] { FillUp(); });
      return;
    }
    free_slots_.pop_back();
  }
}

void LaneHub::OnCompletion(uint32_t word, const FabricCompletion& completion) {
  Buffer buffer = std::move(receives_[word]);
  --posted_;
  free_slots_.push_back(word);
  FillUp();
  const auto lane = lanes_.find(completion.qp_number);
  if (lane == lanes_.end()) return;
  if (completion.outcome != FabricOutcome::kOk) {
    return lane->second->OnReceiveFailed(completion.outcome);
  }
  buffer.Truncate(completion.bytes);
  lane->second->OnReceived(std::move(buffer));
}

void LaneHub::OnLost(absl::Status status) {
  // A lane's owner may destroy lanes, this one or others.
  std::vector<uint32_t> numbers;
  for (const auto& [number, lane] : lanes_) numbers.push_back(number);
  for (const uint32_t number : numbers) {
    const auto lane = lanes_.find(number);
    if (lane != lanes_.end()) lane->second->OnQueueLost(status);
  }
}

bool LaneHub::Grant(uint32_t count) {
  if (count > available()) return false;
  granted_ += count;
  return true;
}

absl::StatusOr<std::unique_ptr<FabricQp>> LaneHub::NewQp(Lane& lane, uint32_t send_depth) {
  FabricQpOptions options;
  options.send_cq = &pump_->cq();
  options.receive_cq = &pump_->cq();
  options.srq = srq_.get();
  options.send_depth = send_depth;
  // Held until the end, so that the device does not give the same number again.
  std::vector<std::unique_ptr<FabricQp>> tired;
  while (tired.size() < kNumberTries) {
    auto made = device_.CreateQp(options);
    if (!made.ok()) return made.status();
    const uint32_t number = (*made)->number();
    const auto rest = resting_.find(number);
    if (rest == resting_.end() || Rested(rest->second)) {
      if (rest != resting_.end()) resting_.erase(rest);
      lanes_[number] = &lane;
      return made;
    }
    tired.push_back(*std::move(made));
  }
  return absl::UnavailableError(absl::StrCat("create queue pair on ", device_.name(),
                                             ": every number was in use a moment ago"));
}

void LaneHub::Leave(std::unique_ptr<FabricQp> qp) {
  const uint32_t number = qp->number();
  lanes_.erase(number);
  qp.reset();
  if (resting_.size() >= kRestingMax) {
    absl::erase_if(resting_, [this](const auto& rest) { return Rested(rest.second); });
  }
  resting_[number] = pump_->stats().empties;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
