// The raw epoll echo server: the baseline of every comparison.
//
//   raw_epoll [--mode=lt|et] PORT
//
// One thread, one read buffer shared by all connections, one recv() and one send() for each ready
// connection. A connection is 16 bytes of state; it holds memory only while its peer does not read.
// `lt` is level-triggered: one read per event. `et` is edge-triggered: it reads until a read comes
// back short, which for a stream means that the socket is empty (epoll(7), question 9).
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <vector>

#include "peer.h"

namespace penstock_bench {
namespace {

struct Connection {
  char* pending = nullptr;  // what send() did not take; owned
  uint32_t pending_begin = 0;
  uint32_t pending_end = 0;
};

class EpollEcho {
 public:
  EpollEcho(int listen_fd, bool edge_triggered)
      : listen_fd_(listen_fd), edge_triggered_(edge_triggered) {
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
          OnEvent(events[i].data.fd, events[i].events);
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
      Control(EPOLL_CTL_ADD, fd,
              edge_triggered_ ? EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
                              : static_cast<uint32_t>(EPOLLIN));
    }
  }

  void Close(int fd) {
    free(connections_[fd].pending);
    connections_[fd] = Connection();
    close(fd);
  }

  void OnEvent(int fd, uint32_t events) {
    if (connections_[fd].pending != nullptr && !Flush(fd)) return;
    // After a short read, only a hang-up already announced can still be waiting to be read.
    bool read_to_end = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
    for (;;) {
      ssize_t got = recv(fd, buffer_, kReadSize, 0);
      if (got <= 0) {
        if (got == 0 || errno != EAGAIN) Close(fd);
        return;
      }
      if (!Echo(fd, got)) return;
      if (!edge_triggered_) return;
      if (static_cast<size_t>(got) < kReadSize && !read_to_end) return;
    }
  }

  // Sends the first `size` bytes of the shared buffer. False: the connection waits or is gone.
  bool Echo(int fd, size_t size) {
    ssize_t sent = send(fd, buffer_, size, MSG_NOSIGNAL);
    if (sent == static_cast<ssize_t>(size)) return true;
    if (sent < 0) {
      if (errno != EAGAIN) {
        Close(fd);
        return false;
      }
      sent = 0;
    }
    Connection& connection = connections_[fd];
    connection.pending = static_cast<char*>(malloc(size - sent));
    if (connection.pending == nullptr) Die("malloc");
    memcpy(connection.pending, buffer_ + sent, size - sent);
    connection.pending_begin = 0;
    connection.pending_end = size - sent;
    if (!edge_triggered_) Control(EPOLL_CTL_MOD, fd, EPOLLOUT);
    return false;
  }

  // Sends what is pending. True: all of it went out and the connection reads again.
  bool Flush(int fd) {
    Connection& connection = connections_[fd];
    ssize_t sent = send(fd, connection.pending + connection.pending_begin,
                        connection.pending_end - connection.pending_begin, MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno != EAGAIN) Close(fd);
      return false;
    }
    connection.pending_begin += sent;
    if (connection.pending_begin < connection.pending_end) return false;
    free(connection.pending);
    connection = Connection();
    if (!edge_triggered_) Control(EPOLL_CTL_MOD, fd, EPOLLIN);
    return true;
  }

  const int listen_fd_;
  const bool edge_triggered_;
  int epoll_fd_ = -1;
  std::vector<Connection> connections_;  // by descriptor
  alignas(64) char buffer_[kReadSize];
};

}  // namespace
}  // namespace penstock_bench

int main(int argc, char** argv) {
  using namespace penstock_bench;
  PeerOptions options = ParsePeerOptions(argc, argv, {"lt", "et"});
  int listen_fd = ListenOrDie(options.port, SOCK_NONBLOCK);
  static EpollEcho server(listen_fd, options.mode == "et");
  AnnouncePeer(listen_fd);
  server.Run();
}
