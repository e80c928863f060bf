// EndpointCore: bytes that the other side takes by itself: large messages, which are offered and
// then read from where they lie, and reads of exposed memory that this side's loop answers.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rdma/endpoint_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// To have the device know a smaller block costs more than to copy it.
constexpr size_t kOfferPartMin = 32 * 1024;
// Offered and not fetched, in bytes, before the last offer.
constexpr uint64_t kOfferedMax = 16 * 1024 * 1024;

}  // namespace

// --- Offering ---

bool EndpointCore::OffersAgreed() const { return (gate_.features() & kFeatureOffers) != 0; }

LaneHub* EndpointCore::Hub() const {
  if (Device() == nullptr) return nullptr;
  const absl::StatusOr<LaneHub*> hub = Device()->HubFor(*core_);
  return hub.ok() ? *hub : nullptr;
}

bool EndpointCore::WantsOffer(const Work& work) const {
  // What is left of one that is offered is, however little it is.
  const bool large = work.offered || work.data.size() > options_.rendezvous_min;
  return carrier_ == Carrier::kLane && OffersAgreed() && !work.in_pieces && large &&
         work.data.front().size() >= kOfferPartMin;
}

bool EndpointCore::OffersFull() const { return offered_bytes_ >= kOfferedMax; }

// The blocks that `work` begins with, as far as they can be offered.
EndpointCore::Offered EndpointCore::MakeOffer(Work& work) {
  Offered offer;
  LaneHub* const hub = Hub();
  work.in_pieces = hub == nullptr || !hub->MayOffer();
  while (!work.in_pieces && !work.data.empty() && offer.parts.size() < kOfferPartsMax) {
    const std::string_view block = work.data.front();
    uint32_t slab_key;
    // A slab's own key reaches the bytes of others; what lies elsewhere may not be for devices.
    if (block.size() < kOfferPartMin || !hub->FindKey(block.data(), block.size(), &slab_key)) break;
    auto exposed = hub->Expose({const_cast<char*>(block.data()), block.size()}, RdmaAccess::kRead);
    if (!exposed.ok()) {
      work.in_pieces = true;
      break;
    }
    offer.size += block.size();
    offer.parts.push_back({work.data.PopFront(), *std::move(exposed)});
  }
  offer.counted = {.blocks = offer.parts.size(), .bytes = offer.size};
  if (hub != nullptr) hub->OnOffered(offer.counted);
  return offer;
}

// False: what `work` begins with goes as bytes.
bool EndpointCore::PostOffer(Work& work) {
  Offered offer = MakeOffer(work);
  if (offer.parts.empty()) return false;
  std::array<char, kOfferPartsMax * kOfferPartSize> bytes;
  size_t size = 0;
  for (const OfferedPart& part : offer.parts) {
    EncodeOfferPart(
        {.address = part.exposed.address(), .size = part.bytes.size(), .key = part.exposed.key()},
        std::span(bytes).subspan(size).first<kOfferPartSize>());
    size += kOfferPartSize;
  }
  work.posted = true;
  work.offered = true;
  work.number = window_.TakeNext();
  queue_.OnPosted(offer.size);
  offered_bytes_ += offer.size;
  ++stats_.offers;
  offer.number = ++offers_begun_;
  offers_out_.push_back(std::move(offer));
  PostData(Header(MessageType::kOffer, work.number, work.data.empty()), std::nullopt,
           channel_->Copy({bytes.data(), size}));
  EndPiece(work);
  return true;
}

// No peer's device reads it any more, and the bytes may go: what the device does not let go of
// stays with the hub.
void EndpointCore::Withdraw(Offered& offer) {
  LaneHub* const hub = Hub();
  for (OfferedPart& part : offer.parts) {
    if (part.exposed.Withdraw().ok()) continue;
    if (hub != nullptr) hub->Keep(std::move(part.exposed), part.bytes.Share());
  }
  if (hub != nullptr) hub->OnWithdrawn(std::exchange(offer.counted, {}));
}

void EndpointCore::WithdrawOffers() {
  for (Offered& offer : offers_out_) Withdraw(offer);
}

