// FuzzPeer: the other side of an endpoint, whose every word and packet the input decides, from what
// an honest one would say. It holds the peer's gate, and a queue pair of a simulated device.
//
// Owned by the session; the fabric outlives it. One thread.
#ifndef PENSTOCK_TESTS_FUZZ_RDMA_PEER_H_
#define PENSTOCK_TESTS_FUZZ_RDMA_PEER_H_

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "rdma/control_codec.h"
#include "rdma/message_header.h"
#include "rdma/ready_gate.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_kit.h"
#include "testing/gate_kit.h"

namespace penstock::internal {

// The bytes that decide, one after the other; zeros when there are no more.
class FuzzBytes {
 public:
  explicit FuzzBytes(std::string_view bytes) : bytes_(bytes) {}
  bool empty() const { return bytes_.empty(); }
  uint8_t Next() {
    if (bytes_.empty()) return 0;
    const auto byte = static_cast<uint8_t>(bytes_.front());
    bytes_.remove_prefix(1);
    return byte;
  }

 private:
  std::string_view bytes_;
};

class FuzzPeer {
 public:
  static constexpr uint32_t kDepth = 4;

  FuzzPeer(testing::FakeFabric& fabric, GateRole role, bool with_lane)
      : with_lane_(with_lane), gate_(Options(role), 0), end_(fabric, "fake1", EndOptions()) {
    lane_ = {.qpn = end_.qp->number(), .psn = end_.options.psn, .lid = 0, .mtu = 3, .gid = {}};
    const FabricGid gid = fabric.gid("fake1");
    std::copy(gid.begin(), gid.end(), lane_.gid.begin());
    for (uint64_t id = 0; id < kReceives; ++id) PostReceive(id);
    if (role == GateRole::kActive) gate_.Connect(Offer());
  }

  // Takes what the endpoint has said, and what has come by the lane. What is to be answered.
  std::string Listen(std::string_view said) {
    received_ += said;
    while (received_.size() >= kControlHeaderSize) {
      const absl::StatusOr<ControlHeader> header = DecodeControlHeader(received_);
      if (!header.ok() || received_.size() < kControlHeaderSize + header->body_size) break;
      const std::string frame = received_.substr(0, kControlHeaderSize + header->body_size);
      received_.erase(0, frame.size());
      TakeFrame(*header, frame);
    }
    TakeCompletions();
    return gate_.TakeOutgoing();
  }
  const ControlRegion& region() const { return region_; }
  bool lane_up() const { return lane_up_; }

  // A control message of an open endpoint.
  std::string Control(FuzzBytes& bytes) {
    const uint8_t kind = bytes.Next();
    const uint32_t small = bytes.Next();
    const bool reply = (kind & 0x80) != 0;
    switch (kind % 10) {
      case 0:
        return EncodeControl(ControlRegion{.region = small % 4,
                                           .epoch = 1 + small / 64,
                                           .address = Address() + small * 8,
                                           .length = 1 + small * 4,
                                           .rkey = with_lane_ ? end_.memory.remote_key : 0,
                                           .access = 1 + small % 3});
      case 1:
        return EncodeControl(
            ControlRevoke{.reply = reply, .region = small % 4, .epoch = 1 + small / 64});
      case 2:
        return EncodeControl(ControlCredit{.granted = Credits() + small % 8});
      case 3:
        return EncodeControl(ControlPing{.token = small});
      case 4:
        return EncodeControl(ControlPong{.token = small % 8});
      case 5:
        return EncodeControl(ControlFallback{.reply = reply,
                                             .closing = (small & 0x40) != 0,
                                             .received = lane_received_ - (small & 3),
                                             .text = "fuzz"});
      case 6:
        return EncodeControl(ControlDrain{
            .reply = reply, .sequence = (reply ? pieces_received_ : pieces_sent_) + small / 64});
      case 7:
        return EncodeControl(
            ControlClose{.code = static_cast<CloseCode>(small % 5), .text = "fuzz"});
      case 8:
        return EncodeControl(ControlGrant{.reply = reply, .receives = small});
      default:
        return EncodeControl(ControlReject{.code = static_cast<RejectCode>(small % 8),
                                           .retry_after_ms = small,
                                           .attempt = 1,
                                           .text = "fuzz"});
    }
  }

