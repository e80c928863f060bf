#include "secure/tls_identity.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "secure/openssl_error.h"
#include "secure/tls_ptr.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

struct GeneralNamesFree {
  void operator()(GENERAL_NAMES* names) const { GENERAL_NAMES_free(names); }
};

std::string_view BytesOf(const ASN1_STRING* text) {
  return {reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
          static_cast<size_t>(ASN1_STRING_length(text))};
}

std::string IpText(std::string_view bytes) {
  if (bytes.size() != 4 && bytes.size() != 16) return "";
  char text[INET6_ADDRSTRLEN];
  return ::inet_ntop(bytes.size() == 4 ? AF_INET : AF_INET6, bytes.data(), text, sizeof(text));
}

absl::Status AddNames(const X509* certificate, PeerIdentity& peer) {
  const std::unique_ptr<GENERAL_NAMES, GeneralNamesFree> names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  ERR_clear_error();
  if (names == nullptr) return absl::OkStatus();
  for (int i = 0; i < sk_GENERAL_NAME_num(names.get()); ++i) {
    int type = 0;
    const void* value = GENERAL_NAME_get0_value(sk_GENERAL_NAME_value(names.get(), i), &type);
    if (type != GEN_DNS && type != GEN_URI && type != GEN_IPADD) continue;
    const std::string_view bytes = BytesOf(static_cast<const ASN1_STRING*>(value));
    if (type == GEN_IPADD) {
      peer.ip_addresses.push_back(IpText(bytes));
      continue;
    }
    if (bytes.find('\0') != std::string_view::npos) {
      return absl::InvalidArgumentError("a name in the peer's certificate has a NUL byte");
    }
    (type == GEN_DNS ? peer.dns_names : peer.uris).emplace_back(bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> CertificateBytes(const X509* certificate) {
  unsigned char* data = nullptr;
  const int size = certificate == nullptr ? -1 : i2d_X509(certificate, &data);
  if (size < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("encode a certificate: ", TakeOpenSslError().text));
  }
  std::string bytes(reinterpret_cast<const char*>(data), static_cast<size_t>(size));
  OPENSSL_free(data);
  return bytes;
}

std::string CertificateSubject(const X509* certificate) {
  if (certificate == nullptr) return "";
  const BioPtr text(BIO_new(BIO_s_mem()));
  if (text == nullptr ||
      X509_NAME_print_ex(text.get(), X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253) < 0) {
    ERR_clear_error();
    return "";
  }
  char* data = nullptr;
  const auto size = static_cast<size_t>(BIO_get_mem_data(text.get(), &data));
  return size == 0 ? "" : std::string(data, size);
}

absl::StatusOr<PeerIdentity> CertificateIdentity(const SSL* ssl) {
  PeerIdentity peer;
  peer.kind = PeerIdentity::Kind::kCertificate;
  const X509* leaf = SSL_get0_peer_certificate(ssl);
  // Not what the peer sent, in which anything may lie beside what leads to a root.
  const STACK_OF(X509)* verified = SSL_get0_verified_chain(ssl);
  if (leaf == nullptr || sk_X509_num(verified) < 1) {
    return absl::UnauthenticatedError("the peer's certificate was not verified");
  }
  for (int i = 0; i < sk_X509_num(verified); ++i) {
    absl::StatusOr<std::string> bytes = CertificateBytes(sk_X509_value(verified, i));
    if (!bytes.ok()) return bytes.status();
    peer.chain.push_back(*std::move(bytes));
  }
  peer.subject = CertificateSubject(leaf);
  absl::Status named = AddNames(leaf, peer);
  if (!named.ok()) return named;
  return peer;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
