#include "engine/engine_choice.h"

#include <gtest/gtest.h>
#include <penstock/loop.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "engine/loop_core.h"

namespace penstock::internal {
namespace {

// Sets an environment variable for the length of a test.
class ScopedEnv {
 public:
  ScopedEnv(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    ::setenv(name, value, 1);
  }
  ~ScopedEnv() {
    if (before_) {
      ::setenv(name_, before_->c_str(), 1);
    } else {
      ::unsetenv(name_);
    }
  }

 private:
  const char* name_;
  std::optional<std::string> before_;
};

// A kernel on which io_uring_setup ends with `error`.
class NoRingSys : public Sys {
 public:
  explicit NoRingSys(int error) : error_(error) {}
  int RingSetup() override { return -error_; }

 private:
  int error_;
};

// A kernel on which one call of the self-test fails: that for the memory of a buffer ring, or each
// wait; or on which a loop gets no descriptor to keep in reserve.
class FailingSys : public Sys {
 public:
  void* Map(size_t size, int flags, int* error) override {
    if (map_error == 0) return Sys::Map(size, flags, error);
    *error = -map_error;
    return nullptr;
  }
  int RingEnter() override { return -enter_error; }
  int OpenReserve() override { return reserve_error == 0 ? Sys::OpenReserve() : -reserve_error; }

