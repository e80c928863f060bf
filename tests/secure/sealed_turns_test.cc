// What a sealed stream costs its surroundings: system calls for much that is written, and turns of
// the loop for much that has come.
#include <penstock/seal.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/loop_core.h"
#include "secure/openssl_aead.h"
#include "secure/record_format.h"
#include "secure/record_sealer.h"
#include "testing/fate.h"
#include "testing/pattern.h"
#include "testing/plain_socket.h"
#include "testing/scripted_stream.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

// The real kernel; keeps how much each send was given.
class SendLog : public Sys {
 public:
  struct Call {
    size_t parts;
    size_t bytes;
  };
  int64_t Send(int fd, const void* data, size_t size) override {
    calls_.push_back({1, size});
    return Sys::Send(fd, data, size);
  }
  int64_t SendVector(int fd, const iovec* parts, size_t count) override {
    size_t bytes = 0;
    for (size_t i = 0; i < count; ++i) bytes += parts[i].iov_len;
    calls_.push_back({count, bytes});
    return Sys::SendVector(fd, parts, count);
  }
  std::vector<Call> Take() { return std::exchange(calls_, {}); }

 private:
  std::vector<Call> calls_;
};

class SealedTurnsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    LoopOptions options;
    options.engine = EngineKind::kEpoll;
    LoopCore::Seams seams;
    seams.sys = &sends_;
    absl::StatusOr<std::unique_ptr<Loop>> loop =
        LoopCore::CreateLoop(std::move(options), std::move(seams));
    ASSERT_TRUE(loop.ok()) << loop.status();
    loop_ = *std::move(loop);
  }

  StreamPtr Sealed(StreamPtr below, const InstantOptions& options) {
    StreamPtr stream;
    bool ended = false;
    Seal(std::move(below), InstantHandshaker(options), {}, [&](absl::StatusOr<StreamPtr> sealed) {
      ended = true;
      if (sealed.ok()) stream = *std::move(sealed);
    });
    Loop* const loops[] = {loop_.get()};
    EXPECT_TRUE(DriveLoops(loops, [&] { return ended; }));
    EXPECT_NE(stream, nullptr);
    return stream;
  }

  // `count` records of `payload`, as the client of an instant handshake in gRPC mode seals them.
  std::string Records(size_t count, std::string_view payload) {
    const HandshakeResult keys = InstantKeys({.mode = RecordMode::kGrpc});
    RecordCipher cipher(
        std::make_shared<CipherContexts>(std::move(*NewOpensslCrypto())),
        *KeySchedule::Create(keys.protocol, RecordSender::kClient, keys.send_key.view()));
    std::string wire;
    for (size_t i = 0; i < count; ++i) {
      std::string record(kRecordOverhead + payload.size(), '\0');
      char* const body = record.data() + kRecordHeaderSize;
      WriteRecordHeader(record.data(), payload.size());
      Aead* const aead = cipher.StartSeal();
      EXPECT_TRUE(aead != nullptr && aead->Update(payload.data(), body, payload.size()) &&
                  aead->FinishSeal(body + payload.size()));
      wire += record;
    }
    return wire;
  }

  SendLog sends_;
  std::unique_ptr<Loop> loop_;
};

