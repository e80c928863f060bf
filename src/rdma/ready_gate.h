// ReadyGate: decides when an endpoint may post its first work request, and that it never may again.
//
// Sans-I/O: control messages, finished bring-ups and the time go in; what is to be done and the
// bytes of control messages come out. One gate serves one attempt to open one endpoint, on the
// active side or on the passive one; it has one table, kGateTransitions. A plain value; single
// thread.
//
// What holds, in any order of calls:
//   Nothing may be posted outside kOpen, and kOpen is reached only by ACCEPT and own lanes on the
//   active side, and on the passive side by a READY that matches in every part or by data that
//   carries the tag of this attempt (I6). Data is proof enough: the peer posts only when all its
//   lanes are up.
//   kClosed is never left: whatever comes late is counted and changes nothing (I7). Continuations
//   carry the number of their attempt; those of another one are late, too.
//   ACCEPT and READY come out only when OnLanesUp has said that every local lane can receive and
//   send, with receives posted.
//   Time limits need no traffic: deadline_ns() says when OnTime is to be called.
//
// Peers that lack kFeatureReady say nothing when their lanes are up. RdmaReadyPolicy is what then
// becomes of the passive side, for which data of this attempt proves the same.
#ifndef PENSTOCK_RDMA_READY_GATE_H_
#define PENSTOCK_RDMA_READY_GATE_H_

#include <penstock/address.h>
#include <penstock/export.h>
#include <penstock/rdma.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "rdma/control_message.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

enum class GateRole : uint8_t { kActive, kPassive };

enum class GateState : uint8_t {
  kIdle,
  kHelloSent,       // active: the peer brings its lanes up
  kActiveBringup,   // active: those of the peer are up, ours are on the way
  kPassiveBringup,  // passive: ours are on the way
  kWaitReady,       // passive: ours are up, and READY or data will tell that the peer's are
  kWaitData,        // passive: data will tell it, as the peer sends no READY
  kOpen,
  kClosed,
};
inline constexpr size_t kGateStates = 8;

enum class GateEvent : uint8_t {
  kConnect,
  kHello,
  kAccept,
  kLanesUp,          // ours are; the peer has READY
  kLanesUpWaitData,  // the peer has none, and its data is waited for
  kLanesUpAtOnce,    // the peer has none, and nothing is waited for
  kReady,            // matches
  kData,             // carries the tag of this attempt
  kEnd,              // reset, deadline, control stream gone, lanes failed, peer broke the protocol
};
inline constexpr size_t kGateEvents = 9;

// What the caller is to do, besides sending what TakeOutgoing gives.
enum class GateAction : uint8_t {
  kNone,
  kSendHello,
  kBringUp,  // the lanes, towards peer_lanes(); then OnLanesUp or OnLanesFailed
  kSendAccept,
  kSendAcceptAndOpen,
  kSendReadyAndOpen,  // READY goes before anything that was waiting
  kOpen,
  kHold,       // the data stays in its receive until the gate is open
  kIgnore,     // late, or once more: counted
  kClose,      // see status()
  kViolation,  // the same, and CLOSE says so to the peer
};

struct GateTransition {
  GateState next;
  GateAction action;
};

