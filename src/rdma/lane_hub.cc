#include "rdma/lane_hub.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/error.h"
#include "buffer/pool_cache.h"
#include "rdma/lane.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Queue pairs that are made to find one whose number has rested.
constexpr size_t kNumberTries = 64;
// What a queue pair may take to send what is left; and then to flush, or it never will.
constexpr absl::Duration kGraveMax = absl::Seconds(1);
constexpr absl::Duration kRestPause = absl::Milliseconds(5);
// How late the end of a send that nobody waits for may be told: a failure, too, which takes the
// device longer to find, and memory that is held that long after the last message.
constexpr absl::Duration kLookPause = absl::Milliseconds(10);

}  // namespace

LaneHub::PostLater::PostLater(LaneHub& owner)
    : Deferred([](Deferred* node) { static_cast<PostLater*>(node)->hub.PostFreed(); }),
      hub(owner) {}

LaneHub::LaneHub(LoopCore& loop, FabricDevice& device, const Options& options)
    : loop_(loop),
      device_(device),
      options_(options),
      registry_(loop.pool(), device, kFabricLocalWrite),
      grave_timer_(loop.timers()),
      rest_timer_(loop.timers()),
      look_timer_(loop.timers()) {}

absl::StatusOr<std::unique_ptr<LaneHub>> LaneHub::Create(LoopCore& loop, FabricDevice& device,
                                                         const Options& options) {
  std::unique_ptr<LaneHub> hub(new LaneHub(loop, device, options));
  if (absl::Status status = hub->Start(); !status.ok()) return status;
  return hub;
}

absl::Status LaneHub::Start() {
  if (options_.completion_depth <= options_.receives) {
    return absl::InvalidArgumentError(absl::StrCat("RDMA lanes on ", device_.name(), ": ",
                                                   options_.receives, " receives and ",
                                                   options_.completion_depth, " completions"));
  }
  if (absl::Status status = FindAddress(); !status.ok()) return status;
  CompletionPump::Options pump;
  pump.depth = options_.receives;
  pump.send_depth = slots_max();
  pump.spin_max = options_.spin_max;
  pump.on_lost = [this](absl::Status status) { OnLost(std::move(status)); };
  auto made = CompletionPump::Create(loop_, device_, std::move(pump));
  if (!made.ok()) return made.status();
  pump_ = *std::move(made);
  sink_ = pump_->AddSink(*this);
  send_sink_.number = pump_->AddSink(send_sink_);
  auto watch = DeviceWatch::Create(loop_, device_, [this](const FabricEvent& e) { OnEvent(e); });
  if (!watch.ok()) return watch.status();
  watch_ = *std::move(watch);
  return FillBank();
}

absl::Status LaneHub::FindAddress() {
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
  read_depth_ = std::min({options_.read_depth, device_.limits().read_depth, uint32_t{UINT8_MAX}});
  return absl::OkStatus();
}

absl::Status LaneHub::FillBank() {
  auto srq = device_.CreateSrq(options_.receives, 1, 0);
  if (!srq.ok()) return srq.status();
  srq_ = *std::move(srq);
  const size_t bytes = size_t{options_.receives} * options_.receive_size;
  bank_ = std::make_unique_for_overwrite<char[]>(bytes);
  const auto memory = device_.Register(bank_.get(), bytes, kFabricLocalWrite);
  if (!memory.ok()) return memory.status();
  bank_memory_ = *memory;
  for (uint32_t slot = 0; slot < options_.receives; ++slot) {
    if (PostReceive(slot)) continue;
    return absl::ResourceExhaustedError(
        absl::StrCat("RDMA receives on ", device_.name(), ": no room for ", options_.receives));
  }
  return absl::OkStatus();
}

// Queue pairs first, then the queues, and these before the memory that lies in them. Memory that
// the device does not let go of is left to it.
LaneHub::~LaneHub() {
  graves_.clear();
  srq_.reset();
  pump_.reset();
  if (bank_memory_.handle != nullptr && !device_.Deregister(bank_memory_).ok()) {
    static_cast<void>(bank_.release());
  }
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
  const FabricPart part{Receive(slot), options_.receive_size, bank_memory_.local_key};
  const FabricReceive receive{CompletionPump::Tag(sink_, slot), {&part, 1}};
  if (srq_->PostReceive(receive) != 0) return false;
  ++posted_;
  return true;
}

