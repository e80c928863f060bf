#include "secure/tls_handshaker.h"

#include <openssl/err.h>
#include <penstock/record_protocol.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "secure/openssl_error.h"
#include "secure/tls_alert.h"
#include "secure/tls_identity.h"
#include "secure/wipe.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Failures of the peer's proof; whatever else OpenSSL finds wrong are bytes that it cannot take.
bool IsFailedProof(int reason) {
  switch (reason) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED:
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
    case SSL_R_BINDER_DOES_NOT_VERIFY:
    case SSL_R_BAD_SIGNATURE:
    case SSL_R_DIGEST_CHECK_FAILED:
    case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
      return true;
    default:
      return false;
  }
}

std::string DrainTlsOutput(SSL* ssl) {
  BIO* output = SSL_get_wbio(ssl);
  std::string bytes(BIO_pending(output), '\0');
  if (!bytes.empty()) BIO_read(output, bytes.data(), static_cast<int>(bytes.size()));
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Handshaker>> TlsHandshaker::Make(
    std::shared_ptr<const TlsContext> context, const HandshakeOptions& options) {
  const absl::StatusOr<FrameSizes> frames = ChooseFrameSizes(RecordMode::kNative, options);
  if (!frames.ok()) return frames.status();
  std::unique_ptr<TlsHandshaker> made(new TlsHandshaker(std::move(context), options, *frames));
  absl::StatusOr<SslPtr> ssl = made->context_->NewSsl(options, &made->notes_);
  if (!ssl.ok()) return ssl.status();
  made->ssl_ = *std::move(ssl);
  return made;
}

Handshaker::Progress TlsHandshaker::Step(std::string_view in) {
  if (phase_ == Phase::kVerdict || phase_ == Phase::kDone || phase_ == Phase::kFailed) {
    return Report(0);
  }
  ERR_clear_error();
  BIO* input = SSL_get_rbio(ssl_.get());
  const std::string_view given = in.substr(0, options_.input_max - taken_);
  if (!given.empty() && BIO_write(input, given.data(), static_cast<int>(given.size())) !=
                            static_cast<int>(given.size())) {
    Fail(absl::ResourceExhaustedError("no memory for the peer's bytes"));
    return Report(0);
  }
  BIO_up_ref(input);  // it outlives the SSL, which a failure or the end frees
  const BioPtr held(input);
  bool go_on = true;
  while (go_on) {
    if (phase_ == Phase::kTls) {
      go_on = AdvanceTls();
    } else if (phase_ == Phase::kHello) {
      go_on = AdvanceHello();
    } else {
      go_on = false;
    }
  }
  const size_t consumed = given.size() - BIO_pending(input);
  BIO_reset(input);
  taken_ += consumed;
  const bool waits = phase_ == Phase::kTls || phase_ == Phase::kHello;
  if (waits && given.size() < in.size()) {
    Fail(absl::ResourceExhaustedError(
        absl::StrCat("it takes more than ", options_.input_max, " bytes from the peer")));
  }
  return Report(consumed);
}

bool TlsHandshaker::AdvanceTls() {
  const int result = SSL_do_handshake(ssl_.get());
  if (result == 1) {
    OnTlsDone();
    return true;
  }
  if (SSL_get_error(ssl_.get(), result) != SSL_ERROR_WANT_READ) Fail(TlsError(result));
  return false;
}

void TlsHandshaker::OnTlsDone() {
  absl::Status status = CheckSession();
  if (status.ok()) status = Identify();
  if (!status.ok()) return FailWithAlert(std::move(status), SSL_AD_HANDSHAKE_FAILURE);
  // The client decides before its hello, the server when it has one to answer.
  phase_ = options_.server ? Phase::kHello : Phase::kVerdict;
}

// What the settings promise, asserted of this very connection.
absl::Status TlsHandshaker::CheckSession() const {
  const unsigned char* alpn = nullptr;
  unsigned alpn_size = 0;
  SSL_get0_alpn_selected(ssl_.get(), &alpn, &alpn_size);
  if (std::string_view(reinterpret_cast<const char*>(alpn), alpn_size) != kTlsAlpn) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the peer did not agree on the application protocol (ALPN) ", AbslView(kTlsAlpn)));
  }
  if (SSL_version(ssl_.get()) != TLS1_3_VERSION) {
    return absl::InvalidArgumentError("the peer did not agree on TLS 1.3");
  }
  if ((SSL_session_reused(ssl_.get()) == 1) != context_->uses_psk()) {
    return absl::UnauthenticatedError(context_->uses_psk()
                                          ? "the peer did not accept the PSK"
                                          : "the peer resumed a session, which none was kept of");
  }
  if (!context_->uses_psk() && SSL_get_verify_result(ssl_.get()) != X509_V_OK) {
    return absl::UnauthenticatedError("the peer's certificate was not verified");
  }
  if (SSL_get_read_ahead(ssl_.get()) != 0) {
    return absl::InternalError("OpenSSL reads ahead and may keep bytes of the first record");
  }
  return absl::OkStatus();
}

