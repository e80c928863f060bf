// PeerCore: what a set of peers (peer_set.h) does about one peer: which of the streams between the
// two becomes their endpoint, and when another is dialled.
//
// Sans-I/O: what happens goes in, what is to be done comes out; kPeerTransitions is all there is to
// it. A plain value; single thread.
//
// What holds, in any order of calls:
//   At most one endpoint is current: being opened, or open.
//   Of two sides that have both said HELLO the one with the smaller incarnation is answered, and
//   the other refused: each side knows by itself which, so one stream lives on. A side that has not
//   said HELLO yet answers.
//   A HELLO of another incarnation ends the endpoint at once: the peer has been started again. One
//   of the same incarnation does so only when the endpoint turns out to be dead.
//   What a peer has given up comes to nothing: earlier incarnations, and earlier attempts.
#ifndef PENSTOCK_RDMA_PEER_SET_CORE_H_
#define PENSTOCK_RDMA_PEER_SET_CORE_H_

#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "rdma/control_message.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

enum class PeerState : uint8_t {
  kIdle,        // there is nothing, and nothing is asked for
  kPausing,     // until the next attempt
  kConnecting,  // a stream is being made: the peer knows nothing of it
  kCalling,     // HELLO is said
  kAnswering,   // to the peer's HELLO
  kOpen,
  kProbing,  // open, and asked whether it is: the peer has said HELLO again, which is held
};
inline constexpr size_t kPeerStates = 7;

enum class PeerEvent : uint8_t {
  kWant,
  kUnwant,
  kTime,          // what was waited for has not come, or the pause is over
  kStream,        // is made
  kOpened,        // the endpoint
  kEnded,         // the attempt, or the endpoint; another one is asked for
  kEndedForGood,  // the same, and it is not
  kHelloSmaller,  // of a peer that nothing is known of, with a smaller incarnation than ours
  kHelloLarger,
  kHelloRestarted,  // of another incarnation than the current endpoint's, or the held HELLO's
  kHelloAgain,      // of the same
  kHelloLate,       // of what the peer has given up
  kAlive,           // the endpoint that was asked has answered
  kHeldGone,        // the HELLO that was held
};
inline constexpr size_t kPeerEvents = 14;

// "It" is the endpoint, or the attempt to have one, that is current.
enum class PeerAction : uint8_t {
  kNone,
  kIgnore,      // late
  kConnect,     // make a stream
  kCall,        // by the stream
  kPause,       // it is gone
  kStop,        // give up it, and what is held
  kAnswer,      // give up it, and what is held: the HELLO's is current now
  kAnswerHeld,  // give up it: the held one's is current now
  kProbe,       // hold the HELLO, and ask it whether it is alive
  kHold,        // refuse what is held, and hold the HELLO instead
  kRefuse,      // the HELLO
  kRefuseHeld,  // it is alive
  kTell,        // that it is open
  kGiveUp,      // it is dead: end it
};

struct PeerTransition {
  PeerState next;
  PeerAction action;
};

