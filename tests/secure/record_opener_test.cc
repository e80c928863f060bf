#include "secure/record_opener.h"

#include <penstock/status.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "buffer/compact_chain.h"
#include "testing/allocations.h"
#include "testing/pattern.h"
#include "testing/record_kit.h"
#include "testing/sanitized.h"
#include "testing/sealed_allocations.h"

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::BufferTag;
using penstock::IsUnauthenticatedEof;
using penstock::kRecordFrameMax;
using penstock::kRecordOverhead;
using penstock::PoolOptions;
using penstock::RecordMode;
using penstock::RecordProtocol;
using penstock::internal::CompactChain;
using penstock::internal::PatternBytes;
using penstock::internal::RecordKit;
using penstock::internal::RecordOpener;
using penstock::internal::RecordSealer;
using penstock::internal::RecordSender;
using penstock::testing::kSanitized;

using Result = RecordOpener::Result;

static_assert(std::is_move_constructible_v<RecordOpener>);

constexpr RecordMode kModes[] = {RecordMode::kGrpc, RecordMode::kNative};

// Records of these sizes, one after the other; the plaintext is one pattern.
std::string Records(RecordKit& kit, const std::vector<size_t>& sizes,
                    RecordKit::Options options = {}) {
  std::string wire;
  size_t at = 0;
  for (size_t size : sizes) {
    wire += kit.SealOne(options, PatternBytes(1, at, size));
    ++options.counter;
    at += size;
  }
  return wire;
}

TEST(RecordOpener, EverySplitPoint) {
  RecordKit kit;
  const std::string wire = Records(kit, {5, 0, 17, 1, 600, 30});
  const std::string plain = PatternBytes(1, 0, 653);
  for (bool rests : {false, true}) {
    for (size_t cut = 0; cut <= wire.size(); ++cut) {
      // A third piece, so that some record has all its borders inside a piece and on its edges.
      for (size_t second : {size_t{0}, size_t{1}, size_t{25}, wire.size() - cut}) {
        if (cut + second > wire.size()) continue;
        RecordOpener opener = kit.Opener({});
        std::string got;
        const std::string_view rest = wire;
        for (std::string_view piece :
             {rest.substr(0, cut), rest.substr(cut, second), rest.substr(cut + second)}) {
          const RecordKit::Opened opened = kit.Open(opener, piece);
          ASSERT_EQ(opened.last, Result::kNeedMore) << opener.status();
          got += opened.bytes;
          if (rests) opener.Rest();
        }
        ASSERT_EQ(got, plain) << cut << "+" << second;
        ASSERT_EQ(opener.pinned_bytes(), 0u);
        ASSERT_TRUE(IsUnauthenticatedEof(opener.OnWireEnd()));
      }
    }
  }
}

