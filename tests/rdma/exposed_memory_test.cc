#include "rdma/exposed_memory.h"

#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "testing/fake_fabric.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;
using testing::FakeFabric;
using testing::VirtualHost;

class ExposedMemoryTest : public ::testing::Test {
 protected:
  ExposedMemory Expose(RdmaAccess access) {
    auto made = ExposedMemory::Create(*device_, memory_, access);
    EXPECT_TRUE(made.ok()) << made.status();
    return made.ok() ? *std::move(made) : ExposedMemory();
  }

  VirtualHost host_;
  FakeFabric fabric_{host_, 1};
  std::unique_ptr<FabricDevice> device_ = *fabric_.Open("fake0");
  std::vector<char> memory_ = std::vector<char>(100);
};

TEST_F(ExposedMemoryTest, IsRegisteredAsLongAsItIsThere) {
  const size_t before = fabric_.objects();
  {
    ExposedMemory one = Expose(RdmaAccess::kRead);
    EXPECT_EQ(one.address(), reinterpret_cast<uint64_t>(memory_.data()));
    EXPECT_NE(one.key(), 0u);
    const uint32_t key = one.key();
    ExposedMemory other = std::move(one);
    EXPECT_EQ(other.key(), key);
    ExposedMemory third = Expose(RdmaAccess::kReadWrite);
    EXPECT_EQ(fabric_.objects(), before + 2);
    third = std::move(other);
    EXPECT_EQ(third.key(), key);
  }
  EXPECT_EQ(fabric_.objects(), before);
}

TEST_F(ExposedMemoryTest, WithdrawnItHasNeitherAddressNorKey) {
  ExposedMemory exposed = Expose(RdmaAccess::kWrite);
  EXPECT_TRUE(exposed.Withdraw().ok());
  EXPECT_EQ(exposed.key(), 0u);
  EXPECT_EQ(exposed.address(), 0u);
  EXPECT_TRUE(exposed.Withdraw().ok());
  EXPECT_EQ(ExposedMemory().key(), 0u);
}

TEST_F(ExposedMemoryTest, WhatTheDeviceRefusesIsTold) {
  fabric_.FailNth(FakeCall::kRegister, 1, ENOMEM);
  EXPECT_EQ(ExposedMemory::Create(*device_, memory_, RdmaAccess::kRead).status().code(),
            absl::StatusCode::kResourceExhausted);
  ExposedMemory exposed = Expose(RdmaAccess::kRead);
  fabric_.FailNth(FakeCall::kDeregister, 1, EINVAL);
  EXPECT_FALSE(exposed.Withdraw().ok());
}

}  // namespace
}  // namespace penstock::internal
