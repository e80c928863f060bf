// Calls that fail for reasons that are no peer's: a policy that lets nobody in, descriptors that
// another thread takes, memory. On epoll, where each is a system call.
#include <gtest/gtest.h>
#include <penstock/listener.h>
#include <penstock/loop.h>

#include <cerrno>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/sys.h"
#include "engine/loop_core.h"
#include "testing/fate.h"
#include "testing/harness.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

// The real kernel, but for what accept says, and for a process that has no descriptor but the one
// that the loop keeps in reserve.
class ScarceSys : public Sys {
 public:
  int Accept(int fd, sockaddr* address, socklen_t* length) override {
    ++accepts;
    if (error != 0) return -error;
    return exhausted && (in_reserve || taken) ? -EMFILE : Sys::Accept(fd, address, length);
  }
  int64_t Now() override { return stopped_at != 0 ? stopped_at : Sys::Now(); }
  int64_t Receive(int fd, void* data, size_t size) override {
    return receive_error != 0 ? -receive_error : Sys::Receive(fd, data, size);
  }
  int OpenReserve() override {
    if (taken) return -EMFILE;
    in_reserve = true;
    return reserve = Sys::OpenReserve();
  }
  int Close(int fd) override {
    if (in_reserve && fd == reserve) {
      in_reserve = false;
      // Another thread is quicker than the accept that was to have it.
      if (rival) taken = true;
    }
    return Sys::Close(fd);
  }

  bool exhausted = false;
  bool rival = false;
  bool taken = false;
  bool in_reserve = false;
  int reserve = -1;
  int error = 0;  // of every accept
  int receive_error = 0;
  int accepts = 0;
  int64_t stopped_at = 0;  // the clock, in ns
};

class SocketErrorsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    LoopOptions options;
    options.engine = EngineKind::kEpoll;
    options.log = [this](LogSeverity, const char*, int, std::string_view text) {
      log_.emplace_back(text);
    };
    absl::StatusOr<std::unique_ptr<Loop>> loop =
        LoopCore::CreateLoop(std::move(options), {.sys = &sys_, .engines = {}});
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), {},
                         [this](StreamPtr stream) { accepted_.push_back(std::move(stream)); });
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
  }
  void TearDown() override {
    accepted_.clear();
    listener_ = nullptr;
    loop_ = nullptr;
  }
  bool Drive(absl::FunctionRef<bool()> done) {
    Loop* const driven[] = {loop_.get()};
    return DriveLoops(driven, done);
  }
  PlainSocket Peer() { return PlainSocket::Connect(listener_->address()); }
  static bool Ended(PlainSocket& peer) {
    char byte;
    const int64_t result = peer.Receive(&byte, 1);
    return result == 0 || result == -ECONNRESET;
  }

  ScarceSys sys_;
  std::vector<std::string> log_;
  std::unique_ptr<Loop> loop_;
  std::unique_ptr<Listener> listener_;
  std::vector<StreamPtr> accepted_;
};

TEST_F(SocketErrorsTest, AReserveThatSomebodyElseTookIsMadeAnew) {
  sys_.exhausted = sys_.rival = true;
  PlainSocket first = Peer();
  ASSERT_TRUE(Drive([&] { return sys_.taken && listener_->stats().paused; }));
  sys_.exhausted = sys_.rival = sys_.taken = false;
  accepted_.clear();
  ASSERT_TRUE(Drive([&] { return !listener_->stats().paused; }));
  PlainSocket second = Peer();
  ASSERT_TRUE(Drive([&] { return !accepted_.empty(); }));
  // Peers are told at once again.
  sys_.exhausted = true;
  PlainSocket third = Peer();
  EXPECT_TRUE(Drive([&] { return Ended(third); }));
}

TEST_F(SocketErrorsTest, APolicyThatLetsNobodyInIsNotAskedAllTheTime) {
  sys_.error = EPERM;
  PlainSocket peer = Peer();
  ASSERT_TRUE(Drive([&] { return listener_->stats().paused; }));
  ASSERT_FALSE(log_.empty());
  EXPECT_NE(log_[0].find("(EPERM)"), std::string::npos) << log_[0];
  // Some 10, 20, 40 ms apart: each look is a pause over.
  const int before = sys_.accepts;
  ASSERT_TRUE(Drive([&] { return sys_.accepts >= before + 3; }));
  EXPECT_EQ(listener_->stats().errors, static_cast<uint64_t>(sys_.accepts));
  EXPECT_LE(loop_->Snapshot().turns, 100u) << "some three for each look are enough";
  sys_.error = 0;
  EXPECT_TRUE(Drive([&] { return !accepted_.empty(); }));
}

// Each stream that goes has the listener try again, and find no descriptor.
TEST_F(SocketErrorsTest, APauseIsLoggedOnceASecondHoweverManyThereAre) {
  constexpr size_t kStreams = 8;
  std::vector<PlainSocket> peers;
  for (size_t i = 0; i < kStreams; ++i) peers.push_back(Peer());
  ASSERT_TRUE(Drive([&] { return accepted_.size() == kStreams; }));
  sys_.stopped_at = sys_.Now();
  sys_.error = EMFILE;
  const auto pause_by_one_that_goes = [&] {
    const uint64_t before = listener_->stats().fd_exhausted;
    accepted_.pop_back();
    return Drive([&] { return listener_->stats().fd_exhausted > before; });
  };
  PlainSocket waiting = Peer();
  ASSERT_TRUE(Drive([&] { return listener_->stats().fd_exhausted > 0; }));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(pause_by_one_that_goes());
  ASSERT_EQ(log_.size(), 1u);
  EXPECT_EQ(log_[0].find("more times"), std::string::npos) << log_[0];
  sys_.stopped_at += 1'000'000'000;
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(pause_by_one_that_goes());
  ASSERT_EQ(log_.size(), 2u);
  EXPECT_NE(log_[1].find("paused 3 more times"), std::string::npos) << log_[1];
  sys_.error = 0;
  accepted_.pop_back();
  EXPECT_TRUE(Drive([&] { return !listener_->stats().paused; }));
}

TEST_F(SocketErrorsTest, WhatOnePeerDidIsNoReasonToPause) {
  for (const int error : {ECONNABORTED, EPROTO, EHOSTUNREACH}) {
    sys_.error = error;
    accepted_.clear();
    const int before = sys_.accepts;
    PlainSocket peer = Peer();
    ASSERT_TRUE(Drive([&] { return sys_.accepts > before; }));
    EXPECT_FALSE(listener_->stats().paused) << error;
    sys_.error = 0;
    EXPECT_TRUE(Drive([&] { return !accepted_.empty(); })) << error;
  }
}

TEST_F(SocketErrorsTest, AReceiveThatFailsByNoPeersDoingIsAFault) {
  for (const int error : {ENOMEM, ECONNRESET, ETIMEDOUT}) {
    accepted_.clear();
    PlainSocket peer = Peer();
    ASSERT_TRUE(Drive([&] { return !accepted_.empty(); }));
    const uint64_t before = loop_->Snapshot().faults;
    absl::Status end;
    accepted_[0]->ReadReady([&](absl::StatusOr<Buffer> data) { end = data.status(); });
    sys_.receive_error = error;
    peer.Send("x");
    ASSERT_TRUE(Drive([&] { return !end.ok(); }));
    sys_.receive_error = 0;
    EXPECT_EQ(loop_->Snapshot().faults - before, error == ENOMEM ? 1u : 0u) << end;
  }
}

}  // namespace
}  // namespace penstock::internal
