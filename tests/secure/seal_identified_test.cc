// A listener that is told who came, with certificates and with shared keys.
#include <penstock/seal.h>
#include <penstock/tls_handshake.h>

#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/handshake_pair.h"
#include "testing/harness.h"
#include "testing/seal_outcome.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

class SealIdentifiedTest : public Harness {
 protected:
  void TearDown() override {
    seen_.clear();
    client_ = SealOutcome();
    Harness::TearDown();
  }
  // Listens with `of_server` while somebody comes with `of_client`, until both ends have an answer.
  void Meet(const CredentialsPtr& of_server, const CredentialsPtr& of_client,
            HandshakeOptions handshake = {}) {
    ListenOptions listening;
    listening.engine = environment().listen_engine();
    auto listener =
        Listener::Listen(loop(), environment().NewAddress(), listening,
                         SealIdentified(of_server, {}, {}, [this](absl::StatusOr<SealedPeer> peer) {
                           seen_.push_back(std::move(peer));
                         }));
    ASSERT_TRUE(listener.ok()) << listener.status();
    absl::StatusOr<StreamPtr> plain = ConnectTo((*listener)->address(), Connecting());
    ASSERT_TRUE(plain.ok()) << plain.status();
    Seal(*std::move(plain), of_client, std::move(handshake), {}, client_.Done());
    ASSERT_TRUE(Drive([&] { return client_.ended && seen_.size() == 1; }));
  }

  std::vector<absl::StatusOr<SealedPeer>> seen_;
  SealOutcome client_;
};

TEST_P(SealIdentifiedTest, TellsWhoseCertificateItWas) {
  Meet(ServerCredentials(), ClientCredentials(), {.verify_name = "server.test"});
  ASSERT_TRUE(client_.status().ok()) << client_.status();
  ASSERT_TRUE(seen_[0].ok()) << seen_[0].status();
  EXPECT_EQ(seen_[0]->identity.kind, PeerIdentity::Kind::kCertificate);
  EXPECT_EQ(seen_[0]->identity.subject, "CN=client");
  Exchange(**client_.stream, *seen_[0]->stream, "known by name");
}

TEST_P(SealIdentifiedTest, TellsWhoseSharedKeyItWasOrWhyNobodyCame) {
  const auto psk = [](const std::string& identity, char key) {
    return *TlsPskCredentials({{.identity = identity, .key = SecretKey(std::string(32, key))}});
  };
  Meet(psk("pump", 'k'), psk("pump", 'k'));
  ASSERT_TRUE(seen_[0].ok()) << seen_[0].status();
  EXPECT_EQ(seen_[0]->identity.kind, PeerIdentity::Kind::kPsk);
  EXPECT_EQ(seen_[0]->identity.psk_identity, "pump");
  seen_.clear();
  client_ = SealOutcome();
  Meet(psk("pump", 'k'), psk("pump", 'x'));
  EXPECT_TRUE(absl::IsUnauthenticated(seen_[0].status())) << seen_[0].status();
}

INSTANTIATE_TEST_SUITE_P(Environments, SealIdentifiedTest,
                         ::testing::ValuesIn(EnvironmentsToSeal()), EnvironmentName);

}  // namespace
}  // namespace penstock::internal
