// The contract of listener.h.
#include <penstock/listener.h>

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/bare_peer.h"
#include "testing/harness.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

// This process's socket that listens on `address`.
int ListeningDescriptor(const SocketAddress& address) {
  constexpr int kDescriptorsMax = 4096;
  for (int fd = 0; fd < kDescriptorsMax; ++fd) {
    int listens = 0;
    socklen_t size = sizeof listens;
    sockaddr_storage name;
    socklen_t length = sizeof name;
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens != 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) == 0 &&
        SocketAddress::FromSockaddr(reinterpret_cast<sockaddr*>(&name), length) == address) {
      return fd;
    }
  }
  return -1;
}

class ListenerTest : public Harness {
 protected:
  using Peers = std::vector<std::unique_ptr<BarePeer>>;

  // Starts `count` bare connections to `listener`.
  Peers Dial(const Listener& listener, int count) {
    Peers peers;
    for (int i = 0; i < count; ++i) {
      peers.push_back(NewPeer(environment(), listener.address()));
      EXPECT_NE(peers.back(), nullptr);
    }
    return peers;
  }
  // Each has had an orderly end, and no byte before it.
  static void ExpectServed(Peers& peers) {
    for (auto& peer : peers) {
      EXPECT_TRUE(peer->AwaitInput());
      int end = -1;
      EXPECT_EQ(peer->ReceiveAll(&end), "");
      EXPECT_EQ(end, 0);
    }
  }

  absl::Status ListenError(const SocketAddress& address, ListenOptions options = {}) {
    options.engine = environment().listen_engine();
    return Listener::Listen(loop(), address, std::move(options), [](StreamPtr) {}).status();
  }
};

TEST_P(ListenerTest, SaysThePortTheKernelChose) {
  std::unique_ptr<Listener> listener = Listen();
  if (is_unix()) {
    EXPECT_FALSE(listener->address().path().empty());
  } else {
    EXPECT_NE(listener->address().port(), 0);
  }
  EXPECT_EQ(loop().Snapshot().listeners, 1u);
  EXPECT_FALSE(listener->stats().paused);
}

TEST_P(ListenerTest, TakesWhatWaitsInTheBacklogAndWhatComesLater) {
  std::unique_ptr<Listener> listener = Listen();
  Peers early = Dial(*listener, 20);
  EXPECT_TRUE(accepted().empty()) << "on_accept ran outside a turn";
  ASSERT_TRUE(Drive([this] { return accepted().size() == 20; }));
  Peers late = Dial(*listener, 20);
  ASSERT_TRUE(Drive([this] { return accepted().size() == 40; }));
  EXPECT_EQ(listener->stats().accepted, 40u);
  EXPECT_EQ(listener->stats().open, 40u);
  EXPECT_EQ(loop().Snapshot().accepted, 40u);
  EXPECT_EQ(loop().Snapshot().open, 40u);
  accepted().clear();
  ASSERT_TRUE(Drive([&] { return listener->stats().open == 0; }));
}

TEST_P(ListenerTest, StreamsLiveOnWhenTheListenerGoes) {
  std::unique_ptr<Listener> listener = Listen();
  Peers peers = Dial(*listener, 1);
  ASSERT_TRUE(Drive([this] { return accepted().size() == 1; }));
  listener.reset();
  Settle();
  ASSERT_EQ(peers[0]->Send("ping"), 4);
  EXPECT_EQ(ReadUpTo(*accepted().front(), 4).data, "ping");
  EXPECT_EQ(loop().Snapshot().listeners, 0u);
}

TEST_P(ListenerTest, WhatIsStillInTheBacklogWhenTheListenerGoesIsReset) {
  std::unique_ptr<Listener> listener = Listen();
  listener->Pause();
  Settle();
  Peers peers = Dial(*listener, 3);
  Settle();
  const SocketAddress address = listener->address();
  listener.reset();
  Settle();
  for (auto& peer : peers) {
    int end = -1;
    peer->ReceiveAll(&end);
    EXPECT_TRUE(end == ECONNRESET || (is_unix() && end == 0)) << "errno " << end;
  }
  EXPECT_TRUE(accepted().empty());
  // And nobody listens there any more.
  EXPECT_TRUE(IsReset(ConnectTo(address, Connecting()).status()));
}

