#include "testing/fault_sys.h"

#include <linux/io_uring.h>
#include <unistd.h>
#include <algorithm>

#include <cerrno>
#include <iterator>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr int kDescriptors[] = {EMFILE, ENFILE, ENOMEM};
constexpr int kSocketErrors[] = {EMFILE, ENFILE, ENOMEM, ENOBUFS, EAFNOSUPPORT, EACCES};
constexpr int kBindErrors[] = {EADDRINUSE, EACCES, EADDRNOTAVAIL, ENOMEM};
constexpr int kAddressInUse[] = {EADDRINUSE};
constexpr int kAcceptErrors[] = {ECONNABORTED, EMFILE,      ENFILE,      ENOBUFS,   ENOMEM,
                                 EPROTO,       EPERM,       ENETDOWN,    EHOSTDOWN, ENONET,
                                 EHOSTUNREACH, ENETUNREACH, ENOPROTOOPT, EOPNOTSUPP};
constexpr int kConnectErrors[] = {ECONNREFUSED,  ENETUNREACH, EHOSTUNREACH, ETIMEDOUT, EAGAIN,
                                  EADDRNOTAVAIL, EACCES,      EPERM,        EADDRINUSE};
constexpr int kReceiveErrors[] = {ECONNRESET, ETIMEDOUT, EHOSTUNREACH, ECONNREFUSED, ENOMEM};
constexpr int kSendErrors[] = {ECONNRESET, EPIPE, EHOSTUNREACH, ENOBUFS, ENOMEM, ETIMEDOUT};
constexpr int kUnlinkErrors[] = {EACCES, EPERM, ENOENT, EROFS};
constexpr int kGone[] = {ENOENT, EBADF};
constexpr int kReadErrors[] = {EAGAIN, EIO};
constexpr int kAdviseErrors[] = {ENOMEM, EINVAL, EAGAIN};
constexpr int kNotConnected[] = {ENOTCONN};
constexpr int kNoBuffers[] = {ENOBUFS};
constexpr int kCloseErrors[] = {EIO, EINTR};
constexpr int kControlErrors[] = {ENOMEM, ENOSPC};
constexpr int kWaitErrors[] = {ENOMEM};
constexpr int kPollErrors[] = {ENOMEM, EINVAL};
constexpr int kWriteErrors[] = {EAGAIN, ENOMEM};
constexpr int kMemory[] = {ENOMEM};
constexpr int kSetupErrors[] = {ENOMEM, EMFILE, EPERM, ENOSYS};
constexpr int kRegisterErrors[] = {ENOMEM, EPERM, EINVAL};
constexpr int kEnterErrors[] = {EAGAIN, EBUSY, ENOMEM, EINTR, EBADR};
// Of those that carry bytes; ENOBUFS and ECANCELED never do (the simulated engine tests them).
constexpr int kReceiveResults[] = {ECONNRESET, ETIMEDOUT, EHOSTUNREACH, ECONNREFUSED, ENOMEM};
constexpr int kPollResults[] = {ENOMEM, ECANCELED};
constexpr int kCancelResults[] = {ENOENT, EALREADY};

struct Row {
  Call call;
  std::string_view name;
  std::span<const int> errors;
};

constexpr Row kRows[] = {
    {Call::kSocket, "Socket", kSocketErrors},
    {Call::kBind, "Bind", kBindErrors},
    {Call::kListen, "Listen", kAddressInUse},
    {Call::kAccept, "Accept", kAcceptErrors},
    {Call::kConnect, "Connect", kConnectErrors},
    {Call::kReceive, "Receive", kReceiveErrors},
    {Call::kSend, "Send", kSendErrors},
    {Call::kShutdown, "Shutdown", kNotConnected},
    {Call::kSetOption, "SetOption", kMemory},
    {Call::kGetOption, "GetOption", kNoBuffers},
    {Call::kLocalName, "LocalName", kNoBuffers},
    {Call::kPeerName, "PeerName", kNotConnected},
    {Call::kClose, "Close", kCloseErrors},
    {Call::kOpenReserve, "OpenReserve", kDescriptors},
    {Call::kUnlink, "Unlink", kUnlinkErrors},
    {Call::kEpollCreate, "EpollCreate", kDescriptors},
    {Call::kEpollControl, "EpollControl", kControlErrors},
    {Call::kEpollRemove, "EpollRemove", kGone},
    {Call::kEpollWait, "EpollWait", kWaitErrors},
    {Call::kPoll, "Poll", kPollErrors},
    {Call::kEventFd, "EventFd", kDescriptors},
    {Call::kRead, "Read", kReadErrors},
    {Call::kWrite, "Write", kWriteErrors},
    {Call::kTimerFd, "TimerFd", kDescriptors},
    {Call::kTimerFdSet, "TimerFdSet", kMemory},
    {Call::kMap, "Map", kMemory},
    {Call::kUnmap, "Unmap", kMemory},
    {Call::kAdvise, "Advise", kAdviseErrors},
    {Call::kRingSetup, "RingSetup", kSetupErrors},
    {Call::kRingEnter, "RingEnter", kEnterErrors},
    {Call::kRingRegister, "RingRegister", kRegisterErrors},
    {Call::kAcceptCompletion, "AcceptCompletion", kAcceptErrors},
    {Call::kReceiveCompletion, "ReceiveCompletion", kReceiveResults},
    {Call::kPollReadCompletion, "PollReadCompletion", kPollResults},
    {Call::kPollWriteCompletion, "PollWriteCompletion", kPollResults},
    {Call::kCancelCompletion, "CancelCompletion", kCancelResults},
    {Call::kWatchCompletion, "WatchCompletion", kMemory},
};
static_assert(std::size(kRows) == kCalls);

