#include <penstock/tls_handshake.h>

#include <memory>
#include <utility>

#include "secure/tls_context.h"
#include "secure/tls_handshaker.h"

PENSTOCK_BEGIN_NAMESPACE
namespace {

class TlsCredentials final : public Credentials {
 public:
  explicit TlsCredentials(std::unique_ptr<internal::TlsContext> context)
      : context_(std::move(context)) {}

  absl::StatusOr<std::unique_ptr<Handshaker>> NewHandshaker(
      const HandshakeOptions& options) const override {
    return internal::TlsHandshaker::Make(context_, options);
  }
  bool PeerSpeaksFirst(const HandshakeOptions& options) const override { return options.server; }

 private:
  const std::shared_ptr<const internal::TlsContext> context_;
};

absl::StatusOr<CredentialsPtr> Wrap(absl::StatusOr<std::unique_ptr<internal::TlsContext>> context) {
  if (!context.ok()) return context.status();
  return std::make_shared<const TlsCredentials>(*std::move(context));
}

}  // namespace

absl::StatusOr<CredentialsPtr> TlsCertificateCredentials(const TlsCertificateOptions& options) {
  return Wrap(internal::TlsContext::WithCertificates(options));
}

absl::StatusOr<CredentialsPtr> TlsPskCredentials(const std::vector<TlsPsk>& keys) {
  return Wrap(internal::TlsContext::WithKeys(keys));
}

PENSTOCK_END_NAMESPACE
