// When the process, the pool or the system has no more to give: descriptors, locked memory, pool
// bytes, io_uring itself. Each is answered as listener.h and loop.h say, and never in silence.
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/strings/str_join.h"
#include "testing/child_process.h"
#include "testing/environment.h"
#include "testing/fate.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

void LimitTo(int resource, rlim_t value) {
  rlimit limit;
  ASSERT_EQ(::getrlimit(static_cast<__rlimit_resource>(resource), &limit), 0);
  limit.rlim_cur = value;
  ASSERT_EQ(::setrlimit(static_cast<__rlimit_resource>(resource), &limit), 0);
}

LoopOptions Quietly(EngineKind engine, std::vector<std::string>* log = nullptr) {
  LoopOptions options;
  options.engine = engine;
  options.log = [log](LogSeverity, const char*, int, std::string_view message) {
    if (log != nullptr) log->push_back(std::string(message));
  };
  return options;
}

class DescriptorTest : public ::testing::TestWithParam<EngineKind> {
 protected:
  void SetUp() override {
    if (const std::string why = MissingEngine(GetParam()); !why.empty()) GTEST_SKIP() << why;
  }
};

// The library's server against peers in the parent's place: both in this child, whose peers were
// made before the limit came down.
void ServeWithFewDescriptors(EngineKind engine) {
  std::vector<std::string> log;
  absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(Quietly(engine, &log));
  ASSERT_TRUE(loop.ok()) << loop.status();
  Loop* const loops[] = {loop->get()};
  std::vector<StreamPtr> accepted;
  absl::StatusOr<std::unique_ptr<Listener>> listener =
      Listener::Listen(**loop, *SocketAddress::Parse("127.0.0.1:0"), {},
                       [&](StreamPtr stream) { accepted.push_back(std::move(stream)); });
  ASSERT_TRUE(listener.ok()) << listener.status();
  // Opened before descriptors run out; no turn yet, for an armed io_uring accept keeps the limit of
  // its time (io_uring/net.c, io_accept_prep).
  EXPECT_GE((*loop)->fd(), 0);
  std::vector<PlainSocket> peers;
  for (int i = 0; i < 60; ++i) peers.push_back(PlainSocket::Connect((*listener)->address()));
  // Room for a handful of streams above what is open already.
  LimitTo(RLIMIT_NOFILE, static_cast<rlim_t>(peers.back().fd()) + 8);
  ASSERT_TRUE(DriveLoops(loops, [&] { return (*listener)->stats().fd_exhausted > 0; }));
  EXPECT_TRUE((*listener)->stats().paused);
  EXPECT_GT((*loop)->Snapshot().fd_exhausted, 0u);
  ASSERT_FALSE(log.empty());
  EXPECT_NE(log[0].find("descriptors"), std::string::npos) << log[0];
  const size_t served = accepted.size();
  EXPECT_GT(served, 0u);
  EXPECT_LT(served, peers.size());
  // Those that cannot be served are told, one each time accept meets the limit.
  const auto told = [&peers] {
    return std::ranges::count_if(peers, [](PlainSocket& peer) {
      char byte;
      const int64_t result = peer.Receive(&byte, 1);
      return result == 0 || result == -ECONNRESET;
    });
  };
  ASSERT_TRUE(DriveLoops(loops, [&] { return told() >= 2; }));
  EXPECT_GE((*listener)->stats().refused, 2u);
  EXPECT_EQ((*loop)->Snapshot().accepts_refused, (*listener)->stats().refused);
  EXPECT_EQ(accepted.size(), served) << "nothing could be accepted meanwhile";
  // Streams that go make room, and the listener goes on by itself.
  accepted.clear();
  ASSERT_TRUE(DriveLoops(loops, [&] { return !accepted.empty(); }));
  // With the limit lifted everyone left is served.
  LimitTo(RLIMIT_NOFILE, 1024);
  const auto unserved = [&] {
    return peers.size() - static_cast<size_t>(told()) - accepted.size();
  };
  ASSERT_TRUE(DriveLoops(loops, [&] { return unserved() == 0; })) << unserved();
  ASSERT_TRUE(DriveLoops(loops, [&] { return !(*listener)->stats().paused; }));
  // It serves as before.
  accepted.clear();
  PlainSocket last = PlainSocket::Connect((*listener)->address());
  ASSERT_TRUE(DriveLoops(loops, [&] { return !accepted.empty(); }));
  EXPECT_EQ((*loop)->Snapshot().faults, 0u) << absl::StrJoin(log, "\n");
}