Buffer LaneHub::CopyOf(std::string_view bytes) const {
  PoolCore::Refusal refusal;
  if (BufferNode* const node = loop_.cache().TakeNode(bytes.size(), BufferTag::kRdma, &refusal)) {
    bytes.copy(node->data, bytes.size());
    NodeExtend(*node, bytes.size());
    return BufferAccess::Adopt(node);
  }
  auto memory = std::make_unique<char[]>(bytes.size());
  bytes.copy(memory.get(), bytes.size());
  const char* const data = memory.get();
  return Buffer::FromExternal(data, bytes.size(), [memory = std::move(memory)] {});
}

bool LaneHub::PostFreed() {
  for (; !freed_.empty(); freed_.pop_back()) {
    if (PostReceive(freed_.back())) continue;
    // One receive less for all lanes: none may count on the bank any more.
    freed_.clear();
    Lose("receive", "it cannot be posted again");
    return false;
  }
  return true;
}

void LaneHub::OnCompletion(uint32_t word, const FabricCompletion& completion) {
  --posted_;
  Buffer message;
  if (completion.outcome == FabricOutcome::kOk) message = CopyOf({Receive(word), completion.bytes});
  freed_.push_back(word);
  if (posted_ < granted_ && !PostFreed()) return;
  if (Lane* const lane = FindLane(completion.qp_number)) {
    if (completion.outcome == FabricOutcome::kOk) {
      lane->OnReceived(std::move(message));
    } else {
      lane->OnFailed("receive", FabricOutcomeName(completion.outcome));
    }
  }
  // Behind those that this has woken.
  if (!freed_.empty()) loop_.DeferSoon(post_later_);
}

// What comes comes by the same one again and again.
Lane* LaneHub::FindLane(uint32_t qp_number) {
  if (found_ != nullptr && found_number_ == qp_number) return found_;
  const auto found = lanes_.find(qp_number);
  if (found == lanes_.end()) return nullptr;
  found_number_ = qp_number;
  return found_ = found->second.lane;
}

void LaneHub::OnSendDone(uint32_t word, const FabricCompletion& completion) {
  LaneSlot slot = std::move(slots_[word]);
  FreeSlot(word);
  ++sends_done_;
  if (slots_out() == 0) pump_->ForgetSends();
  if (Lane* const lane = FindLane(slot.qp_number)) {
    lane->OnDone(std::move(slot), completion);
  } else if (const auto grave = graves_.find(slot.qp_number); grave != graves_.end()) {
    if (--grave->second.out == 0 && grave->second.end != End::kFailed) {
      Grave rest = std::move(graves_.extract(grave).mapped());
      rest.end == End::kWorks ? Drain(std::move(rest)) : Destroy(std::move(rest));
    }
  }
  Feed();
}

void LaneHub::OnEvent(const FabricEvent& event) {
  switch (event.kind) {
    case FabricEventKind::kQpFatal:
      for (const auto& [number, member] : lanes_) {
        if (member.owner != event.owner) continue;
        return member.lane->OnFailed("device", FabricEventKindName(event.kind));
      }
      return;
    case FabricEventKind::kCqError:
      return OnLost(absl::UnavailableError("it has overflowed"));
    case FabricEventKind::kDeviceFatal:
    case FabricEventKind::kSrqError:
      return Lose("device", FabricEventKindName(event.kind));
    // For lanes that are made from now on. While the port has none the last one stays.
    case FabricEventKind::kPortActive:
    case FabricEventKind::kAddressChange:
      return FindAddress().IgnoreError();
    // What a port that is down loses is sent again, or fails in time.
    case FabricEventKind::kPortError:
    case FabricEventKind::kQpEstablished:
    case FabricEventKind::kQpLastReceive:
    case FabricEventKind::kSrqLimit:
    case FabricEventKind::kOther:
      return;
  }
}