absl::Status TlsHandshaker::Identify() {
  if (context_->uses_psk()) {
    result_.peer.kind = PeerIdentity::Kind::kPsk;
    result_.peer.psk_identity = notes_.psk_identity;
  } else {
    absl::StatusOr<PeerIdentity> peer = CertificateIdentity(ssl_.get());
    if (!peer.ok()) return peer.status();
    result_.peer = *std::move(peer);
  }
  result_.peer.application_protocol = kTlsAlpn;
  return absl::OkStatus();
}

bool TlsHandshaker::AdvanceHello() {
  std::array<char, kTlsHelloSize + 1> message;  // one more, to see that it is too long
  const int size = SSL_read(ssl_.get(), message.data(), message.size());
  if (size <= 0) {
    if (SSL_get_error(ssl_.get(), size) != SSL_ERROR_WANT_READ) Fail(TlsError(size));
    return false;
  }
  if (SSL_has_pending(ssl_.get()) != 0) {
    FailWithAlert(absl::InvalidArgumentError("more than a hello in one TLS record"),
                  SSL_AD_DECODE_ERROR);
    return false;
  }
  OnHello({message.data(), static_cast<size_t>(size)});
  return false;
}

void TlsHandshaker::OnHello(std::string_view message) {
  const absl::StatusOr<TlsHello> hello = DecodeTlsHello(message);
  if (!hello.ok()) return FailWithAlert(hello.status(), SSL_AD_DECODE_ERROR);
  result_.send_frame_max = std::min(frames_.send_max, hello->receive_frame_max);
  result_.receive_frame_max = frames_.receive_max;
  if (!options_.server) return OnConfirmation(*hello, message);
  if (hello->kind == TlsHello::Kind::kRefuse) {
    return Fail(absl::PermissionDeniedError("the client's authorisation refuses this server"));
  }
  if (hello->kind != TlsHello::Kind::kHello) {
    return FailWithAlert(absl::InvalidArgumentError("the client confirms instead of asking"),
                         SSL_AD_UNEXPECTED_MESSAGE);
  }
  hello_ = message;
  phase_ = Phase::kVerdict;
}

void TlsHandshaker::OnConfirmation(const TlsHello& confirm, std::string_view message) {
  if (confirm.kind != TlsHello::Kind::kConfirm) {
    return Fail(absl::InvalidArgumentError("the server asks instead of confirming"));
  }
  if (confirm.flags != 0) {
    return Fail(absl::InvalidArgumentError("the server confirms flags that were not asked for"));
  }
  confirm_ = message;
  Finish();
}

Handshaker::Progress TlsHandshaker::Authorize(const absl::Status& verdict) {
  if (phase_ != Phase::kVerdict) return Report(0);
  ERR_clear_error();
  if (!verdict.ok()) {
    Refuse(verdict);
  } else if (options_.server) {
    Confirm();
  } else {
    absl::Status sent = SendHello(TlsHello::Kind::kHello, hello_);
    if (sent.ok()) {
      phase_ = Phase::kHello;
    } else {
      Fail(std::move(sent));
    }
  }
  return Report(0);
}

void TlsHandshaker::Refuse(const absl::Status& verdict) {
  absl::Status error = absl::PermissionDeniedError(absl::StrCat(
      "this side's authorisation refuses ", result_.peer.ToString(), ": ", verdict.message()));
  if (options_.server) return FailWithAlert(std::move(error), SSL_AD_ACCESS_DENIED);
  std::string refusal;
  if (SendHello(TlsHello::Kind::kRefuse, refusal).ok()) SSL_shutdown(ssl_.get());
  Fail(std::move(error));
}

void TlsHandshaker::Confirm() {
  absl::Status sent = SendHello(TlsHello::Kind::kConfirm, confirm_);
  if (!sent.ok()) return Fail(std::move(sent));
  Finish();
}

absl::Status TlsHandshaker::SendHello(TlsHello::Kind kind, std::string& kept) {
  kept = EncodeTlsHello({.kind = kind, .receive_frame_max = frames_.receive_max});
  const int result = SSL_write(ssl_.get(), kept.data(), static_cast<int>(kept.size()));
  if (result != static_cast<int>(kept.size())) return TlsError(result);
  return absl::OkStatus();
}

void TlsHandshaker::Finish() {
  absl::Status derived = DeriveKeys();
  if (!derived.ok()) return Fail(std::move(derived));
  out_ += DrainTlsOutput(ssl_.get());
  ssl_.reset();
  phase_ = Phase::kDone;
}

