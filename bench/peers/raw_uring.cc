// The raw io_uring echo server: the best loop we know for this kernel interface, without a library.
//
//   raw_uring [--mode=direct|sqe|poll] PORT
//
// One thread, one ring (SINGLE_ISSUER, DEFER_TASKRUN), submission and waiting in one system call,
// multishot accept. The modes differ in how bytes come and go:
//   direct  multishot receive into a ring of 1024 buffers of 16 KiB; the reply goes out by a plain
//           send(), and an SQE is spent only on what the socket did not take. On loopback a system
//           call is cheaper than a submission and its completion.
//   sqe     the same, but every reply is a SEND submission.
//   poll    multishot poll, then plain recv() and send() over one hot buffer.
// Accepted sockets stay blocking: io_uring gives up with EAGAIN on O_NONBLOCK files instead of
// waiting. Plain calls pass MSG_DONTWAIT.
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string_view>
#include <vector>

#include "peer.h"

namespace penstock_bench {
namespace {

constexpr unsigned kSubmissionEntries = 1024;
constexpr unsigned kCompletionEntries = 4096;
constexpr unsigned kBuffers = 1024;
constexpr int kBufferGroup = 0;
constexpr int kNoBuffer = -1;

enum class Mode { kDirect, kSqe, kPoll };

// The operation that a completion belongs to, in the low bits of its user data; the rest points to
// the connection.
enum Operation : uint64_t { kAccept = 0, kReceive = 1, kSend = 2, kPoll = 3, kPollRemove = 4 };
constexpr uint64_t kOperationMask = 7;

struct Connection {
  int fd;
  int operations = 0;  // completions still to come; the connection lives until there are none
  bool receiving = false;
  bool closing = false;
  // Receive modes: the buffers whose bytes wait to be sent, in order; `queue_sent` of the first are
  // gone already.
  int queue_head = kNoBuffer;
  int queue_tail = kNoBuffer;
  uint32_t queue_sent = 0;
  // Poll mode: what send() did not take; owned.
  char* pending = nullptr;
  uint32_t pending_begin = 0;
  uint32_t pending_end = 0;
};

class UringEcho {
 public:
  UringEcho(int listen_fd, Mode mode) : listen_fd_(listen_fd), mode_(mode) {
    io_uring_params params = {};
    params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQSIZE;
    params.cq_entries = kCompletionEntries;
    int error = io_uring_queue_init_params(kSubmissionEntries, &ring_, &params);
    if (error < 0) Die("io_uring_setup", -error);
    io_uring_register_ring_fd(&ring_);  // saves a descriptor look-up; harmless where it fails
    if (mode_ != Mode::kPoll) MakeBuffers();
    ArmAccept();
  }

  [[noreturn]] void Run() {
    for (;;) {
      int error = io_uring_submit_and_wait(&ring_, 1);
      if (error < 0 && error != -EINTR) Die("io_uring_enter", -error);
      unsigned head;
      unsigned count = 0;
      io_uring_cqe* cqe;
      io_uring_for_each_cqe(&ring_, head, cqe) {
        Dispatch(cqe->user_data, cqe->res, cqe->flags);
        ++count;
      }
      io_uring_cq_advance(&ring_, count);
      PublishReturned();
    }
  }

 private:
  static void* Map(size_t size) {
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) Die("mmap");
    return memory;
  }

  // Buffer ring registered by hand, as io_uring_register_buf_ring(3) describes.
  void MakeBuffers() {
    buffers_ = static_cast<char*>(Map(kBuffers * kReadSize));
    buffer_ring_ = static_cast<io_uring_buf_ring*>(Map(kBuffers * sizeof(io_uring_buf)));
    io_uring_buf_reg registration = {};
    registration.ring_addr = reinterpret_cast<uintptr_t>(buffer_ring_);
    registration.ring_entries = kBuffers;
    registration.bgid = kBufferGroup;
    int error = io_uring_register_buf_ring(&ring_, &registration, 0);
    if (error < 0) Die("io_uring_register_buf_ring", -error);
    io_uring_buf_ring_init(buffer_ring_);
    for (unsigned id = 0; id < kBuffers; ++id) Return(id);
    PublishReturned();
  }

  char* BufferAt(int id) { return buffers_ + static_cast<size_t>(id) * kReadSize; }

  void Return(int id) {
    io_uring_buf_ring_add(buffer_ring_, BufferAt(id), kReadSize, id,
                          io_uring_buf_ring_mask(kBuffers), returned_++);
  }

