#include <penstock/alts_service.h>

#include <array>
#include <atomic>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "secure/alts_handshaker.h"
#include "secure/frame_sizes.h"

PENSTOCK_BEGIN_NAMESPACE
namespace {

class AltsCredentials final : public Credentials {
 public:
  explicit AltsCredentials(AltsServiceOptions options)
      : options_(std::make_shared<const AltsServiceOptions>(std::move(options))) {}

  absl::StatusOr<std::unique_ptr<Handshaker>> NewHandshaker(
      const HandshakeOptions& options) const override {
    const absl::StatusOr<internal::FrameSizes> frames =
        internal::ChooseFrameSizes(RecordMode::kGrpc, options);
    if (!frames.ok()) return frames.status();
    if (options.server && !options.verify_name.empty()) {
      return absl::InvalidArgumentError(
          "ALTS handshake: the service checks no client's name: a server may give no "
          "HandshakeOptions::verify_name");
    }
    std::shared_ptr<void> slot = TakeSlot(options.server);
    if (slot == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat("ALTS handshake: ", options_->handshakes_max,
                                                       " are under way, which is the most"));
    }
    absl::StatusOr<std::unique_ptr<AltsChannel>> channel = options_->open_channel();
    if (!channel.ok()) return channel.status();
    return std::make_unique<internal::AltsHandshaker>(options_, std::move(slot),
                                                      *std::move(channel), options, *frames);
  }
  bool PeerSpeaksFirst(const HandshakeOptions& options) const override { return options.server; }

 private:
  using Counter = std::atomic<size_t>;

  // Null when all are taken.
  std::shared_ptr<void> TakeSlot(bool server) const {
    const std::shared_ptr<Counter> counter = running_[server ? 1 : 0];
    if (counter->fetch_add(1) >= options_->handshakes_max) {
      counter->fetch_sub(1);
      return nullptr;
    }
    return {counter.get(), [counter](Counter* running) { running->fetch_sub(1); }};
  }

  const std::shared_ptr<const AltsServiceOptions> options_;
  const std::array<std::shared_ptr<Counter>, 2> running_ = {std::make_shared<Counter>(0),
                                                            std::make_shared<Counter>(0)};
};

}  // namespace

absl::StatusOr<CredentialsPtr> AltsServiceCredentials(AltsServiceOptions options) {
  if (!options.open_channel) {
    return absl::InvalidArgumentError("ALTS handshake: no way to the service was given");
  }
  if (options.application_protocols.empty() || options.record_protocols.empty()) {
    return absl::InvalidArgumentError(
        "ALTS handshake: an application protocol and a record protocol are needed");
  }
  return std::make_shared<const AltsCredentials>(std::move(options));
}

PENSTOCK_END_NAMESPACE
