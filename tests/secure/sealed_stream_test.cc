// What a sealed stream does with what only a wire can bring: truncation, forgery, garbage, records
// in pieces; and how it batches and waits. Its contract as a stream is tested in conformance/.
#include "secure/sealed_stream.h"

#include <penstock/framed_reader.h>
#include <penstock/seal.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/pattern.h"
#include "testing/sealed_stream_harness.h"

namespace penstock::internal {
namespace {

constexpr size_t kOverhead = kRecordOverhead;

class SealedStreamTest : public SealedStreamHarness {};

TEST_P(SealedStreamTest, ATruncationAtEachByteIsTold) {
  const std::vector<std::string> payloads = {"the first", "and the second"};
  for (RecordMode mode : {RecordMode::kNative, RecordMode::kGrpc}) {
    const bool native = mode == RecordMode::kNative;
    const std::string wire = Records(mode, payloads, native);
    const size_t first = payloads[0].size() + kOverhead;
    const size_t second = first + payloads[1].size() + kOverhead;
    for (size_t cut = 0; cut <= wire.size(); ++cut) {
      StreamPair pair = HalfSealed(mode);
      if (cut > 0) pair.client->Write(Chain(wire.substr(0, cut)));
      pair.client->ShutdownWrite();
      const Received received = ReadToEnd(*pair.server);
      std::string expected;
      if (cut >= first) expected += payloads[0];
      if (cut >= second) expected += payloads[1];
      EXPECT_EQ(received.data, expected) << "cut at " << cut;
      if (native) {
        EXPECT_EQ(IsEof(received.end), cut == wire.size()) << "cut at " << cut;
        EXPECT_FALSE(IsUnauthenticatedEof(received.end));
      } else {
        const bool boundary = cut == 0 || cut == first || cut == second;
        EXPECT_EQ(IsUnauthenticatedEof(received.end), boundary) << "cut at " << cut;
      }
      if (!IsEof(received.end)) {
        EXPECT_TRUE(absl::IsDataLoss(received.end)) << received.end;
      }
      EXPECT_EQ(Read(*pair.server).status().code(), received.end.code()) << "and again";
      // The other direction is untouched.
      ASSERT_TRUE(Write(*pair.server, "x").ok());
    }
  }
}

TEST_P(SealedStreamTest, AForgedRecordEndsTheStreamForGood) {
  std::string wire = Records(RecordMode::kNative, {"good", "forged", "good again"}, true);
  wire[4 + kOverhead + 10] ^= 1;
  StreamOptions small;
  small.send_buffer = small.receive_buffer = 16 * 1024;
  StreamPair pair = HalfSealed(RecordMode::kNative, small, small);
  Fate write, shutdown, writable;
  pair.server->Write(Chain(PatternBytes(1, 0, 1 << 20)), write.OnDone());
  pair.server->NotifyWritable(writable.OnDone());
  pair.server->ShutdownWrite(shutdown.OnDone());
  pair.client->Write(Chain(wire));
  const Received received = ReadToEnd(*pair.server);
  EXPECT_EQ(received.data, "good");
  EXPECT_TRUE(absl::IsUnauthenticated(received.end)) << received.end;
  EXPECT_NE(received.end.message().find(pair.server->peer().ToString()), std::string::npos);
  EXPECT_EQ(Read(*pair.server).status(), received.end);
  ASSERT_TRUE(Drive([&] { return write.ended() && shutdown.ended() && writable.ended(); }));
  EXPECT_EQ(write.status(), received.end);
  EXPECT_EQ(writable.status(), received.end);
  EXPECT_EQ(shutdown.status(), received.end);
  EXPECT_EQ(pair.server->stats().sealed_pinned_bytes, 0u);
  ExpectCutOff(*pair.client);
}

TEST_P(SealedStreamTest, RecordsOutOfTheirOrderEndTheStream) {
  const std::vector<std::string> payloads = {"first", "second", "third"};
  const std::vector<size_t> orders[] = {{0, 0}, {0, 2}, {0, 2, 1}, {1}, {0, 1, 0}};
  for (RecordMode mode : {RecordMode::kNative, RecordMode::kGrpc}) {
    const std::string wire = Records(mode, payloads, false);
    std::vector<std::string> records;
    size_t at = 0;
    for (const std::string& payload : payloads) {
      records.push_back(wire.substr(at, payload.size() + kOverhead));
      at += records.back().size();
    }
    for (const std::vector<size_t>& order : orders) {
      std::string sent, good;
      for (size_t i = 0; i < order.size(); ++i) {
        if (order[i] == i && sent == wire.substr(0, sent.size())) good += payloads[i];
        sent += records[order[i]];
      }
      StreamPair pair = HalfSealed(mode);
      pair.client->Write(Chain(sent));
      const Received received = ReadToEnd(*pair.server);
      EXPECT_EQ(received.data, good);
      EXPECT_TRUE(absl::IsUnauthenticated(received.end)) << received.end;
      ExpectCutOff(*pair.client);
    }
    // Sent back: whoever has no key can do that.
    StreamPair pair = HalfSealed(mode);
    ASSERT_TRUE(Write(*pair.server, "its own").ok());
    pair.client->Write(Chain(ReadUpTo(*pair.client, 7 + kOverhead).data));
    EXPECT_TRUE(absl::IsUnauthenticated(Read(*pair.server).status()));
    ExpectCutOff(*pair.client);
  }
}

// The records that there are counters for are sent; then nothing is, not even the end that is owed,
// and the peer does not take that for one.
TEST_P(SealedStreamTest, TheLastCounterEndsSendingForGood) {
  for (RecordProtocol protocol : {RecordProtocol::kGcmAes128, RecordProtocol::kGcmAes128Rekey}) {
    const uint64_t last =
        protocol == RecordProtocol::kGcmAes128 ? (uint64_t{1} << 40) - 1 : UINT64_MAX;
    for (int how = 0; how < 3; ++how) {
      StreamPair pair = Pair();
      pair.client = Sealed(std::move(pair.client), {.protocol = protocol});
      pair.server = Sealed(std::move(pair.server), {.protocol = protocol, .server = true});
      for (Stream* stream : {pair.client.get(), pair.server.get()}) {
        static_cast<SealedStream*>(stream)->SetCounters(last - 2, last - 2);
      }
      Exchange(*pair.server, *pair.client, "the last but two");
      Exchange(*pair.server, *pair.client, "and the last but one");
      if (how == 0) {
        const absl::Status refused = Write(*pair.server, "no more");
        EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
        EXPECT_EQ(Write(*pair.server, "and no more"), refused);
      } else if (how == 1) {
        EXPECT_TRUE(absl::IsResourceExhausted(Shutdown(*pair.server)));
      } else {
        pair.server.reset();
      }
      const absl::Status end = Read(*pair.client).status();
      EXPECT_TRUE(IsReset(end) || (is_unix() && absl::IsDataLoss(end))) << how << ": " << end;
    }
  }
}

TEST_P(SealedStreamTest, ASecretPoolKeepsNoPlaintext) {
  LoopOptions options;
  options.pool_options.secret = true;
  RemakeLoop(std::move(options));
  const std::string text = "in the clear at both ends, and nowhere afterwards";
  {
    StreamPair pair = Pair();
    pair.client = Sealed(std::move(pair.client), {});
    pair.server = Sealed(std::move(pair.server), {.server = true});
    for (size_t times : {1, 100, 2000}) {
      std::string many;
      for (size_t i = 0; i < times; ++i) many += text;
      Exchange(*pair.client, *pair.server, many);
      Exchange(*pair.server, *pair.client, many);
    }
  }
  Settle();
  for (size_t size = 256; size <= 128 * 1024; size *= 2) {
    std::vector<Buffer> blocks;
    for (int i = 0; i < 8; ++i) {
      blocks.push_back(loop().pool().TryAllocate(size));
      ASSERT_TRUE(blocks.back());
      blocks.back().Extend(size);
      EXPECT_EQ(blocks.back().view().find(text.substr(0, 16)), std::string_view::npos) << size;
    }
  }
}

TEST_P(SealedStreamTest, WhatIsNoRecordIsRefusedAtItsHeader) {
  for (const std::string& bytes : {std::string("GET / HTTP/1.1\r\n"), std::string(4, '\0'),
                                   std::string("\xff\xff\xff\xff\x06\0\0\0", 8)}) {
    StreamPair pair = HalfSealed(RecordMode::kNative);
    pair.client->Write(Chain(bytes));
    const absl::Status end = Read(*pair.server).status();
    EXPECT_TRUE(absl::IsInvalidArgument(end)) << end;
    EXPECT_TRUE(absl::IsInvalidArgument(Write(*pair.server, "after it")));
  }
}

TEST_P(SealedStreamTest, BytesAfterTheEndAreAnError) {
  const std::string wire = Records(RecordMode::kNative, {"all of it"}, true);
  StreamPair pair = HalfSealed(RecordMode::kNative);
  pair.client->Write(Chain(wire + wire));
  const Received received = ReadToEnd(*pair.server);
  EXPECT_EQ(received.data, "all of it");
  EXPECT_TRUE(absl::IsInvalidArgument(received.end)) << received.end;
}

TEST_P(SealedStreamTest, TheModesVouchForTheirEndsOrNot) {
  for (RecordMode mode : {RecordMode::kNative, RecordMode::kGrpc}) {
    StreamPair pair = HalfSealed(mode);
    pair.client = Sealed(std::move(pair.client), {.mode = mode});
    Exchange(*pair.client, *pair.server, "to the server");
    ASSERT_TRUE(Shutdown(*pair.client).ok());
    const absl::Status end = Read(*pair.server).status();
    EXPECT_TRUE(IsEof(end)) << end;
    EXPECT_EQ(IsUnauthenticatedEof(end), mode == RecordMode::kGrpc) << end;
    Exchange(*pair.server, *pair.client, "and back, for it is closed by half");
    pair.server.reset();
    const absl::Status other = Read(*pair.client).status();
    EXPECT_TRUE(IsEof(other)) << other;
    EXPECT_EQ(IsUnauthenticatedEof(other), mode == RecordMode::kGrpc) << other;
  }
}

TEST_P(SealedStreamTest, WhatIsWrittenTogetherIsOneRecord) {
  StreamPair pair = HalfSealed(RecordMode::kGrpc);
  for (int i = 0; i < 10; ++i) pair.server->Write(Chain("ten of these"));
  pair.server->ShutdownWrite();
  const Received received = ReadToEnd(*pair.client);
  EXPECT_EQ(received.data.size(), 10 * 12 + kOverhead);
  EXPECT_EQ(pair.server->stats().bytes_out, 120u);
}

TEST_P(SealedStreamTest, RecordsAreAsLargeAsWasAgreed) {
  StreamPair pair = Pair();
  pair.server =
      Sealed(std::move(pair.server),
             {.mode = RecordMode::kGrpc, .server = true, .send_frame_max = kRecordFrameMax});
  constexpr size_t kPayloadMax = kRecordFrameMax - kOverhead;
  const size_t rest = 900'000;  // of a third record, larger than the usual batch as well
  pair.server->Write(Chain(PatternBytes(8, 0, 2 * kPayloadMax + rest)));
  const size_t total = 2 * kRecordFrameMax + rest + kOverhead;
  const std::string wire = ReadUpTo(*pair.client, total).data;
  ASSERT_EQ(wire.size(), total);
  std::vector<uint32_t> records;
  for (size_t at = 0; at < wire.size(); at += records.back()) {
    uint32_t length = 0;
    for (int i = 3; i >= 0; --i) length = length << 8 | static_cast<uint8_t>(wire[at + i]);
    records.push_back(4 + length);
  }
  EXPECT_EQ(records, (std::vector<uint32_t>{kRecordFrameMax, kRecordFrameMax, rest + kOverhead}));
}

TEST_P(SealedStreamTest, AWriteThatFillsTheBoundIsSentAndItsEndToo) {
  StreamOptions options;
  options.send_queue_max = 64 * 1024;
  StreamPair pair = HalfSealed(RecordMode::kNative, {}, options);
  const std::string data(options.send_queue_max - kOverhead - 1, 'x');
  pair.server->Write(Chain(data));
  pair.server->ShutdownWrite();
  const Received received = ReadToEnd(*pair.client);
  EXPECT_TRUE(IsEof(received.end)) << received.end;
  EXPECT_GE(received.data.size(), data.size() + 2 * kOverhead);
  EXPECT_EQ(pair.server->stats().bytes_out, data.size());
}

TEST_P(SealedStreamTest, ARecordThatDripsPinsAtMostTwiceWhatCame) {
  const std::string payload = PatternBytes(2, 0, 20'000);
  const std::string wire = Records(RecordMode::kGrpc, {payload}, false);
  StreamPair pair = HalfSealed(RecordMode::kGrpc);
  Fate read;
  pair.server->ReadReady(read.OnRead());
  size_t sent = 0;
  for (size_t piece = 1; sent + piece < wire.size(); piece = piece % 97 + 13) {
    ASSERT_TRUE(Write(*pair.client, wire.substr(sent, piece)).ok());
    sent += piece;
    Settle();
    EXPECT_LE(pair.server->stats().sealed_pinned_bytes, std::max<size_t>(256, 2 * sent));
    EXPECT_LE(loop().Snapshot().sealed_pinned_bytes, std::max<size_t>(256, 2 * sent));
    if (kSanitized && sent > 3000) break;
  }
  EXPECT_FALSE(read.ended());
  ASSERT_TRUE(Write(*pair.client, wire.substr(sent)).ok());
  ASSERT_TRUE(Drive([&] { return read.ended(); }));
  std::string received = read.data();
  received += ReadUpTo(*pair.server, payload.size() - received.size()).data;
  EXPECT_EQ(received, payload);
  Settle();
  EXPECT_EQ(pair.server->stats().sealed_pinned_bytes, 0u);
}

// The bound holds in each layer: for the record that drips, and for the half frame in the one
// before.
TEST_P(SealedStreamTest, AHalfFrameInARecordThatDripsPinsLittleInEachLayer) {
  const std::string body = PatternBytes(7, 0, 9000);
  std::string frame(5, '\0');
  frame[3] = static_cast<char>(body.size() >> 8);
  frame[4] = static_cast<char>(body.size());
  frame += body;
  const std::vector<std::string> parts = {frame.substr(0, 4000), frame.substr(4000)};
  const std::string wire = Records(RecordMode::kNative, parts, false);
  const size_t first = parts[0].size() + kOverhead;
  StreamPair pair = HalfSealed(RecordMode::kNative);
  FramedReader reader(std::move(pair.server), FrameFormat::Grpc());
  std::string received;
  reader.ReadFrame([&](absl::StatusOr<Frame> got) {
    ASSERT_TRUE(got.ok()) << got.status();
    received = got->body.ToString();
  });
  size_t sent = 0;
  for (size_t piece = 3; sent + piece < wire.size(); piece = piece % 97 + 41) {
    // The first record ends with a piece, so that the reader alone holds something then.
    const size_t n = sent < first ? std::min(piece, first - sent) : piece;
    ASSERT_TRUE(Write(*pair.client, wire.substr(sent, n)).ok());
    sent += n;
    Settle();
    const size_t of_record = sent < first ? sent : sent - first;
    const size_t of_frame = sent < first ? 0 : parts[0].size();
    EXPECT_LE(reader.stream().stats().sealed_pinned_bytes, std::max<size_t>(256, 2 * of_record));
    EXPECT_LE(reader.pinned_bytes(), std::max<size_t>(256, 2 * of_frame));
    if (sent == first) {
      EXPECT_EQ(reader.stream().stats().sealed_pinned_bytes, 0u);
      EXPECT_GE(reader.pinned_bytes(), of_frame - 5);
    }
  }
  ASSERT_TRUE(Write(*pair.client, wire.substr(sent)).ok());
  ASSERT_TRUE(Drive([&] { return !received.empty(); }));
  EXPECT_EQ(received, body);
}

// However the stream below ends for good, nothing is kept of a record that will never be whole.
TEST_P(SealedStreamTest, AnEndBelowLeavesNoPartOfARecordBehind) {
  const std::string wire = Records(RecordMode::kNative, {PatternBytes(6, 0, 1000)}, false);
  for (bool by_deadline : {false, true}) {
    StreamPair pair = HalfSealed(RecordMode::kNative);
    ASSERT_TRUE(Write(*pair.client, wire.substr(0, 500)).ok());
    Fate read;
    pair.server->ReadReady(read.OnRead());
    ASSERT_TRUE(Drive([&] { return pair.server->stats().sealed_pinned_bytes > 0; }));
    if (by_deadline) {
      pair.server->SetIdleDeadline(absl::Milliseconds(1));
    } else {
      pair.server->Abort();
    }
    ASSERT_TRUE(Drive([&] { return read.ended(); }));
    EXPECT_FALSE(read.status().ok());
    EXPECT_EQ(pair.server->stats().sealed_pinned_bytes, 0u);
    EXPECT_EQ(Read(*pair.server).status().code(), read.status().code()) << "and again";
  }
}

TEST_P(SealedStreamTest, ADeadlineOfOneReadLosesNoPartOfARecord) {
  const std::string payload = PatternBytes(6, 0, 1000);
  const std::string wire = Records(RecordMode::kNative, {payload}, false);
  StreamPair pair = HalfSealed(RecordMode::kNative);
  pair.server->SetReadDeadline(absl::Milliseconds(1));
  ASSERT_TRUE(Write(*pair.client, wire.substr(0, 500)).ok());
  EXPECT_TRUE(IsDeadlineExceeded(Read(*pair.server).status()));
  pair.server->SetReadDeadline(absl::InfiniteDuration());
  ASSERT_TRUE(Write(*pair.client, wire.substr(500)).ok());
  EXPECT_EQ(ReadUpTo(*pair.server, 1000).data, payload);
}

// What is queued is what fills the pool: nobody else could make room for its records.
TEST_P(SealedStreamTest, WritesThatFillThePoolAreSent) {
  LoopOptions options;
  options.pool_options.bytes_max = 4 << 20;
  RemakeLoop(std::move(options));
  StreamPair pair = HalfSealed(RecordMode::kNative);
  BufferChain all;
  // No larger than what the wire takes before its reader, who shares the pool, needs a block.
  for (size_t size : {size_t{16} << 10, size_t{256}}) {
    while (Buffer block = loop().pool().TryAllocate(size)) {
      const size_t at = all.size();
      block.Extend(size);
      FillPattern({block.mutable_data(), size}, 3, at);
      all.Append(std::move(block));
    }
  }
  const size_t written = all.size();
  ASSERT_GT(written, size_t{3} << 20);
  Fate write, shutdown;
  pair.server->Write(std::move(all), write.OnDone());
  pair.server->ShutdownWrite(shutdown.OnDone());
  PatternReader pattern(Sealed(std::move(pair.client), {}), 3);
  pattern.Start();
  ASSERT_TRUE(Drive([&] { return write.ended() && shutdown.ended() && pattern.ended(); }));
  EXPECT_TRUE(write.status().ok()) << write.status();
  EXPECT_TRUE(shutdown.status().ok()) << shutdown.status();
  EXPECT_TRUE(pattern.intact());
  EXPECT_EQ(pattern.received(), written);
  EXPECT_TRUE(IsEof(pattern.end())) << pattern.end();
}

// A key that has no more to seal is wiped, and its cipher context given up, at once.
TEST_P(SealedStreamTest, TheSendingKeyGoesWithTheSendingSide) {
  for (bool in_order : {true, false}) {
    StreamPair pair = HalfSealed(RecordMode::kGrpc);
    ASSERT_TRUE(Write(*pair.server, "seals").ok());
    EXPECT_EQ(LiveContexts(), 1u);
    if (in_order) {
      ASSERT_TRUE(Shutdown(*pair.server).ok());
    } else {
      pair.server->Abort();
      Settle();
    }
    EXPECT_EQ(LiveContexts(), 0u);
  }
}

// Back-pressure: nobody asks for what follows.
TEST_P(SealedStreamTest, APartOfTheNextRecordKeepsNoBlockWhenNobodyReads) {
  const std::string wire =
      Records(RecordMode::kGrpc, {PatternBytes(4, 0, 30'000), PatternBytes(4, 0, 1000)}, false);
  ScriptedEnd end = ReadingFromAScript(RecordMode::kGrpc);
  ASSERT_TRUE(end.below->reading());
  end.below->Give(std::string_view(wire).substr(0, 30'000 + kOverhead + 10));
  ASSERT_TRUE(Drive([&] { return end.read.ended(); }));
  EXPECT_LE(end.stream->stats().sealed_pinned_bytes, 256u);
}

TEST_P(SealedStreamTest, AnEndThatIsOwedIsSentAlthoughThePoolIsDry) {
  LoopOptions options;
  options.pool_options.bytes_max = 4 << 20;
  RemakeLoop(std::move(options));
  StreamPair pair = HalfSealed(RecordMode::kNative);
  std::vector<Buffer> all;
  for (size_t size : {size_t{256} << 10, size_t{4} << 10, size_t{256}}) {
    while (Buffer block = loop().pool().TryAllocate(size)) all.push_back(std::move(block));
  }
  pair.server.reset();
  EXPECT_TRUE(Drive([&] { return loop().Snapshot().open == 1; })) << "the server's has closed";
  all.clear();
  const Received received = ReadToEnd(*pair.client);
  EXPECT_EQ(received.data.size(), kOverhead);
  EXPECT_TRUE(IsEof(received.end)) << received.end;
}

// The stream below is aborted for it, which is no reason that the reader could use.
TEST_P(SealedStreamTest, AReaderHearsOfTheRefusedWriteThatEndedTheStream) {
  ScriptedEnd end = ReadingFromAScript(RecordMode::kNative);
  ASSERT_TRUE(end.below->reading());
  const std::string much(end.stream->send_bounds().max + 1, 'm');
  end.stream->Write(Buffer::FromExternal(much.data(), much.size(), [] {}));
  // Its turn may come first.
  end.below->End(absl::CancelledError("aborted"));
  ASSERT_TRUE(Drive([&] { return end.read.ended(); }));
  EXPECT_TRUE(absl::IsResourceExhausted(end.read.status())) << end.read.status();
}

TEST_P(SealedStreamTest, PinnedReadsHoldABufferForComparison) {
  StreamOptions pinned;
  pinned.pinned_reads = true;
  for (const RecordMode mode : {RecordMode::kNative, RecordMode::kGrpc}) {
    StreamPair pair = HalfSealed(mode, {}, pinned);
    EXPECT_GE(pair.server->stats().sealed_pinned_bytes, 33'280u);
    EXPECT_EQ(loop().Snapshot().sealed_pinned_bytes, pair.server->stats().sealed_pinned_bytes);
    pair.client->Write(Chain(Records(mode, {"it works ", "as before"}, false)));
    EXPECT_EQ(ReadUpTo(*pair.server, 18).data, "it works as before");
    EXPECT_GE(pair.server->stats().sealed_pinned_bytes, 33'280u);
    pair.client.reset();
    EXPECT_FALSE(Read(*pair.server).ok());
    pair.server.reset();
    EXPECT_EQ(loop().Snapshot().sealed_pinned_bytes, 0u);
  }
}

TEST(SealedStreamSize, StaysSmall) {
  // Two of these, with a connection each, hold a sealed pair; an idle one shall cost 2 KiB at most.
  EXPECT_LE(sizeof(SealedStream), 1024u);
}

INSTANTIATE_TEST_SUITE_P(Environments, SealedStreamTest, ::testing::ValuesIn(EnvironmentsToSeal()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