TEST_P(DescriptorTest, AListenerPausesTellsPeersAndResumesByItself) {
  RunInChild([] { ServeWithFewDescriptors(GetParam()); });
}

// Thirty-two in all, as a small container gives.
TEST_P(DescriptorTest, ThirtyTwoDescriptorsServeAsManyAsTheyCan) {
  RunInChild([] {
    for (int fd = 3; fd < 1024; ++fd) ::close(fd);
    LimitTo(RLIMIT_NOFILE, 32);
    absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(Quietly(GetParam()));
    ASSERT_TRUE(loop.ok()) << loop.status();
    Loop* const loops[] = {loop->get()};
    std::vector<StreamPtr> accepted;
    absl::StatusOr<std::unique_ptr<Listener>> listener =
        Listener::Listen(**loop, *SocketAddress::Parse("127.0.0.1:0"), {},
                         [&](StreamPtr stream) { accepted.push_back(std::move(stream)); });
    ASSERT_TRUE(listener.ok()) << listener.status();
    std::vector<PlainSocket> peers;
    while (peers.empty() || peers.back().valid()) {
      if (peers.size() % 4 == 0) SettleLoops(loops);
      peers.push_back(PlainSocket::Connect((*listener)->address()));
    }
    peers.pop_back();
    SettleLoops(loops);
    EXPECT_GE(accepted.size(), 4u);
    // A connection of our own is refused in words.
    Fate connected;
    Connect(**loop, (*listener)->address(), {},
            [done = connected.OnDone()](absl::StatusOr<StreamPtr> stream) mutable {
              std::move(done)(stream.status());
            });
    ASSERT_TRUE(DriveLoops(loops, [&] { return connected.ended(); }));
    EXPECT_TRUE(absl::IsResourceExhausted(connected.status())) << connected.status();
    EXPECT_NE(connected.status().message().find("EMFILE"), std::string::npos) << connected.status();
    // So is a second listener, and a second loop.
    EXPECT_TRUE(absl::IsResourceExhausted(
        Listener::Listen(**loop, *SocketAddress::Parse("127.0.0.1:0"), {}, [](StreamPtr) {
        }).status()));
    const absl::Status second = Loop::Create(Quietly(GetParam())).status();
    EXPECT_TRUE(absl::IsResourceExhausted(second)) << second;
    const absl::Status automatic = Loop::Create(Quietly(EngineKind::kAuto)).status();
    EXPECT_TRUE(absl::IsResourceExhausted(automatic)) << automatic;
    peers.clear();
    accepted.clear();
    SettleLoops(loops);
    peers.push_back(PlainSocket::Connect((*listener)->address()));
    ASSERT_TRUE(DriveLoops(loops, [&] { return !accepted.empty(); }));
  });
}

INSTANTIATE_TEST_SUITE_P(Engines, DescriptorTest,
                         ::testing::Values(EngineKind::kEpoll, EngineKind::kUring),
                         [](const ::testing::TestParamInfo<EngineKind>& info) {
                           return std::string(info.param == EngineKind::kEpoll ? "Epoll" : "Uring");
                         });

// --- Which engine a loop gets ---

class EngineAbsenceTest : public ::testing::TestWithParam<int> {
 protected:
  // The tests choose by themselves, whatever the surroundings say.
  void SetUp() override { ::unsetenv("PENSTOCK_ENGINE"); }
};

TEST_P(EngineAbsenceTest, AutoFallsBackToEpollAndSaysWhy) {
  RunInChild([] {
    ForbidUring(GetParam());
    std::vector<std::string> log;
    absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(Quietly(EngineKind::kAuto, &log));
    ASSERT_TRUE(loop.ok()) << loop.status();
    EXPECT_EQ((*loop)->engine(), EngineKind::kEpoll);
    EXPECT_NE((*loop)->engine_reason().find("io_uring"), std::string::npos)
        << (*loop)->engine_reason();
    EXPECT_NE((*loop)->engine_reason().find(::strerrorname_np(GetParam())), std::string::npos)
        << (*loop)->engine_reason();
    ASSERT_EQ(log.size(), 1u);
    EXPECT_NE(log[0].find("epoll"), std::string::npos) << log[0];
    const absl::Status other = (*loop)->EnableEngine(EngineKind::kUring);
    EXPECT_TRUE(absl::IsUnimplemented(other)) << other;
  });
}

