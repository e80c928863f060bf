// KeySchedule: the key material and the record counter of one direction of a sealed stream.
//
// Owned by a RecordSealer or RecordOpener; one thread at a time. Plain state: a live stream that
// moves takes it along. Invariant I8: Advance() is called once for each record, before its nonce
// could be asked for again, and after the last counter there is no other nonce. Wiped when
// destroyed or moved from.
#ifndef PENSTOCK_SECURE_KEY_SCHEDULE_H_
#define PENSTOCK_SECURE_KEY_SCHEDULE_H_

#include <penstock/export.h>
#include <penstock/record_protocol.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "base/check.h"
#include "base/little_endian.h"
#include "secure/aead.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Whose records a direction carries: it is bit 7 of the counter's last byte, so that neither side
// takes its own records for the peer's although gRPC gives both directions the same key.
enum class RecordSender : uint8_t { kClient, kServer };

class KeySchedule {
 public:
  // `key` holds RecordKeySize(protocol) bytes, else InvalidArgument. The caller's copy is the
  // caller's to wipe.
  static absl::StatusOr<KeySchedule> Create(RecordProtocol protocol, RecordSender sender,
                                            std::string_view key);
  KeySchedule(KeySchedule&& other) noexcept;
  KeySchedule& operator=(KeySchedule&& other) noexcept;
  ~KeySchedule();

  RecordProtocol protocol() const { return protocol_; }
  // Of the next record.
  uint64_t counter() const { return counter_; }
  // For a stream that goes on elsewhere, and for tests. Going back repeats nonces.
  void SetCounter(uint64_t counter);
  // The largest counter that has a nonce: 2^40-1, or 2^64-1 with rekeying.
  uint64_t counter_last() const {
    return protocol_ == RecordProtocol::kGcmAes128 ? (uint64_t{1} << 40) - 1 : UINT64_MAX;
  }
  // The record with the last counter has been counted: no record is possible any more.
  bool exhausted() const { return exhausted_; }

  // Of the record counter(); not when exhausted.
  AeadNonce Nonce() const {
    AeadNonce nonce = nonce_mask_;
    StoreLittle(nonce.data(), LoadLittle<uint64_t>(nonce.data()) ^ counter_);
    return nonce;
  }
  // Counts a record.
  void Advance() {
    PENSTOCK_CHECK(!exhausted_, "a record after the last counter");
    if (counter_ == counter_last()) [[unlikely]] {
      exhausted_ = true;
    } else {
      ++counter_;
    }
  }

  // Which AES key the record counter() needs: one number, one key.
  uint64_t epoch() const {
    return protocol_ == RecordProtocol::kGcmAes128 ? 0 : counter_ >> kEpochShift;
  }
  // The AES key of epoch(), valid until the next call that is not const; null when the library
  // refused to derive it.
  const AeadKey* Key(RecordCrypto& crypto);

 private:
  // 65,536 records: the counter's two low bytes do not enter the derivation.
  static constexpr int kEpochShift = 16;
  static constexpr uint64_t kNoEpoch = UINT64_MAX;

  KeySchedule() = default;
  void Take(KeySchedule& other);

  RecordProtocol protocol_ = RecordProtocol::kGcmAes128Rekey;
  bool exhausted_ = false;
  AeadNonce nonce_mask_{};            // what the counter is XORed with, the direction in it
  std::array<uint8_t, 32> secret_{};  // HMAC key; unused without rekeying
  AeadKey key_{};                     // of key_epoch_
  uint64_t key_epoch_ = kNoEpoch;
  uint64_t counter_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_KEY_SCHEDULE_H_
