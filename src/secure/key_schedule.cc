#include "secure/key_schedule.h"

#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "secure/wipe.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr uint8_t kServerBit = 0x80;
constexpr size_t kCounterDirection = 11;  // its place in the counter

}  // namespace

absl::StatusOr<KeySchedule> KeySchedule::Create(RecordProtocol protocol, RecordSender sender,
                                                std::string_view key) {
  if (key.size() != RecordKeySize(protocol)) {
    const std::string_view name = RecordProtocolName(protocol);
    return absl::InvalidArgumentError(
        absl::StrCat("key of ", key.size(), " bytes: ", absl::string_view(name.data(), name.size()),
                     " needs ", RecordKeySize(protocol)));
  }
  KeySchedule keys;
  keys.protocol_ = protocol;
  if (protocol == RecordProtocol::kGcmAes128) {
    std::memcpy(keys.key_.data(), key.data(), keys.key_.size());
    keys.key_epoch_ = 0;
  } else {
    std::memcpy(keys.secret_.data(), key.data(), keys.secret_.size());
    std::memcpy(keys.nonce_mask_.data(), key.data() + keys.secret_.size(), keys.nonce_mask_.size());
  }
  if (sender == RecordSender::kServer) keys.nonce_mask_[kCounterDirection] ^= kServerBit;
  return keys;
}

KeySchedule::KeySchedule(KeySchedule&& other) noexcept { Take(other); }

KeySchedule& KeySchedule::operator=(KeySchedule&& other) noexcept {
  if (this != &other) Take(other);
  return *this;
}

KeySchedule::~KeySchedule() {
  WipeSecret(secret_.data(), secret_.size());
  WipeSecret(key_.data(), key_.size());
  WipeSecret(nonce_mask_.data(), nonce_mask_.size());
}

void KeySchedule::Take(KeySchedule& other) {
  protocol_ = other.protocol_;
  exhausted_ = other.exhausted_;
  nonce_mask_ = other.nonce_mask_;
  secret_ = other.secret_;
  key_ = other.key_;
  key_epoch_ = other.key_epoch_;
  counter_ = other.counter_;
  WipeSecret(other.secret_.data(), other.secret_.size());
  WipeSecret(other.key_.data(), other.key_.size());
  WipeSecret(other.nonce_mask_.data(), other.nonce_mask_.size());
  // The same counters under the wiped key would be somebody's nonces again.
  other.exhausted_ = true;
}

void KeySchedule::SetCounter(uint64_t counter) {
  PENSTOCK_CHECK(counter <= counter_last(), "SetCounter() beyond the protocol's last counter");
  counter_ = counter;
  exhausted_ = false;
}

const AeadKey* KeySchedule::Key(RecordCrypto& crypto) {
  if (key_epoch_ == epoch()) return &key_;
  // HKDF-Expand of one block (RFC 5869) with counter bytes 2..7 as info.
  std::array<uint8_t, 7> message;
  for (size_t i = 0; i < 6; ++i) message[i] = static_cast<uint8_t>(epoch() >> (8 * i));
  message[6] = 1;
  std::array<uint8_t, 32> block;
  key_epoch_ = kNoEpoch;
  const bool derived = crypto.HmacSha256(secret_, message, block);
  if (derived) std::memcpy(key_.data(), block.data(), key_.size());
  WipeSecret(block.data(), block.size());
  if (!derived) return nullptr;
  key_epoch_ = epoch();
  return &key_;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
