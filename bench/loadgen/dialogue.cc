#include "dialogue.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace penstock_bench {
namespace {

constexpr std::string_view kRequest = "GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
constexpr size_t kReplyMax = 64 * 1024;

// What comes after `name` on its line of `head`, as an offset and an end; equal when it is not
// there.
struct Range {
  size_t from = 0;
  size_t to = 0;
};

Range ValueOf(std::string_view head, std::string_view name) {
  const std::string line = absl::StrCat("\r\n", std::string(name), ": ");
  const size_t at = head.find(line);
  if (at == std::string_view::npos) return {};
  const size_t from = at + line.size();
  return {from, head.find("\r\n", from)};
}

// The size of the whole reply that `text` begins with; 0 when its head is not complete.
absl::StatusOr<size_t> SizeOf(std::string_view text) {
  const size_t end = text.find("\r\n\r\n");
  if (end == std::string_view::npos) return 0;
  if (text.substr(0, 12) != "HTTP/1.1 200") {
    return absl::FailedPreconditionError(
        absl::StrCat("the answer is ", std::string(text.substr(0, text.find("\r\n")))));
  }
  const Range length = ValueOf(text.substr(0, end + 2), "Content-Length");
  size_t body = 0;
  if (!absl::SimpleAtoi(std::string(text.substr(length.from, length.to - length.from)), &body)) {
    return absl::FailedPreconditionError("the answer has no Content-Length");
  }
  return end + 4 + body;
}

absl::StatusOr<std::string> AskOnce(int fd) {
  if (send(fd, kRequest.data(), kRequest.size(), MSG_NOSIGNAL) !=
      static_cast<ssize_t>(kRequest.size())) {
    return absl::ErrnoToStatus(errno, "send");
  }
  std::string reply;
  std::array<char, 4096> piece;
  while (reply.size() < kReplyMax) {
    const ssize_t got = recv(fd, piece.data(), piece.size(), 0);
    if (got < 0) return absl::ErrnoToStatus(errno, "recv");
    if (got == 0) return absl::OutOfRangeError("the server closed in the middle of its answer");
    reply.append(piece.data(), static_cast<size_t>(got));
    const absl::StatusOr<size_t> size = SizeOf(reply);
    if (!size.ok()) return size.status();
    if (*size == 0 || reply.size() < *size) continue;
    if (reply.size() == *size) return reply;
    return absl::FailedPreconditionError("more came than was asked for");
  }
  return absl::FailedPreconditionError(
      absl::StrCat("an answer of more than ", kReplyMax, " bytes"));
}

}  // namespace

Dialogue EchoDialogue(size_t size) { return {Pattern(), Pattern(), size, size}; }

absl::StatusOr<Dialogue> HttpDialogue(const Address& address) {
  const absl::StatusOr<int> fd = ConnectTo(address);
  if (!fd.ok()) return fd.status();
  const absl::StatusOr<std::string> reply = AskOnce(*fd);
  close(*fd);
  if (!reply.ok()) return reply.status();
  const Range date = ValueOf(*reply, "Date");
  return Dialogue{Pattern(kRequest), Pattern(*reply, date.from, date.to), kRequest.size(),
                  reply->size()};
}

}  // namespace penstock_bench