  // A message by the stream, or by the lane.
  std::string Data(FuzzBytes& bytes, bool by_lane, const ControlRegion& exposed) {
    const uint8_t kind = bytes.Next();
    const uint8_t wrong = (kind & 0x20) != 0 ? bytes.Next() : 0;
    MessageHeader header;
    header.type = static_cast<MessageType>(1 + kind % 8);
    header.flags = (kind & 0x40) != 0 ? 0 : kMessageLast;
    const bool piece = header.type == MessageType::kMessage || header.type == MessageType::kOffer;
    if (piece) ++pieces_sent_;
    header.received =
        static_cast<uint16_t>((by_lane ? lane_received_ : pieces_received_) + (wrong & 3));
    header.tag = gate_.data_tag() ^ ((wrong & 0xc0) == 0xc0 ? 1 : 0);
    header.sequence = (piece ? pieces_sent_ : ++one_sided_) + (wrong >> 2 & 3);
    header.credits = Credits() + (wrong >> 4 & 3);
    std::array<char, kMessageHeaderSize> head;
    EncodeMessageHeader(header, head);
    return std::string(head.data(), head.size()) + Body(bytes, header.type, exposed);
  }
  static std::string Framed(const std::string& data) {
    return ControlDataHeader(data.size()) + data;
  }

  // By the queue pair. One-sided ones reach for the endpoint's memory.
  void Post(const std::string& data) {
    if (!lane_up_ || data.size() > kInlined) return;
    const FabricPart part{const_cast<char*>(data.data()), static_cast<uint32_t>(data.size()), 0};
    FabricSend send;
    send.parts = {&part, 1};
    send.inlined = true;
    Post(send);
  }
  void PostOneSided(FuzzBytes& bytes, const ControlRegion& target) {
    if (!lane_up_) return;
    const uint8_t how = bytes.Next();
    const FabricPart part = end_.Part(0, 1 + how / 2);
    FabricSend send;
    send.op = (how & 1) != 0 ? FabricOp::kRead : FabricOp::kWrite;
    send.parts = {&part, 1};
    send.remote_address = target.address + bytes.Next();
    send.remote_key = target.rkey;
    Post(send);
  }

 private:
  static constexpr uint64_t kReceives = 64;
  static constexpr uint32_t kReceiveSize = 512;
  static constexpr uint32_t kInlined = 512;

  static GateOptions Options(GateRole role) {
    GateOptions options = GateOptionsFor(role);
    options.features =
        kFeatureReady | kFeatureFallback | kFeatureOneSided | kFeatureOffers | kFeatureGrants;
    return options;
  }
  static testing::FakeEndOptions EndOptions() {
    testing::FakeEndOptions options;
    options.psn = 7;
    options.qp.inlined = kInlined;
    return options;
  }
  uint64_t Address() const { return reinterpret_cast<uint64_t>(end_.bytes.data()); }
  uint32_t Credits() const { return pieces_received_ + kDepth; }
  GateOffer Offer() const {
    GateOffer offer{.lanes = {}, .terms = {.depth = kDepth, .size = kReceiveSize, .read_depth = 2}};
    if (with_lane_) offer.lanes.push_back(lane_);
    return offer;
  }
  void PostReceive(uint64_t id) { end_.PostReceive(id, 4096 + id * kReceiveSize, kReceiveSize); }
  void Post(const FabricSend& send) { end_.qp->PostSend(send); }

