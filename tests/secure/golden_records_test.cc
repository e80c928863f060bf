// Byte for byte what gRPC's implementations seal and accept; see testing/record_vectors.h.
#include <penstock/status.h>

#include <map>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "testing/record_kit.h"
#include "testing/record_vectors.h"

namespace {

using penstock::IsUnauthenticatedEof;
using penstock::kRecordFrameMax;
using penstock::RecordMode;
using penstock::internal::FrameVector;
using penstock::internal::HostileVector;
using penstock::internal::RecordKit;
using penstock::internal::RecordOpener;
using penstock::internal::RecordSealer;
using penstock::internal::RecordVectors;
using penstock::internal::Sha256Hex;
using penstock::internal::StreamVector;
using penstock::internal::VectorPlaintext;

template <typename Vector>
RecordKit::Options OptionsOf(const Vector& vector) {
  return {.protocol = vector.protocol, .sender = vector.sender, .counter = vector.counter};
}

void ExpectFrame(const FrameVector& vector, const std::string& frame) {
  EXPECT_EQ(frame.size(), vector.frame_size);
  EXPECT_EQ(Sha256Hex(frame), vector.frame_sha256);
  if (!vector.frame.empty()) {
    EXPECT_EQ(frame, vector.frame);
  } else {
    EXPECT_TRUE(frame.starts_with(vector.frame_first));
    EXPECT_TRUE(frame.ends_with(vector.frame_last));
  }
}

TEST(GoldenRecords, AreAllThere) {
  const RecordVectors& vectors = RecordVectors::Get();
  EXPECT_EQ(vectors.keys.size(), 2u);
  EXPECT_EQ(vectors.frames.size(), 29u);
  EXPECT_EQ(vectors.streams.size(), 7u);
  EXPECT_EQ(vectors.hostile.size(), 25u);
}

TEST(GoldenRecords, SealByteExact) {
  RecordKit kit;
  for (const FrameVector& vector : RecordVectors::Get().frames) {
    SCOPED_TRACE(vector.name);
    ExpectFrame(vector, kit.SealOne(OptionsOf(vector), vector.plaintext));
    RecordSealer sealer = kit.Sealer(OptionsOf(vector));
    penstock::BufferChain plain = kit.Chain(vector.plaintext), wire;
    const auto result = sealer.Seal(plain, wire, SIZE_MAX);
    if (vector.counter == sealer.keys().counter_last()) {
      EXPECT_EQ(result, RecordSealer::Result::kError);
      EXPECT_TRUE(wire.empty());
    } else if (vector.plaintext.empty()) {
      EXPECT_EQ(result, RecordSealer::Result::kSealed);
      EXPECT_TRUE(wire.empty());
      EXPECT_EQ(sealer.keys().counter(), vector.counter);
    } else if (vector.frame_size <= kRecordFrameMax) {
      EXPECT_EQ(result, RecordSealer::Result::kSealed);
      EXPECT_EQ(sealer.keys().counter(), vector.counter + 1);
      ExpectFrame(vector, wire.ToString());
    } else {
      EXPECT_EQ(sealer.keys().counter(), vector.counter + 2);  // cut in two
    }
  }
}

// The last counter included: a peer may use it although we do not.
TEST(GoldenRecords, OpenByteExact) {
  RecordKit kit;
  for (const FrameVector& vector : RecordVectors::Get().frames) {
    SCOPED_TRACE(vector.name);
    const std::string frame = kit.SealOne(OptionsOf(vector), vector.plaintext);
    ASSERT_EQ(Sha256Hex(frame), vector.frame_sha256);
    RecordOpener opener = kit.Opener(OptionsOf(vector));
    const RecordKit::Opened opened = kit.Open(opener, frame);
    if (vector.frame_size > kRecordFrameMax) {
      EXPECT_EQ(opened.last, RecordOpener::Result::kError);
      EXPECT_TRUE(absl::IsInvalidArgument(opener.status())) << opener.status();
      continue;
    }
    EXPECT_EQ(opened.last, RecordOpener::Result::kNeedMore) << opener.status();
    EXPECT_EQ(opened.bytes, vector.plaintext);
    EXPECT_EQ(opener.keys().exhausted(), vector.counter == opener.keys().counter_last());
  }
}

TEST(GoldenRecords, StreamsAreCutAsGrpcCutsThem) {
  RecordKit kit;
  for (const StreamVector& vector : RecordVectors::Get().streams) {
    SCOPED_TRACE(vector.name);
    RecordKit::Options options = OptionsOf(vector);
    options.frame_max = vector.frame_max;
    RecordSealer sealer = kit.Sealer(options);
    size_t total = 0;
    for (size_t size : vector.writes) total += size;
    const std::string plain = VectorPlaintext(total);
    std::string wire;
    size_t at = 0;
    for (size_t size : vector.writes) {
      wire += kit.Seal(sealer, std::string_view(plain).substr(at, size));
      at += size;
    }
    EXPECT_EQ(wire.size(), vector.wire_size);
    EXPECT_EQ(Sha256Hex(wire), vector.wire_sha256);
    EXPECT_EQ(sealer.keys().counter(), vector.counter + vector.frame_sizes.size());
    size_t sum = 0;
    for (size_t size : vector.frame_sizes) sum += size;
    EXPECT_EQ(sum, wire.size());

    RecordOpener opener = kit.Opener(options);
    EXPECT_EQ(kit.Open(opener, wire).bytes, plain);
    EXPECT_TRUE(absl::IsOutOfRange(opener.OnWireEnd()));
  }
}

struct Verdict {
  const char* plain;  // what is delivered before it
  absl::StatusCode end;
};

constexpr char kZero[] = "frame zero";
constexpr char kTwo[] = "frame zeroframe oneframe two";

// The file's recommendations, in status codes; where gRPC's implementations differ it says what we
// do. A name that is missing here fails the test.
const std::map<std::string_view, Verdict>& Verdicts() {
  using absl::StatusCode;
  static const std::map<std::string_view, Verdict> verdicts = {
      {"good-three", {kTwo, StatusCode::kOutOfRange}},
      {"tag-bit", {"", StatusCode::kUnauthenticated}},
      {"tag-first-byte", {"", StatusCode::kUnauthenticated}},
      {"ciphertext-bit", {"", StatusCode::kUnauthenticated}},
      {"second-frame-bad", {kZero, StatusCode::kUnauthenticated}},
      {"replay", {kZero, StatusCode::kUnauthenticated}},
      {"drop-first", {"", StatusCode::kUnauthenticated}},
      {"reflected", {"", StatusCode::kUnauthenticated}},
      {"server-frame-to-client", {"server zero", StatusCode::kOutOfRange}},
      {"type-5", {"", StatusCode::kInvalidArgument}},
      {"type-0x106", {"", StatusCode::kInvalidArgument}},
      {"type-zero", {"", StatusCode::kInvalidArgument}},
      {"length-0", {"", StatusCode::kInvalidArgument}},
      {"length-0-then-type-6", {"", StatusCode::kInvalidArgument}},
      {"length-3", {"", StatusCode::kInvalidArgument}},
      {"length-4", {"", StatusCode::kInvalidArgument}},
      {"length-20-zeros", {"", StatusCode::kUnauthenticated}},
      {"empty-record", {"", StatusCode::kOutOfRange}},
      {"length-1MiB-plus-1", {"", StatusCode::kInvalidArgument}},
      {"length-0xffffffff", {"", StatusCode::kInvalidArgument}},
      {"length-one-less", {"", StatusCode::kUnauthenticated}},
      {"eof-in-length", {kZero, StatusCode::kDataLoss}},
      {"eof-in-ciphertext", {kZero, StatusCode::kDataLoss}},
      {"eof-before-last-tag-byte", {kZero, StatusCode::kDataLoss}},
      {"eof-at-once", {"", StatusCode::kOutOfRange}},
  };
  return verdicts;
}

TEST(GoldenRecords, HostileStreamsEndAsRecommended) {
  RecordKit kit;
  const std::string good = kit.SealOne({.counter = 1}, "late");
  for (const HostileVector& vector : RecordVectors::Get().hostile) {
    SCOPED_TRACE(vector.name + ": " + vector.want);
    const auto verdict = Verdicts().find(vector.name);
    ASSERT_NE(verdict, Verdicts().end());
    // Cut in two at each place, the opener is of the same opinion.
    for (size_t cut = 0; cut <= vector.wire.size(); ++cut) {
      RecordOpener opener = kit.Opener(OptionsOf(vector));
      std::string plain = kit.Open(opener, std::string_view(vector.wire).substr(0, cut)).bytes;
      plain += kit.Open(opener, std::string_view(vector.wire).substr(cut)).bytes;
      EXPECT_EQ(plain, verdict->second.plain);
      const absl::Status end = opener.OnWireEnd();
      EXPECT_EQ(end.code(), verdict->second.end) << end;
      EXPECT_EQ(IsUnauthenticatedEof(end), absl::IsOutOfRange(end)) << end;
      if (absl::IsOutOfRange(end)) continue;
      // For ever.
      const RecordKit::Opened late = kit.Open(opener, good);
      EXPECT_EQ(late.bytes, "");
      EXPECT_EQ(late.last, RecordOpener::Result::kError);
      EXPECT_EQ(opener.status(), end);
      EXPECT_EQ(opener.OnWireEnd(), end);
      EXPECT_EQ(opener.pinned_bytes(), 0u);
    }
  }
}

}  // namespace
