// What AsStream does beside the contract that the conformance suites check: its own deadlines, its
// ends, and what may stand above it.
#include <penstock/rdma.h>
#ifdef PENSTOCK_HAVE_SECURE
#include <penstock/seal.h>

#include "testing/sealed_environment.h"
#endif

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "testing/pattern.h"
#include "testing/rdma_pair.h"

namespace penstock::internal {
namespace {

constexpr absl::Duration kShort = absl::Milliseconds(20);

class EndpointStreamTest : public RdmaHarness {
 protected:
  StreamPair Streams(StreamOptions client = {}, StreamOptions server = {}) {
    RdmaOptions narrow = Quiet();
    narrow.receive_depth = 4;
    RdmaEndpoints both = OpenEndpoints(narrow, narrow);
    return {AsStream(std::move(both.active), client), AsStream(std::move(both.passive), server)};
  }
};

TEST_P(EndpointStreamTest, AReadDeadlineEndsTheReadAndNotTheStream) {
  StreamOptions options;
  options.read_deadline = kShort;
  StreamPair pair = Streams({}, options);
  const absl::Time began = loop().now();
  EXPECT_TRUE(IsDeadlineExceeded(Harness::Read(*pair.server).status()));
  EXPECT_GE(loop().now() - began, kShort);
  pair.server->SetReadDeadline(absl::InfiniteDuration());
  Exchange(*pair.client, *pair.server, "usable");
}

TEST_P(EndpointStreamTest, AWriteDeadlineEndsTheStreamWhenNothingIsTaken) {
  StreamOptions options;
  options.write_deadline = kShort;
  StreamPair pair = Streams(options);
  Fate write;
  pair.client->Write(Chain(PatternBytes(1, 0, 1 << 20)), write.OnDone());
  EXPECT_TRUE(IsDeadlineExceeded(Await(write))) << write.status();
  const Received received = ReadToEnd(*pair.server);
  EXPECT_LT(received.data.size(), 1u << 20);
  EXPECT_TRUE(IsReset(received.end)) << received.end;
  EXPECT_EQ(loop().Snapshot().deadlines, 1u);
}

TEST_P(EndpointStreamTest, AnIdleDeadlineEndsTheStream) {
  StreamPair pair = Streams();
  Exchange(*pair.client, *pair.server, "busy");
  pair.client->SetIdleDeadline(kShort);
  EXPECT_TRUE(IsDeadlineExceeded(Harness::Read(*pair.client).status()));
  EXPECT_TRUE(IsDeadlineExceeded(Harness::Write(*pair.client, "late")));
}

TEST_P(EndpointStreamTest, WhatNobodyReadsStopsThePeer) {
  StreamPair pair = Streams();
  pair.client->Write(Chain(PatternBytes(2, 0, 4 << 20)));
  Settle();
  // Four pieces of 64 KiB are the peer's credits, or four of 8 KiB after a message that came whole.
  EXPECT_EQ(pair.client->stats().bytes_out, (has_lanes() ? 1u : 4u) * 64 * 1024);
  EXPECT_FALSE(pair.client->writable());
  EXPECT_TRUE(ReadUpTo(*pair.server, 4 << 20).data == PatternBytes(2, 0, 4 << 20));
  Settle();
  EXPECT_TRUE(pair.client->writable());
  EXPECT_EQ(pair.client->stats().queued_bytes, 0u);
}

TEST_P(EndpointStreamTest, SmallWritesToASlowReaderWaitTogether) {
  constexpr size_t kWrites = 6000;
  constexpr size_t kSize = 10;
  StreamPair pair = Streams();
  for (size_t i = 0; i < kWrites; ++i) {
    pair.client->Write(Chain(PatternBytes(3, i * kSize, kSize)));
    if (i % 4 == 0) loop().Poll();
  }
  const Received received = ReadUpTo(*pair.server, kWrites * kSize);
  EXPECT_TRUE(received.end.ok()) << received.end;
  EXPECT_TRUE(received.data == PatternBytes(3, 0, kWrites * kSize));
}

// A refusal would end it, with the rest of what was written.
TEST_P(EndpointStreamTest, ItAsksNoMoreOfTheEndpointsQueueThanThatHolds) {
  RdmaOptions bytes = Quiet();
  RdmaOptions operations = Quiet();
  bytes.queue_bytes_max = 100'000;
  operations.queue_operations_max = 8;
  for (RdmaOptions options : {bytes, operations}) {
    options.receive_depth = 2;
    RdmaEndpoints both = OpenEndpoints(options, options);
    StreamPair pair = {AsStream(std::move(both.active)), AsStream(std::move(both.passive))};
    const std::string content = PatternBytes(7, 0, 1 << 20);
    // Each is a message of its own while there is room for it; the peer reads none.
    constexpr size_t kSmall = 12;
    for (size_t i = 0; i < kSmall; ++i) {
      pair.client->Write(Chain(content.substr(i, 1)));
      Settle();
    }
    pair.client->Write(Chain(content.substr(kSmall)));
    Fate shut;
    pair.client->ShutdownWrite(shut.OnDone());
    Settle();
    const Received received = ReadToEnd(*pair.server);
    EXPECT_TRUE(IsEof(received.end)) << received.end;
    EXPECT_TRUE(received.data == content);
    EXPECT_TRUE(Await(shut).ok()) << shut.status();
  }
}

TEST_P(EndpointStreamTest, ItSendsMessagesNoLargerThanThePeerTakes) {
  RdmaOptions small = Quiet();
  small.message_max = 5000;
  RdmaEndpoints both = Endpoints(Quiet(), small);
  StreamPair pair = {AsStream(std::move(both.active)), AsStream(std::move(both.passive))};
  const std::string content = PatternBytes(8, 0, 200'000);
  pair.client->Write(Chain(content));
  Fate shut;
  pair.client->ShutdownWrite(shut.OnDone());
  const Received received = ReadToEnd(*pair.server);
  EXPECT_TRUE(IsEof(received.end)) << received.end;
  EXPECT_TRUE(received.data == content);
  EXPECT_TRUE(Await(shut).ok()) << shut.status();
  Exchange(*pair.server, *pair.client, PatternBytes(9, 0, 200'000));
}

TEST_P(EndpointStreamTest, ItMayBeUsedBeforeTheEndpointIsOpen) {
  RdmaEndpoints both = Endpoints();
  StreamPair pair = {AsStream(std::move(both.active)), AsStream(std::move(both.passive))};
  Exchange(*pair.client, *pair.server, "early");
}

// Whether that was all of the stream, nobody has said.
TEST_P(EndpointStreamTest, AnEndpointClosedWithoutTheStreamsEndIsAReset) {
  RdmaEndpoints both = OpenEndpoints();
  StreamPtr stream = AsStream(std::move(both.active));
  Fate closed, write;
  both.passive->Send(Chain("prefix"));
  both.passive->Close(closed.OnDone());
  const Received received = ReadToEnd(*stream);
  EXPECT_EQ(received.data, "prefix");
  EXPECT_TRUE(absl::IsUnavailable(received.end)) << received.end;
  stream->Write(Chain("late"), write.OnDone());
  EXPECT_TRUE(absl::IsUnavailable(Await(write))) << write.status();
  EXPECT_TRUE(Await(closed).ok()) << closed.status();
}

TEST_P(EndpointStreamTest, AnEndpointThatNeverOpensEndsIt) {
  StreamPair below = Pair();
  RdmaOptions options = Quiet();
  options.open_deadline = kShort;
  StreamPtr stream = AsStream(RdmaEndpoint::Connect(std::move(below.client), options));
  Fate write;
  stream->Write(Chain("never"), write.OnDone());
  EXPECT_TRUE(IsDeadlineExceeded(Await(write))) << write.status();
  EXPECT_TRUE(IsDeadlineExceeded(Harness::Read(*stream).status()));
}

TEST_P(EndpointStreamTest, ALoopThatGoesFirstLeavesCallbacksUnrun) {
  StreamPair pair = Streams();
  StreamPair lingering = Streams();
  lingering.client = nullptr;
  Fate read, write;
  pair.client->ReadReady(read.OnRead());
  pair.client->Write(Chain("never"), write.OnDone());
  TakeLoop() = nullptr;
  EXPECT_EQ(read.dropped(), 1);
  EXPECT_EQ(write.dropped(), 1);
  pair.client->Write(BufferChain());
  pair.client->ReadReady(nullptr);
  pair.client->SetReadDeadline(kShort);
  pair.client->Abort();
  EXPECT_EQ(pair.client->stats().queued_bytes, 5u);
}

#ifdef PENSTOCK_HAVE_SECURE
TEST_P(EndpointStreamTest, SealedStreamsRunOnIt) {
  StreamPair pair = Streams();
  std::optional<absl::StatusOr<StreamPtr>> client, server;
  Seal(std::move(pair.client), InstantHandshaker({.server = false}), {},
       [&](absl::StatusOr<StreamPtr> sealed) { client = std::move(sealed); });
  Seal(std::move(pair.server), InstantHandshaker({.server = true}), {},
       [&](absl::StatusOr<StreamPtr> sealed) { server = std::move(sealed); });
  ASSERT_TRUE(Drive([&] { return client.has_value() && server.has_value(); }));
  ASSERT_TRUE(client->ok() && server->ok());
  PatternWriter writer(***client, 5, 2 << 20);
  PatternReader reader(*std::move(*server), 5);
  writer.Start();
  reader.Start();
  ASSERT_TRUE(Drive([&] { return reader.ended(); }));
  EXPECT_EQ(reader.received(), 2u << 20);
  EXPECT_TRUE(reader.intact());
  EXPECT_TRUE(IsEof(reader.end())) << reader.end();
}
#endif

// Of seconds, which pass at once on a simulated clock.
class EndpointStreamTimeTest : public EndpointStreamTest {};

TEST_P(EndpointStreamTimeTest, AnEndThatNobodyTakesIsGivenUpInTime) {
  StreamPair below = Pair();
  RdmaOptions options = Quiet();
  options.open_deadline = absl::InfiniteDuration();
  StreamPtr stream = AsStream(RdmaEndpoint::Connect(std::move(below.client), options));
  // Nothing was written, so only the end is to be told; the peer never opens.
  stream = nullptr;
  Pass(absl::Seconds(4));
  EXPECT_EQ(loop().Snapshot().open, 2u);
  Pass(absl::Seconds(2));
  EXPECT_EQ(loop().Snapshot().open, 1u);
}

INSTANTIATE_TEST_SUITE_P(Lanes, EndpointStreamTest, ::testing::ValuesIn(RdmaLaneEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Environments, EndpointStreamTest, ::testing::ValuesIn(RdmaEnvironments()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Simulated, EndpointStreamTimeTest,
                         ::testing::ValuesIn(SimulatedRdmaEnvironments()), EnvironmentName);

}  // namespace
}  // namespace penstock::internal
