#include "common/sealing.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/program.h"

#ifndef PENSTOCK_NO_SECURE
#include <penstock/coro_seal.h>
#include <penstock/static_key.h>
#include <penstock/tls_handshake.h>
#endif

ABSL_FLAG(std::string, seal, "none", "none, tls, psk or static");
ABSL_FLAG(std::string, cert, "", "tls: PEM file with this side's certificate (and its chain)");
ABSL_FLAG(std::string, key, "", "tls: PEM file with its private key");
ABSL_FLAG(std::string, ca, "", "tls: PEM file with the roots that the peer must lead to");
ABSL_FLAG(std::string, verify_name, "",
          "tls, when connecting: name or IP address that the server's certificate must bear");
ABSL_FLAG(std::string, psk_file, "", "psk: file with the shared key, as hexadecimal digits");
ABSL_FLAG(std::string, psk_identity, "penstock", "psk: name of the shared key");
ABSL_FLAG(std::string, key_hex, "", "static: the key, as hexadecimal digits; for one connection");
ABSL_FLAG(std::string, record_protocol, "ALTSRP_GCM_AES128_REKEY",
          "static: ALTSRP_GCM_AES128_REKEY or ALTSRP_GCM_AES128");
ABSL_FLAG(
    bool, unsafe_key_reuse, false,
    "static: take --key-hex for every connection, which gives both plaintexts away to whoever "
    "records two of them; for tests");
ABSL_FLAG(int64_t, max_frame, 0,
          "largest record, in bytes on the wire: static: that this side sends; tls, psk: of either "
          "side, the smaller of what the two say; 0: the default");