TEST_P(ListenerTest, MayBeDestroyedInItsOwnCallback) {
  std::unique_ptr<Listener> listener;
  ListenOptions options;
  options.engine = environment().listen_engine();
  int calls = 0;
  auto witness = std::make_shared<int>(0);
  absl::StatusOr<std::unique_ptr<Listener>> made =
      Listener::Listen(loop(), environment().NewAddress(), options, [&, witness](StreamPtr stream) {
        ++calls;
        listener.reset();
        ++*witness;  // the callable outlives its run
        accepted().push_back(std::move(stream));
      });
  ASSERT_TRUE(made.ok()) << made.status();
  listener = *std::move(made);
  Peers peers = Dial(*listener, 5);
  ASSERT_TRUE(Drive([&] { return calls > 0; }));
  Settle();
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(*witness, 1);
  EXPECT_EQ(witness.use_count(), 1) << "the callback was not destroyed with its listener";
}

TEST_P(ListenerTest, AnAcceptedStreamMayBeDroppedAtOnce) {
  ListenOptions options;
  options.engine = environment().listen_engine();
  int calls = 0;
  absl::StatusOr<std::unique_ptr<Listener>> listener =
      Listener::Listen(loop(), environment().NewAddress(), options, [&](StreamPtr) { ++calls; });
  ASSERT_TRUE(listener.ok()) << listener.status();
  Peers peers = Dial(**listener, 50);
  ASSERT_TRUE(Drive([&] { return calls == 50 && (*listener)->stats().open == 0; }));
  ExpectServed(peers);
}

TEST_P(ListenerTest, PauseLeavesPeersInTheBacklogAndResumeTakesThem) {
  std::unique_ptr<Listener> listener = Listen();
  listener->Pause();
  EXPECT_TRUE(listener->stats().paused);
  EXPECT_EQ(loop().Snapshot().listeners_paused, 1u);
  Settle();
  Peers peers = Dial(*listener, 10);
  Settle();
  EXPECT_TRUE(accepted().empty());
  listener->Resume();
  EXPECT_FALSE(listener->stats().paused);
  EXPECT_EQ(loop().Snapshot().listeners_paused, 0u);
  ASSERT_TRUE(Drive([this] { return accepted().size() == 10; }));
  // Again, the other way round and repeated: each is what it says whatever came before.
  listener->Resume();
  listener->Pause();
  listener->Pause();
  listener->Resume();
  Peers more = Dial(*listener, 10);
  ASSERT_TRUE(Drive([this] { return accepted().size() == 20; }));
}

TEST_P(ListenerTest, PauseInTheCallbackHoldsBackTheNext) {
  std::unique_ptr<Listener> listener;
  ListenOptions options;
  options.engine = environment().listen_engine();
  absl::StatusOr<std::unique_ptr<Listener>> made =
      Listener::Listen(loop(), environment().NewAddress(), options, [&](StreamPtr stream) {
        accepted().push_back(std::move(stream));
        listener->Pause();
      });
  ASSERT_TRUE(made.ok()) << made.status();
  listener = *std::move(made);
  Peers peers = Dial(*listener, 5);
  for (size_t i = 1; i <= 5; ++i) {
    ASSERT_TRUE(Drive([&] { return accepted().size() >= i; }));
    Settle();
    EXPECT_EQ(accepted().size(), i) << "one was taken while paused";
    listener->Resume();
  }
  Settle();
  EXPECT_FALSE(listener->stats().paused);
}

TEST_P(ListenerTest, AtItsLimitPeersWaitUntilAStreamGoes) {
  ListenOptions options;
  options.connections_max = 3;
  std::unique_ptr<Listener> listener = Listen(options);
  Peers peers = Dial(*listener, 9);
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(Drive([this] { return accepted().size() == 3; }));
    Settle();
    EXPECT_EQ(accepted().size(), 3u);
    EXPECT_EQ(listener->stats().open, 3u);
    EXPECT_TRUE(listener->stats().paused);
    for (int i = 0; i < 3; ++i) {
      // One by one: each makes room for one.
      accepted().pop_front();
      if (round < 2) {
        ASSERT_TRUE(Drive([this] { return accepted().size() == 3; }));
      }
    }
  }
  ASSERT_TRUE(Drive([&] { return !listener->stats().paused; }));
  // Nobody was turned away.
  EXPECT_EQ(listener->stats().accepted, 9u);
  ExpectServed(peers);
}

