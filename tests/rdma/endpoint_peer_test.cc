// The peer of an endpoint is killed (SIGKILL) before and after each piece of its control stream
// that it sends, and before each that it would hear, from its first word to its last; over the
// stream alone and, where this machine has two RDMA devices (tests/vm/run.py --rdma), over these.
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>
#include <penstock/rdma.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "rdma/fabric.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

constexpr int kEchoes = 3;

// Passes everything on to the stream below, and kills the process at a step: a write that is about
// to be made, one that the kernel has taken, bytes that have come.
class MortalStream final : public Stream {
 public:
  MortalStream(StreamPtr below, int lives) : below_(std::move(below)), lives_(lives) {}

  void ReadReady(ReadCallback done) override {
    below_->ReadReady([this, done = std::move(done)](absl::StatusOr<Buffer> bytes) mutable {
      Step();
      std::move(done)(std::move(bytes));
    });
  }
  void CancelRead() override { below_->CancelRead(); }
  void Write(BufferChain data, DoneCallback done) override {
    Step();
    below_->Write(std::move(data), [this, done = std::move(done)](absl::Status status) mutable {
      Step();
      if (done) std::move(done)(status);
    });
  }
  bool writable() const override { return below_->writable(); }
  void NotifyWritable(DoneCallback done) override { below_->NotifyWritable(std::move(done)); }
  void ShutdownWrite(DoneCallback done) override { below_->ShutdownWrite(std::move(done)); }
  void ShutdownRead() override { below_->ShutdownRead(); }
  void Abort() override { below_->Abort(); }
  void SetReadDeadline(absl::Duration after) override { below_->SetReadDeadline(after); }
  void SetWriteDeadline(absl::Duration after) override { below_->SetWriteDeadline(after); }
  void SetIdleDeadline(absl::Duration after) override { below_->SetIdleDeadline(after); }
  SocketAddress peer() const override { return below_->peer(); }
  SocketAddress local() const override { return below_->local(); }
  Loop& loop() const override { return below_->loop(); }
  StreamStats stats() const override { return below_->stats(); }
  SendBounds send_bounds() const override { return below_->send_bounds(); }

 private:
  void Step() {
    if (lives_-- == 0) ::raise(SIGKILL);
  }

  StreamPtr below_;
  int lives_;
};

enum class Over { kStream, kDevices };

struct PeerCase {
  Over over;
  bool peer_connects;  // the one that is killed is the active side
};

// Of both processes.
RdmaOptions Options(Loop& loop, const std::string& device) {
  RdmaOptions options;
  options.open_deadline = options.ready_deadline = absl::Seconds(60);
  options.unsealed_lanes = true;  // beside a stream that is not one of Penstock's own
  if (device.empty()) return options;
  RdmaDeviceOptions of;
  of.name = device;
  of.gid_index = 1;  // of rdma_rxe, its IPv4 address
  of.receives = 256;
  options.device = RdmaDevice::Open(loop, of).value();
  return options;
}

// The end of a connection to `address`, or, without one, of what a listener accepts, whose address
// goes to `told`.
StreamPtr OneStream(Loop& loop, const std::string& address, int told) {
  StreamPtr stream;
  std::unique_ptr<Listener> listener;
  const auto take = [&](StreamPtr end) {
    stream = std::move(end);
    loop.Stop();
  };
  if (address.empty()) {
    listener = Listener::Listen(loop, *SocketAddress::Parse("127.0.0.1:0"), {}, take).value();
    const std::string mine = listener->address().ToString();
    if (::write(told, mine.data(), mine.size()) < 0) std::abort();
  } else {
    Connect(loop, *SocketAddress::Parse(address), {},
            [&](absl::StatusOr<StreamPtr> end) { take(std::move(end).value()); });
  }
  loop.Run();
  return stream;
}

// Answers every message until the other side ends or until it is killed.
[[noreturn]] void BeThePeer(const PeerCase& how, const std::string& device, int lives, int told) {
  std::unique_ptr<Loop> loop = *Loop::Create();
  std::string address(64, '\0');
  if (how.peer_connects) {
    const ssize_t got = ::read(told, address.data(), address.size());
    if (got <= 0) std::abort();
    address.resize(static_cast<size_t>(got));
  } else {
    address.clear();
  }
  const RdmaOptions options = Options(*loop, device);
  StreamPtr stream = std::make_unique<MortalStream>(OneStream(*loop, address, told), lives);
  std::unique_ptr<RdmaEndpoint> endpoint = how.peer_connects
                                               ? RdmaEndpoint::Connect(std::move(stream), options)
                                               : RdmaEndpoint::Accept(std::move(stream), options);
  const std::function<void()> echo = [&] {
    endpoint->Receive([&](absl::StatusOr<BufferChain> message) {
      if (!message.ok()) return loop->Stop();
      endpoint->Send(*std::move(message));
      echo();
    });
  };
  echo();
  loop->Run();
  ::_exit(0);
}

