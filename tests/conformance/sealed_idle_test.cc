// What an idle sealed connection costs: no byte of the pool, and a bounded piece of heap, all
// included: the connection, the sealed stream, the keys.
#include <malloc.h>
#include <penstock/seal.h>
#include <penstock/tls_handshake.h>
#include <sys/resource.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "testing/certificates.h"
#include "testing/harness.h"
#include "testing/long_run.h"
#include "testing/sealed_environment.h"

namespace penstock::internal {
namespace {

constexpr size_t kHeapMax = 2048;
// Sealed connections, both ends of each pair counted: what the targets are told for.
constexpr size_t kConnections = 10'000;
// Descriptors for everything else.
constexpr size_t kOtherDescriptors = 200;

class SealedIdleTest : public Harness {
 protected:
  void SetUp() override {
    if (kSanitized) GTEST_SKIP() << "a sanitizer replaces the heap";
    Harness::SetUp();
  }
  static size_t HeapInUse() {
    const struct mallinfo2 info = ::mallinfo2();
    return info.uordblks + info.hblkhd;
  }
  // Half of the wanted connections, or of those that the descriptor limit allows, which is raised
  // as far as it may be.
  static size_t Pairs(size_t wanted) {
    rlimit limit;
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_max = 0;
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
    const size_t allowed = std::max<size_t>(limit.rlim_max, 2 * kOtherDescriptors);
    const size_t connections = std::min(wanted, allowed - kOtherDescriptors);
    if (connections < wanted) {
      std::cout << "[   NOTE   ] " << connections << " connections instead of " << wanted
                << ": the limit is " << limit.rlim_max << " descriptors\n";
    }
    return connections / 2;
  }
};

TEST_P(SealedIdleTest, HoldsNoPoolMemoryAndLittleHeapBeforeAndAfterTraffic) {
  const size_t pairs = Pairs(kConnections);
  std::vector<StreamPtr> streams;
  streams.reserve(2 * pairs + 2);
  std::unique_ptr<Listener> listener = Listen();
  const auto connect = [&] {
    absl::StatusOr<StreamPtr> client = ConnectTo(listener->address(), Connecting());
    ASSERT_TRUE(client.ok()) << client.status();
    ASSERT_TRUE(Drive([this] { return !accepted().empty(); }));
    streams.push_back(*std::move(client));
    streams.push_back(std::move(accepted().front()));
    accepted().pop_front();
  };
  connect();  // what the loop itself needs
  Exchange(*streams[0], *streams[1], "warm");
  Settle();
  const size_t before = HeapInUse();
  const size_t already = streams.size();
  while (streams.size() < already + 2 * pairs) connect();
  Settle();
  const size_t fresh = (HeapInUse() - before) / (2 * pairs);
  EXPECT_LE(fresh, kHeapMax);
  EXPECT_EQ(loop().Snapshot().pool.live, 0u);
  for (size_t i = 0; i < streams.size(); i += 2) {
    Exchange(*streams[i], *streams[i + 1], "some bytes one way");
    Exchange(*streams[i + 1], *streams[i], "and some the other");
  }
  // Cipher contexts are given up when they have not been used for a while.
  ASSERT_TRUE(Drive([&] { return loop().Snapshot().timers == 0; })) << "an idle loop sleeps";
  Settle();
  const size_t used = (HeapInUse() - before) / (2 * pairs);
  EXPECT_LE(used, kHeapMax);
  const LoopSnapshot now = loop().Snapshot();
  EXPECT_EQ(now.pool.live, 0u);
  EXPECT_EQ(now.pinned_bytes + now.sealed_pinned_bytes, 0u);
  RecordProperty("connections", static_cast<int>(2 * pairs));
  RecordProperty("heap_bytes_fresh", static_cast<int>(fresh));
  RecordProperty("heap_bytes_used", static_cast<int>(used));
}

// The same after real handshakes: nothing of TLS, of the certificates and of the peer's identity
// stays behind.
class SealedIdleHandshakeTest : public SealedIdleTest {
 protected:
  // Of the 10,000, as many as leave the other tests their time.
  static size_t Wanted() {
    return LongRun() ? kConnections : static_cast<size_t>(Scaled(kConnections / 10));
  }

