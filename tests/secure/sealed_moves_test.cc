// Sealed streams that move in the middle of a record, whichever byte of its header, body or tag is
// the last to have come; with a record half sent; and where the key changes (I5, I8). Threads are
// in sealed_threads_test.cc.
#include <penstock/move.h>
#include <penstock/seal.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "secure/openssl_aead.h"
#include "secure/record_format.h"
#include "secure/record_sealer.h"
#include "testing/handshake_pair.h"
#include "testing/harness.h"
#include "testing/pattern.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

class SealedMovesTest : public Harness {
 protected:
  void SetUp() override {
    Harness::SetUp();
    if (IsSkipped()) return;
    if (environment().has_kernel()) {
      if (const std::string why = MissingEngine(); !why.empty()) GTEST_SKIP() << why;
    }
    other_ = environment().NewLoop({}).value();
    AlsoDrive(other_.get());
  }
  void TearDown() override {
    if (other_ != nullptr) {
      EXPECT_TRUE(Drive([&] { return other_->Snapshot().open == 0; }));
      EXPECT_EQ(other_->Snapshot().sealed_pinned_bytes, 0u);
      EXPECT_EQ(other_->Snapshot().stranded, 0u);
      StopDriving(other_.get());
    }
    other_ = nullptr;
    Harness::TearDown();
  }

  StreamPtr SealEnd(StreamPtr plain, RecordMode mode, bool server) {
    StreamPtr stream;
    Seal(std::move(plain), InstantHandshaker({.mode = mode, .server = server}), {},
         [&](absl::StatusOr<StreamPtr> sealed) {
           ASSERT_TRUE(sealed.ok()) << sealed.status();
           stream = *std::move(sealed);
         });
    EXPECT_TRUE(Drive([&] { return stream != nullptr; }));
    return stream;
  }
  // What a client seals, a record for each payload, and the end when there is one to be had.
  std::string RecordsOf(RecordMode mode, const std::vector<std::string>& payloads) {
    const HandshakeResult keys = InstantKeys({.mode = mode});
    RecordSealer sealer(
        RecordCipher(std::make_shared<CipherContexts>(NewOpensslCrypto().value()),
                     KeySchedule::Create(keys.protocol, RecordSender::kClient, keys.send_key.view())
                         .value()),
        loop().pool(), mode, kRecordFrameMax);
    BufferChain wire;
    for (const std::string& payload : payloads) {
      BufferChain plain = Chain(payload);
      EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), RecordSealer::Result::kSealed);
    }
    if (mode == RecordMode::kNative) {
      EXPECT_EQ(sealer.SealEnd(wire), RecordSealer::Result::kSealed);
    }
    return wire.ToString();
  }
  void SwitchOver(Stream& stream) {
    const EngineKind own = stream.loop().engine();
    const EngineKind other = own == EngineKind::kUring ? EngineKind::kEpoll : EngineKind::kUring;
    const EngineKind to = stream.stats().engine == own ? other : own;
    Fate moved;
    SwitchEngine(stream, to, moved.OnDone());
    ASSERT_TRUE(Drive([&] { return moved.ended(); }));
    ASSERT_TRUE(moved.status().ok()) << moved.status();
    EXPECT_EQ(stream.stats().engine, to);
  }
  void MigrateOver(Stream& stream) {
    Loop& to = &stream.loop() == &loop() ? *other_ : loop();
    Fate moved;
    Migrate(stream, to.handle(), moved.OnDone());
    ASSERT_TRUE(Drive([&] { return moved.ended(); }));
    ASSERT_TRUE(moved.status().ok()) << moved.status();
    EXPECT_EQ(&stream.loop(), &to);
  }
  Loop& other() { return *other_; }
  uint64_t SealedPinned() {
    return loop().Snapshot().sealed_pinned_bytes + other_->Snapshot().sealed_pinned_bytes;
  }

 private:
  std::unique_ptr<Loop> other_;
};

TEST_P(SealedMovesTest, ARecordMovesWhicheverByteOfItCameLast) {
  const std::vector<std::string> payloads = {"the first of two", "and the second"};
  for (RecordMode mode : {RecordMode::kNative, RecordMode::kGrpc}) {
    const std::string wire = RecordsOf(mode, payloads);
    uint64_t held_most = 0;
    for (size_t cut = 0; cut <= wire.size(); cut += IsSlow() ? 3 : 1) {
      SCOPED_TRACE(cut);
      StreamPair pair = Pair();
      pair.server = SealEnd(std::move(pair.server), mode, true);
      std::string received;
      absl::Status end;
      const std::function<void()> read = [&] {
        pair.server->ReadReady([&](absl::StatusOr<Buffer> data) {
          end = data.status();
          if (!data.ok()) return;
          received += data->view();
          read();
        });
      };
      read();
      const auto send = [&](size_t from, size_t to) {
        if (from < to) pair.client->Write(Chain(wire.substr(from, to - from)));
        Settle();
      };
      send(0, cut);
      held_most = std::max(held_most, SealedPinned());
      SwitchOver(*pair.server);
      const size_t next = std::min(cut + 1, wire.size());
      send(cut, next);
      MigrateOver(*pair.server);
      held_most = std::max(held_most, SealedPinned());
      send(next, wire.size());
      pair.client->ShutdownWrite();
      ASSERT_TRUE(Drive([&] { return !end.ok(); }));
      EXPECT_EQ(received, payloads[0] + payloads[1]);
      EXPECT_TRUE(mode == RecordMode::kNative ? IsEof(end) : IsUnauthenticatedEof(end)) << end;
    }
    EXPECT_GT(held_most, 0u) << "no part of a record was ever held";
  }
}

