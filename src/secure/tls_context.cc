#include "secure/tls_context.h"

#include <openssl/err.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "secure/openssl_error.h"
#include "secure/tls_alert.h"
#include "secure/tls_hello.h"
#include "secure/tls_identity.h"
#include "secure/tls_pem.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr long kCertificateListMax = 32 * 1024;  // NOLINT: OpenSSL's type
constexpr std::string_view kSessionIdContext = "penstock";

const unsigned char* Unsigned(std::string_view bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

// ALPN's list of one: the name behind its length.
std::string AlpnList() {
  return std::string(1, static_cast<char>(kTlsAlpn.size())).append(kTlsAlpn);
}

int SelectAlpn(SSL* ssl, const unsigned char** chosen, unsigned char* chosen_size,
               const unsigned char* list, unsigned size, void*) {
  for (unsigned at = 0; at < size; at += 1 + list[at]) {
    const std::string_view name(reinterpret_cast<const char*>(list) + at + 1, list[at]);
    if (name == kTlsAlpn) {
      *chosen = list + at + 1;
      *chosen_size = list[at];
      return SSL_TLSEXT_ERR_OK;
    }
  }
  TlsNotesOf(ssl).Note(absl::InvalidArgumentError(absl::StrCat(
      "the client offers other application protocols (ALPN) than ", AbslView(kTlsAlpn))));
  return SSL_TLSEXT_ERR_ALERT_FATAL;
}

bool HasExtension(SSL* ssl, unsigned type) {
  const unsigned char* data = nullptr;
  size_t size = 0;
  return SSL_client_hello_get0_ext(ssl, type, &data, &size) == 1;
}

// OpenSSL would go on without ALPN, and without a PSK; it judges the version itself, later.
int CheckClientHello(SSL* ssl, int* alert, void*) {
  TlsNotes& notes = TlsNotesOf(ssl);
  if (!HasExtension(ssl, TLSEXT_TYPE_supported_versions)) return SSL_CLIENT_HELLO_SUCCESS;
  if (!HasExtension(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation)) {
    notes.Note(absl::InvalidArgumentError("the client offers no application protocol (ALPN)"));
    *alert = SSL_AD_NO_APPLICATION_PROTOCOL;
    return SSL_CLIENT_HELLO_ERROR;
  }
  if (TlsContext::Of(ssl).uses_psk() && !HasExtension(ssl, TLSEXT_TYPE_psk)) {
    notes.Note(absl::UnauthenticatedError("the client offers no PSK"));
    *alert = SSL_AD_MISSING_EXTENSION;
    return SSL_CLIENT_HELLO_ERROR;
  }
  return SSL_CLIENT_HELLO_SUCCESS;
}

int JudgeCertificate(int ok, X509_STORE_CTX* store) {
  auto* ssl =
      static_cast<SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
  const bool uses_psk = TlsContext::Of(ssl).uses_psk();
  if (ok == 1 && !uses_psk) return 1;
  if (uses_psk) {
    X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
    TlsNotesOf(ssl).Note(absl::UnauthenticatedError(
        "the peer fell back from the PSK to a certificate, which is never accepted"));
    return 0;
  }
  TlsNotesOf(ssl).Note(absl::UnauthenticatedError(absl::StrCat(
      "the peer's certificate '", CertificateSubject(X509_STORE_CTX_get_current_cert(store)),
      "' is refused: ", X509_verify_cert_error_string(X509_STORE_CTX_get_error(store)))));
  return 0;
}

absl::Status PrepareError() {
  return absl::InternalError(absl::StrCat("TLS context: ", TakeOpenSslError().text));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsContext>> TlsContext::WithCertificates(
    const TlsCertificateOptions& options) {
  std::unique_ptr<TlsContext> made(new TlsContext);
  absl::Status status = made->Prepare();
  SSL_CTX* context = made->context_.get();
  if (status.ok()) status = UseCertificateChain(context, options.certificate);
  if (status.ok()) status = UsePrivateKey(context, options.key);
  if (status.ok()) status = TrustRoots(context, options.ca);
  if (!status.ok()) return status;
  made->accept_any_server_name_ = options.unsafe_accept_any_server_name;
  return made;
}

absl::StatusOr<std::unique_ptr<TlsContext>> TlsContext::WithKeys(const std::vector<TlsPsk>& keys) {
  absl::StatusOr<TlsKeyTable> table = MakeKeyTable(keys);
  if (!table.ok()) return table.status();
  std::unique_ptr<TlsContext> made(new TlsContext);
  absl::Status status = made->Prepare();
  if (!status.ok()) return status;
  UseKeys(made->context_.get());
  made->keys_ = *std::move(table);
  made->client_identity_ = keys.front().identity;
  return made;
}

absl::Status TlsContext::Prepare() {
  ERR_clear_error();
  context_.reset(SSL_CTX_new(TLS_method()));
  SSL_CTX* context = context_.get();
  const std::string alpn = AlpnList();
  if (context == nullptr || SSL_CTX_set_app_data(context, this) != 1 ||
      SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) != 1 ||
      SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") != 1 ||
      SSL_CTX_set1_groups_list(context, "X25519:P-256") != 1 ||
      SSL_CTX_set_num_tickets(context, 0) != 1 || SSL_CTX_set_max_early_data(context, 0) != 1 ||
      SSL_CTX_set_recv_max_early_data(context, 0) != 1 ||
      SSL_CTX_set_alpn_protos(context, Unsigned(alpn), alpn.size()) != 0 ||
      !EnableTlsAlerts(context)) {
    return PrepareError();
  }
  SSL_CTX_set_alpn_select_cb(context, SelectAlpn, nullptr);
  SSL_CTX_set_client_hello_cb(context, CheckClientHello, nullptr);
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, JudgeCertificate);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context, SSL_OP_NO_TICKET);
  SSL_CTX_set_max_cert_list(context, kCertificateListMax);
  // The certificates given are sent, and not those of the roots.
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_NO_AUTO_CHAIN);
  // Bytes behind the last TLS record must stay where they can be given back.
  SSL_CTX_set_read_ahead(context, 0);
  return absl::OkStatus();
}

