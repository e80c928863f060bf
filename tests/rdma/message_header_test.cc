#include "rdma/message_header.h"

#include <array>
#include <string_view>

#include <gtest/gtest.h>

namespace penstock::internal {
namespace {

constexpr MessageHeader kHeader = {.type = MessageType::kWrite,
                                   .flags = kMessageLast,
                                   .received = 0x0203,
                                   .tag = 0x04050607,
                                   .sequence = 0x08090a0b,
                                   .credits = 0x0c0d0e0f};
constexpr std::string_view kGolden(
    "\x03\x01\x03\x02\x07\x06\x05\x04\x0b\x0a\x09\x08\x0f\x0e\x0d\x0c", 16);

TEST(MessageHeaderTest, GoldenBytesBothWays) {
  std::array<char, kMessageHeaderSize> bytes;
  EncodeMessageHeader(kHeader, bytes);
  EXPECT_EQ(std::string_view(bytes.data(), bytes.size()), kGolden);
  const absl::StatusOr<MessageHeader> header = DecodeMessageHeader(kGolden);
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(*header, kHeader);
}

TEST(MessageHeaderTest, TypesThatAreNotKnownAndShortOnesAreRefused) {
  std::array<char, kMessageHeaderSize> bytes;
  EncodeMessageHeader(kHeader, bytes);
  for (const int type : {0, 9, 255}) {
    bytes[0] = static_cast<char>(type);
    EXPECT_TRUE(absl::IsInvalidArgument(DecodeMessageHeader({bytes.data(), bytes.size()}).status()))
        << type;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeMessageHeader(kGolden.substr(0, 15)).status()));
}

TEST(MessageHeaderTest, AccessPrefixHasGoldenBytesBothWays) {
  const AccessPrefix access = {
      .region = 1, .offset = 0x0203, .size = uint64_t{4} << 56, .epoch = 0x05060708};
  std::array<char, kAccessPrefixSize> bytes;
  EncodeAccessPrefix(access, bytes);
  constexpr std::string_view kExpected(
      "\x01\0\0\0\0\0\0\0\x03\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\x04\x08\x07\x06\x05", 28);
  EXPECT_EQ(std::string_view(bytes.data(), bytes.size()), kExpected);
  EXPECT_EQ(DecodeAccessPrefix(kExpected), access);
}

TEST(MessageHeaderTest, OfferPartsHaveGoldenBytesBothWays) {
  const OfferPart part = {
      .address = 0x0102030405060708, .size = uint64_t{3} << 32 | 5, .key = 0x0a0b0c0d};
  std::array<char, kOfferPartSize> bytes;
  EncodeOfferPart(part, bytes);
  constexpr std::string_view kExpected(
      "\x08\x07\x06\x05\x04\x03\x02\x01\x05\0\0\0\x03\0\0\0\x0d\x0c\x0b\x0a", 20);
  EXPECT_EQ(std::string_view(bytes.data(), bytes.size()), kExpected);
  EXPECT_EQ(DecodeOfferPart(kExpected), part);
  EXPECT_EQ(static_cast<int>(MessageType::kOffer), 7);
  EXPECT_EQ(static_cast<int>(MessageType::kFetched), 8);
  EXPECT_EQ(OfferRegion(1, 0), 0x8000000000000008);
  EXPECT_EQ(OfferRegion(UINT32_MAX, 7), 0x80000007ffffffff);
}

TEST(MessageFrontTest, IsTheHeaderAndThenTheAccess) {
  const MessageHeader header = {.type = MessageType::kWrite, .tag = 7, .sequence = 9};
  const AccessPrefix access = {.region = 3, .offset = 1 << 20, .epoch = 5};
  const MessageFront alone(header, std::nullopt);
  const MessageFront both(header, access);
  ASSERT_EQ(alone.view().size(), kMessageHeaderSize);
  ASSERT_EQ(both.view().size(), kMessageHeaderSize + kAccessPrefixSize);
  EXPECT_EQ(both.view().substr(0, kMessageHeaderSize), alone.view());
  EXPECT_EQ(*DecodeMessageHeader(both.view()), header);
  EXPECT_EQ(DecodeAccessPrefix(both.view().substr(kMessageHeaderSize)), access);
}

}  // namespace
}  // namespace penstock::internal