TEST_F(SealedTurnsTest, ManyRecordsLeaveInOneVectoredSend) {
  StreamOptions roomy;
  roomy.send_buffer = roomy.receive_buffer = 4 << 20;
  StreamPtr accepted;
  ListenOptions listening;
  listening.stream = roomy;
  auto listener = Listener::Listen(*loop_, *SocketAddress::Parse("127.0.0.1:0"), listening,
                                   [&](StreamPtr stream) { accepted = std::move(stream); });
  ASSERT_TRUE(listener.ok()) << listener.status();
  PlainSocket peer = PlainSocket::Connect((*listener)->address());
  Loop* const loops[] = {loop_.get()};
  ASSERT_TRUE(DriveLoops(loops, [&] { return accepted != nullptr; }));
  // The smallest records there are, so that there are many.
  const StreamPtr stream =
      Sealed(std::move(accepted),
             {.mode = RecordMode::kGrpc, .server = true, .send_frame_max = kRecordFrameMin});
  sends_.Take();

  constexpr size_t kPayload = kRecordFrameMin - kRecordOverhead;
  constexpr size_t kBatchMax = 256 * 1024 / kRecordFrameMin;
  std::string drained(1 << 20, '\0');
  for (const size_t records : {size_t{100}, kBatchMax, kBatchMax + 50}) {
    Fate written;
    // In two parts, which are sealed together.
    const std::string bytes = PatternBytes(1, 0, records * kPayload);
    stream->Write(*loop_->pool().Copy(bytes.substr(0, 33'333)));
    stream->Write(*loop_->pool().Copy(bytes.substr(33'333)), written.OnDone());
    ASSERT_TRUE(DriveLoops(loops, [&] {
      peer.Receive(drained.data(), drained.size());
      return written.ended();
    }));
    EXPECT_TRUE(written.status().ok()) << written.status();
    const std::vector<SendLog::Call> calls = sends_.Take();
    // What the kernel does not take at once is sent again; the first send shows all of a batch.
    const size_t batch = std::min(records, kBatchMax);
    ASSERT_FALSE(calls.empty());
    EXPECT_EQ(calls[0].bytes, batch * kRecordFrameMin);
    // As many records to a block as fit one of 64 KiB.
    EXPECT_EQ(calls[0].parts, (batch + 63) / 64);
    if (records == 100) {
      EXPECT_EQ(calls.size(), 1u);
    }
  }
}

// (I9) A stream that has much to deliver leaves the others their turns.
TEST_F(SealedTurnsTest, AFloodOfRecordsIsDeliveredInBoundedTurns) {
  struct Reader {
    StreamPtr stream;
    ScriptedStream* below = nullptr;
    size_t bytes = 0;
    std::function<void()> next;
  };
  // More than 32 deliveries: each opens 64 records at most.
  constexpr size_t kRecords = 100 * 64;
  const std::string wire = Records(kRecords, "x");
  std::string order;
  Reader readers[2];
  for (Reader& reader : readers) {
    auto script = std::make_unique<ScriptedStream>(*loop_);
    reader.below = script.get();
    reader.stream = Sealed(std::move(script), {.mode = RecordMode::kGrpc, .server = true});
    reader.next = [&reader, &order, name = &reader == readers ? 'a' : 'b'] {
      reader.stream->ReadReady([&reader, &order, name](absl::StatusOr<Buffer> bytes) {
        if (!bytes.ok()) return;
        reader.bytes += bytes->size();
        order += name;
        reader.next();
      });
    };
    reader.next();
  }
  Loop* const loops[] = {loop_.get()};
  ASSERT_TRUE(DriveLoops(
      loops, [&] { return readers[0].below->reading() && readers[1].below->reading(); }));
  for (Reader& reader : readers) reader.below->Give(wire);
  size_t before = order.size();
  EXPECT_LE(before, 2 * 32u);
  while (readers[0].bytes < kRecords || readers[1].bytes < kRecords) {
    loop_->Poll();
    ASSERT_GT(order.size(), before) << "no progress";
    ASSERT_LE(order.size(), before + 2 * 32) << "too much for one turn";
    before = order.size();
  }
  // Nobody twice before the other once.
  EXPECT_EQ(order.find(std::string(33, 'a')), std::string::npos);
  EXPECT_EQ(order.find(std::string(33, 'b')), std::string::npos);
  EXPECT_EQ(std::count(order.begin(), order.end(), 'a'), 100);
  EXPECT_EQ(std::count(order.begin(), order.end(), 'b'), 100);
}

// Empty records, which gRPC mode skips, bring nothing but work, which is bounded all the same.
TEST_F(SealedTurnsTest, AFloodOfEmptyRecordsIsSkippedInBoundedTurns) {
  constexpr size_t kRecords = 10'000;
  auto script = std::make_unique<ScriptedStream>(*loop_);
  ScriptedStream& below = *script;
  const StreamPtr stream = Sealed(std::move(script), {.mode = RecordMode::kGrpc, .server = true});
  Fate read;
  stream->ReadReady(read.OnRead());
  Loop* const loops[] = {loop_.get()};
  ASSERT_TRUE(DriveLoops(loops, [&] { return below.reading(); }));
  below.Give(Records(kRecords, ""));
  // 32 times 64 of them a turn, the first of which was taken inside Give.
  size_t turns = 1;
  for (; !below.reading() && turns < 100; ++turns) loop_->Poll();
  EXPECT_TRUE(below.reading());
  EXPECT_GE(turns, kRecords / (32 * 64));
  EXPECT_FALSE(read.ended());
  EXPECT_EQ(stream->stats().sealed_pinned_bytes, 0u);
}

}  // namespace
}  // namespace penstock::internal
