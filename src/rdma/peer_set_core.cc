#include "rdma/peer_set_core.h"

#include <algorithm>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

PeerAction PeerCore::Want() {
  wanted_ = true;
  return Apply(PeerEvent::kWant);
}

PeerAction PeerCore::Unwant() {
  wanted_ = false;
  return Apply(PeerEvent::kUnwant);
}

PeerAction PeerCore::OnOpened(const AttemptId& peer) {
  peer_ = peer.incarnation;
  Hear(peer);
  return Apply(PeerEvent::kOpened);
}

PeerAction PeerCore::OnEnded(bool mendable) {
  const bool called = state_ == PeerState::kConnecting || state_ == PeerState::kCalling;
  wanted_ = wanted_ && (mendable || !called);
  return Apply(wanted_ ? PeerEvent::kEnded : PeerEvent::kEndedForGood);
}

PeerAction PeerCore::OnHello(const AttemptId& from) {
  const PeerEvent event = Judge(from);
  if (event != PeerEvent::kHelloLate) Hear(from);
  return Apply(event);
}

PeerEvent PeerCore::Judge(const AttemptId& from) const {
  const bool given_up = from.incarnation == last_.incarnation && from.attempt <= last_.attempt;
  if (given_up) return PeerEvent::kHelloLate;
  if (!peer_.has_value()) {
    return from.incarnation < self_ ? PeerEvent::kHelloSmaller : PeerEvent::kHelloLarger;
  }
  if (from.incarnation == *peer_) return PeerEvent::kHelloAgain;
  // Past incarnations count where there is something to lose only: one that was taken for past by
  // mistake, because messages overtook each other, is answered when that has ended.
  const bool past = std::find(past_.begin(), past_.end(), from.incarnation) != past_.end();
  return past ? PeerEvent::kHelloLate : PeerEvent::kHelloRestarted;
}

void PeerCore::Hear(const AttemptId& now) {
  if (now.incarnation == last_.incarnation) {
    last_.attempt = std::max(last_.attempt, now.attempt);
    return;
  }
  std::erase(past_, now.incarnation);
  if (last_.attempt != 0) {
    ++restarts_;
    if (past_.size() == kPastMax) past_.erase(past_.begin());
    past_.push_back(last_.incarnation);
  }
  last_ = now;
}

PeerAction PeerCore::Apply(PeerEvent event) {
  const PeerTransition step =
      kPeerTransitions[static_cast<size_t>(state_)][static_cast<size_t>(event)];
  state_ = step.next;
  if (step.action == PeerAction::kAnswer) peer_ = last_.incarnation;
  if (state_ < PeerState::kAnswering) peer_.reset();
  return step.action;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