// What is not listed at the end is what the loop says.
inline constexpr auto kGateTransitions = [] {
  using S = GateState;
  using E = GateEvent;
  using A = GateAction;
  std::array<std::array<GateTransition, kGateEvents>, kGateStates> table{};
  // Unless said otherwise below: what the caller does or finishes out of turn is late, what the
  // peer does out of turn breaks the protocol.
  for (size_t state = 0; state < kGateStates; ++state) {
    for (size_t event = 0; event < kGateEvents; ++event) {
      const S from = static_cast<S>(state);
      const E on = static_cast<E>(event);
      const bool peers = on == E::kHello || on == E::kAccept || on == E::kReady || on == E::kData;
      GateTransition& to = table[state][event];
      if (from == S::kClosed) {
        to = {S::kClosed, A::kIgnore};
      } else if (on == E::kEnd) {
        to = {S::kClosed, A::kClose};
      } else if (peers) {
        to = {S::kClosed, A::kViolation};
      } else {
        to = {from, A::kIgnore};
      }
    }
  }
  const auto set = [&](S from, E on, S next, A action) {
    table[static_cast<size_t>(from)][static_cast<size_t>(on)] = {next, action};
  };
  set(S::kIdle, E::kConnect, S::kHelloSent, A::kSendHello);
  set(S::kIdle, E::kHello, S::kPassiveBringup, A::kBringUp);
  set(S::kHelloSent, E::kAccept, S::kActiveBringup, A::kBringUp);
  set(S::kActiveBringup, E::kLanesUp, S::kOpen, A::kSendReadyAndOpen);
  set(S::kActiveBringup, E::kLanesUpWaitData, S::kOpen, A::kOpen);
  set(S::kActiveBringup, E::kLanesUpAtOnce, S::kOpen, A::kOpen);
  // A peer that waits for no READY may send as soon as it has accepted.
  set(S::kActiveBringup, E::kData, S::kActiveBringup, A::kHold);
  set(S::kPassiveBringup, E::kLanesUp, S::kWaitReady, A::kSendAccept);
  set(S::kPassiveBringup, E::kLanesUpWaitData, S::kWaitData, A::kSendAccept);
  set(S::kPassiveBringup, E::kLanesUpAtOnce, S::kOpen, A::kSendAcceptAndOpen);
  set(S::kWaitReady, E::kReady, S::kOpen, A::kOpen);
  set(S::kWaitReady, E::kData, S::kOpen, A::kOpen);
  set(S::kWaitData, E::kData, S::kOpen, A::kOpen);
  set(S::kOpen, E::kData, S::kOpen, A::kNone);
  // Data was faster, or it is sent twice.
  set(S::kOpen, E::kReady, S::kOpen, A::kIgnore);
  return table;
}();

struct GateOptions {
  GateRole role = GateRole::kActive;
  AttemptId self{};
  Bytes16 nonce{};  // random
  uint64_t features = kFeatureReady;
  RdmaReadyPolicy policy = RdmaReadyPolicy::kRequire;
  // From the making of the gate until it is open.
  absl::Duration handshake_deadline = absl::Seconds(5);
  // On the passive side, from ACCEPT on; not beyond the first.
  absl::Duration ready_deadline = absl::Seconds(3);
  // For messages of errors.
  std::optional<SocketAddress> peer{};
  // Of the active side, for HELLO.
  std::string name{};
};

// What a side tells of its lanes; without lanes the control stream is to carry the data.
struct GateOffer {
  std::vector<LaneAddress> lanes{};
  ReceiveTerms terms{};
};

struct GateCounts {
  uint32_t late = 0;      // continuations and messages of another attempt, or after the end
  uint32_t repeated = 0;  // READY after the gate was open
  uint32_t held = 0;      // data that came before our own lanes were up
  bool opened_by_data = false;
};

class ReadyGate {
 public:
  static constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

  // `now_ns` is the loop's clock, here and everywhere.
  ReadyGate(GateOptions options, int64_t now_ns);

  // Active side: HELLO.
  GateAction Connect(GateOffer offer);

  // Messages of the peer that concern the gate, each with all its bytes. A message that the role of
  // the peer never sends breaks the protocol.
  GateAction OnHello(int64_t now_ns, const ControlHello& hello, std::string_view bytes);
  GateAction OnAccept(const ControlAccept& accept, std::string_view bytes);
  GateAction OnReady(const ControlReady& ready);
  GateAction OnReject(const ControlReject& reject);
  // Ends the attempt, or the open endpoint: OutOfRange when the peer has finished in order,
  // otherwise Unavailable.
  GateAction OnClose(const ControlClose& close);

  // The bring-up of `attempt` has ended: every lane can receive and send, and has its receives
  // posted; or not. The passive side says which lanes, `offer`; not more than the peer's.
  GateAction OnLanesUp(int64_t now_ns, uint64_t attempt, GateOffer offer = {});
  GateAction OnLanesFailed(uint64_t attempt, const absl::Status& status);

  // Passive side, instead of bringing lanes up: too many others are at it. REJECT says when the
  // peer is to come again.
  GateAction OnBusy(absl::Duration retry_after);
  // The same: another endpoint of this peer lives on.
  GateAction OnSuperseded();

