// Throw-away authorities and certificates for tests, made by OpenSSL in memory.
//
// An authority owns its key. Failures abort: there is nothing that a test could do about them.
#ifndef PENSTOCK_TESTS_TESTING_CERTIFICATES_H_
#define PENSTOCK_TESTS_TESTING_CERTIFICATES_H_

#include <penstock/export.h>
#include <penstock/tls_handshake.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct evp_pkey_st;
struct x509_st;

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// PEM.
struct TestCertificate {
  std::string chain = {};
  std::string key = {};
};

struct CertificateRequest {
  std::string common_name = "peer";
  // "DNS:name", "URI:uri", "IP:address"; any bytes after the first two.
  std::vector<std::string> names = {};
  // Seconds from now.
  int64_t valid_from = -3600;
  int64_t valid_until = 24 * 3600;
  // X.509 extended key usage: as OpenSSL spells it.
  std::string usage = "serverAuth,clientAuth";
};

class TestAuthority {
 public:
  explicit TestAuthority(const std::string& name = "Penstock test CA");
  // One that `parent` vouches for; what it issues comes with its own certificate behind.
  TestAuthority(const std::string& name, const TestAuthority& parent);

  const std::string& pem() const { return pem_; }
  TestCertificate Issue(const CertificateRequest& request) const;

  // Credentials of one peer, which trusts this authority.
  TlsCertificateOptions Options(const TestCertificate& certificate) const;
  CredentialsPtr Credentials(const CertificateRequest& request) const;

 private:
  void Make(const std::string& name, const TestAuthority* parent);

  std::shared_ptr<evp_pkey_st> key_;
  std::shared_ptr<x509_st> certificate_;
  std::string pem_;
  std::string chain_;  // what goes behind an issued certificate
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_CERTIFICATES_H_
