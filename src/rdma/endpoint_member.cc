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
  watcher_ = std::move(done);
  if (!dead()) return;
  TellWatcher();
  MarkReady();
}

// Behind the operations that have ended with it, and then behind the other callbacks: it takes its
// place among these as if it were the last operation, so what is started meanwhile delays it no
// more.
void EndpointCore::TellWatcher() {
  if (!watcher_) return;
  Work& last = finished_.emplace_back();
  last.status = end_;
  last.done = [this, watcher = std::exchange(watcher_, nullptr)](absl::Status why) mutable {
    calls_.push([watcher = std::move(watcher), why = std::move(why)]() mutable {
      std::move(watcher)(std::move(why));
    });
  };
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
