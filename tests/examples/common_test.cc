// What the example programs share: the parts that are pure functions or touch one file.
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "common/histogram.h"
#include "common/http_request.h"
#include "common/json.h"
#include "common/move_figures.h"
#include "common/part_file.h"
#include "common/pattern.h"
#include "common/progress.h"
#include "common/transfer_format.h"

namespace examples {
namespace {

// ---- Pattern ----

TEST(Pattern, MatchesItselfWhereverItIsCut) {
  std::vector<char> whole(200000);
  FillPattern(whole, 7, 1000);
  for (const size_t at : {0ul, 1ul, 65520ul, 65521ul, 131042ul, 199999ul}) {
    std::vector<char> rest(whole.size() - at);
    FillPattern(rest, 7, 1000 + at);
    EXPECT_TRUE(std::equal(rest.begin(), rest.end(), whole.begin() + static_cast<long>(at)));
    EXPECT_FALSE(FindMismatch({rest.data(), rest.size()}, 7, 1000 + at)) << at;
  }
}

TEST(Pattern, FindsOneWrongBitWhereItIs) {
  std::vector<char> bytes(150000);
  FillPattern(bytes, 3, 5);
  for (const size_t at : {0ul, 1ul, 65520ul, 65521ul, 149999ul}) {
    bytes[at] ^= 1;
    EXPECT_EQ(FindMismatch({bytes.data(), bytes.size()}, 3, 5), at);
    bytes[at] ^= 1;
  }
}

TEST(Pattern, ASlipOrAnotherConnectionShows) {
  std::vector<char> bytes(64);
  FillPattern(bytes, 3, 1 << 20);
  const std::string_view view(bytes.data(), bytes.size());
  for (uint64_t slip = 1; slip <= 1 << 16; slip *= 2) {
    EXPECT_TRUE(FindMismatch(view, 3, (1 << 20) + slip)) << slip;
    EXPECT_TRUE(FindMismatch(view, 3 + slip, 1 << 20)) << slip;
  }
}

// ---- MoveFigures ----

TEST(MoveFigures, AddUpLoops) {
  penstock::LoopSnapshot loop;
  loop.switches_to_epoll = 1;
  loop.switches_to_uring = 2;
  loop.moves_in = 4;
  loop.moves_out = 100;
  loop.moves_back = 32;
  loop.listener_switches = 64;
  loop.listener_switches_refused = 128;
  loop.moves_refused_by[static_cast<size_t>(penstock::MoveDirection::kIn)] = {1, 0, 2, 0, 0, 0};
  loop.late_completions = 8;
  loop.bytes_carried = 16;
  loop.move_pauses[3] = 1;
  MoveFigures figures;
  figures.Add(loop);
  figures.Add(loop);
  EXPECT_EQ(figures.engine_switches(), 6u);
  EXPECT_EQ(figures.switches_to_epoll, 2u);
  EXPECT_EQ(figures.switches_to_uring, 4u);
  EXPECT_EQ(figures.listener_switches, 128u);
  EXPECT_EQ(figures.listener_switches_refused, 256u);
  EXPECT_EQ(figures.loop_moves, 8u);
  EXPECT_EQ(figures.moves_out, 200u);
  EXPECT_EQ(figures.moves_back, 64u);
  EXPECT_EQ(figures.refused, (std::array<uint64_t, penstock::kMoveDirections>{0, 0, 0, 6}));
  EXPECT_EQ(figures.stranded, 0u);
  EXPECT_EQ(figures.late_completions, 16u);
  EXPECT_EQ(figures.bytes_carried, 32u);
  EXPECT_EQ(figures.pauses[3], 2u);
}

TEST(MoveFigures, PausesLieWithinTheirBuckets) {
  MoveFigures figures;
  EXPECT_EQ(figures.PauseUs(0.5), 0);
  figures.pauses[0] = 10;  // below 1 us
  EXPECT_GT(figures.PauseUs(0.5), 0);
  EXPECT_LE(figures.PauseUs(1), 1);
  figures.pauses[4] = 80;  // 8 to 16 us
  figures.pauses[10] = 10;
  EXPECT_DOUBLE_EQ(figures.PauseUs(0.5), 12);
  EXPECT_DOUBLE_EQ(figures.PauseUs(0.9), 16);
  EXPECT_GT(figures.PauseUs(0.99), 512);
  EXPECT_DOUBLE_EQ(figures.PauseUs(1), 1024);
}

// ---- Histogram ----

TEST(Histogram, PercentilesAreWithinTwoPercent) {
  Histogram histogram;
  for (int64_t us = 1; us <= 100000; ++us) histogram.Record(absl::Microseconds(us));
  for (const double fraction : {0.001, 0.5, 0.9, 0.99, 0.999, 1.0}) {
    const double us = absl::ToDoubleMicroseconds(histogram.Percentile(fraction));
    EXPECT_GE(us, fraction * 100000 * 0.9999);
    EXPECT_LE(us, fraction * 100000 * 1.02);
  }
  EXPECT_EQ(histogram.max(), absl::Milliseconds(100));
  EXPECT_EQ(histogram.Percentile(1.0), absl::Milliseconds(100));
}

TEST(Histogram, TakesTheExtremes) {
  Histogram histogram;
  EXPECT_EQ(histogram.Percentile(0.5), absl::ZeroDuration());
  histogram.Record(-absl::Seconds(1));
  EXPECT_EQ(histogram.Percentile(1), absl::ZeroDuration());
  histogram.Record(absl::InfiniteDuration());
  EXPECT_EQ(histogram.count(), 2u);
  EXPECT_EQ(histogram.Percentile(1), histogram.max());
}

// ---- JSON ----

TEST(JsonLine, KeepsItsOrderAndEscapes) {
  testing::internal::CaptureStdout();
  JsonLine().Add("b", uint64_t{18446744073709551615u}).Add("a", 0.5).Add("c", "q\"\\\n").Print();
  EXPECT_EQ(testing::internal::GetCapturedStdout(),
            "{\"b\": 18446744073709551615, \"a\": 0.500, \"c\": \"q\\\"\\\\\\u000a\"}\n");
}

TEST(FormatBytes, PicksTheUnit) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(64.0 * (1 << 30)), "64.0 GiB");
}

