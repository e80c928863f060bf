// Credentials for keys that come from outside: a key management service, a test, another
// implementation of ALTS.
//
// No byte is exchanged and nobody is identified: whoever holds the key is the peer. Streams are in
// gRPC mode, and the listening side is the ALTS server. A key serves one connection, because record
// counters start at zero and a nonce that is used twice under one key gives both plaintexts and the
// authentication key away; so keys that were used are remembered and refused.
#ifndef PENSTOCK_STATIC_KEY_H_
#define PENSTOCK_STATIC_KEY_H_

#include <penstock/export.h>
#include <penstock/handshake.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

// Remembers which keys were used, by their SHA-256, for as long as it lives. Share one wherever the
// same key may turn up: it knows of nothing that other processes do. Any thread.
class PENSTOCK_EXPORT UsedKeys {
 public:
  // About 50 bytes of memory are kept for each key; beyond `keys_max` every key is refused.
  explicit UsedKeys(size_t keys_max = 1 << 20);
  ~UsedKeys();
  UsedKeys(const UsedKeys&) = delete;
  UsedKeys& operator=(const UsedKeys&) = delete;

  // FailedPrecondition when the key was used before in this role, be it with the other protocol;
  // ResourceExhausted when there is no room to remember it.
  //
  // The other role is not refused: the two ends of one connection use one key in two roles, and
  // both may live in one process, which nothing here can tell from two connections of which each
  // has one end here. The nonces of the two roles differ, so this process never uses one twice; but
  // each of those peers would use the other's. Who hands a key out gives it to two ends, no more.
  absl::Status Use(const SecretKey& key, bool server);
  size_t size() const;

 private:
  class Table;
  const std::unique_ptr<Table> table_;
};

struct StaticKeyOptions {
  RecordProtocol protocol = RecordProtocol::kGcmAes128Rekey;
  // The key of one connection, RecordKeySize(protocol) bytes. Called by every NewHandshaker, on its
  // thread, and must then give a fresh key; its error is NewHandshaker's. Must not wait for it:
  // Seal calls on the loop, where a request to a key service would hold every stream up. Fetch the
  // key first and seal then. Both ends must come to the same key by means of their own.
  std::function<absl::StatusOr<SecretKey>()> key;
  // Where used keys are remembered: one for the whole process, unless it is certain that no other
  // credentials meet the same key. Required, but for the next option.
  std::shared_ptr<UsedKeys> used = {};
  // Takes a key again and again, and remembers none. Whoever records two of its connections can
  // read both and forge more: for tests against other implementations, never for data that matters.
  bool unsafe_allow_key_reuse = false;
};

// InvalidArgument when there is no key function, or nowhere to remember used keys. A handshaker's
// options: InvalidArgument when the key or a frame size does not fit; FailedPrecondition or
// ResourceExhausted as UsedKeys::Use says.
PENSTOCK_EXPORT absl::StatusOr<CredentialsPtr> StaticKeyCredentials(StaticKeyOptions options);

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_STATIC_KEY_H_
