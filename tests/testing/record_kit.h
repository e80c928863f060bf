// RecordKit: what tests of records need around them: a pool, cipher contexts, the vectors' keys,
// and short ways from strings to records and back.
//
// One thread at a time. Sealers and openers that it made must be gone before it.
#ifndef PENSTOCK_TESTS_TESTING_RECORD_KIT_H_
#define PENSTOCK_TESTS_TESTING_RECORD_KIT_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/record_protocol.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "secure/cipher_contexts.h"
#include "secure/record_opener.h"
#include "secure/record_sealer.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class RecordKit {
 public:
  struct Options {
    RecordProtocol protocol = RecordProtocol::kGcmAes128Rekey;
    RecordSender sender = RecordSender::kClient;
    RecordMode mode = RecordMode::kGrpc;
    uint32_t frame_max = kRecordFrameMax;
    uint64_t counter = 0;
    std::string key = {};  // the vectors' one when empty
  };
  // What an opener says until it has no more.
  struct Opened {
    std::string bytes;
    std::vector<std::string> buffers;
    RecordOpener::Result last = RecordOpener::Result::kNeedMore;
    int calls = 0;
  };

  explicit RecordKit(PoolOptions pool_options = {});

  BufferPool& pool() { return pool_; }
  CipherContexts& contexts() { return *contexts_; }
  RecordCipher Cipher(const Options& options);
  RecordSealer Sealer(const Options& options);
  RecordOpener Opener(const Options& options);

  // A chain of buffers of `piece` bytes each, the last one shorter; of one buffer when 0.
  BufferChain Chain(std::string_view bytes, size_t piece = 0);
  // Everything in records, each of its own sealer's making.
  std::string Seal(RecordSealer& sealer, std::string_view plain);
  // One record, with any counter that has a nonce, empty or not.
  std::string SealOne(const Options& options, std::string_view plain);

  void Feed(RecordOpener& opener, std::string_view wire);
  static Opened Drain(RecordOpener& opener);
  Opened Open(RecordOpener& opener, std::string_view wire) {
    Feed(opener, wire);
    return Drain(opener);
  }

 private:
  BufferPool pool_;
  std::shared_ptr<CipherContexts> contexts_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_RECORD_KIT_H_