class EndpointPeerTest : public ::testing::TestWithParam<PeerCase> {
 protected:
  void SetUp() override {
    if (GetParam().over == Over::kStream) return;
    const auto names = SystemFabric().ListDevices();
    if (!names.ok()) GTEST_SKIP() << names.status();
    if (names->size() < 2) {
      GTEST_SKIP() << "two RDMA devices are needed, here are " << names->size();
    }
    mine_ = (*names)[0];
    peers_ = (*names)[1];
  }
  // Whether the peer, killed at its step `lives`, was.
  void Talk(int lives, bool* killed);

  std::string mine_, peers_;
};

void EndpointPeerTest::Talk(int lives, bool* killed) {
  int sockets[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) BeThePeer(GetParam(), peers_, lives, sockets[1]);
  ::close(sockets[1]);

  std::unique_ptr<Loop> loop = *Loop::Create();
  const RdmaOptions options = Options(*loop, mine_);
  std::string address;
  if (!GetParam().peer_connects) {
    address.resize(64);
    const ssize_t got = ::read(sockets[0], address.data(), address.size());
    ASSERT_GT(got, 0);
    address.resize(static_cast<size_t>(got));
  }
  StreamPtr stream = OneStream(*loop, address, sockets[0]);
  std::unique_ptr<RdmaEndpoint> endpoint = GetParam().peer_connects
                                               ? RdmaEndpoint::Accept(std::move(stream), options)
                                               : RdmaEndpoint::Connect(std::move(stream), options);
  std::optional<absl::Status> open, closed;
  int begun = 0, sent = 0, echoes = 0;
  absl::Status failed;
  const auto stop = [&] {
    if (open.has_value() && sent == begun && closed.has_value()) loop->Stop();
  };
  endpoint->NotifyOpen([&](absl::Status status) {
    open = status;
    if (status.ok() && !mine_.empty()) {
      EXPECT_TRUE(endpoint->stats().over_device) << endpoint->stats().fallback;
    }
    stop();
  });
  const std::function<void()> talk = [&] {
    ++begun;
    endpoint->Send(*loop->pool().Copy(PatternBytes(1, 0, 20'000)), [&](absl::Status status) {
      ++sent;
      if (!status.ok()) {
        failed = status;
        EXPECT_EQ(OutcomeOf(status) == RdmaOutcome::kNeverPosted, !open.has_value() || !open->ok())
            << status;
      }
      stop();
    });
    endpoint->Receive([&](absl::StatusOr<BufferChain> message) {
      if (!message.ok()) {
        EXPECT_TRUE(absl::IsUnavailable(message.status())) << message.status();
        closed = message.status();
        return stop();
      }
      EXPECT_TRUE(message->ToString() == PatternBytes(1, 0, 20'000));
      if (++echoes < kEchoes) return talk();
      endpoint->Close([&](absl::Status status) {
        closed = status;
        stop();
      });
    });
  };
  talk();
  Timer limit(*loop);
  limit.Arm(absl::Seconds(120), [&] { loop->Stop(); });
  loop->Run();
  EXPECT_TRUE(open.has_value() && closed.has_value()) << echoes << " echoes";
  EXPECT_EQ(sent, begun);
  endpoint = nullptr;

  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  *killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  if (!*killed) {
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    EXPECT_TRUE(closed->ok()) << *closed;
    EXPECT_EQ(echoes, kEchoes);
  }
  ::close(sockets[0]);
}

// Whoever speaks to a peer that is gone learns it by the end of the stream, exactly once for each
// operation, and what was never posted is told from what may have come.
TEST_P(EndpointPeerTest, ThatIsKilledAtAnyStepEndsTheEndpoint) {
  bool killed = true;
  int step = 0;
  for (; killed; ++step) {
    SCOPED_TRACE(absl::StrCat("killed at step ", step));
    ASSERT_NO_FATAL_FAILURE(Talk(step, &killed));
    if (HasFailure()) return;
  }
  // Its part of the handshake alone is a message out and one or two in.
  EXPECT_GT(step, 5);
}

std::string PeerName(const ::testing::TestParamInfo<PeerCase>& info) {
  return absl::StrCat(info.param.peer_connects ? "Active" : "Passive",
                      info.param.over == Over::kStream ? "Stream" : "Machine");
}

INSTANTIATE_TEST_SUITE_P(Killed, EndpointPeerTest,
                         ::testing::Values(PeerCase{Over::kStream, false},
                                           PeerCase{Over::kStream, true},
                                           PeerCase{Over::kDevices, false},
                                           PeerCase{Over::kDevices, true}),
                         PeerName);

}  // namespace
}  // namespace penstock::internal
