#include "testing/child_process.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <iterator>

#include <gtest/gtest.h>

#include "testing/patient_poll.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr int kPatienceMs = 120'000;
constexpr int kFailed = 1;

}  // namespace

void RunInChild(absl::FunctionRef<void()> body) {
  ::fflush(nullptr);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    body();
    ::fflush(nullptr);
    // No destructors: the parent's state, copied, is not this process's to end.
    ::_exit(::testing::Test::HasFailure() ? kFailed : 0);
  }
  const int handle = static_cast<int>(::syscall(SYS_pidfd_open, child, 0));
  const bool in_time = PatientPoll(handle, POLLIN, kPatienceMs);
  ::close(handle);
  if (!in_time) ::kill(child, SIGKILL);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(in_time) << "the child hangs";
  EXPECT_TRUE(WIFEXITED(status)) << "the child died of signal " << WTERMSIG(status);
  EXPECT_EQ(WEXITSTATUS(status), 0) << "the child failed; see above";
}

void ForbidUring(int error) {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog filter = {.len = std::size(program), .filter = program};
  ASSERT_EQ(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
  ASSERT_EQ(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter), 0);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