const Row& RowOf(Call call) { return kRows[static_cast<size_t>(call)]; }

}  // namespace

std::string_view CallName(Call call) { return RowOf(call).name; }

std::span<const int> PlausibleErrors(Call call) { return RowOf(call).errors; }

int FaultSys::Next(Call call) {
  const uint64_t count = ++counts_[static_cast<size_t>(call)];
  const auto hits = [&](const Fault& fault) {
    return call == fault.call && fault.nth != 0 &&
           (count == fault.nth || (fault.persistent && count > fault.nth));
  };
  for (const Fault& fault : background_) {
    if (!hits(fault)) continue;
    failed_ = true;
    return fault.error;
  }
  if (!hits(fault_)) return 0;
  failed_ = fired_ = true;
  return fault_.error;
}

int FaultSys::Socket(int family, int type, int protocol) {
  if (const int error = Next(Call::kSocket)) return -error;
  return Sys::Socket(family, type, protocol);
}

int FaultSys::Bind(int fd, const sockaddr* address, socklen_t length) {
  if (const int error = Next(Call::kBind)) return -error;
  return Sys::Bind(fd, address, length);
}

int FaultSys::Listen(int fd, int backlog) {
  if (const int error = Next(Call::kListen)) return -error;
  return Sys::Listen(fd, backlog);
}

int FaultSys::Accept(int fd, sockaddr* address, socklen_t* length) {
  if (const int error = Next(Call::kAccept)) return -error;
  return Sys::Accept(fd, address, length);
}

int FaultSys::Connect(int fd, const sockaddr* address, socklen_t length) {
  if (const int error = Next(Call::kConnect)) return -error;
  return Sys::Connect(fd, address, length);
}

int64_t FaultSys::Receive(int fd, void* data, size_t size) {
  if (const int error = Next(Call::kReceive)) return -error;
  return Sys::Receive(fd, data, size);
}

int64_t FaultSys::Send(int fd, const void* data, size_t size) {
  if (const int error = Next(Call::kSend)) return -error;
  return Sys::Send(fd, data, size);
}

int64_t FaultSys::SendVector(int fd, const iovec* parts, size_t count) {
  if (const int error = Next(Call::kSend)) return -error;
  return Sys::SendVector(fd, parts, count);
}

int FaultSys::Shutdown(int fd, int how) {
  if (const int error = Next(Call::kShutdown)) return -error;
  return Sys::Shutdown(fd, how);
}

int FaultSys::SetOption(int fd, int level, int name, const void* value, socklen_t length) {
  if (const int error = Next(Call::kSetOption)) return -error;
  return Sys::SetOption(fd, level, name, value, length);
}

int FaultSys::GetOption(int fd, int level, int name, void* value, socklen_t* length) {
  if (const int error = Next(Call::kGetOption)) return -error;
  return Sys::GetOption(fd, level, name, value, length);
}

int FaultSys::LocalName(int fd, sockaddr* address, socklen_t* length) {
  if (const int error = Next(Call::kLocalName)) return -error;
  return Sys::LocalName(fd, address, length);
}

int FaultSys::PeerName(int fd, sockaddr* address, socklen_t* length) {
  if (const int error = Next(Call::kPeerName)) return -error;
  return Sys::PeerName(fd, address, length);
}

int FaultSys::Close(int fd) {
  timers_.erase(fd);
  const int error = Next(Call::kClose);
  // close(2) frees the descriptor whatever it says.
  const int result = Sys::Close(fd);
  return error != 0 ? -error : result;
}

int FaultSys::OpenReserve() {
  if (const int error = Next(Call::kOpenReserve)) return -error;
  return Sys::OpenReserve();
}

int FaultSys::Unlink(const char* path) {
  if (const int error = Next(Call::kUnlink)) return -error;
  return Sys::Unlink(path);
}

