#include "secure/tls_pem.h"

#include <openssl/err.h>
#include <openssl/pem.h>

#include <cerrno>
#include <cstdio>
#include <functional>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/error.h"
#include "secure/openssl_error.h"
#include "secure/tls_ptr.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

std::string PartName(std::string_view part, const PemSource& source) {
  return absl::StrCat("TLS ", AbslView(part), source.is_file() ? " from " : " from text",
                      source.is_file() ? source.text() : "");
}

absl::Status PemError(std::string_view part, const PemSource& source, std::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(PartName(part, source), ": ", AbslView(reason)));
}

absl::StatusOr<BioPtr> OpenPem(std::string_view part, const PemSource& source) {
  if (source.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("TLS ", AbslView(part), ": none was given"));
  }
  ERR_clear_error();
  errno = 0;
  BioPtr bio(source.is_file()
                 ? BIO_new_file(source.text().c_str(), "r")
                 : BIO_new_mem_buf(source.text().data(), static_cast<int>(source.text().size())));
  if (bio == nullptr) {
    const int error = errno;
    ERR_clear_error();
    if (error == ENOENT) {
      return absl::NotFoundError(absl::StrCat(PartName(part, source), ": ", ErrnoText(error)));
    }
    return ErrnoStatus(error == 0 ? ENOMEM : error, PartName(part, source));
  }
  // A key may lie in any of these files: no copy of it in a buffer that is freed unwiped.
  if (FILE* file = nullptr; source.is_file() && BIO_get_fp(bio.get(), &file) == 1) {
    setvbuf(file, nullptr, _IONBF, 0);
  }
  return bio;
}

// Reads every certificate of `source`; each is given to `use`, which keeps a reference of its own.
absl::Status EachCertificate(std::string_view part, const PemSource& source,
                             const std::function<bool(X509*, bool first)>& use) {
  absl::StatusOr<BioPtr> bio = OpenPem(part, source);
  if (!bio.ok()) return bio.status();
  for (bool first = true;; first = false) {
    const X509Ptr certificate(PEM_read_bio_X509(bio->get(), nullptr, nullptr, nullptr));
    if (certificate == nullptr) {
      const unsigned long error = ERR_peek_last_error();  // NOLINT: OpenSSL's type
      const bool at_end =
          ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE;
      const std::string text = TakeOpenSslError().text;
      if (!at_end) return PemError(part, source, text);
      if (first) return PemError(part, source, "holds no certificate");
      return absl::OkStatus();
    }
    if (!use(certificate.get(), first)) return PemError(part, source, TakeOpenSslError().text);
  }
}

// Without it OpenSSL would ask for a passphrase at the terminal.
int NoPassphrase(char*, int, int, void*) { return -1; }

}  // namespace

absl::Status UseCertificateChain(SSL_CTX* context, const PemSource& source) {
  return EachCertificate("certificate", source, [&](X509* certificate, bool first) {
    return first ? SSL_CTX_use_certificate(context, certificate) == 1
                 : SSL_CTX_add1_chain_cert(context, certificate) == 1;
  });
}

absl::Status UsePrivateKey(SSL_CTX* context, const PemSource& source) {
  absl::StatusOr<BioPtr> bio = OpenPem("key", source);
  if (!bio.ok()) return bio.status();
  const KeyPtr key(PEM_read_bio_PrivateKey(bio->get(), nullptr, NoPassphrase, nullptr));
  if (key == nullptr) return PemError("key", source, TakeOpenSslError().text);
  if (SSL_CTX_use_PrivateKey(context, key.get()) != 1 || SSL_CTX_check_private_key(context) != 1) {
    return PemError("key", source, TakeOpenSslError().text);
  }
  return absl::OkStatus();
}

absl::Status TrustRoots(SSL_CTX* context, const PemSource& source) {
  return EachCertificate("ca", source, [&](X509* certificate, bool) {
    return X509_STORE_add_cert(SSL_CTX_get_cert_store(context), certificate) == 1;
  });
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
