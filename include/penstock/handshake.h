// Handshaker: agrees with the peer on record keys before a stream is sealed.
//
// A Handshaker owns no socket, timer or thread: a driver (the sealed stream) gives it the bytes
// that came and sends the bytes that it returns. Credentials make one Handshaker for each
// connection; TLS: penstock/tls_handshake.h, keys from outside: penstock/static_key.h, the ALTS
// handshaker service: penstock/alts_service.h.
//
// How a driver runs one
//   1. SetWake, then Step({}), whichever side it is.
//   2. After every Step and Authorize: send `out`, drop the first `consumed` bytes of what was
//      given, keep the rest, and go on by `state`:
//        kMore       wait for bytes; Step(rest + bytes).
//        kAuthorize  peer() is known; decide (at once or later, on any thread), then
//                    Authorize(verdict). No Step before that.
//        kWaiting    wait for the wake callback; then Step(rest).
//        kDone       TakeResult; the rest are the first records. Drop the Handshaker.
//        kFailed     send `out` (it may tell the peer why), then give the connection up.
//   3. Deadlines are the driver's; phase() says what was being waited for. When the peer's stream
//      ends instead of bytes coming: OnPeerEnd.
//
// Threads: any, one at a time; the wake callback runs where the Handshaker is being used.
#ifndef PENSTOCK_HANDSHAKE_H_
#define PENSTOCK_HANDSHAKE_H_

#include <penstock/address.h>
#include <penstock/export.h>
#include <penstock/record_protocol.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE

// Up to 64 bytes of secret, kept inline; wiped when destroyed, moved from or overwritten.
class PENSTOCK_EXPORT SecretKey {
 public:
  static constexpr size_t kMaxSize = 64;

  SecretKey() = default;
  // Copies `bytes`, whose own copy stays the caller's to wipe. More than kMaxSize: an empty key.
  explicit SecretKey(std::string_view bytes);
  // From hexadecimal digits, blanks around them ignored. InvalidArgument when they are none, odd in
  // number or too many; the message never shows them.
  static absl::StatusOr<SecretKey> FromHex(std::string_view text);
  // The same from a file. NotFound, PermissionDenied or InvalidArgument name the file, never what
  // is in it.
  static absl::StatusOr<SecretKey> FromHexFile(const std::string& path);

  SecretKey(const SecretKey& other) = default;
  SecretKey& operator=(const SecretKey& other) = default;
  SecretKey(SecretKey&& other) noexcept;
  SecretKey& operator=(SecretKey&& other) noexcept;
  ~SecretKey() { Wipe(); }

  std::string_view view() const { return {bytes_.data(), size_}; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  void Wipe();

 private:
  std::array<char, kMaxSize> bytes_{};
  uint8_t size_ = 0;
};

// Who is at the other end, as far as the handshake has proved it.
struct PENSTOCK_EXPORT PeerIdentity {
  enum class Kind : uint8_t {
    kNone,         // not known yet
    kCertificate,  // chain, subject and alternative names
    kPsk,          // psk_identity
    kAlts,         // service_account, as the handshaker service vouches
    kStaticKey,    // whoever holds the key
  };
  Kind kind = Kind::kNone;

  // DER, as it was verified: the peer's own certificate first, then each that vouches for the one
  // before, the trusted root last. What else the peer sent along is not in it.
  std::vector<std::string> chain;
  // Of the peer's own certificate: its subject (RFC 2253), and of its subject alternative names
  // those of these three kinds, in its order. Others (mail addresses, say) are in `chain` only.
  std::string subject;
  std::vector<std::string> dns_names;
  std::vector<std::string> uris;
  std::vector<std::string> ip_addresses;  // as inet_ntop(3) writes them
  std::string psk_identity;
  std::string service_account;
  // What was negotiated: the ALPN name (TLS) or the service's application protocol (ALTS).
  std::string application_protocol;

  // One line for logs and errors: "CN=client, uri spiffe://a/b", "PSK identity 'pump'".
  std::string ToString() const;
};

struct HandshakeResult {
  RecordProtocol protocol = RecordProtocol::kGcmAes128Rekey;
  RecordMode mode = RecordMode::kNative;
  // This side sets the server's direction bit in what it seals.
  bool server = false;
  // RecordKeySize(protocol) bytes each; equal in kGrpc mode.
  SecretKey send_key;
  SecretKey receive_key;
  // Bytes of one record on the wire, its length field included: the largest to send, and the
  // largest to take. Zero: the mode's default, as HandshakeOptions says. Seal ends with
  // InvalidArgument when one is below kRecordFrameMin or above kRecordFrameMax.
  uint32_t send_frame_max = 0;
  uint32_t receive_frame_max = 0;
  PeerIdentity peer;
};

class PENSTOCK_EXPORT Handshaker {
 public:
  enum class State : uint8_t { kMore, kAuthorize, kWaiting, kDone, kFailed };

