#include "rdma/peer_set.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "rdma/endpoint_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// How long an endpoint that was refused stays for its peer to hear of it; longer than an endpoint
// itself waits for that.
constexpr absl::Duration kPartMax = absl::Seconds(2);
constexpr absl::Duration kRetryAfterMax = absl::Hours(1);

bool IsName(std::string_view name) {
  return !name.empty() && name.size() <= kControlTextMax &&
         std::all_of(name.begin(), name.end(), [](char c) { return c >= ' ' && c <= '~'; });
}

absl::Status CheckSetOptions(const RdmaPeerSetOptions& options) {
  if (!options.name.empty() && !IsName(options.name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("name must be at most ", kControlTextMax, " printable characters of ASCII"));
  }
  if (options.pause_min <= absl::ZeroDuration() || options.pause_max < options.pause_min) {
    return absl::InvalidArgumentError("pause_min must be positive, pause_max not below it");
  }
  if (options.connect_max <= absl::ZeroDuration() || options.probe_max <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError("connect_max and probe_max must be positive");
  }
  if (options.retry_after < absl::ZeroDuration() || options.retry_after > kRetryAfterMax) {
    return absl::InvalidArgumentError("retry_after must not be negative, nor above an hour");
  }
  return CheckRdmaOptions(options.endpoint);
}

// Of a peer that says none.
std::string NameOf(const Bytes16& incarnation) {
  return absl::StrCat("incarnation ",
                      absl::BytesToHexString(absl::string_view(
                          reinterpret_cast<const char*>(incarnation.data()), incarnation.size())));
}

}  // namespace

PeerSet::PeerSet(Loop& loop, RdmaPeerSetOptions options, RdmaPeerSet::OpenCallback on_open,
                 RdmaPeerSet::EndCallback on_end, const Bytes16& incarnation)
    : loop_(loop),
      options_(std::move(options)),
      problem_(CheckSetOptions(options_)),
      on_open_(std::move(on_open)),
      on_end_(std::move(on_end)),
      incarnation_(incarnation),
      turn_(std::make_unique<Timer>(loop)) {}

void PeerSet::Release() {
  released_ = true;
  turn_.reset();
  // Each may hold the caller's code, which may call in again and finds nothing.
  const Links links = std::exchange(links_, {});
  for (const auto& [name, link] : links) link->Release();
  const auto arriving = std::exchange(arriving_, {});
  const auto parting = std::exchange(parting_, {});
  const WorkList failed = std::exchange(failed_, {});
}

// --- What the program asks for ---

absl::Status PeerSet::Dial(std::string_view peer, RdmaPeerSet::Connector connect) {
  if (released_) return absl::CancelledError("the set of peers has gone");
  const auto problem = [&](absl::StatusCode code, std::string_view why) {
    return absl::Status(code, absl::StrCat("dial ", AbslView(peer), ": ", AbslView(why)));
  };
  if (!problem_.ok()) return problem(problem_.code(), MessageOf(problem_));
  if (!IsName(peer) || peer == options_.name) {
    return problem(absl::StatusCode::kInvalidArgument, "no name, or the set's own");
  }
  const std::shared_ptr<PeerLink> link = LinkFor(peer);
  if (link == nullptr) {
    return problem(absl::StatusCode::kResourceExhausted,
                   absl::StrCat("peers_max ", options_.peers_max, " are known already"));
  }
  if (link->wanted()) {
    return problem(absl::StatusCode::kAlreadyExists, "it is dialled already");
  }
  link->Dial(std::move(connect));
  return absl::OkStatus();
}

void PeerSet::Forget(std::string_view peer) {
  const auto at = links_.find(peer);
  if (at == links_.end()) return;
  const std::shared_ptr<PeerLink> link = at->second;
  link->Forget();
}

void PeerSet::Accept(StreamPtr stream, std::string_view peer) {
  if (released_ || stream == nullptr) return;
  const auto leaving = std::count_if(parting_.begin(), parting_.end(),
                                     [](const Parting& parting) { return parting.came; });
  const bool full = arriving_.size() + static_cast<size_t>(leaving) >= options_.accepts_max;
  if (full || !problem_.ok()) {
    ++counts_.refused;
    return stream->Abort();
  }
  const uint64_t number = ++last_number_;
  const auto self = weak_from_this();
  auto endpoint = PeerEndpoints::Make(
      GateRole::kPassive, std::move(stream), options_.endpoint,
      {.incarnation = incarnation_, .name = options_.name, .on_hello = [self, number] {
         if (const auto set = self.lock()) set->OnHello(number);
       }});
  PeerEndpoints::CoreOf(*endpoint).Watch([self, number](const absl::Status&) {
    if (const auto set = self.lock()) set->OnArrivingEnd(number);
  });
  arriving_[number] = {.endpoint = std::move(endpoint), .name = std::string(peer)};
}

void PeerSet::Send(std::string_view peer, BufferChain message, RdmaPeerSet::DoneCallback done,
                   absl::Duration wait_max) {
  if (released_) return;
  WorkList one(1);
  one.front().data = std::move(message);
  one.front().done = std::move(done);
  const auto at = links_.find(peer);
  if (at != links_.end() && at->second->expects_endpoint()) {
    const std::shared_ptr<PeerLink> link = at->second;
    return link->Send(std::move(one), wait_max);
  }
  Fail(std::move(one), problem_.ok()
                           ? absl::NotFoundError(absl::StrCat("RDMA send to ", AbslView(peer),
                                                              ": it is neither dialled nor here"))
                           : problem_);
}

