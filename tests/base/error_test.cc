#include "base/error.h"

#include <penstock/status.h>
#include <string.h>

#include <cerrno>
#include <fstream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace penstock::internal {
namespace {

TEST(ErrnoStatus, NamesOperationPeerAndReason) {
  const SocketAddress peer = SocketAddress::Parse("127.0.0.1:80").value();
  EXPECT_EQ(
      ErrnoStatus(ECONNRESET, "receive from", &peer),
      absl::UnavailableError("receive from 127.0.0.1:80: connection reset by peer (ECONNRESET)"));
  EXPECT_EQ(ErrnoStatus(EMFILE, "accept"),
            absl::ResourceExhaustedError("accept: too many open files (EMFILE)"));
  const SocketAddress unnamed;
  EXPECT_EQ(ErrnoStatus(EPIPE, "send to", &unnamed),
            absl::UnavailableError("send to unnamed: broken pipe (EPIPE)"));
}

TEST(ErrnoStatus, KeepsAcronymsAndUnknownNumbers) {
  EXPECT_EQ(ErrnoText(EOPNOTSUPP), "operation not supported (EOPNOTSUPP)");
  EXPECT_EQ(ErrnoText(EADV), "advertise error (EADV)");
  EXPECT_EQ(ErrnoText(EDOTDOT), "RFS specific error (EDOTDOT)");
  EXPECT_EQ(ErrnoText(123456), "error 123456");
  EXPECT_EQ(ErrnoStatus(123456, "x").code(), absl::StatusCode::kInternal);
}

TEST(ErrnoStatus, EveryKindOfEndHasItsCode) {
  const std::pair<int, absl::StatusCode> cases[] = {
      {ECONNRESET, absl::StatusCode::kUnavailable},
      {EPIPE, absl::StatusCode::kUnavailable},
      {ECONNREFUSED, absl::StatusCode::kUnavailable},
      {EHOSTUNREACH, absl::StatusCode::kUnavailable},
      {ENETUNREACH, absl::StatusCode::kUnavailable},
      {ECONNABORTED, absl::StatusCode::kUnavailable},
      {ENOTCONN, absl::StatusCode::kUnavailable},
      {EADDRINUSE, absl::StatusCode::kUnavailable},
      {EADDRNOTAVAIL, absl::StatusCode::kUnavailable},
      {ENOENT, absl::StatusCode::kUnavailable},
      {ETIMEDOUT, absl::StatusCode::kUnavailable},
      {EMFILE, absl::StatusCode::kResourceExhausted},
      {ENFILE, absl::StatusCode::kResourceExhausted},
      {ENOBUFS, absl::StatusCode::kResourceExhausted},
      {ENOMEM, absl::StatusCode::kResourceExhausted},
      {EACCES, absl::StatusCode::kPermissionDenied},
      {EPERM, absl::StatusCode::kPermissionDenied},
      {ENOSYS, absl::StatusCode::kUnimplemented},
      {EOPNOTSUPP, absl::StatusCode::kUnimplemented},
      {EAFNOSUPPORT, absl::StatusCode::kUnimplemented},
      {EINVAL, absl::StatusCode::kInvalidArgument},
      {ENAMETOOLONG, absl::StatusCode::kInvalidArgument},
      {ECANCELED, absl::StatusCode::kCancelled},
      {EBADF, absl::StatusCode::kInternal},
      {EFAULT, absl::StatusCode::kInternal},
  };
  for (const auto& [error, code] : cases) {
    EXPECT_EQ(ErrnoStatus(error, "x").code(), code) << ErrnoText(error);
  }
}

// The code that docs/errors.md gives each errno, by name.
std::map<std::string, absl::StatusCode> Documented() {
  const std::string here = __FILE__;
  std::ifstream document(here.substr(0, here.rfind("tests/base/")) + "docs/errors.md");
  EXPECT_TRUE(document.is_open()) << "no docs/errors.md beside " << here;
  const std::map<std::string, absl::StatusCode> codes = {
      {"Unavailable", absl::StatusCode::kUnavailable},
      {"ResourceExhausted", absl::StatusCode::kResourceExhausted},
      {"PermissionDenied", absl::StatusCode::kPermissionDenied},
      {"Unimplemented", absl::StatusCode::kUnimplemented},
      {"InvalidArgument", absl::StatusCode::kInvalidArgument},
      {"Cancelled", absl::StatusCode::kCancelled},
  };
  std::map<std::string, absl::StatusCode> documented;
  for (std::string line; std::getline(document, line);) {
    // Rows of the table of errno alone: "| EPIPE ENOENT | `Unavailable` |".
    const std::vector<std::string> cells = absl::StrSplit(line, '|');
    if (cells.size() != 4 || !absl::StartsWith(cells[1], " E")) continue;
    const std::string code(absl::StripAsciiWhitespace(absl::StrReplaceAll(cells[2], {{"`", ""}})));
    for (const absl::string_view name : absl::StrSplit(cells[1], ' ', absl::SkipEmpty())) {
      EXPECT_TRUE(documented.emplace(name, codes.at(code)).second) << name << " comes twice";
    }
  }
  return documented;
}

TEST(ErrnoStatus, TheDocumentedTableIsTheRealOne) {
  std::map<std::string, absl::StatusCode> documented = Documented();
  EXPECT_GT(documented.size(), 30u);
  for (int error = 1; error < 200; ++error) {
    const char* name = ::strerrorname_np(error);
    if (name == nullptr) continue;
    const auto entry = documented.find(name);
    const auto expected = entry == documented.end() ? absl::StatusCode::kInternal : entry->second;
    EXPECT_EQ(ErrnoCode(error), expected) << name;
    if (entry != documented.end()) documented.erase(entry);
  }
  for (const auto& [name, code] : documented) ADD_FAILURE() << "no such errno: " << name;
}

TEST(ErrnoStatus, APeerThatTheKernelGaveUpIsGoneAndNoDeadline) {
  const absl::Status status = ErrnoStatus(ETIMEDOUT, "receive from");
  EXPECT_TRUE(IsReset(status));
  EXPECT_FALSE(IsDeadlineExceeded(status));
}

TEST(PeerStatus, HasTheSameForm) {
  const SocketAddress peer = SocketAddress::Parse("[::1]:80").value();
  EXPECT_EQ(PeerStatus(absl::StatusCode::kDeadlineExceeded, "read from", &peer, "5s passed"),
            absl::DeadlineExceededError("read from [::1]:80: 5s passed"));
}

TEST(Ends, EachHasItsTest) {
  const absl::Status ends[] = {absl::OutOfRangeError(""), absl::UnavailableError(""),
                               absl::DeadlineExceededError(""), absl::CancelledError("")};
  bool (*const tests[])(const absl::Status&) = {IsEof, IsReset, IsDeadlineExceeded, IsCancelled};
  for (size_t end = 0; end < 4; ++end) {
    for (size_t test = 0; test < 4; ++test) EXPECT_EQ(tests[test](ends[end]), end == test);
    EXPECT_FALSE(tests[end](absl::OkStatus()));
  }
}

TEST(Ends, AnUnauthenticatedEndIsAnEndOfStreamWithAMark) {
  const absl::Status end = AsUnauthenticatedEof(absl::OutOfRangeError("read: end of stream"));
  EXPECT_TRUE(IsEof(end));
  EXPECT_TRUE(IsUnauthenticatedEof(end));
  EXPECT_TRUE(IsUnauthenticatedEof(absl::Status(end))) << "copies keep it";
  EXPECT_EQ(end.message(), "read: end of stream");
  EXPECT_FALSE(IsUnauthenticatedEof(absl::OutOfRangeError("read: end of stream")));
  EXPECT_FALSE(IsUnauthenticatedEof(absl::OkStatus()));
}

}  // namespace
}  // namespace penstock::internal
