// An HTTP/1.1 server with one answer: keep-alive, pipelining, and errors that say what is wrong.
// Try it with curl, or with wrk for its rate.
//
// Connections are as cheap as echo_server's: requests are read where they arrived, and the answers
// to those of one read are gathered into one Write, or several where they would be long: a client
// that asks and does not listen has that much of the pool, and what was read of it. Serving
// allocates nothing but a request that arrives in parts.
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/http_request.h"
#include "common/program.h"
#include "common/server.h"

namespace {

using examples::HttpRequest;
using penstock::Buffer;
using penstock::BufferChain;
using penstock::Loop;
using penstock::Stream;
using penstock::StreamPtr;

constexpr std::string_view kBody = "Hello, world!\n";
constexpr auto kIdleDeadline = absl::Seconds(60);
// After an error the rest of what the client sends is read and dropped for a while: closing at once
// would reset the connection and might take the answer away from it (RFC 9112, 9.6).
constexpr auto kLingerDeadline = absl::Seconds(2);
constexpr int kLingerReads = 64;
constexpr size_t kAnswersBlock = 4096;     // bytes
constexpr size_t kAnswersMax = 16 * 1024;  // bytes of one Write, short of one answer

// The answers of one thread. The usual one is kept ready, and renewed when its Date is a second
// old.
class Answers {
 public:
  // Appends the answer to `request` to `out`. False when the pool is empty.
  bool Append(Loop& loop, const HttpRequest& request, BufferChain& out, Buffer& last) {
    if (request.status == 200 && request.keep_alive && !request.http10 && !request.head_only) {
      return Put(loop, Usual(loop), out, last);
    }
    return Put(loop, Make(request), out, last);
  }

 private:
  const std::string& Usual(Loop& loop) {
    if (usual_.empty() || loop.now() - made_ >= absl::Seconds(1)) {
      HttpRequest request;
      request.keep_alive = true;
      usual_ = Make(request);
      made_ = loop.now();
    }
    return usual_;
  }

  static std::string Make(const HttpRequest& request) {
    const std::string_view reason = examples::HttpReason(request.status);
    const std::string body = request.status == 200
                                 ? std::string(kBody)
                                 : absl::StrCat(request.status, " ", std::string(reason), "\n");
    std::string answer = absl::StrCat(
        "HTTP/1.1 ", request.status, " ", std::string(reason), "\r\nDate: ",
        absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone()),
        "\r\nContent-Type: text/plain\r\nContent-Length: ", body.size(), "\r\n");
    if (request.status == 405) answer += "Allow: GET, HEAD\r\n";
    if (!request.keep_alive) {
      answer += "Connection: close\r\n";
    } else if (request.http10) {
      answer += "Connection: keep-alive\r\n";
    }
    answer += "\r\n";
    if (!request.head_only) answer += body;
    return answer;
  }

  // Copies: an answer is small, and one block holds those to dozens of requests.
  static bool Put(Loop& loop, std::string_view answer, BufferChain& out, Buffer& last) {
    if (last.tailroom() < answer.size()) {
      const size_t size = last ? kAnswersBlock : answer.size();  // more than one: pipelining
      out.Append(std::move(last));
      last = loop.pool().TryAllocate(std::max(size, answer.size()));
      if (!last) return false;
    }
    const size_t end = last.size();
    last.Extend(answer.size());
    std::memcpy(last.mutable_data() + end, answer.data(), answer.size());
    return true;
  }

  std::string usual_;
  absl::Time made_;
};

// One connection. Owned by the callback that is pending on its stream.
class Session {
 public:
  explicit Session(StreamPtr stream) : stream_(std::move(stream)) {}

  static void Read(std::unique_ptr<Session> session) {
    Stream& stream = *session->stream_;
    stream.ReadReady([session = std::move(session)](absl::StatusOr<Buffer> data) mutable {
      if (!data.ok()) return;
      session->Take(*std::move(data));
      Answer(std::move(session));
    });
  }

 private:
  void Take(Buffer data) {
    if (partial_.empty()) {
      unread_ = std::move(data);
    } else {
      partial_.append(data.view());
    }
  }

  static void Answer(std::unique_ptr<Session> session) {
    BufferChain answers;
    if (!session->Consume(answers)) return;
    if (answers.empty()) return Read(std::move(session));
    Stream& stream = *session->stream_;
    stream.Write(std::move(answers), [session = std::move(session)](absl::Status sent) mutable {
      if (!sent.ok()) return;
      if (session->closing_) return Linger(std::move(session));
      session->more_ ? Answer(std::move(session)) : Read(std::move(session));
    });
  }

  // Reads requests that have come and appends the answers: to all of them, or more_ says that some
  // are left. False when there is no memory for them.
  bool Consume(BufferChain& answers) {
    Buffer last;
    const std::string_view before = partial_.empty() ? unread_.view() : partial_;
    std::string_view bytes = before;
    more_ = false;
    while (!closing_ && !more_) {
      const size_t skipped = std::min<uint64_t>(skip_, bytes.size());
      skip_ -= skipped;
      bytes.remove_prefix(skipped);
      if (bytes.empty()) break;
      HttpRequest request = examples::ParseHttpRequest(bytes);
      if (request.head_size == 0) break;
      Loop& loop = stream_->loop();
      if (loop.draining()) request.keep_alive = false;  // the client shall ask another server
      static thread_local Answers texts;
      if (!texts.Append(loop, request, answers, last)) {
        if (answers.empty()) return false;
        more_ = true;  // when what there is has gone out, there may be room
        break;
      }
      closing_ = !request.keep_alive;
      bytes.remove_prefix(std::min(request.head_size, bytes.size()));
      skip_ = request.body_size;
      more_ = answers.size() + last.size() >= kAnswersMax;
    }
    answers.Append(std::move(last));
    if (closing_) bytes = {};
    more_ = more_ && !bytes.empty();
    if (more_ && partial_.empty()) {
      unread_.TrimFront(before.size() - bytes.size());
    } else {
      // Unless more_, at most one incomplete head, which ParseHttpRequest bounds.
      std::string rest(bytes);
      partial_ = std::move(rest);
      unread_ = Buffer();
    }
    return true;
  }

  static void Linger(std::unique_ptr<Session> session) {
    Stream& stream = *session->stream_;
    stream.ShutdownWrite();
    stream.SetIdleDeadline(kLingerDeadline);
    Drop(std::move(session), kLingerReads);
  }

  static void Drop(std::unique_ptr<Session> session, int reads_left) {
    Stream& stream = *session->stream_;
    stream.ReadReady(
        [session = std::move(session), reads_left](absl::StatusOr<Buffer> data) mutable {
          if (data.ok() && reads_left > 0) Drop(std::move(session), reads_left - 1);
        });
  }

  StreamPtr stream_;
  Buffer unread_;        // of one read, while partial_ is empty and more_ holds
  std::string partial_;  // begins with a request whose rest had not arrived
  uint64_t skip_ = 0;    // bytes of a request's body that are still to come
  bool more_ = false;    // requests to answer when the Write under way has ended
  bool closing_ = false;
};

void ServeHttp(StreamPtr stream) { Session::Read(std::make_unique<Session>(std::move(stream))); }

}  // namespace

int main(int argc, char** argv) {
  examples::ParseFlagsOnly(argc, argv,
                           "[flags]\n\nAnswers every HTTP/1 GET and HEAD with a greeting.");
  penstock::StreamOptions options;
  options.idle_deadline = kIdleDeadline;
  return examples::RunServer(&ServeHttp, options);
}
