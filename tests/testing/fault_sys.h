// FaultSys: the real kernel, except that one chosen call fails: the nth of its kind, once or from
// then on, with a chosen errno; and, where a test says so, others beside it. Completions of the
// io_uring engine count as calls of their own kind and have their result replaced.
//
// Once a call has failed, every look at the clock moves it on a little, so that waits for what will
// never come end soon.
//
// A failed call has not happened: nothing reaches the kernel, and a descriptor that a completion
// carried is closed. But close, munmap and EPOLL_CTL_DEL do their work whatever they say, and a
// watch whose completion fails lives on in the kernel: one that is armed anew then shares its token
// with it. One thread, of one loop or several.
#ifndef PENSTOCK_TESTS_TESTING_FAULT_SYS_H_
#define PENSTOCK_TESTS_TESTING_FAULT_SYS_H_

#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string_view>
#include <vector>

#include "base/sys.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

enum class Call : uint8_t {
  kSocket,
  kBind,
  kListen,
  kAccept,
  kConnect,
  kReceive,
  kSend,
  kShutdown,
  kSetOption,
  kGetOption,
  kLocalName,
  kPeerName,
  kClose,
  kOpenReserve,
  kUnlink,
  kEpollCreate,
  kEpollControl,
  kEpollRemove,  // EPOLL_CTL_DEL
  kEpollWait,
  kPoll,
  kEventFd,
  kRead,
  kWrite,
  kTimerFd,
  kTimerFdSet,
  kMap,
  kUnmap,
  kAdvise,
  kRingSetup,
  kRingEnter,
  kRingRegister,
  kAcceptCompletion,
  kReceiveCompletion,
  kPollReadCompletion,
  kPollWriteCompletion,
  kCancelCompletion,
  kWatchCompletion,
};
inline constexpr size_t kCalls = 37;

std::string_view CallName(Call call);
// The errors a kernel may give for `call` that a program must survive (its man page, and memory or
// descriptors running out).
std::span<const int> PlausibleErrors(Call call);

struct Fault {
  Call call = Call::kSocket;
  int error = 0;     // positive errno
  uint64_t nth = 0;  // 1 is the first call; 0 is none
  bool persistent = false;
};

class FaultSys : public Sys {
 public:
  FaultSys() = default;
  explicit FaultSys(Fault fault) : fault_(fault) {}

  void Set(Fault fault) {
    fault_ = fault;
    counts_ = {};
    fired_ = failed_ = false;
  }
  // Fails beside the chosen one; its calls are counted from the beginning on.
  void Also(Fault fault) { background_.push_back(fault); }
  void Clear() { fault_ = {}; }
  // The chosen one has.
  bool fired() const { return fired_; }
  bool failed() const { return failed_; }
  uint64_t count(Call call) const { return counts_[static_cast<size_t>(call)]; }
  // Time that passes for the library, its timerfd included, and for nobody else.
  void AdvanceClock(int64_t ns);

  int Socket(int family, int type, int protocol) override;
  int Bind(int fd, const sockaddr* address, socklen_t length) override;
  int Listen(int fd, int backlog) override;
  int Accept(int fd, sockaddr* address, socklen_t* length) override;
  int Connect(int fd, const sockaddr* address, socklen_t length) override;
  int64_t Receive(int fd, void* data, size_t size) override;
  int64_t Send(int fd, const void* data, size_t size) override;
  int64_t SendVector(int fd, const iovec* parts, size_t count) override;
  int Shutdown(int fd, int how) override;
  int SetOption(int fd, int level, int name, const void* value, socklen_t length) override;
  int GetOption(int fd, int level, int name, void* value, socklen_t* length) override;
  int LocalName(int fd, sockaddr* address, socklen_t* length) override;
  int PeerName(int fd, sockaddr* address, socklen_t* length) override;
  int Close(int fd) override;
  int OpenReserve() override;
  int Unlink(const char* path) override;
  int EpollCreate() override;
  int EpollControl(int epoll, int op, int fd, epoll_event* event) override;
  int EpollWait(int epoll, epoll_event* events, int count, int64_t timeout_ns) override;
  int Poll(pollfd* descriptors, size_t count, int64_t timeout_ns) override;
  int EventFd() override;
  int64_t Read(int fd, void* data, size_t size) override;
  int64_t Write(int fd, const void* data, size_t size) override;
  int TimerFd() override;
  int TimerFdSet(int fd, int64_t at_ns) override;
  void* Map(size_t size, int flags, int* error) override;
  int Unmap(void* base, size_t size) override;
  int Advise(void* base, size_t size, int advice) override;
  int RingSetup() override;
  int RingEnter() override;
  int RingRegister(int ring, unsigned op, const void* argument, unsigned count) override;
  void RingCompletion(RingOp op, int32_t* result, uint32_t* flags) override;
  int64_t Now() override;

 private:
  // Counts a call; the error it must fail with, or 0.
  int Next(Call call);
  Fault fault_;
  std::array<uint64_t, kCalls> counts_{};
  std::vector<Fault> background_;
  bool fired_ = false;
  bool failed_ = false;
  int64_t skew_ns_ = 0;
  std::map<int, int64_t> timers_;  // what loops have set last
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_FAULT_SYS_H_
