// The raw epoll echo server around gRPC C++'s ALTS frame protector, as the ALTS server: what
// sealing costs with that library and nothing else in the way.
//
//   grpc_alts_echo --key-hex=HEX [--record-protocol=NAME] [--max-frame=BYTES] [--tell-records] PORT
//
// With --tell-records it prints one JSON line at the end of each connection: which records came.
//
// Level-triggered, one thread, and buffers shared by all connections, as raw_epoll. What one read
// brought is opened, sealed again and sent at once. The protector copies into and out of buffers of
// its own in both directions; its interface allows nothing less. Every connection begins with the
// same key, which is only fit for tests and benches.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "grpc_alts.h"
#include "peer.h"

namespace penstock_bench {
namespace {

struct Connection {
  std::unique_ptr<AltsProtector> protector;
  RecordCounter counter;
  std::unique_ptr<char[]> pending;  // what send() did not take
  size_t pending_begin = 0;
  size_t pending_end = 0;
};

class AltsEcho {
 public:
  AltsEcho(int listen_fd, AltsOptions options)
      : listen_fd_(listen_fd), options_(std::move(options)) {
    epoll_fd_ = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd_ < 0) Die("epoll_create1");
    Control(EPOLL_CTL_ADD, listen_fd_, EPOLLIN);
  }

  [[noreturn]] void Run() {
    epoll_event events[kEventsMax];
    for (;;) {
      int count = epoll_wait(epoll_fd_, events, kEventsMax, -1);
      if (count < 0 && errno != EINTR) Die("epoll_wait");
      for (int i = 0; i < count; ++i) {
        if (events[i].data.fd == listen_fd_) {
          Accept();
        } else {
          OnEvent(events[i].data.fd);
        }
      }
    }
  }

 private:
  void Control(int operation, int fd, uint32_t wanted) {
    epoll_event event = {};
    event.events = wanted;
    event.data.fd = fd;
    if (epoll_ctl(epoll_fd_, operation, fd, &event) < 0) Die("epoll_ctl");
  }

  void Accept() {
    for (;;) {
      int fd = accept4(listen_fd_, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd < 0) {
        if (errno == EAGAIN || errno == ECONNABORTED) return;
        Die("accept4");
      }
      if (static_cast<size_t>(fd) >= connections_.size()) connections_.resize(fd + 1);
      connections_[fd].protector =
          std::make_unique<AltsProtector>(options_, AltsProtector::Side::kServer);
      Control(EPOLL_CTL_ADD, fd, EPOLLIN);
    }
  }

  void Close(int fd) {
    if (options_.tell_records) {
      const RecordCounter& counter = connections_[fd].counter;
      printf("{\"records_received\": %" PRIu64 ", \"largest_record\": %" PRIu64 "}\n",
             counter.records(), counter.largest());
      fflush(stdout);
    }
    connections_[fd] = Connection();
    close(fd);
  }

  void OnEvent(int fd) {
    Connection& connection = connections_[fd];
    if (connection.pending != nullptr && !Flush(fd)) return;
    ssize_t got = recv(fd, wire_, kWireSize, 0);
    if (got <= 0) {
      if (got == 0 || errno != EAGAIN) Close(fd);
      return;
    }
    if (options_.tell_records) connection.counter.Take({wire_, static_cast<size_t>(got)});
    reply_.Clear();
    if (!Turn(*connection.protector, {wire_, static_cast<size_t>(got)})) return Close(fd);
    Send(fd);
  }

  // Opens what came and seals it again, into reply_.
  bool Turn(AltsProtector& protector, std::string_view wire) {
    size_t opened;
    do {
      opened = kPlainSize;
      if (!protector.Open(wire, plain_, opened)) return false;
      if (!protector.Seal({plain_, opened}, reply_)) return false;
    } while (!wire.empty() || opened == kPlainSize);
    return protector.Flush(reply_);
  }

  void Send(int fd) {
    const std::string_view reply = reply_.view();
    if (reply.empty()) return;
    ssize_t sent = send(fd, reply.data(), reply.size(), MSG_NOSIGNAL);
    if (sent == static_cast<ssize_t>(reply.size())) return;
    if (sent < 0) {
      if (errno != EAGAIN) return Close(fd);
      sent = 0;
    }
    Connection& connection = connections_[fd];
    const size_t left = reply.size() - static_cast<size_t>(sent);
    connection.pending.reset(new char[left]);
    memcpy(connection.pending.get(), reply.data() + sent, left);
    connection.pending_begin = 0;
    connection.pending_end = left;
    Control(EPOLL_CTL_MOD, fd, EPOLLOUT);
  }

  // Sends what is pending. True: all of it went out and the connection reads again.
  bool Flush(int fd) {
    Connection& connection = connections_[fd];
    ssize_t sent = send(fd, connection.pending.get() + connection.pending_begin,
                        connection.pending_end - connection.pending_begin, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno != EAGAIN) Close(fd);
      return false;
    }
    connection.pending_begin += static_cast<size_t>(sent);
    if (connection.pending_begin < connection.pending_end) return false;
    connection.pending.reset();
    Control(EPOLL_CTL_MOD, fd, EPOLLIN);
    return true;
  }

  // The fastest of 16, 32, 64 and 128 KiB with records of 16 KiB.
  static constexpr size_t kWireSize = 64 * 1024;
  static constexpr size_t kPlainSize = 16 * 1024;

  const int listen_fd_;
  const AltsOptions options_;
  int epoll_fd_ = -1;
  std::vector<Connection> connections_;  // by descriptor
  WireBuffer reply_;
  alignas(64) char wire_[kWireSize];
  alignas(64) char plain_[kPlainSize];
};

}  // namespace
}  // namespace penstock_bench

int main(int argc, char** argv) {
  using namespace penstock_bench;
  AltsOptions alts = TakeAltsFlags(argc, argv);
  PeerOptions options = ParsePeerOptions(argc, argv, {});
  int listen_fd = ListenOrDie(options.port, SOCK_NONBLOCK);
  static AltsEcho server(listen_fd, std::move(alts));
  AnnouncePeer(listen_fd);
  server.Run();
}
