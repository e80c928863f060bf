// UringEngine: completions by io_uring(7).
//
// Receives by one of two strategies, chosen for each connection by its traffic:
//   ring  a multishot receive that the kernel completes into buffers lent by the loop: no system
//         call a request. Best for many connections with small messages.
//   poll  a multishot poll, then a plain recv into a hot buffer of the right size. Best for large
//         pieces, which would walk through the whole ring and out of the cache; and for Unix
//         sockets, whose multishot receive misses the end of stream (liburing issue 1549).
// Sends are plain send(2): a system call is cheaper than an SQE and its CQE, and no operation in
// the kernel ever holds bytes of a connection. What the socket does not take waits for a poll.
//
// The kernel's hold on a connection is a set of armed operations. Each ends with its terminal
// completion (no F_MORE), which alone decides that it has ended: cancel results do not. Buffers of
// late completions belong to the loop, so a stream may go at any time (I2).
#ifndef PENSTOCK_ENGINE_URING_ENGINE_H_
#define PENSTOCK_ENGINE_URING_ENGINE_H_

#include <liburing.h>
#include <penstock/export.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "base/timer_wheel.h"
#include "engine/socket_engine.h"
#include "engine/uring_buffers.h"
#include "engine/uring_features.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class UringEngine : public SocketEngine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Create(LoopCore& loop);
  // Whether the kernel has what makes io_uring the better choice; see UringFitsAuto.
  static absl::Status FitsAuto(Sys& sys);
  ~UringEngine() override;

  EngineKind kind() const override { return EngineKind::kUring; }
  bool broken() const override { return broken_; }
  // A DEFER_TASKRUN ring does not wake whoever polls its own descriptor when completions come due
  // (seen on 6.18): they are posted only by our next wait. A registered eventfd is told of them; it
  // is made when somebody first asks, because it costs every completion a little.
  int fd() override;
  int Wait(int64_t timeout_ns) override;
  bool HasUnsubmitted() const override;
  absl::Status AddWatch(Watch& watch) override;
  void RemoveWatch(uint32_t slot, int fd) override;
  void StopNotifying() override;
  void Trim() override;
  void ReleaseAll() override;
  void OnRoom() override;

  absl::Status Add(Acceptor& acceptor) override;
  void Accept(Acceptor& acceptor) override;
  void StopAccepting(Acceptor& acceptor) override;
  void Forget(Acceptor& acceptor) override;
  bool Release(Acceptor& acceptor) override;

  absl::Status Attach(Connection& connection) override;
  bool Detach(Connection& connection) override;
  bool Release(Connection& connection) override;
  bool Pull(Connection& connection) override;
  void WantRead(Connection& connection) override;
  void StopRead(Connection& connection) override;
  void WantWrite(Connection& connection) override;

 private:
  // One operation to be handed to the kernel.
  struct Submission {
    RingOp op;
    int fd;
    uint64_t token;
    uint64_t target = 0;  // of a cancel
  };
  struct Completion {
    Token token{0};
    int32_t result = 0;
    uint32_t flags = 0;
  };

  explicit UringEngine(LoopCore& loop);
  absl::Status Start();

  void Submit(const Submission& submission);
  void Prepare(io_uring_sqe* sqe, const Submission& submission);
  void SubmitBacklog();
  // Starts the ring. What cannot be started counts as a failure to enter, and may be tried again.
  [[gnu::cold]] bool Enable(bool may_sleep);
  // What forbids an io_uring_enter, or 0.
  int EnterRefusal();
  int Enter(int64_t timeout_ns);
  // Before every wait of a ring that is watched through notify_fd_. From Linux 6.11 on a
  // registration passes on only one of the signals that the kernel has to defer: those that come of
  // another eventfd's, and on some 6.12 all that come in an interrupt (io_uring/eventfd.c never
  // clears IO_EVENTFD_OP_SIGNAL_BIT). So one signal is all that is asked of each registration.
  void RenewNotify();
  [[gnu::cold]] int EnterFor(int64_t timeout_ns);
  int RegisterNotify(int event);
  void UnregisterNotify();
  // Counts it; when that is for good, GiveUp. Until then a loop that may sleep does so a little.
  [[gnu::cold]] void EnterFailed(int error, bool may_sleep);
  const char* EnterCall() const { return enabled_ ? "io_uring_enter" : "io_uring_register"; }
  // Without io_uring_enter nothing that is armed ends, nor is told of: closes the ring, after which
  // the kernel holds nothing, and lets go of everything.
  [[gnu::cold]] void GiveUp(int error);
  // Of some completion nobody was or will be told, for want of memory to keep it
  // (IORING_FEAT_NODROP in io_uring_setup(2)): what it would have ended waits for ever, or lacks
  // bytes. The kernel says so once by EBADR (Linux 5.19), and in this count.
  bool HasDropped() const { return IO_URING_READ_ONCE(*ring_.cq.koverflow) != 0; }
  void CloseRing();
  // What it says when it is broken.
  static absl::Status GivenUp();
  void Orphan(uint32_t slot);
  void OrphanConnection(Connection& connection, Slot& slot);
  void OrphanAcceptor(uint32_t slot);
  int DispatchCompletions();
  const io_uring_cqe& CompletionAt(unsigned position) const {
    return ring_.cq.cqes[io_uring_cqe_index(&ring_, position, ring_.cq.ring_mask)];
  }
  // To the seam, which may change it.
  void ShowCompletion(Completion& completion);
  void Dispatch(const Completion& completion);

  // `slot` is of any kind; `op` is armed, or told to end.
  void Arm(uint32_t slot, RingOp op, int fd);
  void Cancel(uint32_t slot, RingOp op);
  // The terminal completion of `op` has come.
  void Disarm(Slot& slot, RingOp op);
  void OnCancelled(const Completion& completion);

  // Tells what is armed for a connection to end. True: nothing is.
  bool Part(Connection& connection, uint8_t how);
  // An operation of a connection that is parting has come to an end, perhaps the last one.
  void Parted(Connection& connection, Slot& slot);
  // What `slot` has armed was told to end, so that another engine can have it. That has a bound in
  // time, whatever the kernel says: of the two rounds that there are, who began in the last one has
  // waited for kReleaseRound at least, and is kept.
  void AwaitRelease(Slot& slot);
  void ArmReleaseTimer();
  [[gnu::cold]] void LookAtReleases();
  // Null: it is not this engine's, or does not wait to be let go of.
  Slot* Releasing(uint32_t index);
  [[gnu::cold]] void Keep(Slot& slot);
  [[gnu::cold]] void CannotCancel(uint32_t index);

  void OnReceive(const Completion& completion, Slot& slot);
  [[gnu::cold]] void OnLateReceive(const Completion& completion, Slot& slot);
  [[gnu::cold]] void OnReceiveFailed(const Completion& completion, Slot& slot);
  // The part of Pull for a connection that may have something to receive.
  [[gnu::noinline]] bool Receive(Connection& connection, Slot& slot);
  void OnPoll(const Completion& completion, Slot& slot);
  void OnAccept(const Completion& completion, Slot& slot);
  [[gnu::cold]] void OnLateAccept(const Completion& completion, Acceptor& acceptor);
  void AcceptBurst(Token token);
  void FinishForget(uint32_t slot);
  bool MayUseRing(const Slot& slot) const;
  void OnWatch(const Completion& completion, Slot& slot);
  Buffer TakeReceived(const Completion& completion);
  void DropBuffer(const Completion& completion);
  void ChooseStrategy(Slot& slot, Connection& connection, size_t received);
  RingOp ReceiveOp(const Slot& slot) const;

  UringFeatures features_;
  io_uring ring_{};
  int notify_fd_ = -1;  // readable when there is something to wait for; see RenewNotify
  bool made_ = false;
  bool broken_ = false;
  bool enabled_ = false;         // by the first wait, on the thread that will wait (SINGLE_ISSUER)
  uint32_t enter_failures_ = 0;  // in a row
  int64_t failing_since_ns_ = 0;
  CallbackTimer enter_retry_;  // of one that another engine waits for
  CallbackTimer release_timer_;
  uint8_t release_round_ = 0;
  bool receives_lost_ = false;  // when it was given up: of some that completed nobody was told
  BufferRing buffers_;
  // What did not fit the submission queue, in order.
  std::vector<Submission> backlog_;
  std::vector<Token> waiting_for_room_;
  // Listening sockets whose acceptor has gone while the kernel still held an accept.
  struct Forgotten {
    uint32_t slot;
    int fd;
  };
  std::vector<Forgotten> forgotten_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_URING_ENGINE_H_