namespace examples {

using penstock::StreamPtr;

namespace {

// Each flag that one way of sealing takes.
constexpr std::pair<const char*, const char*> kFlagsOf[] = {
    {"tls", "cert"},
    {"tls", "key"},
    {"tls", "ca"},
    {"tls", "verify_name"},
    {"psk", "psk_file"},
    {"psk", "psk_identity"},
    {"static", "key_hex"},
    {"static", "record_protocol"},
    {"static", "unsafe_key_reuse"},
};

// Whoever gives a key wants it used: plain streams would be served without a word.
void RefuseFlagsOfOthers() {
  const std::string chosen = absl::GetFlag(FLAGS_seal);
  for (const auto& [seal, name] : kFlagsOf) {
    const absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
    // A file of flags (--flagfile) does not show on the command line.
    const bool given = IsFlagGiven(name) || flag->CurrentValue() != flag->DefaultValue();
    if (seal == chosen || !given) continue;
    Fail(absl::StrCat("--", absl::StrReplaceAll(name, {{"_", "-"}}), " goes with --seal=", seal,
                      ", not with --seal=", chosen));
  }
}

}  // namespace

#ifdef PENSTOCK_NO_SECURE

struct Sealing::Choice {};

Sealing Sealing::FromFlags(bool) {
  RefuseFlagsOfOthers();
  if (absl::GetFlag(FLAGS_seal) != "none") {
    Fail("--seal: this Penstock was built without sealed streams; none is accepted");
  }
  return Sealing();
}

bool Sealing::serves_one() const { return false; }

void Sealing::Apply(StreamPtr stream, Done done) const { std::move(done)(std::move(stream)); }

penstock::coro::Task<absl::StatusOr<StreamPtr>> Sealing::Await(const Sealing&, StreamPtr stream) {
  co_return std::move(stream);
}

#else

struct Sealing::Choice {
  penstock::CredentialsPtr credentials;
  penstock::HandshakeOptions handshake;
  penstock::SealOptions options;
};

namespace {

using penstock::CredentialsPtr;
using penstock::SecretKey;

// A crowd that arrives together waits its turn: a handshake costs a millisecond and some 35 KB.
constexpr uint32_t kHandshakesMax = 64;
constexpr uint32_t kHandshakesWaitingMax = 1 << 16;
// The last of such a crowd.
constexpr absl::Duration kHandshakePatience = absl::Seconds(60);

std::string FlagOrFail(const char* name, const absl::Flag<std::string>& flag) {
  std::string value = absl::GetFlag(flag);
  if (value.empty()) {
    Fail(absl::StrCat("--seal=", absl::GetFlag(FLAGS_seal), " needs --", name));
  }
  return value;
}

template <typename T>
T ValueOrFail(const char* flag, absl::StatusOr<T> value) {
  if (!value.ok()) Fail(absl::StrCat("--", flag, ": ", value.status().message()));
  return *std::move(value);
}

CredentialsPtr Certificates(bool listens) {
  penstock::TlsCertificateOptions options;
  options.certificate = penstock::PemSource::File(FlagOrFail("cert", FLAGS_cert));
  options.key = penstock::PemSource::File(FlagOrFail("key", FLAGS_key));
  options.ca = penstock::PemSource::File(FlagOrFail("ca", FLAGS_ca));
  if (!listens) {
    FlagOrFail("verify-name", FLAGS_verify_name);
  } else if (!absl::GetFlag(FLAGS_verify_name).empty()) {
    Fail(
        "--verify-name: names the server that a connecting side expects; a listening side asks "
        "for no name, --ca says whom it lets in");
  }
  return ValueOrFail("seal=tls", penstock::TlsCertificateCredentials(options));
}

CredentialsPtr SharedKey() {
  penstock::TlsPsk psk;
  psk.identity = FlagOrFail("psk-identity", FLAGS_psk_identity);
  psk.key = ValueOrFail("psk-file", SecretKey::FromHexFile(FlagOrFail("psk-file", FLAGS_psk_file)));
  return ValueOrFail("seal=psk", penstock::TlsPskCredentials({psk}));
}

CredentialsPtr StaticKey() {
  penstock::StaticKeyOptions options;
  options.protocol = ValueOrFail(
      "record-protocol", penstock::ParseRecordProtocol(absl::GetFlag(FLAGS_record_protocol)));
  const SecretKey key =
      ValueOrFail("key-hex", SecretKey::FromHex(FlagOrFail("key-hex", FLAGS_key_hex)));
  if (key.size() != penstock::RecordKeySize(options.protocol)) {
    Fail(absl::StrCat("--key-hex: ", key.size(), " bytes, ", absl::GetFlag(FLAGS_record_protocol),
                      " takes ", penstock::RecordKeySize(options.protocol)));
  }
  options.key = [key] { return key; };
  static const auto used = std::make_shared<penstock::UsedKeys>();
  options.used = used;
  options.unsafe_allow_key_reuse = absl::GetFlag(FLAGS_unsafe_key_reuse);
  return ValueOrFail("seal=static", penstock::StaticKeyCredentials(std::move(options)));
}

CredentialsPtr CredentialsFromFlags(bool listens) {
  const std::string seal = absl::GetFlag(FLAGS_seal);
  if (seal != "none" && seal != "tls" && seal != "psk" && seal != "static") {
    Fail(absl::StrCat("--seal: '", seal, "'; none, tls, psk and static are accepted"));
  }
  RefuseFlagsOfOthers();
  if (seal == "tls") return Certificates(listens);
  if (seal == "psk") return SharedKey();
  if (seal == "static") return StaticKey();
  return nullptr;
}

}  // namespace

Sealing Sealing::FromFlags(bool listens) {
  Sealing sealing;
  CredentialsPtr credentials = CredentialsFromFlags(listens);
  const int64_t max_frame = absl::GetFlag(FLAGS_max_frame);
  if (credentials == nullptr) {
    if (max_frame != 0)
      Fail("--max-frame: plain streams have no records; --seal makes sealed ones");
    return sealing;
  }

  auto choice = std::make_shared<Choice>();
  choice->handshake.server = listens;
  if (!listens) choice->handshake.verify_name = absl::GetFlag(FLAGS_verify_name);  // tls alone
  if (max_frame != 0) {
    RangeOrFail("max-frame", max_frame, penstock::kRecordFrameMin, penstock::kRecordFrameMax);
    choice->handshake.send_frame_max = static_cast<uint32_t>(max_frame);
    // Two Penstocks agree on the smaller of what one would send and the other takes.
    if (absl::GetFlag(FLAGS_seal) != "static") {
      choice->handshake.receive_frame_max = choice->handshake.send_frame_max;
    }
  }
  choice->credentials = std::move(credentials);
  choice->options.deadline = kHandshakePatience;
  choice->options.limiter =
      std::make_shared<penstock::SealLimiter>(kHandshakesMax, kHandshakesWaitingMax);
  sealing.choice_ = std::move(choice);
  return sealing;
}

bool Sealing::serves_one() const {
  return choice_ != nullptr && absl::GetFlag(FLAGS_seal) == "static" &&
         !absl::GetFlag(FLAGS_unsafe_key_reuse);
}

void Sealing::Apply(StreamPtr stream, Done done) const {
  if (choice_ == nullptr) return std::move(done)(std::move(stream));
  penstock::Seal(std::move(stream), choice_->credentials, choice_->handshake, choice_->options,
                 std::move(done));
}

penstock::coro::Task<absl::StatusOr<StreamPtr>> Sealing::Await(const Sealing& sealing,
                                                               StreamPtr stream) {
  if (sealing.choice_ == nullptr) co_return std::move(stream);
  const Choice& choice = *sealing.choice_;
  co_return co_await penstock::coro::Seal(std::move(stream), choice.credentials, choice.handshake,
                                          choice.options);
}

#endif

}  // namespace examples
