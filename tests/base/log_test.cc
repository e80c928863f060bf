#include "base/log.h"

#include <string>

#include <gtest/gtest.h>

namespace penstock {
namespace {

std::string Stderr(LogSeverity severity, std::string_view message) {
  ::testing::internal::CaptureStderr();
  LogToStderr(severity, "src/base/x.cc", 7, message);
  return ::testing::internal::GetCapturedStderr();
}

TEST(LogToStderr, WritesWarningsAndErrorsOneLineEach) {
  EXPECT_EQ(Stderr(LogSeverity::kWarning, "low"), "penstock warning: low [src/base/x.cc:7]\n");
  EXPECT_EQ(Stderr(LogSeverity::kError, "gone"), "penstock error: gone [src/base/x.cc:7]\n");
  EXPECT_EQ(Stderr(LogSeverity::kError, "a\nb"), "penstock error: a?b [src/base/x.cc:7]\n");
  EXPECT_EQ(Stderr(LogSeverity::kInfo, "hello"), "");
}

TEST(Log, GivesTheHookThePlaceItLogsFrom) {
  std::string seen_file;
  int seen_line = 0;
  LogHook hook = [&](LogSeverity severity, const char* file, int line, std::string_view message) {
    EXPECT_EQ(severity, LogSeverity::kInfo);
    EXPECT_EQ(message, "hello");
    seen_file = file;
    seen_line = line;
  };
  internal::Log(hook, LogSeverity::kInfo, "hello");
  EXPECT_EQ(seen_line, __LINE__ - 1);
  EXPECT_TRUE(seen_file.ends_with("log_test.cc")) << seen_file;

  internal::Log(hook, LogSeverity::kInfo, "hello", "/somewhere/src/engine/a.cc", 3);
  EXPECT_EQ(seen_file, "src/engine/a.cc");
  EXPECT_EQ(seen_line, 3);
}

TEST(Log, AnEmptyHookWritesToStderr) {
  LogHook none;
  ::testing::internal::CaptureStderr();
  internal::Log(none, LogSeverity::kWarning, "low", "/somewhere/src/engine/a.cc", 3);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "penstock warning: low [src/engine/a.cc:3]\n");
}

}  // namespace
}  // namespace penstock
