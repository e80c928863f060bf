#include <penstock/record_protocol.h>

#include <gtest/gtest.h>

#include "absl/status/status.h"

namespace {

using penstock::ParseRecordProtocol;
using penstock::RecordKeySize;
using penstock::RecordProtocol;
using penstock::RecordProtocolName;

TEST(RecordProtocol, NamesAreGrpcs) {
  EXPECT_EQ(RecordProtocolName(RecordProtocol::kGcmAes128), "ALTSRP_GCM_AES128");
  EXPECT_EQ(RecordProtocolName(RecordProtocol::kGcmAes128Rekey), "ALTSRP_GCM_AES128_REKEY");
  for (RecordProtocol protocol : {RecordProtocol::kGcmAes128, RecordProtocol::kGcmAes128Rekey}) {
    ASSERT_TRUE(ParseRecordProtocol(RecordProtocolName(protocol)).ok());
    EXPECT_EQ(*ParseRecordProtocol(RecordProtocolName(protocol)), protocol);
  }
}

TEST(RecordProtocol, AnUnknownNameListsTheKnown) {
  for (const char* name :
       {"", "ALTSRP_GMAC_128", "ALTSRP_GCM_AES128_REKEY2", "altsrp_gcm_aes128"}) {
    const absl::Status status = ParseRecordProtocol(name).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_NE(status.message().find("ALTSRP_GCM_AES128 and ALTSRP_GCM_AES128_REKEY"),
              absl::string_view::npos)
        << status;
  }
}

TEST(RecordProtocol, KeySizesAndBounds) {
  EXPECT_EQ(RecordKeySize(RecordProtocol::kGcmAes128), 16u);
  EXPECT_EQ(RecordKeySize(RecordProtocol::kGcmAes128Rekey), 44u);
  // A length field of exactly 1 MiB, the most that gRPC accepts.
  EXPECT_EQ(penstock::kRecordFrameMax, 1048580u);
  // The pool's record class has room for what native mode sends.
  EXPECT_LE(penstock::kRecordFrameNative, 66048u);
}

}  // namespace
