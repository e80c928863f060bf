// What a record costs: sealing and opening records of some payload sizes, against the bare loop of
// OpenSSL's EVP that does nothing but AES-128-GCM with one context and a new nonce each time.
//
// The "Against" benches do both by turns, some 100 us each, in one run: `ratio` is the median of
// the pairs' ratios of speed (ours over bare), which the machine's moods do not reach; bare_ns and
// ours_ns are medians per record. What surrounds the work (filling in ciphertext again, taking
// plaintext) is not timed for either.
#include <benchmark/benchmark.h>
#include <openssl/evp.h>
#include <penstock/buffer.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "buffer/pool_cache.h"
#include "secure/openssl_aead.h"
#include "secure/record_format.h"
#include "secure/record_opener.h"
#include "secure/record_sealer.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr size_t kBatchBytes = 256 * 1024;  // of payload
constexpr size_t kReceiveBlock = 64 * 1024;

void Must(bool worked) {
  if (worked) return;
  std::fprintf(stderr, "seal_bench: a step failed\n");
  std::abort();
}

std::shared_ptr<CipherContexts> NewContexts() {
  return std::make_shared<CipherContexts>(std::move(*NewOpensslCrypto()));
}

RecordCipher NewCipher(const std::shared_ptr<CipherContexts>& contexts) {
  return RecordCipher(contexts, *KeySchedule::Create(RecordProtocol::kGcmAes128Rekey,
                                                     RecordSender::kClient, std::string(44, 'k')));
}

// The loop to compare with: a fetched cipher, a context that keeps its key, and per record the
// nonce, one update, the end and the tag.
class BareLoop {
 public:
  BareLoop() : cipher_(EVP_CIPHER_fetch(nullptr, "AES-128-GCM", nullptr)) {
    const unsigned char key[16] = {1, 2, 3};
    Must(EVP_EncryptInit_ex2(context_, cipher_, key, nullptr, nullptr) == 1);
  }
  ~BareLoop() {
    EVP_CIPHER_CTX_free(context_);
    EVP_CIPHER_free(cipher_);
  }
  BareLoop(const BareLoop&) = delete;
  BareLoop& operator=(const BareLoop&) = delete;

  void Seal(uint64_t counter, const char* in, char* out, size_t size) {
    unsigned char nonce[12] = {};
    std::memcpy(nonce, &counter, sizeof counter);
    int written = 0;
    unsigned char rest[16];
    Must(EVP_EncryptInit_ex2(context_, nullptr, nullptr, nonce, nullptr) == 1 &&
         EVP_EncryptUpdate(context_, reinterpret_cast<unsigned char*>(out), &written,
                           reinterpret_cast<const unsigned char*>(in),
                           static_cast<int>(size)) == 1 &&
         EVP_EncryptFinal_ex(context_, rest, &written) == 1 &&
         EVP_CIPHER_CTX_ctrl(context_, EVP_CTRL_AEAD_GET_TAG, 16, out + size) == 1);
  }
  // `in` has the tag behind it, and may be `out`.
  void Open(uint64_t counter, char* in, char* out, size_t size) {
    unsigned char nonce[12] = {};
    std::memcpy(nonce, &counter, sizeof counter);
    int written = 0;
    unsigned char rest[16];
    Must(EVP_DecryptInit_ex2(context_, nullptr, nullptr, nonce, nullptr) == 1 &&
         EVP_DecryptUpdate(context_, reinterpret_cast<unsigned char*>(out), &written,
                           reinterpret_cast<unsigned char*>(in), static_cast<int>(size)) == 1 &&
         EVP_CIPHER_CTX_ctrl(context_, EVP_CTRL_AEAD_SET_TAG, 16, in + size) == 1 &&
         EVP_DecryptFinal_ex(context_, rest, &written) == 1);
  }

 private:
  EVP_CIPHER* cipher_;
  EVP_CIPHER_CTX* context_ = EVP_CIPHER_CTX_new();
};

// Times of the two, by turns.
class Pairs {
 public:
  template <typename Bare, typename Ours>
  void Time(Bare&& bare, Ours&& ours) {
    const double bare_ns = Once(bare);
    const double ours_ns = Once(ours);
    bare_.push_back(bare_ns);
    ours_.push_back(ours_ns);
    ratio_.push_back(bare_ns / ours_ns);
  }
  void Report(benchmark::State& state, size_t records, size_t payload) {
    state.counters["bare_ns"] = Median(bare_) / static_cast<double>(records);
    state.counters["ours_ns"] = Median(ours_) / static_cast<double>(records);
    state.counters["ratio"] = Median(ratio_);
    state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(records * payload));
  }

 private:
  template <typename Work>
  static double Once(Work&& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start)
        .count();
  }
  static double Median(std::vector<double>& values) {
    const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  }

  std::vector<double> bare_, ours_, ratio_;
};

