// Peers that hold the keys and misbehave: they drip records, flood, never read or reset inside a
// record, and cost their own connection and no other. Peers without the keys: secure/.
#include <penstock/seal.h>

#include <poll.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "secure/openssl_aead.h"
#include "secure/record_sealer.h"
#include "testing/harness.h"
#include "testing/patient_poll.h"
#include "testing/pattern.h"
#include "testing/plain_socket.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

// Each may take a millisecond: more than any machine needs to pass a packet on.
constexpr int kIdleTurnsMax = 60'000;

constexpr RecordMode kModes[] = {RecordMode::kNative, RecordMode::kGrpc};

// A plain socket, and the client's half of the codec.
class SealingPeer {
 public:
  SealingPeer(PlainSocket socket, BufferPool& pool, RecordMode mode)
      : pool_(pool),
        socket_(std::move(socket)),
        sealer_(RecordCipher(std::make_shared<CipherContexts>(std::move(*NewOpensslCrypto())),
                             *KeySchedule::Create(InstantOptions().protocol, RecordSender::kClient,
                                                  InstantKeys({.mode = mode}).send_key.view())),
                pool, mode, kRecordFrameGrpc) {}

  PlainSocket& socket() { return socket_; }
  std::string Seal(std::string_view bytes) {
    BufferChain plain(*pool_.Copy(bytes)), wire;
    EXPECT_EQ(sealer_.Seal(plain, wire, SIZE_MAX), RecordSealer::Result::kSealed);
    return wire.ToString();
  }
  // Sends what the kernel takes of the pattern's next records.
  void Flood(uint64_t seed) {
    if (unsent_.empty()) {
      unsent_ = Seal(PatternBytes(seed, sealed_, 64 * 1024));
      sealed_ += 64 * 1024;
    }
    const int64_t taken = socket_.Send(unsent_);
    if (taken > 0) unsent_.erase(0, static_cast<size_t>(taken));
  }
  // Bytes of the pattern, when the kernel has taken all that was sealed.
  uint64_t sealed() const { return sealed_; }
  bool all_sent() const { return unsent_.empty(); }

 private:
  BufferPool& pool_;
  PlainSocket socket_;
  RecordSealer sealer_;
  std::string unsent_;
  uint64_t sealed_ = 0;
};

class SealedHostileTest : public Harness {
 protected:
  void SetUp() override {
    Harness::SetUp();
    if (IsSkipped()) return;
    listener_ = Listen();
  }
  void TearDown() override {
    listener_.reset();
    Harness::TearDown();
  }

  std::unique_ptr<SealingPeer> Peer(RecordMode mode) {
    return std::make_unique<SealingPeer>(PlainSocket::Connect(listener_->address()), loop().pool(),
                                         mode);
  }
  StreamPtr Accept(RecordMode mode) {
    EXPECT_TRUE(Drive([this] { return !accepted().empty(); }));
    StreamPtr stream;
    Seal(std::move(accepted().front()), InstantHandshaker({.mode = mode, .server = true}), {},
         [&](absl::StatusOr<StreamPtr> sealed) { stream = *std::move(sealed); });
    accepted().pop_front();
    EXPECT_TRUE(Drive([&] { return stream != nullptr; }));
    return stream;
  }
  // A good peer that is served while others misbehave.
  void ExpectSealedService(RecordMode mode) {
    const auto peer = Peer(mode);
    StreamPtr stream = Accept(mode);
    const std::string ping = peer->Seal("ping");
    ASSERT_EQ(peer->socket().Send(ping), static_cast<int64_t>(ping.size()));
    EXPECT_EQ(ReadUpTo(*stream, 4).data, "ping");
    ASSERT_TRUE(Write(*stream, "pong").ok());
    int end = 0;
    EXPECT_EQ(peer->socket().ReceiveAll(&end).size(), 4 + kRecordOverhead);
  }

 private:
  std::unique_ptr<Listener> listener_;
};

