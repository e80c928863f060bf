#include "testing/handshake_stranger.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

void MustSucceed(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "TLS stranger: %s failed\n", what);
  ERR_print_errors_fp(stderr);
  std::abort();
}

std::shared_ptr<BIO> BioOf(const std::string& pem) {
  return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free};
}

const StrangerOptions& StrangerOf(const SSL* ssl) {
  return *static_cast<const StrangerOptions*>(SSL_get_app_data(ssl));
}

SSL_SESSION* StrangerSession(SSL* ssl) {
  constexpr unsigned char kSuite[] = {0x13, 0x01};
  const std::string& key = StrangerOf(ssl).psk_key;
  SSL_SESSION* session = SSL_SESSION_new();
  MustSucceed(SSL_SESSION_set1_master_key(
                  session, reinterpret_cast<const unsigned char*>(key.data()), key.size()) == 1 &&
                  SSL_SESSION_set_cipher(session, SSL_CIPHER_find(ssl, kSuite)) == 1 &&
                  SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1,
              "a PSK session");
  return session;
}

int StrangerOffers(SSL* ssl, const EVP_MD*, const unsigned char** id, size_t* size,
                   SSL_SESSION** session) {
  const std::string& identity = StrangerOf(ssl).psk_identity;
  *id = reinterpret_cast<const unsigned char*>(identity.data());
  *size = identity.size();
  *session = StrangerSession(ssl);
  return 1;
}

int StrangerFinds(SSL* ssl, const unsigned char* id, size_t size, SSL_SESSION** session) {
  const bool known =
      std::string_view(reinterpret_cast<const char*>(id), size) == StrangerOf(ssl).psk_identity;
  *session = known ? StrangerSession(ssl) : nullptr;
  return 1;
}

int StrangerSelects(SSL* ssl, const unsigned char** chosen, unsigned char* chosen_size,
                    const unsigned char*, unsigned, void*) {
  const std::string& alpn = StrangerOf(ssl).alpn;
  if (alpn.empty()) return SSL_TLSEXT_ERR_NOACK;
  *chosen = reinterpret_cast<const unsigned char*>(alpn.data());
  *chosen_size = static_cast<unsigned char>(alpn.size());
  return SSL_TLSEXT_ERR_OK;
}

int AnyCertificate(int, X509_STORE_CTX*) { return 1; }

// Counts NewSessionTicket messages.
void CountTickets(int write, int, int content, const void* data, size_t size, SSL*, void* count) {
  if (write == 0 && content == SSL3_RT_HANDSHAKE && size > 0 &&
      *static_cast<const unsigned char*>(data) == SSL3_MT_NEWSESSION_TICKET) {
    ++*static_cast<int*>(count);
  }
}

}  // namespace

TlsStranger::TlsStranger(const StrangerOptions& options) : options_(options) {
  context_.reset(SSL_CTX_new(TLS_method()), SSL_CTX_free);
  Configure(options);
  ssl_.reset(SSL_new(context_.get()), SSL_free);
  SSL_set_app_data(ssl_.get(), &options_);
  BIO* in = BIO_new(BIO_s_mem());
  BIO* out = BIO_new(BIO_s_mem());
  BIO_set_mem_eof_return(in, -1);
  BIO_set_mem_eof_return(out, -1);
  SSL_set_bio(ssl_.get(), in, out);
  SSL_set_msg_callback(ssl_.get(), CountTickets);
  SSL_set_msg_callback_arg(ssl_.get(), &tickets_);
  if (options.server) {
    SSL_set_session_id_context(ssl_.get(), reinterpret_cast<const unsigned char*>("s"), 1);
    SSL_set_accept_state(ssl_.get());
  } else {
    SSL_set_connect_state(ssl_.get());
  }
}

TlsStranger::~TlsStranger() = default;