int FaultSys::EpollCreate() {
  if (const int error = Next(Call::kEpollCreate)) return -error;
  return Sys::EpollCreate();
}

int FaultSys::EpollControl(int epoll, int op, int fd, epoll_event* event) {
  if (op != EPOLL_CTL_DEL) {
    const int error = Next(Call::kEpollControl);
    return error != 0 ? -error : Sys::EpollControl(epoll, op, fd, event);
  }
  // Fails only where there is nothing to take away.
  const int error = Next(Call::kEpollRemove);
  const int result = Sys::EpollControl(epoll, op, fd, event);
  return error != 0 ? -error : result;
}

int FaultSys::EpollWait(int epoll, epoll_event* events, int count, int64_t timeout_ns) {
  if (const int error = Next(Call::kEpollWait)) return -error;
  return Sys::EpollWait(epoll, events, count, timeout_ns);
}

int FaultSys::Poll(pollfd* descriptors, size_t count, int64_t timeout_ns) {
  if (const int error = Next(Call::kPoll)) return -error;
  return Sys::Poll(descriptors, count, timeout_ns);
}

int FaultSys::EventFd() {
  if (const int error = Next(Call::kEventFd)) return -error;
  return Sys::EventFd();
}

int64_t FaultSys::Read(int fd, void* data, size_t size) {
  if (const int error = Next(Call::kRead)) return -error;
  return Sys::Read(fd, data, size);
}

int64_t FaultSys::Write(int fd, const void* data, size_t size) {
  if (const int error = Next(Call::kWrite)) return -error;
  return Sys::Write(fd, data, size);
}

int FaultSys::TimerFd() {
  if (const int error = Next(Call::kTimerFd)) return -error;
  return Sys::TimerFd();
}

int FaultSys::TimerFdSet(int fd, int64_t at_ns) {
  if (const int error = Next(Call::kTimerFdSet)) return -error;
  timers_[fd] = at_ns;
  // Zero would disarm it.
  return Sys::TimerFdSet(fd, std::max<int64_t>(at_ns - skew_ns_, 1));
}

void FaultSys::AdvanceClock(int64_t ns) {
  skew_ns_ += ns;
  for (const auto& [fd, at_ns] : timers_) {
    Sys::TimerFdSet(fd, std::max<int64_t>(at_ns - skew_ns_, 1));
  }
}

void* FaultSys::Map(size_t size, int flags, int* error) {
  if (const int failure = Next(Call::kMap)) {
    *error = -failure;
    return nullptr;
  }
  return Sys::Map(size, flags, error);
}

int FaultSys::Unmap(void* base, size_t size) {
  const int error = Next(Call::kUnmap);
  // Done all the same: whoever unmaps forgets the memory, and a sweep would use up the machine's.
  const int result = Sys::Unmap(base, size);
  return error != 0 ? -error : result;
}

int FaultSys::Advise(void* base, size_t size, int advice) {
  if (const int error = Next(Call::kAdvise)) return -error;
  return Sys::Advise(base, size, advice);
}

int FaultSys::RingSetup() { return -Next(Call::kRingSetup); }

int FaultSys::RingEnter() { return -Next(Call::kRingEnter); }

int FaultSys::RingRegister(int ring, unsigned op, const void* argument, unsigned count) {
  if (const int error = Next(Call::kRingRegister)) return -error;
  return Sys::RingRegister(ring, op, argument, count);
}

void FaultSys::RingCompletion(RingOp op, int32_t* result, uint32_t* flags) {
  Sys::RingCompletion(op, result, flags);
  switch (op) {
    case RingOp::kAccept:
      if (const int error = Next(Call::kAcceptCompletion)) {
        // Without multishot accept the result is a poll mask (POLLIN, 1) and no descriptor.
        if (*result > STDERR_FILENO) Sys::Close(*result);
        *result = -error;
      }
      break;
    case RingOp::kReceive:
      if (const int error = Next(Call::kReceiveCompletion)) *result = -error;
      break;
    case RingOp::kPollRead:
      if (const int error = Next(Call::kPollReadCompletion)) *result = -error;
      break;
    case RingOp::kPollWrite:
      if (const int error = Next(Call::kPollWriteCompletion)) *result = -error;
      break;
    case RingOp::kCancel:
      if (const int error = Next(Call::kCancelCompletion)) *result = -error;
      break;
    case RingOp::kWatch:
      if (const int error = Next(Call::kWatchCompletion)) {
        *result = -error;
        *flags &= ~uint32_t{IORING_CQE_F_MORE};
      }
      break;
    case RingOp::kNone:
      break;
  }
}

int64_t FaultSys::Now() {
  constexpr int64_t kLookNs = 500'000;
  if (failed_) skew_ns_ += kLookNs;
  return Sys::Now() + skew_ns_;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
