// The contract of switching engines: move.h. The other suites run over streams that switch all the
// time (MovingEnvironments); here is what a switch itself promises.
#include <penstock/move.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/connection.h"
#include "engine/loop_core.h"
#include "testing/harness.h"
#include "testing/pattern.h"

namespace penstock::internal {
namespace {

class SwitchTest : public Harness {
 protected:
  void SetUp() override {
    Harness::SetUp();
    if (IsSkipped()) return;
    if (const std::string why = MissingEngine(); !why.empty()) GTEST_SKIP() << why;
  }

  // The engine that does not serve `stream`.
  EngineKind Other(Stream& stream) {
    const EngineKind own = loop().engine();
    if (stream.stats().engine != own) return own;
    return own == EngineKind::kUring ? EngineKind::kEpoll : EngineKind::kUring;
  }
  // Starts a switch to the other engine.
  Fate Begin(Stream& stream) {
    Fate moved;
    SwitchEngine(stream, Other(stream), moved.OnDone());
    return moved;
  }
  void SwitchNow(Stream& stream) {
    const EngineKind to = Other(stream);
    Fate moved;
    SwitchEngine(stream, to, moved.OnDone());
    ASSERT_TRUE(Drive([&] { return moved.ended(); }));
    EXPECT_TRUE(moved.status().ok()) << moved.status();
    EXPECT_EQ(stream.stats().engine, to);
  }
};

TEST_P(SwitchTest, TheStreamGoesOnOnTheOtherEngineAndComesBack) {
  StreamPair pair = Pair();
  for (int i = 0; i < 10; ++i) {
    SwitchNow(*pair.server);
    Exchange(*pair.client, *pair.server, "to the one that moved");
    Exchange(*pair.server, *pair.client, "and from it");
    if (i == 0) {
      const bool uring = pair.server->stats().engine == EngineKind::kUring;
      EXPECT_EQ(loop().Snapshot().switches_to_uring, uring ? 1u : 0u);
      EXPECT_EQ(loop().Snapshot().switches_to_epoll, uring ? 0u : 1u);
    }
  }
  const LoopSnapshot now = loop().Snapshot();
  EXPECT_EQ(now.moves_refused, 0u);
  EXPECT_EQ(now.stranded, 0u);
  EXPECT_EQ(std::accumulate(now.move_pauses.begin(), now.move_pauses.end(), uint64_t{0}), 10u);
}

TEST_P(SwitchTest, NeverEndsInsideTheCallThatStartedIt) {
  StreamPair pair = Pair();
  Fate moved = Begin(*pair.client);
  EXPECT_FALSE(moved.ended());
  ASSERT_TRUE(Drive([&] { return moved.ended(); }));
  EXPECT_EQ(moved.runs(), 1);
}

TEST_P(SwitchTest, ToTheEngineThatServesItAlreadyIsOk) {
  StreamPair pair = Pair();
  const EngineKind own = pair.client->stats().engine;
  Fate moved;
  SwitchEngine(*pair.client, own, moved.OnDone());
  ASSERT_TRUE(Drive([&] { return moved.ended(); }));
  EXPECT_TRUE(moved.status().ok()) << moved.status();
  EXPECT_EQ(pair.client->stats().engine, own);
}

TEST_P(SwitchTest, CarriesAPendingReadOver) {
  StreamPair pair = Pair();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  SwitchNow(*pair.server);
  EXPECT_FALSE(read.ended());
  pair.client->Write(Chain("late"));
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_EQ(read.data(), "late");
}

TEST_P(SwitchTest, KeepsWhatArrivesWhileItIsUnderWay) {
  StreamPair pair = Pair();
  uint64_t sent = 0;
  std::string received;
  for (int i = 0; i < Scaled(200); ++i) {
    // The read is armed, bytes are on their way, and the switch begins.
    Fate read;
    pair.server->ReadReady(read.OnRead());
    Settle();
    pair.client->Write(Chain(PatternBytes(1, sent, 100)));
    sent += 100;
    Fate moved = Begin(*pair.server);
    pair.client->Write(Chain(PatternBytes(1, sent, 100)));
    sent += 100;
    ASSERT_TRUE(Drive([&] { return moved.ended() && read.ended(); }));
    ASSERT_TRUE(moved.status().ok()) << moved.status();
    ASSERT_TRUE(read.status().ok()) << read.status();
    received += read.data();
  }
  received += ReadUpTo(*pair.server, sent - received.size()).data;
  ASSERT_EQ(received.size(), sent);
  EXPECT_FALSE(FirstMismatch(received, 1, 0).has_value());
}

TEST_P(SwitchTest, CarriesQueuedAndHalfSentWritesOver) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  constexpr size_t kTotal = 4 << 20;
  Fate write;
  pair.client->Write(Chain(PatternBytes(2, 0, kTotal)), write.OnDone());
  Settle();
  ASSERT_GT(pair.client->stats().queued_bytes, 0u) << "nothing is left to carry";
  size_t received = 0;
  while (received < kTotal) {
    Fate moved = Begin(*pair.client);
    const Received part = ReadUpTo(*pair.server, std::min<size_t>(100'000, kTotal - received));
    ASSERT_TRUE(part.end.ok()) << part.end;
    ASSERT_FALSE(FirstMismatch(part.data, 2, received).has_value());
    received += part.data.size();
    ASSERT_TRUE(Drive([&] { return moved.ended(); }));
    ASSERT_TRUE(moved.status().ok()) << moved.status();
  }
  ASSERT_TRUE(Drive([&] { return write.ended(); }));
  EXPECT_TRUE(write.status().ok()) << write.status();
}

TEST_P(SwitchTest, AWaitForRoomEndsOnTheNewEngineOnce) {
  StreamOptions options = SmallBuffers();
  options.send_queue_low = 10'000;
  options.send_queue_high = 20'000;
  StreamPair pair = Pair(options, SmallBuffers());
  constexpr size_t kTotal = 1 << 20;
  pair.client->Write(Chain(PatternBytes(3, 0, kTotal)));
  Fate writable;
  pair.client->NotifyWritable(writable.OnDone());
  Settle();
  ASSERT_FALSE(writable.ended());
  SwitchNow(*pair.client);
  EXPECT_FALSE(writable.ended());
  EXPECT_EQ(ReadUpTo(*pair.server, kTotal).data.size(), kTotal);
  ASSERT_TRUE(Drive([&] { return writable.ended(); }));
  EXPECT_EQ(writable.runs(), 1);
  EXPECT_TRUE(writable.status().ok()) << writable.status();
}

TEST_P(SwitchTest, UnreadBytesAndBackPressureAreCarriedOver) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  constexpr size_t kTotal = 2 << 20;
  Fate write;
  pair.client->Write(Chain(PatternBytes(4, 0, kTotal)), write.OnDone());
  std::string received = Read(*pair.server).value_or("");
  Settle();
  for (int i = 0; i < 3; ++i) SwitchNow(*pair.server);
  EXPECT_FALSE(write.ended()) << "nobody reads";
  received += ReadUpTo(*pair.server, kTotal - received.size()).data;
  EXPECT_EQ(received.size(), kTotal);
  EXPECT_FALSE(FirstMismatch(received, 4, 0).has_value());
}

TEST_P(SwitchTest, BytesCarriedAreThoseUnreadAndUnsent) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  constexpr size_t kTotal = 1 << 20;
  pair.client->Write(Chain(PatternBytes(5, 0, kTotal)));
  pair.server->Write(Chain(PatternBytes(6, 0, kTotal)));
  const size_t delivered = Read(*pair.server).value_or("").size();
  Settle();
  if (pair.server->stats().sealed_pinned_bytes > 0) {
    GTEST_SKIP() << "a sealed stream holds bytes of its own";
  }
  const StreamStats held = pair.server->stats();
  ASSERT_GT(held.queued_bytes, 0u);
  ASSERT_GE(held.bytes_in, delivered);
  SwitchNow(*pair.server);
  EXPECT_EQ(loop().Snapshot().bytes_carried, held.queued_bytes + held.bytes_in - delivered);
}

TEST_P(SwitchTest, AnEndThatComesMeanwhileArrivesOnceAfterTheBytesBeforeIt) {
  for (int i = 0; i < 10; ++i) {
    StreamPair pair = Pair();
    Fate read;
    pair.server->ReadReady(read.OnRead());
    Settle();
    pair.client->Write(Chain("the last "));
    pair.client->Write(Chain("words"));
    pair.client->ShutdownWrite();
    Fate moved = Begin(*pair.server);
    ASSERT_TRUE(Drive([&] { return moved.ended() && read.ended(); }));
    const Received rest = ReadToEnd(*pair.server);
    EXPECT_EQ(read.data() + rest.data, "the last words");
    EXPECT_TRUE(IsEof(rest.end)) << rest.end;
    // The other direction lives.
    Exchange(*pair.server, *pair.client, "answer");
  }
}

TEST_P(SwitchTest, AHalfClosedStreamMoves) {
  StreamPair pair = Pair();
  ASSERT_TRUE(Shutdown(*pair.client).ok());
  EXPECT_TRUE(IsEof(ReadToEnd(*pair.server).end));
  SwitchNow(*pair.client);
  SwitchNow(*pair.server);
  Exchange(*pair.server, *pair.client, "still here");
  EXPECT_TRUE(IsEof(Read(*pair.server).status())) << "an end is repeated";
}

TEST_P(SwitchTest, AShutdownAskedForMeanwhileFollowsTheQueuedBytes) {
  StreamPair pair = Pair();
  Fate moved = Begin(*pair.client);
  Fate shut;
  pair.client->Write(Chain("bytes"));
  pair.client->ShutdownWrite(shut.OnDone());
  const Received all = ReadToEnd(*pair.server);
  EXPECT_EQ(all.data, "bytes");
  EXPECT_TRUE(IsEof(all.end)) << all.end;
  ASSERT_TRUE(Drive([&] { return shut.ended() && moved.ended(); }));
  EXPECT_TRUE(shut.status().ok()) << shut.status();
}

TEST_P(SwitchTest, AResetStaysAReset) {
  if (is_unix()) GTEST_SKIP() << "a Unix socket has no reset that outlives unread bytes";
  for (int i = 0; i < 10; ++i) {
    StreamPair pair = Pair();
    Fate read;
    pair.server->ReadReady(read.OnRead());
    Settle();
    pair.client->Abort();
    Fate moved = Begin(*pair.server);
    ASSERT_TRUE(Drive([&] { return moved.ended() && read.ended(); }));
    EXPECT_TRUE(absl::IsUnavailable(read.status())) << read.status();
    EXPECT_TRUE(absl::IsUnavailable(Read(*pair.server).status()));
  }
}

TEST_P(SwitchTest, ADeadlineGoesOnRunning) {
  StreamPair pair = Pair();
  pair.server->SetReadDeadline(absl::Milliseconds(50));
  Fate read;
  pair.server->ReadReady(read.OnRead());
  SwitchNow(*pair.server);
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  EXPECT_TRUE(absl::IsDeadlineExceeded(read.status())) << read.status();
  EXPECT_EQ(read.runs(), 1);
  Exchange(*pair.client, *pair.server, "the stream stays usable");
}

TEST_P(SwitchTest, ACancelledReadEndsAfterTheMove) {
  StreamPair pair = Pair();
  Fate read;
  pair.server->ReadReady(read.OnRead());
  Settle();
  Fate moved = Begin(*pair.server);
  pair.server->CancelRead();
  ASSERT_TRUE(Drive([&] { return read.ended() && moved.ended(); }));
  EXPECT_TRUE(absl::IsCancelled(read.status())) << read.status();
  Exchange(*pair.client, *pair.server, "nothing is lost");
}

TEST_P(SwitchTest, ALaterMoveTakesThePlaceOfAnEarlierOne) {
  StreamPair pair = Pair();
  const EngineKind own = pair.client->stats().engine;
  Fate first = Begin(*pair.client);
  Fate second;
  SwitchEngine(*pair.client, own, second.OnDone());
  ASSERT_TRUE(Drive([&] { return first.ended() && second.ended(); }));
  EXPECT_TRUE(absl::IsCancelled(first.status())) << first.status();
  EXPECT_TRUE(second.status().ok()) << second.status();
  EXPECT_EQ(pair.client->stats().engine, own);
  const LoopSnapshot now = loop().Snapshot();
  EXPECT_EQ(now.switches_to_epoll + now.switches_to_uring, 0u) << "it is where it was";
}

TEST_P(SwitchTest, AStreamThatHasEndedSaysHow) {
  StreamPair pair = Pair();
  pair.client->Abort();
  Fate moved = Begin(*pair.client);
  ASSERT_TRUE(Drive([&] { return moved.ended(); }));
  EXPECT_TRUE(absl::IsCancelled(moved.status())) << moved.status();
}

TEST_P(SwitchTest, AnAbortDuringTheMoveEndsIt) {
  StreamPair pair = Pair();
  Fate read;
  pair.client->ReadReady(read.OnRead());
  Settle();
  Fate moved = Begin(*pair.client);
  pair.client->Abort();
  ASSERT_TRUE(Drive([&] { return moved.ended() && read.ended(); }));
  EXPECT_FALSE(moved.status().ok());
  EXPECT_TRUE(absl::IsCancelled(read.status())) << read.status();
}

TEST_P(SwitchTest, AStreamMayBeDestroyedInTheMiddleAndInTheCallback) {
  StreamPair pair = Pair();
  Fate read;
  pair.client->ReadReady(read.OnRead());
  Settle();
  Fate moved = Begin(*pair.client);
  pair.client.reset();
  EXPECT_EQ(moved.dropped(), 1) << "destroyed unrun with its stream";
  bool destroyed = false;
  SwitchEngine(*pair.server, Other(*pair.server), [&](absl::Status) {
    pair.server.reset();
    destroyed = true;
  });
  ASSERT_TRUE(Drive([&] { return destroyed; }));
}

TEST_P(SwitchTest, TheCallbackMaySwitchAgain) {
  StreamPair pair = Pair();
  int moves = 0;
  std::function<void(absl::Status)> again = [&](absl::Status status) {
    ASSERT_TRUE(status.ok()) << status;
    if (++moves < 50) SwitchEngine(*pair.server, Other(*pair.server), again);
  };
  SwitchEngine(*pair.server, Other(*pair.server), again);
  ASSERT_TRUE(Drive([&] { return moves == 50; }));
  Exchange(*pair.client, *pair.server, "after fifty");
}

TEST_P(SwitchTest, SaturatedBothWaysThroughThousandsOfMoves) {
  StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
  const int wanted = Scaled(environment().has_kernel() ? 2000 : 200);
  uint64_t moves = 0;
  std::function<void(Stream*, absl::Status)> again = [&](Stream* stream, absl::Status status) {
    ASSERT_TRUE(status.ok()) << status;
    if (++moves >= 2 * static_cast<uint64_t>(wanted)) return;
    SwitchEngine(*stream, Other(*stream),
                 [&again, stream](absl::Status ended) { again(stream, ended); });
  };
  constexpr uint64_t kEndless = uint64_t{1} << 40;
  Stream* const ends[] = {pair.client.get(), pair.server.get()};
  PatternWriter from_client(*pair.client, 1, kEndless, 30'000);
  PatternWriter from_server(*pair.server, 2, kEndless, 30'000);
  PatternReader at_server(std::move(pair.server), 1);
  PatternReader at_client(std::move(pair.client), 2);
  at_server.Start();
  at_client.Start();
  from_client.Start();
  from_server.Start();
  for (Stream* end : ends) {
    SwitchEngine(*end, Other(*end), [&again, end](absl::Status status) { again(end, status); });
  }
  ASSERT_TRUE(Drive([&] { return moves >= 2 * static_cast<uint64_t>(wanted); })) << moves;
  const uint64_t at = at_server.received() + at_client.received();
  ASSERT_TRUE(Drive([&] { return at_server.received() + at_client.received() > at + 500'000; }));
  EXPECT_TRUE(at_server.intact());
  EXPECT_TRUE(at_client.intact());
  EXPECT_EQ(loop().Snapshot().stranded, 0u);
}

TEST_P(SwitchTest, AllOfALoopButThePinnedOnes) {
  constexpr int kStreams = 600;
  std::vector<StreamPair> pairs;
  for (int i = 0; i < kStreams; ++i) pairs.push_back(Pair());
  StreamOptions pinned;
  pinned.pinned_engine = true;
  pairs.push_back(Pair(pinned, pinned));
  const EngineKind before = pairs.back().client->stats().engine;
  std::unique_ptr<Listener> listener = Listen();
  const EngineKind to = Other(*pairs.front().server);
  MoveCount count;
  bool done = false;
  ASSERT_TRUE(SwitchAll(loop(), to, [&](MoveCount result) {
                count = result;
                done = true;
              }).ok());
  EXPECT_FALSE(done) << "inside the call";
  ASSERT_TRUE(Drive([&] { return done; }));
  EXPECT_EQ(count.failed, 0u);
  for (int i = 0; i < kStreams; ++i) {
    ASSERT_EQ(pairs[i].server->stats().engine, to);
    ASSERT_EQ(pairs[i].client->stats().engine, to);
  }
  EXPECT_EQ(pairs.back().client->stats().engine, before);
  if (environment().has_kernel()) {
    const StreamPair& stayed = pairs.back();
    uint64_t pinned = 0;
    for (const Stream* end : {stayed.client.get(), stayed.server.get()}) {
      if (end->stats().engine == EngineKind::kUring) ++pinned;
    }
    EXPECT_EQ(loop().Snapshot().open_uring, pinned + (to == EngineKind::kUring ? 2 * kStreams : 0));
  }
  // The listener has never closed, and its streams begin on the new engine.
  absl::StatusOr<StreamPtr> late = ConnectTo(listener->address(), Connecting());
  ASSERT_TRUE(late.ok()) << late.status();
  ASSERT_TRUE(Drive([&] { return !accepted().empty(); }));
  EXPECT_EQ(accepted().front()->stats().engine, to);
  Exchange(**late, *accepted().front(), "hello");
  for (int i = 0; i < kStreams; i += 50) Exchange(*pairs[i].client, *pairs[i].server, "x");
  if (environment().has_kernel()) {
    const uint64_t idle = loop().Snapshot().pool.live;
    EXPECT_EQ(idle, 0u) << "idle streams hold bytes after a move (I1)";
  }
}

// Those that are between two engines wait for one another: however many there are, few are at once.
TEST_P(SwitchTest, AFewAtATime) {
  if (!environment().has_kernel()) GTEST_SKIP() << "a simulated kernel may take many turns";
  std::vector<StreamPair> pairs;
  std::vector<Fate> reads(400);
  for (Fate& read : reads) {
    pairs.push_back(Pair());
    pairs.back().server->ReadReady(read.OnRead());
  }
  Settle();
  for (int i = 0; i < 2; ++i) {
    bool done = false;
    int most = 0;
    ASSERT_TRUE(
        SwitchAll(loop(), Other(*pairs.front().server), [&](MoveCount) { done = true; }).ok());
    ASSERT_TRUE(Drive([&] {
      int moving = 0;
      for (const Connection* c = loop().core().connections(); c != nullptr; c = c->next()) {
        if (c->moving()) ++moving;
      }
      most = std::max(most, moving);
      return done;
    }));
    EXPECT_GT(most, 0);
    EXPECT_LE(most, 64);
  }
}

TEST_P(SwitchTest, AStreamThatGoesMeanwhileDoesNotHoldUpTheSweep) {
  std::vector<StreamPair> pairs;
  std::vector<Fate> reads(40);
  for (size_t i = 0; i < reads.size(); ++i) {
    pairs.push_back(Pair());
    pairs.back().server->ReadReady(reads[i].OnRead());
  }
  Settle();
  bool done = false;
  ASSERT_TRUE(
      SwitchAll(loop(), Other(*pairs.front().server), [&](MoveCount) { done = true; }).ok());
  for (size_t i = 0; i < pairs.size(); i += 2) {
    pairs[i].server->NotifyWritable([&pairs, i](absl::Status) { pairs[i].client.reset(); });
    pairs[i + 1].server.reset();
  }
  ASSERT_TRUE(Drive([&] { return done; }));
}

TEST_P(SwitchTest, ASecondSweepEndsTheFirst) {
  std::vector<StreamPair> pairs;
  for (int i = 0; i < 20; ++i) pairs.push_back(Pair());
  const EngineKind own = pairs.front().server->stats().engine;
  bool first = false, second = false;
  ASSERT_TRUE(
      SwitchAll(loop(), Other(*pairs.front().server), [&](MoveCount) { first = true; }).ok());
  ASSERT_TRUE(SwitchAll(loop(), own, [&](MoveCount) { second = true; }).ok());
  ASSERT_TRUE(Drive([&] { return first && second; }));
  for (StreamPair& pair : pairs) EXPECT_EQ(pair.server->stats().engine, own);
}

TEST_P(SwitchTest, AListenerThatSwitchesWhilePeersConnectRefusesNone) {
  std::unique_ptr<Listener> listener = Listen();
  constexpr int kClients = 200;
  std::vector<StreamPtr> clients;
  int failed = 0;
  EngineKind to = loop().engine();
  for (int i = 0; i < kClients; ++i) {
    Connect(loop(), listener->address(), Connecting(), [&](absl::StatusOr<StreamPtr> stream) {
      if (stream.ok()) {
        clients.push_back(*std::move(stream));
      } else {
        ++failed;
      }
    });
    if (i % 10 != 0) continue;
    // Half of those before are still connecting, or wait in the backlog, when it switches again.
    ASSERT_TRUE(Drive([&] { return listener->stats().accepted + 5 >= static_cast<uint64_t>(i); }));
    to = to != loop().engine()      ? loop().engine()
         : to == EngineKind::kUring ? EngineKind::kEpoll
                                    : EngineKind::kUring;
    ASSERT_TRUE(listener->SwitchEngine(to).ok());
  }
  ASSERT_TRUE(Drive([&] {
    return clients.size() + failed == kClients &&
           (failed > 0 || listener->stats().open == kClients);
  }));
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(listener->stats().errors, 0u);
  const auto theirs = std::ranges::count_if(clients, [](const StreamPtr& client) {
    return client->stats().engine == EngineKind::kUring;
  });
  const int64_t ours = static_cast<int64_t>(loop().Snapshot().open_uring) - theirs;
  EXPECT_GT(ours, kClients / 5) << "each engine has accepted some";
  EXPECT_LT(ours, kClients - kClients / 5) << "each engine has accepted some";
  // Paused and resumed in the middle of a switch.
  listener->Pause();
  ASSERT_TRUE(listener->SwitchEngine(loop().engine()).ok());
  listener->Resume();
  EXPECT_TRUE(ConnectTo(listener->address(), Connecting()).ok());
}

TEST_P(SwitchTest, AnEngineThatIsNoneIsRefused) {
  StreamPair pair = Pair();
  if (loop().engine() == EngineKind::kSimulated) {
    GTEST_SKIP() << "a simulated loop has a simulated engine";
  }
  Fate moved;
  SwitchEngine(*pair.client, EngineKind::kSimulated, moved.OnDone());
  ASSERT_TRUE(Drive([&] { return moved.ended(); }));
  EXPECT_TRUE(absl::IsUnimplemented(moved.status())) << moved.status();
  EXPECT_EQ(loop().Snapshot().moves_refused, 1u);
  Exchange(*pair.client, *pair.server, "it stays");
}

INSTANTIATE_TEST_SUITE_P(Environments, SwitchTest, ::testing::ValuesIn(AllEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, SwitchTest, ::testing::ValuesIn(SealedEngines()), EnvironmentName);

}  // namespace
}  // namespace penstock::internal