RdmaEndpoint* PeerSet::Find(std::string_view peer) const {
  const auto at = links_.find(peer);
  return at == links_.end() ? nullptr : at->second->open_endpoint();
}

RdmaPeerSetStats PeerSet::stats() const {
  RdmaPeerSetStats stats = counts_;
  stats.peers = static_cast<uint32_t>(links_.size());
  for (const auto& [name, link] : links_) stats.open += link->open_endpoint() != nullptr ? 1 : 0;
  return stats;
}

// --- Those who come ---

std::shared_ptr<PeerLink> PeerSet::LinkFor(std::string_view peer) {
  if (const auto at = links_.find(peer); at != links_.end()) return at->second;
  if (links_.size() >= options_.peers_max) return nullptr;
  auto link =
      std::make_shared<PeerLink>(loop_, static_cast<PeerLink::Owner&>(*this), std::string(peer));
  links_.emplace(peer, link);
  return link;
}

void PeerSet::OnHello(uint64_t number) {
  const auto at = arriving_.find(number);
  if (released_ || at == arriving_.end()) return;
  const auto self = shared_from_this();
  Arriving arrived = std::move(at->second);
  arriving_.erase(at);
  EndpointCore& core = PeerEndpoints::CoreOf(*arrived.endpoint);
  std::string name = std::move(arrived.name);
  if (name.empty()) name = core.peer_name();
  if (name.empty()) name = NameOf(core.peer_attempt().incarnation);
  if (const std::shared_ptr<PeerLink> link = LinkFor(name)) {
    return link->OnHello(std::move(arrived.endpoint));
  }
  ++counts_.refused;
  core.Watch(nullptr);
  core.RefuseBusy(options_.retry_after);
  Part(std::move(arrived.endpoint));
}

void PeerSet::OnArrivingEnd(uint64_t number) {
  const auto at = arriving_.find(number);
  if (released_ || at == arriving_.end()) return;
  std::unique_ptr<RdmaEndpoint> endpoint = std::move(at->second.endpoint);
  arriving_.erase(at);
  Part(std::move(endpoint));
}

// --- Of the links ---

void PeerSet::OnOpen(PeerLink& link, RdmaEndpoint& endpoint) {
  const auto self = shared_from_this();
  const std::string name = link.name();
  if (on_open_) on_open_(name, endpoint);
}

void PeerSet::OnEnd(PeerLink& link, std::unique_ptr<RdmaEndpoint> endpoint, absl::Status why) {
  const auto self = shared_from_this();
  const std::string name = link.name();
  if (on_end_) on_end_(name, std::move(endpoint), std::move(why));
}

void PeerSet::OnIdle(PeerLink& link) {
  const auto at = links_.find(link.name());
  const std::shared_ptr<PeerLink> gone = std::move(at->second);
  links_.erase(at);
  gone->Release();
}

void PeerSet::Part(std::unique_ptr<RdmaEndpoint> endpoint) {
  const bool came = PeerEndpoints::CoreOf(*endpoint).role() == GateRole::kPassive;
  parting_.push_back(
      {.endpoint = std::move(endpoint), .timer = std::make_unique<Timer>(loop_), .came = came});
  const auto at = std::prev(parting_.end());
  at->timer->Arm(kPartMax, [this, at] {
    const Parting gone = std::move(*at);
    parting_.erase(at);
  });
}

void PeerSet::Fail(WorkList works, absl::Status status) {
  for (Work& work : works) work.status = WithOutcome(status, RdmaOutcome::kNeverPosted);
  failed_.splice(failed_.end(), works);
  if (!turn_->armed()) turn_->Arm(absl::ZeroDuration(), [this] { RunFailed(); });
}

// What these start is not run in the same turn (I9).
void PeerSet::RunFailed() {
  const auto self = shared_from_this();
  WorkList works = std::exchange(failed_, {});
  while (!works.empty() && !released_) {
    WorkList one;
    one.splice(one.end(), works, works.begin());
    if (one.front().done) std::move(one.front().done)(std::move(one.front().status));
  }
}

}  // namespace internal

RdmaPeerSet::RdmaPeerSet(Loop& loop, RdmaPeerSetOptions options, OpenCallback on_open,
                         EndCallback on_end)
    : core_(std::make_shared<internal::PeerSet>(loop, std::move(options), std::move(on_open),
                                                std::move(on_end), internal::RandomBytes())) {}

RdmaPeerSet::~RdmaPeerSet() { core_->Release(); }

absl::Status RdmaPeerSet::Dial(std::string_view peer, Connector connect) {
  return core_->Dial(peer, std::move(connect));
}
void RdmaPeerSet::Forget(std::string_view peer) { core_->Forget(peer); }
void RdmaPeerSet::Accept(StreamPtr stream, std::string_view peer) {
  core_->Accept(std::move(stream), peer);
}
void RdmaPeerSet::Send(std::string_view peer, BufferChain message, DoneCallback done,
                       absl::Duration wait_max) {
  core_->Send(peer, std::move(message), std::move(done), wait_max);
}
RdmaEndpoint* RdmaPeerSet::Find(std::string_view peer) const { return core_->Find(peer); }
RdmaPeerSetStats RdmaPeerSet::stats() const { return core_->stats(); }

PENSTOCK_END_NAMESPACE