  // A receive has brought a message whose header has this tag.
  GateAction OnData(uint32_t tag) {
    constexpr size_t kOpen = static_cast<size_t>(GateState::kOpen);
    constexpr GateTransition kStep = kGateTransitions[kOpen][static_cast<size_t>(GateEvent::kData)];
    static_assert(kStep.next == GateState::kOpen && kStep.action == GateAction::kNone);
    const bool usual = state_ == GateState::kOpen && tag == data_tag();
    return usual ? kStep.action : OnUnusualData(tag);
  }

  // Whatever ends the attempt: the owner's reset, the end of the control stream, an error of the
  // codec. `status` is not OK. CLOSE or, before ACCEPT, REJECT tells the peer.
  GateAction Close(const absl::Status& status);

  // When to call OnTime at the latest; kNever when nothing is to be waited for.
  int64_t deadline_ns() const { return deadline_ns_; }
  GateAction OnTime(int64_t now_ns);

  // The bytes to send since the last call, in order.
  std::string TakeOutgoing() { return std::exchange(outgoing_, {}); }

  // Whether work of this attempt may be posted now (I6). Ask before every post that was prepared
  // earlier.
  bool MayPost(uint64_t attempt) const {
    return state_ == GateState::kOpen && attempt == options_.self.attempt;
  }

  GateState state() const { return state_; }
  GateRole role() const { return options_.role; }
  const AttemptId& self() const { return options_.self; }
  // Why it is closed; OK as long as it is not.
  const absl::Status& status() const { return status_; }
  // What REJECT said about when to try again; zero: nothing.
  absl::Duration retry_after() const { return retry_after_; }
  const GateCounts& counts() const { return counts_; }

  // Known from HELLO (passive) or ACCEPT (active) on.
  const AttemptId& peer() const { return peer_; }
  // That HELLO has told; empty: none.
  const std::string& peer_name() const { return peer_name_; }
  const GateOffer& peer_offer() const { return peer_offer_; }
  // What both sides have; on the passive side that is what ACCEPT will say.
  uint64_t features() const { return features_; }
  uint8_t version() const { return version_; }

  // Known from ACCEPT on; 0 before. It differs from attempt to attempt, as both nonces go into it,
  // and belongs into the header of every message, so that what a stale peer sends is known for it.
  uint32_t data_tag() const { return static_cast<uint32_t>(transcript_ ^ transcript_ >> 32); }

 private:
  GateAction Apply(GateEvent event);
  GateAction OnUnusualData(uint32_t tag);
  GateAction Late();
  GateAction Violate(std::string_view what);
  // Ends the attempt; says so to the peer with `code`, by REJECT if that is still possible.
  GateAction End(absl::StatusCode status, std::string_view reason, CloseCode code);
  GateAction Refuse(RejectCode code, std::string_view reason,
                    absl::Duration retry_after = absl::ZeroDuration());
  absl::Status ErrorOf(absl::StatusCode code, std::string_view reason) const;
  void TellPeer(std::string_view reason, CloseCode code, RejectCode reject,
                absl::Duration retry_after = absl::ZeroDuration());
  GateEvent LanesUpEvent() const;
  std::string_view AcceptProblem(const ControlAccept& accept) const;
  ControlReady ReadyMessage() const;
  void SendAccept(int64_t now_ns, GateOffer offer);
  // From now on, where that is earlier than what holds.
  void Limit(int64_t now_ns, absl::Duration limit);

  GateOptions options_;
  GateState state_ = GateState::kIdle;
  uint8_t version_ = 0;
  uint64_t features_ = 0;
  size_t lanes_offered_ = 0;
  AttemptId peer_;
  std::string peer_name_;
  Bytes16 peer_nonce_{};
  GateOffer peer_offer_;
  uint64_t transcript_ = 0;
  // Of HELLO, until ACCEPT makes them the transcript.
  std::string hello_;
  std::string outgoing_;
  absl::Duration limit_;  // that deadline_ns_ comes from
  int64_t deadline_ns_ = kNever;
  absl::Status status_;
  absl::Duration retry_after_ = absl::ZeroDuration();
  GateCounts counts_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_READY_GATE_H_
