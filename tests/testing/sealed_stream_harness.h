// SealedStreamHarness: sealed ends over any environment's pairs and over scripted streams, and the
// records that a peer of theirs would send.
#ifndef PENSTOCK_TESTS_TESTING_SEALED_STREAM_HARNESS_H_
#define PENSTOCK_TESTS_TESTING_SEALED_STREAM_HARNESS_H_

#include <penstock/export.h>
#include <penstock/seal.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "secure/openssl_aead.h"
#include "secure/record_sealer.h"
#include "secure/seal_loop.h"
#include "testing/fate.h"
#include "testing/harness.h"
#include "testing/scripted_stream.h"
#include "testing/sealed_environment.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class SealedStreamHarness : public Harness {
 protected:
  // One end of a pair, sealed with the keys of every test.
  StreamPtr Sealed(StreamPtr plain, const InstantOptions& options) {
    StreamPtr stream;
    Seal(std::move(plain), InstantHandshaker(options), {}, [&](absl::StatusOr<StreamPtr> sealed) {
      ASSERT_TRUE(sealed.ok()) << sealed.status();
      stream = *std::move(sealed);
    });
    EXPECT_TRUE(Drive([&] { return stream != nullptr; }));
    return stream;
  }
  // A new pair, its server end sealed; the client end stays plain.
  StreamPair HalfSealed(RecordMode mode, StreamOptions client = {}, StreamOptions server = {}) {
    StreamPair pair = Pair(client, server);
    pair.server = Sealed(std::move(pair.server), {.mode = mode, .server = true});
    return pair;
  }

  // A sealed server's end over a script; a read of it has been begun, and waits below.
  struct ScriptedEnd {
    ScriptedStream* below = nullptr;
    StreamPtr stream;
    Fate read;
  };
  ScriptedEnd ReadingFromAScript(RecordMode mode) {
    auto script = std::make_unique<ScriptedStream>(loop());
    ScriptedEnd end;
    end.below = script.get();
    end.stream = Sealed(std::move(script), {.mode = mode, .server = true});
    end.stream->ReadReady(end.read.OnRead());
    EXPECT_TRUE(Drive([&] { return end.below->reading(); }));
    return end;
  }

  // What a plain peer sees when the sealed one gave up.
  void ExpectCutOff(Stream& plain) {
    const absl::Status end = ReadToEnd(plain).end;
    EXPECT_TRUE(IsReset(end) || (is_unix() && IsEof(end))) << end;
  }

  // Cipher contexts in use on the loop.
  size_t LiveContexts() { return (*SealLoop::Of(loop().core()))->contexts()->live(); }

  // What a client seals: each of `payloads` a record, and the end when there is one to be had.
  std::string Records(RecordMode mode, const std::vector<std::string>& payloads, bool end) {
    absl::StatusOr<std::unique_ptr<RecordCrypto>> crypto = NewOpensslCrypto();
    EXPECT_TRUE(crypto.ok()) << crypto.status();
    const HandshakeResult keys = InstantKeys({.mode = mode});
    absl::StatusOr<KeySchedule> schedule =
        KeySchedule::Create(keys.protocol, RecordSender::kClient, keys.send_key.view());
    EXPECT_TRUE(schedule.ok()) << schedule.status();
    RecordSealer sealer(
        RecordCipher(std::make_shared<CipherContexts>(*std::move(crypto)), *std::move(schedule)),
        loop().pool(), mode, kRecordFrameMax);
    BufferChain wire;
    for (const std::string& payload : payloads) {
      BufferChain plain = Chain(payload);
      EXPECT_EQ(sealer.Seal(plain, wire, SIZE_MAX), RecordSealer::Result::kSealed);
    }
    if (end) {
      EXPECT_EQ(sealer.SealEnd(wire), RecordSealer::Result::kSealed);
    }
    return wire.ToString();
  }
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_SEALED_STREAM_HARNESS_H_