absl::Status TlsHandshaker::DeriveKeys() {
  std::string own = notes_.psk_identity;
  if (!context_->uses_psk()) {
    absl::StatusOr<std::string> bytes = CertificateBytes(SSL_get_certificate(ssl_.get()));
    if (!bytes.ok()) return bytes.status();
    own = *std::move(bytes);
  }
  const std::string& peers = context_->uses_psk() ? notes_.psk_identity : result_.peer.chain[0];
  const absl::StatusOr<Sha256Digest> binding =
      TlsSwitchContext({.server = options_.server ? own : peers,
                        .client = options_.server ? peers : own,
                        .alpn = result_.peer.application_protocol,
                        .hello = hello_,
                        .confirm = confirm_});
  if (!binding.ok()) return binding.status();

  const size_t size = RecordKeySize(RecordProtocol::kGcmAes128Rekey);
  std::array<unsigned char, 88> keys;
  const bool exported =
      SSL_export_keying_material(
          ssl_.get(), keys.data(), keys.size(), kTlsExporterLabel.data(), kTlsExporterLabel.size(),
          reinterpret_cast<const unsigned char*>(binding->data()), binding->size(), 1) == 1;
  const std::string_view bytes(reinterpret_cast<const char*>(keys.data()), keys.size());
  const SecretKey to_server(bytes.substr(0, size));
  const SecretKey to_client(bytes.substr(size));
  WipeSecret(keys.data(), keys.size());
  if (!exported) return absl::InternalError(absl::StrCat("export: ", TakeOpenSslError().text));
  result_.server = options_.server;
  result_.send_key = options_.server ? to_client : to_server;
  result_.receive_key = options_.server ? to_server : to_client;
  return absl::OkStatus();
}

absl::Status TlsHandshaker::TlsError(int result) {
  const bool closed = SSL_get_error(ssl_.get(), result) == SSL_ERROR_ZERO_RETURN;
  const OpenSslError error = TakeOpenSslError();
  if (!notes_.cause.ok()) return notes_.cause;
  if (closed) return absl::DataLossError("the peer closed TLS in the middle of the handshake");
  if (error.library == ERR_LIB_SSL && error.reason > SSL_AD_REASON_OFFSET &&
      error.reason < SSL_AD_REASON_OFFSET + 256) {
    const int alert = error.reason - SSL_AD_REASON_OFFSET;
    return absl::Status(TlsAlertCode(alert, context_->uses_psk()),
                        absl::StrCat("the peer refuses: ", TlsAlertText(alert)));
  }
  if (error.reason == ERR_R_MALLOC_FAILURE) return absl::ResourceExhaustedError(error.text);
  if (error.library == ERR_LIB_SSL && IsFailedProof(error.reason)) {
    return absl::UnauthenticatedError(error.text);
  }
  return absl::InvalidArgumentError(error.text);
}

void TlsHandshaker::FailWithAlert(absl::Status error, int alert) {
  if (options_.server) {
    SendTlsAlert(ssl_.get(), alert);
  } else if (hello_
                 .empty()) {  // later the server may have switched, and would take it for a record
    SSL_shutdown(ssl_.get());
  }
  Fail(std::move(error));
}

void TlsHandshaker::Fail(absl::Status error) {
  error_ = Describe(error);
  out_ += DrainTlsOutput(ssl_.get());
  ssl_.reset();
  ERR_clear_error();
  phase_ = Phase::kFailed;
}

absl::Status TlsHandshaker::OnPeerEnd() {
  if (phase_ != Phase::kFailed && phase_ != Phase::kDone) {
    Fail(absl::DataLossError(
        absl::StrCat("the peer ended the stream before ", AbslView(phase()), " was complete")));
  }
  return error_;
}

std::string_view TlsHandshaker::phase() const {
  switch (phase_) {
    case Phase::kTls:
      return options_.server ? "the client's TLS handshake" : "the server's TLS handshake";
    case Phase::kVerdict:
      return "this side's authorisation";
    case Phase::kHello:
      return options_.server ? "the client's hello" : "the server's confirmation";
    case Phase::kDone:
    case Phase::kFailed:
      break;
  }
  return "nothing";
}

absl::Status TlsHandshaker::Describe(const absl::Status& error) const {
  return absl::Status(
      error.code(),
      absl::StrCat("TLS handshake", options_.peer_name.empty() ? "" : " with ", options_.peer_name,
                   options_.server ? " (server)" : " (client)", ": ", error.message()));
}

Handshaker::Progress TlsHandshaker::Report(size_t consumed) {
  Progress progress;
  if (ssl_ != nullptr) out_ += DrainTlsOutput(ssl_.get());
  progress.out = std::exchange(out_, {});
  progress.consumed = consumed;
  switch (phase_) {
    case Phase::kTls:
    case Phase::kHello:
      progress.state = State::kMore;
      break;
    case Phase::kVerdict:
      progress.state = State::kAuthorize;
      break;
    case Phase::kDone:
      progress.state = State::kDone;
      break;
    case Phase::kFailed:
      progress.state = State::kFailed;
      progress.error = error_;
      break;
  }
  return progress;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
