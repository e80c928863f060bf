// What somebody between the two ends can do to records, and what a failing library can: the opener
// delivers nothing that was not sealed, in order, and stops for good.
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "absl/status/status.h"
#include "secure/openssl_aead.h"
#include "testing/pattern.h"
#include "testing/record_kit.h"
#include "testing/record_vectors.h"

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::BufferTag;
using penstock::RecordMode;
using penstock::RecordProtocol;
using penstock::internal::Aead;
using penstock::internal::AeadKey;
using penstock::internal::AeadNonce;
using penstock::internal::CipherContexts;
using penstock::internal::KeySchedule;
using penstock::internal::NewOpensslCrypto;
using penstock::internal::PatternBytes;
using penstock::internal::RecordCipher;
using penstock::internal::RecordCrypto;
using penstock::internal::RecordKit;
using penstock::internal::RecordOpener;
using penstock::internal::RecordSealer;
using penstock::internal::RecordSender;
using penstock::internal::RecordVectors;

using Result = RecordOpener::Result;

// Feeds `wire` whole or cut into pieces, rests between them, and then a good record with the
// counter that would be right after `delivered` records: only `wanted` may come out, and an error.
void ExpectRefused(RecordKit& kit, std::string_view wire, std::string_view wanted,
                   uint64_t delivered, absl::StatusCode code) {
  const std::string good = kit.SealOne({.counter = delivered}, "a good one");
  for (size_t piece : {wire.size(), size_t{11}, size_t{1}}) {
    RecordOpener opener = kit.Opener({});
    std::string got;
    for (size_t at = 0; at < wire.size(); at += piece) {
      got += kit.Open(opener, wire.substr(at, piece)).bytes;
      opener.Rest();
    }
    EXPECT_EQ(got, wanted);
    EXPECT_EQ(opener.status().code(), code) << opener.status();
    EXPECT_EQ(opener.pinned_bytes(), 0u);
    const absl::Status first = opener.status();
    EXPECT_EQ(kit.Open(opener, good).bytes, "");
    EXPECT_EQ(opener.status(), first);
    EXPECT_EQ(opener.OnWireEnd(), first);
  }
}

TEST(HostileRecords, EveryBitOfARecord) {
  RecordKit kit;
  const std::string wire = kit.SealOne({}, "sixteen bytes...");
  ASSERT_EQ(wire.size(), 40u);
  for (size_t bit = 0; bit < wire.size() * 8; ++bit) {
    SCOPED_TRACE(bit);
    std::string altered = wire;
    altered[bit / 8] = static_cast<char>(altered[bit / 8] ^ (1 << (bit % 8)));
    for (size_t piece : {wire.size(), size_t{7}}) {
      RecordOpener opener = kit.Opener({});
      std::string got;
      for (size_t at = 0; at < altered.size(); at += piece) {
        got += kit.Open(opener, std::string_view(altered).substr(at, piece)).bytes;
      }
      // A length that grew within bounds waits for the bytes it announces, and then fails.
      if (opener.status().ok()) {
        EXPECT_LT(bit, 32u);
        EXPECT_TRUE(absl::IsDataLoss(RecordOpener(std::move(opener)).OnWireEnd()));
        RecordOpener whole = kit.Opener({});
        got += kit.Open(whole, altered + std::string(1 << 20, 'x')).bytes;
        EXPECT_TRUE(absl::IsUnauthenticated(whole.status())) << whole.status();
      } else {
        EXPECT_EQ(absl::IsUnauthenticated(opener.status()),
                  bit >= 64 || (bit < 32 && absl::IsUnauthenticated(opener.status())))
            << opener.status();
        EXPECT_EQ(kit.Open(opener, wire).last, Result::kError);
      }
      EXPECT_EQ(got, "");
    }
  }
}

TEST(HostileRecords, ReplayedDroppedReorderedForged) {
  RecordKit kit;
  std::vector<std::string> records;
  for (uint64_t i = 0; i < 3; ++i) {
    records.push_back(kit.SealOne({.counter = i}, "record " + std::to_string(i)));
  }
  const auto code = absl::StatusCode::kUnauthenticated;
  ExpectRefused(kit, records[0] + records[0], "record 0", 1, code);
  ExpectRefused(kit, records[0] + records[2], "record 0", 1, code);
  ExpectRefused(kit, records[1] + records[0], "", 0, code);
  ExpectRefused(kit, records[1], "", 0, code);
  ExpectRefused(kit, records[0] + records[1] + records[1] + records[2], "record 0record 1", 2,
                code);
  std::string forged = records[0];
  forged.back() = static_cast<char>(forged.back() ^ 1);
  ExpectRefused(kit, forged + records[0], "", 0, code);
  ExpectRefused(kit, forged + records[1] + records[2], "", 1, code);
}

