#include "rdma/slab_registry.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "testing/fake_fabric.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;
using testing::FakeFabric;
using testing::VirtualHost;

class SlabRegistryTest : public ::testing::Test {
 protected:
  ~SlabRegistryTest() override {
    for (const std::string& what : fabric_.violations()) ADD_FAILURE() << what;
  }
  VirtualHost host_;
  FakeFabric fabric_{host_, 1};
  std::unique_ptr<FabricDevice> device_ = *fabric_.Open("fake0");
};

TEST_F(SlabRegistryTest, EverySlabIsRegisteredOnce) {
  BufferPool pool;
  std::vector<Buffer> before;
  before.push_back(*pool.Allocate(100));
  SlabRegistry registry(pool, *device_, kFabricLocalWrite);
  EXPECT_EQ(registry.figures().slabs, 1u);
  std::vector<Buffer> after;
  for (int i = 0; i < 300; ++i) after.push_back(*pool.Allocate(16384));
  after.push_back(*pool.Allocate(3 << 20));  // a mapping of its own
  EXPECT_EQ(registry.figures().slabs, 1u + 3 + 1);
  for (const auto* list : {&before, &after}) {
    for (const Buffer& buffer : *list) {
      EXPECT_TRUE(registry.Find(buffer.data(), buffer.tailroom())) << buffer.block_size();
    }
  }
  // Not across the end of a slab, nor outside.
  EXPECT_FALSE(registry.Find(before[0].data(), 3 << 20));
  EXPECT_FALSE(registry.Find(&pool, 1));
  after.clear();
  pool.Trim();
  EXPECT_EQ(registry.figures().slabs, 1u);
  EXPECT_EQ(registry.figures().leaked, 0u);
}

TEST_F(SlabRegistryTest, NothingStaysRegistered) {
  BufferPool pool;
  const Buffer buffer = *pool.Allocate(100);
  {
    SlabRegistry registry(pool, *device_, kFabricLocalWrite);
    EXPECT_EQ(fabric_.objects(), 2u);
  }
  EXPECT_EQ(fabric_.objects(), 1u);
}

TEST_F(SlabRegistryTest, ARefusedSlabHasNoKey) {
  BufferPool pool;
  SlabRegistry registry(pool, *device_, kFabricLocalWrite);
  fabric_.FailNth(FakeCall::kRegister, 1, ENOMEM);
  const Buffer buffer = *pool.Allocate(100);
  EXPECT_FALSE(registry.Find(buffer.data(), 100));
  EXPECT_EQ(registry.figures().refused, 1u);
  EXPECT_EQ(registry.refusal().code(), absl::StatusCode::kResourceExhausted);
}

bool Resident(const char* address) {
  auto* const page =
      reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(address) & ~uintptr_t{4095});
  unsigned char state = 0;
  EXPECT_EQ(mincore(page, 4096, &state), 0);
  return (state & 1) != 0;
}

// The device knows pages, not addresses: a page given back and touched again would be another.
TEST_F(SlabRegistryTest, TrimLeavesPagesThatADeviceKnows) {
  BufferPool pool;
  const Buffer kept = *pool.Allocate(65536);
  const auto stays = [&] {
    Buffer freed = *pool.Allocate(65536);
    freed.Extend(65536);
    std::memset(freed.mutable_data(), 'x', 65536);
    const char* const inside = freed.data() + 8192;
    freed = Buffer();
    pool.Trim();
    return Resident(inside);
  };
  EXPECT_FALSE(stays());
  {
    SlabRegistry registry(pool, *device_, kFabricLocalWrite);
    EXPECT_TRUE(stays());
  }
  EXPECT_FALSE(stays());
}

}  // namespace
}  // namespace penstock::internal
