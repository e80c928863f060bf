// Two gates, and a stream between them that damages, loses and repeats what it carries: neither
// opens before the lanes of both are up, nor again after its end.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <string>
#include <string_view>
#include <utility>

#include "rdma/control_codec.h"
#include "rdma/ready_gate.h"
#include "testing/gate_kit.h"

namespace penstock::internal {
namespace {

void ExpectOfGate(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "ready gate: %s\n", what);
  std::abort();
}

// The input: a byte of options, then one for each step.
class GateSession {
 public:
  explicit GateSession(uint8_t options)
      : sides_{Side{ReadyGate(Options(GateRole::kActive, options & 1), 0)},
               Side{ReadyGate(Options(GateRole::kPassive, options & 2), 0)}} {}

  // `more`: the bytes after it, of which some steps take one.
  void Step(uint8_t byte, std::string_view& more) {
    Side& side = sides_[byte & 1];
    const uint64_t attempt = side.gate.self().attempt;
    switch (byte >> 1 & 15) {
      case 0:
        Act(side, side.gate.Connect(OfferOf(Next(more) % 3)));
        break;
      case 1:
        Give(side, /*keep=*/false);
        break;
      case 2:
        Give(side, /*keep=*/true);
        break;
      case 3:
        if (!side.incoming.empty()) side.incoming.pop_front();
        break;
      case 4:
        Damage(side, Next(more), Next(more));
        break;
      case 5:
        if (side.bringing_up) LanesUp(side, attempt);
        break;
      case 6:
        Act(side, side.gate.OnLanesUp(0, attempt + 1 + Next(more), OfferOf(0)));
        break;
      case 7:
        Act(side, side.gate.OnLanesFailed(attempt, absl::UnavailableError("no lane")));
        break;
      case 8:
        // Data that the other side posts comes only when it is open.
        if (Other(side).gate.MayPost(Other(side).gate.self().attempt)) {
          Act(side, side.gate.OnData(Other(side).gate.data_tag()));
        }
        break;
      case 9:
        Act(side, side.gate.OnData(side.gate.data_tag() ^ (1u << Next(more) % 32)));
        break;
      case 10:
        Act(side, side.gate.OnTime(int64_t{Next(more)} * 100'000'000));
        break;
      case 11:
        Act(side, side.gate.Close(absl::CancelledError("reset")));
        break;
      case 12:
        Act(side, side.gate.OnBusy(absl::Milliseconds(Next(more))));
        break;
      default:
        break;
    }
    for (Side& each : sides_) Check(each);
  }

 private:
  struct Side {
    ReadyGate gate;
    std::deque<std::string> incoming{};
    bool bringing_up = false;
    bool up = false;
    bool closed = false;
  };

  static GateOptions Options(GateRole role, bool without_ready) {
    GateOptions options = GateOptionsFor(role);
    options.features |= kFeatureFallback;
    if (without_ready) {
      options.features = kFeatureFallback;
      options.policy = RdmaReadyPolicy::kOpenOnFirstData;
    }
    return options;
  }
  static uint8_t Next(std::string_view& more) {
    if (more.empty()) return 0;
    const auto byte = static_cast<uint8_t>(more.front());
    more.remove_prefix(1);
    return byte;
  }
  Side& Other(const Side& side) { return sides_[&side == &sides_[0] ? 1 : 0]; }

  void LanesUp(Side& side, uint64_t attempt) {
    side.bringing_up = false;
    side.up = true;
    const size_t lanes = side.gate.peer_offer().lanes.size();
    Act(side, side.gate.OnLanesUp(0, attempt, OfferOf(lanes)));
  }

  void Give(Side& side, bool keep) {
    if (side.incoming.empty()) return;
    const std::string frame = side.incoming.front();
    if (!keep) side.incoming.pop_front();
    const absl::StatusOr<ControlHeader> header = DecodeControlHeader(frame);
    if (!header.ok()) return Act(side, side.gate.Close(header.status()));
    const auto message = DecodeControl(*header, std::string_view(frame).substr(kControlHeaderSize));
    if (!message.ok()) return Act(side, side.gate.Close(message.status()));
    Act(side, GiveFrame(side.gate, 0, frame));
  }

  static void Damage(Side& side, uint8_t at, uint8_t how) {
    if (side.incoming.empty()) return;
    std::string& frame = side.incoming.front();
    char& byte = frame[at % frame.size()];
    byte = static_cast<char>(byte ^ how);
  }

  void Act(Side& side, GateAction action) {
    ExpectOfGate(!side.closed || action == GateAction::kIgnore || action == GateAction::kNone,
                 "acts after its end");
    if (action == GateAction::kBringUp) side.bringing_up = true;
    const std::string outgoing = side.gate.TakeOutgoing();
    for (std::string& frame : ControlFramesOf(outgoing)) {
      const ControlType type = DecodeControlHeader(frame)->type;
      ExpectOfGate(side.up || (type != ControlType::kAccept && type != ControlType::kReady),
                   "tells of lanes that are not up");
      Other(side).incoming.push_back(std::move(frame));
    }
  }

  void Check(Side& side) {
    const GateState state = side.gate.state();
    ExpectOfGate(!side.closed || state == GateState::kClosed, "opens again");
    side.closed = state == GateState::kClosed;
    if (state == GateState::kOpen) {
      ExpectOfGate(side.up && Other(side).up, "open before all lanes are up");
    }
    const bool waits = state != GateState::kOpen && state != GateState::kClosed;
    ExpectOfGate(waits == (side.gate.deadline_ns() != ReadyGate::kNever),
                 "waits without a deadline");
    ExpectOfGate(side.closed == !side.gate.status().ok(), "ends without a reason");
  }

  std::array<Side, 2> sides_;
};

}  // namespace
}  // namespace penstock::internal

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > 512) return 0;
  std::string_view more(reinterpret_cast<const char*>(data), size);
  penstock::internal::GateSession session(data[0]);
  more.remove_prefix(1);
  while (!more.empty()) {
    const auto byte = static_cast<uint8_t>(more.front());
    more.remove_prefix(1);
    session.Step(byte, more);
  }
  return 0;
}