  bool BringUp(const LaneAddress& other) {
    FabricPath path;
    std::copy(other.gid.begin(), other.gid.end(), path.peer_gid.begin());
    path.peer_qp_number = other.qpn;
    path.peer_psn = other.psn;
    path.read_depth = 2;
    FabricTiming timing;
    timing.psn = end_.options.psn;
    timing.read_depth = 2;
    lane_up_ = end_.qp->ToReadyToReceive(path).ok() && end_.qp->ToReadyToSend(timing).ok();
    return lane_up_;
  }

  void TakeFrame(const ControlHeader& header, const std::string& frame) {
    const std::string_view body = std::string_view(frame).substr(kControlHeaderSize);
    if (header.type == ControlType::kData) return CountPieces(body);
    const absl::StatusOr<ControlMessage> message = DecodeControl(header, body);
    if (!message.ok()) return;
    if (const auto* region = std::get_if<ControlRegion>(&*message)) region_ = *region;
    if (GiveFrame(gate_, 0, frame) != GateAction::kBringUp) return;
    const std::vector<LaneAddress>& lanes = gate_.peer_offer().lanes;
    const uint64_t attempt = gate_.self().attempt;
    GateOffer offer = Offer();
    if (lanes.empty()) offer.lanes.clear();
    if (offer.lanes.empty() || BringUp(lanes.front())) {
      gate_.OnLanesUp(0, attempt, std::move(offer));
    } else {
      gate_.OnLanesFailed(attempt, absl::UnavailableError("no lane"));
    }
  }
  void CountPieces(std::string_view data) {
    const absl::StatusOr<MessageHeader> header = DecodeMessageHeader(data);
    if (!header.ok()) return;
    const bool offer = header->type == MessageType::kOffer;
    if (offer || header->type == MessageType::kMessage) ++pieces_received_;
    if (!offer) return;
    const OfferPart part = DecodeOfferPart(data.substr(kMessageHeaderSize));
    region_.address = part.address;
    region_.rkey = part.key;
  }
  void TakeCompletions() {
    std::array<FabricCompletion, 16> batch;
    const int count = end_.cq->Poll(batch);
    for (int i = 0; i < count; ++i) {
      const FabricCompletion& one = batch[static_cast<size_t>(i)];
      if (one.outcome != FabricOutcome::kOk || one.op != FabricOp::kReceive) continue;
      ++lane_received_;
      CountPieces(end_.Bytes(4096 + one.id * kReceiveSize, one.bytes));
      PostReceive(one.id);
    }
  }

  std::string Body(FuzzBytes& bytes, MessageType type, const ControlRegion& exposed) {
    std::string body;
    if (type == MessageType::kWrite || type == MessageType::kRead) {
      std::array<char, kAccessPrefixSize> prefix;
      const uint8_t at = bytes.Next();
      EncodeAccessPrefix({.region = exposed.region,
                          .offset = at,
                          .size = type == MessageType::kRead ? bytes.Next() : uint64_t{0},
                          .epoch = exposed.epoch + (at == 0xff ? 1 : 0)},
                         prefix);
      body.assign(prefix.data(), prefix.size());
      if (type == MessageType::kRead) return body;
    }
    if (type == MessageType::kOffer) {
      for (int parts = bytes.Next() % 10; parts > 0; --parts) {
        std::array<char, kOfferPartSize> part;
        EncodeOfferPart(
            {.address = Address(), .size = bytes.Next() * 64u, .key = end_.memory.remote_key},
            part);
        body.append(part.data(), part.size());
      }
      return body;
    }
    return body + std::string(bytes.Next(), 'p');
  }

  const bool with_lane_;
  ReadyGate gate_;
  testing::FakeEnd end_;
  LaneAddress lane_;
  bool lane_up_ = false;
  std::string received_;
  ControlRegion region_;  // the endpoint's last, or what it has offered since
  uint32_t pieces_sent_ = 0;
  uint32_t pieces_received_ = 0;
  uint32_t one_sided_ = 0;
  uint64_t lane_received_ = 0;
};

}  // namespace penstock::internal

#endif  // PENSTOCK_TESTS_FUZZ_RDMA_PEER_H_
