// What a stream costs: echo, one-way bytes and connecting over TCP on loopback, both ends on one
// loop and one thread, so that no other processor and no wake-up is part of the figure. BM_RawEcho
// does the same with plain system calls: the difference is ours. `allocations` counts calls of
// operator new for each iteration.
#include <arpa/inet.h>
#include <benchmark/benchmark.h>
#include <netinet/tcp.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/stream.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "allocations.h"
#include "engines.h"

namespace penstock_bench {
namespace {

using penstock::Buffer;
using penstock::Listener;
using penstock::Loop;
using penstock::StreamPtr;

constexpr const char* kAnyPort = "127.0.0.1:0";

// Both ends of one connection on `loop`. What the server end does with bytes is for subclasses.
class Pair {
 public:
  explicit Pair(Loop& loop) : loop_(loop) {
    auto listener = Listener::Listen(loop, *penstock::SocketAddress::Parse(kAnyPort), {},
                                     [this](StreamPtr stream) { server_ = std::move(stream); });
    if (listener.ok()) {
      listener_ = *std::move(listener);
      Reconnect();
    } else {
      Fail(listener.status());
    }
  }

  // Replaces both ends by new ones.
  void Reconnect() {
    client_.reset();
    server_.reset();
    penstock::Connect(loop_, listener_->address(), {}, [this](absl::StatusOr<StreamPtr> stream) {
      if (!stream.ok()) return Fail(stream.status());
      client_ = *std::move(stream);
    });
    while (status_.ok() && (client_ == nullptr || server_ == nullptr)) loop_.Poll();
  }

  // The server end gives back what it gets.
  void Echo() {
    server_->ReadReady([this](absl::StatusOr<Buffer> got) {
      if (!got.ok()) return Fail(got.status());
      server_->Write(*std::move(got));
      Echo();
    });
  }

  // The server end counts what it gets.
  void Sink() {
    server_->ReadReady([this](absl::StatusOr<Buffer> got) {
      if (!got.ok()) return Fail(got.status());
      Arrived(got->size());
      Sink();
    });
  }

  // The client end counts what it gets.
  void Receive() {
    client_->ReadReady([this](absl::StatusOr<Buffer> got) {
      if (!got.ok()) return Fail(got.status());
      Arrived(got->size());
      Receive();
    });
  }

  // Sends `size` bytes from the client end again and again, each time when as many have arrived,
  // within Loop::Run, for as long as `state` wants more. The first time is not measured.
  void RunSending(benchmark::State& state, size_t size) {
    arrived_all_ = [this, &state, size] {
      if (!KeepRunning(state)) return loop_.Stop();
      Send(size);
    };
    Send(size);
    loop_.Run();
  }

  // The same with Loop::Poll, as when the loop is embedded in another one.
  void PollSending(benchmark::State& state, size_t size) {
    bool done = false;
    arrived_all_ = [&done] { done = true; };
    auto exchange = [&] {
      done = false;
      Send(size);
      while (!done && status_.ok()) loop_.Poll();
    };
    exchange();
    while (status_.ok() && KeepRunning(state)) exchange();
  }

  // Reports what was allocated, and an error if there was one.
  void Conclude(benchmark::State& state) {
    if (!status_.ok()) state.SkipWithError(status_.ToString().c_str());
    state.counters["allocations"] =
        benchmark::Counter(static_cast<double>(allocations_last_ - allocations_first_),
                           benchmark::Counter::kAvgIterations);
  }

  const absl::Status& status() const { return status_; }

 private:
  void Fail(const absl::Status& status) {
    status_.Update(status);
    loop_.Stop();
  }

  // Leaves out what google-benchmark allocates itself, at its first and last call.
  bool KeepRunning(benchmark::State& state) {
    allocations_last_ = Allocations();
    bool more = state.KeepRunning();
    if (allocations_first_ == 0) allocations_first_ = Allocations();
    return more;
  }

  void Send(size_t size) {
    absl::StatusOr<Buffer> buffer = loop_.pool().Allocate(size);
    if (!buffer.ok()) return Fail(buffer.status());
    buffer->Extend(size);
    missing_ = size;
    client_->Write(*std::move(buffer));
  }

  void Arrived(size_t size) {
    missing_ -= size;
    if (missing_ == 0) arrived_all_();
  }

