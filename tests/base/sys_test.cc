#include "base/sys.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "base/fd.h"
#include "testing/patient_poll.h"

namespace penstock::internal {
namespace {

constexpr int64_t kMs = 1'000'000;

bool NonBlockingAndCloexec(int fd) {
  return (::fcntl(fd, F_GETFL) & O_NONBLOCK) != 0 && (::fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0;
}

// Two connected TCP sockets on the loopback.
struct Pair {
  UniqueFd listener;
  UniqueFd client;
  UniqueFd server;
};

Pair Connected(Sys& sys) {
  Pair pair;
  pair.listener = UniqueFd(sys, sys.Socket(AF_INET, SOCK_STREAM, 0));
  EXPECT_TRUE(NonBlockingAndCloexec(pair.listener.get()));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  EXPECT_EQ(sys.Bind(pair.listener.get(), generic, sizeof(address)), 0);
  EXPECT_EQ(sys.Listen(pair.listener.get(), 8), 0);
  EXPECT_EQ(sys.Accept(pair.listener.get(), nullptr, nullptr), -EAGAIN);
  socklen_t length = sizeof(address);
  EXPECT_EQ(sys.LocalName(pair.listener.get(), generic, &length), 0);
  EXPECT_NE(address.sin_port, 0);

  pair.client = UniqueFd(sys, sys.Socket(AF_INET, SOCK_STREAM, 0));
  EXPECT_EQ(sys.Connect(pair.client.get(), generic, length), -EINPROGRESS);
  EXPECT_TRUE(PatientPoll(pair.client.get(), POLLOUT, 10'000));
  int error = -1;
  length = sizeof(error);
  EXPECT_EQ(sys.GetOption(pair.client.get(), SOL_SOCKET, SO_ERROR, &error, &length), 0);
  EXPECT_EQ(error, 0);

  sockaddr_in peer{};
  length = sizeof(peer);
  pair.server =
      UniqueFd(sys, sys.Accept(pair.listener.get(), reinterpret_cast<sockaddr*>(&peer), &length));
  EXPECT_TRUE(pair.server);
  EXPECT_TRUE(NonBlockingAndCloexec(pair.server.get()));
  sockaddr_in again{};
  length = sizeof(again);
  EXPECT_EQ(sys.PeerName(pair.server.get(), reinterpret_cast<sockaddr*>(&again), &length), 0);
  EXPECT_EQ(again.sin_port, peer.sin_port);
  return pair;
}

TEST(Sys, MovesBytesBetweenSockets) {
  Sys& sys = RealSys();
  Pair pair = Connected(sys);
  std::array<char, 64> room;
  EXPECT_EQ(sys.Receive(pair.server.get(), room.data(), room.size()), -EAGAIN);

  EXPECT_EQ(sys.Send(pair.client.get(), "abc", 3), 3);
  std::string def = "def";
  std::string ghi = "ghi";
  const std::array<iovec, 2> parts = {iovec{def.data(), 3}, iovec{ghi.data(), 3}};
  EXPECT_EQ(sys.SendVector(pair.client.get(), parts.data(), parts.size()), 6);
  EXPECT_EQ(sys.Shutdown(pair.client.get(), SHUT_WR), 0);

  std::string received;
  for (;;) {
    ASSERT_TRUE(PatientPoll(pair.server.get(), POLLIN, 10'000));
    const int64_t count = sys.Receive(pair.server.get(), room.data(), room.size());
    ASSERT_GE(count, 0);
    if (count == 0) break;
    received.append(room.data(), count);
  }
  EXPECT_EQ(received, "abcdefghi");
}

TEST(Sys, SendVectorTakesMorePartsThanTheKernel) {
  Sys& sys = RealSys();
  Pair pair = Connected(sys);
  char byte = 'x';
  const std::vector<iovec> parts(5000, iovec{&byte, 1});
  EXPECT_EQ(sys.SendVector(pair.client.get(), parts.data(), parts.size()), IOV_MAX);
}

TEST(Sys, SendingToAClosedPeerIsAnErrorAndNoSignal) {
  Sys& sys = RealSys();
  Pair pair = Connected(sys);
  const linger abort = {.l_onoff = 1, .l_linger = 0};
  ASSERT_EQ(sys.SetOption(pair.server.get(), SOL_SOCKET, SO_LINGER, &abort, sizeof(abort)), 0);
  pair.server.Reset();
  std::array<char, 1> room;
  EXPECT_EQ(sys.Receive(pair.client.get(), room.data(), 1), -ECONNRESET);
  EXPECT_EQ(sys.Send(pair.client.get(), "x", 1), -EPIPE);
}

TEST(Sys, FailuresAreMinusErrno) {
  Sys& sys = RealSys();
  EXPECT_EQ(sys.Socket(AF_INET, 12345, 0), -EINVAL);
  EXPECT_EQ(sys.Close(-1), -EBADF);
  EXPECT_EQ(sys.Unlink("/nonexistent/penstock"), -ENOENT);
  EXPECT_EQ(sys.Listen(-1, 1), -EBADF);
  EXPECT_EQ(sys.Read(-1, nullptr, 0), -EBADF);
  EXPECT_EQ(sys.Unmap(reinterpret_cast<void*>(1), 4096), -EINVAL);
  int error = 0;
  EXPECT_EQ(sys.Map(size_t{1} << 60, 0, &error), nullptr);
  EXPECT_EQ(error, -ENOMEM);
}

TEST(Sys, ReserveDescriptorIsClosedAndOpenedAgain) {
  Sys& sys = RealSys();
  UniqueFd fd(sys, sys.OpenReserve());
  ASSERT_TRUE(fd);
  EXPECT_EQ(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  const int number = fd.get();
  fd = UniqueFd();
  EXPECT_EQ(UniqueFd(sys, sys.OpenReserve()).get(), number) << "in the place that it held";
}

TEST(Sys, MapsAdvisesAndUnmaps) {
  Sys& sys = RealSys();
  int error = 0;
  constexpr size_t kSize = 1 << 16;
  auto* base = static_cast<char*>(sys.Map(kSize, 0, &error));
  ASSERT_NE(base, nullptr);
  base[0] = 'x';
  EXPECT_EQ(sys.Advise(base, kSize, MADV_DONTNEED), 0);
  EXPECT_EQ(base[0], 0);
  EXPECT_EQ(sys.Unmap(base, kSize), 0);
}

class Epoll : public ::testing::Test {
 protected:
  Sys& sys_ = RealSys();
  UniqueFd epoll_{sys_, sys_.EpollCreate()};
  UniqueFd event_{sys_, sys_.EventFd()};
  epoll_event out_{};

  void SetUp() override {
    ASSERT_TRUE(epoll_);
    ASSERT_TRUE(NonBlockingAndCloexec(event_.get()));
    epoll_event want{};
    want.events = EPOLLIN;
    want.data.u64 = 7;
    ASSERT_EQ(sys_.EpollControl(epoll_.get(), EPOLL_CTL_ADD, event_.get(), &want), 0);
  }

  int64_t TimeOfWait(int64_t timeout_ns) {
    const int64_t start = sys_.Now();
    EXPECT_EQ(sys_.EpollWait(epoll_.get(), &out_, 1, timeout_ns), 0);
    return sys_.Now() - start;
  }
};

TEST_F(Epoll, ReportsAnEvent) {
  const uint64_t one = 1;
  ASSERT_EQ(sys_.Write(event_.get(), &one, sizeof(one)), 8);
  EXPECT_EQ(sys_.EpollWait(epoll_.get(), &out_, 1, -1), 1);
  const uint64_t tag = out_.data.u64;  // epoll_event is packed: no reference may bind to it
  EXPECT_EQ(tag, 7u);
  uint64_t value = 0;
  EXPECT_EQ(sys_.Read(event_.get(), &value, sizeof(value)), 8);
  EXPECT_EQ(value, 1u);
  EXPECT_EQ(sys_.Read(event_.get(), &value, sizeof(value)), -EAGAIN);
}

TEST_F(Epoll, WaitsNoLessThanAsked) {
  EXPECT_GE(TimeOfWait(kMs / 2), kMs / 2);
  EXPECT_GE(TimeOfWait(kMs * 5 / 2), kMs * 5 / 2);
  EXPECT_EQ(sys_.EpollWait(epoll_.get(), &out_, 1, 0), 0);
}

TEST_F(Epoll, TimerFdFiresAtItsAbsoluteTime) {
  UniqueFd timer(sys_, sys_.TimerFd());
  ASSERT_TRUE(timer);
  epoll_event want{};
  want.events = EPOLLIN;
  ASSERT_EQ(sys_.EpollControl(epoll_.get(), EPOLL_CTL_ADD, timer.get(), &want), 0);
  const int64_t at = sys_.Now() + 3 * kMs;
  ASSERT_EQ(sys_.TimerFdSet(timer.get(), at), 0);
  ASSERT_EQ(sys_.EpollWait(epoll_.get(), &out_, 1, -1), 1);
  EXPECT_GE(sys_.Now(), at);
  ASSERT_EQ(sys_.TimerFdSet(timer.get(), 0), 0);
  EXPECT_EQ(sys_.EpollWait(epoll_.get(), &out_, 1, 0), 0);
}

TEST_F(Epoll, ASignalEndsTheWaitWithoutAnEvent) {
  struct sigaction action {};
  struct sigaction before {};
  action.sa_handler = [](int) {};  // without SA_RESTART
  ASSERT_EQ(::sigaction(SIGUSR2, &action, &before), 0);
  std::atomic<bool> done{false};
  std::thread sender([&done, target = ::pthread_self()] {
    while (!done.load()) {
      ::pthread_kill(target, SIGUSR2);
      std::this_thread::yield();
    }
  });
  const int count = sys_.EpollWait(epoll_.get(), &out_, 1, -1);
  done.store(true);
  sender.join();
  ASSERT_EQ(::sigaction(SIGUSR2, &before, nullptr), 0);
  EXPECT_EQ(count, 0);
}

// Makes epoll_pwait2 answer `error` for the rest of this process's life.
bool ForbidNanosecondWaits(int error) {
  std::array<sock_filter, 4> code = {{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_epoll_pwait2, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog program = {.len = code.size(), .filter = code.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

class EpollWithoutNanoseconds : public Epoll, public ::testing::WithParamInterface<int> {};

TEST_P(EpollWithoutNanoseconds, RoundsUpToMilliseconds) {
  constexpr int kNoSeccomp = 77;
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (!ForbidNanosecondWaits(GetParam())) ::_exit(kNoSeccomp);
    const bool first = TimeOfWait(kMs * 3 / 2) >= kMs * 3 / 2;
    const bool second = TimeOfWait(kMs / 2) >= kMs / 2;
    ::_exit(first && second && !HasFailure() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kNoSeccomp) GTEST_SKIP() << "seccomp filters are not allowed here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

INSTANTIATE_TEST_SUITE_P(Errors, EpollWithoutNanoseconds, ::testing::Values(ENOSYS, EPERM));

TEST(Sys, InjectionPointsOfTheRingDoNothing) {
  Sys& sys = RealSys();
  EXPECT_EQ(sys.RingSetup(), 0);
  EXPECT_EQ(sys.RingEnter(), 0);
  int32_t result = 42;
  uint32_t flags = 3;
  sys.RingCompletion(RingOp::kReceive, &result, &flags);
  EXPECT_EQ(result, 42);
  EXPECT_EQ(flags, 3u);
}

TEST(Sys, NowAdvances) {
  Sys& sys = RealSys();
  const int64_t before = sys.Now();
  EXPECT_GT(before, 0);
  EXPECT_GE(sys.Now(), before);
}

}  // namespace
}  // namespace penstock::internal
