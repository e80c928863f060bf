// HostileHarness: an endpoint, and a RawPeer that breaks the protocol as a test wants it.
//
// Owns both. One thread.
#ifndef PENSTOCK_TESTS_TESTING_HOSTILE_HARNESS_H_
#define PENSTOCK_TESTS_TESTING_HOSTILE_HARNESS_H_

#include <penstock/export.h>
#include <penstock/rdma.h>

#include <cstdint>
#include <memory>
#include <utility>

#include <gtest/gtest.h>

#include "rdma/control_message.h"
#include "rdma/message_header.h"
#include "testing/raw_peer.h"
#include "testing/rdma_pair.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class HostileHarness : public RdmaHarness {
 protected:
  static constexpr uint32_t kPeerDepth = 4;

  void TearDown() override {
    peer_ = nullptr;
    endpoint_ = nullptr;
    RdmaHarness::TearDown();
  }
  // The endpoint is open with a peer that gives this answer.
  void OpenWithAnswer(RawPeer::Answer answer, RdmaOptions options = Quiet(),
                      uint64_t features = 0) {
    OpenOver(Pair(), std::move(answer), options, features);
  }
  void OpenOver(StreamPair streams, RawPeer::Answer answer, RdmaOptions options = Quiet(),
                uint64_t features = 0) {
    endpoint_ = RdmaEndpoint::Connect(std::move(streams.client), options);
    peer_ = std::make_unique<RawPeer>(std::move(streams.server), std::move(answer), features);
    ASSERT_TRUE(Open(*endpoint_).ok());
    ASSERT_TRUE(Drive([this] { return peer_->open(); }));
  }
  MessageHeader Header(MessageType type, uint32_t sequence, uint16_t received = 0) const {
    return {.type = type,
            .flags = kMessageLast,
            .received = received,
            .tag = peer_->tag(),
            .sequence = sequence,
            .credits = kPeerDepth};
  }
  // The endpoint has ended for what the peer did, and has told it so.
  void ExpectViolation() {
    const absl::Status end = Receive(*endpoint_).status();
    EXPECT_TRUE(absl::IsInvalidArgument(end)) << end;
    EXPECT_TRUE(Drive([this] { return peer_->ended(); }));
    const auto* close = peer_->Last<ControlClose>();
    ASSERT_NE(close, nullptr);
    EXPECT_EQ(close->code, CloseCode::kViolation) << close->text;
  }

  std::unique_ptr<RdmaEndpoint> endpoint_;
  std::unique_ptr<RawPeer> peer_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_HOSTILE_HARNESS_H_
