// SealLoop: what the sealed streams and handshakes of one loop share: the cipher contexts, the wait
// for room in the pool, and the news that the loop is going.
//
// Attached to its loop and as old as it. Loop's thread. It owns no member; members leave when they
// go, and are told once when the loop goes first.
#ifndef PENSTOCK_SECURE_SEAL_LOOP_H_
#define PENSTOCK_SECURE_SEAL_LOOP_H_

#include <penstock/export.h>

#include <memory>

#include "absl/status/statusor.h"
#include "base/timer_wheel.h"
#include "engine/loop_core.h"
#include "secure/cipher_contexts.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class SealLoop;

// A sealed stream or a handshake, as its loop knows it.
class SealMember {
 public:
  SealMember(const SealMember&) = delete;
  SealMember& operator=(const SealMember&) = delete;

 protected:
  SealMember() = default;
  ~SealMember() { Leave(); }

  // After SealLoop::WaitForRoom. Must run no callback.
  virtual void OnRoom() {}
  // It is a member no more. May destroy itself and others.
  virtual void OnLoopGone() = 0;
  void Leave();

 private:
  friend class SealLoop;

  void Unlink();
  void LinkBefore(SealMember& place);

  SealLoop* seal_loop_ = nullptr;
  SealMember* previous_ = this;
  SealMember* next_ = this;
};

class SealLoop final : public LoopAttachment {
 public:
  // The one of `core`, made at the first call. Unimplemented when OpenSSL lacks an algorithm.
  static absl::StatusOr<SealLoop*> Of(LoopCore& core);

  SealLoop(LoopCore& core, std::unique_ptr<RecordCrypto> crypto);
  ~SealLoop() override;

  void Join(SealMember& member);
  // OnRoom is called once when the pool, which refused, has room again.
  void WaitForRoom(SealMember& member);
  // Contexts have been used: they are looked after until nobody needs them.
  void OnUse() {
    if (!sweep_.armed()) ArmSweep();
  }

  LoopCore& core() { return core_; }
  const std::shared_ptr<CipherContexts>& contexts() { return contexts_; }

  void OnRoom() override;
  void OnLoopGone() override;

 private:
  friend class SealMember;

  // Ends a list of members.
  struct Head final : SealMember {
    void OnLoopGone() override {}
    bool empty() const;
    SealMember& first();
  };
  struct SweepTimer : TimerNode {
    SweepTimer(SealLoop& of, Fire fire) : TimerNode(fire), owner(of) {}
    SealLoop& owner;
  };

  void ArmSweep();
  void Sweep();
  void OnLeft();

  LoopCore& core_;
  std::shared_ptr<CipherContexts> contexts_;
  Head members_;
  Head waiting_;  // for room; members as well
  SweepTimer sweep_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_SEAL_LOOP_H_