TEST_P(ListenerTest, AtTheLimitOfTheLoopPeersWaitAsWell) {
  LoopOptions limited;
  limited.connections_max = 4;
  RemakeLoop(std::move(limited));
  std::unique_ptr<Listener> first = Listen();
  std::unique_ptr<Listener> second = Listen();
  Peers peers = Dial(*first, 4);
  for (auto& peer : Dial(*second, 4)) peers.push_back(std::move(peer));
  size_t served = 0;
  while (served < 8) {
    ASSERT_TRUE(Drive([&] { return !accepted().empty(); }));
    Settle();
    EXPECT_LE(loop().Snapshot().open, 4u);
    served += accepted().size();
    accepted().clear();
  }
  ExpectServed(peers);
}

// Nobody is accepted by such a socket again, and it reports its end for ever.
TEST_P(ListenerTest, ASocketThatOthersHaveShutDownDoesNotKeepTheLoopAwake) {
  if (!environment().has_kernel()) GTEST_SKIP() << "about the kernel's sockets";
  std::unique_ptr<Listener> listener = Listen();
  Settle();
  const int fd = ListeningDescriptor(listener->address());
  ASSERT_GE(fd, 0);
  ASSERT_EQ(::shutdown(fd, SHUT_RDWR), 0);
  // io_uring says nothing of a Unix socket.
  if (!is_unix() || environment().listen_engine() == EngineKind::kEpoll) {
    ASSERT_TRUE(Drive([&] { return listener->stats().paused; }));
    EXPECT_GE(listener->stats().errors, 1u);
  }
  for (const bool by_owner : {false, true}) {
    if (by_owner) listener->Pause();
    const uint64_t before = loop().Snapshot().turns;
    Pass(absl::Milliseconds(200));
    // Tens of thousands when the loop spins; a few for the tries in between.
    EXPECT_LT(loop().Snapshot().turns - before, 200u) << "paused by owner: " << by_owner;
  }
}

TEST_P(ListenerTest, SeveralShareAPortWithReusePortOnTwoThreads) {
  if (is_unix()) GTEST_SKIP() << "SO_REUSEPORT is for internet sockets";
  if (!environment().has_kernel()) GTEST_SKIP() << "simulated loops share one thread";
  ListenOptions options;
  options.reuse_port = true;
  std::unique_ptr<Listener> here = Listen(options);
  absl::StatusOr<std::unique_ptr<Loop>> other = environment().NewLoop({});
  ASSERT_TRUE(other.ok()) << other.status();
  options.engine = environment().listen_engine();
  std::atomic<int> there_count{0};
  std::atomic<bool> listening{false};
  std::thread thread([&] {
    absl::StatusOr<std::unique_ptr<Listener>> there = Listener::Listen(
        **other, here->address(), options, [&](StreamPtr) { there_count.fetch_add(1); });
    EXPECT_TRUE(there.ok()) << there.status();
    listening.store(true);
    (*other)->Run();
  });
  while (!listening.load()) std::this_thread::yield();
  Peers peers = Dial(*here, 200);
  EXPECT_TRUE(Drive([&] {
    std::this_thread::yield();
    // Wakes this loop, so that what the other one took is looked at.
    loop().Post([] {});
    return accepted().size() + there_count.load() == 200;
  }));
  (*other)->Stop();
  thread.join();
  // The kernel hashes the ports of the peers: both get a share (a chance of 2^-199 otherwise).
  EXPECT_GT(accepted().size(), 0u);
  EXPECT_GT(there_count.load(), 0);
}

TEST_P(ListenerTest, WithoutReusePortATakenAddressIsUnavailable) {
  std::unique_ptr<Listener> listener = Listen();
  const absl::Status error = ListenError(listener->address());
  EXPECT_TRUE(absl::IsUnavailable(error)) << error;
  EXPECT_NE(error.message().find(listener->address().ToString()), std::string::npos) << error;
  EXPECT_NE(error.message().find("EADDRINUSE"), std::string::npos) << error;
  // The one that listens is not disturbed.
  // (On a Unix path the attempt has left one connection that has ended already.)
  Peers peers = Dial(*listener, 1);
  ASSERT_TRUE(Drive([&] { return accepted().size() == (is_unix() ? 2 : 1); }));
  EXPECT_EQ(peers[0]->Send("served"), 6);
  EXPECT_EQ(ReadUpTo(*accepted().back(), 6).data, "served");
}

