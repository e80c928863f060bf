// Records that are sealed, altered, cut, repeated and made up in any order: what the opener
// delivers is a beginning of what was sealed, all of it when nobody interfered; errors are final;
// and at rest it pins no more than the bytes that came allow.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "buffer/compact_chain.h"
#include "testing/pattern.h"
#include "testing/record_kit.h"

namespace {

using penstock::Buffer;
using penstock::BufferChain;
using penstock::RecordMode;
using penstock::RecordProtocol;
using penstock::internal::CompactChain;
using penstock::internal::PatternBytes;
using penstock::internal::RecordKit;
using penstock::internal::RecordOpener;
using penstock::internal::RecordSealer;

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

class RecordRun {
 public:
  RecordRun(RecordKit& kit, std::string_view input)
      : kit_(kit),
        input_(input),
        options_(TakeOptions()),
        sealer_(kit.Sealer(options_)),
        opener_(kit.Opener(options_)) {}

  void Run() {
    while (!input_.empty()) Step();
    Feed(wire_.size(), false);
    Finish();
  }

 private:
  uint8_t Take() {
    if (input_.empty()) return 0;
    const auto taken = static_cast<uint8_t>(input_.front());
    input_.remove_prefix(1);
    return taken;
  }
  RecordKit::Options TakeOptions() {
    // Near each border that a counter has.
    constexpr uint64_t kCounters[] = {0, 0xfffe, 0xfffffffe, (uint64_t{1} << 40) - 5};
    RecordKit::Options options;
    if (Take() % 2 != 0) options.protocol = RecordProtocol::kGcmAes128;
    if (Take() % 2 != 0) options.mode = RecordMode::kNative;
    options.frame_max = static_cast<uint32_t>(25 + 8 * Take());
    options.counter = kCounters[Take() % 4];
    // Not the vectors' key, whose records an input may hold.
    options.key = std::string(penstock::RecordKeySize(options.protocol), 'k');
    return options;
  }

  void Step() {
    const uint8_t op = Take();
    const size_t n = Take();
    switch (op % 8) {
      case 0:
        return Seal(n);
      case 1:
        return Seal(n * 40);
      case 2: {
        BufferChain end;
        const bool may = sealer_.status().ok() && !ended_ && options_.mode == RecordMode::kNative;
        if (!may || sealer_.SealEnd(end) != RecordSealer::Result::kSealed) return;
        ended_ = true;
        wire_ += end.ToString();
        return;
      }
      case 3:
        return Feed(n, op & 8);
      case 4:
        return Feed(n * 64, op & 8);
      case 5: {
        if (wire_.empty()) return;
        char& byte = wire_[n * 7 % wire_.size()];
        byte = static_cast<char>(byte ^ (1 << (op >> 3) % 8));
        altered_ = true;
        return;
      }
      case 6: {  // a piece twice, or not at all
        const size_t at = std::min<size_t>(Take(), wire_.size());
        const std::string piece = wire_.substr(at, n);
        if (piece.empty()) return;
        if (op & 8) {
          wire_.erase(at, n);
        } else {
          wire_.insert(at, piece);
        }
        altered_ = true;
        return;
      }
      default: {  // bytes of the input
        const size_t size = std::min(n, input_.size());
        if (size == 0) return;
        wire_.append(input_.substr(0, size));
        input_.remove_prefix(size);
        altered_ = true;
      }
    }
  }

  void Seal(size_t n) {
    if (ended_ || n == 0) return;
    const std::string plain = PatternBytes(1, sent_, n);
    BufferChain chain = kit_.Chain(plain, 1 + n / 3), wire;
    if (sealer_.Seal(chain, wire, SIZE_MAX) == RecordSealer::Result::kError) {
      Require(absl::IsResourceExhausted(sealer_.status()), "only the counter stops a sealer");
    }
    sent_ += n - chain.size();
    wire_ += wire.ToString();
  }

  // A piece of the wire: as a block of its own, or as one that others hold, too.
  void Feed(size_t n, bool shared) {
    const std::string piece = wire_.substr(0, n);
    wire_.erase(0, n);
    fed_ += piece.size();
    if (piece.empty()) return;
    Buffer bytes = *kit_.pool().Copy(piece);
    const Buffer other = shared ? bytes.Share() : Buffer();
    opener_.Feed(std::move(bytes));
    for (;;) {
      Buffer out;
      const uint64_t counter = opener_.keys().counter();
      const RecordOpener::Result result = opener_.Next(out);
      Require(opener_.keys().counter() - counter <= 64, "one call does bounded work");
      if (result == RecordOpener::Result::kAgain) continue;
      if (result != RecordOpener::Result::kData) {
        Require((result == RecordOpener::Result::kError) == !opener_.status().ok(),
                "errors say so");
        break;
      }
      Require(!out.empty(), "data is data");
      Require(out.view() == PatternBytes(1, got_, out.size()), "what comes out was sealed");
      got_ += out.size();
      Require(got_ <= sent_, "no more comes out than was sealed");
      Require(!failed_, "nothing follows an error");
    }
    failed_ = failed_ || !opener_.status().ok();
    opener_.Rest();
    Require(opener_.pinned_bytes() <= CompactChain::PinnedMax(fed_), "little is pinned at rest");
    Require(!shared || other.view() == piece, "what others hold stays as it is");
  }

  void Finish() {
    const absl::Status end = opener_.OnWireEnd();
    Require(!end.ok(), "every stream ends somehow");
    Require(opener_.OnWireEnd() == end, "the end stays the same");
    if (altered_) return;
    Require(got_ == sent_, "everything arrives");
    const bool whole = options_.mode == RecordMode::kGrpc || ended_;
    Require(whole ? absl::IsOutOfRange(end) : absl::IsDataLoss(end), "it ends as it was ended");
  }

  RecordKit& kit_;
  std::string_view input_;
  const RecordKit::Options options_;
  RecordSealer sealer_;
  RecordOpener opener_;
  std::string wire_;  // sealed and not fed yet
  size_t sent_ = 0;   // plaintext
  size_t got_ = 0;
  size_t fed_ = 0;  // of the wire
  bool ended_ = false;
  bool altered_ = false;
  bool failed_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static RecordKit kit;
  RecordRun(kit, {reinterpret_cast<const char*>(data), size}).Run();
  Require(kit.pool().Stats().live == 0, "no block is left");
  return 0;
}
