#include "secure/alts_messages.h"

#include <gtest/gtest.h>

#include <string>

#include "testing/alts_fake_service.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

AltsFakeResponse FullResponse() {
  AltsFakeResponse response;
  response.out_frames = "frames";
  response.consumed = 7;
  response.has_result = true;
  response.result.max_frame_size = 65536;
  response.status_details = "fine";
  return response;
}

TEST(AltsMessages, ReadsEveryFieldOfAResponse) {
  const absl::StatusOr<AltsResponse> read = DecodeAltsResponse(FullResponse().Encode());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->out_frames, "frames");
  EXPECT_EQ(read->bytes_consumed, 7u);
  EXPECT_EQ(read->status_code, 0u);
  EXPECT_EQ(read->status_details, "fine");
  ASSERT_TRUE(read->result.has_value());
  EXPECT_EQ(read->result->application_protocol, "grpc");
  EXPECT_EQ(read->result->record_protocol, "ALTSRP_GCM_AES128_REKEY");
  EXPECT_EQ(read->result->key_data_size, 47u);
  EXPECT_EQ(read->result->key.view(), "negotiated-key-data-for-altsrp-gcm-aes128-re");
  EXPECT_EQ(read->result->peer_account, "peer@service");
  EXPECT_TRUE(read->result->has_local_identity);
  EXPECT_TRUE(read->result->has_peer_versions);
  EXPECT_EQ(read->result->peer_max_version.major, 3u);
  EXPECT_EQ(read->result->peer_min_version.major, 2u);
  EXPECT_EQ(read->result->max_frame_size, 65536u);
}

TEST(AltsMessages, TellsAbsenceFromZero) {
  const absl::StatusOr<AltsResponse> empty = DecodeAltsResponse("");
  ASSERT_TRUE(empty.ok());
  EXPECT_FALSE(empty->status_code.has_value());
  EXPECT_FALSE(empty->result.has_value());
  const absl::StatusOr<AltsResponse> zero = DecodeAltsResponse(AltsFakeResponse().Encode());
  ASSERT_TRUE(zero.ok());
  EXPECT_EQ(zero->status_code, 0u);
}

// Cut short anywhere, it is no message, or one that lacks what came last.
TEST(AltsMessages, EveryCutIsNoticedOrLacksTheStatus) {
  const std::string whole = FullResponse().Encode();
  for (size_t size = 0; size < whole.size(); ++size) {
    const absl::StatusOr<AltsResponse> read = DecodeAltsResponse(whole.substr(0, size));
    EXPECT_TRUE(!read.ok() || !read->status_code.has_value()) << size;
  }
}

TEST(AltsMessages, MalformedPartsSpoilTheWhole) {
  for (const std::string& bad :
       {std::string("\x1a\x02\x0a\x05"),          // result: a protocol longer than the result
        std::string("\x1a\x04\x22\x02\x0a\x05"),  // its peer's identity
        std::string("\x1a\x02\x18\x05"),          // its key as a number
        std::string("\x1a\x04\x3a\x02\x0a\x05"),  // its versions
        std::string("\x1a\x06\x3a\x04\x0a\x02\x0a\x05"),  // one of its versions
        std::string("\x22\x02\x12\x05"),                  // status
        std::string("\x0d"
                    "1234")}) {  // frames as a fixed number
    EXPECT_TRUE(absl::IsInvalidArgument(DecodeAltsResponse(bad).status())) << bad.size();
  }
}

TEST(AltsMessages, RequestsHaveTheBytesOfTheProtocol) {
  EXPECT_EQ(EncodeAltsNext("in"), "\x1a\x04\x0a\x02in");
  AltsServiceOptions options;
  const HandshakeOptions handshake;
  const AltsStart start{.options = options, .handshake = handshake, .max_frame_size = 1};
  EXPECT_EQ(EncodeAltsClientStart(start),
            "\x0a\x31"
            "\x08\x02"      // security protocol: ALTS
            "\x12\x04grpc"  // application protocol
            "\x1a\x17"
            "ALTSRP_GCM_AES128_REKEY"                                   // record protocol
            "\x4a\x0c\x0a\x04\x08\x02\x10\x01\x12\x04\x08\x02\x10\x01"  // RPC versions
            "\x50\x01");                                                // frame size
  EXPECT_EQ(EncodeAltsServerStart(start, "in"),
            "\x12\x39"
            "\x0a\x04grpc"
            "\x12\x1d\x08\x02\x12\x19\x0a\x17"
            "ALTSRP_GCM_AES128_REKEY"
            "\x1a\x02in"
            "\x32\x0c\x0a\x04\x08\x02\x10\x01\x12\x04\x08\x02\x10\x01"
            "\x38\x01");
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