  int map_error = 0;
  int enter_error = 0;
  int reserve_error = 0;
};

absl::StatusOr<std::unique_ptr<Loop>> MakeLoop(EngineKind kind, Sys* sys = nullptr) {
  LoopOptions options;
  options.engine = kind;
  options.log = [](LogSeverity, const char*, int, std::string_view) {};
  return LoopCore::CreateLoop(std::move(options), {.sys = sys, .engines = nullptr});
}

TEST(EngineChoice, NamesAreRead) {
  EXPECT_EQ(*ParseEngineKind("epoll"), EngineKind::kEpoll);
  EXPECT_EQ(*ParseEngineKind("uring"), EngineKind::kUring);
  EXPECT_EQ(*ParseEngineKind("auto"), EngineKind::kAuto);
  const absl::Status bad = ParseEngineKind("kqueue").status();
  EXPECT_TRUE(absl::IsInvalidArgument(bad));
  EXPECT_EQ(bad.message(), "engine 'kqueue' is none of auto, epoll, uring");
}

TEST(EngineChoice, AutoFallsBackAndSaysWhyWhenIoUringIsForbidden) {
  const ScopedEnv env("PENSTOCK_ENGINE", "");
  for (int error : {ENOSYS, EPERM, EACCES}) {
    NoRingSys sys(error);
    absl::StatusOr<std::unique_ptr<Loop>> loop = MakeLoop(EngineKind::kAuto, &sys);
    ASSERT_TRUE(loop.ok()) << loop.status();
    EXPECT_EQ((*loop)->engine(), EngineKind::kEpoll);
    EXPECT_NE((*loop)->engine_reason().find("io_uring"), std::string::npos)
        << (*loop)->engine_reason();
  }
}

TEST(EngineChoice, ExhaustionIsAnErrorAndNoReasonToFallBack) {
#ifndef PENSTOCK_HAVE_URING
  GTEST_SKIP() << "built without the io_uring engine";
#endif
  const ScopedEnv env("PENSTOCK_ENGINE", "");
  for (int error : {ENOMEM, EMFILE, ENFILE}) {
    NoRingSys sys(error);
    EXPECT_TRUE(absl::IsResourceExhausted(MakeLoop(EngineKind::kAuto, &sys).status()));
    EXPECT_TRUE(absl::IsResourceExhausted(MakeLoop(EngineKind::kUring, &sys).status()));
  }
}

TEST(EngineChoice, WhatRunsOutWhileFeaturesAreTriedIsAnErrorToo) {
  const ScopedEnv env("PENSTOCK_ENGINE", "");
  {
    absl::StatusOr<std::unique_ptr<Loop>> loop = MakeLoop(EngineKind::kAuto);
    ASSERT_TRUE(loop.ok());
    if ((*loop)->engine() != EngineKind::kUring) GTEST_SKIP() << (*loop)->engine_reason();
  }
  const auto says = [](EngineKind kind, FailingSys& sys) {
    const absl::Status status = MakeLoop(kind, &sys).status();
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    return std::string(status.message());
  };
  for (EngineKind kind : {EngineKind::kAuto, EngineKind::kUring}) {
    FailingSys no_memory;
    no_memory.map_error = ENOMEM;
    EXPECT_NE(says(kind, no_memory).find("buffer ring"), std::string::npos);
    for (int error : {ENOMEM, EAGAIN}) {  // io_uring_enter(2): both mean memory
      FailingSys no_wait;
      no_wait.enter_error = error;
      EXPECT_NE(says(kind, no_wait).find("ENOMEM"), std::string::npos);
    }
  }
  // What merely does not work is a reason to fall back.
  FailingSys broken;
  broken.map_error = EINVAL;
  absl::StatusOr<std::unique_ptr<Loop>> loop = MakeLoop(EngineKind::kAuto, &broken);
  ASSERT_TRUE(loop.ok()) << loop.status();
  EXPECT_EQ((*loop)->engine(), EngineKind::kEpoll);
  EXPECT_NE((*loop)->engine_reason().find("buffer rings"), std::string::npos)
      << (*loop)->engine_reason();
}

TEST(EngineChoice, NoLoopIsMadeWithoutADescriptorInReserve) {
  for (EngineKind kind : {EngineKind::kEpoll, EngineKind::kUring}) {
    if (kind == EngineKind::kUring && !MakeLoop(kind).ok()) continue;
    FailingSys sys;
    sys.reserve_error = EMFILE;
    const absl::Status status = MakeLoop(kind, &sys).status();
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_NE(status.message().find("in reserve"), absl::string_view::npos) << status;
  }
}

TEST(EngineChoice, AnEngineAskedForByNameIsNotReplaced) {
  NoRingSys sys(EPERM);
  EXPECT_TRUE(absl::IsUnimplemented(MakeLoop(EngineKind::kUring, &sys).status()));
}

TEST(EngineChoice, TheEnvironmentDecidesOnlyWhereTheCallerLeftItOpen) {
  {
    const ScopedEnv env("PENSTOCK_ENGINE", "epoll");
    absl::StatusOr<std::unique_ptr<Loop>> loop = MakeLoop(EngineKind::kAuto);
    ASSERT_TRUE(loop.ok()) << loop.status();
    EXPECT_EQ((*loop)->engine(), EngineKind::kEpoll);
    EXPECT_EQ((*loop)->engine_reason(), "requested by PENSTOCK_ENGINE");
  }
  const ScopedEnv env("PENSTOCK_ENGINE", "fast");
  const absl::Status bad = MakeLoop(EngineKind::kAuto).status();
  EXPECT_TRUE(absl::IsInvalidArgument(bad));
  EXPECT_NE(bad.message().find("PENSTOCK_ENGINE"), absl::string_view::npos) << bad;
  EXPECT_TRUE(MakeLoop(EngineKind::kEpoll).ok());
}

TEST(EngineChoice, WordsThatDisableNothingAreErrors) {
#ifndef PENSTOCK_HAVE_URING
  GTEST_SKIP() << "built without the io_uring engine";
#endif
  const ScopedEnv engine("PENSTOCK_ENGINE", "");
  for (const char* list : {"multishot", "io_uring,multishot", "multishot,,", " io_uring"}) {
    const ScopedEnv off("PENSTOCK_URING_DISABLE", list);
    const std::string word = *list == ' ' ? "' io_uring'" : "'multishot'";
    for (EngineKind kind : {EngineKind::kAuto, EngineKind::kUring}) {
      const absl::Status bad = MakeLoop(kind).status();
      EXPECT_TRUE(absl::IsInvalidArgument(bad)) << bad;
      EXPECT_EQ(bad.message(), "environment PENSTOCK_URING_DISABLE: " + word +
                                   " is none of io_uring, defer_taskrun, coop_taskrun, "
                                   "multishot_accept, multishot_receive");
    }
    EXPECT_TRUE(MakeLoop(EngineKind::kEpoll).ok());
  }
  for (const char* list : {"", ",", "multishot_accept,"}) {
    const ScopedEnv off("PENSTOCK_URING_DISABLE", list);
    EXPECT_TRUE(MakeLoop(EngineKind::kAuto).ok()) << list;
  }
}

TEST(EngineChoice, AutoWantsAllThatMakesIoUringTheBetterEngine) {
#ifndef PENSTOCK_HAVE_URING
  GTEST_SKIP() << "built without the io_uring engine";
#endif
  const ScopedEnv engine("PENSTOCK_ENGINE", "");
  {
    absl::StatusOr<std::unique_ptr<Loop>> loop = MakeLoop(EngineKind::kAuto);
    ASSERT_TRUE(loop.ok());
    if ((*loop)->engine() != EngineKind::kUring) GTEST_SKIP() << (*loop)->engine_reason();
  }
  for (const char* feature : {"defer_taskrun", "multishot_accept", "multishot_receive"}) {
    const ScopedEnv off("PENSTOCK_URING_DISABLE", feature);
    absl::StatusOr<std::unique_ptr<Loop>> loop = MakeLoop(EngineKind::kAuto);
    ASSERT_TRUE(loop.ok()) << loop.status();
    EXPECT_EQ((*loop)->engine(), EngineKind::kEpoll) << feature;
  }
}

}  // namespace
}  // namespace penstock::internal