// What every bench below has around it: a pool as inside a loop's turn.
struct Bench {
  explicit Bench(size_t payload_size)
      : payload(payload_size),
        records(kBatchBytes / payload_size),
        text(kBatchBytes, 'x'),
        sealer(NewCipher(contexts), pool, RecordMode::kGrpc,
               static_cast<uint32_t>(payload_size + kRecordOverhead)),
        opener(NewCipher(contexts), pool, RecordMode::kGrpc, kRecordFrameMax) {}

  // The batch as a chain of blocks such as an application's writes are.
  BufferChain Plain() {
    BufferChain chain;
    for (size_t at = 0; at < text.size(); at += kReceiveBlock) {
      chain.Append(*pool.Copy(std::string_view(text).substr(at, kReceiveBlock)));
    }
    return chain;
  }
  // Records of the batch, to be opened from counter 0.
  std::string Wire() {
    BufferChain plain = Plain(), wire;
    sealer.keys().SetCounter(0);
    Must(sealer.Seal(plain, wire, SIZE_MAX) == RecordSealer::Result::kSealed && plain.empty());
    return wire.ToString();
  }
  // What the bare loop opens: ciphertexts and tags, one after the other.
  std::string BareSealed() {
    std::string sealed;
    for (size_t i = 0; i < records; ++i) {
      std::string record(payload + kAeadTagSize, '\0');
      bare.Seal(i, text.data(), record.data(), payload);
      sealed += record;
    }
    return sealed;
  }
  void OpenBare(std::string& sealed) {
    for (size_t i = 0; i < records; ++i) {
      char* const record = sealed.data() + i * (payload + kAeadTagSize);
      bare.Open(i, record, record, payload);
    }
  }
  std::vector<Buffer> Received(std::string_view wire) {
    std::vector<Buffer> blocks;
    for (size_t at = 0; at < wire.size(); at += kReceiveBlock) {
      blocks.push_back(*pool.Copy(wire.substr(at, kReceiveBlock), BufferTag::kReceive));
    }
    return blocks;
  }
  size_t Open(std::vector<Buffer>& blocks) {
    size_t bytes = 0;
    for (Buffer& block : blocks) {
      opener.Feed(std::move(block));
      for (;;) {
        Buffer out;
        const RecordOpener::Result result = opener.Next(out);
        if (result == RecordOpener::Result::kData) {
          bytes += out.size();
        } else if (result == RecordOpener::Result::kNeedMore) {
          break;
        } else {
          Must(result == RecordOpener::Result::kAgain);
        }
      }
    }
    return bytes;
  }

  const size_t payload;
  const size_t records;
  const std::string text;
  BufferPool pool;
  PoolCache cache{pool.core()};
  PoolCache::Scope scope{cache};
  std::shared_ptr<CipherContexts> contexts = NewContexts();
  RecordSealer sealer;
  RecordOpener opener;
  BareLoop bare;
};

// The bare loop alone: what bench/seal.py derives its ceilings from.
void BM_BareSeal(benchmark::State& state) {
  BareLoop bare;
  const auto size = static_cast<size_t>(state.range(0));
  const std::string text(size, 'x');
  std::string out(size + kAeadTagSize, '\0');
  uint64_t counter = 0;
  for (auto _ : state) bare.Seal(counter++, text.data(), out.data(), size);
}

void BM_BareOpen(benchmark::State& state) {
  BareLoop bare;
  const auto size = static_cast<size_t>(state.range(0));
  std::string text(size, 'x'), sealed(size + kAeadTagSize, '\0');
  bare.Seal(0, text.data(), sealed.data(), size);
  for (auto _ : state) bare.Open(0, sealed.data(), text.data(), size);
}

void BareSizes(benchmark::internal::Benchmark* bench) {
  for (int64_t size : {64, 1024, 16384}) bench->Arg(size);
}
BENCHMARK(BM_BareSeal)->Apply(BareSizes);
BENCHMARK(BM_BareOpen)->Apply(BareSizes);

void Sizes(benchmark::internal::Benchmark* bench) {
  for (int64_t size : {1, 4, 16, 64}) bench->Arg(size * 1024);
}

// A stream with much to send: records as they fit a block, which goes out before the next is
// sealed.
void BM_SealAgainstBare(benchmark::State& state) {
  Bench bench(static_cast<size_t>(state.range(0)));
  std::string out(bench.payload + kRecordOverhead, '\0');
  Pairs pairs;
  uint64_t counter = 0;
  for (auto _ : state) {
    BufferChain plain = bench.Plain();
    pairs.Time(
        [&] {
          for (size_t at = 0; at < kBatchBytes; at += bench.payload) {
            bench.bare.Seal(counter++, bench.text.data() + at, out.data(), bench.payload);
          }
        },
        [&] {
          while (!plain.empty()) {
            BufferChain wire;
            Must(bench.sealer.Seal(plain, wire, 66048) == RecordSealer::Result::kSealed);
            benchmark::DoNotOptimize(wire.front().data());
          }
        });
  }
  pairs.Report(state, bench.records, bench.payload);
}
BENCHMARK(BM_SealAgainstBare)->Apply(Sizes);