TEST_P(ListenerTest, AStaleSocketFileIsReplacedAndTheOwnOneRemoved) {
  if (!is_unix()) GTEST_SKIP() << "about Unix sockets";
  const SocketAddress address = environment().NewAddress();
  const std::string path(address.path());
  { const PlainSocket stale = PlainSocket::Listen(address, 1); }
  struct stat info;
  ASSERT_EQ(::stat(path.c_str(), &info), 0) << "a plain socket leaves its file behind";
  ListenOptions keep;
  keep.unlink_path = false;
  EXPECT_TRUE(absl::IsUnavailable(ListenError(address, keep)));
  ListenOptions options;
  options.engine = environment().listen_engine();
  absl::StatusOr<std::unique_ptr<Listener>> listener = Listener::Listen(
      loop(), address, options, [this](StreamPtr s) { accepted().push_back(std::move(s)); });
  ASSERT_TRUE(listener.ok()) << listener.status();
  EXPECT_TRUE(ConnectTo(address, Connecting()).ok());
  listener->reset();
  EXPECT_NE(::stat(path.c_str(), &info), 0) << "the file outlived the listener";
  accepted().clear();
}

TEST_P(ListenerTest, AFileThatIsNoSocketIsNotRemoved) {
  if (!is_unix()) GTEST_SKIP() << "about Unix sockets";
  const SocketAddress address = environment().NewAddress();
  const std::string path(address.path());
  FILE* const file = std::fopen(path.c_str(), "w");
  ASSERT_NE(file, nullptr);
  std::fclose(file);
  EXPECT_TRUE(absl::IsUnavailable(ListenError(address)));
  struct stat info;
  EXPECT_EQ(::stat(path.c_str(), &info), 0);
}

TEST_P(ListenerTest, BadAddressesAndOptionsSayWhatIsWrong) {
  EXPECT_TRUE(absl::IsInvalidArgument(ListenError(SocketAddress())));
  ListenOptions options;
  options.backlog = 0;
  absl::Status error = ListenError(environment().NewAddress(), options);
  EXPECT_TRUE(absl::IsInvalidArgument(error)) << error;
  EXPECT_NE(error.message().find("backlog"), std::string::npos) << error;
  options = {};
  options.connections_max = 0;
  error = ListenError(environment().NewAddress(), options);
  EXPECT_TRUE(absl::IsInvalidArgument(error)) << error;
  EXPECT_NE(error.message().find("connections_max"), std::string::npos) << error;
  EXPECT_EQ(loop().Snapshot().listeners, 0u);
}

TEST_P(ListenerTest, AddressesThatAreNotOursAreNamed) {
  if (!environment().has_kernel()) GTEST_SKIP() << "every address is the simulated wire's own";
  // An address of TEST-NET-1 (RFC 5737) is no host's own.
  absl::Status error = ListenError(*SocketAddress::Parse("192.0.2.1:0"));
  EXPECT_TRUE(absl::IsUnavailable(error)) << error;
  EXPECT_NE(error.message().find("192.0.2.1"), std::string::npos) << error;
  error = ListenError(*SocketAddress::Parse("unix:/nonexistent/folder/socket"));
  EXPECT_FALSE(error.ok());
  EXPECT_NE(error.message().find("/nonexistent/folder/socket"), std::string::npos) << error;
  EXPECT_EQ(loop().Snapshot().listeners, 0u);
}

TEST_P(ListenerTest, MayOutliveItsLoop) {
  std::unique_ptr<Listener> listener = Listen();
  const SocketAddress address = listener->address();
  TakeLoop().reset();
  EXPECT_EQ(listener->address(), address);
  listener->Pause();
  listener->Resume();
  EXPECT_EQ(listener->stats().accepted, 0u);
  EXPECT_TRUE(absl::IsFailedPrecondition(listener->SwitchEngine(EngineKind::kAuto)));
  // Nobody listens there any more.
  const std::unique_ptr<BarePeer> peer = NewPeer(environment(), address);
  if (peer == nullptr) return;
  EXPECT_TRUE(peer->AwaitInput());
  int end = 0;
  EXPECT_EQ(peer->ReceiveAll(&end), "");
  EXPECT_TRUE(end == ECONNREFUSED || end == ECONNRESET) << "errno " << end;
}

INSTANTIATE_TEST_SUITE_P(Environments, ListenerTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
