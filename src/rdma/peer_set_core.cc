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
  peer_ = peer;
  Hear(peer.incarnation);
  return Apply(PeerEvent::kOpened);
}

PeerAction PeerCore::OnEnded(bool mendable) {
  const bool called = state_ == PeerState::kConnecting || state_ == PeerState::kCalling;
  wanted_ = wanted_ && (mendable || !called);
  return Apply(wanted_ ? PeerEvent::kEnded : PeerEvent::kEndedForGood);
}

PeerAction PeerCore::OnHello(const AttemptId& from) {
  const PeerEvent event = Judge(from);
  if (event != PeerEvent::kHelloLate) Hear(from.incarnation);
  const PeerAction action = Apply(event);
  if (action == PeerAction::kAnswer) peer_ = from;
  if (action == PeerAction::kProbe || action == PeerAction::kHold) held_ = from;
  return action;
}

PeerEvent PeerCore::Judge(const AttemptId& from) const {
  if (!peer_.has_value()) {
    return from.incarnation < self_ ? PeerEvent::kHelloSmaller : PeerEvent::kHelloLarger;
  }
  if (from.incarnation == peer_->incarnation) {
    const uint64_t latest = held_.has_value() ? held_->attempt : peer_->attempt;
    return from.attempt <= latest ? PeerEvent::kHelloLate : PeerEvent::kHelloAgain;
  }
  // Past incarnations count where there is something to lose only: one that was taken for past by
  // mistake, because messages overtook each other, is answered when that has ended.
  const bool past = std::find(past_.begin(), past_.end(), from.incarnation) != past_.end();
  return past ? PeerEvent::kHelloLate : PeerEvent::kHelloRestarted;
}

void PeerCore::Hear(const Bytes16& now) {
  if (last_ == now) return;
  std::erase(past_, now);
  if (last_.has_value()) {
    ++restarts_;
    if (past_.size() == kPastMax) past_.erase(past_.begin());
    past_.push_back(*last_);
  }
  last_ = now;
}

PeerAction PeerCore::Apply(PeerEvent event) {
  const PeerTransition step =
      kPeerTransitions[static_cast<size_t>(state_)][static_cast<size_t>(event)];
  state_ = step.next;
  if (step.action == PeerAction::kAnswerHeld) peer_ = held_;
  if (state_ != PeerState::kProbing) held_.reset();
  if (state_ < PeerState::kAnswering) peer_.reset();
  return step.action;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
