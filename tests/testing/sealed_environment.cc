#include "testing/sealed_environment.h"

#include <penstock/seal.h>
#include <penstock/tls_handshake.h>

#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "testing/environment.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

SecretKey DirectionKey(RecordProtocol protocol, bool by_server) {
  std::string key(RecordKeySize(protocol), by_server ? 's' : 'c');
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<char>(key[i] + 7 * i);
  return SecretKey(key);
}

class InstantHandshake final : public Handshaker {
 public:
  explicit InstantHandshake(HandshakeResult result) : result_(std::move(result)) {}

  Progress Step(std::string_view) override {
    Progress progress;
    progress.state = State::kDone;
    return progress;
  }
  Progress Authorize(const absl::Status&) override { return Step({}); }
  const PeerIdentity& peer() const override { return nobody_; }
  HandshakeResult TakeResult() override { return std::move(result_); }
  absl::Status OnPeerEnd() override { return absl::DataLossError("the peer has left"); }
  std::string_view phase() const override { return "nothing"; }
  void SetWake(absl::AnyInvocable<void()>) override {}

 private:
  HandshakeResult result_;
  const PeerIdentity nobody_;
};

class SealedEnvironment final : public Environment {
 public:
  // By a handshake with `credentials`, or with the keys of every test where these are null.
  SealedEnvironment(std::unique_ptr<Environment> below, RecordMode mode, CredentialsPtr credentials)
      : below_(std::move(below)), mode_(mode), credentials_(std::move(credentials)) {}

  std::string missing() override { return below_->missing(); }
  absl::StatusOr<std::unique_ptr<Loop>> NewLoop(LoopOptions options) override {
    return below_->NewLoop(std::move(options));
  }
  SocketAddress NewAddress() override { return below_->NewAddress(); }
  EngineKind listen_engine() const override { return below_->listen_engine(); }
  EngineKind connect_engine() const override { return below_->connect_engine(); }
  bool has_kernel() const override { return false; }
  bool drives_alone() const override { return below_->drives_alone(); }
  size_t unit_max() const override {
    return mode_ == RecordMode::kNative ? kRecordFrameNative : kRecordFrameGrpc;
  }
  void Wrap(StreamPtr stream, bool server, StreamCallback done) override {
    if (credentials_ == nullptr) {
      Seal(std::move(stream), InstantHandshaker({.mode = mode_, .server = server}), {},
           std::move(done));
      return;
    }
    HandshakeOptions handshake;
    handshake.server = server;
    SealOptions options;
    options.deadline =
        absl::InfiniteDuration();  // a machine may give the tests no turn for a while
    Seal(std::move(stream), credentials_, handshake, std::move(options), std::move(done));
  }
  bool Drive(std::span<Loop* const> loops, absl::FunctionRef<bool()> done) override {
    return below_->Drive(loops, done);
  }
  void Settle(std::span<Loop* const> loops) override { below_->Settle(loops); }

 private:
  std::unique_ptr<Environment> below_;
  const RecordMode mode_;
  const CredentialsPtr credentials_;
};

EnvironmentCase Sealed(const EnvironmentCase& below, RecordMode mode) {
  return {absl::StrCat(below.name, mode == RecordMode::kNative ? "Native" : "Grpc"),
          [make = below.make, mode] {
            return std::make_unique<SealedEnvironment>(make(), mode, nullptr);
          }};
}

// After TLS by a shared key, the handshake that costs least.
EnvironmentCase SealedByTls(const EnvironmentCase& below) {
  return {absl::StrCat(below.name, "Tls"), [make = below.make] {
            return std::make_unique<SealedEnvironment>(
                make(), RecordMode::kNative,
                *TlsPskCredentials({{.identity = "pump", .key = SecretKey(std::string(32, 'k'))}}));
          }};
}

std::vector<EnvironmentCase> InBothModes(const std::vector<EnvironmentCase>& below) {
  std::vector<EnvironmentCase> cases;
  for (const EnvironmentCase& which : below) {
    for (RecordMode mode : {RecordMode::kNative, RecordMode::kGrpc}) {
      cases.push_back(Sealed(which, mode));
    }
  }
  return cases;
}

}  // namespace

HandshakeResult InstantKeys(const InstantOptions& options) {
  const bool native = options.mode == RecordMode::kNative;
  HandshakeResult keys;
  keys.protocol = options.protocol;
  keys.mode = options.mode;
  keys.server = options.server;
  keys.send_key = DirectionKey(options.protocol, native && options.server);
  keys.receive_key = DirectionKey(options.protocol, native && !options.server);
  keys.send_frame_max = options.send_frame_max != 0 ? options.send_frame_max
                        : native                    ? kRecordFrameNative
                                                    : kRecordFrameGrpc;
  keys.receive_frame_max = native ? kRecordFrameNative : kRecordFrameMax;
  return keys;
}

std::unique_ptr<Handshaker> InstantHandshaker(const InstantOptions& options) {
  return HandshakerGiving(InstantKeys(options));
}

std::unique_ptr<Handshaker> HandshakerGiving(HandshakeResult result) {
  return std::make_unique<InstantHandshake>(std::move(result));
}

std::vector<EnvironmentCase> SealedEngines() { return InBothModes(KernelEngines()); }

std::vector<EnvironmentCase> EnvironmentsToSeal() {
  std::vector<EnvironmentCase> some;
  for (const EnvironmentCase& which : AllEnvironments()) {
    for (std::string_view name :
         {"EpollIpv4", "UringIpv4", "EpollUnix", "SimulatedReadiness", "SimulatedCompletion"}) {
      if (which.name == name) some.push_back(which);
    }
  }
  return some;
}

std::vector<EnvironmentCase> SealedEnvironments() {
  std::vector<EnvironmentCase> below = KernelEngines();
  // What else may differ below: sockets without resets, and the simulated engines.
  for (const EnvironmentCase& which : AllEnvironments()) {
    const bool unix_alone = which.name == "EpollUnix" || which.name == "UringUnix";
    if (unix_alone || absl::StartsWith(which.name, "Simulated")) below.push_back(which);
  }
  std::vector<EnvironmentCase> cases = InBothModes(below);
  // And each engine with keys that a handshake has agreed on, and what that leaves in the stream
  // below.
  for (const EnvironmentCase& which : KernelEngines()) {
    if (which.name == "Epoll" || which.name == "Uring") cases.push_back(SealedByTls(which));
  }
  return cases;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