// One record a write, each in a block of its own.
void BM_SealOneAgainstBare(benchmark::State& state) {
  Bench bench(static_cast<size_t>(state.range(0)));
  std::string out(bench.payload + kRecordOverhead, '\0');
  Pairs pairs;
  uint64_t counter = 0;
  std::vector<BufferChain> writes(bench.records);
  for (auto _ : state) {
    for (BufferChain& write : writes) {
      write = BufferChain(*bench.pool.Copy(std::string_view(bench.text).substr(0, bench.payload)));
    }
    pairs.Time(
        [&] {
          for (size_t at = 0; at < kBatchBytes; at += bench.payload) {
            bench.bare.Seal(counter++, bench.text.data() + at, out.data(), bench.payload);
          }
        },
        [&] {
          for (BufferChain& write : writes) {
            BufferChain wire;
            Must(bench.sealer.Seal(write, wire, 66048) == RecordSealer::Result::kSealed);
            benchmark::DoNotOptimize(wire.front().data());
          }
        });
  }
  pairs.Report(state, bench.records, bench.payload);
}
BENCHMARK(BM_SealOneAgainstBare)->Apply(Sizes);

// Received in blocks of 64 KiB, at whose borders records lie in two pieces.
void BM_OpenAgainstBare(benchmark::State& state) {
  Bench bench(static_cast<size_t>(state.range(0)));
  const std::string wire = bench.Wire();
  const std::string sealed = bench.BareSealed();
  std::string bytes;
  Pairs pairs;
  for (auto _ : state) {
    bytes = sealed;
    std::vector<Buffer> blocks = bench.Received(wire);
    bench.opener.keys().SetCounter(0);
    pairs.Time([&] { bench.OpenBare(bytes); }, [&] { Must(bench.Open(blocks) == kBatchBytes); });
  }
  pairs.Report(state, bench.records, bench.payload);
}
BENCHMARK(BM_OpenAgainstBare)->Apply(Sizes);

// One record a receive.
void BM_OpenOneAgainstBare(benchmark::State& state) {
  Bench bench(static_cast<size_t>(state.range(0)));
  const std::string wire = bench.Wire();
  const size_t frame = bench.payload + kRecordOverhead;
  const std::string sealed = bench.BareSealed();
  std::string bytes;
  Pairs pairs;
  std::vector<Buffer> blocks(bench.records);
  for (auto _ : state) {
    bytes = sealed;
    for (size_t i = 0; i < bench.records; ++i) {
      blocks[i] = *bench.pool.Copy(std::string_view(wire).substr(i * frame, frame));
    }
    bench.opener.keys().SetCounter(0);
    pairs.Time([&] { bench.OpenBare(bytes); }, [&] { Must(bench.Open(blocks) == kBatchBytes); });
  }
  pairs.Report(state, bench.records, bench.payload);
}
BENCHMARK(BM_OpenOneAgainstBare)->Apply(Sizes);

// Small records that came together, per record.
void BM_OpenSmall(benchmark::State& state) {
  Bench bench(static_cast<size_t>(state.range(0)));
  const std::string wire = bench.Wire();
  for (auto _ : state) {
    state.PauseTiming();
    std::vector<Buffer> blocks = bench.Received(wire);
    bench.opener.keys().SetCounter(0);
    state.ResumeTiming();
    Must(bench.Open(blocks) == kBatchBytes);
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(bench.records));
}
BENCHMARK(BM_OpenSmall)->Arg(64);

// A new AES key, as every 65,536 records: derivation and key schedule.
void BM_Rekey(benchmark::State& state) {
  const auto contexts = NewContexts();
  RecordCipher cipher = NewCipher(contexts);
  uint64_t epoch = 0;
  for (auto _ : state) {
    cipher.keys().SetCounter(epoch++ << 16);
    benchmark::DoNotOptimize(cipher.StartSeal());
  }
}
BENCHMARK(BM_Rekey);

// A direction that lost its context to others: what it pays to go on.
void BM_ContextMoves(benchmark::State& state) {
  const auto contexts = std::make_shared<CipherContexts>(std::move(*NewOpensslCrypto()), 1);
  RecordCipher first = NewCipher(contexts), second = NewCipher(contexts);
  for (auto _ : state) {
    benchmark::DoNotOptimize(first.StartSeal());
    benchmark::DoNotOptimize(second.StartSeal());
  }
  state.SetItemsProcessed(state.iterations() * 2);
}
BENCHMARK(BM_ContextMoves);

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
