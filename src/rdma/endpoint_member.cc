// EndpointCore: what a set of peers asks of an endpoint of its own.
#include <utility>

#include "rdma/control_codec.h"
#include "rdma/endpoint_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// In a turn of its own: the set may destroy the endpoint then.
GateAction EndpointCore::AskOwner() {
  calls_.push(std::exchange(on_hello_, nullptr));
  MarkReady();
  return GateAction::kNone;
}

void EndpointCore::Admit() {
  if (core_ == nullptr || gate_.state() != GateState::kPassiveBringup) return;
  Act(AskToBringUp());
  MarkReady();
}

void EndpointCore::Supersede() {
  if (core_ == nullptr || dead()) return;
  Act(gate_.OnSuperseded());
  MarkReady();
}

void EndpointCore::RefuseBusy(absl::Duration retry_after) {
  if (core_ == nullptr || dead()) return;
  Act(gate_.OnBusy(retry_after));
  MarkReady();
}

void EndpointCore::GiveUp(absl::StatusCode code, std::string_view why) {
  if (core_ == nullptr) return;
  End(Explain(code, "RDMA endpoint to", why));
}

void EndpointCore::Watch(RdmaEndpoint::DoneCallback done) {
  if (core_ == nullptr) return;
  watcher_.clear();
  if (!done) return;
  watcher_.emplace_back().done = std::move(done);
  if (!dead()) return;
  TellWatcher();
  MarkReady();
}

// Behind the operations that have ended with it.
void EndpointCore::TellWatcher() {
  if (watcher_.empty()) return;
  watcher_.front().status = end_;
  finished_.splice(finished_.end(), watcher_);
}

void EndpointCore::Probe(absl::AnyInvocable<void() &&> alive) {
  if (core_ == nullptr || dead()) return;
  probe_ = std::move(alive);
  probe_token_ = ++stats_.pings;
  channel_->Send(EncodeControl(ControlPing{.token = probe_token_}));
  MarkReady();
}

void EndpointCore::OnProbed(uint64_t token) {
  if (probe_ && token >= probe_token_) calls_.push(std::exchange(probe_, nullptr));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