// ---- Transfer format ----

TEST(TransferFormat, HeaderIsAsWrittenDown) {
  const auto bytes = EncodeHeader(0x0102030405060708);
  EXPECT_EQ(std::string_view(bytes.data(), bytes.size()),
            std::string_view("PENSBULK\0\0\0\1\0\0\0\0\1\2\3\4\5\6\7\10", 24));
  EXPECT_EQ(*DecodeHeader(bytes), 0x0102030405060708u);
}

TEST(TransferFormat, EveryOtherHeaderIsRefused) {
  const auto good = EncodeHeader(5);
  for (size_t i = 0; i < 16; ++i) {  // all but the length
    auto bad = good;
    bad[i] ^= 0x10;
    EXPECT_TRUE(absl::IsInvalidArgument(DecodeHeader(bad).status())) << i;
  }
}

TEST(TransferFormat, AckGoesThereAndBack) {
  Ack ack{Verdict::kNotStored, {}};
  ack.digest[0] = 0xab;
  ack.digest[31] = 0xcd;
  const auto bytes = EncodeAck(ack);
  const absl::StatusOr<Ack> back = DecodeAck(bytes);
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->verdict, Verdict::kNotStored);
  EXPECT_EQ(back->digest, ack.digest);
  EXPECT_EQ(Hex(ack.digest), "ab" + std::string(60, '0') + "cd");
  for (size_t i = 0; i < 8; ++i) {
    auto bad = bytes;
    bad[i] ^= 0x10;
    EXPECT_FALSE(DecodeAck(bad).ok()) << i;
  }
}

// ---- PartFile ----

class PartFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "penstock.XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  size_t files() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }
  std::string path() const { return folder_ / "file"; }
  std::string Content() const {
    std::ifstream in(path());
    return std::string(std::istreambuf_iterator<char>(in), {});
  }

  std::filesystem::path folder_;
};

TEST_F(PartFileTest, AppearsWhenCommitted) {
  absl::StatusOr<PartFile> file = PartFile::Create(path());
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE(file->Write("con").ok());
  ASSERT_TRUE(file->Write("tent").ok());
  EXPECT_FALSE(std::filesystem::exists(path()));
  const absl::Status committed = file->Commit();
  EXPECT_TRUE(committed.ok()) << committed;
  EXPECT_EQ(Content(), "content");
  EXPECT_EQ(files(), 1u);
}

