#include <penstock/static_key.h>

#include <mutex>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "secure/frame_sizes.h"
#include "secure/openssl_digest.h"

PENSTOCK_BEGIN_NAMESPACE

class UsedKeys::Table {
 public:
  explicit Table(size_t keys_max) : keys_max_(keys_max) {}

  absl::Status Use(const internal::Sha256Digest& digest) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (digests_.contains(digest)) {
      return absl::FailedPreconditionError(
          "static key: it was used for a connection before; each needs a key of its own");
    }
    if (digests_.size() >= keys_max_) {
      return absl::ResourceExhaustedError(
          absl::StrCat("static key: no room to remember more than ", keys_max_, " used keys"));
    }
    digests_.insert(digest);
    return absl::OkStatus();
  }
  size_t size() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return digests_.size();
  }

 private:
  const size_t keys_max_;
  mutable std::mutex mutex_;
  absl::flat_hash_set<internal::Sha256Digest> digests_;
};

UsedKeys::UsedKeys(size_t keys_max) : table_(std::make_unique<Table>(keys_max)) {}
UsedKeys::~UsedKeys() = default;

absl::Status UsedKeys::Use(const SecretKey& key, bool server) {
  const absl::StatusOr<internal::Sha256Digest> digest =
      internal::Sha256OfParts({"penstock used key", server ? "server" : "client", key.view()});
  if (!digest.ok()) return digest.status();
  return table_->Use(*digest);
}

size_t UsedKeys::size() const { return table_->size(); }

namespace {

// Has nothing to say to the peer; it asks for the verdict, like all, and is done.
class StaticKeyHandshaker final : public Handshaker {
 public:
  explicit StaticKeyHandshaker(HandshakeResult result) : result_(std::move(result)) {
    result_.peer.kind = PeerIdentity::Kind::kStaticKey;
  }

  Progress Step(std::string_view) override { return {.state = state_, .out = {}, .error = error_}; }
  Progress Authorize(const absl::Status& verdict) override {
    if (state_ == State::kAuthorize && verdict.ok()) {
      state_ = State::kDone;
    } else if (state_ == State::kAuthorize) {
      Fail(absl::PermissionDeniedError(absl::StrCat(
          "static key: this side's authorisation refuses the peer: ", verdict.message())));
    }
    return Step({});
  }
  const PeerIdentity& peer() const override { return result_.peer; }
  HandshakeResult TakeResult() override { return std::move(result_); }
  absl::Status OnPeerEnd() override {
    if (state_ == State::kAuthorize) {
      Fail(absl::DataLossError("static key: the peer ended the stream before the verdict"));
    }
    return error_;
  }
  std::string_view phase() const override {
    return state_ == State::kAuthorize ? "this side's authorisation" : "nothing";
  }
  void SetWake(absl::AnyInvocable<void()>) override {}

 private:
  void Fail(absl::Status error) {
    state_ = State::kFailed;
    result_.send_key.Wipe();
    result_.receive_key.Wipe();
    error_ = std::move(error);
  }

  HandshakeResult result_;
  State state_ = State::kAuthorize;
  absl::Status error_;
};

class StaticKeys final : public Credentials {
 public:
  explicit StaticKeys(StaticKeyOptions options) : options_(std::move(options)) {}

  absl::StatusOr<std::unique_ptr<Handshaker>> NewHandshaker(
      const HandshakeOptions& options) const override {
    const absl::StatusOr<internal::FrameSizes> frames =
        internal::ChooseFrameSizes(RecordMode::kGrpc, options);
    if (!frames.ok()) return frames.status();
    if (!options.verify_name.empty()) {
      return absl::InvalidArgumentError(
          "static key: it proves no name: no HandshakeOptions::verify_name may be given");
    }
    absl::StatusOr<SecretKey> key = options_.key();
    if (!key.ok()) return key.status();
    if (key->size() != RecordKeySize(options_.protocol)) {
      return absl::InvalidArgumentError(
          absl::StrCat("static key: it has ", key->size(), " bytes; ",
                       internal::AbslView(RecordProtocolName(options_.protocol)), " takes ",
                       RecordKeySize(options_.protocol)));
    }
    if (!options_.unsafe_allow_key_reuse) {
      absl::Status unused = options_.used->Use(*key, options.server);
      if (!unused.ok()) return unused;
    }
    HandshakeResult result;
    result.protocol = options_.protocol;
    result.mode = RecordMode::kGrpc;
    result.server = options.server;
    result.send_key = *key;
    result.receive_key = *std::move(key);
    result.send_frame_max = frames->send_max;
    result.receive_frame_max = frames->receive_max;
    return std::make_unique<StaticKeyHandshaker>(std::move(result));
  }

 private:
  StaticKeyOptions options_;
};

}  // namespace

absl::StatusOr<CredentialsPtr> StaticKeyCredentials(StaticKeyOptions options) {
  if (!options.key) return absl::InvalidArgumentError("static key: no key function was given");
  if (options.used == nullptr && !options.unsafe_allow_key_reuse) {
    return absl::InvalidArgumentError(
        "static key: no UsedKeys was given to remember keys in; share one wherever the same key "
        "may "
        "turn up");
  }
  return std::make_shared<const StaticKeys>(std::move(options));
}

PENSTOCK_END_NAMESPACE
