// poll(2) and epoll_wait(2) that go on when interrupted. A process that has closed an io_uring gets
// EINTR from its waits without any signal handler: the kernel ends the ring by task work (seen on
// 6.18). Each interruption starts the time limit anew, so tests use these for limits that only a
// hung test reaches, or for 0.
#ifndef PENSTOCK_TESTS_TESTING_PATIENT_POLL_H_
#define PENSTOCK_TESTS_TESTING_PATIENT_POLL_H_

#include <penstock/export.h>
#include <poll.h>
#include <sys/epoll.h>

#include <cerrno>
#include <span>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

inline int PatientPoll(std::span<pollfd> descriptors, int timeout_ms) {
  int ready;
  do {
    ready = ::poll(descriptors.data(), descriptors.size(), timeout_ms);
  } while (ready < 0 && errno == EINTR);
  return ready;
}

// True when `fd` has one of `events`, before the limit.
inline bool PatientPoll(int fd, short events, int timeout_ms) {
  pollfd descriptor = {.fd = fd, .events = events, .revents = 0};
  return PatientPoll({&descriptor, 1}, timeout_ms) > 0;
}

// True when the epoll instance has an event, before the limit.
inline bool PatientEpollWait(int epoll, int timeout_ms) {
  epoll_event event;
  int ready;
  do {
    ready = ::epoll_wait(epoll, &event, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  return ready > 0;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_PATIENT_POLL_H_
