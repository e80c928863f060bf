// TLS alerts (RFC 8446, 6): their names, what one from the peer means for the handshake, and how
// this side sends one of its choice.
//
// Stateless; any thread.
#ifndef PENSTOCK_SECURE_TLS_ALERT_H_
#define PENSTOCK_SECURE_TLS_ALERT_H_

#include <openssl/ssl.h>
#include <penstock/export.h>

#include <string>

#include "absl/status/status.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// "alert 49, access_denied".
std::string TlsAlertText(int alert);

// PermissionDenied for access_denied; Unauthenticated for those that doubt this side's proof (with
// a PSK, whatever refuses the first hello); Unavailable when the peer gives up for reasons of its
// own; InvalidArgument for the rest: the peers do not speak alike.
absl::StatusCode TlsAlertCode(int alert, bool psk);

// Lets servers made from `context` send alerts of their choice.
bool EnableTlsAlerts(SSL_CTX* context);

// Puts `alert` in the output of a server whose handshake is complete, and ends its TLS connection.
// OpenSSL has no call for this; but an extension of a session ticket may refuse by an alert of its
// choice, and session tickets exist here for nothing else: the extension always refuses.
void SendTlsAlert(SSL* server, int alert);

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_TLS_ALERT_H_