// What is not listed at the end is what the loop says.
inline constexpr auto kPeerTransitions = [] {
  using S = PeerState;
  using E = PeerEvent;
  using A = PeerAction;
  std::array<std::array<PeerTransition, kPeerEvents>, kPeerStates> table{};
  for (size_t state = 0; state < kPeerStates; ++state) {
    for (size_t event = 0; event < kPeerEvents; ++event) {
      const S from = static_cast<S>(state);
      const E on = static_cast<E>(event);
      const bool hello = on >= E::kHelloSmaller && on <= E::kHelloLate;
      PeerTransition& to = table[state][event];
      if (on == E::kUnwant) {
        to = {S::kIdle, A::kStop};
      } else if (hello) {
        to = {from, A::kRefuse};
      } else {
        to = {from, on == E::kWant ? A::kNone : A::kIgnore};
      }
    }
  }
  const auto set = [&](S from, E on, S next, A action) {
    table[static_cast<size_t>(from)][static_cast<size_t>(on)] = {next, action};
  };
  set(S::kIdle, E::kWant, S::kConnecting, A::kConnect);
  set(S::kPausing, E::kTime, S::kConnecting, A::kConnect);
  set(S::kConnecting, E::kStream, S::kCalling, A::kCall);
  set(S::kConnecting, E::kTime, S::kPausing, A::kPause);
  set(S::kCalling, E::kOpened, S::kOpen, A::kTell);
  set(S::kAnswering, E::kOpened, S::kOpen, A::kTell);
  for (const S from : {S::kConnecting, S::kCalling, S::kAnswering, S::kOpen}) {
    set(from, E::kEnded, S::kPausing, A::kPause);
    set(from, E::kEndedForGood, S::kIdle, A::kNone);
  }
  // Nobody else has said HELLO, as far as this side knows.
  for (const S from : {S::kIdle, S::kPausing, S::kConnecting}) {
    set(from, E::kHelloSmaller, S::kAnswering, A::kAnswer);
    set(from, E::kHelloLarger, S::kAnswering, A::kAnswer);
  }
  // Both have: the peer decides in the same way, and refuses ours or answers it.
  set(S::kCalling, E::kHelloSmaller, S::kAnswering, A::kAnswer);
  // It would not say so again if it had not given up what is being answered.
  set(S::kAnswering, E::kHelloAgain, S::kAnswering, A::kAnswer);
  for (const S from : {S::kAnswering, S::kOpen, S::kProbing}) {
    set(from, E::kHelloRestarted, S::kAnswering, A::kAnswer);
  }
  set(S::kOpen, E::kHelloAgain, S::kProbing, A::kProbe);
  set(S::kProbing, E::kHelloAgain, S::kProbing, A::kHold);
  set(S::kProbing, E::kAlive, S::kOpen, A::kRefuseHeld);
  // The probe goes on, for peers that wait less long than it does.
  set(S::kProbing, E::kHeldGone, S::kOpen, A::kNone);
  set(S::kOpen, E::kAlive, S::kOpen, A::kRefuseHeld);
  set(S::kOpen, E::kTime, S::kOpen, A::kGiveUp);
  for (const E on : {E::kTime, E::kEnded, E::kEndedForGood}) {
    set(S::kProbing, on, S::kAnswering, A::kAnswerHeld);
  }
  return table;
}();

class PeerCore {
 public:
  // `self`: this side's incarnation.
  explicit PeerCore(const Bytes16& self) : self_(self) {}

  PeerAction Want();
  // From now on what ends is not dialled again.
  PeerAction Unwant();
  PeerAction OnTime() { return Apply(PeerEvent::kTime); }
  PeerAction OnStream() { return Apply(PeerEvent::kStream); }
  PeerAction OnOpened(const AttemptId& peer);
  // `mendable`: waiting may help. Where it may not, and this side had called, the call is not
  // wanted any more; how an endpoint fares that was answered says nothing about calls.
  PeerAction OnEnded(bool mendable);
  PeerAction OnHello(const AttemptId& from);
  PeerAction OnAlive() { return Apply(PeerEvent::kAlive); }
  PeerAction OnHeldGone() { return Apply(PeerEvent::kHeldGone); }

  PeerState state() const { return state_; }
  bool wanted() const { return wanted_; }
  uint64_t restarts() const { return restarts_; }

 private:
  // Incarnations that the peer has given up and that are known for it.
  static constexpr size_t kPastMax = 8;

  PeerAction Apply(PeerEvent event);
  PeerEvent Judge(const AttemptId& from) const;
  // What the peer was before `now` is past.
  void Hear(const Bytes16& now);

  Bytes16 self_;
  PeerState state_ = PeerState::kIdle;
  bool wanted_ = false;
  // Attempts count as long as there is an endpoint that they are later than: what anybody has said
  // of one that is refused locks nobody out.
  std::optional<AttemptId> peer_;  // of what is current; not known while calling
  std::optional<AttemptId> held_;
  std::optional<Bytes16> last_;  // the peer's latest incarnation that has been heard of
  std::vector<Bytes16> past_;    // the oldest first
  uint64_t restarts_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_PEER_SET_CORE_H_
