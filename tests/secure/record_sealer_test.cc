#include "secure/record_sealer.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "secure/record_format.h"
#include "testing/allocations.h"
#include "testing/pattern.h"
#include "testing/record_kit.h"
#include "testing/record_vectors.h"
#include "testing/sealed_allocations.h"

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::BufferTag;
using penstock::kRecordFrameGrpc;
using penstock::kRecordFrameMax;
using penstock::kRecordFrameNative;
using penstock::kRecordOverhead;
using penstock::PoolOptions;
using penstock::RecordMode;
using penstock::RecordProtocol;
using penstock::internal::PatternBytes;
using penstock::internal::RecordKit;
using penstock::internal::RecordOpener;
using penstock::internal::RecordSealer;

using Sealing = RecordSealer::Result;

static_assert(std::is_move_constructible_v<RecordSealer>);

std::vector<size_t> RecordSizes(std::string_view wire) {
  std::vector<size_t> sizes;
  while (!wire.empty()) {
    const std::string_view header = wire.substr(0, 8);
    EXPECT_TRUE(penstock::internal::CheckRecordHeader(header, kRecordFrameMax).ok());
    sizes.push_back(kRecordOverhead + penstock::internal::RecordPayloadSize(header));
    wire.remove_prefix(std::min(sizes.back(), wire.size()));
  }
  return sizes;
}

