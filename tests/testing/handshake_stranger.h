// A TLS peer made from OpenSSL alone, with whatever settings a test wants: strangers that a
// Handshaker must refuse, and a second implementation of the switch to compare keys with.
//
// Owns its SSL_CTX and SSL, over memory BIOs. Single-threaded; failures to set up abort.
#ifndef PENSTOCK_TESTS_TESTING_HANDSHAKE_STRANGER_H_
#define PENSTOCK_TESTS_TESTING_HANDSHAKE_STRANGER_H_

#include <penstock/export.h>

#include <memory>
#include <string>
#include <string_view>

#include "testing/certificates.h"

struct ssl_ctx_st;
struct ssl_st;

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

struct StrangerOptions {
  bool server = false;
  bool tls12_only = false;
  // ALPN's name; none when empty.
  std::string alpn = "penstock/1/ALTSRP_GCM_AES128_REKEY";
  // No certificate when empty; a server then asks for none either.
  TestCertificate certificate = {};
  // PEM. Takes any certificate when empty.
  std::string ca = {};
  // A client offers it, a server looks it up; none when empty.
  std::string psk_identity = {};
  std::string psk_key = {};
  // A server asks for a certificate.
  bool ask_certificate = true;
};

class TlsStranger {
 public:
  explicit TlsStranger(const StrangerOptions& options);
  ~TlsStranger();

  // Goes on with the handshake.
  void Give(std::string_view bytes);
  std::string TakeSent();
  // TLS says that the handshake is complete.
  bool complete() const { return complete_; }
  // The first alert that came, as OpenSSL puts it ("tlsv1 alert access denied"); empty before.
  const std::string& refusal() const { return refusal_; }
  // Application bytes received so far.
  const std::string& received() const { return received_; }
  int tickets() const { return tickets_; }

  // Application bytes in a TLS record of their own.
  void Send(std::string_view bytes);
  void RequestKeyUpdate();
  // 88 bytes of Penstock's exporter.
  std::string Export(std::string_view context) const;
  // DER of the certificates in use, empty when there is none.
  std::string OwnCertificate() const;
  std::string PeerCertificate() const;

 private:
  void Configure(const StrangerOptions& options);
  void Note();

  StrangerOptions options_;
  std::shared_ptr<ssl_ctx_st> context_;
  std::shared_ptr<ssl_st> ssl_;
  bool complete_ = false;
  std::string refusal_;
  std::string received_;
  int tickets_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_HANDSHAKE_STRANGER_H_