TEST(HostileRecords, OnesOwnComeBack) {
  RecordKit kit;
  for (RecordProtocol protocol : {RecordProtocol::kGcmAes128, RecordProtocol::kGcmAes128Rekey}) {
    for (RecordSender me : {RecordSender::kClient, RecordSender::kServer}) {
      const RecordSender peer =
          me == RecordSender::kClient ? RecordSender::kServer : RecordSender::kClient;
      const std::string mine = kit.SealOne({.protocol = protocol, .sender = me}, "mine");
      RecordOpener opener = kit.Opener({.protocol = protocol, .sender = peer});
      EXPECT_EQ(kit.Open(opener, mine).bytes, "");
      EXPECT_TRUE(absl::IsUnauthenticated(opener.status())) << opener.status();
    }
  }
}

TEST(HostileRecords, AnotherKeyOrProtocol) {
  RecordKit kit;
  RecordOpener opener = kit.Opener({.protocol = RecordProtocol::kGcmAes128});
  EXPECT_EQ(kit.Open(opener, kit.SealOne({}, "rekeying")).bytes, "");
  EXPECT_TRUE(absl::IsUnauthenticated(opener.status())) << opener.status();
}

// At the last byte that says it is too large, and for nothing.
TEST(HostileRecords, AnnouncedLengthsCostNothing) {
  RecordKit kit;
  for (uint32_t length : {0u, 3u, 4u, 19u, (1u << 20) + 1, 0xffffffffu}) {
    RecordOpener opener = kit.Opener({});
    for (int i = 0; i < 4; ++i) {
      ASSERT_TRUE(opener.status().ok());
      const char byte = static_cast<char>(length >> (8 * i));
      const RecordKit::Opened opened = kit.Open(opener, std::string_view(&byte, 1));
      EXPECT_EQ(opened.last, i == 3 ? Result::kError : Result::kNeedMore);
      EXPECT_EQ(kit.pool().Stats().live, 0u);
    }
    EXPECT_TRUE(absl::IsInvalidArgument(opener.status())) << opener.status();
  }
  // The largest good one, announced only.
  RecordOpener opener = kit.Opener({});
  EXPECT_EQ(kit.Open(opener, std::string("\0\0\x10\0\x06\0\0\0", 8)).last, Result::kNeedMore);
  EXPECT_EQ(kit.pool().Stats().live, 0u);
  EXPECT_EQ(kit.Open(opener, "x").last, Result::kNeedMore);
  opener.Rest();
  EXPECT_EQ(kit.pool().Stats().live, 0u);
}

