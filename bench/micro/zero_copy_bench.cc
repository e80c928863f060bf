// What sending without a copy would save: the same bytes over a TCP connection of the loopback
// device by send(2), by send(2) with MSG_ZEROCOPY, whose notifications are read from the socket's
// error queue, and by io_uring's IORING_OP_SEND_ZC. Of the kernel alone; Penstock is not in it.
//
// Figures: time and CPU time of a piece sent, received and acknowledged; `copied`: the part of the
// sends of which the kernel says that it copied after all. Of MSG_ZEROCOPY on the loopback device
// that is all of them (Documentation/networking/msg_zerocopy.rst), so what is measured there is
// what asking for it costs, and a real device has to save more than that.
#include <arpa/inet.h>
#include <benchmark/benchmark.h>
#include <errno.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef PENSTOCK_BENCH_URING
#include <liburing.h>
#endif

#include <cstdint>
#include <cstring>
#include <vector>

namespace penstock_bench {
namespace {

// Both ends of a connection, with room for the largest piece.
class Ends {
 public:
  Ends() {
    const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    out_ = ::socket(AF_INET, SOCK_STREAM, 0);
    const int room = 4 << 20, on = 1;
    ::setsockopt(out_, SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    ::setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    ok_ = ::bind(listener, any, length) == 0 && ::listen(listener, 1) == 0 &&
          ::getsockname(listener, any, &length) == 0 && ::connect(out_, any, length) == 0;
    in_ = ::accept(listener, nullptr, nullptr);
    ::close(listener);
    ::setsockopt(out_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ok_ = ok_ && in_ >= 0 && ::setsockopt(out_, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) == 0;
  }
  ~Ends() {
    ::close(in_);
    ::close(out_);
  }
  Ends(const Ends&) = delete;
  Ends& operator=(const Ends&) = delete;

  bool ok() const { return ok_; }
  int out() const { return out_; }
  bool Receive(std::vector<char>& into) const {
    return ::recv(in_, into.data(), into.size(), MSG_WAITALL) == static_cast<ssize_t>(into.size());
  }

 private:
  int in_ = -1;
  int out_ = -1;
  bool ok_ = false;
};

void Report(benchmark::State& state, int64_t pieces, int64_t copied) {
  state.SetBytesProcessed(pieces * state.range(0));
  state.counters["copied"] =
      pieces == 0 ? 0 : static_cast<double>(copied) / static_cast<double>(pieces);
}

void BM_Send(benchmark::State& state) {
  const Ends ends;
  std::vector<char> from(static_cast<size_t>(state.range(0)), 'x'), into(from.size());
  bool ok = ends.ok();
  int64_t pieces = 0;
  while (ok && state.KeepRunning()) {
    ok = ::send(ends.out(), from.data(), from.size(), 0) == static_cast<ssize_t>(from.size()) &&
         ends.Receive(into);
    ++pieces;
  }
  if (!ok) state.SkipWithError(std::strerror(errno));
  Report(state, pieces, pieces);
}

// How many sends the next notification is for, 0 when it is none; whether they were copied.
uint32_t TakeNotification(int fd, bool* copied) {
  pollfd waits{.fd = fd, .events = 0, .revents = 0};
  if (::poll(&waits, 1, 1000) <= 0) return 0;
  char control[128];
  msghdr message{};
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (::recvmsg(fd, &message, MSG_ERRQUEUE) < 0) return 0;
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  if (header == nullptr) return 0;
  sock_extended_err told;
  std::memcpy(&told, CMSG_DATA(header), sizeof told);
  *copied = told.ee_code == SO_EE_CODE_ZEROCOPY_COPIED;
  return told.ee_origin == SO_EE_ORIGIN_ZEROCOPY ? told.ee_data - told.ee_info + 1 : 0;
}

void BM_SendZeroCopy(benchmark::State& state) {
  const Ends ends;
  std::vector<char> from(static_cast<size_t>(state.range(0)), 'x'), into(from.size());
  bool ok = ends.ok();
  int64_t pieces = 0, copied_pieces = 0;
  while (ok && state.KeepRunning()) {
    ok = ::send(ends.out(), from.data(), from.size(), MSG_ZEROCOPY) ==
             static_cast<ssize_t>(from.size()) &&
         ends.Receive(into);
    bool copied = false;
    ok = ok && TakeNotification(ends.out(), &copied) == 1;
    copied_pieces += copied;
    ++pieces;
  }
  if (!ok) state.SkipWithError(std::strerror(errno));
  Report(state, pieces, copied_pieces);
}

#ifdef PENSTOCK_BENCH_URING
// IORING_SEND_ZC_REPORT_USAGE and IORING_NOTIF_USAGE_ZC_COPIED, since Linux 6.2.
constexpr unsigned kReportUsage = 1u << 3;
constexpr uint32_t kCopied = 1u << 31;

// The send's result, and later the notification that the kernel has done with the bytes.
void BM_SendZeroCopyUring(benchmark::State& state) {
  const Ends ends;
  std::vector<char> from(static_cast<size_t>(state.range(0)), 'x'), into(from.size());
  io_uring ring;
  io_uring_params params{};
  params.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
  if (!ends.ok() || io_uring_queue_init_params(8, &ring, &params) < 0) {
    return state.SkipWithError("no ring, or no connection");
  }
  const auto take = [&ring](int32_t* result, uint32_t* flags) {
    io_uring_cqe* cqe = nullptr;
    if (io_uring_wait_cqe(&ring, &cqe) < 0) return false;
    *result = cqe->res;
    *flags = cqe->flags;
    io_uring_cqe_seen(&ring, cqe);
    return true;
  };
  bool ok = true;
  int64_t pieces = 0, copied_pieces = 0;
  while (ok && state.KeepRunning()) {
    io_uring_prep_send_zc(io_uring_get_sqe(&ring), ends.out(), from.data(), from.size(), 0,
                          kReportUsage);
    int32_t result = 0;
    uint32_t flags = 0;
    ok = io_uring_submit_and_wait(&ring, 1) >= 0 && take(&result, &flags) &&
         result == static_cast<int32_t>(from.size()) && ends.Receive(into);
    if (ok && (flags & IORING_CQE_F_MORE)) ok = take(&result, &flags);
    copied_pieces += ok && (static_cast<uint32_t>(result) & kCopied) != 0;
    ++pieces;
  }
  io_uring_queue_exit(&ring);
  if (!ok) state.SkipWithError("a send, its notification or its receive failed");
  Report(state, pieces, copied_pieces);
}
#endif

// None that the sender's buffer could not hold: one thread sends, and then receives.
void Sizes(benchmark::internal::Benchmark* bench) {
  for (const int64_t size : {4096, 16'384, 65'536, 131'072}) bench->Arg(size);
}
BENCHMARK(BM_Send)->Apply(Sizes);
BENCHMARK(BM_SendZeroCopy)->Apply(Sizes);
#ifdef PENSTOCK_BENCH_URING
BENCHMARK(BM_SendZeroCopyUring)->Apply(Sizes);
#endif

}  // namespace
}  // namespace penstock_bench