TEST(RecordOpener, AnyPiecesMeanTheSame) {
  RecordKit kit;
  std::mt19937 random(7);
  for (int round = 0; round < (kSanitized ? 10 : 60); ++round) {
    std::vector<size_t> sizes(1 + random() % 30);
    size_t total = 0;
    for (size_t& size : sizes) {
      size = random() % (random() % 4 == 0 ? 40'000 : 700);
      total += size;
    }
    const std::string wire = Records(kit, sizes);
    const size_t piece_max = size_t{1} << (random() % 17);
    RecordOpener opener = kit.Opener({});
    std::string got;
    for (size_t at = 0; at < wire.size();) {
      const size_t n = 1 + random() % piece_max;
      got += kit.Open(opener, std::string_view(wire).substr(at, n)).bytes;
      if (random() % 2 == 0) opener.Rest();
      at += n;
    }
    ASSERT_TRUE(opener.status().ok()) << opener.status();
    ASSERT_EQ(got, PatternBytes(1, 0, total)) << round;
    ASSERT_EQ(opener.pinned_bytes(), 0u);
  }
  EXPECT_EQ(kit.pool().Stats().live, 0u);
}

TEST(RecordOpener, ManyRecordsInOnePieceAndOneRecordInMany) {
  RecordKit kit;
  RecordOpener many = kit.Opener({});
  EXPECT_EQ(kit.Open(many, Records(kit, std::vector<size_t>(1000, 41))).bytes,
            PatternBytes(1, 0, 41'000));
  const std::string wire = Records(kit, {41'000});
  RecordOpener one = kit.Opener({});
  for (size_t at = 0; at < wire.size(); at += 41)
    kit.Feed(one, std::string_view(wire).substr(at, 41));
  const RecordKit::Opened opened = RecordKit::Drain(one);
  EXPECT_EQ(opened.bytes, PatternBytes(1, 0, 41'000));
  // Not a thousand of them: whoever reads would be called for each.
  EXPECT_EQ(opened.buffers.size(), 1u);
}

TEST(RecordOpener, NeighboursComeTogether) {
  RecordKit kit;
  const auto sizes = [&](const std::vector<size_t>& records) {
    RecordOpener opener = kit.Opener({});
    std::vector<size_t> found;
    std::string bytes;
    for (const std::string& buffer : kit.Open(opener, Records(kit, records)).buffers) {
      found.push_back(buffer.size());
      bytes += buffer;
    }
    EXPECT_EQ(bytes, PatternBytes(1, 0, bytes.size()));
    return found;
  };
  using Sizes = std::vector<size_t>;
  EXPECT_EQ(sizes({1, 2, 3}), (Sizes{6}));
  EXPECT_EQ(sizes({20'000, 20'000, 7, 0, 8}), (Sizes{40'015}));
  // As many as 64 KiB of plaintext, and as many as 64.
  EXPECT_EQ(sizes({40'000, 25'536, 1}), (Sizes{65'536, 1}));
  EXPECT_EQ(sizes({40'000, 25'537, 1}), (Sizes{40'000, 25'538}));
  EXPECT_EQ(sizes({70'000, 5}), (Sizes{70'000, 5}));
  EXPECT_EQ(sizes(Sizes(130, 10)), (Sizes{640, 640, 20}));
}

// Plaintext is where the ciphertext was.
TEST(RecordOpener, OpensInPlaceWhatCameAlone) {
  RecordKit kit;
  const std::string records = Records(kit, {5000, 5000});
  const std::string_view wire = records;
  // Half of the second header comes with the first record.
  const std::string_view halves[] = {wire.substr(0, 5028), wire.substr(5028)};
  RecordOpener opener = kit.Opener({});
  for (std::string_view half : halves) {
    Buffer received = *kit.pool().Copy(half, BufferTag::kReceive);
    const char* const body = received.data() + (half == halves[0] ? 8 : 4);
    opener.Feed(std::move(received));
    Buffer out;
    ASSERT_EQ(opener.Next(out), Result::kData);
    EXPECT_EQ(out.data(), body);
    EXPECT_EQ(out.size(), 5000u);
    EXPECT_EQ(opener.Next(out), Result::kNeedMore);
  }
}

// A record in pieces becomes one buffer, as long as it is no larger than what a reader is given
// at once.
TEST(RecordOpener, PutsPiecesTogether) {
  RecordKit kit;
  for (const auto& [payload, buffers] : {std::pair(65'536, 1u), std::pair(65'537, 2u)}) {
    const std::string wire = Records(kit, {static_cast<size_t>(payload)});
    RecordOpener opener = kit.Opener({});
    kit.Feed(opener, std::string_view(wire).substr(0, 40'000));
    kit.Feed(opener, std::string_view(wire).substr(40'000));
    const RecordKit::Opened opened = RecordKit::Drain(opener);
    EXPECT_EQ(opened.bytes, PatternBytes(1, 0, static_cast<size_t>(payload)));
    EXPECT_EQ(opened.buffers.size(), buffers);
  }
}

// Where there is no room to put them together, they come as they are.
TEST(RecordOpener, NeedsNoRoomForBytesOfItsOwn) {
  RecordKit kit(PoolOptions{.bytes_max = 65'536});
  const std::string wire = Records(kit, {9000, 9000});
  RecordOpener opener = kit.Opener({});
  kit.Feed(opener, std::string_view(wire).substr(0, 15'000));
  kit.Feed(opener, std::string_view(wire).substr(15'000));
  std::vector<Buffer> hogs;
  while (Buffer hog = kit.pool().TryAllocate(1024)) hogs.push_back(std::move(hog));
  std::vector<Buffer> got;
  std::string bytes;
  Buffer out;
  while (opener.Next(out) == Result::kData) {
    bytes += out.view();
    got.push_back(std::move(out));
  }
  EXPECT_EQ(bytes, PatternBytes(1, 0, 18'000));
  EXPECT_EQ(got.size(), 3u);
}

// What was verified before a record that was altered is delivered, and nothing of that one.
TEST(RecordOpener, GivesWhatWasGoodBeforeABadRecord) {
  RecordKit kit;
  std::string wire = Records(kit, {300, 400, 500, 600});
  wire[324 + 424 + 100] ^= 1;
  RecordOpener opener = kit.Opener({});
  const RecordKit::Opened opened = kit.Open(opener, wire);
  EXPECT_EQ(opened.buffers, std::vector<std::string>{PatternBytes(1, 0, 700)});
  EXPECT_EQ(opened.last, Result::kError);
  EXPECT_TRUE(absl::IsUnauthenticated(opener.status())) << opener.status();
  EXPECT_EQ(opener.pinned_bytes(), 0u);
}

TEST(RecordOpener, LeavesBytesThatOthersSee) {
  RecordKit kit;
  const std::string wire = Records(kit, {100, 200});
  const std::string plain = PatternBytes(1, 0, 300);
  {
    RecordOpener opener = kit.Opener({});
    const Buffer shared = *kit.pool().Copy(wire);
    opener.Feed(shared.Share());
    EXPECT_EQ(RecordKit::Drain(opener).bytes, plain);
    EXPECT_EQ(shared.view(), wire);
  }
  {
    RecordOpener opener = kit.Opener({});
    std::string memory = wire;
    int released = 0;
    opener.Feed(Buffer::FromExternal(memory.data(), memory.size(), [&] { ++released; }));
    EXPECT_EQ(RecordKit::Drain(opener).bytes, plain);
    EXPECT_EQ(memory, wire);
    EXPECT_EQ(released, 1);
    // Afterwards it works in place again.
    Buffer next = *kit.pool().Copy(kit.SealOne({.counter = 2}, "more"));
    const char* const base = next.data();
    opener.Feed(std::move(next));
    Buffer out;
    ASSERT_EQ(opener.Next(out), Result::kData);
    EXPECT_EQ(out.data(), base + 8);
  }
  {
    // In part foreign, and across a rest.
    RecordOpener opener = kit.Opener({});
    const Buffer shared = *kit.pool().Copy(std::string_view(wire).substr(50, 200));
    kit.Feed(opener, std::string_view(wire).substr(0, 50));
    std::string got = RecordKit::Drain(opener).bytes;
    opener.Feed(shared.Share());
    got += RecordKit::Drain(opener).bytes;
    opener.Rest();
    got += kit.Open(opener, std::string_view(wire).substr(250)).bytes;
    EXPECT_EQ(got, plain);
    EXPECT_EQ(shared.view(), std::string_view(wire).substr(50, 200));
  }
}

TEST(RecordOpener, WaitsForRoomWhereItMustCopy) {
  RecordKit kit(PoolOptions{.bytes_max = 8192});
  RecordOpener opener = kit.Opener({});
  const std::string wire = Records(kit, {100, 3000});
  opener.Feed(Buffer::FromExternal(wire.data(), wire.size(), [] {}));
  Buffer hog = *kit.pool().Allocate(8192), out;
  EXPECT_EQ(opener.Next(out), Result::kNoRoom);
  EXPECT_EQ(opener.Next(out), Result::kNoRoom);
  EXPECT_EQ(opener.keys().counter(), 0u);
  hog.Reset();
  EXPECT_EQ(RecordKit::Drain(opener).bytes, PatternBytes(1, 0, 3100));
}

// Bytes that rested without a block come back on the heap when the pool has none.
TEST(RecordOpener, WakesWithoutRoomAndLosesNothing) {
  RecordKit kit(PoolOptions{.bytes_max = 8192});
  RecordOpener opener = kit.Opener({});
  const std::string wire = Records(kit, {100});
  kit.Open(opener, std::string_view(wire).substr(0, 20));
  opener.Rest();
  EXPECT_EQ(opener.pinned_bytes(), 0u);
  Buffer rest = *kit.pool().Copy(std::string_view(wire).substr(20));
  Buffer hog = *kit.pool().Allocate(4096), most = *kit.pool().Allocate(2048);
  std::vector<Buffer> small;
  while (Buffer buffer = kit.pool().TryAllocate(256)) small.push_back(std::move(buffer));
  opener.Feed(std::move(rest));
  EXPECT_EQ(RecordKit::Drain(opener).bytes, PatternBytes(1, 0, 100));
}

TEST(RecordOpener, TenThousandEmptyRecordsAreSkippedABitAtATime) {
  RecordKit kit;
  const std::string wire =
      Records(kit, std::vector<size_t>(10'000, 0)) + kit.SealOne({.counter = 10'000}, "at last");
  for (size_t piece : {wire.size(), size_t{1000}, size_t{24}, size_t{7}}) {
    RecordOpener opener = kit.Opener({});
    std::string got;
    int calls = 0;
    uint64_t most = 0;
    for (size_t at = 0; at < wire.size(); at += piece) {
      kit.Feed(opener, std::string_view(wire).substr(at, piece));
      for (Result result = Result::kAgain; result != Result::kNeedMore; ++calls) {
        const uint64_t before = opener.keys().counter();
        Buffer out;
        result = opener.Next(out);
        most = std::max(most, opener.keys().counter() - before);
        ASSERT_NE(result, Result::kError) << opener.status();
        if (result == Result::kData) got.append(out.view());
      }
      opener.Rest();
    }
    EXPECT_EQ(got, "at last");
    EXPECT_LE(most, 64u);
    EXPECT_GE(calls, 10'000 / 64);
    EXPECT_TRUE(IsUnauthenticatedEof(opener.OnWireEnd()));
  }
}

TEST(RecordOpener, AnEmptyRecordEndsANativeStream) {
  RecordKit kit;
  const RecordKit::Options native{.mode = RecordMode::kNative};
  const std::string wire = Records(kit, {3, 4, 0});
  for (size_t cut = 0; cut <= wire.size(); ++cut) {
    RecordOpener opener = kit.Opener(native);
    std::string got = kit.Open(opener, std::string_view(wire).substr(0, cut)).bytes;
    opener.Rest();
    const RecordKit::Opened opened = kit.Open(opener, std::string_view(wire).substr(cut));
    EXPECT_EQ(got + opened.bytes, PatternBytes(1, 0, 7));
    EXPECT_EQ(opened.last, Result::kEnd);
    Buffer out;
    EXPECT_EQ(opener.Next(out), Result::kEnd);
    const absl::Status end = opener.OnWireEnd();
    EXPECT_TRUE(absl::IsOutOfRange(end)) << end;
    EXPECT_FALSE(IsUnauthenticatedEof(end));
    EXPECT_EQ(opener.Next(out), Result::kEnd);
  }
}

TEST(RecordOpener, NothingFollowsANativeEnd) {
  RecordKit kit;
  const RecordKit::Options native{.mode = RecordMode::kNative};
  const std::string end = Records(kit, {0});
  for (const std::string& more : {std::string("x"), kit.SealOne({.counter = 1}, "good record"),
                                  kit.SealOne({.counter = 1}, "")}) {
    for (bool together : {false, true}) {
      RecordOpener opener = kit.Opener(native);
      kit.Feed(opener, together ? end + more : end);
      Buffer out;
      EXPECT_EQ(opener.Next(out), Result::kEnd);
      if (!together) kit.Feed(opener, more);
      EXPECT_EQ(opener.Next(out), Result::kError);
      EXPECT_TRUE(absl::IsInvalidArgument(opener.status())) << opener.status();
      EXPECT_EQ(opener.OnWireEnd(), opener.status());
    }
    RecordOpener unread = kit.Opener(native);
    kit.Feed(unread, end);
    RecordKit::Drain(unread);
    kit.Feed(unread, more);
    EXPECT_TRUE(absl::IsInvalidArgument(unread.OnWireEnd()));
  }
}

TEST(RecordOpener, TheEndAtEachByteOfTwoRecords) {
  RecordKit kit;
  const std::string wire = Records(kit, {9, 30});
  for (RecordMode mode : kModes) {
    for (bool rests : {false, true}) {
      for (size_t cut = 0; cut <= wire.size(); ++cut) {
        RecordOpener opener = kit.Opener({.mode = mode});
        const std::string got = kit.Open(opener, std::string_view(wire).substr(0, cut)).bytes;
        EXPECT_EQ(got, PatternBytes(1, 0, cut == wire.size() ? 39 : cut >= 33 ? 9 : 0));
        if (rests) opener.Rest();
        const absl::Status end = opener.OnWireEnd();
        const bool border = cut == 0 || cut == 33 || cut == wire.size();
        if (border && mode == RecordMode::kGrpc) {
          EXPECT_TRUE(IsUnauthenticatedEof(end)) << cut << ": " << end;
        } else {
          EXPECT_TRUE(absl::IsDataLoss(end)) << cut << ": " << end;
          EXPECT_EQ(opener.pinned_bytes(), 0u);
        }
        EXPECT_EQ(opener.OnWireEnd(), end);
      }
    }
  }
}

TEST(RecordOpener, TheLastCounterIsAcceptedAndNoneAfter) {
  RecordKit kit;
  for (RecordProtocol protocol : {RecordProtocol::kGcmAes128, RecordProtocol::kGcmAes128Rekey}) {
    const uint64_t last = kit.Opener({.protocol = protocol}).keys().counter_last();
    const RecordKit::Options first{.protocol = protocol, .counter = last - 1};
    const std::string wire = Records(kit, {10, 10}, first);
    for (size_t piece : {wire.size(), size_t{10}}) {
      RecordOpener opener = kit.Opener(first);
      std::string got;
      for (size_t at = 0; at < wire.size(); at += piece) {
        got += kit.Open(opener, std::string_view(wire).substr(at, piece)).bytes;
      }
      EXPECT_EQ(got, PatternBytes(1, 0, 20));
      EXPECT_TRUE(opener.status().ok()) << opener.status();
      EXPECT_TRUE(opener.keys().exhausted());
      // Neither the counter that would come by wrapping around, nor the last one again.
      for (uint64_t counter : {uint64_t{0}, last}) {
        RecordOpener again = kit.Opener({.protocol = protocol, .counter = last});
        kit.Open(again, Records(kit, {1}, {.protocol = protocol, .counter = last}));
        const std::string more =
            kit.SealOne({.protocol = protocol, .counter = counter}, "one more");
        for (size_t at = 0; at < more.size(); at += piece) {
          EXPECT_EQ(kit.Open(again, std::string_view(more).substr(at, piece)).bytes, "");
        }
        EXPECT_TRUE(absl::IsResourceExhausted(again.status())) << again.status();
      }
    }
  }
}

// One byte at a time: what is pinned follows what came, not what was announced.
TEST(RecordOpener, ADripPinsTwiceWhatCameAtMost) {
  RecordKit kit;
  const size_t payload = (kSanitized ? 100'000u : kRecordFrameMax) - kRecordOverhead;
  const std::string wire = kit.SealOne({}, PatternBytes(1, 0, payload));
  RecordOpener opener = kit.Opener({});
  std::string got;
  size_t exceeded = 0;
  for (size_t at = 0; at < wire.size(); ++at) {
    kit.Feed(opener, std::string_view(wire).substr(at, 1));
    Buffer out;
    while (opener.Next(out) == Result::kData) got.append(out.view());
    out.Reset();
    opener.Rest();
    if (opener.pinned_bytes() > CompactChain::PinnedMax(at + 1)) ++exceeded;
    if (at < 8 && opener.pinned_bytes() != 0) ++exceeded;
    // Adding the pool up takes longer than all the rest.
    if (at % 256 == 0 && kit.pool().Stats().live != opener.pinned_bytes()) ++exceeded;
  }
  EXPECT_EQ(exceeded, 0u);
  EXPECT_TRUE(got == PatternBytes(1, 0, payload));
  EXPECT_EQ(opener.pinned_bytes(), 0u);
}

TEST(RecordOpener, RestsWithoutABlockBetweenRecords) {
  RecordKit kit;
  RecordOpener opener = kit.Opener({});
  opener.Rest();
  EXPECT_EQ(opener.pinned_bytes(), 0u);
  const std::string wire = Records(kit, {70'000, 10});
  // All of the first and a header's part of the second, in one block of 128 KiB.
  EXPECT_EQ(kit.Open(opener, std::string_view(wire).substr(0, 70'024 + 5)).bytes.size(), 70'000u);
  EXPECT_EQ(opener.pinned_bytes(), 0u);
  kit.Open(opener, std::string_view(wire).substr(70'024 + 5, 19));
  opener.Rest();
  EXPECT_EQ(opener.pinned_bytes(), 0u);
  EXPECT_EQ(kit.pool().Stats().live, 0u);
  EXPECT_EQ(kit.Open(opener, std::string_view(wire).substr(70'024 + 24)).bytes.size(), 10u);
}

// Before it rests nothing is lost either, and nothing is given up that is not bytes yet.
TEST(RecordOpener, ARestWithRecordsLeftChangesNothing) {
  RecordKit kit;
  RecordOpener opener = kit.Opener({});
  kit.Feed(opener, Records(kit, {50'000, 50'000, 50'000}));
  opener.Rest();
  Buffer out;
  ASSERT_EQ(opener.Next(out), Result::kData);
  opener.Rest();
  EXPECT_EQ(RecordKit::Drain(opener).bytes, PatternBytes(1, 50'000, 100'000));
}

// Whoever reads no more after a record does not keep the block for the start of the next.
TEST(RecordOpener, RestsAtAPartOfARecordThatNobodyAskedFor) {
  for (size_t part : {1u, 7u, 8u, 9u, 100u, 1000u}) {
    RecordKit kit;
    RecordOpener opener = kit.Opener({});
    const std::string bytes = Records(kit, {50'000, 1000});
    const size_t first = 50'000 + kRecordOverhead;
    kit.Feed(opener, std::string_view(bytes).substr(0, first + part));
    Buffer out;
    ASSERT_EQ(opener.Next(out), Result::kData);
    std::string got(out.view());
    out.Reset();
    opener.Rest();
    EXPECT_LE(opener.pinned_bytes(), CompactChain::PinnedMax(part)) << part;
    EXPECT_EQ(kit.pool().Stats().live, opener.pinned_bytes()) << part;
    got += kit.Open(opener, std::string_view(bytes).substr(first + part)).bytes;
    EXPECT_EQ(got, PatternBytes(1, 0, 51'000)) << part;
  }
}

// A header that cannot be good is told by Next, and holds nothing until then.
TEST(RecordOpener, ABadHeaderFoundAtRestWaitsForNext) {
  RecordKit kit;
  RecordOpener opener = kit.Opener({});
  kit.Feed(opener, Records(kit, {50'000}) + std::string(8, '\xff') + std::string(100, 'x'));
  Buffer out;
  ASSERT_EQ(opener.Next(out), Result::kData);
  out.Reset();
  opener.Rest();
  EXPECT_EQ(opener.pinned_bytes(), 0u);
  EXPECT_EQ(opener.Next(out), Result::kError);
  EXPECT_TRUE(absl::IsInvalidArgument(opener.status())) << opener.status();
}

TEST(RecordOpener, OneThatMovesGoesOnWhereItWas) {
  RecordKit kit;
  const std::string wire = Records(kit, {500, 500});
  for (bool rests : {false, true}) {
    for (size_t cut : {3u, 8u, 20u, 300u, 524u, 530u, 900u}) {
      auto first = std::make_unique<RecordOpener>(kit.Opener({}));
      std::string got = kit.Open(*first, std::string_view(wire).substr(0, cut)).bytes;
      if (rests) first->Rest();
      RecordOpener second(std::move(*first));
      first.reset();
      got += kit.Open(second, std::string_view(wire).substr(cut)).bytes;
      EXPECT_EQ(got, PatternBytes(1, 0, 1000)) << cut;
    }
  }
}

TEST(RecordOpener, AllocatesNothingPerRecord) {
  if (!penstock::internal::CanCountAllocations()) GTEST_SKIP() << "a sanitizer counts its own";
  RecordKit kit;
  RecordOpener opener = kit.Opener({});
  constexpr int kRounds = 20;
  const std::vector<size_t> sizes{4000, 64, 64, 0, 16'360, 30, 2000};
  std::vector<std::string> wires;
  for (int i = 0; i < kRounds; ++i) {
    wires.push_back(Records(kit, sizes, {.counter = sizes.size() * static_cast<uint64_t>(i)}));
  }
  int64_t before = 0;
  uint64_t openssl_before = 0;
  size_t bytes = 0;
  for (int i = 0; i < kRounds; ++i) {
    if (i == 2) {
      before = penstock::internal::AllocationsOnThisThread();
      openssl_before = penstock::internal::SealedAllocations();
    }
    // Whole, and in pieces with rests between.
    const std::string_view wire = wires[static_cast<size_t>(i)];
    for (size_t at = 0; at < wire.size(); at += i % 2 == 0 ? wire.size() : 1500) {
      kit.Feed(opener, wire.substr(at, i % 2 == 0 ? wire.size() : 1500));
      Buffer out;
      for (Result result = Result::kAgain; result != Result::kNeedMore;) {
        result = opener.Next(out);
        ASSERT_NE(result, Result::kError) << opener.status();
        if (result == Result::kData) bytes += out.size();
      }
      out.Reset();
      opener.Rest();
    }
  }
  EXPECT_EQ(penstock::internal::AllocationsOnThisThread() - before, 0);
  EXPECT_EQ(penstock::internal::SealedAllocations() - openssl_before, 0u);
  EXPECT_EQ(bytes, kRounds * size_t{22'518});
}

}  // namespace
