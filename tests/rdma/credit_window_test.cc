#include "rdma/credit_window.h"

#include <gtest/gtest.h>

namespace penstock::internal {
namespace {

TEST(CreditWindowTest, NothingIsSentBeyondWhatThePeerHasRoomFor) {
  CreditWindow window(4);
  EXPECT_EQ(window.available(), 0u);
  window.Open(2);
  EXPECT_EQ(window.TakeNext(), 1u);
  EXPECT_EQ(window.TakeNext(), 2u);
  EXPECT_EQ(window.available(), 0u);
  ASSERT_TRUE(window.OnHeader(3, 2).ok());
  EXPECT_EQ(window.available(), 1u);
  EXPECT_EQ(window.acknowledged(), 2u);
}

TEST(CreditWindowTest, CreditsThatGoBackOrExceedTheRoomAreRefused) {
  CreditWindow window(4);
  window.Open(2);
  window.TakeNext();
  ASSERT_TRUE(window.OnHeader(3, 1).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(window.OnHeader(2, 1)));
  EXPECT_TRUE(absl::IsInvalidArgument(window.OnHeader(4, 1)));
  EXPECT_EQ(window.available(), 2u);
}

TEST(CreditWindowTest, CreditsForPiecesThatAreNotAcknowledgedAreRefused) {
  CreditWindow window(4);
  window.Open(2);
  window.TakeNext();
  EXPECT_TRUE(absl::IsInvalidArgument(window.OnHeader(3, 0)));
  EXPECT_EQ(window.available(), 1u);
}

// As CREDIT has them. What was received is told of later.
TEST(CreditWindowTest, CreditsAloneMayBeForPiecesThatAreNotAcknowledged) {
  CreditWindow window(4);
  window.Open(2);
  window.TakeNext();
  window.TakeNext();
  EXPECT_TRUE(absl::IsInvalidArgument(window.OnCredits(1)));
  EXPECT_TRUE(absl::IsInvalidArgument(window.OnCredits(5)));
  ASSERT_TRUE(window.OnCredits(4).ok());
  EXPECT_EQ(window.available(), 2u);
  EXPECT_EQ(window.acknowledged(), 0u);
  EXPECT_TRUE(window.OnHeader(4, 2).ok());
  EXPECT_EQ(window.available(), 2u);
}

TEST(CreditWindowTest, AcknowledgingWhatWasNotSentIsRefused) {
  CreditWindow window(4);
  window.Open(2);
  window.TakeNext();
  EXPECT_TRUE(absl::IsInvalidArgument(window.OnHeader(2, 2)));
  EXPECT_EQ(window.acknowledged(), 0u);
  // An acknowledgement that goes back counts round to one of too many.
  ASSERT_TRUE(window.OnHeader(2, 1).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(window.OnHeader(2, 0)));
}

TEST(CreditWindowTest, PiecesOutOfOrderOrWithoutACreditAreRefused) {
  CreditWindow window(2);
  window.Open(2);
  EXPECT_TRUE(absl::IsInvalidArgument(window.OnPiece(2)));
  EXPECT_TRUE(window.OnPiece(1).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(window.OnPiece(1)));
  EXPECT_TRUE(window.OnPiece(2).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(window.OnPiece(3)));
  window.Release(1);
  EXPECT_TRUE(window.OnPiece(3).ok());
}

TEST(CreditWindowTest, NewsAreWhatHasComeAndHalfAWindowOfRoom) {
  CreditWindow window(4);
  window.Open(4);
  EXPECT_FALSE(window.NewsDue());
  ASSERT_TRUE(window.OnPiece(1).ok());
  ASSERT_TRUE(window.OnPiece(2).ok());
  EXPECT_TRUE(window.NewsDue());
  window.OnTold();
  EXPECT_FALSE(window.NewsDue());
  window.Release(1);
  EXPECT_FALSE(window.NewsDue());
  window.Release(1);
  EXPECT_TRUE(window.NewsDue());
  window.OnTold();
  EXPECT_FALSE(window.NewsDue());
}

// A peer of another make, with more room than 16 bits count: all of its credits are true, and no
// more is on the way than can be acknowledged.
TEST(CreditWindowTest, APeerMayHaveRoomForMoreThanAcknowledgementsCount) {
  for (const uint32_t depth : {40'000u, 100'000u, UINT32_MAX}) {
    CreditWindow window(1);
    window.Open(depth);
    uint32_t received = 0;
    for (int round = 0; round < 5; ++round) {
      EXPECT_EQ(window.available(), CreditWindow::kDepthMax) << depth;
      while (window.available() > 0) received = window.TakeNext();
      // It has all, and has room for each of them again.
      ASSERT_TRUE(window.OnHeader(depth + received, static_cast<uint16_t>(received)).ok()) << depth;
    }
    EXPECT_TRUE(absl::IsInvalidArgument(
        window.OnHeader(depth + received - 1, static_cast<uint16_t>(received))));
    EXPECT_EQ(window.sent(), 5 * CreditWindow::kDepthMax);
  }
}

TEST(CreditWindowTest, UnreadPiecesTakeRoomOfAPeerThatHasMuch) {
  constexpr uint32_t kPeers = 40'000;
  CreditWindow window(1);
  window.Open(kPeers);
  while (window.available() > 0) window.TakeNext();
  ASSERT_TRUE(window.OnHeader(kPeers, static_cast<uint16_t>(window.sent())).ok());
  EXPECT_EQ(window.available(), kPeers - CreditWindow::kDepthMax);
  while (window.available() > 0) window.TakeNext();
  EXPECT_EQ(window.sent(), kPeers);
  // It reads all of them at once.
  ASSERT_TRUE(window.OnHeader(2 * kPeers, static_cast<uint16_t>(window.sent())).ok());
  EXPECT_EQ(window.available(), CreditWindow::kDepthMax);
  EXPECT_TRUE(absl::IsInvalidArgument(
      window.OnHeader(2 * kPeers + 1, static_cast<uint16_t>(window.sent()))));
}

TEST(CreditWindowTest, CountsGoOnBeyondTheirBits) {
  constexpr uint32_t kDepth = CreditWindow::kDepthMax;
  CreditWindow sender(1);
  CreditWindow receiver(kDepth);
  sender.Open(kDepth);
  // More than 2^32 would take minutes; 2^16, the bits of acknowledgements, are passed many times.
  for (int round = 0; round < 40; ++round) {
    while (sender.available() > 0) ASSERT_TRUE(receiver.OnPiece(sender.TakeNext()).ok());
    receiver.Release(kDepth);
    ASSERT_TRUE(
        sender.OnHeader(receiver.granted(), static_cast<uint16_t>(receiver.received())).ok());
    ASSERT_EQ(sender.acknowledged(), sender.sent());
  }
  EXPECT_EQ(sender.sent(), 40u * kDepth);
}

}  // namespace
}  // namespace penstock::internal
