#include "rdma/control_codec.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

Bytes16 Filled(uint8_t first) {
  Bytes16 bytes;
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(first + i);
  return bytes;
}

const AttemptId kActive = {
    .incarnation = Filled(0x10), .endpoint = 0x0102030405060708, .attempt = 0x1112131415161718};
const AttemptId kPassive = {
    .incarnation = Filled(0x30), .endpoint = 0x2122232425262728, .attempt = 0x3132333435363738};

LaneAddress LaneNumber(uint32_t qpn) {
  return {.qpn = qpn, .psn = 0xabcdef, .lid = 0x1234, .mtu = 3, .gid = Filled(0x50)};
}

ControlHello Hello() {
  return {.features = kFeatureReady | kFeatureOneSided,
          .from = kActive,
          .nonce = Filled(0x70),
          .deadline_ms = 5000,
          .lanes = {LaneNumber(0x010203), LaneNumber(0x040506)},
          .terms = {.depth = 64, .size = 8192, .read_depth = 16, .message_max = 0x01020304}};
}

// Of a set of peers, without a device.
ControlHello NamedHello() {
  ControlHello hello = Hello();
  hello.features = kFeatureReady | kFeatureFallback;
  hello.deadline_ms = 0;
  hello.lanes.clear();
  hello.name = "b:123";
  return hello;
}