  Loop& loop_;
  absl::Status status_;
  std::unique_ptr<Listener> listener_;
  StreamPtr client_;
  StreamPtr server_;
  size_t missing_ = 0;  // of the bytes sent last
  std::function<void()> arrived_all_;
  int64_t allocations_first_ = 0;
  int64_t allocations_last_ = 0;
};

void BM_Echo(benchmark::State& state) {
  auto loop = MakeLoop(state);
  if (loop == nullptr) return;
  Pair pair(*loop);
  if (pair.status().ok()) {
    pair.Echo();
    pair.Receive();
    pair.RunSending(state, state.range(1));
  }
  pair.Conclude(state);
}
BENCHMARK(BM_Echo)->Apply([](auto* bench) { EachEngine(bench, {64, 1024, 16384}); });

void BM_EchoEmbedded(benchmark::State& state) {
  auto loop = MakeLoop(state);
  if (loop == nullptr) return;
  Pair pair(*loop);
  if (pair.status().ok()) {
    pair.Echo();
    pair.Receive();
    pair.PollSending(state, state.range(1));
  }
  pair.Conclude(state);
}
BENCHMARK(BM_EchoEmbedded)->Apply([](auto* bench) { EachEngine(bench, {64}); });

void BM_OneWay(benchmark::State& state) {
  auto loop = MakeLoop(state);
  if (loop == nullptr) return;
  Pair pair(*loop);
  if (pair.status().ok()) {
    pair.Sink();
    pair.RunSending(state, state.range(1));
  }
  state.SetBytesProcessed(state.iterations() * state.range(1));
  pair.Conclude(state);
}
BENCHMARK(BM_OneWay)->Apply([](auto* bench) { EachEngine(bench, {65536, 1048576}); });

// Connects, accepts, and destroys both ends.
void BM_ConnectClose(benchmark::State& state) {
  auto loop = MakeLoop(state);
  if (loop == nullptr) return;
  Pair pair(*loop);
  while (pair.status().ok() && state.KeepRunning()) pair.Reconnect();
  if (!pair.status().ok()) state.SkipWithError(pair.status().ToString().c_str());
}
BENCHMARK(BM_ConnectClose)->Apply([](auto* bench) { EachEngine(bench, {0}); });

// Two connected TCP sockets, non-blocking, each watched by one epoll instance.
class RawPair {
 public:
  RawPair() {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* any = reinterpret_cast<sockaddr*>(&address);
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    ends_[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ok_ = bind(listener, any, length) == 0 && listen(listener, 1) == 0 &&
          getsockname(listener, any, &length) == 0 && connect(ends_[0], any, length) == 0 &&
          (ends_[1] = accept(listener, nullptr, nullptr)) >= 0;
    close(listener);
    for (int i = 0; i < 2; ++i) {
      int on = 1;
      epoll_event event = {};
      event.events = EPOLLIN;
      event.data.fd = ends_[i];
      ok_ = ok_ && setsockopt(ends_[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0 &&
            epoll_ctl(epoll_, EPOLL_CTL_ADD, ends_[i], &event) == 0;
    }
  }
  ~RawPair() {
    for (int end : ends_) close(end);
    close(epoll_);
  }

  bool ok() const { return ok_; }

  // `size` bytes there and back again.
  void RoundTrip(size_t size) {
    ssize_t sent = send(ends_[0], buffer_.data(), size, MSG_DONTWAIT | MSG_NOSIGNAL);
    ok_ = ok_ && sent == static_cast<ssize_t>(size);
    for (size_t received = 0; ok_ && received < size;) {
      epoll_event events[2];
      int count = epoll_wait(epoll_, events, 2, -1);
      for (int i = 0; i < count; ++i) {
        ssize_t got = recv(events[i].data.fd, buffer_.data(), buffer_.size(), MSG_DONTWAIT);
        if (events[i].data.fd == ends_[0]) {
          received += got;
        } else {
          ok_ = ok_ && send(ends_[1], buffer_.data(), got, MSG_DONTWAIT | MSG_NOSIGNAL) == got;
        }
      }
    }
  }

 private:
  bool ok_ = false;
  int epoll_ = -1;
  int ends_[2] = {-1, -1};
  std::vector<char> buffer_ = std::vector<char>(64 * 1024);
};

void BM_RawEcho(benchmark::State& state) {
  RawPair pair;
  for (auto _ : state) {
    if (!pair.ok()) break;
    pair.RoundTrip(state.range(0));
  }
  if (!pair.ok()) state.SkipWithError("a system call failed");
}
BENCHMARK(BM_RawEcho)->Arg(64)->Arg(1024)->Arg(16384);

}  // namespace
}  // namespace penstock_bench