TEST_P(SealedMovesTest, AHalfSentRecordGoesOnWhereItWas) {
  constexpr uint64_t kTotal = 1 << 20;
  for (RecordMode mode : {RecordMode::kNative, RecordMode::kGrpc}) {
    StreamPair pair = Pair(SmallBuffers(), SmallBuffers());
    pair.server = SealEnd(std::move(pair.server), mode, true);
    pair.client = SealEnd(std::move(pair.client), mode, false);
    PatternWriter writer(*pair.server, 1, kTotal);
    writer.Start();
    std::string received;
    uint64_t held_most = 0;
    for (int i = 0; received.size() < kTotal; ++i) {
      Settle();
      held_most = std::max(held_most, SealedPinned());
      i % 2 == 0 ? SwitchOver(*pair.server) : MigrateOver(*pair.server);
      if (HasFatalFailure()) return;
      received += ReadUpTo(*pair.client, std::min<size_t>(100'000, kTotal - received.size())).data;
    }
    EXPECT_EQ(received.size(), kTotal);
    EXPECT_FALSE(FirstMismatch(received, 1, 0).has_value());
    EXPECT_GT(held_most, 0u) << "nothing sealed was ever waiting";
    ASSERT_TRUE(Drive([&] { return writer.ended(); }));
  }
}

// The key changes with every 65,536th record.
TEST_P(SealedMovesTest, TheKeyChangesAroundAMove) {
  constexpr size_t kBefore = 65'530, kSingly = 12;
  const RecordMode mode = RecordMode::kNative;
  const std::string wire = RecordsOf(mode, std::vector<std::string>(kBefore + kSingly, "x"));
  const size_t size = kRecordOverhead + 1;
  StreamPair pair = Pair();
  pair.server = SealEnd(std::move(pair.server), mode, true);
  pair.client->Write(Chain(wire.substr(0, kBefore * size)));
  EXPECT_EQ(ReadUpTo(*pair.server, kBefore).data, std::string(kBefore, 'x'));
  for (size_t i = 0; i < kSingly; ++i) {
    // Half of it before the move, and half after.
    const size_t at = (kBefore + i) * size;
    pair.client->Write(Chain(wire.substr(at, size / 2)));
    Settle();
    i % 2 == 0 ? SwitchOver(*pair.server) : MigrateOver(*pair.server);
    pair.client->Write(Chain(wire.substr(at + size / 2, size - size / 2)));
    EXPECT_EQ(ReadUpTo(*pair.server, 1).data, "x") << i;
  }
  pair.client->Write(Chain(wire.substr((kBefore + kSingly) * size)));
  EXPECT_TRUE(IsEof(ReadToEnd(*pair.server).end));
}

// It belongs to the loop's SealLoop until it ends; afterwards the stream goes like any other.
TEST_P(SealedMovesTest, AHandshakeKeepsItsStreamOnItsLoop) {
  StreamOptions migratable;
  migratable.migratable = true;
  StreamPair pair = Pair({}, migratable);
  Stream* const plain = pair.server.get();
  StreamPtr sealed_client, sealed_server;
  const auto into = [](StreamPtr& place) {
    return [&place](absl::StatusOr<StreamPtr> sealed) {
      ASSERT_TRUE(sealed.ok()) << sealed.status();
      place = *std::move(sealed);
    };
  };
  Seal(std::move(pair.server), ServerOf(ServerCredentials()), {}, into(sealed_server));
  Settle();  // it waits for the client's first bytes
  Fate moved;
  Migrate(*plain, other().handle(), moved.OnDone());
  ASSERT_TRUE(Drive([&] { return moved.ended(); }));
  EXPECT_TRUE(absl::IsFailedPrecondition(moved.status())) << moved.status();
  EXPECT_NE(moved.status().message().find("a handshake is running"), std::string::npos)
      << moved.status();
  MoveCount count;
  bool swept = false;
  const auto sweep = [&] {
    swept = false;
    MigrateAll(loop(), other().handle(), [&](MoveCount result) {
      count = result;
      swept = true;
    });
    ASSERT_TRUE(Drive([&] { return swept; }));
  };
  sweep();
  EXPECT_EQ(count.moved, 0u);
  EXPECT_EQ(count.failed, 1u);
  const LoopSnapshot now = loop().Snapshot();
  const auto& refused = now.moves_refused_by[static_cast<size_t>(MoveDirection::kOut)];
  EXPECT_EQ(refused[static_cast<size_t>(MoveRefusal::kBusy)], 2u);
  EXPECT_EQ(now.moves_out, 0u);

  Seal(std::move(pair.client), ClientOf(ClientCredentials()), {}, into(sealed_client));
  ASSERT_TRUE(Drive([&] { return sealed_client != nullptr && sealed_server != nullptr; }));
  sweep();
  EXPECT_EQ(count.moved, 1u);
  EXPECT_EQ(&sealed_server->loop(), &other());
  Exchange(*sealed_client, *sealed_server, "sealed");
}

INSTANTIATE_TEST_SUITE_P(Environments, SealedMovesTest, ::testing::ValuesIn(EnvironmentsToSeal()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