absl::StatusOr<SslPtr> TlsContext::NewSsl(const HandshakeOptions& options, TlsNotes* notes) const {
  ERR_clear_error();
  SslPtr ssl(SSL_new(context_.get()));
  BioPtr in(BIO_new(BIO_s_mem()));
  BioPtr out(BIO_new(BIO_s_mem()));
  if (ssl == nullptr || in == nullptr || out == nullptr || !AttachTlsNotes(ssl.get(), notes)) {
    return absl::ResourceExhaustedError(absl::StrCat("TLS: ", TakeOpenSslError().text));
  }
  // An empty BIO means "not yet", never "the end".
  BIO_set_mem_eof_return(in.get(), -1);
  BIO_set_mem_eof_return(out.get(), -1);
  SSL_set_bio(ssl.get(), in.release(), out.release());
  if (options.server) {
    if (!options.verify_name.empty()) {
      return absl::InvalidArgumentError(
          "TLS server: a client's certificate is not checked for a name "
          "(HandshakeOptions::verify_name); SealOptions::authorize decides");
    }
    // Without it a server that may ask for certificates fails to accept a PSK. A client must have
    // none: it would take the server's acceptance for a session of another context.
    if (SSL_set_session_id_context(ssl.get(), Unsigned(kSessionIdContext),
                                   kSessionIdContext.size()) != 1) {
      return PrepareError();
    }
    SSL_set_accept_state(ssl.get());
    return ssl;
  }
  SSL_set_connect_state(ssl.get());
  absl::Status named = SetServerName(ssl.get(), options.verify_name);
  if (!named.ok()) return named;
  return ssl;
}

absl::Status TlsContext::SetServerName(SSL* ssl, const std::string& name) const {
  if (uses_psk()) {
    if (name.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("TLS with a PSK proves no server name: none may be given");
  }
  if (name.empty()) {
    if (accept_any_server_name_) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "TLS client: no server name to verify was given (HandshakeOptions::verify_name)");
  }
  // OpenSSL takes a leading dot for "any name below".
  if (name.front() == '.' || name.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError("TLS client: the server name to verify is no name");
  }
  X509_VERIFY_PARAM* verify = SSL_get0_param(ssl);
  if (X509_VERIFY_PARAM_set1_ip_asc(verify, name.c_str()) == 1) return absl::OkStatus();
  ERR_clear_error();
  SSL_set_hostflags(ssl,
                    X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
  if (SSL_set1_host(ssl, name.c_str()) != 1 || SSL_set_tlsext_host_name(ssl, name.c_str()) != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("TLS client: the server name to verify: ", TakeOpenSslError().text));
  }
  return absl::OkStatus();
}

const SecretKey* TlsContext::FindKey(std::string_view identity) const {
  const auto found = keys_.find(std::string(identity));
  return found == keys_.end() ? nullptr : &found->second;
}

const TlsContext& TlsContext::Of(const SSL* ssl) {
  return *static_cast<const TlsContext*>(SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl)));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
