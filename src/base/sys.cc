#include "base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

#include "base/nonblocking.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr int64_t kNsPerSecond = 1'000'000'000;
constexpr int64_t kNsPerMs = 1'000'000;

// Calls until it is not interrupted, and gives -errno for a failure.
template <typename Call>
auto Retry(Call call) -> decltype(call()) {
  for (;;) {
    const auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) return -errno;
  }
}

int OrErrno(int result) { return result < 0 ? -errno : result; }

timespec ToTimespec(int64_t ns) {
  return {.tv_sec = ns / kNsPerSecond, .tv_nsec = ns % kNsPerSecond};
}

// Whole milliseconds, never less than asked, so that a wait cannot end before its deadline.
int MsRoundedUp(int64_t ns) {
  if (ns < 0) return -1;
  return static_cast<int>(std::min<int64_t>(ns / kNsPerMs + (ns % kNsPerMs != 0 ? 1 : 0), INT_MAX));
}

// Not inlined: the timed wait is rare, and would make every other one save more registers.
[[gnu::noinline]] int EpollWaitFor(int epoll, epoll_event* events, int count, int64_t timeout_ns) {
  // A fact about the running kernel, learnt once by whichever thread asks first.
  static std::atomic<bool> nanoseconds{true};
  int result = -ENOSYS;
  if (nanoseconds.load(std::memory_order_relaxed)) {
    const timespec timeout = ToTimespec(timeout_ns);
    // syscall(2) and not the wrapper: glibc has one since 2.35 only. The last argument is the size
    // of the (absent) signal mask.
    result = OrErrno(
        static_cast<int>(::syscall(SYS_epoll_pwait2, epoll, events, count, &timeout, nullptr, 8)));
    // Kernels before 5.11 lack the call; seccomp profiles older than it answer EPERM.
    if (result == -ENOSYS || result == -EPERM) {
      nanoseconds.store(false, std::memory_order_relaxed);
      result = -ENOSYS;
    }
  }
  if (result == -ENOSYS) {
    result = OrErrno(::epoll_wait(epoll, events, count, MsRoundedUp(timeout_ns)));
  }
  return result == -EINTR ? 0 : result;
}

}  // namespace

int Sys::Socket(int family, int type, int protocol) {
  return OrErrno(::socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol));
}

int Sys::Bind(int fd, const sockaddr* address, socklen_t length) {
  return OrErrno(::bind(fd, address, length));
}

int Sys::Listen(int fd, int backlog) { return OrErrno(::listen(fd, backlog)); }

int Sys::Accept(int fd, sockaddr* address, socklen_t* length) {
  return Retry([&] { return ::accept4(fd, address, length, SOCK_NONBLOCK | SOCK_CLOEXEC); });
}

int Sys::Connect(int fd, const sockaddr* address, socklen_t length) {
  const int result = OrErrno(::connect(fd, address, length));
  // POSIX: an interrupted connect goes on by itself; calling again would say EALREADY.
  return result == -EINTR ? -EINPROGRESS : result;
}

int64_t Sys::Receive(int fd, void* data, size_t size) {
  return Retry([&] { return ::recv(fd, data, size, 0); });
}

int64_t Sys::Send(int fd, const void* data, size_t size) {
  return Retry([&] { return ::send(fd, data, size, MSG_NOSIGNAL); });
}

int64_t Sys::SendVector(int fd, const iovec* parts, size_t count) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts);
  // Beyond IOV_MAX the kernel refuses the call (EMSGSIZE); a short send is what callers expect.
  message.msg_iovlen = std::min<size_t>(count, IOV_MAX);
  return Retry([&] { return ::sendmsg(fd, &message, MSG_NOSIGNAL); });
}

int Sys::Shutdown(int fd, int how) { return OrErrno(::shutdown(fd, how)); }

int Sys::SetOption(int fd, int level, int name, const void* value, socklen_t length) {
  return OrErrno(::setsockopt(fd, level, name, value, length));
}

int Sys::GetOption(int fd, int level, int name, void* value, socklen_t* length) {
  return OrErrno(::getsockopt(fd, level, name, value, length));
}

int Sys::LocalName(int fd, sockaddr* address, socklen_t* length) {
  return OrErrno(::getsockname(fd, address, length));
}

int Sys::PeerName(int fd, sockaddr* address, socklen_t* length) {
  return OrErrno(::getpeername(fd, address, length));
}

// Never repeated: Linux frees the descriptor even when close(2) says EINTR.
int Sys::Close(int fd) { return OrErrno(::close(fd)); }

int Sys::OpenReserve() { return OrErrno(::eventfd(0, EFD_CLOEXEC)); }

int Sys::Unlink(const char* path) { return OrErrno(::unlink(path)); }

bool Sys::IsSocketFile(const char* path) {
  struct stat about;
  return ::lstat(path, &about) == 0 && S_ISSOCK(about.st_mode);
}

int Sys::EpollCreate() { return OrErrno(::epoll_create1(EPOLL_CLOEXEC)); }

int Sys::EpollControl(int epoll, int op, int fd, epoll_event* event) {
  return OrErrno(::epoll_ctl(epoll, op, fd, event));
}

int Sys::EpollWait(int epoll, epoll_event* events, int count, int64_t timeout_ns) {
  if (timeout_ns > 0) [[unlikely]]
    return EpollWaitFor(epoll, events, count, timeout_ns);
  const int result = OrErrno(::epoll_wait(epoll, events, count, timeout_ns < 0 ? -1 : 0));
  return result == -EINTR ? 0 : result;
}

int Sys::Poll(pollfd* descriptors, size_t count, int64_t timeout_ns) {
  const timespec limit = ToTimespec(std::max<int64_t>(timeout_ns, 0));
  const int result =
      OrErrno(::ppoll(descriptors, count, timeout_ns < 0 ? nullptr : &limit, nullptr));
  return result == -EINTR ? 0 : result;
}

int Sys::EventFd() { return OrErrno(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)); }

int64_t Sys::Read(int fd, void* data, size_t size) {
  return Retry([&] { return ::read(fd, data, size); });
}

int64_t Sys::Write(int fd, const void* data, size_t size) {
  return Retry([&] { return ::write(fd, data, size); });
}

int Sys::TimerFd() {
  return OrErrno(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
}

int Sys::TimerFdSet(int fd, int64_t at_ns) {
  itimerspec when{};
  when.it_value = ToTimespec(at_ns);
  return OrErrno(::timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, nullptr));
}

void* Sys::Map(size_t size, int flags, int* error) {
  void* base =
      ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (base != MAP_FAILED) return base;
  *error = -errno;
  return nullptr;
}

int Sys::Unmap(void* base, size_t size) { return OrErrno(::munmap(base, size)); }

int Sys::Advise(void* base, size_t size, int advice) {
  return OrErrno(::madvise(base, size, advice));
}

int Sys::RingSetup() { return 0; }

int Sys::RingEnter() { return 0; }

int Sys::RingRegister(int ring, unsigned op, const void* argument, unsigned count) {
  return OrErrno(static_cast<int>(::syscall(SYS_io_uring_register, ring, op, argument, count)));
}

void Sys::RingCompletion(RingOp, int32_t*, uint32_t*) {}

int64_t Sys::Now() {
  timespec now;
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kNsPerSecond + now.tv_nsec;
}

int64_t Sys::ThreadCpu() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

int MakeNonblocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return -errno;
  return fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 ? -errno : 0;
}

Sys& RealSys() {
  static Sys sys;
  return sys;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