absl::Status EndpointCore::TakeFetched(uint32_t number) {
  if (SequenceReached(number, offers_fetched_)) return absl::OkStatus();  // told again
  if (number - offers_fetched_ > offers_begun_ - offers_fetched_) {
    return absl::InvalidArgumentError(
        absl::StrCat("offer ", number, " fetched, which was not made"));
  }
  offers_fetched_ = number;
  while (!offers_out_.empty() && SequenceReached(offers_out_.front().number, number)) {
    Withdraw(offers_out_.front());
    offered_bytes_ -= offers_out_.front().size;
    offers_out_.pop_front();
  }
  return absl::OkStatus();
}

// --- Fetching ---

absl::Status EndpointCore::TakeOffer(const MessageHeader& header, const BufferChain& body) {
  if (!OffersAgreed()) return absl::InvalidArgumentError("an offer, which was not agreed on");
  if (absl::Status status = window_.OnPiece(header.sequence); !status.ok()) return status;
  const size_t count = body.size() / kOfferPartSize;
  if (count == 0 || count > kOfferPartsMax || body.size() % kOfferPartSize != 0) {
    return absl::InvalidArgumentError(absl::StrCat("an offer of ", body.size(), " bytes"));
  }
  std::array<char, kOfferPartsMax * kOfferPartSize> bytes;
  body.CopyTo(bytes);
  std::array<OfferPart, kOfferPartsMax> parts;
  uint64_t size = 0;
  for (size_t i = 0; i < count; ++i) {
    parts[i] = DecodeOfferPart({bytes.data() + i * kOfferPartSize, kOfferPartSize});
    if (parts[i].size == 0 || parts[i].size > options_.message_max - arriving_ - size) {
      return absl::InvalidArgumentError(
          absl::StrCat("an offer of ", parts[i].size, " bytes after ", arriving_ + size,
                       " of its message, message_max is ", options_.message_max));
    }
    size += parts[i].size;
  }
  Arrival& arrival = Arrive(header, size);
  arrival.parts = count;
  arrival.read.resize(count);
  arrival.offered = size;
  ++offers_taken_;
  for (size_t i = 0; i < count; ++i) {
    WorkList one(1);
    Work& fetch = one.front();
    fetch.kind = Work::Kind::kFetch;
    fetch.size = parts[i].size;
    fetch.region.id = OfferRegion(offers_taken_, i);
    fetch.part = parts[i];
    fetch.into = &arrival;
    fetches_.splice(fetches_.end(), one);
  }
  return absl::OkStatus();
}

// A piece of so many bytes takes its place behind what is still to be fetched.
Arrival& EndpointCore::Arrive(const MessageHeader& header, uint64_t size) {
  Arrival& arrival = behind_.emplace_back();
  arrival.last = (header.flags & kMessageLast) != 0;
  arrival.message = messages_begun_;
  CountArriving(size, arrival.last);
  return arrival;
}

void EndpointCore::CountArriving(uint64_t size, bool last) {
  arriving_ = last ? 0 : arriving_ + size;
  messages_begun_ += last ? 1 : 0;
}

// Ahead of what is delivered next only as much as pieces may bring as well.
bool EndpointCore::MayFetch(const Work& work) const {
  if (work.posted) return true;
  return fetched_bytes_ + work.size <= uint64_t{window_.depth()} * kStreamPieceMax ||
         (ready_.empty() && work.into->message == messages_whole_);
}

bool EndpointCore::PostFetch() {
  if (reads_out_.size() + lane_reads_.size() >= peer_read_depth_) return false;
  Work& work = fetches_.front();
  if (!MayFetch(work)) return false;
  if (!std::exchange(work.posted, true)) fetched_bytes_ += work.size;
  fetch_first_ = false;
  work.number = ++reads_begun_;
  if (carrier_ == Carrier::kLane && work.part.address != 0) {
    // Without room in the pool it comes as messages do, to the heap if need be (I10).
    const LaneTarget target = {.address = work.part.address, .key = work.part.key};
    BufferChain memory = lanes_->NewMemory(target, work.size);
    if (!memory.empty()) {
      lanes_->Read(kReadToken | work.number, target, work.size, std::move(memory));
      lane_reads_.splice(lane_reads_.end(), fetches_, fetches_.begin());
      return true;
    }
  }
  const AccessPrefix access = {.region = work.region.id, .size = work.size};
  PostData(Header(MessageType::kRead, work.number, true), access, {});
  reads_out_.splice(reads_out_.end(), fetches_, fetches_.begin());
  return true;
}

