// Loading of certificates and keys, as TlsCertificateCredentials shows it.
#include "secure/tls_pem.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>

#include "testing/handshake_pair.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// A directory of this test's own, gone with it.
class PemFiles {
 public:
  PemFiles() : path_(::testing::TempDir() + "penstock_pem_XXXXXX") {
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~PemFiles() {
    for (const std::string& file : files_) std::remove(file.c_str());
    std::remove(path_.c_str());
  }
  std::string Add(const std::string& name, const std::string& text) {
    const std::string path = path_ + "/" + name;
    std::ofstream(path) << text;
    files_.push_back(path);
    return path;
  }
  std::string path() const { return path_; }

 private:
  std::string path_;
  std::vector<std::string> files_;
};

absl::Status With(const std::function<void(TlsCertificateOptions&)>& change) {
  static const auto* certificate = new TestCertificate(CommonAuthority().Issue({}));
  TlsCertificateOptions options = CommonAuthority().Options(*certificate);
  change(options);
  return TlsCertificateCredentials(options).status();
}

bool Mentions(const absl::Status& status, std::string_view words) {
  return status.ToString().find(words) != std::string::npos;
}

TEST(TlsPem, ReadsFiles) {
  PemFiles files;
  const TestAuthority between("between", CommonAuthority());
  const TestCertificate certificate = between.Issue({});
  TlsCertificateOptions options;
  options.certificate = PemSource::File(files.Add("cert.pem", certificate.chain));
  options.key = PemSource::File(files.Add("key.pem", "text before is skipped\n" + certificate.key));
  // Two roots, with text between them as `openssl x509 -text` writes it.
  options.ca = PemSource::File(
      files.Add("ca.pem", TestAuthority("second").pem() + "text\n" + CommonAuthority().pem()));
  const absl::StatusOr<CredentialsPtr> made = TlsCertificateCredentials(options);
  ASSERT_TRUE(made.ok()) << made.status();
  HandshakePump pump(ClientOf(*made), ServerOf(ServerCredentials()));
  pump.Run();
  EXPECT_TRUE(pump.server.done()) << pump.server.error();
}

TEST(TlsPem, SaysWhichFileIsMissing) {
  const absl::Status missing = With([](TlsCertificateOptions& options) {
    options.key = PemSource::File("/nonexistent/key.pem");
  });
  EXPECT_TRUE(absl::IsNotFound(missing)) << missing;
  EXPECT_EQ(missing.message(),
            "TLS key from /nonexistent/key.pem: no such file or directory (ENOENT)");
  EXPECT_TRUE(
      Mentions(With([](auto& options) { options.ca = PemSource(); }), "TLS ca: none was given"));
  EXPECT_TRUE(Mentions(With([](auto& options) { options.certificate = PemSource(); }),
                       "TLS certificate: none was given"));
}

TEST(TlsPem, SaysWhatIsWrongWithAFile) {
  PemFiles files;
  const std::string path = files.Add("odd.pem", "nothing in PEM\n");
  EXPECT_TRUE(Mentions(With([&](auto& options) { options.ca = PemSource::File(path); }),
                       "TLS ca from " + path + ": holds no certificate"));
  EXPECT_TRUE(Mentions(With([&](auto& options) { options.key = PemSource::File(path); }),
                       "TLS key from " + path + ": "));
  EXPECT_TRUE(Mentions(With([&](auto& options) { options.key = PemSource::Text("x"); }),
                       "TLS key from text: "));
  const absl::Status directory =
      With([&](auto& options) { options.ca = PemSource::File(files.path()); });
  EXPECT_TRUE(Mentions(directory, files.path())) << directory;

  // The second certificate is cut short.
  std::string cut = CommonAuthority().pem() + CommonAuthority().pem();
  cut.resize(cut.size() - 100);
  const absl::Status damaged = With([&](auto& options) { options.ca = PemSource::Text(cut); });
  EXPECT_TRUE(absl::IsInvalidArgument(damaged)) << damaged;
}

TEST(TlsPem, KeyMustFitTheCertificate) {
  const TestCertificate other = CommonAuthority().Issue({});
  const absl::Status mismatch =
      With([&](auto& options) { options.key = PemSource::Text(other.key); });
  EXPECT_TRUE(absl::IsInvalidArgument(mismatch)) << mismatch;
  EXPECT_TRUE(Mentions(mismatch, "key values mismatch")) << mismatch;
}

// OpenSSL would ask for a passphrase at the terminal.
TEST(TlsPem, EncryptedKeysAreRefusedAtOnce) {
  constexpr char kEncrypted[] =
      "-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
      "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAgOjR6R43wP+AICCAAw\n"
      "DAYIKoZIhvcNAgkFADAdBglghkgBZQMEAQIEEEI3aLueCVYYE65eEMZ7cpsEgZDX\n"
      "1nLr0OnvNMv3/k8paaJHsYmQy5BX2QIZU6JsbzpN8L4DIhmQWwWFki4F/CewzmXN\n"
      "SJinRyXj3Gt5P4YIXXIj/akGCii3HkNQIsaqYdy3CZdeajTvJ7xxXYH1yL6+Ix25\n"
      "EgTY9lT9enFLoLLoL6Azsr/+pTpg6hpgzoaU2dKDLaZWaNggQAFne2nWtv0u34I=\n"
      "-----END ENCRYPTED PRIVATE KEY-----\n";
  const absl::Status encrypted =
      With([&](auto& options) { options.key = PemSource::Text(kEncrypted); });
  EXPECT_TRUE(absl::IsInvalidArgument(encrypted)) << encrypted;
  EXPECT_TRUE(Mentions(encrypted, "bad password read")) << encrypted;
}

}  // namespace
}  // namespace internal
PENSTOCK_END_NAMESPACE