TEST_F(PartFileTest, DroppedOneLeavesTheOldFileAndNothingElse) {
  std::ofstream(path()) << "old";
  {
    absl::StatusOr<PartFile> file = PartFile::Create(path());
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE(file->Write("new").ok());
    EXPECT_EQ(files(), 2u);
  }
  EXPECT_EQ(Content(), "old");
  EXPECT_EQ(files(), 1u);
}

TEST_F(PartFileTest, TwoOfOneNameDoNotMeet) {
  absl::StatusOr<PartFile> first = PartFile::Create(path());
  absl::StatusOr<PartFile> second = PartFile::Create(path());
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE(first->Write("first").ok());
  ASSERT_TRUE(second->Write("second").ok());
  ASSERT_TRUE(second->Commit().ok());
  EXPECT_EQ(Content(), "second");
  ASSERT_TRUE(first->Commit().ok());
  EXPECT_EQ(Content(), "first");
  EXPECT_EQ(files(), 1u);
}

TEST_F(PartFileTest, RefusesWhatIsNoFile) {
  EXPECT_TRUE(absl::IsInvalidArgument(PartFile::Create(folder_).status()));
  EXPECT_TRUE(absl::IsNotFound(PartFile::Create(folder_ / "absent/file").status()));
}

// ---- HTTP ----

TEST(HttpRequest, EveryPrefixIsIncomplete) {
  const std::string request = "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n";
  for (size_t size = 0; size < request.size(); ++size) {
    const HttpRequest parsed = ParseHttpRequest(std::string_view(request).substr(0, size));
    EXPECT_EQ(parsed.head_size, 0u) << size;
  }
  const HttpRequest parsed = ParseHttpRequest(request + "abcGET");
  EXPECT_EQ(parsed.head_size, request.size());
  EXPECT_EQ(parsed.body_size, 3u);
  EXPECT_EQ(parsed.status, 200);
  EXPECT_TRUE(parsed.keep_alive);
}

TEST(HttpRequest, BoundsOfTheHead) {
  const std::string start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
  const std::string fits = start + std::string(kHttpHeadMax - start.size() - 4, 'x') + "\r\n\r\n";
  EXPECT_EQ(ParseHttpRequest(fits).status, 200);
  EXPECT_EQ(ParseHttpRequest(fits).head_size, kHttpHeadMax);
  EXPECT_EQ(ParseHttpRequest(start + std::string(kHttpHeadMax, 'x')).status, 431);
  std::string lines;
  while (lines.size() < 2 * kHttpHeadMax) lines += "\r\n";
  EXPECT_EQ(ParseHttpRequest(lines).status, 431);
}

TEST(HttpRequest, BoundsOfTheBody) {
  const auto with = [](std::string_view length) {
    return ParseHttpRequest("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: " + std::string(length) +
                            "\r\n\r\n");
  };
  EXPECT_EQ(with("1048576").status, 405);
  EXPECT_TRUE(with("1048576").keep_alive);
  EXPECT_EQ(with("1048577").status, 413);
  EXPECT_FALSE(with("1048577").keep_alive);
  EXPECT_EQ(with("18446744073709551617").status, 400);
}

// Never reads beyond the bytes, whatever they are: worth most under AddressSanitizer.
TEST(HttpRequest, TakesAnyBytes) {
  constexpr std::string_view kPieces[] = {"GET", " ",  "/", "HTTP/1.1", "\r\n", "\r", "\n",
                                          ":",   "\t", ",", "Host",     "1",    "\0", "Expect"};
  uint64_t state = 1;
  for (int round = 0; round < 20000; ++round) {
    std::string request = round % 2 == 0 ? "GET / HTTP/1.1\r\nHost: a\r\n" : "";
    for (int i = 0; i < 12; ++i) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      request += kPieces[(state >> 33) % std::size(kPieces)];
    }
    const std::vector<char> exact(request.begin(), request.end());
    const HttpRequest parsed = ParseHttpRequest({exact.data(), exact.size()});
    EXPECT_LE(parsed.head_size, exact.size()) << request;
    if (parsed.head_size > 0 && parsed.status != 200 && parsed.status != 501) {
      EXPECT_FALSE(parsed.keep_alive) << request;
    }
  }
}

}  // namespace
}  // namespace examples
