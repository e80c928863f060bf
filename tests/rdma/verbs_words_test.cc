#include "rdma/verbs_words.h"

#include <cerrno>
#include <set>
#include <vector>

#include "gtest/gtest.h"

namespace penstock::internal {
namespace {

TEST(VerbsWordsTest, ErrorsAreOneSortOfNumber) {
  EXPECT_EQ(VerbsError(0), 0);
  EXPECT_EQ(VerbsError(ENOMEM), ENOMEM);
  EXPECT_EQ(VerbsError(-EINVAL), EINVAL);
  errno = EAGAIN;
  EXPECT_EQ(VerbsError(-1), EAGAIN);
  errno = 0;
  EXPECT_EQ(VerbsError(-1), EIO);
}

TEST(VerbsWordsTest, MtusAreBytes) {
  ibv_mtu mtu;
  for (const uint32_t bytes : {256u, 512u, 1024u, 2048u, 4096u}) {
    ASSERT_TRUE(VerbsMtu(bytes, &mtu));
    EXPECT_EQ(VerbsMtuBytes(mtu), bytes);
  }
  for (const uint32_t bytes : {0u, 128u, 1500u, 8192u}) EXPECT_FALSE(VerbsMtu(bytes, &mtu));
  EXPECT_EQ(VerbsMtuBytes(static_cast<ibv_mtu>(0)), 0u);
}

TEST(VerbsWordsTest, EveryOutcomeHasItsStatus) {
  std::set<FabricOutcome> seen;
  for (int status = 0; status <= IBV_WC_GENERAL_ERR; ++status) {
    const FabricOutcome outcome = VerbsOutcome(static_cast<ibv_wc_status>(status));
    EXPECT_EQ(outcome == FabricOutcome::kOk, status == IBV_WC_SUCCESS);
    seen.insert(outcome);
  }
  EXPECT_EQ(seen.size(), static_cast<size_t>(FabricOutcome::kOther) + 1);
}

TEST(VerbsWordsTest, EveryEventHasItsType) {
  std::set<FabricEventKind> seen;
  for (int type = 0; type <= IBV_EVENT_WQ_FATAL; ++type) {
    seen.insert(VerbsEventKind(static_cast<ibv_event_type>(type)));
  }
  EXPECT_EQ(seen.size(), static_cast<size_t>(FabricEventKind::kOther) + 1);
}

TEST(VerbsWordsTest, WhateverMayHaveChangedAnAddressTellsSo) {
  for (const ibv_event_type type :
       {IBV_EVENT_GID_CHANGE, IBV_EVENT_LID_CHANGE, IBV_EVENT_CLIENT_REREGISTER}) {
    EXPECT_EQ(VerbsEventKind(type), FabricEventKind::kAddressChange) << type;
  }
  EXPECT_EQ(VerbsEventKind(IBV_EVENT_PKEY_CHANGE), FabricEventKind::kOther);
}

TEST(VerbsWordsTest, OperationsComeBackAsTheyWent) {
  EXPECT_EQ(VerbsOpcode(FabricOp::kSend), IBV_WR_SEND);
  EXPECT_EQ(VerbsOpcode(FabricOp::kSendImmediate), IBV_WR_SEND_WITH_IMM);
  EXPECT_EQ(VerbsOpcode(FabricOp::kWrite), IBV_WR_RDMA_WRITE);
  EXPECT_EQ(VerbsOpcode(FabricOp::kRead), IBV_WR_RDMA_READ);
  EXPECT_EQ(VerbsOp(IBV_WC_SEND, 0), FabricOp::kSend);
  EXPECT_EQ(VerbsOp(IBV_WC_SEND, IBV_WC_WITH_IMM), FabricOp::kSendImmediate);
  EXPECT_EQ(VerbsOp(IBV_WC_RDMA_WRITE, 0), FabricOp::kWrite);
  EXPECT_EQ(VerbsOp(IBV_WC_RDMA_READ, 0), FabricOp::kRead);
  EXPECT_EQ(VerbsOp(IBV_WC_RECV, 0), FabricOp::kReceive);
  EXPECT_EQ(VerbsImmediate(VerbsImmediate(0x01020304)), 0x01020304u);
}

TEST(VerbsWordsTest, AccessIsNoMoreThanAskedFor) {
  EXPECT_EQ(VerbsAccess(0), 0);
  EXPECT_EQ(VerbsAccess(kFabricLocalWrite), IBV_ACCESS_LOCAL_WRITE);
  EXPECT_EQ(VerbsAccess(kFabricRemoteRead), IBV_ACCESS_REMOTE_READ);
  EXPECT_EQ(VerbsAccess(kFabricLocalWrite | kFabricRemoteWrite),
            IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
}

TEST(VerbsWordsTest, PartsAreBounded) {
  VerbsParts parts;
  char byte;
  std::vector<FabricPart> list(16, FabricPart{&byte, 1, 7});
  ASSERT_TRUE(parts.Fill(list));
  EXPECT_EQ(parts.count(), 16);
  EXPECT_EQ(parts.list()[15].addr, reinterpret_cast<uint64_t>(&byte));
  EXPECT_EQ(parts.list()[15].lkey, 7u);
  list.emplace_back();
  EXPECT_FALSE(parts.Fill(list));
}

}  // namespace
}  // namespace penstock::internal
