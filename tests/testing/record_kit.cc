#include "testing/record_kit.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "secure/openssl_aead.h"
#include "secure/record_format.h"
#include "testing/record_vectors.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

RecordKit::RecordKit(PoolOptions pool_options)
    : pool_(pool_options),
      contexts_(std::make_shared<CipherContexts>(std::move(*NewOpensslCrypto()))) {}

RecordCipher RecordKit::Cipher(const Options& options) {
  const std::string& key =
      options.key.empty() ? RecordVectors::Get().keys.at(options.protocol) : options.key;
  KeySchedule keys = *KeySchedule::Create(options.protocol, options.sender, key);
  keys.SetCounter(options.counter);
  return RecordCipher(contexts_, std::move(keys));
}

RecordSealer RecordKit::Sealer(const Options& options) {
  return RecordSealer(Cipher(options), pool_, options.mode, options.frame_max);
}

RecordOpener RecordKit::Opener(const Options& options) {
  return RecordOpener(Cipher(options), pool_, options.mode, options.frame_max);
}

BufferChain RecordKit::Chain(std::string_view bytes, size_t piece) {
  BufferChain chain;
  while (!bytes.empty()) {
    const size_t n = piece == 0 ? bytes.size() : std::min(piece, bytes.size());
    chain.Append(*pool_.Copy(bytes.substr(0, n), BufferTag::kReceive));
    bytes.remove_prefix(n);
  }
  return chain;
}

std::string RecordKit::Seal(RecordSealer& sealer, std::string_view plain) {
  BufferChain chain = Chain(plain), wire;
  const auto result = sealer.Seal(chain, wire, SIZE_MAX);
  PENSTOCK_CHECK(result == RecordSealer::Result::kSealed && chain.empty(), "a record kit seals");
  return wire.ToString();
}

std::string RecordKit::SealOne(const Options& options, std::string_view plain) {
  RecordCipher cipher = Cipher(options);
  std::string record(kRecordOverhead + plain.size(), '\0');
  WriteRecordHeader(record.data(), plain.size());
  Aead* aead = cipher.StartSeal();
  PENSTOCK_CHECK(aead != nullptr &&
                     aead->Update(plain.data(), record.data() + kRecordHeaderSize, plain.size()) &&
                     aead->FinishSeal(record.data() + kRecordHeaderSize + plain.size()),
                 "a record kit seals");
  return record;
}

void RecordKit::Feed(RecordOpener& opener, std::string_view wire) {
  if (!wire.empty()) opener.Feed(*pool_.Copy(wire, BufferTag::kReceive));
}

RecordKit::Opened RecordKit::Drain(RecordOpener& opener) {
  Opened opened;
  for (;;) {
    Buffer out;
    opened.last = opener.Next(out);
    ++opened.calls;
    if (opened.last == RecordOpener::Result::kAgain) continue;
    if (opened.last != RecordOpener::Result::kData) return opened;
    opened.bytes.append(out.view());
    opened.buffers.emplace_back(out.view());
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