void TlsStranger::Configure(const StrangerOptions& options) {
  SSL_CTX* context = context_.get();
  if (options.tls12_only) SSL_CTX_set_max_proto_version(context, TLS1_2_VERSION);
  if (!options.alpn.empty()) {
    const std::string list = static_cast<char>(options.alpn.size()) + options.alpn;
    SSL_CTX_set_alpn_protos(context, reinterpret_cast<const unsigned char*>(list.data()),
                            static_cast<unsigned>(list.size()));
  }
  SSL_CTX_set_alpn_select_cb(context, StrangerSelects, nullptr);
  if (!options.certificate.chain.empty()) {
    X509* certificate =
        PEM_read_bio_X509(BioOf(options.certificate.chain).get(), nullptr, nullptr, nullptr);
    EVP_PKEY* key =
        PEM_read_bio_PrivateKey(BioOf(options.certificate.key).get(), nullptr, nullptr, nullptr);
    MustSucceed(SSL_CTX_use_certificate(context, certificate) == 1 &&
                    SSL_CTX_use_PrivateKey(context, key) == 1,
                "a certificate");
    X509_free(certificate);
    EVP_PKEY_free(key);
  }
  if (!options.ca.empty()) {
    X509* ca = PEM_read_bio_X509(BioOf(options.ca).get(), nullptr, nullptr, nullptr);
    MustSucceed(X509_STORE_add_cert(SSL_CTX_get_cert_store(context), ca) == 1, "a root");
    X509_free(ca);
  }
  const bool asks =
      !options.server || (options.ask_certificate && !options.certificate.key.empty());
  SSL_CTX_set_verify(context, asks ? SSL_VERIFY_PEER : SSL_VERIFY_NONE,
                     options.ca.empty() ? AnyCertificate : nullptr);
  if (!options.psk_identity.empty()) {
    SSL_CTX_set_psk_use_session_callback(context, StrangerOffers);
    SSL_CTX_set_psk_find_session_callback(context, StrangerFinds);
  }
}

void TlsStranger::Give(std::string_view bytes) {
  if (!bytes.empty()) {
    BIO_write(SSL_get_rbio(ssl_.get()), bytes.data(), static_cast<int>(bytes.size()));
  }
  ERR_clear_error();
  if (!complete_) {
    complete_ = SSL_do_handshake(ssl_.get()) == 1;
    if (!complete_) return Note();
  }
  char data[4096];
  int size = 0;
  while ((size = SSL_read(ssl_.get(), data, sizeof data)) > 0) {
    received_.append(data, static_cast<size_t>(size));
  }
  Note();
}

void TlsStranger::Note() {
  const unsigned long error = ERR_peek_error();  // NOLINT: OpenSSL's type
  if (error == 0 || !refusal_.empty()) return;
  const char* reason = ERR_reason_error_string(error);
  refusal_ = reason == nullptr ? "unknown" : reason;
  ERR_clear_error();
}

std::string TlsStranger::TakeSent() {
  BIO* out = SSL_get_wbio(ssl_.get());
  std::string bytes(BIO_pending(out), '\0');
  if (!bytes.empty()) BIO_read(out, bytes.data(), static_cast<int>(bytes.size()));
  return bytes;
}

void TlsStranger::Send(std::string_view bytes) {
  MustSucceed(SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())) ==
                  static_cast<int>(bytes.size()),
              "SSL_write");
}

void TlsStranger::RequestKeyUpdate() {
  MustSucceed(SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_REQUESTED) == 1, "SSL_key_update");
}

std::string TlsStranger::Export(std::string_view context) const {
  constexpr std::string_view kLabel = "EXPERIMENTAL-penstock record v1";
  std::string keys(88, '\0');
  MustSucceed(SSL_export_keying_material(ssl_.get(), reinterpret_cast<unsigned char*>(keys.data()),
                                         keys.size(), kLabel.data(), kLabel.size(),
                                         reinterpret_cast<const unsigned char*>(context.data()),
                                         context.size(), 1) == 1,
              "the exporter");
  return keys;
}

namespace {

std::string DerOf(const X509* certificate) {
  if (certificate == nullptr) return "";
  unsigned char* data = nullptr;
  const int size = i2d_X509(certificate, &data);
  MustSucceed(size > 0, "i2d_X509");
  std::string der(reinterpret_cast<const char*>(data), static_cast<size_t>(size));
  OPENSSL_free(data);
  return der;
}

}  // namespace

std::string TlsStranger::OwnCertificate() const { return DerOf(SSL_get_certificate(ssl_.get())); }
std::string TlsStranger::PeerCertificate() const {
  return DerOf(SSL_get0_peer_certificate(ssl_.get()));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
