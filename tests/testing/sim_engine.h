// SimEngine: an Engine without a kernel, over the sockets of a SimWorld. It keeps the contract of
// engine.h to the letter and is otherwise as unpleasant as the real ones may be: events come late,
// early, in another order, for nothing; operations end when they please, and go on after they were
// told to stop.
//
// Readiness style: edges are queued, coalesced for each connection, and bytes move when the
// connection pulls. Completion style: an armed receive takes bytes out of the socket into buffers
// of the pool as they arrive, and what it took is reported later; cancelling is a request, answered
// by a terminal completion, with more data before it.
//
// Owned by a LoopCore made by SimWorld::NewLoop; belongs to the loop's (only) thread.
#ifndef PENSTOCK_TESTS_TESTING_SIM_ENGINE_H_
#define PENSTOCK_TESTS_TESTING_SIM_ENGINE_H_

#include <penstock/buffer.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "engine/connection.h"
#include "engine/engine.h"
#include "engine/loop_core.h"
#include "testing/sim_world.h"

namespace penstock::testing {

class SimEngine final : public internal::Engine, public SimWatcher {
 public:
  SimEngine(internal::LoopCore& core, SimWorld& world, EngineKind kind, SimStyle style);
  ~SimEngine() override;

  const internal::LoopCore& core() const { return loop_; }
  // Whether Wait(0) would find something.
  bool HasDue() const;

  // --- Engine ---
  EngineKind kind() const override { return kind_; }
  int fd() override { return fd_; }
  int Wait(int64_t timeout_ns) override;
  absl::Status AddWatch(internal::Watch& watch) override;
  void RemoveWatch(uint32_t slot, int fd) override;
  void ReleaseAll() override;
  void OnRoom() override;
  absl::StatusOr<int> OpenListener(const SocketAddress& address,
                                   const internal::SocketSetup& setup) override;
  absl::StatusOr<int> OpenConnecting(const SocketAddress& address, const SocketAddress& local,
                                     const internal::SocketSetup& setup, bool* connected) override;
  absl::Status SetOptions(int, const SocketAddress&, const internal::SocketSetup&) override {
    return absl::OkStatus();
  }
  int ConnectResult(int fd) override;
  SocketAddress LocalAddress(int fd) override;
  void CloseSocket(int fd, bool reset) override;
  absl::Status Add(internal::Acceptor& acceptor) override;
  void Accept(internal::Acceptor& acceptor) override;
  void StopAccepting(internal::Acceptor& acceptor) override;
  bool RefuseOne(internal::Acceptor& acceptor) override;
  void RestoreReserve() override;
  void Forget(internal::Acceptor& acceptor) override;
  bool Release(internal::Acceptor& acceptor) override;
  absl::Status Attach(internal::Connection& connection) override;
  bool Detach(internal::Connection& connection) override;
  bool Release(internal::Connection& connection) override;
  bool Pull(internal::Connection& connection) override;
  void WantRead(internal::Connection& connection) override;
  void StopRead(internal::Connection& connection) override;
  int64_t Send(internal::Connection& connection, std::span<const iovec> parts) override;
  void WantWrite(internal::Connection& connection) override;
  int Shutdown(internal::Connection& connection, int how) override;

  // --- SimWatcher ---
  void OnFdEvent(uint64_t token, uint32_t events) override;

 private:
  using Token = internal::Token;
  using Slot = internal::Slot;

  // Operations of the completion style, a bit each.
  enum Op : uint8_t { kReceive = 1, kPollWrite = 2, kAccept = 4 };

  // What the engine knows of a slot.
  struct State {
    bool readable = false;      // a plain receive may find something
    bool needs_buffer = false;  // on waiting_for_room_
    bool watches_out = false;
    bool accepting = false;
    bool leaving = false;
    bool releasing = false;
    uint8_t armed = 0;       // operations whose terminal completion has not been dispatched
    uint8_t cancelling = 0;  // of these, told to end
    uint8_t kernel = 0;      // of these, still live in the kernel
    int64_t last_due_ns = 0;
  };
  enum class Kind : uint8_t { kReady, kWatch, kOperation, kRefusal };
  struct Event {
    int64_t due_ns = 0;
    uint64_t sequence = 0;
    Token token{0};
    Kind kind = Kind::kReady;
    uint32_t events = 0;  // of kReady
    Op op = kReceive;     // of kOperation, like what follows
    bool terminal = false;
    int64_t result = 0;  // bytes, a descriptor, or -errno
    Buffer bytes = {};
    SocketAddress peer = {};
  };

  State& StateOf(uint32_t slot);
  Token TokenOf(uint32_t slot) const { return loop_.slots().TokenOf(slot); }
  bool completes() const { return style_ == SimStyle::kCompletion; }

  void Queue(Event event);
  void QueueReady(Token token, uint32_t events);
  void QueueEnd(Token token, Op op, int64_t result);
  void AddSpurious();
  // Takes the next event out that is due and older than `before`; false when there is none.
  bool TakeDue(uint64_t before, Event* event);
  void Dispatch(Event& event);
  void DispatchReady(Event& event, Slot& slot);
  void DispatchReceive(Event& event, Slot& slot);
  void DispatchPollWrite(Event& event, Slot& slot);
  void DispatchRefusal(Event& event, Slot& slot);
  void DispatchAccept(Event& event, Slot* slot);
  void AcceptBurst(Token token);

  // The kernel's half of the completion style.
  void Arm(uint32_t slot, Op op);
  void Cancel(uint32_t slot, Op op);
  void Progress(Token token);
  void ProgressReceive(Token token, internal::Connection& connection);
  void ProgressAccept(Token token, internal::Acceptor& acceptor);

  // An operation of a connection that is leaving or being released has ended.
  void Parted(internal::Connection& connection);
  // The kernel will not end the receive of a connection that is being released.
  void RefuseRelease(Token token);
  bool WaitForRoom(internal::Connection& connection);
  void Discard(Event& event);

  SimWorld& world_;
  const EngineKind kind_;
  const SimStyle style_;
  int fd_ = -1;
  int reserve_ = -1;
  bool released_ = false;
  uint64_t sequence_ = 0;
  std::deque<Event> queue_;
  size_t lent_ = 0;  // buffers in the queue
  std::vector<State> states_;
  std::vector<Token> waiting_for_room_;
  std::vector<Buffer> leaked_;  // by a mutant
  // For what the kernel does later, when the engine may have gone.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_SIM_ENGINE_H_