ControlAccept Accept() {
  return {.features = kFeatureReady,
          .from = kPassive,
          .to = kActive,
          .nonce = Filled(0x90),
          .lanes = {LaneNumber(0x0708)},
          .terms = {.depth = 32, .size = 4096, .read_depth = 8, .message_max = 100'000}};
}

// One of each, with the bytes of version 1, which may never change.

const char kTripleActive[] =
    "101112131415161718191a1b1c1d1e1f"
    "0807060504030201"
    "1817161514131211";
const char kTriplePassive[] =
    "303132333435363738393a3b3c3d3e3f"
    "2827262524232221"
    "3837363534333231";
const char kGid[] = "505152535455565758595a5b5c5d5e5f";

std::vector<std::pair<ControlMessage, std::string>> Goldens() {
  return {
      {Hello(), absl::StrCat("506e735201010000a6000000",  //
                             "010002000101", "020008000500000000000000", "03002000", kTripleActive,
                             "05001000707172737475767778797a7b7c7d7e7f", "0600040088130000",
                             "07003800",                        //
                             "03020100efcdab0034120300", kGid,  //
                             "06050400efcdab0034120300", kGid,  //
                             "08000c00400000000020000010000000", "1700040004030201")},
      {NamedHello(),
       absl::StrCat("506e73520101000073000000",  //
                    "010002000101", "020008000300000000000000", "03002000", kTripleActive,
                    "05001000707172737475767778797a7b7c7d7e7f", "0600040000000000",
                    "08000c00400000000020000010000000", "15000500623a313233", "1700040004030201")},
      {Accept(), absl::StrCat("506e735201020000a5000000",  //
                              "0100010001", "020008000100000000000000", "03002000", kTriplePassive,
                              "04002000", kTripleActive, "05001000909192939495969798999a9b9c9d9e9f",
                              "07001c00", "08070000efcdab0034120300", kGid,
                              "08000c00200000000010000008000000", "17000400a0860100")},
      {ControlReject{.code = RejectCode::kBusy,
                     .retry_after_ms = 250,
                     .attempt = 0x1112131415161718,
                     .text = "busy"},
       "506e73520103000022000000"
       "090002000100"
       "0a000400fa000000"
       "0b00040062757379"
       "140008001817161514131211"},
      {ControlReady{.active_attempt = 0x1112131415161718,
                    .passive_attempt = 0x3132333435363738,
                    .active_nonce = Filled(0x70),
                    .passive_nonce = Filled(0x90),
                    .transcript = 0x4142434445464748},
       "506e73520104000044000000"
       "0c00100018171615141312113837363534333231"
       "0d002000"
       "707172737475767778797a7b7c7d7e7f909192939495969798999a9b9c9d9e9f"
       "0e0008004847464544434241"},
      {ControlCredit{.granted = 0xfffffffe},
       "506e73520105000008000000"
       "10000400feffffff"},
      {ControlRegion{.region = 7,
                     .epoch = 3,
                     .address = 0x7f0000001000,
                     .length = 65536,
                     .rkey = 0x01020304,
                     .access = kRegionRead | kRegionWrite},
       "506e73520106000028000000"
       "11002400"
       "0700000000000000"
       "00100000007f0000"
       "0000010000000000"
       "03000000"
       "04030201"
       "03000000"},
      {ControlRevoke{.region = 7, .epoch = 3},
       "506e73520107000010000000"
       "12000c00070000000000000003000000"},
      {ControlRevoke{.reply = true, .region = 7, .epoch = 3},
       "506e73520107010010000000"
       "12000c00070000000000000003000000"},
      {ControlPing{.token = 9},
       "506e7352010800000c000000"
       "130008000900000000000000"},
      {ControlPong{.token = 9},
       "506e7352010900000c000000"
       "130008000900000000000000"},
      {ControlFallback{.received = 5, .text = "port down"},
       "506e7352010a000019000000"
       "0b000900706f727420646f776e"
       "0f0008000500000000000000"},
      {ControlFallback{.closing = true, .received = 5},
       "506e7352010a02000c000000"
       "0f0008000500000000000000"},
      {ControlDrain{.reply = true, .sequence = 5},
       "506e7352010b01000c000000"
       "0f0008000500000000000000"},
      {ControlClose{.code = CloseCode::kDeadline, .text = "late"},
       "506e7352010c00000e000000"
       "090002000200"
       "0b0004006c617465"},
      {ControlGrant{.reply = true, .receives = 10},
       "506e7352010d010008000000"
       "160004000a000000"},
  };
}

absl::StatusOr<ControlMessage> Decode(std::string_view bytes) {
  absl::StatusOr<ControlHeader> header = DecodeControlHeader(bytes);
  if (!header.ok()) return header.status();
  EXPECT_EQ(header->body_size, bytes.size() - kControlHeaderSize);
  return DecodeControl(*header, bytes.substr(kControlHeaderSize));
}

// A message made by hand.
std::string Message(ControlType type, std::string_view body, uint16_t flags = 0) {
  std::string bytes = ControlDataHeader(body.size());
  bytes[5] = static_cast<char>(type);
  bytes[6] = static_cast<char>(flags);
  bytes[7] = static_cast<char>(flags >> 8);
  return bytes.append(body);
}

std::string RawField(uint16_t number, std::string_view value) {
  const auto size = value.size();
  return std::string{static_cast<char>(number), static_cast<char>(number >> 8),
                     static_cast<char>(size), static_cast<char>(size >> 8)}
      .append(value);
}

std::string ProblemOf(std::string_view bytes) {
  absl::StatusOr<ControlMessage> message = Decode(bytes);
  if (message.ok()) return "none";
  EXPECT_EQ(message.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(message.status().message());
}

TEST(ControlCodecTest, HasTheBytesOfVersionOneBothWays) {
  for (const auto& [message, hex] : Goldens()) {
    const std::string bytes = absl::HexStringToBytes(hex);
    EXPECT_EQ(absl::BytesToHexString(EncodeControl(message)), hex);
    absl::StatusOr<ControlMessage> decoded = Decode(bytes);
    ASSERT_TRUE(decoded.ok()) << decoded.status() << " " << hex;
    EXPECT_TRUE(*decoded == message) << hex;
  }
}

TEST(ControlCodecTest, RefusesEveryMessageThatIsCutOff) {
  for (const auto& [message, hex] : Goldens()) {
    const std::string bytes = EncodeControl(message);
    const auto type = static_cast<ControlType>(bytes[5]);
    const std::string_view body = std::string_view(bytes).substr(kControlHeaderSize);
    for (size_t size = 0; size < body.size(); ++size) {
      absl::StatusOr<ControlMessage> decoded = Decode(Message(type, body.substr(0, size)));
      // Between two fields the rest may be optional; then something is missing in the message.
      if (decoded.ok()) {
        EXPECT_FALSE(*decoded == message) << hex << " at " << size;
      }
    }
  }
}

TEST(ControlCodecTest, JudgesTheHeader) {
  const std::string good = EncodeControl(ControlPing{.token = 1});
  const auto with = [&](size_t at, char value) {
    std::string bytes = good;
    bytes[at] = value;
    return std::string(DecodeControlHeader(bytes).status().message());
  };
  EXPECT_TRUE(DecodeControlHeader(good).ok());
  EXPECT_EQ(with(0, 'H'), "RDMA control: not a control stream of Penstock");
  EXPECT_EQ(with(4, 2), "RDMA control PING: of version 2, not 1");
  EXPECT_EQ(with(7, 0x10), "RDMA control PING: unknown critical flags 1000");
  EXPECT_EQ(with(6, 0x40), "") << "flags of the lower half may be unknown";
  EXPECT_EQ(with(9, 0x10), "RDMA control PING: length 4108, at most 4096");
  EXPECT_EQ(with(11, '\xff'), "RDMA control PING: length 4278190092, at most 4096");
  EXPECT_TRUE(DecodeControlHeader(ControlDataHeader(kControlDataMax)).ok());
  std::string data = ControlDataHeader(kControlDataMax);
  data[8] = 1;
  EXPECT_FALSE(DecodeControlHeader(data).ok());
}

TEST(ControlCodecTest, SkipsWhatALaterVersionMayAdd) {
  const std::string token = RawField(19, std::string("\x09\0\0\0\0\0\0\0", 8));
  for (const std::string& body : {token + RawField(77, "new"), RawField(1, "") + token,
                                  RawField(1, "") + token + RawField(0x7fff, "")}) {
    absl::StatusOr<ControlMessage> decoded = Decode(Message(ControlType::kPing, body));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_TRUE(*decoded == ControlMessage(ControlPing{.token = 9}));
  }
  absl::StatusOr<ControlMessage> decoded = Decode(Message(ControlType{0x83}, "anything"));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_TRUE(*decoded == ControlMessage(ControlSkipped{.type = 0x83}));
}

TEST(ControlCodecTest, NamesWhatItMustNotSkip) {
  const std::string token = RawField(19, std::string(8, '\0'));
  EXPECT_EQ(ProblemOf(Message(ControlType::kPing, token + RawField(0x8000 | 77, ""))),
            "RDMA control PING: unknown critical field 77");
  EXPECT_EQ(ProblemOf(Message(ControlType::kPing, RawField(0x8000 | 16, "1234") + token)),
            "RDMA control PING: unknown critical field 16");
  EXPECT_EQ(ProblemOf(Message(ControlType{14}, token)), "RDMA control type 14: unknown");
  EXPECT_EQ(ProblemOf(Message(ControlType{0}, token)), "RDMA control type 0: unknown");
  EXPECT_EQ(ProblemOf(Message(ControlType::kData, token)), "RDMA control DATA: unknown");
  // What is known may be marked as well.
  EXPECT_EQ(ProblemOf(Message(ControlType::kPing, RawField(0x8000 | 19, std::string(8, '\0')))),
            "none");
}

TEST(ControlCodecTest, RefusesMalformedFields) {
  const std::string token = RawField(19, std::string(8, '\0'));
  const auto ping = [](const std::string& body) {
    return ProblemOf(Message(ControlType::kPing, body));
  };
  EXPECT_EQ(ping(""), "RDMA control PING: token is missing");
  EXPECT_EQ(ping("abc"), "RDMA control PING: a field is cut off");
  EXPECT_EQ(ping(token.substr(0, 11)), "RDMA control PING: token is cut off");
  EXPECT_EQ(ping(token + token), "RDMA control PING: token is repeated or out of order");
  EXPECT_EQ(ping(token + RawField(2, "")),
            "RDMA control PING: features is repeated or out of order");
  EXPECT_EQ(ping(RawField(19, "1234567")), "RDMA control PING: token of 7 bytes");
  EXPECT_EQ(ping(RawField(19, "123456789")), "RDMA control PING: token of 9 bytes");
  std::string many;
  for (uint16_t i = 100; i < 164; ++i) many += RawField(i, "");
  EXPECT_EQ(ping(token + many), "RDMA control PING: too many fields");
  EXPECT_EQ(ProblemOf(Message(ControlType::kClose, RawField(9, std::string(2, '\0')) +
                                                       RawField(11, std::string(257, 'x')))),
            "RDMA control CLOSE: text of 257 bytes");
}

TEST(ControlCodecTest, RefusesAnOpeningThatCannotBe) {
  const auto hello = [](auto change) {
    ControlHello message = Hello();
    change(message);
    return ProblemOf(EncodeControl(message));
  };
  const std::string at = "RDMA control HELLO: ";
  EXPECT_EQ(hello([](auto&) {}), "none");
  EXPECT_EQ(hello([](auto& m) { m.lanes[1].qpn = 0; }), at + "queue pair number out of range");
  EXPECT_EQ(hello([](auto& m) { m.lanes[1].qpn = 1 << 24; }),
            at + "queue pair number out of range");
  EXPECT_EQ(hello([](auto& m) { m.lanes[0].psn = 1 << 24; }),
            at + "packet sequence number out of range");
  EXPECT_EQ(hello([](auto& m) { m.lanes[0].mtu = 0; }), at + "unknown MTU");
  EXPECT_EQ(hello([](auto& m) { m.lanes[0].mtu = 6; }), at + "unknown MTU");
  EXPECT_EQ(hello([](auto& m) { m.lanes[0].lid = 0; }), "none") << "a GID alone will do";
  EXPECT_EQ(hello([](auto& m) { m.lanes[0].gid = {}; }), "none") << "a LID alone will do";
  EXPECT_EQ(hello([](auto& m) {
              m.lanes[0].lid = 0;
              m.lanes[0].gid = {};
            }),
            at + "neither GID nor LID");
  EXPECT_EQ(hello([](auto& m) { m.lanes.resize(8, LaneNumber(9)); }), "none");
  EXPECT_EQ(hello([](auto& m) { m.lanes.resize(9, LaneNumber(9)); }), at + "lanes of 252 bytes");
  EXPECT_EQ(hello([](auto& m) { m.lanes.clear(); }), at + "neither lanes nor the fallback");
  EXPECT_EQ(hello([](auto& m) {
              m.lanes.clear();
              m.features |= kFeatureFallback;
            }),
            "none");
  EXPECT_EQ(hello([](auto& m) { m.terms.depth = 0; }), at + "terms that let nothing in");
  EXPECT_EQ(hello([](auto& m) { m.terms.size = 0; }), at + "terms that let nothing in");
  EXPECT_EQ(hello([](auto& m) { m.from.attempt = 0; }), at + "attempt 0");
  EXPECT_EQ(hello([](auto& m) { m.version_min = 2; }), at + "no version range");
  EXPECT_EQ(hello([](auto& m) { m.version_min = 0; }), at + "no version range");
  EXPECT_EQ(hello([](auto& m) { m.name = std::string(256, 'n'); }), "none");
  EXPECT_EQ(hello([](auto& m) { m.name = "caf\xc3\xa9"; }),
            at + "name of 5 bytes, or not of ASCII");
  ControlHello nameless = NamedHello();
  nameless.name.clear();
  const std::string whole = EncodeControl(nameless).substr(kControlHeaderSize);
  for (const size_t size : {0, 257}) {
    std::string body = whole;
    body.insert(body.size() - RawField(23, "1234").size(), RawField(21, std::string(size, 'n')));
    EXPECT_EQ(ProblemOf(Message(ControlType::kHello, body)),
              at + absl::StrCat("name of ", size, " bytes, or not of ASCII"));
  }
}

TEST(ControlCodecTest, RefusesAnAnswerOrARegionThatCannotBe) {
  ControlAccept accept = Accept();
  accept.version = 0;
  EXPECT_EQ(ProblemOf(EncodeControl(accept)), "RDMA control ACCEPT: version 0");
  accept = Accept();
  accept.to.attempt = 0;
  EXPECT_EQ(ProblemOf(EncodeControl(accept)), "RDMA control ACCEPT: an answer to attempt 0");
  EXPECT_EQ(ProblemOf(EncodeControl(ControlRegion{.address = ~uint64_t{0}, .length = 2})),
            "RDMA control REGION: a region that wraps around");
}

TEST(ControlCodecTest, LanesAreAWholeNumber) {
  std::string bytes = EncodeControl(Accept());
  const size_t at = bytes.find(std::string("\x07\0\x1c\0", 4));
  ASSERT_NE(at, std::string::npos);
  const auto lanes_of = [&](size_t size) {
    std::string body = bytes.substr(kControlHeaderSize);
    const size_t lanes = at - kControlHeaderSize;
    body.replace(lanes, 4 + 28, RawField(7, std::string(size, '\1')));
    return ProblemOf(Message(ControlType::kAccept, body));
  };
  EXPECT_EQ(lanes_of(0), "RDMA control ACCEPT: lanes of 0 bytes");
  EXPECT_EQ(lanes_of(27), "RDMA control ACCEPT: lanes of 27 bytes");
  EXPECT_EQ(lanes_of(28), "RDMA control ACCEPT: queue pair number out of range");
  EXPECT_EQ(lanes_of(29), "RDMA control ACCEPT: lanes of 29 bytes");
  EXPECT_EQ(lanes_of(28 * 9), "RDMA control ACCEPT: lanes of 252 bytes");
}

TEST(ControlCodecTest, TextsAreCutAndMadePrintable) {
  absl::StatusOr<ControlMessage> decoded =
      Decode(EncodeControl(ControlClose{.text = std::string(300, 'x')}));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(std::get<ControlClose>(*decoded).text, std::string(256, 'x'));
  decoded = Decode(EncodeControl(ControlClose{.text = "a\n\x1b[2J\xff~"}));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(std::get<ControlClose>(*decoded).text, "a??[2J?~");
}

TEST(ControlCodecTest, FramesCarryDataOnlyWhenAskedTo) {
  const std::string data = ControlDataHeader(5000);
  EXPECT_EQ(absl::BytesToHexString(data), "506e73520140000088130000");
  EXPECT_EQ(*ControlFrameFormat(true).body_size(data), 5000u);
  EXPECT_EQ(ControlFrameFormat(false).body_size(data).status().message(),
            "RDMA control DATA: no data is agreed upon");
  const std::string ping = EncodeControl(ControlPing{});
  EXPECT_EQ(*ControlFrameFormat(true).body_size(ping), 12u);
  EXPECT_EQ(*ControlFrameFormat(false).body_size(ping), 12u);
  EXPECT_FALSE(ControlFrameFormat(false).body_size(std::string(12, 'x')).ok());
  EXPECT_FALSE(ControlFrameFormat(true).body_size(std::string(12, 'x')).ok());
}

TEST(ControlCodecTest, ChoosesTheHighestCommonVersion) {
  const auto choose = [](uint8_t min, uint8_t max) {
    return ChooseVersion({.version_min = min, .version_max = max}).value_or(0);
  };
  EXPECT_EQ(choose(1, 1), 1);
  EXPECT_EQ(choose(1, 9), 1);
  EXPECT_EQ(choose(2, 9), 0);
  EXPECT_EQ(choose(0, 1), 1);
  EXPECT_EQ(choose(0, 0), 0);
}

TEST(ControlCodecTest, TheTranscriptTellsMessagesApart) {
  const std::string hello = EncodeControl(Hello());
  const std::string accept = EncodeControl(Accept());
  const uint64_t hash = TranscriptHash(hello, accept);
  EXPECT_EQ(TranscriptHash("", ""), 0xcbf29ce484222325u);
  EXPECT_EQ(TranscriptHash("a", ""), 0xaf63dc4c8601ec8cu);  // the published vectors of FNV-1a
  EXPECT_EQ(TranscriptHash("foo", "bar"), 0x85944171f73967e8u);
  for (size_t i = 0; i < hello.size() * 8; ++i) {
    std::string other = hello;
    other[i / 8] = static_cast<char>(other[i / 8] ^ 1 << i % 8);
    ASSERT_NE(TranscriptHash(other, accept), hash) << i;
  }
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
