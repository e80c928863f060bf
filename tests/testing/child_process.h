// RunInChild: a part of a test in a process of its own, for what a process cannot take back: lower
// limits, dropped privileges, seccomp filters.
#ifndef PENSTOCK_TESTS_TESTING_CHILD_PROCESS_H_
#define PENSTOCK_TESTS_TESTING_CHILD_PROCESS_H_

#include <penstock/export.h>

#include "absl/functional/function_ref.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Runs `body` in a forked child, where EXPECT and ASSERT work as ever, and adds a failure here when
// one of them failed there, or when the child died or did not end. Only while this process has one
// thread.
void RunInChild(absl::FunctionRef<void()> body);

// Makes io_uring_setup(2) answer `error` in this process from now on, as a container's seccomp
// profile does.
void ForbidUring(int error);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_CHILD_PROCESS_H_