  void Connect(Listener& listener, const CredentialsPtr& ours, const CredentialsPtr& theirs) {
    absl::StatusOr<StreamPtr> client = ConnectTo(listener.address(), Connecting());
    ASSERT_TRUE(client.ok()) << client.status();
    ASSERT_TRUE(Drive([this] { return !accepted().empty(); }));
    const size_t before = streams_.size();
    const auto keep = [this](absl::StatusOr<StreamPtr> sealed) {
      ASSERT_TRUE(sealed.ok()) << sealed.status();
      streams_.push_back(*std::move(sealed));
    };
    Seal(*std::move(client), ours, {.verify_name = verify_name_}, {}, keep);
    Seal(std::move(accepted().front()), theirs, {.server = true}, {}, keep);
    accepted().pop_front();
    ASSERT_TRUE(Drive([&] { return HasFailure() || streams_.size() == before + 2; }));
  }

  void HoldsLittle(const CredentialsPtr& ours, const CredentialsPtr& theirs) {
    const size_t pairs = Pairs(Wanted());
    const std::unique_ptr<Listener> listener = Listen();
    streams_.reserve(2 * pairs + 4);
    // What the loop and OpenSSL make once.
    for (int i = 0; i < 2; ++i) Connect(*listener, ours, theirs);
    Settle();
    const size_t before = HeapInUse();
    while (streams_.size() < 2 * pairs + 4 && !HasFailure()) Connect(*listener, ours, theirs);
    Settle();
    RecordProperty("connections", static_cast<int>(2 * pairs));
    ExpectLittle("heap_bytes_fresh", before, pairs);
    for (size_t i = 0; i < streams_.size(); i += 2) {
      Exchange(*streams_[i], *streams_[i + 1], "some bytes one way");
      Exchange(*streams_[i + 1], *streams_[i], "and some the other");
    }
    ASSERT_TRUE(Drive([&] { return loop().Snapshot().timers == 0; })) << "an idle loop sleeps";
    Settle();
    ExpectLittle("heap_bytes_used", before, pairs);
    streams_.clear();
  }

  std::vector<StreamPtr> streams_;
  std::string verify_name_;  // empty but for certificates

 private:
  void ExpectLittle(const char* what, size_t before, size_t pairs) {
    const size_t each = (std::max(HeapInUse(), before) - before) / (2 * pairs);
    EXPECT_LE(each, kHeapMax) << what;
    const LoopSnapshot now = loop().Snapshot();
    EXPECT_EQ(now.pool.live, 0u) << what;
    EXPECT_EQ(now.pinned_bytes + now.sealed_pinned_bytes, 0u) << what;
    RecordProperty(what, static_cast<int>(each));
  }
};

TEST_P(SealedIdleHandshakeTest, LeavesLittleBehindWithCertificates) {
  verify_name_ = "server.test";
  const TestAuthority authority;
  HoldsLittle(authority.Credentials({}), authority.Credentials({.names = {"DNS:server.test"}}));
}

TEST_P(SealedIdleHandshakeTest, LeavesLittleBehindWithASharedKey) {
  const CredentialsPtr both =
      *TlsPskCredentials({{.identity = "pump", .key = SecretKey(std::string(32, 'k'))}});
  HoldsLittle(both, both);
}

INSTANTIATE_TEST_SUITE_P(Engines, SealedIdleHandshakeTest, ::testing::ValuesIn(KernelEngines()),
                         EnvironmentName);
INSTANTIATE_TEST_SUITE_P(Sealed, SealedIdleTest, ::testing::ValuesIn(SealedEngines()),
                         EnvironmentName);

}  // namespace
}  // namespace penstock::internal
