// What tests of the ready gate share: two sides with fixed identities, and the dispatch of control
// bytes to a gate, as an endpoint does it.
//
// Stateless. The caller's thread.
#ifndef PENSTOCK_TESTS_TESTING_GATE_KIT_H_
#define PENSTOCK_TESTS_TESTING_GATE_KIT_H_

#include <penstock/export.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rdma/control_codec.h"
#include "rdma/ready_gate.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

inline Bytes16 RepeatedByte(uint8_t byte) {
  Bytes16 bytes;
  bytes.fill(byte);
  return bytes;
}

// Attempts of the active side have odd numbers. Nonces differ from attempt to attempt.
inline GateOptions GateOptionsFor(GateRole role, int generation = 0) {
  const bool active = role == GateRole::kActive;
  const auto number = static_cast<uint64_t>(generation * 2 + (active ? 1 : 2));
  return {.role = role,
          .self = {.incarnation = RepeatedByte(active ? 0xaa : 0xbb),
                   .endpoint = number + 100,
                   .attempt = number},
          .nonce = RepeatedByte(static_cast<uint8_t>(number))};
}

inline GateOffer OfferOf(size_t lanes) {
  GateOffer offer{.terms = {.depth = 16, .size = 4096, .read_depth = 4}};
  for (size_t i = 0; i < lanes; ++i) {
    offer.lanes.push_back({.qpn = static_cast<uint32_t>(i + 1), .psn = 7, .lid = 1, .mtu = 3});
  }
  return offer;
}

// Cuts bytes into whole messages, header and all.
inline std::vector<std::string> ControlFramesOf(std::string_view bytes) {
  std::vector<std::string> frames;
  while (!bytes.empty()) {
    const size_t size = kControlHeaderSize + DecodeControlHeader(bytes)->body_size;
    frames.emplace_back(bytes.substr(0, size));
    bytes.remove_prefix(size);
  }
  return frames;
}

inline ControlMessage ControlOf(std::string_view frame) {
  return *DecodeControl(*DecodeControlHeader(frame), frame.substr(kControlHeaderSize));
}

// What an endpoint does with a message of the peer that concerns the gate.
inline GateAction GiveFrame(ReadyGate& gate, int64_t now_ns, std::string_view frame) {
  const ControlMessage message = ControlOf(frame);
  if (const auto* m = std::get_if<ControlHello>(&message)) return gate.OnHello(now_ns, *m, frame);
  if (const auto* m = std::get_if<ControlAccept>(&message)) return gate.OnAccept(*m, frame);
  if (const auto* m = std::get_if<ControlReject>(&message)) return gate.OnReject(*m);
  if (const auto* m = std::get_if<ControlReady>(&message)) return gate.OnReady(*m);
  if (const auto* m = std::get_if<ControlClose>(&message)) return gate.OnClose(*m);
  return GateAction::kNone;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_GATE_KIT_H_