TEST(RecordSealer, WhatItSealsOpens) {
  RecordKit kit;
  for (RecordProtocol protocol : {RecordProtocol::kGcmAes128, RecordProtocol::kGcmAes128Rekey}) {
    for (uint32_t frame_max :
         {25u, 4096u, kRecordFrameGrpc, kRecordFrameNative, 70'000u, kRecordFrameMax}) {
      const size_t payload = frame_max - kRecordOverhead;
      RecordKit::Options options{.protocol = protocol, .frame_max = frame_max};
      RecordSealer sealer = kit.Sealer(options);
      options.frame_max = kRecordFrameMax;
      RecordOpener opener = kit.Opener(options);
      for (size_t size : {size_t{1}, payload - 1, payload, payload + 1, 3 * payload + 7}) {
        if (size == 0) continue;
        const std::string plain = PatternBytes(frame_max, size, size);
        const std::string wire = kit.Seal(sealer, plain);
        std::vector<size_t> wanted(size / payload, frame_max);
        if (size % payload != 0) wanted.push_back(size % payload + kRecordOverhead);
        EXPECT_EQ(RecordSizes(wire), wanted);
        EXPECT_EQ(kit.Open(opener, wire).bytes, plain) << opener.status();
      }
      EXPECT_EQ(opener.keys().counter(), sealer.keys().counter());
    }
  }
}

TEST(RecordSealer, BlocksHoldWholeRecords) {
  RecordKit kit;
  const auto blocks = [&](uint32_t frame_max, size_t size) {
    RecordSealer sealer = kit.Sealer({.frame_max = frame_max});
    BufferChain plain = kit.Chain(std::string(size, 'x')), wire;
    EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);
    std::vector<std::pair<size_t, size_t>> found;  // bytes, of a block of
    while (!wire.empty()) {
      const Buffer block = wire.PopFront();
      found.emplace_back(block.size(), block.block_size());
    }
    return found;
  };
  using Found = std::vector<std::pair<size_t, size_t>>;
  EXPECT_EQ(blocks(kRecordFrameGrpc, 1), (Found{{25, 256}}));
  EXPECT_EQ(blocks(kRecordFrameGrpc, 16'360), (Found{{16'384, 16'384}}));
  EXPECT_EQ(blocks(kRecordFrameGrpc, 65'536), (Found{{4 * 16'384 + 96 + 24, 66'048}}));
  EXPECT_EQ(blocks(kRecordFrameGrpc, 66'000), (Found{{65'536, 65'536}, {560 + 24, 1024}}));
  EXPECT_EQ(blocks(4096, 8 * 4072 + 1), (Found{{8 * 4096 + 25, 33'280}}));
  // 64 KiB of payload is what the class of 66,048 is for.
  EXPECT_EQ(blocks(kRecordFrameNative, 131'072), (Found{{65'560, 66'048}, {65'560, 66'048}}));
  // A larger record is spread, its tag in one piece.
  EXPECT_EQ(blocks(kRecordFrameMax, 131'072), (Found{{65'536, 65'536}, {65'560, 66'048}}));
  EXPECT_EQ(blocks(kRecordFrameMax, 66'048 + 65'520 - kRecordOverhead),
            (Found{{65'536, 65'536}, {66'032, 66'048}}));
  EXPECT_EQ(blocks(kRecordFrameMax, 66'049 - kRecordOverhead),
            (Found{{65'536, 65'536}, {513, 1024}}));
}

TEST(RecordSealer, GathersAnyPieces) {
  RecordKit kit;
  const std::string plain = PatternBytes(3, 0, 20'000);
  RecordSealer whole = kit.Sealer({.frame_max = kRecordFrameGrpc});
  const std::string wanted = kit.Seal(whole, plain);
  for (size_t piece : {1u, 3u, 16u, 100u, 1000u, 16'360u, 19'999u}) {
    RecordSealer sealer = kit.Sealer({.frame_max = kRecordFrameGrpc});
    BufferChain chain = kit.Chain(plain, piece), wire;
    EXPECT_EQ(sealer.Seal(chain, wire, SIZE_MAX), Sealing::kSealed);
    EXPECT_EQ(wire.ToString(), wanted) << piece;
  }
}

TEST(RecordSealer, ReadsWhatOthersHoldWithoutTouchingIt) {
  RecordKit kit;
  RecordSealer sealer = kit.Sealer({});
  static constexpr char kExternal[] = "read only, and elsewhere";
  int released = 0;
  BufferChain plain(Buffer::FromExternal(kExternal, 9, [&] { ++released; }));
  const Buffer shared = *kit.pool().Copy(", shared");
  plain.Append(shared.Share());
  BufferChain wire;
  EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);
  EXPECT_EQ(released, 1);
  EXPECT_EQ(shared.view(), ", shared");
  RecordOpener opener = kit.Opener({});
  EXPECT_EQ(kit.Open(opener, wire.ToString()).bytes, "read only, shared");
}

// As a record that came alone was opened: `plain` with a record's room around it, in a block of at
// least `block` bytes.
Buffer WithRoomAround(RecordKit& kit, std::string_view plain, size_t block) {
  Buffer buffer = kit.pool().TryAllocate(std::max(block, plain.size() + kRecordOverhead));
  buffer.Extend(8 + plain.size());
  std::memcpy(buffer.mutable_data() + 8, plain.data(), plain.size());
  buffer.TrimFront(8);
  return buffer;
}

TEST(RecordSealer, AnAnswerTakesTheBlockOfItsQuestion) {
  for (size_t size : {1u, 64u, 4072u, 16'000u}) {
    RecordKit kit;
    RecordSealer sealer = kit.Sealer({});
    const std::string text = PatternBytes(3, 0, size);
    Buffer plain = WithRoomAround(kit, text, 0);
    const char* const at = plain.data() - 8;
    BufferChain chain(std::move(plain)), wire;
    ASSERT_EQ(sealer.Seal(chain, wire, SIZE_MAX), Sealing::kSealed);
    EXPECT_TRUE(chain.empty());
    EXPECT_EQ(wire.front().data(), at);
    EXPECT_EQ(wire.ToString(), kit.SealOne({}, text));
    EXPECT_EQ(sealer.keys().counter(), 1u);
  }
}

// Whose block others see, has no room on one side, or is much larger than the record: the record
// gets one of its own.
TEST(RecordSealer, OtherBlocksStayAsTheyAre) {
  const auto seals_elsewhere = [](RecordKit& kit, Buffer plain, size_t block_max) {
    RecordSealer sealer = kit.Sealer({});
    const std::string content(plain.view());
    const char* const at = plain.data();
    BufferChain chain(std::move(plain)), wire;
    ASSERT_EQ(sealer.Seal(chain, wire, SIZE_MAX), Sealing::kSealed);
    EXPECT_TRUE(wire.front().data() + 8 != at);
    EXPECT_LE(wire.block_bytes(), block_max);
    EXPECT_EQ(wire.ToString(), kit.SealOne({}, content));
  };
  RecordKit kit;
  const std::string text = PatternBytes(3, 0, 4073);
  const Buffer other = WithRoomAround(kit, text, 0);
  seals_elsewhere(kit, other.Share(), 8192);
  EXPECT_EQ(other.view(), text);
  seals_elsewhere(kit, *kit.pool().Copy(text), 8192);
  Buffer no_room_behind = kit.pool().TryAllocate(4096);
  no_room_behind.Extend(4081);
  no_room_behind.TrimFront(8);
  ASSERT_EQ(no_room_behind.tailroom(), 15u);
  seals_elsewhere(kit, std::move(no_room_behind), 8192);
  seals_elsewhere(kit, WithRoomAround(kit, text.substr(0, 2000), 8193), 2048);
}

TEST(RecordSealer, KeepsToTheRoomOnTheWire) {
  RecordKit kit;
  const std::string plain = PatternBytes(4, 0, 200'000);
  for (size_t wire_max : {0u, 24u, 25u, 26u, 1000u, 16'383u, 16'384u, 16'385u, 40'000u, 200'000u}) {
    RecordSealer sealer = kit.Sealer({.frame_max = kRecordFrameGrpc});
    RecordOpener opener = kit.Opener({});
    BufferChain left = kit.Chain(wire_max < 1000 ? plain.substr(0, 100) : plain);
    const std::string wanted = left.ToString();
    std::string opened;
    while (!left.empty()) {
      BufferChain wire;
      const size_t before = left.size();
      ASSERT_EQ(sealer.Seal(left, wire, wire_max), Sealing::kSealed);
      ASSERT_LT(left.size(), before);
      EXPECT_LE(wire.size(), std::max<size_t>(wire_max, kRecordOverhead + 1));
      // No slivers: after whole records it ends where the next whole one does not fit.
      if (!left.empty() && wire_max >= kRecordFrameGrpc) {
        EXPECT_GT(wire.size() + kRecordFrameGrpc, wire_max);
        EXPECT_EQ(wire.size() % kRecordFrameGrpc, 0u);
      }
      opened += kit.Open(opener, wire.ToString()).bytes;
    }
    EXPECT_EQ(opened, wanted) << wire_max;
  }
}

TEST(RecordSealer, NothingMakesNoRecord) {
  RecordKit kit;
  for (RecordMode mode : {RecordMode::kGrpc, RecordMode::kNative}) {
    RecordSealer sealer = kit.Sealer({.mode = mode});
    BufferChain plain, wire;
    EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);
    EXPECT_TRUE(wire.empty());
    EXPECT_EQ(sealer.keys().counter(), 0u);
  }
}

// What is queued may fill the pool: it is sealed all the same, a small record at a time.
TEST(RecordSealer, GoesOnWithoutRoomInThePool) {
  RecordKit kit(PoolOptions{.bytes_max = 128 * 1024});
  RecordSealer sealer = kit.Sealer({.frame_max = kRecordFrameGrpc});
  const std::string bytes = PatternBytes(5, 0, 16'360 * 3);
  const std::vector<char> held(bytes.begin(), bytes.end());
  BufferChain plain(Buffer::FromExternal(held.data(), held.size(), [] {})), wire;

  Buffer hog = *kit.pool().Allocate(64 * 1024);
  Buffer second = *kit.pool().Allocate(32 * 1024), third = *kit.pool().Allocate(32 * 1024);
  EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);
  EXPECT_EQ(wire.size(), 4096u);
  EXPECT_TRUE(sealer.short_of_room());
  EXPECT_EQ(sealer.Seal(plain, wire, 100), Sealing::kSealed);
  EXPECT_EQ(wire.size(), 4196u);
  EXPECT_EQ(sealer.keys().counter(), 2u);

  // Room for two records but not for the batch: they are sealed one by one.
  third.Reset();
  EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);
  EXPECT_EQ(wire.size(), 4196u + 2u * kRecordFrameGrpc);
  EXPECT_TRUE(sealer.short_of_room());
  hog.Reset();
  EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);
  EXPECT_TRUE(plain.empty());
  EXPECT_FALSE(sealer.short_of_room());
  second.Reset();
  RecordKit other;
  RecordOpener opener = other.Opener({});
  EXPECT_EQ(other.Open(opener, wire.ToString()).bytes, bytes);
}

// What the pool's figures tell is how often it was asked in vain, and the same is asked once.
TEST(RecordSealer, OneRefusalCountsOnce) {
  RecordKit kit(PoolOptions{.bytes_max = 64 * 1024});
  const std::string bytes(16'000, 'b');
  const std::vector<char> held(bytes.begin(), bytes.end());
  const Buffer hog = *kit.pool().Allocate(64 * 1024);
  for (size_t size : {size_t{100}, held.size()}) {
    RecordSealer sealer = kit.Sealer({.frame_max = kRecordFrameGrpc});
    BufferChain plain(Buffer::FromExternal(held.data(), size, [] {})), wire;
    const uint64_t before = kit.pool().Stats().refused;
    EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);
    EXPECT_EQ(kit.pool().Stats().refused - before, 1u) << size;
    EXPECT_TRUE(sealer.short_of_room());
    EXPECT_EQ(wire.size(), std::min<size_t>(size + kRecordOverhead, 4096));
  }
}

TEST(RecordSealer, SpreadRecordsNeedAllTheirRoomAtOnce) {
  RecordKit kit(PoolOptions{.bytes_max = 128 * 1024});
  RecordSealer sealer = kit.Sealer({.frame_max = kRecordFrameMax});
  const std::string bytes(200'000, 'b');
  BufferChain plain(Buffer::FromExternal(bytes.data(), bytes.size(), [] {})), wire;
  EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);
  EXPECT_EQ(wire.size(), 4096u);
  EXPECT_EQ(sealer.keys().counter(), 1u);
  EXPECT_EQ(kit.pool().Stats().live, 0u);
}

TEST(RecordSealer, StopsOneCounterEarlyForEver) {
  RecordKit kit;
  for (RecordProtocol protocol : {RecordProtocol::kGcmAes128, RecordProtocol::kGcmAes128Rekey}) {
    const uint64_t last = kit.Sealer({.protocol = protocol}).keys().counter_last();
    // In one call and in several.
    for (size_t wire_max : {size_t{0}, SIZE_MAX}) {
      RecordSealer sealer =
          kit.Sealer({.protocol = protocol, .frame_max = 30, .counter = last - 3});
      BufferChain plain = kit.Chain(std::string(60, 'x')), wire;
      while (sealer.Seal(plain, wire, wire_max) == Sealing::kSealed) continue;
      EXPECT_TRUE(absl::IsResourceExhausted(sealer.status())) << sealer.status();
      EXPECT_EQ(sealer.keys().counter(), last);
      EXPECT_FALSE(sealer.keys().exhausted());
      EXPECT_EQ(RecordSizes(wire.ToString()).size(), 3u);
      const size_t sealed = wire.size();
      const absl::Status status = sealer.status();
      for (int i = 0; i < 3; ++i) EXPECT_EQ(sealer.Seal(plain, wire, wire_max), Sealing::kError);
      EXPECT_EQ(sealer.SealEnd(wire), Sealing::kError);
      EXPECT_EQ(sealer.status(), status);
      EXPECT_EQ(wire.size(), sealed);
      EXPECT_EQ(sealer.keys().counter(), last);
    }
    RecordSealer native =
        kit.Sealer({.protocol = protocol, .mode = RecordMode::kNative, .counter = last});
    BufferChain wire;
    EXPECT_EQ(native.SealEnd(wire), Sealing::kError);
    EXPECT_TRUE(absl::IsResourceExhausted(native.status())) << native.status();
  }
}

TEST(RecordSealer, EndsANativeStreamOnce) {
  RecordKit kit;
  RecordSealer sealer = kit.Sealer({.mode = RecordMode::kNative});
  BufferChain plain = kit.Chain("last words"), wire;
  EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);
  EXPECT_EQ(sealer.SealEnd(wire), Sealing::kSealed);
  EXPECT_EQ(sealer.keys().counter(), 2u);
  RecordOpener opener = kit.Opener({.mode = RecordMode::kNative});
  const RecordKit::Opened opened = kit.Open(opener, wire.ToString());
  EXPECT_EQ(opened.bytes, "last words");
  EXPECT_EQ(opened.last, RecordOpener::Result::kEnd);

  const size_t sealed = wire.size();
  EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);  // nothing: no record
  plain = kit.Chain("too late");
  EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kError);
  EXPECT_TRUE(absl::IsFailedPrecondition(sealer.status())) << sealer.status();
  EXPECT_EQ(wire.size(), sealed);
}

TEST(RecordSealer, HasNoEndToSealTwiceNorInGrpcMode) {
  RecordKit kit;
  BufferChain wire;
  RecordSealer grpc = kit.Sealer({});
  EXPECT_EQ(grpc.SealEnd(wire), Sealing::kError);
  EXPECT_TRUE(absl::IsFailedPrecondition(grpc.status())) << grpc.status();
  EXPECT_TRUE(wire.empty());
  RecordSealer native = kit.Sealer({.mode = RecordMode::kNative});
  EXPECT_EQ(native.SealEnd(wire), Sealing::kSealed);
  EXPECT_EQ(native.SealEnd(wire), Sealing::kError);
  EXPECT_TRUE(absl::IsFailedPrecondition(native.status())) << native.status();
  EXPECT_EQ(wire.size(), kRecordOverhead);
}

TEST(RecordSealer, AnEndNeedsNoRoom) {
  RecordKit kit(PoolOptions{.bytes_max = 4096});
  RecordSealer sealer = kit.Sealer({.mode = RecordMode::kNative});
  Buffer hog = *kit.pool().Allocate(4096);
  BufferChain wire;
  EXPECT_EQ(sealer.SealEnd(wire), Sealing::kSealed);
  EXPECT_EQ(wire.size(), kRecordOverhead);
}

TEST(RecordSealer, OneThatMovesGoesOnWhereItWas) {
  RecordKit kit;
  auto first = std::make_unique<RecordSealer>(kit.Sealer({}));
  std::string wire = kit.Seal(*first, "before, ");
  RecordSealer second(std::move(*first));
  first.reset();
  wire += kit.Seal(second, "after");
  RecordOpener opener = kit.Opener({});
  EXPECT_EQ(kit.Open(opener, wire).bytes, "before, after");
}

TEST(RecordSealer, AllocatesNothingPerRecord) {
  if (!penstock::internal::CanCountAllocations()) GTEST_SKIP() << "a sanitizer counts its own";
  RecordKit kit;
  RecordSealer sealer = kit.Sealer({.frame_max = 4096});
  const std::string bytes(40'000, 'x');
  const auto seal = [&] {
    BufferChain plain = kit.Chain(bytes, 3000), wire;
    ASSERT_EQ(sealer.Seal(plain, wire, SIZE_MAX), Sealing::kSealed);
  };
  seal();
  const int64_t before = penstock::internal::AllocationsOnThisThread();
  const uint64_t openssl_before = penstock::internal::SealedAllocations();
  for (int i = 0; i < 100; ++i) seal();
  EXPECT_EQ(penstock::internal::AllocationsOnThisThread() - before, 0);
  EXPECT_EQ(penstock::internal::SealedAllocations() - openssl_before, 0u);
}

}  // namespace