// Looks for plaintext in the block around a window that is still held. The two are too large to be
// put together, so that each is opened where it lies: alone, or with more behind it.
TEST(HostileRecords, WhatFailedIsWiped) {
  RecordKit kit;
  const std::string good = kit.SealOne({}, std::string(600, 'g'));
  const std::string secret(65'000, 's');
  std::string bad = kit.SealOne({.counter = 1}, secret);
  bad.back() = static_cast<char>(bad.back() ^ 1);
  for (const std::string_view more : {"", "m"}) {
    RecordOpener opener = kit.Opener({});
    Buffer block = *kit.pool().Copy(good + bad + std::string(more), BufferTag::kReceive);
    const std::string_view memory = block.view();
    opener.Feed(std::move(block));
    Buffer held, out;
    ASSERT_EQ(opener.Next(held), Result::kData);
    ASSERT_EQ(held.data(), memory.data() + 8);
    EXPECT_EQ(opener.Next(out), Result::kError);
    EXPECT_TRUE(absl::IsUnauthenticated(opener.status())) << opener.status();
    const std::string_view body = memory.substr(good.size() + 8, secret.size());
    EXPECT_EQ(body.find_first_not_of('\0'), std::string_view::npos);
    EXPECT_EQ(held.view(), std::string(600, 'g'));
  }
}

// And behind what was good, where records are put together.
TEST(HostileRecords, WhatFailedIsWipedBesideWhatWasGood) {
  RecordKit kit;
  std::string wire = kit.SealOne({}, std::string(600, 'g'));
  wire += kit.SealOne({.counter = 1}, std::string(4000, 's'));
  wire.back() = static_cast<char>(wire.back() ^ 1);
  RecordOpener opener = kit.Opener({});
  kit.Feed(opener, wire);
  Buffer held, out;
  ASSERT_EQ(opener.Next(held), Result::kData);
  EXPECT_EQ(held.view(), std::string(600, 'g'));
  EXPECT_EQ(opener.Next(out), Result::kError);
  held.Extend(4000);
  EXPECT_EQ(held.view().substr(600).find_first_not_of('\0'), std::string_view::npos);
}

TEST(HostileRecords, WhatFailedIsWipedInABlockOfItsOwnToo) {
  RecordKit kit;
  std::string bad = kit.SealOne({}, std::string(2000, 's'));
  bad.back() = static_cast<char>(bad.back() ^ 1);
  for (bool in_pieces : {false, true}) {
    RecordOpener opener = kit.Opener({});
    if (in_pieces) {
      kit.Feed(opener, std::string_view(bad).substr(0, 100));
      kit.Feed(opener, std::string_view(bad).substr(100));
    } else {
      opener.Feed(Buffer::FromExternal(bad.data(), bad.size(), [] {}));
    }
    Buffer out;
    EXPECT_EQ(opener.Next(out), Result::kError);
    Buffer block = kit.pool().TryAllocate(2000);
    block.Extend(2000);
    EXPECT_EQ(block.view().find("ssss"), std::string_view::npos);
  }
}

// Fails at the nth call of any kind, and keeps failing.
struct Failures {
  int left = 0;
  bool Fails() { return left-- <= 0; }
};

class FailingAead : public Aead {
 public:
  FailingAead(std::unique_ptr<Aead> real, Failures& failures)
      : real_(std::move(real)), failures_(failures) {}
  bool SetKey(const AeadKey& key) override { return !failures_.Fails() && real_->SetKey(key); }
  bool StartSeal(const AeadNonce& nonce) override {
    return !failures_.Fails() && real_->StartSeal(nonce);
  }
  bool StartOpen(const AeadNonce& nonce, const char* tag) override {
    return !failures_.Fails() && real_->StartOpen(nonce, tag);
  }
  bool Update(const char* in, char* out, size_t size) override {
    return !failures_.Fails() && real_->Update(in, out, size);
  }
  bool FinishSeal(char* tag) override { return !failures_.Fails() && real_->FinishSeal(tag); }
  bool FinishOpen() override { return real_->FinishOpen(); }

 private:
  std::unique_ptr<Aead> real_;
  Failures& failures_;
};

class FailingCrypto : public RecordCrypto {
 public:
  explicit FailingCrypto(Failures& failures)
      : real_(std::move(*NewOpensslCrypto())), failures_(failures) {}
  std::unique_ptr<Aead> NewAead() override {
    if (failures_.Fails()) return nullptr;
    return std::make_unique<FailingAead>(real_->NewAead(), failures_);
  }
  bool HmacSha256(std::span<const uint8_t> key, std::span<const uint8_t> message,
                  std::array<uint8_t, 32>& out) override {
    return !failures_.Fails() && real_->HmacSha256(key, message, out);
  }

 private:
  std::unique_ptr<RecordCrypto> real_;
  Failures& failures_;
};

RecordCipher FailingCipher(Failures& failures) {
  return RecordCipher(
      std::make_shared<CipherContexts>(std::make_unique<FailingCrypto>(failures)),
      *KeySchedule::Create(RecordProtocol::kGcmAes128Rekey, RecordSender::kClient,
                           RecordVectors::Get().keys.at(RecordProtocol::kGcmAes128Rekey)));
}

TEST(HostileRecords, ALibraryThatFailsEndsTheSealer) {
  RecordKit kit;
  int survived = 0;
  for (int good = 0; survived == 0; ++good) {
    Failures failures{good};
    RecordSealer sealer(FailingCipher(failures), kit.pool(), RecordMode::kNative, 1024);
    BufferChain plain = kit.Chain(std::string(1500, 'x'), 700), wire;
    if (sealer.Seal(plain, wire, SIZE_MAX) == RecordSealer::Result::kSealed &&
        sealer.SealEnd(wire) == RecordSealer::Result::kSealed) {
      ++survived;
      EXPECT_GT(good, 10);
      continue;
    }
    EXPECT_TRUE(absl::IsInternal(sealer.status())) << sealer.status();
    failures.left = 1000;
    const uint64_t counter = sealer.keys().counter();
    const size_t sealed = wire.size();
    EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), RecordSealer::Result::kError);
    EXPECT_EQ(sealer.SealEnd(wire), RecordSealer::Result::kError);
    EXPECT_EQ(wire.size(), sealed);
    EXPECT_EQ(sealer.keys().counter(), counter);
  }
}

TEST(HostileRecords, ALibraryThatFailsEndsTheOpener) {
  RecordKit kit;
  const std::string plain = PatternBytes(1, 0, 3000);
  const std::string wire = kit.SealOne({}, plain);
  for (size_t piece : {wire.size(), size_t{1000}}) {
    bool survived = false;
    for (int good = 0; !survived; ++good) {
      Failures failures{good};
      RecordOpener opener(FailingCipher(failures), kit.pool(), RecordMode::kGrpc, 4096);
      std::string got;
      for (size_t at = 0; at < wire.size(); at += piece) {
        got += kit.Open(opener, std::string_view(wire).substr(at, piece)).bytes;
      }
      survived = opener.status().ok();
      EXPECT_EQ(got, survived ? plain : "");
      if (survived) continue;
      EXPECT_TRUE(absl::IsInternal(opener.status())) << opener.status();
      failures.left = 1000;
      EXPECT_EQ(kit.Open(opener, wire).last, Result::kError);
    }
  }
}

}  // namespace
