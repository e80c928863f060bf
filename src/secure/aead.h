// What the record layer asks of a cryptographic library: AES-128-GCM contexts and HMAC-SHA256.
//
// A seam: the codec, the counters and the caches above it name no library, and the one
// implementation (secure/openssl_aead.h) holds no policy. Objects belong to one thread at a time.
// `false` or null means that the library itself refused (out of memory, algorithm not provided);
// that ends a stream, and no key or nonce may be used again after it.
#ifndef PENSTOCK_SECURE_AEAD_H_
#define PENSTOCK_SECURE_AEAD_H_

#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

inline constexpr size_t kAeadTagSize = 16;
using AeadKey = std::array<uint8_t, 16>;
using AeadNonce = std::array<uint8_t, 12>;

// One keyed AES-128-GCM context without associated data. A record is one Start, any number of
// Updates and one Finish; the pieces given to Update mean the same as one run of their bytes.
// Opening takes the tag first, which saves the library a call.
class Aead {
 public:
  enum class Opened : uint8_t {
    kGood,
    kForged,  // the tag does not prove it
    kBroken,  // the library refused
  };

  virtual ~Aead() = default;

  // Costs a key schedule; nonces of the previous key are history.
  virtual bool SetKey(const AeadKey& key) = 0;

  virtual bool StartSeal(const AeadNonce& nonce) = 0;
  // `tag`: the kAeadTagSize bytes of it.
  virtual bool StartOpen(const AeadNonce& nonce, const char* tag) = 0;
  // `size` <= 2^30 bytes from `in` to `out`, which are the same place or do not overlap.
  virtual bool Update(const char* in, char* out, size_t size) = 0;
  // Writes kAeadTagSize bytes.
  virtual bool FinishSeal(char* tag) = 0;
  // True when the tag proves that what Update wrote is what was sealed; until then none of it may
  // be believed.
  virtual bool FinishOpen() = 0;

  // A whole record that is one piece: Start, Update and Finish. Each of these calls costs a small
  // record more than what it does.
  virtual bool SealPiece(const AeadNonce& nonce, const char* in, char* out, size_t size,
                         char* tag) {
    return StartSeal(nonce) && Update(in, out, size) && FinishSeal(tag);
  }
  virtual Opened OpenPiece(const AeadNonce& nonce, const char* tag, const char* in, char* out,
                           size_t size) {
    if (!StartOpen(nonce, tag) || !Update(in, out, size)) return Opened::kBroken;
    return FinishOpen() ? Opened::kGood : Opened::kForged;
  }
};

class RecordCrypto {
 public:
  virtual ~RecordCrypto() = default;

  virtual std::unique_ptr<Aead> NewAead() = 0;
  virtual bool HmacSha256(std::span<const uint8_t> key, std::span<const uint8_t> message,
                          std::array<uint8_t, 32>& out) = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_AEAD_H_
