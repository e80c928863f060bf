// Uses the library as a stranger would: one message goes to an echo service and back, on one loop.
// The unused variable is deliberate: were a warning flag of Penstock's own build to reach its
// consumers, -Werror with it, this file would not compile.
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/stream.h>
#include <penstock/version.h>

#include <cstdio>
#include <string>
#include <string_view>
#include <utility>

namespace {

constexpr std::string_view kMessage = "there and back";

void Echo(penstock::StreamPtr stream) {
  penstock::Stream& in = *stream;
  in.ReadReady([stream = std::move(stream)](absl::StatusOr<penstock::Buffer> data) mutable {
    if (!data.ok()) return;
    penstock::Stream& out = *stream;
    out.Write(*std::move(data), [stream = std::move(stream)](absl::Status sent) mutable {
      if (sent.ok()) Echo(std::move(stream));
    });
  });
}

// Reads until the whole message is back or the stream ends, then stops the loop.
void Collect(penstock::Loop& loop, penstock::StreamPtr stream, std::string& received) {
  penstock::Stream& in = *stream;
  in.ReadReady([&loop, &received,
                stream = std::move(stream)](absl::StatusOr<penstock::Buffer> data) mutable {
    if (!data.ok()) {
      std::fprintf(stderr, "read: %s\n", data.status().ToString().c_str());
      loop.Stop();
      return;
    }
    received += data->view();
    if (received.size() >= kMessage.size()) {
      loop.Stop();
    } else {
      Collect(loop, std::move(stream), received);
    }
  });
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

}  // namespace

int main() {
  int deliberately_unused = 0;
  absl::StatusOr<std::unique_ptr<penstock::Loop>> loop = penstock::Loop::Create();
  if (!loop.ok()) return Fail(loop.status());
  absl::StatusOr<penstock::SocketAddress> any = penstock::SocketAddress::Parse("127.0.0.1:0");
  if (!any.ok()) return Fail(any.status());
  absl::StatusOr<std::unique_ptr<penstock::Listener>> listener =
      penstock::Listener::Listen(**loop, *any, {}, Echo);
  if (!listener.ok()) return Fail(listener.status());

  std::string received;
  penstock::Connect(**loop, (*listener)->address(), {},
                    [&](absl::StatusOr<penstock::StreamPtr> stream) {
                      absl::StatusOr<penstock::Buffer> message = (*loop)->pool().Copy(kMessage);
                      if (!stream.ok() || !message.ok()) {
                        std::fprintf(stderr, "connect: %s\n", stream.status().ToString().c_str());
                        (*loop)->Stop();
                        return;
                      }
                      (*stream)->Write(*std::move(message));
                      Collect(**loop, *std::move(stream), received);
                    });
  (*loop)->Run();

  const std::string_view version = penstock::Version();
  std::printf("penstock %.*s: %s\n", static_cast<int>(version.size()), version.data(),
              received.c_str());
  return received == kMessage ? 0 : 1;
}