TEST_P(SealedHostileTest, OneThatDripsIsReadRecordByRecordAndPinsAlmostNothing) {
  for (const RecordMode mode : kModes) {
    const auto peer = Peer(mode);
    StreamPtr stream = Accept(mode);
    for (const std::string& text : {std::string("x"), PatternBytes(1, 0, 100)}) {
      const std::string record = peer->Seal(text);
      Fate read;
      stream->ReadReady(read.OnRead());
      for (size_t i = 0; i < record.size(); ++i) {
        EXPECT_FALSE(read.ended()) << "after " << i << " bytes of " << record.size();
        ASSERT_EQ(peer->socket().Send(record.substr(i, 1)), 1);
        Settle();
        EXPECT_LE(stream->stats().sealed_pinned_bytes, 256u);
      }
      ASSERT_TRUE(Drive([&] { return read.ended(); }));
      EXPECT_EQ(read.data(), text);
    }
    // A part of one meets the deadline of its read, and the rest of it is good afterwards.
    const std::string record = peer->Seal("in two parts");
    ASSERT_EQ(peer->socket().Send(record.substr(0, 20)), 20);
    stream->SetReadDeadline(absl::Milliseconds(20));
    EXPECT_TRUE(IsDeadlineExceeded(Read(*stream).status()));
    stream->SetReadDeadline(absl::InfiniteDuration());
    peer->socket().Send(record.substr(20));
    EXPECT_EQ(ReadUpTo(*stream, 12).data, "in two parts");
  }
}

TEST_P(SealedHostileTest, OneThatFloodsDoesNotStarveOthers) {
  for (const RecordMode mode : kModes) {
    const auto flood = Peer(mode);
    PatternReader reader(Accept(mode), 2);
    reader.Start();
    const auto peer = Peer(mode);
    StreamPtr stream = Accept(mode);
    for (int round = 0; round < 20; ++round) {
      Fate read;
      stream->ReadReady(read.OnRead());
      const std::string ping = peer->Seal("ping");
      ASSERT_EQ(peer->socket().Send(ping), static_cast<int64_t>(ping.size()));
      // With the flood topped up before every turn, the other is still served within a few; those
      // before the kernel has passed anything on are none.
      int turns = 0;
      for (int idle = 0; turns < 100 && idle < kIdleTurnsMax && !read.ended();) {
        flood->Flood(2);
        if (loop().Poll()) {
          ++turns;
        } else {
          ++idle;
          PatientPoll(loop().fd(), POLLIN, 1);
        }
      }
      EXPECT_LT(turns, 100);
      ASSERT_TRUE(Drive([&] { return read.ended(); }));
    }
    ASSERT_TRUE(Drive([&] {
      if (!flood->all_sent()) flood->Flood(2);
      return flood->all_sent() && reader.received() == flood->sealed();
    }));
    EXPECT_TRUE(reader.intact());
    flood->socket().Close();
    ASSERT_TRUE(Drive([&] { return reader.ended(); }));
  }
}

TEST_P(SealedHostileTest, OneThatFloodsAStreamNobodyReadsIsHeldBackByTheKernel) {
  for (const RecordMode mode : kModes) {
    const auto flood = Peer(mode);
    StreamPtr stream = Accept(mode);
    for (int held_back = 0; held_back < 100 && flood->sealed() < (64u << 20);) {
      flood->Flood(3);
      held_back = flood->all_sent() ? 0 : held_back + 1;
      loop().Poll();
    }
    Settle();
    EXPECT_LT(flood->sealed(), 64u << 20);
    EXPECT_LE(stream->stats().pinned_bytes, 256u * 1024);
    EXPECT_EQ(stream->stats().sealed_pinned_bytes, 0u);
    ExpectSealedService(mode);
  }
}

TEST_P(SealedHostileTest, OneThatNeverReadsMeetsTheWriteDeadline) {
  for (const RecordMode mode : kModes) {
    const auto peer = Peer(mode);
    StreamPtr stream = Accept(mode);
    stream->SetWriteDeadline(absl::Milliseconds(20));
    EXPECT_TRUE(IsDeadlineExceeded(Write(*stream, PatternBytes(4, 0, 32 << 20))));
    ExpectSealedService(mode);
  }
}

TEST_P(SealedHostileTest, ThoseThatResetInsideARecordCostOnlyThemselves) {
  for (const RecordMode mode : kModes) {
    for (int i = 0; i < 20; ++i) {
      const auto peer = Peer(mode);
      StreamPtr stream = Accept(mode);
      Fate read;
      stream->ReadReady(read.OnRead());
      const std::string record = peer->Seal(PatternBytes(5, 0, 1000));
      peer->socket().Send(record.substr(0, 1 + i * record.size() / 20));
      if (i % 2 == 0) Settle();
      peer->socket().Reset();
      ASSERT_TRUE(Drive([&] { return read.ended(); }));
      EXPECT_TRUE(IsReset(read.status())) << read.status();
      EXPECT_EQ(stream->stats().sealed_pinned_bytes, 0u);
    }
    ExpectSealedService(mode);
  }
}

INSTANTIATE_TEST_SUITE_P(Engines, SealedHostileTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