void LaneHub::ForEachLane(absl::FunctionRef<void(Lane&)> run) {
  std::vector<uint32_t> numbers;
  for (const auto& [number, member] : lanes_) numbers.push_back(number);
  for (const uint32_t number : numbers) {
    const auto member = lanes_.find(number);
    if (member != lanes_.end()) run(*member->second.lane);
  }
}

void LaneHub::Lose(std::string_view operation, std::string_view reason) {
  lost_ = absl::UnavailableError(absl::StrCat("RDMA lanes on ", device_.name(), ": ",
                                              AbslView(operation), ": ", AbslView(reason)));
  ForEachLane([&](Lane& lane) { lane.OnFailed(operation, reason); });
}

void LaneHub::OnLost(absl::Status status) {
  lost_ = status;
  ForEachLane([&](Lane& lane) { lane.OnQueueLost(status); });
}

bool LaneHub::Grant(uint32_t count) {
  if (count > available()) return false;
  if (posted_ < granted_ + count && !PostFreed()) return false;
  granted_ += count;
  return true;
}

// --- Slots ---

uint32_t LaneHub::TakeSlot(uint32_t qp_number) {
  if (!HasSlot()) FreeRested();
  // Not before those that wait already.
  if (!HasSlot() || (!starving_.empty() && !feeding_)) {
    starving_.push(qp_number);
    AwaitSends();
    return kNoSlot;
  }
  if (spare_slots_.empty()) AddSlot();
  const uint32_t number = spare_slots_.back();
  spare_slots_.pop_back();
  slots_[number].qp_number = qp_number;
  if (!look_timer_.armed()) LookLater();
  return number;
}

void LaneHub::AddSlot() {
  spare_slots_.push_back(static_cast<uint32_t>(slots_.size()));
  slots_.emplace_back();
}

void LaneHub::LookLater() {
  look_timer_.Arm(TimerWheel::DeadlineTick(loop_.now_ns(), kLookPause),
                  [this, before = sends_done_] {
                    if (slots_out() == 0) return;
                    sends_done_ == before ? AwaitSends() : LookLater();
                  });
}

void LaneHub::FreeSlot(uint32_t number) {
  slots_[number] = {};
  spare_slots_.push_back(number);
}

void LaneHub::ReturnSlot(uint32_t number) {
  FreeSlot(number);
  if (!starving_.empty()) ArmRest();
}

LaneHub::Marked LaneHub::PostMarker(FabricQp& qp) {
  const uint32_t number = TakeSlot(qp.number());
  if (number == kNoSlot) return Marked::kLater;
  FabricSend send;
  send.id = SendTag(number);
  AwaitSends();
  if (qp.PostSend(send) == 0) return Marked::kPosted;
  ReturnSlot(number);
  return Marked::kNever;
}

// Slots may come back without a completion.
void LaneHub::ArmRest() {
  rest_timer_.Arm(TimerWheel::DeadlineTick(loop_.now_ns(), kRestPause), [this] {
    FreeRested();
    Feed();
    for (const auto& [number, rest] : resting_) {
      if (!rest.slots || !lost_.ok()) continue;  // of a lost queue nothing will be known
      pump_->Look();
      return ArmRest();
    }
  });
}

void LaneHub::Feed() {
  feeding_ = true;
  while (!starving_.empty() && HasSlot()) {
    const uint32_t number = starving_.pop();
    if (const auto member = lanes_.find(number); member != lanes_.end()) {
      member->second.lane->OnSlots();
    } else if (const auto grave = graves_.find(number); grave != graves_.end()) {
      if (grave->second.end != End::kFailed) continue;
      Mark(grave->second);
      if (grave->second.out == 0) Destroy(std::move(graves_.extract(grave).mapped()));
    }
  }
  feeding_ = false;
}

std::list<LaneWork> LaneHub::TakeWork() {
  if (spare_works_.empty()) return std::list<LaneWork>(1);
  std::list<LaneWork> one;
  one.splice(one.end(), spare_works_, spare_works_.begin());
  return one;
}

