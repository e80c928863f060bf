#include "secure/record_format.h"

#include <string>

#include <gtest/gtest.h>

namespace {

using penstock::kRecordFrameMax;
using penstock::internal::CheckRecordHeader;
using penstock::internal::IsRecordHeader;
using penstock::internal::kRecordHeaderSize;
using penstock::internal::RecordPayloadSize;
using penstock::internal::WriteRecordHeader;

std::string Header(uint32_t length, uint32_t type) {
  std::string bytes;
  for (uint32_t word : {length, type}) {
    for (int i = 0; i < 4; ++i) bytes += static_cast<char>(word >> (8 * i));
  }
  return bytes;
}

// How many bytes of `header` are in when it is refused; 0: never.
size_t RefusedAt(const std::string& header, uint32_t frame_max) {
  size_t refused = 0;
  for (size_t n = 1; n <= header.size() && refused == 0; ++n) {
    const absl::Status status = CheckRecordHeader(std::string_view(header).substr(0, n), frame_max);
    if (status.ok()) continue;
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    refused = n;
  }
  EXPECT_EQ(header.size(), kRecordHeaderSize);
  EXPECT_EQ(IsRecordHeader(header.data(), frame_max), refused == 0);
  return refused;
}

TEST(RecordFormat, WritesWhatItReads) {
  for (size_t payload : {0u, 1u, 16u, 255u, 256u, 65'536u, kRecordFrameMax - 24}) {
    std::string header(kRecordHeaderSize, '?');
    WriteRecordHeader(header.data(), payload);
    EXPECT_EQ(header, Header(static_cast<uint32_t>(payload) + 20, 6));
    EXPECT_EQ(RefusedAt(header, kRecordFrameMax), 0u);
    EXPECT_EQ(RecordPayloadSize(header), payload);
  }
}

TEST(RecordFormat, TheLengthIsJudgedAtItsLastByte) {
  for (uint32_t length : {0u, 1u, 3u, 4u, 19u}) {
    EXPECT_EQ(RefusedAt(Header(length, 6), kRecordFrameMax), 4u) << length;
  }
  for (uint32_t length : {(1u << 20) + 1, 1u << 24, 0x7fffffffu, 0x80000000u, 0xffffffffu}) {
    EXPECT_EQ(RefusedAt(Header(length, 6), kRecordFrameMax), 4u) << length;
  }
  EXPECT_EQ(RefusedAt(Header(20, 6), kRecordFrameMax), 0u);
  EXPECT_EQ(RefusedAt(Header(1u << 20, 6), kRecordFrameMax), 0u);
  EXPECT_EQ(RefusedAt(Header(20, 6), 24), 0u);
  EXPECT_EQ(RefusedAt(Header(21, 6), 24), 4u);
}

// TLS alerts and handshake messages in the place of a record: what a client that was refused, or
// that speaks to the wrong port, sends.
TEST(RecordFormat, TlsAndPlainTextAreRefused) {
  // As a length the alert is 197,399, which is no more than 1 MiB: only the type gives it away.
  EXPECT_EQ(RefusedAt(std::string("\x17\x03\x03\x00\x13\x01\x02\x03", 8), kRecordFrameMax), 5u);
  EXPECT_EQ(RefusedAt("GET / HT", kRecordFrameMax), 4u);
}

TEST(RecordFormat, EveryByteOfTheTypeCounts) {
  for (int bit = 0; bit < 32; ++bit) {
    EXPECT_EQ(RefusedAt(Header(100, 6u ^ (1u << bit)), kRecordFrameMax), 5u + bit / 8) << bit;
  }
}

}  // namespace
