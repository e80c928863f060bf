// EpollEngine: readiness by epoll(7), edge-triggered, then plain recv and send.
//
// A connection is registered once, at Attach, and holds no buffer until recv is about to run (I1).
// A short receive means the socket is drained and the next bytes raise a new edge, so the usual
// request costs one epoll_wait, one recv and one send. Owns the epoll descriptor.
#ifndef PENSTOCK_ENGINE_EPOLL_ENGINE_H_
#define PENSTOCK_ENGINE_EPOLL_ENGINE_H_

#include <penstock/export.h>
#include <sys/epoll.h>

#include <memory>
#include <vector>

#include "engine/socket_engine.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class EpollEngine : public SocketEngine {
 public:
  static absl::StatusOr<std::unique_ptr<Engine>> Create(LoopCore& loop);
  ~EpollEngine() override;

  EngineKind kind() const override { return EngineKind::kEpoll; }
  int fd() override { return epoll_; }
  int Wait(int64_t timeout_ns) override;
  absl::Status AddWatch(Watch& watch) override;
  void RemoveWatch(uint32_t slot, int fd) override;
  void OnRoom() override;

  absl::Status Add(Acceptor& acceptor) override;
  void Accept(Acceptor& acceptor) override;
  void StopAccepting(Acceptor& acceptor) override;
  void Forget(Acceptor& acceptor) override;
  bool Release(Acceptor& acceptor) override;

  absl::Status Attach(Connection& connection) override;
  bool Detach(Connection& connection) override;
  bool Release(Connection& connection) override { return Detach(connection); }
  bool Pull(Connection& connection) override;
  void WantRead(Connection&) override {}  // registered for life
  void StopRead(Connection&) override {}  // nothing is received but by Pull
  void WantWrite(Connection& connection) override;

 private:
  EpollEngine(LoopCore& loop, int epoll);

  absl::Status Control(int op, int fd, uint32_t events, uint32_t slot, const char* what);
  int Ask(int64_t timeout_ns);
  void Dispatch(const epoll_event& event);
  [[gnu::cold]] int WaitFailed(int error);
  // The part of Pull for a connection that may have something to receive.
  [[gnu::noinline]] bool Receive(Connection& connection, Slot& slot);
  // `shut_down`: the socket does not listen any more.
  [[gnu::noinline]] void AcceptBurst(Token token, bool shut_down);

  int epoll_;
  int events_max_;
  std::vector<epoll_event> events_;
  // Connections whose receive waits for a buffer.
  std::vector<Token> waiting_for_room_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_EPOLL_ENGINE_H_
