// An echo client on gRPC C++'s ALTS frame protector, as the ALTS client.
//
//   grpc_alts_client --key-hex=HEX [--record-protocol=NAME] [--max-frame=BYTES]
//                    --writes=SIZE[,SIZE...] --bytes=BYTES PORT
//
// Sends BYTES bytes of a pattern to 127.0.0.1:PORT in writes of the sizes, taken in turn, each
// sealed into records of its own; ends its side; and reads until the peer's end, meanwhile reading
// and writing as the socket lets it. Verifies that every byte came back and prints one JSON line
// with what was sent and which records came. Ends with status 1 when something was wrong.
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/loadgen/pattern.h"
#include "grpc_alts.h"
#include "peer.h"

namespace penstock_bench {
namespace {

constexpr size_t kWireSize = 64 * 1024;
constexpr size_t kPlainSize = 16 * 1024;

[[noreturn]] void Wrong(const std::string& what) {
  fprintf(stderr, "grpc_alts_client: %s\n", what.c_str());
  exit(1);
}

struct ClientOptions {
  AltsOptions alts;
  std::vector<size_t> writes;
  uint64_t bytes = 0;
  uint16_t port = 0;
};

class AltsClient {
 public:
  AltsClient(int fd, const ClientOptions& options)
      : fd_(fd), options_(options), protector_(options.alts, AltsProtector::Side::kClient) {}

  // Returns at the peer's end.
  void Run() {
    while (!ended_) {
      if (unsent_.empty() && sealed_ < options_.bytes) SealNext();
      if (unsent_.empty() && !finished_) {
        if (shutdown(fd_, SHUT_WR) < 0) Wrong(Failure("shutdown"));
        finished_ = true;
      }
      pollfd watched = {fd_, static_cast<short>(finished_ ? POLLIN : POLLIN | POLLOUT), 0};
      if (poll(&watched, 1, -1) < 0 && errno != EINTR) Die("poll");
      if (watched.revents & (POLLIN | POLLHUP | POLLERR)) Receive();
      if (!ended_ && (watched.revents & POLLOUT)) Send();
    }
    if (!counter_.between_records()) Wrong("the peer ended inside a record" + SoFar());
    if (received_ != options_.bytes) Wrong("the peer ended too early" + SoFar());
  }

  void Print() const {
    printf("{\"bytes\": %" PRIu64 ", \"writes\": %" PRIu64 ", \"records_received\": %" PRIu64
           ", \"largest_record\": %" PRIu64 "}\n",
           received_, writes_, counter_.records(), counter_.largest());
  }

 private:
  std::string SoFar() const {
    return ", after " + std::to_string(received_) + " of " + std::to_string(options_.bytes) +
           " bytes";
  }

  std::string Failure(const char* call) const {
    return std::string(call) + ": " + strerror(errno) + SoFar();
  }

  void SealNext() {
    uint64_t left = std::min<uint64_t>(options_.writes[writes_ % options_.writes.size()],
                                       options_.bytes - sealed_);
    wire_.Clear();
    while (left > 0) {
      const size_t run = std::min<uint64_t>(left, Pattern::kRunMax);
      const char* plain = pattern_.At(pattern_.Advance(0, sealed_));
      if (!protector_.Seal({plain, run}, wire_)) Wrong("a write was not sealed" + SoFar());
      sealed_ += run;
      left -= run;
    }
    if (!protector_.Flush(wire_)) Wrong("a write was not sealed" + SoFar());
    unsent_ = wire_.view();
    ++writes_;
  }

  void Send() {
    if (unsent_.empty()) return;
    const ssize_t sent = send(fd_, unsent_.data(), unsent_.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) Wrong(Failure("send"));
    if (sent > 0) unsent_.remove_prefix(static_cast<size_t>(sent));
  }

  void Receive() {
    const ssize_t got = recv(fd_, received_wire_, kWireSize, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got < 0) Wrong(Failure("recv"));
    ended_ = got == 0;
    std::string_view wire(received_wire_, static_cast<size_t>(got));
    counter_.Take(wire);
    size_t opened = 0;
    while (!wire.empty() || opened == kPlainSize) {
      opened = kPlainSize;
      if (!protector_.Open(wire, plain_, opened)) Wrong("a record is not authentic" + SoFar());
      if (opened > options_.bytes - received_) Wrong("more came back than was sent" + SoFar());
      if (!pattern_.Matches(pattern_.Advance(0, received_), plain_, opened)) {
        Wrong("wrong bytes" + SoFar());
      }
      received_ += opened;
    }
  }

  const int fd_;
  const ClientOptions& options_;
  const Pattern pattern_;
  AltsProtector protector_;
  WireBuffer wire_;
  std::string_view unsent_;  // of wire_
  RecordCounter counter_;
  uint64_t sealed_ = 0;    // bytes of plaintext
  uint64_t received_ = 0;  // bytes of plaintext, all verified
  uint64_t writes_ = 0;
  bool finished_ = false;  // this side
  bool ended_ = false;     // the peer's
  char received_wire_[kWireSize];
  char plain_[kPlainSize];
};

uint64_t NumberOrWrong(std::string_view text, uint64_t least, uint64_t most) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
    Wrong("'" + std::string(text) + "': expected a number from " + std::to_string(least) + " to " +
          std::to_string(most));
  }
  return value;
}

ClientOptions ParseClientOptions(int argc, char** argv) {
  constexpr std::string_view kWrites = "--writes=";
  constexpr std::string_view kBytes = "--bytes=";
  ClientOptions options;
  options.alts = TakeAltsFlags(argc, argv);
  for (int i = 1; i < argc; ++i) {
    std::string_view arg = argv[i];
    if (arg.substr(0, kWrites.size()) == kWrites) {
      arg.remove_prefix(kWrites.size());
      while (true) {
        const size_t comma = std::min(arg.find(','), arg.size());
        options.writes.push_back(NumberOrWrong(arg.substr(0, comma), 1, UINT32_MAX));
        if (comma == arg.size()) break;
        arg.remove_prefix(comma + 1);
      }
    } else if (arg.substr(0, kBytes.size()) == kBytes) {
      options.bytes = NumberOrWrong(arg.substr(kBytes.size()), 1, INT64_MAX);
    } else {
      options.port = static_cast<uint16_t>(NumberOrWrong(arg, 1, UINT16_MAX));
    }
  }
  if (options.writes.empty() || options.bytes == 0 || options.port == 0) {
    Wrong("--writes=SIZE[,SIZE...], --bytes=BYTES and PORT are needed");
  }
  return options;
}

int ConnectOrDie(uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) Die("socket");
  const int on = 1;
  if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0) Die("TCP_NODELAY");
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) Die("connect");
  if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0) Die("fcntl");
  return fd;
}

}  // namespace
}  // namespace penstock_bench

int main(int argc, char** argv) {
  using namespace penstock_bench;
  const ClientOptions options = ParseClientOptions(argc, argv);
  static AltsClient client(ConnectOrDie(options.port), options);
  client.Run();
  client.Print();
}
