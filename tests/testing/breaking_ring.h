// BreakingRing: the fixture of tests with a stream by io_uring on a loop whose ring they break, and
// whose epoll they may refuse.
//
// The test's thread.
#ifndef PENSTOCK_TESTS_TESTING_BREAKING_RING_H_
#define PENSTOCK_TESTS_TESTING_BREAKING_RING_H_

#include <linux/io_uring.h>
#include <penstock/buffer.h>
#include <penstock/connect.h>
#include <penstock/export.h>
#include <penstock/loop.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "testing/fault_sys.h"
#include "testing/logged_loop.h"
#include "testing/plain_socket.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// May refuse epoll, too, and swallow the end of what is cancelled; and counts how often the loop
// waited by no engine.
class NoEpollSys : public FaultSys {
 public:
  int EpollCreate() override { return create_error != 0 ? -create_error : FaultSys::EpollCreate(); }
  int EpollControl(int epoll, int op, int fd, epoll_event* event) override {
    if (op == EPOLL_CTL_ADD && add_error != 0) return -add_error;
    if (op == EPOLL_CTL_ADD && sockets_refused > 0 && IsSocket(fd)) {
      --sockets_refused;
      return -ENOMEM;
    }
    return FaultSys::EpollControl(epoll, op, fd, event);
  }
  int Poll(pollfd* descriptors, size_t count, int64_t timeout_ns) override {
    ++polls;
    return FaultSys::Poll(descriptors, count, timeout_ns);
  }

  void RingCompletion(RingOp op, int32_t* result, uint32_t* flags) override {
    FaultSys::RingCompletion(op, result, flags);
    if (op == swallowed && *result == -ECANCELED) *flags |= IORING_CQE_F_MORE;
    if (op == RingOp::kCancel && misses_cancels) *result = -ENOENT;
  }

  int create_error = 0;
  int add_error = 0;
  int sockets_refused = 0;  // so many of those to come
  RingOp swallowed = RingOp::kNone;
  bool misses_cancels = false;  // says so
  int polls = 0;

 private:
  static bool IsSocket(int fd) {
    int type;
    socklen_t size = sizeof type;
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
  }
};

// A stream by io_uring on a loop whose ring a test breaks.
class BreakingRing : public LoggedLoop<NoEpollSys> {
 protected:
  // Skips where there is no io_uring.
  void Begin(EngineKind primary, const char* without = "") {
    const char* const before = std::getenv(kDisable);
    const std::string kept = before != nullptr ? before : "";
    if (*without != '\0') ::setenv(kDisable, without, 1);
    absl::Status status = Make(primary);
    if (loop_ != nullptr) status.Update(loop_->EnableEngine(EngineKind::kUring));
    before != nullptr ? ::setenv(kDisable, kept.c_str(), 1) : ::unsetenv(kDisable);
    if (absl::IsUnimplemented(status)) GTEST_SKIP() << status;
    ASSERT_TRUE(status.ok()) << status;
    peers_ = PlainSocket::Listen(*SocketAddress::Parse("127.0.0.1:0"), 16);
    stream_ = Open({});
    ASSERT_NE(stream_, nullptr);
    peer_ = peers_.Accept();
  }
  StreamPtr Open(StreamOptions options) {
    StreamPtr stream;
    ConnectOptions connecting;
    connecting.engine = EngineKind::kUring;
    connecting.stream = options;
    Connect(*loop_, peers_.local(), connecting,
            [&](absl::StatusOr<StreamPtr> made) { stream = *std::move(made); });
    EXPECT_TRUE(PollUntil([&] { return stream != nullptr; }));
    return stream;
  }
  void Break(int error) {
    sys_.Set({.call = Call::kRingEnter, .error = error, .nth = 1, .persistent = true});
  }
  // Lets the library find that so much time has passed, in which it has tried again.
  void Pass(absl::Duration time) {
    for (int i = 0; i < 50; ++i) {
      sys_.AdvanceClock(absl::ToInt64Nanoseconds(time / 50));
      loop_->Poll();
    }
  }
  void RunFor(absl::Duration time) {
    Timer end(*loop_);
    end.Arm(time, [this] { loop_->Stop(); });
    loop_->Run();
  }
  void Read() {
    stream_->ReadReady([this](absl::StatusOr<Buffer> data) {
      end_ = data.status();
      if (!data.ok()) return;
      received_ += data->view();
      Read();
    });
  }

  static constexpr char kDisable[] = "PENSTOCK_URING_DISABLE";

  PlainSocket peers_;
  PlainSocket peer_;
  std::string received_;
  absl::Status end_;  // of what was received
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_BREAKING_RING_H_
