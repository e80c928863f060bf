#include "secure/tls_alert.h"

#include <openssl/err.h>

#include <array>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "secure/tls_notes.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

struct AlertName {
  int alert;
  std::string_view name;
};

// RFC 8446, 6 and appendix B.2.
constexpr std::array<AlertName, 27> kAlertNames = {{
    {0, "close_notify"},
    {10, "unexpected_message"},
    {20, "bad_record_mac"},
    {22, "record_overflow"},
    {40, "handshake_failure"},
    {42, "bad_certificate"},
    {43, "unsupported_certificate"},
    {44, "certificate_revoked"},
    {45, "certificate_expired"},
    {46, "certificate_unknown"},
    {47, "illegal_parameter"},
    {48, "unknown_ca"},
    {49, "access_denied"},
    {50, "decode_error"},
    {51, "decrypt_error"},
    {70, "protocol_version"},
    {71, "insufficient_security"},
    {80, "internal_error"},
    {86, "inappropriate_fallback"},
    {90, "user_canceled"},
    {109, "missing_extension"},
    {110, "unsupported_extension"},
    {112, "unrecognized_name"},
    {113, "bad_certificate_status_response"},
    {115, "unknown_psk_identity"},
    {116, "certificate_required"},
    {120, "no_application_protocol"},
}};

// Any number that is not assigned (RFC 8446, 4.2); it is never on the wire.
constexpr unsigned kTicketExtension = 0xff50;

int RefuseTicket(SSL* ssl, unsigned, unsigned, const unsigned char**, size_t*, X509*, size_t,
                 int* alert, void*) {
  *alert = TlsNotesOf(ssl).alert;
  return -1;
}

// Registered so that the extension is known; a client's ticket never carries it.
int IgnoreTicketExtension(SSL*, unsigned, unsigned, const unsigned char*, size_t, X509*, size_t,
                          int*, void*) {
  return 1;
}

}  // namespace

std::string TlsAlertText(int alert) {
  for (const AlertName& known : kAlertNames) {
    if (known.alert == alert) return absl::StrCat("alert ", alert, ", ", AbslView(known.name));
  }
  return absl::StrCat("alert ", alert);
}

absl::StatusCode TlsAlertCode(int alert, bool psk) {
  switch (alert) {
    case SSL_AD_ACCESS_DENIED:
      return absl::StatusCode::kPermissionDenied;
    case SSL_AD_HANDSHAKE_FAILURE:
    case SSL_AD_BAD_CERTIFICATE:
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
    case SSL_AD_CERTIFICATE_REVOKED:
    case SSL_AD_CERTIFICATE_EXPIRED:
    case SSL_AD_CERTIFICATE_UNKNOWN:
    case SSL_AD_UNKNOWN_CA:
    case SSL_AD_DECRYPT_ERROR:
    case SSL_AD_UNKNOWN_PSK_IDENTITY:
    case SSL_AD_CERTIFICATE_REQUIRED:
      return absl::StatusCode::kUnauthenticated;
    case SSL_AD_ILLEGAL_PARAMETER:  // OpenSSL's answer to a wrong key
      return psk ? absl::StatusCode::kUnauthenticated : absl::StatusCode::kInvalidArgument;
    case SSL_AD_CLOSE_NOTIFY:
    case SSL_AD_INTERNAL_ERROR:
    case SSL_AD_USER_CANCELLED:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInvalidArgument;
  }
}

bool EnableTlsAlerts(SSL_CTX* context) {
  return SSL_CTX_add_custom_ext(
             context, kTicketExtension, SSL_EXT_TLS1_3_NEW_SESSION_TICKET | SSL_EXT_TLS1_3_ONLY,
             RefuseTicket, nullptr, nullptr, IgnoreTicketExtension, nullptr) == 1;
}

void SendTlsAlert(SSL* server, int alert) {
  TlsNotesOf(server).alert = alert;
  if (SSL_new_session_ticket(server) == 1) SSL_do_handshake(server);
  ERR_clear_error();
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
