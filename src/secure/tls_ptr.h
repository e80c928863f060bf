// Owners of OpenSSL's objects.
#ifndef PENSTOCK_SECURE_TLS_PTR_H_
#define PENSTOCK_SECURE_TLS_PTR_H_

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <penstock/export.h>

#include <memory>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct TlsFree {
  void operator()(SSL_CTX* context) const { SSL_CTX_free(context); }
  void operator()(SSL* ssl) const { SSL_free(ssl); }
  void operator()(SSL_SESSION* session) const { SSL_SESSION_free(session); }
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
};

using SslContextPtr = std::unique_ptr<SSL_CTX, TlsFree>;
using SslPtr = std::unique_ptr<SSL, TlsFree>;
using SslSessionPtr = std::unique_ptr<SSL_SESSION, TlsFree>;
using BioPtr = std::unique_ptr<BIO, TlsFree>;
using X509Ptr = std::unique_ptr<X509, TlsFree>;
using KeyPtr = std::unique_ptr<EVP_PKEY, TlsFree>;

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_TLS_PTR_H_
