#include <penstock/rdma.h>

#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "rdma/endpoint_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace {

constexpr char kOutcomePayload[] = "penstock/rdma-outcome";

internal::WorkList OneSided(internal::Work::Kind kind, const RdmaRemoteRegion& region,
                            uint64_t offset) {
  internal::WorkList one(1);
  internal::Work& work = one.front();
  work.kind = kind;
  work.region = region;
  work.offset = offset;
  return one;
}

}  // namespace

namespace internal {

absl::Status WithOutcome(absl::Status status, RdmaOutcome outcome) {
  const std::string_view name = RdmaOutcomeName(outcome);
  status.SetPayload(kOutcomePayload, absl::Cord({name.data(), name.size()}));
  return status;
}

}  // namespace internal

using internal::EndpointCore;
using internal::GateRole;
using internal::Work;
using internal::WorkList;

RdmaOutcome OutcomeOf(const absl::Status& status) {
  if (status.ok()) return RdmaOutcome::kDone;
  const auto payload = status.GetPayload(kOutcomePayload);
  const bool never =
      payload.has_value() && std::string(*payload) == RdmaOutcomeName(RdmaOutcome::kNeverPosted);
  return never ? RdmaOutcome::kNeverPosted : RdmaOutcome::kInDoubt;
}

std::string_view RdmaOutcomeName(RdmaOutcome outcome) {
  switch (outcome) {
    case RdmaOutcome::kDone:
      return "done";
    case RdmaOutcome::kNeverPosted:
      return "never posted";
    default:
      return "in doubt";
  }
}

// --- RdmaRegion ---

RdmaRegion::RdmaRegion(std::weak_ptr<EndpointCore> core, uint64_t id, uint32_t epoch)
    : core_(std::move(core)), id_(id), epoch_(epoch) {}

RdmaRegion::RdmaRegion(RdmaRegion&& other) noexcept
    : core_(std::exchange(other.core_, {})), id_(other.id_), epoch_(other.epoch_) {}

RdmaRegion& RdmaRegion::operator=(RdmaRegion&& other) noexcept {
  if (this != &other) {
    if (const auto core = core_.lock()) core->Remove(id_, epoch_);
    core_ = std::exchange(other.core_, {});
    id_ = other.id_;
    epoch_ = other.epoch_;
  }
  return *this;
}

RdmaRegion::~RdmaRegion() {
  if (const auto core = core_.lock()) core->Remove(id_, epoch_);
}

void RdmaRegion::Revoke(Stream::DoneCallback done) {
  if (const auto core = core_.lock()) core->Revoke(id_, epoch_, std::move(done));
}

// --- RdmaEndpoint ---

RdmaEndpoint::RdmaEndpoint(std::shared_ptr<EndpointCore> core) : core_(std::move(core)) {}

RdmaEndpoint::~RdmaEndpoint() { core_->Release(); }

std::unique_ptr<RdmaEndpoint> RdmaEndpoint::Connect(StreamPtr control, RdmaOptions options) {
  auto core =
      std::make_shared<EndpointCore>(GateRole::kActive, std::move(control), std::move(options));
  core->Start();
  return std::unique_ptr<RdmaEndpoint>(new RdmaEndpoint(std::move(core)));
}

std::unique_ptr<RdmaEndpoint> RdmaEndpoint::Accept(StreamPtr control, RdmaOptions options) {
  auto core =
      std::make_shared<EndpointCore>(GateRole::kPassive, std::move(control), std::move(options));
  core->Start();
  return std::unique_ptr<RdmaEndpoint>(new RdmaEndpoint(std::move(core)));
}

void RdmaEndpoint::NotifyOpen(DoneCallback done) { core_->NotifyOpen(std::move(done)); }
absl::Duration RdmaEndpoint::retry_after() const { return core_->retry_after(); }

void RdmaEndpoint::Send(BufferChain message, DoneCallback done, absl::Duration wait_max) {
  if (!done && core_->SendAtOnce(message)) return;
  WorkList one(1);
  Work& work = one.front();
  work.data = std::move(message);
  work.done = std::move(done);
  core_->Add(std::move(one), wait_max);
}

void RdmaEndpoint::Receive(ReceiveCallback done) { core_->Receive(std::move(done)); }
void RdmaEndpoint::CancelReceive() { core_->CancelReceive(); }

absl::StatusOr<RdmaRegion> RdmaEndpoint::Expose(std::span<char> memory, RdmaAccess access) {
  return core_->Expose(memory, access);
}

void RdmaEndpoint::AwaitRegion(RegionCallback done) { core_->AwaitRegion(std::move(done)); }

void RdmaEndpoint::Write(const RdmaRemoteRegion& region, uint64_t offset, BufferChain data,
                         DoneCallback done, absl::Duration wait_max) {
  WorkList one = OneSided(Work::Kind::kWrite, region, offset);
  Work& work = one.front();
  work.data = std::move(data);
  work.done = std::move(done);
  core_->Add(std::move(one), wait_max);
}

void RdmaEndpoint::Read(const RdmaRemoteRegion& region, uint64_t offset, uint64_t size,
                        ReadCallback done, absl::Duration wait_max) {
  WorkList one = OneSided(Work::Kind::kRead, region, offset);
  Work& work = one.front();
  work.size = size;
  work.read_done = std::move(done);
  core_->Add(std::move(one), wait_max);
}

void RdmaEndpoint::WriteThenSend(const RdmaRemoteRegion& region, uint64_t offset, BufferChain data,
                                 BufferChain message, DoneCallback done, absl::Duration wait_max) {
  WorkList one = OneSided(Work::Kind::kWrite, region, offset);
  Work& work = one.front();
  work.data = std::move(data);
  work.then = std::move(message);
  work.done = std::move(done);
  core_->Add(std::move(one), wait_max);
}

void RdmaEndpoint::Close(DoneCallback done) { core_->Close(std::move(done)); }
void RdmaEndpoint::Abort() { core_->Abort(); }
RdmaStats RdmaEndpoint::stats() const { return core_->stats(); }
SocketAddress RdmaEndpoint::peer() const { return core_->peer(); }
SocketAddress RdmaEndpoint::local() const { return core_->local(); }
Loop& RdmaEndpoint::loop() const { return core_->loop(); }

PENSTOCK_END_NAMESPACE