void EndpointCore::FinishFetch(WorkList one) {
  Work& work = one.front();
  Arrival& arrival = *work.into;
  // Parts may be read in different ways, and end in another order than theirs.
  arrival.read[PartOfRegion(work.region.id)] = std::move(work.data);
  if (--arrival.parts == 0) {
    for (BufferChain& part : std::exchange(arrival.read, {})) arrival.data.Append(std::move(part));
  }
  while (!behind_.empty() && behind_.front().parts == 0) {
    Arrival next = std::move(behind_.front());
    behind_.pop_front();
    if (next.offered > 0) {
      ++fetched_;
      fetched_due_ = true;
    }
    AddPiece(std::move(next.data), next.offered, next.last);
  }
}

// Reads that the lane has not done, to be done another way. Fetches stay in front of later ones.
void EndpointCore::ReturnReads() {
  WorkList again;
  for (auto at = lane_reads_.begin(); at != lane_reads_.end();) {
    const auto next = std::next(at);
    if (at->kind == Work::Kind::kFetch) again.splice(again.end(), lane_reads_, at);
    at = next;
  }
  fetches_.splice(fetches_.begin(), again);
  queue_.Return(std::exchange(lane_reads_, {}));
}

// --- Reads that this side's loop answers ---

const EndpointCore::OfferedPart* EndpointCore::FindOffered(const AccessPrefix& access,
                                                           uint64_t size) const {
  for (const Offered& offer : offers_out_) {
    for (size_t i = 0; i < offer.parts.size(); ++i) {
      if (access.region != OfferRegion(offer.number, i)) continue;
      const uint64_t whole = offer.parts[i].bytes.size();
      if (access.offset > whole || size > whole - access.offset) continue;
      return &offer.parts[i];
    }
  }
  return nullptr;
}

// All of it, though it goes in pieces.
absl::Status EndpointCore::CheckRead(const AccessPrefix& access) const {
  if ((access.region & kOfferRegion) == 0) {
    return regions_.Find(access, access.size, RdmaAccess::kRead).status();
  }
  if (FindOffered(access, access.size) != nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("a read of ", access.size, " bytes at ",
                                                 access.offset, " of what is not offered"));
}

// The first `size` bytes of `access`. Those of an offer from where they lie: no memory is needed.
absl::StatusOr<BufferChain> EndpointCore::BytesToRead(const AccessPrefix& access,
                                                      uint64_t size) const {
  if (absl::Status status = CheckRead(access); !status.ok()) return status;
  if (const OfferedPart* const part = FindOffered(access, size); part != nullptr) {
    Buffer bytes = part->bytes.Share();
    bytes.TrimFront(access.offset);
    bytes.Truncate(size);
    return BufferChain(std::move(bytes));
  }
  const absl::StatusOr<std::span<char>> memory = regions_.Find(access, size, RdmaAccess::kRead);
  if (!memory.ok()) return memory.status();
  if (size == 0) return BufferChain();
  return BufferChain(channel_->Copy({memory->data(), memory->size()}));
}

bool EndpointCore::ServeRead() {
  if (!served_.has_value()) {
    if (serving_.empty()) return false;
    served_ = serving_.pop();
  }
  AccessPrefix& access = served_->access;
  const uint64_t size = std::min<uint64_t>(access.size, piece_max_);
  // Looked up anew: the memory may have gone since the last piece.
  absl::StatusOr<BufferChain> bytes = BytesToRead(access, size);
  if (!bytes.ok()) {
    End(Explain(absl::StatusCode::kInvalidArgument, "RDMA endpoint to", MessageOf(bytes.status())));
    return false;
  }
  access.offset += size;
  access.size -= size;
  const bool last = access.size == 0;
  PostData(Header(MessageType::kReadData, served_->number, last), std::nullopt, *std::move(bytes));
  // An offer's bytes are counted with their message.
  if ((access.region & kOfferRegion) == 0) stats_.bytes_out += size;
  if (last) served_.reset();
  return true;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