  // Shows the returned buffers to the kernel, then starts the receives that had run out of them.
  void PublishReturned() {
    if (returned_ == 0) return;
    io_uring_buf_ring_advance(buffer_ring_, returned_);
    returned_ = 0;
    std::vector<Connection*> starved;
    starved.swap(starved_);
    for (Connection* connection : starved) {
      --connection->operations;
      if (connection->closing) {
        CloseIfDone(connection);
      } else {
        ArmReceive(connection);
      }
    }
  }

  io_uring_sqe* GetSqe() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe != nullptr) return sqe;
    int error = io_uring_submit(&ring_);
    if (error < 0) Die("io_uring_enter", -error);
    return io_uring_get_sqe(&ring_);
  }

  void Finish(io_uring_sqe* sqe, Connection* connection, Operation operation) {
    if (connection != nullptr) ++connection->operations;
    io_uring_sqe_set_data64(sqe, reinterpret_cast<uintptr_t>(connection) | operation);
  }

  void ArmAccept() {
    io_uring_sqe* sqe = GetSqe();
    io_uring_prep_multishot_accept(sqe, listen_fd_, nullptr, nullptr, SOCK_CLOEXEC);
    Finish(sqe, nullptr, kAccept);
  }

  void ArmReceive(Connection* connection) {
    io_uring_sqe* sqe = GetSqe();
    io_uring_prep_recv_multishot(sqe, connection->fd, nullptr, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = kBufferGroup;
    Finish(sqe, connection, kReceive);
    connection->receiving = true;
  }

  void ArmPoll(Connection* connection) {
    io_uring_sqe* sqe = GetSqe();
    io_uring_prep_poll_multishot(sqe, connection->fd, POLLIN | POLLOUT | POLLRDHUP);
    Finish(sqe, connection, kPoll);
    connection->receiving = true;
  }

  void ArmPollRemove(Connection* connection) {
    io_uring_sqe* sqe = GetSqe();
    io_uring_prep_poll_remove(sqe, reinterpret_cast<uintptr_t>(connection) | kPoll);
    Finish(sqe, connection, kPollRemove);
  }

  void Dispatch(uint64_t user_data, int result, unsigned flags) {
    Connection* connection = reinterpret_cast<Connection*>(user_data & ~kOperationMask);
    bool more = (flags & IORING_CQE_F_MORE) != 0;
    if (connection != nullptr && !more) --connection->operations;
    switch (static_cast<Operation>(user_data & kOperationMask)) {
      case kAccept:
        OnAccept(result, more);
        return;
      case kReceive:
        OnReceive(connection, result, flags, more);
        break;
      case kSend:
        OnSent(connection, result);
        break;
      case kPoll:
        OnPoll(connection, result, more);
        break;
      case kPollRemove:
        // A wake-up in flight holds the request: ask again (seen on 6.18).
        if (result == -EALREADY) ArmPollRemove(connection);
        break;
    }
    CloseIfDone(connection);
  }

  void OnAccept(int result, bool more) {
    if (result < 0 && result != -ECONNABORTED) Die("accept", -result);
    if (!more) ArmAccept();
    if (result < 0) return;
    Connection* connection = new Connection{.fd = result};
    if (mode_ == Mode::kPoll) {
      ArmPoll(connection);
    } else {
      ArmReceive(connection);
    }
  }

  void OnReceive(Connection* connection, int result, unsigned flags, bool more) {
    if (!more) connection->receiving = false;
    if (result > 0) {
      int id = flags >> IORING_CQE_BUFFER_SHIFT;
      if (connection->closing && connection->queue_head == kNoBuffer) {
        Return(id);
      } else {
        Reply(connection, id, result);
      }
      if (!more && !connection->closing) ArmReceive(connection);
    } else if (result == -ENOBUFS) {
      ++connection->operations;  // kept alive by its place in starved_
      starved_.push_back(connection);
    } else {
      connection->closing = true;
    }
  }

  void Reply(Connection* connection, int id, uint32_t size) {
    uint32_t sent = 0;
    if (mode_ == Mode::kDirect && connection->queue_head == kNoBuffer) {
      ssize_t taken = send(connection->fd, BufferAt(id), size, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (taken == static_cast<ssize_t>(size)) {
        Return(id);
        return;
      }
      if (taken < 0 && errno != EAGAIN) {
        Return(id);
        Abort(connection);
        return;
      }
      if (taken > 0) sent = taken;
    }
    size_[id] = size;
    next_[id] = kNoBuffer;
    if (connection->queue_head != kNoBuffer) {
      next_[connection->queue_tail] = id;
      connection->queue_tail = id;
      return;  // the send in flight comes first
    }
    connection->queue_head = connection->queue_tail = id;
    connection->queue_sent = sent;
    ArmSend(connection);
  }

  void ArmSend(Connection* connection) {
    int id = connection->queue_head;
    io_uring_sqe* sqe = GetSqe();
    io_uring_prep_send(sqe, connection->fd, BufferAt(id) + connection->queue_sent,
                       size_[id] - connection->queue_sent, MSG_NOSIGNAL | MSG_WAITALL);
    Finish(sqe, connection, kSend);
  }

  void OnSent(Connection* connection, int result) {
    if (result < 0) {
      while (connection->queue_head != kNoBuffer) PopQueue(connection);
      Abort(connection);
      return;
    }
    connection->queue_sent += result;
    if (connection->queue_sent == size_[connection->queue_head]) PopQueue(connection);
    if (connection->queue_head != kNoBuffer) ArmSend(connection);
  }

  void PopQueue(Connection* connection) {
    int id = connection->queue_head;
    connection->queue_head = next_[id];
    connection->queue_sent = 0;
    Return(id);
  }

  // Ends the multishot receive of a connection whose peer is gone: it completes with end of stream.
  void Abort(Connection* connection) {
    connection->closing = true;
    shutdown(connection->fd, SHUT_RDWR);
  }

  void OnPoll(Connection* connection, int result, bool more) {
    if (!more) connection->receiving = false;
    if (connection->closing) return;
    if (result < 0) {
      connection->closing = true;
    } else if (connection->pending == nullptr || Flush(connection)) {
      ReadAll(connection, (result & (POLLRDHUP | POLLHUP | POLLERR)) != 0);
    }
    if (connection->closing && connection->receiving) ArmPollRemove(connection);
    if (!connection->closing && !connection->receiving) ArmPoll(connection);
  }

  // Multishot poll reports edges, so this reads until a read comes back short.
  void ReadAll(Connection* connection, bool read_to_end) {
    for (;;) {
      ssize_t got = recv(connection->fd, shared_, kReadSize, MSG_DONTWAIT);
      if (got <= 0) {
        connection->closing = got == 0 || errno != EAGAIN;
        return;
      }
      ssize_t sent = send(connection->fd, shared_, got, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (sent < 0) {
        if (errno != EAGAIN) {
          connection->closing = true;
          return;
        }
        sent = 0;
      }
      if (sent < got) {
        connection->pending_begin = 0;
        connection->pending_end = got - sent;
        connection->pending = static_cast<char*>(malloc(got - sent));
        if (connection->pending == nullptr) Die("malloc");
        memcpy(connection->pending, shared_ + sent, got - sent);
        return;
      }
      if (static_cast<size_t>(got) < kReadSize && !read_to_end) return;
    }
  }

  // True: nothing is pending any more.
  bool Flush(Connection* connection) {
    ssize_t sent =
        send(connection->fd, connection->pending + connection->pending_begin,
             connection->pending_end - connection->pending_begin, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      connection->closing = errno != EAGAIN;
      return false;
    }
    connection->pending_begin += sent;
    if (connection->pending_begin < connection->pending_end) return false;
    free(connection->pending);
    connection->pending = nullptr;
    return true;
  }

  void CloseIfDone(Connection* connection) {
    if (!connection->closing || connection->operations > 0) return;
    close(connection->fd);
    free(connection->pending);
    delete connection;
  }

  const int listen_fd_;
  const Mode mode_;
  io_uring ring_;
  char* buffers_ = nullptr;
  io_uring_buf_ring* buffer_ring_ = nullptr;
  int returned_ = 0;                    // buffers returned but not yet shown to the kernel
  std::vector<Connection*> starved_;    // receives that ended for want of a buffer
  uint32_t size_[kBuffers];             // bytes in each buffer that waits to be sent
  int next_[kBuffers];                  // the buffer queued behind it
  alignas(64) char shared_[kReadSize];  // poll mode
};

}  // namespace
}  // namespace penstock_bench

int main(int argc, char** argv) {
  using namespace penstock_bench;
  PeerOptions options = ParsePeerOptions(argc, argv, {"direct", "sqe", "poll"});
  Mode mode = options.mode == "sqe"    ? Mode::kSqe
              : options.mode == "poll" ? Mode::kPoll
                                       : Mode::kDirect;
  int listen_fd = ListenOrDie(options.port, 0);
  static UringEcho server(listen_fd, mode);
  AnnouncePeer(listen_fd);
  server.Run();
}
