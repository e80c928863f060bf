#include "secure/seal_loop.h"

#include <utility>

#include "secure/openssl_aead.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// A context is given up when it was not used for one to two of these.
constexpr absl::Duration kSweepEvery = absl::Seconds(1);

}  // namespace

void SealMember::Unlink() {
  previous_->next_ = next_;
  next_->previous_ = previous_;
  previous_ = next_ = this;
}

void SealMember::LinkBefore(SealMember& place) {
  previous_ = place.previous_;
  next_ = &place;
  place.previous_->next_ = this;
  place.previous_ = this;
}

void SealMember::Leave() {
  Unlink();
  if (SealLoop* const loop = std::exchange(seal_loop_, nullptr)) loop->OnLeft();
}

bool SealLoop::Head::empty() const { return next_ == this; }

SealMember& SealLoop::Head::first() { return *next_; }

absl::StatusOr<SealLoop*> SealLoop::Of(LoopCore& core) {
  if (core.attachment() == nullptr) {
    absl::StatusOr<std::unique_ptr<RecordCrypto>> crypto = NewOpensslCrypto();
    if (!crypto.ok()) return crypto.status();
    core.Attach(std::make_unique<SealLoop>(core, *std::move(crypto)));
  }
  return static_cast<SealLoop*>(core.attachment());
}

SealLoop::SealLoop(LoopCore& core, std::unique_ptr<RecordCrypto> crypto)
    : core_(core),
      contexts_(std::make_shared<CipherContexts>(std::move(crypto))),
      sweep_(*this, [](TimerNode* node) { static_cast<SweepTimer*>(node)->owner.Sweep(); }) {}

// Callbacks that the ending loop destroys may begin handshakes.
SealLoop::~SealLoop() {
  OnLoopGone();
  core_.timers().Cancel(sweep_);
}

void SealLoop::Join(SealMember& member) {
  member.seal_loop_ = this;
  member.LinkBefore(members_);
}

void SealLoop::WaitForRoom(SealMember& member) {
  member.Unlink();
  member.LinkBefore(waiting_);
  core_.WaitForRoom();
}

void SealLoop::OnRoom() {
  // One of them may take all the room and the next wait again, at the end of the list.
  Head told;
  while (!waiting_.empty()) {
    SealMember& member = waiting_.first();
    member.Unlink();
    member.LinkBefore(told);
  }
  while (!told.empty()) {
    SealMember& member = told.first();
    member.Unlink();
    member.LinkBefore(members_);
    member.OnRoom();
  }
}

void SealLoop::OnLoopGone() {
  while (!members_.empty() || !waiting_.empty()) {
    SealMember& member = members_.empty() ? waiting_.first() : members_.first();
    member.Leave();
    member.OnLoopGone();
  }
}

void SealLoop::ArmSweep() {
  core_.timers().Schedule(sweep_, TimerWheel::DeadlineTick(core_.sys().Now(), kSweepEvery));
}

void SealLoop::Sweep() {
  if (contexts_->Sweep()) ArmSweep();
}

void SealLoop::OnLeft() {
  // Whoever leaves gives its contexts up, so that there is nothing left to sweep.
  if (members_.empty() && waiting_.empty()) core_.timers().Cancel(sweep_);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
