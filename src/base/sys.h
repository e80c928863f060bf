// The only door to the kernel: every system call of the library goes through Sys, so that tests can
// make the nth one fail. Calls return what the kernel does, with -errno instead of errno, and are
// repeated inside when a signal interrupts them (EpollWait returns 0 events instead, and an
// interrupted Connect goes on in the background: -EINPROGRESS).
//
// Stateless and thread-safe for the real one. Owns nothing.
#ifndef PENSTOCK_BASE_SYS_H_
#define PENSTOCK_BASE_SYS_H_

#include <penstock/export.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// What a completion of the io_uring engine ends; names the op to a fault injector.
enum class RingOp : uint8_t { kNone, kAccept, kReceive, kPollRead, kPollWrite, kCancel, kWatch };

class Sys {
 public:
  virtual ~Sys() = default;

  // Sockets: socket(2) and friends, always SOCK_NONBLOCK | SOCK_CLOEXEC.
  virtual int Socket(int family, int type, int protocol);
  virtual int Bind(int fd, const sockaddr* address, socklen_t length);
  virtual int Listen(int fd, int backlog);
  virtual int Accept(int fd, sockaddr* address, socklen_t* length);
  virtual int Connect(int fd, const sockaddr* address, socklen_t length);
  virtual int64_t Receive(int fd, void* data, size_t size);
  // MSG_NOSIGNAL: the library never raises SIGPIPE.
  virtual int64_t Send(int fd, const void* data, size_t size);
  virtual int64_t SendVector(int fd, const iovec* parts, size_t count);
  virtual int Shutdown(int fd, int how);
  virtual int SetOption(int fd, int level, int name, const void* value, socklen_t length);
  virtual int GetOption(int fd, int level, int name, void* value, socklen_t* length);
  virtual int LocalName(int fd, sockaddr* address, socklen_t* length);
  virtual int PeerName(int fd, sockaddr* address, socklen_t* length);
  virtual int Close(int fd);
  virtual int OpenReserve();  // of no use but to be closed; needs no file system
  virtual int Unlink(const char* path);
  // Whether `path` itself, not what it links to, is a socket (lstat(2)).
  virtual bool IsSocketFile(const char* path);

  // epoll(7), eventfd(2), timerfd_create(2).
  virtual int EpollCreate();
  virtual int EpollControl(int epoll, int op, int fd, epoll_event* event);
  // `timeout_ns` < 0: for ever. Uses epoll_pwait2 (kernel 5.11), or milliseconds rounded up.
  virtual int EpollWait(int epoll, epoll_event* events, int count, int64_t timeout_ns);
  // ppoll(2): how many descriptors are ready; 0 also when interrupted. `timeout_ns` as above.
  virtual int Poll(pollfd* descriptors, size_t count, int64_t timeout_ns);
  virtual int EventFd();
  virtual int64_t Read(int fd, void* data, size_t size);
  virtual int64_t Write(int fd, const void* data, size_t size);
  virtual int TimerFd();
  // Absolute CLOCK_MONOTONIC nanoseconds; 0 disarms.
  virtual int TimerFdSet(int fd, int64_t at_ns);

  // Memory of slabs: private and anonymous, `flags` are added to that (MAP_HUGETLB, MAP_POPULATE).
  // Map returns null and sets `error` to -errno on failure.
  virtual void* Map(size_t size, int flags, int* error);
  virtual int Unmap(void* base, size_t size);
  virtual int Advise(void* base, size_t size, int advice);

  // io_uring: `setup` runs just before a ring is made, and may forbid it by returning -errno;
  // `enter` likewise before each io_uring_enter. `completion` sees each result and may change it.
  virtual int RingSetup();
  virtual int RingEnter();
  // io_uring_register(2); `op` is one of its IORING_REGISTER_ and IORING_UNREGISTER_ numbers.
  virtual int RingRegister(int ring, unsigned op, const void* argument, unsigned count);
  virtual void RingCompletion(RingOp op, int32_t* result, uint32_t* flags);

  // CLOCK_MONOTONIC in nanoseconds.
  virtual int64_t Now();
  // CPU time of the calling thread in ns (CLOCK_THREAD_CPUTIME_ID).
  virtual int64_t ThreadCpu();
};

// The real kernel.
Sys& RealSys();

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_BASE_SYS_H_
