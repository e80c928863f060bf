#include "testing/certificates.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

void Must(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "test certificates: %s failed\n", what);
  ERR_print_errors_fp(stderr);
  std::abort();
}

std::shared_ptr<EVP_PKEY> NewKey() {
  std::shared_ptr<EVP_PKEY> key(EVP_EC_gen("P-256"), EVP_PKEY_free);
  Must(key != nullptr, "EVP_EC_gen");
  return key;
}

std::shared_ptr<X509> NewCertificate(const std::string& name, EVP_PKEY* key, const X509* issuer,
                                     int64_t valid_from, int64_t valid_until) {
  std::shared_ptr<X509> made(X509_new(), X509_free);
  uint32_t serial = 0;
  Must(made != nullptr && RAND_bytes(reinterpret_cast<unsigned char*>(&serial), 4) == 1,
       "X509_new");
  X509_NAME* subject = X509_get_subject_name(made.get());
  Must(X509_set_version(made.get(), X509_VERSION_3) == 1 &&
           ASN1_INTEGER_set_uint64(X509_get_serialNumber(made.get()), serial) == 1 &&
           X509_gmtime_adj(X509_getm_notBefore(made.get()), valid_from) != nullptr &&
           X509_gmtime_adj(X509_getm_notAfter(made.get()), valid_until) != nullptr &&
           X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8,
                                      reinterpret_cast<const unsigned char*>(name.data()),
                                      static_cast<int>(name.size()), -1, 0) == 1 &&
           X509_set_issuer_name(made.get(), X509_get_subject_name(issuer ? issuer : made.get())) ==
               1 &&
           X509_set_pubkey(made.get(), key) == 1,
       "filling a certificate");
  return made;
}

void AddExtension(X509* certificate, const X509* issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, const_cast<X509*>(issuer), certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value);
  Must(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1, value);
  X509_EXTENSION_free(extension);
}

void AddNames(X509* certificate, const std::vector<std::string>& names) {
  if (names.empty()) return;
  GENERAL_NAMES* all = GENERAL_NAMES_new();
  for (const std::string& name : names) {
    const size_t colon = name.find(':');
    const std::string kind = name.substr(0, colon);
    std::string value = name.substr(colon + 1);
    const bool is_ip = kind == "IP";
    if (is_ip) {
      unsigned char bytes[16];
      const bool v6 = value.find(':') != std::string::npos;
      Must(inet_pton(v6 ? AF_INET6 : AF_INET, value.c_str(), bytes) == 1, "inet_pton");
      value.assign(reinterpret_cast<const char*>(bytes), v6 ? 16 : 4);
    }
    ASN1_STRING* text = is_ip ? ASN1_OCTET_STRING_new() : ASN1_IA5STRING_new();
    Must(ASN1_STRING_set(text, value.data(), static_cast<int>(value.size())) == 1, "a name");
    GENERAL_NAME* general = GENERAL_NAME_new();
    GENERAL_NAME_set0_value(general, is_ip ? GEN_IPADD : kind == "DNS" ? GEN_DNS : GEN_URI, text);
    sk_GENERAL_NAME_push(all, general);
  }
  Must(X509_add1_ext_i2d(certificate, NID_subject_alt_name, all, 0, X509V3_ADD_DEFAULT) == 1,
       "subject alternative names");
  GENERAL_NAMES_free(all);
}

template <typename Write>
std::string PemOf(const Write& write) {
  BIO* bio = BIO_new(BIO_s_mem());
  Must(bio != nullptr && write(bio) == 1, "PEM");
  char* data = nullptr;
  const auto size = static_cast<size_t>(BIO_get_mem_data(bio, &data));
  std::string pem(data, size);
  BIO_free(bio);
  return pem;
}

std::string PemOfCertificate(X509* certificate) {
  return PemOf([&](BIO* bio) { return PEM_write_bio_X509(bio, certificate); });
}

}  // namespace

TestAuthority::TestAuthority(const std::string& name) { Make(name, nullptr); }

TestAuthority::TestAuthority(const std::string& name, const TestAuthority& parent) {
  Make(name, &parent);
  chain_ = pem_ + parent.chain_;
}

void TestAuthority::Make(const std::string& name, const TestAuthority* parent) {
  key_ = NewKey();
  const X509* issuer = parent == nullptr ? nullptr : parent->certificate_.get();
  certificate_ = NewCertificate(name, key_.get(), issuer, -2 * 24 * 3600, 10 * 24 * 3600);
  if (issuer == nullptr) issuer = certificate_.get();
  AddExtension(certificate_.get(), issuer, NID_basic_constraints, "critical,CA:TRUE");
  AddExtension(certificate_.get(), issuer, NID_key_usage, "critical,keyCertSign,cRLSign");
  AddExtension(certificate_.get(), issuer, NID_subject_key_identifier, "hash");
  EVP_PKEY* signer = parent == nullptr ? key_.get() : parent->key_.get();
  Must(X509_sign(certificate_.get(), signer, EVP_sha256()) > 0, "X509_sign");
  pem_ = PemOfCertificate(certificate_.get());
}

TestCertificate TestAuthority::Issue(const CertificateRequest& request) const {
  const std::shared_ptr<EVP_PKEY> key = NewKey();
  const std::shared_ptr<X509> made = NewCertificate(
      request.common_name, key.get(), certificate_.get(), request.valid_from, request.valid_until);
  AddExtension(made.get(), certificate_.get(), NID_basic_constraints, "critical,CA:FALSE");
  AddExtension(made.get(), certificate_.get(), NID_ext_key_usage, request.usage.c_str());
  AddNames(made.get(), request.names);
  Must(X509_sign(made.get(), key_.get(), EVP_sha256()) > 0, "X509_sign");
  return {.chain = PemOfCertificate(made.get()) + chain_,
          .key = PemOf([&](BIO* bio) {
            return PEM_write_bio_PrivateKey(bio, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
          })};
}

TlsCertificateOptions TestAuthority::Options(const TestCertificate& certificate) const {
  TlsCertificateOptions options;
  options.certificate = PemSource::Text(certificate.chain);
  options.key = PemSource::Text(certificate.key);
  options.ca = PemSource::Text(pem_);
  return options;
}

CredentialsPtr TestAuthority::Credentials(const CertificateRequest& request) const {
  absl::StatusOr<CredentialsPtr> made = TlsCertificateCredentials(Options(Issue(request)));
  Must(made.ok(), "TlsCertificateCredentials");
  return *std::move(made);
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