TEST_P(EngineAbsenceTest, AskedForByNameItIsUnimplementedAndSaysWhy) {
  RunInChild([] {
    ForbidUring(GetParam());
    const absl::Status status = Loop::Create(Quietly(EngineKind::kUring)).status();
    EXPECT_TRUE(absl::IsUnimplemented(status)) << status;
    EXPECT_NE(status.message().find(::strerrorname_np(GetParam())), std::string::npos) << status;
    ::setenv("PENSTOCK_ENGINE", "uring", 1);
    const absl::Status named = Loop::Create(Quietly(EngineKind::kAuto)).status();
    EXPECT_TRUE(absl::IsUnimplemented(named)) << "a name is a name, wherever it comes from";
    EXPECT_TRUE(Loop::Create(Quietly(EngineKind::kEpoll)).ok());
  });
}

INSTANTIATE_TEST_SUITE_P(Seccomp, EngineAbsenceTest, ::testing::Values(EPERM, ENOSYS),
                         [](const ::testing::TestParamInfo<int>& info) {
                           return std::string(::strerrorname_np(info.param));
                         });

TEST(EngineOverride, TheEnvironmentChoosesForAutoAlone) {
  RunInChild([] {
    ::setenv("PENSTOCK_ENGINE", "epoll", 1);
    absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(Quietly(EngineKind::kAuto));
    ASSERT_TRUE(loop.ok()) << loop.status();
    EXPECT_EQ((*loop)->engine(), EngineKind::kEpoll);
    ::setenv("PENSTOCK_ENGINE", "", 1);
    EXPECT_TRUE(Loop::Create(Quietly(EngineKind::kAuto)).ok());
    ::setenv("PENSTOCK_ENGINE", "kqueue", 1);
    const absl::Status bad = Loop::Create(Quietly(EngineKind::kAuto)).status();
    EXPECT_TRUE(absl::IsInvalidArgument(bad)) << bad;
    for (const char* word : {"PENSTOCK_ENGINE", "kqueue", "epoll", "uring"}) {
      EXPECT_NE(bad.message().find(word), std::string::npos) << bad;
    }
    // A caller that names an engine gets it, whatever the environment says.
    EXPECT_TRUE(Loop::Create(Quietly(EngineKind::kEpoll)).ok());
  });
}

TEST(LockedMemory, WithoutAnyALoopWorksOrSaysWhyNotAndNeverFallsBackInSilence) {
  if (const std::string why = MissingEngine(EngineKind::kUring); !why.empty()) {
    GTEST_SKIP() << why;
  }
  RunInChild([] {
    ::unsetenv("PENSTOCK_ENGINE");
    LimitTo(RLIMIT_MEMLOCK, 0);
    // Root may lock what it likes (capabilities(7), CAP_IPC_LOCK).
    if (::geteuid() == 0) {
      ASSERT_EQ(::setresuid(65534, 65534, 65534), 0);
    }
    for (EngineKind asked : {EngineKind::kUring, EngineKind::kAuto}) {
      absl::StatusOr<std::unique_ptr<Loop>> loop = Loop::Create(Quietly(asked));
      if (loop.ok()) {
        EXPECT_EQ((*loop)->engine(), EngineKind::kUring) << (*loop)->engine_reason();
        Fate ran;
        (*loop)->Post(ran.OnEvent());
        Loop* const loops[] = {loop->get()};
        EXPECT_TRUE(DriveLoops(loops, [&] { return ran.ended(); }));
      } else {
        EXPECT_TRUE(absl::IsResourceExhausted(loop.status())) << loop.status();
      }
    }
    EXPECT_TRUE(Loop::Create(Quietly(EngineKind::kEpoll)).ok());
  });
}

}  // namespace
}  // namespace penstock::internal
