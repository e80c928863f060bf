// What an endpoint makes of the bounds of its control stream, and what it bounds there itself.
#include <penstock/rdma.h>

#include <optional>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "rdma/control_codec.h"
#include "testing/hostile_harness.h"

namespace penstock::internal {
namespace {

constexpr absl::Duration kShort = absl::Milliseconds(20);

class EndpointControlTest : public HostileHarness {
 protected:
  // With a peer whose stream takes little by itself.
  void OpenTight(const StreamOptions& own) {
    GateOffer offer;
    offer.terms = {.depth = kPeerDepth, .size = kStreamPieceMax, .read_depth = 2};
    OpenOver(Pair(own, SmallBuffers()), [offer](const ControlHello&) { return offer; });
  }
  // How it ends with a peer that asks so many times 1,000 and takes no answer.
  absl::Status EndOfQuestions(int times) {
    std::string pings;
    for (int i = 0; i < 1000; ++i) pings += EncodeControl(ControlPing{.token = 1});
    std::optional<absl::Status> end;
    endpoint_->Receive([&end](auto message) { end = message.status(); });
    peer_->StopReading();
    for (int i = 0; i < times && !end.has_value(); ++i) {
      peer_->Send(pings);
      if (i % 16 == 0) Settle();
    }
    EXPECT_TRUE(Drive([&end] { return end.has_value(); }));
    return end.value_or(absl::OkStatus());
  }
};

// Two endpoints with nothing to say to each other are idle, and not dead.
TEST_P(EndpointControlTest, TheReadAndIdleDeadlinesOfTheStreamAreTurnedOff) {
  StreamPair streams = Pair();
  for (Stream* const stream : {streams.client.get(), streams.server.get()}) {
    stream->SetReadDeadline(kShort);
    stream->SetIdleDeadline(kShort);
  }
  auto active = RdmaEndpoint::Connect(std::move(streams.client), Quiet());
  auto passive = RdmaEndpoint::Accept(std::move(streams.server), Quiet());
  ASSERT_TRUE(Open(*active).ok());
  Pass(5 * kShort);
  active->Send(Chain("still there"));
  const absl::StatusOr<std::string> received = Receive(*passive);
  ASSERT_TRUE(received.ok()) << received.status();
  EXPECT_EQ(*received, "still there");
}

TEST_P(EndpointControlTest, ItsWriteDeadlineHolds) {
  StreamOptions own = SmallBuffers();
  own.write_deadline = absl::Seconds(1);  // holds while it opens, too
  OpenTight(own);
  const absl::Status end = EndOfQuestions(20);
  EXPECT_TRUE(IsDeadlineExceeded(end)) << end;
}

TEST_P(EndpointControlTest, APeerThatAsksAndTakesNoAnswerIsNotAnsweredForEver) {
  OpenTight(SmallBuffers());
  // 4 MiB of PONG, and some that the stream has taken.
  const absl::Status end = EndOfQuestions(400);
  EXPECT_TRUE(absl::IsResourceExhausted(end)) << end;
}

INSTANTIATE_TEST_SUITE_P(Environments, EndpointControlTest, ::testing::ValuesIn(RdmaEnvironments()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
