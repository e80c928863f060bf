// RawPeer: one side of an endpoint, the passive one unless said otherwise, as a test wants it: it
// opens by the rules and then sends what it is told.
//
// Owns its stream. The loop's thread.
#ifndef PENSTOCK_TESTS_TESTING_RAW_PEER_H_
#define PENSTOCK_TESTS_TESTING_RAW_PEER_H_

#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "rdma/control_codec.h"
#include "rdma/message_header.h"
#include "rdma/ready_gate.h"
#include "testing/gate_kit.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class RawPeer {
 public:
  // What is answered to HELLO.
  using Answer = std::function<GateOffer(const ControlHello& hello)>;

  RawPeer(StreamPtr stream, GateOffer offer)
      : RawPeer(std::move(stream), [offer](const ControlHello&) { return offer; }) {}
  // `features`: that it has besides those of Options.
  RawPeer(StreamPtr stream, Answer answer, uint64_t features = 0)
      : stream_(std::move(stream)), gate_(Options(features), 0), answer_(std::move(answer)) {
    Read();
  }
  // kMute: does not go on after ACCEPT.
  enum class Opening { kByTheRules, kMute };
  // Of either side, with these options.
  RawPeer(StreamPtr stream, GateOptions options, GateOffer offer,
          Opening opening = Opening::kByTheRules)
      : stream_(std::move(stream)),
        gate_(std::move(options), 0),
        answer_([offer](const ControlHello&) { return offer; }),
        opening_(opening) {
    if (gate_.role() == GateRole::kActive) {
      gate_.Connect(offer);
      Send(gate_.TakeOutgoing());
    }
    Read();
  }
  // An active side with a device that never says READY, and so never finishes opening.
  static std::unique_ptr<RawPeer> Mute(StreamPtr stream) {
    GateOffer offer;
    offer.lanes.push_back({.qpn = 5, .psn = 5, .lid = 1, .mtu = 3, .gid = {1}});
    offer.terms = {.depth = 4, .size = 512, .read_depth = 2};
    return std::make_unique<RawPeer>(std::move(stream), Options(GateRole::kActive), offer,
                                     Opening::kMute);
  }
  static GateOptions Options(uint64_t features) {
    GateOptions options = Options();
    options.features |= features;
    return options;
  }
  // What this side can do, when it is not told otherwise.
  static GateOptions Options(GateRole role = GateRole::kPassive) {
    GateOptions options = GateOptionsFor(role);
    options.features = kFeatureReady | kFeatureFallback | kFeatureOneSided;
    return options;
  }

  bool open() const { return gate_.state() == GateState::kOpen; }
  uint32_t tag() const { return gate_.data_tag(); }
  bool ended() const { return ended_; }
  // Takes nothing off its stream any more.
  void StopReading() {
    reading_ = false;
    stream_->CancelRead();
  }
  void Send(std::string_view bytes) { stream_->Write(*stream_->loop().pool().Copy(bytes)); }
  void SendData(const MessageHeader& header, std::string_view body) {
    std::array<char, kMessageHeaderSize> bytes;
    EncodeMessageHeader(header, bytes);
    Send(ControlDataHeader(bytes.size() + body.size()) + std::string(bytes.data(), bytes.size()) +
         std::string(body));
  }
  // The last message of this kind.
  template <class Message>
  const Message* Last() const {
    for (auto at = messages_.rbegin(); at != messages_.rend(); ++at) {
      if (const auto* found = std::get_if<Message>(&*at)) return found;
    }
    return nullptr;
  }
  // How many messages of this kind have come.
  template <class Message>
  size_t Count() const {
    size_t count = 0;
    for (const ControlMessage& message : messages_) {
      count += std::holds_alternative<Message>(message) ? 1 : 0;
    }
    return count;
  }
  const std::vector<MessageHeader>& data() const { return data_; }

 private:
  void Read() {
    stream_->ReadReady([this](absl::StatusOr<Buffer> bytes) {
      if (!reading_) return;
      if (!bytes.ok()) {
        ended_ = true;
        return;
      }
      received_ += bytes->view();
      TakeFrames();
      Read();
    });
  }
  void TakeFrames() {
    while (received_.size() >= kControlHeaderSize) {
      const ControlHeader header = *DecodeControlHeader(received_);
      const size_t size = kControlHeaderSize + header.body_size;
      if (received_.size() < size) return;
      const std::string frame = received_.substr(0, size);
      received_.erase(0, size);
      const std::string_view body = std::string_view(frame).substr(kControlHeaderSize);
      if (header.type == ControlType::kData) {
        data_.push_back(*DecodeMessageHeader(body));
        continue;
      }
      messages_.push_back(*DecodeControl(header, body));
      if (const auto* hello = std::get_if<ControlHello>(&messages_.back())) {
        gate_.OnHello(0, *hello, frame);
        gate_.OnLanesUp(0, gate_.self().attempt, answer_(*hello));
        Send(gate_.TakeOutgoing());
      } else if (const auto* accept = std::get_if<ControlAccept>(&messages_.back())) {
        if (opening_ == Opening::kMute) continue;
        gate_.OnAccept(*accept, frame);
        gate_.OnLanesUp(0, gate_.self().attempt);
        const std::string outgoing = gate_.TakeOutgoing();
        if (!outgoing.empty()) Send(outgoing);
      } else if (const auto* ready = std::get_if<ControlReady>(&messages_.back())) {
        gate_.OnReady(*ready);
      }
    }
  }

  StreamPtr stream_;
  ReadyGate gate_;
  const Answer answer_;
  const Opening opening_ = Opening::kByTheRules;
  std::string received_;
  std::vector<ControlMessage> messages_;
  std::vector<MessageHeader> data_;
  bool reading_ = true;
  bool ended_ = false;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_RAW_PEER_H_
