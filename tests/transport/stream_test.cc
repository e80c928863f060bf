// StreamOptions reach the sockets, accepted and connected alike; bad values are refused in words.
#include <penstock/stream.h>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <memory>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "engine/connection.h"
#include "testing/harness.h"
#include "testing/pattern.h"
#include "transport/socket_stream.h"

namespace penstock::internal {
namespace {

class StreamOptionsTest : public Harness {
 protected:
  static int Option(Stream& stream, int level, int name) {
    const int fd = stream.connection()->fd();
    int value = -1;
    socklen_t length = sizeof value;
    EXPECT_EQ(::getsockopt(fd, level, name, &value, &length), 0);
    return value;
  }
};

TEST_P(StreamOptionsTest, NodelayIsOnUnlessTurnedOff) {
  if (is_unix()) GTEST_SKIP() << "about TCP";
  StreamPair by_default = Pair();
  StreamOptions delayed;
  delayed.nodelay = false;
  StreamPair slow = Pair(delayed, delayed);
  for (StreamPtr* stream : {&by_default.client, &by_default.server}) {
    EXPECT_NE(Option(**stream, IPPROTO_TCP, TCP_NODELAY), 0);
    EXPECT_EQ(Option(**stream, SOL_SOCKET, SO_KEEPALIVE), 0);
  }
  for (StreamPtr* stream : {&slow.client, &slow.server}) {
    EXPECT_EQ(Option(**stream, IPPROTO_TCP, TCP_NODELAY), 0);
  }
}

TEST_P(StreamOptionsTest, KeepaliveAndUserTimeoutAreThoseAskedFor) {
  if (is_unix()) GTEST_SKIP() << "about TCP";
  StreamOptions options;
  options.keepalive_idle = absl::Seconds(120);
  options.keepalive_interval = absl::Seconds(7);
  options.keepalive_probes = 3;
  options.user_timeout = absl::Milliseconds(12'345);
  StreamPair pair = Pair(options, options);
  for (StreamPtr* stream : {&pair.client, &pair.server}) {
    EXPECT_NE(Option(**stream, SOL_SOCKET, SO_KEEPALIVE), 0);
    EXPECT_EQ(Option(**stream, IPPROTO_TCP, TCP_KEEPIDLE), 120);
    EXPECT_EQ(Option(**stream, IPPROTO_TCP, TCP_KEEPINTVL), 7);
    EXPECT_EQ(Option(**stream, IPPROTO_TCP, TCP_KEEPCNT), 3);
    EXPECT_EQ(Option(**stream, IPPROTO_TCP, TCP_USER_TIMEOUT), 12'345);
  }
}

TEST_P(StreamOptionsTest, DurationsAreRoundedUpToTheKernelsUnits) {
  if (is_unix()) GTEST_SKIP() << "about TCP";
  StreamOptions options;
  options.keepalive_idle = absl::Milliseconds(1'900);
  options.keepalive_interval = absl::Milliseconds(1);
  options.user_timeout = absl::Microseconds(10);  // 0 would be the kernel's default
  StreamPair pair = Pair(options, {});
  EXPECT_EQ(Option(*pair.client, IPPROTO_TCP, TCP_KEEPIDLE), 2);
  EXPECT_EQ(Option(*pair.client, IPPROTO_TCP, TCP_KEEPINTVL), 1);
  EXPECT_EQ(Option(*pair.client, IPPROTO_TCP, TCP_USER_TIMEOUT), 1);
}

// What is writable has room for a byte, however low the bound.
TEST_P(StreamOptionsTest, AHighMarkIsBelowTheBound) {
  StreamOptions options;
  options.send_queue_max = 1000;
  StreamPair pair = Pair(options, {});
  const SendBounds bounds = pair.client->send_bounds();
  EXPECT_EQ(bounds.high, 999u);
  EXPECT_EQ(bounds.low, 999u);
  EXPECT_EQ(bounds.max, 1000u);
}

TEST_P(StreamOptionsTest, SocketBuffersAreThoseAskedFor) {
  StreamOptions options;
  options.receive_buffer = 40'000;
  options.send_buffer = 50'000;
  StreamPair pair = Pair(options, options);
  for (StreamPtr* stream : {&pair.client, &pair.server}) {
    // The kernel doubles what is asked for (socket(7)).
    EXPECT_EQ(Option(**stream, SOL_SOCKET, SO_RCVBUF), 80'000);
    EXPECT_EQ(Option(**stream, SOL_SOCKET, SO_SNDBUF), 100'000);
  }
}

TEST_P(StreamOptionsTest, TcpOptionsAreIgnoredOnUnixSockets) {
  if (!is_unix()) GTEST_SKIP() << "about Unix sockets";
  StreamOptions options;
  options.keepalive_idle = absl::Seconds(10);
  options.user_timeout = absl::Seconds(10);
  StreamPair pair = Pair(options, options);
  Exchange(*pair.client, *pair.server, "ignored");
}

TEST_P(StreamOptionsTest, AValueTheKernelWouldRefuseIsAnErrorThatNamesIt) {
  if (is_unix()) GTEST_SKIP() << "about TCP";
  StreamOptions options;
  options.keepalive_idle = absl::Seconds(10);
  options.keepalive_probes = 1000;  // at most 127 (tcp(7))
  std::unique_ptr<Listener> listener = Listen();
  const absl::Status refused = ConnectTo(listener->address(), Connecting(options)).status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
  EXPECT_NE(refused.message().find("keepalive_probes"), std::string::npos) << refused;
  ListenOptions listening;
  listening.engine = environment().listen_engine();
  listening.stream = options;
  const absl::Status unheard =
      Listener::Listen(loop(), environment().NewAddress(), listening, [](StreamPtr) {}).status();
  EXPECT_TRUE(absl::IsInvalidArgument(unheard)) << unheard;
}

class WriteBoundTest : public Harness {};

constexpr uint64_t kEmptyWritesMax = 1 << 20;

// Nor does one that is refused beyond them end the stream.
TEST_P(WriteBoundTest, ThoseThatBringBytesMayBeAsManyAsTheQueueTakes) {
  constexpr uint64_t kWrites = kEmptyWritesMax + 10;
  StreamOptions options;
  options.send_queue_max = options.send_queue_high = kWrites;
  StreamPair pair = Pair(options);
  Buffer bytes = *loop().pool().Copy(PatternBytes(1, 0, kWrites));
  uint64_t done = 0, sent = 0;
  const auto mark = [&](absl::Status status) {
    ++done;
    sent += status.ok() ? 1 : 0;
  };
  for (uint64_t i = 0; i < kWrites; ++i) pair.client->Write(bytes.SplitFront(1), mark);
  Fate refused;
  pair.client->Write(Chain("x"), refused.OnDone());
  EXPECT_EQ(loop().Snapshot().writes_refused, 1u);
  PatternReader reader(std::move(pair.server), 1);
  reader.Start();
  ASSERT_TRUE(Drive([&] { return refused.ended() && reader.received() == kWrites; }));
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status())) << refused.status();
  EXPECT_EQ(done, kWrites);
  EXPECT_EQ(sent, kWrites);
  EXPECT_TRUE(reader.intact());
}

// What bounds the bytes bounds no callbacks of empty or refused writes.
TEST_P(WriteBoundTest, WriteCallbacksThatWaitAreBounded) {
  constexpr uint64_t kMost = kEmptyWritesMax;
  StreamPair pair = Pair();
  Fate first;
  uint64_t told = 0, exhausted = 0;
  const auto write_nothing = [&] {
    pair.client->Write(BufferChain(), [&](absl::Status status) {
      ++told;
      exhausted += absl::IsResourceExhausted(status) ? 1 : 0;
    });
  };
  pair.client->Write(Chain("x"), first.OnDone());
  for (uint64_t i = 0; i < kMost; ++i) write_nothing();
  EXPECT_EQ(loop().Snapshot().writes_refused, 0u);
  write_nothing();
  EXPECT_EQ(loop().Snapshot().writes_refused, 1u);
  ASSERT_TRUE(Drive([&] { return told == kMost + 1; }));
  EXPECT_EQ(exhausted, kMost + 1);
  EXPECT_TRUE(absl::IsResourceExhausted(first.status())) << first.status();
  EXPECT_TRUE(absl::IsResourceExhausted(Read(*pair.client).status()));
  EXPECT_FALSE(IsEof(Read(*pair.server).status()) && !is_unix());
}

TEST_P(StreamOptionsTest, EveryRuleIsNamedWithWhatIsAccepted) {
  const absl::Duration negative = absl::Milliseconds(-1);
  struct Case {
    void (*spoil)(StreamOptions&, absl::Duration);
    const char* says;
  };
  const Case cases[] = {
      {[](StreamOptions& o, absl::Duration d) { o.keepalive_idle = d; },
       "keepalive_idle must not be negative"},
      {[](StreamOptions& o, absl::Duration) { o.keepalive_idle = absl::InfiniteDuration(); },
       "keepalive_idle must be at most 32767 seconds"},
      {[](StreamOptions& o, absl::Duration d) {
         o.keepalive_idle = -d;
         o.keepalive_interval = absl::Seconds(32768);
       },
       "keepalive_interval must be at most 32767 seconds"},
      {[](StreamOptions& o, absl::Duration) { o.user_timeout = absl::InfiniteDuration(); },
       "user_timeout must be at most 2147483647 milliseconds"},
      {[](StreamOptions& o, absl::Duration d) {
         o.keepalive_idle = -d;
         o.keepalive_interval = absl::ZeroDuration();
       },
       "keepalive_interval must be positive"},
      {[](StreamOptions& o, absl::Duration d) {
         o.keepalive_idle = -d;
         o.keepalive_probes = 0;
       },
       "keepalive_probes must be 1 to 127"},
      {[](StreamOptions& o, absl::Duration d) { o.user_timeout = d; },
       "user_timeout must not be negative"},
      {[](StreamOptions& o, absl::Duration) { o.receive_buffer = -1; },
       "receive_buffer must not be negative"},
      {[](StreamOptions& o, absl::Duration) { o.send_buffer = -1; },
       "send_buffer must not be negative"},
      {[](StreamOptions& o, absl::Duration d) { o.read_deadline = d; },
       "read_deadline must not be negative"},
      {[](StreamOptions& o, absl::Duration d) { o.write_deadline = d; },
       "write_deadline must not be negative"},
      {[](StreamOptions& o, absl::Duration d) { o.idle_deadline = d; },
       "idle_deadline must not be negative"},
      {[](StreamOptions& o, absl::Duration) { o.receive_max = 0; },
       "receive_max must be at least 1 byte"},
      {[](StreamOptions& o, absl::Duration) { o.send_queue_max = 0; },
       "send_queue_max must be at least 1 byte"},
  };
  std::unique_ptr<Listener> listener = Listen();
  for (const Case& each : cases) {
    StreamOptions options;
    each.spoil(options, negative);
    const absl::Status refused = ConnectTo(listener->address(), Connecting(options)).status();
    EXPECT_TRUE(absl::IsInvalidArgument(refused)) << refused;
    EXPECT_EQ(refused.message(),
              absl::StrCat("connect to ", listener->address().ToString(), ": ", each.says));
    ListenOptions listening;
    listening.engine = environment().listen_engine();
    listening.stream = options;
    const SocketAddress address = environment().NewAddress();
    const absl::Status unheard =
        Listener::Listen(loop(), address, listening, [](StreamPtr) {}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(unheard)) << unheard;
    EXPECT_EQ(unheard.message(), absl::StrCat("listen on ", address.ToString(), ": ", each.says));
  }
}

// One suffices, and a million callbacks take their time.
INSTANTIATE_TEST_SUITE_P(Engine, WriteBoundTest, ::testing::Values(KernelEngines().front()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Environments, StreamOptionsTest, ::testing::ValuesIn(KernelEnvironments()),
                         EnvironmentName);

// Blocks for receives are as large as what comes, also when that is a little more than the size
// that they begin with: the rest that did not fit once must not make them small again.
TEST_P(StreamOptionsTest, AMessageLongerThanTheFirstBlockTakesOneReceive) {
  if (environment().listen_engine() != EngineKind::kEpoll || is_unix()) {
    GTEST_SKIP() << "io_uring receives into buffers of one size; Unix sockets cut where they like";
  }
  StreamPair pair = Pair();
  const std::string message(16 * 1024 + 48, 'm');
  constexpr uint64_t kMessages = 20;
  const auto receives = [&] { return loop().Snapshot().receives; };
  for (int i = 0; i < 4; ++i) Exchange(*pair.client, *pair.server, message);
  uint64_t before = receives();
  for (uint64_t i = 0; i < kMessages; ++i) Exchange(*pair.client, *pair.server, message);
  // Now and then the kernel shows a part early.
  EXPECT_LE(receives() - before, kMessages * 5 / 4);
  // Small ones get small blocks again.
  for (int i = 0; i < 4; ++i) Exchange(*pair.client, *pair.server, "small");
  EXPECT_LE(pair.server->connection()->receive_size(), 8 * 1024u);
}

// Every connection costs this much, idle or not, and nothing else (IdleMemoryTest), so it grows
// only for a reason. On x86-64, in bytes:
//   two chains (48), the read callback (32), the first pending write with its callback, place and
//   refusal (48), the ends of both ways (16): one operation each way needs no allocation;
//   deadlines: a timer's node (32), three starting points (24), three lengths (12);
//   the peer, for error messages (32), the place in the loop's lists (24), the owner's handle (16),
//   figures (24), the listener that counts it (16), loop and engine (16), descriptor and slot (8),
//   receive sizes (8), watermarks (12), what is rare (8), the move under way (8), the layers that
//   go along (8), states and holds (8).
// The budget for an idle echo connection is 512 bytes of user memory in all.
TEST(ConnectionSize, IsTheOneThatWasAgreed) { EXPECT_EQ(sizeof(Connection), 400u); }

}  // namespace
}  // namespace penstock::internal