  struct Progress {
    State state = State::kMore;
    // To be sent to the peer, before anything else; also when state is kFailed.
    std::string out;
    // Bytes of Step's `in` that were taken; 0 from Authorize.
    size_t consumed = 0;
    // Set when state is kFailed, and the same at every call from then on. Unauthenticated: the peer
    // has not proved who it is, or says that of us; PermissionDenied: either side's authorisation
    // refused; InvalidArgument: bytes that are no handshake of ours; ResourceExhausted: more bytes
    // than HandshakeOptions::input_max; Unavailable: a service could not be reached.
    absl::Status error;
  };

  virtual ~Handshaker() = default;

  // Goes as far as `in` allows: the bytes that were left over last time and those that came since.
  virtual Progress Step(std::string_view in) = 0;
  // Answers kAuthorize, once. A verdict that is not OK refuses the peer: the result is kFailed with
  // PermissionDenied and the verdict's message; the peer is told that it was refused, never why.
  virtual Progress Authorize(const absl::Status& verdict) = 0;

  // From kAuthorize on until TakeResult.
  virtual const PeerIdentity& peer() const = 0;
  // Once, after kDone.
  virtual HandshakeResult TakeResult() = 0;
  // The stream ended while kMore waited for bytes: the error that this handshake ends with.
  virtual absl::Status OnPeerEnd() = 0;
  // What it waits for, as in "the server's confirmation", for a driver's own errors.
  virtual std::string_view phase() const = 0;

  // `wake` runs, any number of times, when Step({}) can make progress without bytes: after
  // kWaiting, and never inside Step or Authorize. Only handshakers that speak to a service return
  // kWaiting.
  virtual void SetWake(absl::AnyInvocable<void()> wake) = 0;

  // False when Step must stay on the thread of the stream's loop, whatever SealOptions::executor
  // says, because something else of the handshake happens there between steps.
  virtual bool MayStepElsewhere() const { return true; }

  // Whether the words of a failure are understood by a peer whose own handshake is over: then the
  // connection ends in order behind them. Else it is reset, for that peer would take an orderly end
  // for one of the stream.
  virtual bool FailsWithAnAlert() const { return false; }
};

// What may differ from one connection to the next.
struct HandshakeOptions {
  // The listening side: the TLS server, the ALTS server.
  bool server = false;
  // For log and error messages only: whom the connection is with.
  std::string peer_name = {};
  // Client only. With certificates: the name or IP address that the server's certificate must
  // bear; with an ALTS service: the target name of its secure naming check. NewHandshaker says
  // InvalidArgument where nothing would check it: to a server, with a PSK or with static keys.
  std::string verify_name = {};
  // Bytes of one record on the wire, length field included, from kRecordFrameMin to
  // kRecordFrameMax: what this side would like to send (the peer's limit bounds it), and the most
  // it takes. Zero: kRecordFrameNative both ways in native mode; in gRPC mode kRecordFrameGrpc to
  // send, and kRecordFrameMax to take.
  uint32_t send_frame_max = 0;
  uint32_t receive_frame_max = 0;
  // Bytes of handshake taken from the peer before it fails with ResourceExhausted.
  size_t input_max = 64 * 1024;
  // Both ends' addresses, for handshaker services that want to know them; may be empty.
  SocketAddress local = {};
  SocketAddress peer = {};
};

// What this side proves itself with and whom it trusts: shared by any number of connections, from
// any thread, never changed once made.
class PENSTOCK_EXPORT Credentials {
 public:
  virtual ~Credentials() = default;
  // FailedPrecondition or InvalidArgument when `options` do not go with the credentials.
  virtual absl::StatusOr<std::unique_ptr<Handshaker>> NewHandshaker(
      const HandshakeOptions& options) const = 0;
  // True when a handshaker of these options does nothing before the peer's first bytes. Seal then
  // makes it when they have come, so that a peer that stays silent holds none, nor a place in a
  // SealLimiter.
  virtual bool PeerSpeaksFirst(const HandshakeOptions&) const { return false; }
};

using CredentialsPtr = std::shared_ptr<const Credentials>;

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_HANDSHAKE_H_