void LaneHub::ReturnWork(std::list<LaneWork> one) {
  if (spare_works_.size() >= kSpareWorksMax) return;
  one.front() = LaneWork();
  spare_works_.splice(spare_works_.end(), one);
}

// --- Queue pairs ---

absl::StatusOr<std::unique_ptr<FabricQp>> LaneHub::NewQp(Lane& lane, uint32_t send_depth) {
  if (!lost_.ok()) return lost_;
  FabricQpOptions options;
  options.owner = next_owner_++;
  options.send_cq = &pump_->send_cq();
  options.receive_cq = &pump_->cq();
  options.srq = srq_.get();
  options.send_depth = std::min(send_depth, device_.limits().queue_depth);
  FreeRested();
  // Held until the end, so that the device does not give the same number again.
  std::vector<std::unique_ptr<FabricQp>> tired;
  while (tired.size() < kNumberTries) {
    auto made = device_.CreateQp(options);
    if (!made.ok()) return made.status();
    const uint32_t number = (*made)->number();
    if (!resting_.contains(number)) {
      lanes_[number] = {&lane, options.owner};
      return made;
    }
    tired.push_back(*std::move(made));
  }
  return absl::UnavailableError(absl::StrCat("create queue pair on ", device_.name(),
                                             ": every number was in use a moment ago"));
}

void LaneHub::Leave(std::unique_ptr<FabricQp> qp, uint32_t out, End end) {
  const uint32_t number = qp->number();
  lanes_.erase(number);
  found_ = nullptr;
  Grave grave{std::move(qp), out, loop_.now_ns(), end};
  if (end == End::kDrained) return Destroy(std::move(grave));
  if (end == End::kFailed || out == 0) return Drain(std::move(grave));
  graves_[number] = std::move(grave);
  AwaitSends();
  if (!grave_timer_.armed()) ArmGraves();
}

void LaneHub::ArmGraves() {
  grave_timer_.Arm(TimerWheel::DeadlineTick(loop_.now_ns(), kGraveMax), [this] { DestroyOld(); });
}

void LaneHub::Drain(Grave grave) {
  if (!lost_.ok() || !grave.qp->ToError().ok()) return Destroy(std::move(grave));
  grave.end = End::kFailed;
  grave.since_ns = loop_.now_ns();
  Mark(grave);
  if (grave.end == End::kFlushing && grave.out == 0) return Destroy(std::move(grave));
  graves_[grave.qp->number()] = std::move(grave);
  if (!grave_timer_.armed()) ArmGraves();
}

void LaneHub::Mark(Grave& grave) {
  const Marked marked = PostMarker(*grave.qp);
  if (marked == Marked::kLater) return;
  grave.end = End::kFlushing;
  if (marked == Marked::kPosted) ++grave.out;
}

void LaneHub::Destroy(Grave grave) {
  const uint32_t number = grave.qp->number();
  grave.qp.reset();
  resting_[number] = {pump_->stats().empties, grave.out > 0};
  pump_->Look();
  if (grave.out > 0) ArmRest();
}

// And those of which enough has been sent.
void LaneHub::DestroyOld() {
  const int64_t due_ns = loop_.now_ns() - absl::ToInt64Nanoseconds(kGraveMax);
  std::vector<uint32_t> due;
  for (const auto& [number, grave] : graves_) {
    if (grave.since_ns <= due_ns) due.push_back(number);
  }
  for (const uint32_t number : due) {
    Grave grave = std::move(graves_.extract(number).mapped());
    grave.end == End::kWorks ? Drain(std::move(grave)) : Destroy(std::move(grave));
  }
  if (!graves_.empty()) ArmGraves();
}

void LaneHub::FreeRested() {
  absl::erase_if(resting_, [this](const auto& rest) {
    const bool rested = Rested(rest.second.empties);
    if (rested && rest.second.slots) FreeSlotsOf(rest.first);
    return rested;
  });
}

void LaneHub::FreeSlotsOf(uint32_t qp_number) {
  for (uint32_t number = 0; number < slots_.size(); ++number) {
    if (slots_[number].qp_number == qp_number) FreeSlot(number);
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
