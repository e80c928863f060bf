#include "rdma/lane_window.h"

#include <penstock/buffer.h>

#include <algorithm>
#include <optional>

#include <gtest/gtest.h>

#include "rdma/credit_window.h"
#include "testing/allocations.h"

namespace penstock::internal {
namespace {

constexpr uint32_t kDepth = 16;

class LaneWindowTest : public ::testing::Test {
 protected:
  LaneWindowTest() { window_.Open(kDepth, kDepth); }

  void Send(MessageType type, uint32_t sequence = 0) {
    window_.OnSent({.type = type, .sequence = sequence}, std::nullopt, {});
  }
  // The peer says that it has `received` by now.
  absl::Status Told(uint16_t received, uint16_t* pieces = nullptr) {
    MessageHeader header{.received = received};
    const absl::Status status = window_.OnHeader(header);
    if (pieces != nullptr) *pieces = header.received;
    return status;
  }

  LaneWindow window_;
};

TEST_F(LaneWindowTest, TheLastReceivesAreForNewsAlone) {
  uint32_t sent = 0;
  for (; window_.HasRoom(); ++sent) Send(MessageType::kMessage);
  EXPECT_EQ(sent, kDepth + LaneWindow::kSpare / 2);
  for (; window_.HasCreditRoom(); ++sent) Send(MessageType::kCredit);
  EXPECT_EQ(sent, kDepth + LaneWindow::kSpare);
  ASSERT_TRUE(Told(static_cast<uint16_t>(sent)).ok());
  EXPECT_TRUE(window_.HasRoom());
}

TEST_F(LaneWindowTest, AcknowledgementsOfAllAreToldOnAsThoseOfPieces) {
  Send(MessageType::kMessage, 1);
  Send(MessageType::kWrite, 1);
  Send(MessageType::kOffer, 2);
  Send(MessageType::kCredit);
  uint16_t pieces = 0;
  ASSERT_TRUE(Told(2, &pieces).ok());
  EXPECT_EQ(pieces, 1);
  ASSERT_TRUE(Told(2, &pieces).ok());
  EXPECT_EQ(pieces, 1);
  ASSERT_TRUE(Told(4, &pieces).ok());
  EXPECT_EQ(pieces, 2);
  EXPECT_FALSE(window_.TakeMessage().has_value());
}

TEST_F(LaneWindowTest, WhatWasNotSentCannotBeAcknowledged) {
  Send(MessageType::kMessage, 1);
  ASSERT_TRUE(absl::IsInvalidArgument(Told(2)));
  ASSERT_TRUE(Told(1).ok());
  // Nor can it go back.
  EXPECT_TRUE(absl::IsInvalidArgument(Told(0)));
  EXPECT_TRUE(absl::IsInvalidArgument(window_.OnFallback(0)));
  EXPECT_TRUE(absl::IsInvalidArgument(window_.OnFallback(2)));
  EXPECT_TRUE(absl::IsInvalidArgument(window_.OnFallback((uint64_t{1} << 16) + 1)));
  EXPECT_TRUE(window_.OnFallback(1).ok());
}

TEST_F(LaneWindowTest, WhatIsHeldCannotBeAcknowledged) {
  for (uint32_t i = 1; i <= 3; ++i) Send(MessageType::kMessage, i);
  window_.SetHeld(2);
  EXPECT_TRUE(absl::IsInvalidArgument(Told(2)));
  EXPECT_TRUE(absl::IsInvalidArgument(window_.OnFallback(2)));
  ASSERT_TRUE(Told(1).ok());
  window_.SetHeld(1);
  EXPECT_TRUE(absl::IsInvalidArgument(Told(3)));
  EXPECT_TRUE(window_.OnFallback(2).ok());
  EXPECT_EQ(window_.TakeMessage()->header.sequence, 3u) << "it goes by the stream";
}

TEST_F(LaneWindowTest, MoreThanThePeerMaySendIsRefused) {
  for (uint32_t i = 0; i < kDepth + LaneWindow::kSpare; ++i) ASSERT_TRUE(Told(0).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(Told(0)));
}

TEST_F(LaneWindowTest, CountsGoOnBeyondTheirSixteenBits) {
  uint16_t pieces = 0;
  for (uint32_t i = 1; i <= 70'000; ++i) {
    Send(MessageType::kMessage, i);
    ASSERT_TRUE(Told(static_cast<uint16_t>(i), &pieces).ok());
    window_.OnTold();
    ASSERT_EQ(pieces, static_cast<uint16_t>(i));
  }
  EXPECT_EQ(window_.received(), 70'000u);
  EXPECT_TRUE(window_.OnFallback(70'000).ok());
}

TEST_F(LaneWindowTest, WhatThePeerHasNotIsLeft) {
  for (uint32_t i = 1; i <= 5; ++i) Send(MessageType::kMessage, i);
  ASSERT_TRUE(Told(1).ok());
  ASSERT_TRUE(window_.OnFallback(3).ok());
  EXPECT_EQ(window_.TakeMessage()->header.sequence, 4u);
  EXPECT_EQ(window_.TakeMessage()->header.sequence, 5u);
  EXPECT_FALSE(window_.TakeMessage().has_value());
}

TEST_F(LaneWindowTest, WritesKeepTheirPlacesAmongMessages) {
  const auto write = [&](uint32_t number) {
    BufferChain none;
    window_.OnWriteSent({}, number, none);
  };
  write(1);
  Send(MessageType::kMessage, 1);
  write(2);
  Send(MessageType::kMessage, 2);
  write(3);
  write(4);
  Send(MessageType::kMessage, 3);
  // Of the first two it is known, of one by the message after it.
  window_.OnWriteDone();
  ASSERT_TRUE(window_.OnFallback(2).ok());
  EXPECT_EQ(window_.TakeDoneWrite()->number, 2u);
  EXPECT_FALSE(window_.TakeDoneWrite().has_value());
  EXPECT_EQ(window_.TakeWrite()->number, 3u);
  EXPECT_EQ(window_.TakeWrite()->number, 4u);
  EXPECT_FALSE(window_.TakeWrite().has_value());
  EXPECT_EQ(window_.TakeMessage()->header.sequence, 3u);
}

TEST_F(LaneWindowTest, AWriteWaitsForTheMessagesBeforeIt) {
  Send(MessageType::kMessage, 1);
  BufferChain none;
  window_.OnWriteSent({}, 1, none);
  ASSERT_TRUE(window_.OnFallback(0).ok());
  EXPECT_FALSE(window_.TakeDoneWrite().has_value());
  EXPECT_FALSE(window_.TakeWrite().has_value());
  EXPECT_EQ(window_.TakeMessage()->header.sequence, 1u);
  EXPECT_EQ(window_.TakeWrite()->number, 1u);
}

TEST_F(LaneWindowTest, ASteadyFlowAllocatesNothing) {
  if (!CanCountAllocations()) GTEST_SKIP() << "a sanitizer has its own allocator";
  BufferPool pool{PoolOptions()};
  const Buffer bytes = *pool.Copy("payload");
  const auto flow = [&](uint32_t from, uint32_t to) {
    for (uint32_t i = from; i < to; ++i) {
      BufferChain payload = bytes.Share();
      // Messages, and writes that the peer's loop makes.
      window_.OnSent({.type = i % 2 == 0 ? MessageType::kMessage : MessageType::kWrite},
                     i % 2 == 0 ? std::nullopt : std::optional<AccessPrefix>({.region = i}),
                     LaneWindow::ShareOf(payload));
      ASSERT_TRUE(Told(static_cast<uint16_t>(i + 1)).ok());
      window_.OnTold();
    }
  };
  flow(0, 20);
  const int64_t before = AllocationsOnThisThread();
  flow(20, 200);
  EXPECT_EQ(AllocationsOnThisThread(), before);
}

TEST_F(LaneWindowTest, WhatThePeerMayReceiveChangesByItsConsent) {
  constexpr uint32_t kIdle = LaneWindow::kIdleGrant;
  EXPECT_EQ(*window_.SetLimit(kIdle), kIdle);
  uint32_t sent = 0;
  for (; window_.HasRoom(); ++sent) Send(MessageType::kMessage, sent + 1);
  EXPECT_EQ(sent, kIdle - LaneWindow::kSpare / 2);
  EXPECT_EQ(*window_.SetLimit(kDepth + LaneWindow::kSpare), kDepth + LaneWindow::kSpare);
  Send(MessageType::kMessage, ++sent);
  EXPECT_EQ(*window_.SetLimit(kIdle), kDepth + LaneWindow::kSpare) << "more are on the way";
  ASSERT_TRUE(Told(1).ok());
  EXPECT_EQ(*window_.SetLimit(kIdle), kIdle);
  EXPECT_FALSE(window_.HasRoom());
  // What it has received it can tell all the same.
  for (uint32_t i = 0; i < LaneWindow::kSpare / 2; ++i) {
    EXPECT_TRUE(window_.HasCreditRoom()) << i;
    Send(MessageType::kCredit, ++sent);
  }
  EXPECT_FALSE(window_.HasCreditRoom());
  EXPECT_TRUE(absl::IsInvalidArgument(window_.SetLimit(kIdle - 1).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(window_.SetLimit(kDepth + LaneWindow::kSpare + 1).status()));
}

TEST_F(LaneWindowTest, WhatThePeerGrantsIsUsedAsFarAsItCanBeCounted) {
  constexpr uint32_t kMost = CreditWindow::kDepthMax + LaneWindow::kSpare;
  window_.Open(kDepth, UINT32_MAX);
  uint32_t sent = 0;
  for (const uint32_t receives : {LaneWindow::kIdleGrant, 1000u, kMost, UINT32_MAX}) {
    EXPECT_EQ(*window_.SetLimit(receives), receives);
    for (; window_.HasRoom(); ++sent) Send(MessageType::kMessage, sent + 1);
    EXPECT_EQ(sent, std::min(receives, kMost) - LaneWindow::kSpare / 2);
  }
}

TEST_F(LaneWindowTest, ThePeerKeepsToWhatItHasConsentedTo) {
  window_.SetGranted(LaneWindow::kIdleGrant);
  MessageHeader header;
  for (uint32_t i = 0; i < LaneWindow::kIdleGrant; ++i) {
    EXPECT_EQ(window_.NewsDue(), i >= 3) << "four tellings are enough for all of them";
    ASSERT_TRUE(window_.OnHeader(header).ok());
  }
  EXPECT_TRUE(absl::IsInvalidArgument(window_.OnHeader(header)));
}

// However the two sides send, until neither has anything left to say, neither is stuck.
TEST_F(LaneWindowTest, TwoFullSidesGoOn) {
  for (uint32_t depth : {2u, 3u, 16u, 100u}) {
    struct Side {
      LaneWindow window;
      Fifo<MessageHeader> wire;
      uint32_t left = 1000;
    } sides[2];
    for (Side& side : sides) side.window.Open(depth, depth);
    const auto send = [](Side& side, MessageType type) {
      MessageHeader header{.type = type, .received = static_cast<uint16_t>(side.window.received())};
      side.window.OnTold();
      side.window.OnSent(header, std::nullopt, {});
      side.wire.push(header);
    };
    bool moved = true;
    while (moved) {
      moved = false;
      // Each says all it may before it hears anything.
      for (Side& side : sides) {
        for (; side.left > 0 && side.window.HasRoom(); --side.left) {
          send(side, MessageType::kWrite);
          moved = true;
        }
      }
      for (int i = 0; i < 2; ++i) {
        Side& to = sides[i];
        while (!sides[1 - i].wire.empty()) {
          MessageHeader header = sides[1 - i].wire.pop();
          ASSERT_TRUE(to.window.OnHeader(header).ok());
          moved = true;
        }
        if (to.window.NewsDue() && to.window.HasCreditRoom()) send(to, MessageType::kCredit);
      }
    }
    EXPECT_EQ(sides[0].left + sides[1].left, 0u) << depth;
  }
}

}  // namespace
}  // namespace penstock::internal
