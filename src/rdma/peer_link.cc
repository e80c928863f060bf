#include "rdma/peer_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/error.h"
#include "base/timer_wheel.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Of an attempt: whether another one may fare better.
bool MayFareBetter(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:  // superseded: the peer's own stream is on its way
    case absl::StatusCode::kResourceExhausted:
      return true;
    default:
      return IsEof(status);
  }
}

bool BytesMoved(const RdmaStats& stats) { return stats.bytes_in + stats.bytes_out > 0; }

}  // namespace

std::unique_ptr<RdmaEndpoint> PeerEndpoints::Make(GateRole role, StreamPtr stream,
                                                  const RdmaOptions& options,
                                                  EndpointMember member) {
  auto core = std::make_shared<EndpointCore>(role, std::move(stream), options, std::move(member));
  core->Start();
  return std::unique_ptr<RdmaEndpoint>(new RdmaEndpoint(std::move(core)));
}

PeerLink::PeerLink(Loop& loop, Owner& owner, std::string name)
    : loop_(loop),
      owner_(&owner),
      name_(std::move(name)),
      core_(owner.incarnation()),
      backoff_(owner.options().pause_min, owner.options().pause_max),
      queue_(owner.options().endpoint.queue_operations_max,
             owner.options().endpoint.queue_bytes_max),
      timer_(std::make_unique<Timer>(loop)),
      queue_timer_(std::make_unique<Timer>(loop)) {}

void PeerLink::Release() {
  owner_ = nullptr;
  timer_.reset();
  queue_timer_.reset();
  const Member current = std::exchange(current_, {});
  const Member held = std::exchange(held_, {});
  const std::vector<Member> retired = std::exchange(retired_, {});
  const auto made = std::exchange(made_, std::nullopt);
  const WorkList unrun = queue_.TakeAll();
}

RdmaEndpoint* PeerLink::open_endpoint() const {
  if (!told_ || PeerEndpoints::CoreOf(*current_.endpoint).dead()) return nullptr;
  return current_.endpoint.get();
}

// --- What is asked for ---

void PeerLink::Dial(RdmaPeerSet::Connector connect) {
  connect_ = std::make_shared<RdmaPeerSet::Connector>(std::move(connect));
  Do(core_.Want());
  Settle();
}

void PeerLink::Forget() {
  const auto self = shared_from_this();
  last_ = absl::CancelledError("the program has forgotten the peer");
  Do(core_.Unwant());
  Settle();
}

void PeerLink::OnHello(std::unique_ptr<RdmaEndpoint> endpoint) {
  const auto self = shared_from_this();
  const AttemptId from = PeerEndpoints::CoreOf(*endpoint).peer_attempt();
  const uint64_t restarts = core_.restarts();
  arrived_ = Keep(std::move(endpoint));
  const PeerAction action = core_.OnHello(from);
  owner_->counts().restarts += core_.restarts() - restarts;
  Do(action);
  Settle();
}

void PeerLink::Send(WorkList one, absl::Duration wait_max) {
  if (RdmaEndpoint* const endpoint = open_endpoint()) {
    return PeerEndpoints::CoreOf(*endpoint).Add(std::move(one), wait_max);
  }
  Work& work = one.front();
  work.size = work.data.size();
  if (absl::Status problem = queue_.Admit(work.size); !problem.ok()) {
    return owner_->Fail(std::move(one), Explain(problem.code(), MessageOf(problem)));
  }
  if (wait_max != absl::InfiniteDuration()) {
    work.deadline_ns = TimerWheel::DeadlineNs(loop_.core().sys().Now(), wait_max);
  }
  queue_.Push(std::move(one));
  ArmQueueTimer();
}

// --- What the core says ---

void PeerLink::Do(PeerAction action) {
  switch (action) {
    case PeerAction::kNone:
    case PeerAction::kIgnore:
    case PeerAction::kCall:  // where the stream is
      break;
    case PeerAction::kConnect:
      connecting_ = ++last_number_;
      // In a turn of its own (I3).
      timer_->Arm(absl::ZeroDuration(), [this] { Connect(); });
      break;
    case PeerAction::kPause:
      Pause();
      break;
    case PeerAction::kStop:
      GiveUpCurrent(absl::StatusCode::kCancelled, "the program has forgotten the peer");
      break;
    case PeerAction::kAnswer:
      Answer(std::exchange(arrived_, {}));
      break;
    case PeerAction::kAnswerHeld:
      Answer(std::exchange(held_, {}));
      break;
    case PeerAction::kProbe:
      Hold();
      break;
    case PeerAction::kHold:
      Refuse(std::exchange(held_, std::exchange(arrived_, {})));
      break;
    case PeerAction::kRefuse:
      Refuse(std::exchange(arrived_, {}));
      break;
    case PeerAction::kRefuseHeld:
      timer_->Cancel();
      Refuse(std::exchange(held_, {}));
      break;
    case PeerAction::kTell:
      return Tell();
    case PeerAction::kGiveUp:
      PeerEndpoints::CoreOf(*current_.endpoint)
          .GiveUp(absl::StatusCode::kUnavailable, "the peer has come again, and this is dead");
      break;
  }
  if (core_.state() != PeerState::kIdle) return;
  timer_->Cancel();
  FailQueue();
}

// The end of every event; nothing of the link is touched after it.
void PeerLink::Settle() {
  if (owner_ == nullptr || core_.state() != PeerState::kIdle) return;
  if (retired_.empty()) owner_->OnIdle(*this);
}

void PeerLink::Connect() {
  const auto self = shared_from_this();
  ++owner_->counts().attempts;
  AtTime(owner_->options().connect_max);
  const auto connect = connect_;
  (*connect)([link = weak_from_this(), number = connecting_](absl::StatusOr<StreamPtr> stream) {
    if (const auto self = link.lock()) self->OnStream(number, std::move(stream));
  });
}

// Perhaps in the connector: what comes of it, callbacks too, is for a turn of its own (I3).
void PeerLink::OnStream(uint64_t number, absl::StatusOr<StreamPtr> stream) {
  if (owner_ == nullptr || number != connecting_ || made_.has_value()) return;
  made_ = std::move(stream);
  timer_->Arm(absl::ZeroDuration(), [this] { TakeStream(); });
}

void PeerLink::TakeStream() {
  const auto self = shared_from_this();
  absl::StatusOr<StreamPtr> stream = *std::exchange(made_, std::nullopt);
  if (!stream.ok()) {
    OnCurrentEnded(stream.status());
  } else if (core_.OnStream() == PeerAction::kCall) {
    Call(*std::move(stream));
  }
  Settle();
}

void PeerLink::Call(StreamPtr stream) {
  connecting_ = 0;
  timer_->Cancel();
  const RdmaPeerSetOptions& options = owner_->options();
  current_ = Keep(PeerEndpoints::Make(
      GateRole::kActive, std::move(stream), options.endpoint,
      {.incarnation = owner_->incarnation(), .name = options.name, .on_hello = nullptr}));
  current_.endpoint->NotifyOpen(
      [link = weak_from_this(), number = current_.number](const absl::Status& status) {
        if (const auto self = link.lock()) self->OnOpened(number, status);
      });
}

void PeerLink::Pause() {
  connecting_ = 0;
  const absl::Duration asked = Obeyed(std::exchange(retry_after_, {}), owner_->options().pause_max);
  AtTime(std::max(backoff_.Next(RandomBytes()[0]), asked));
}

void PeerLink::AtTime(absl::Duration after) {
  if (after == absl::InfiniteDuration()) return timer_->Cancel();
  timer_->Arm(after, [this] {
    const auto self = shared_from_this();
    Do(core_.OnTime());
    Settle();
  });
}

void PeerLink::Answer(Member member) {
  GiveUpCurrent(absl::StatusCode::kUnavailable, "another endpoint of the peer takes its place");
  timer_->Cancel();
  connecting_ = 0;
  current_ = std::move(member);
  current_.endpoint->NotifyOpen(
      [link = weak_from_this(), number = current_.number](const absl::Status& status) {
        if (const auto self = link.lock()) self->OnOpened(number, status);
      });
  PeerEndpoints::CoreOf(*current_.endpoint).Admit();
}

void PeerLink::Hold() {
  held_ = std::exchange(arrived_, {});
  // The probe for a call that has gone since goes on.
  if (timer_->armed()) return;
  ++owner_->counts().probes;
  PeerEndpoints::CoreOf(*current_.endpoint)
      .Probe([link = weak_from_this(), number = current_.number] {
        const auto self = link.lock();
        if (self == nullptr || self->owner_ == nullptr) return;
        if (self->current_.number == number) self->Do(self->core_.OnAlive());
        self->Settle();
      });
  AtTime(owner_->options().probe_max);
}

void PeerLink::Tell() {
  // Its end is on its way: nobody hears of it, and work stays here.
  if (PeerEndpoints::CoreOf(*current_.endpoint).dead()) return;
  if (!retired_.empty()) {
    open_late_ = true;
    return;
  }
  open_late_ = false;
  told_ = true;
  queue_timer_->Cancel();
  for (WorkList waiting = queue_.TakeAll(); !waiting.empty();) {
    WorkList one;
    one.splice(one.end(), waiting, waiting.begin());
    // Its limit is set already.
    PeerEndpoints::CoreOf(*current_.endpoint).Add(std::move(one), absl::InfiniteDuration());
  }
  owner_->OnOpen(*this, *current_.endpoint);
}

// --- Endpoints ---

PeerLink::Member PeerLink::Keep(std::unique_ptr<RdmaEndpoint> endpoint) {
  const uint64_t number = ++last_number_;
  PeerEndpoints::CoreOf(*endpoint).Watch([link = weak_from_this(), number](absl::Status why) {
    if (const auto self = link.lock()) self->OnEnded(number, std::move(why));
  });
  return {.number = number, .endpoint = std::move(endpoint)};
}

// And what is held.
void PeerLink::GiveUpCurrent(absl::StatusCode code, std::string_view why) {
  Refuse(std::exchange(held_, {}));
  connecting_ = 0;
  const auto unused = std::exchange(made_, std::nullopt);
  open_late_ = false;
  Member gone = std::exchange(current_, {});
  if (gone.endpoint == nullptr) return;
  EndpointCore& core = PeerEndpoints::CoreOf(*gone.endpoint);
  if (std::exchange(told_, false)) {
    if (BytesMoved(gone.endpoint->stats())) backoff_.Reset();
    core.GiveUp(code, why);
    retired_.push_back(std::move(gone));
  } else {
    core.Watch(nullptr);
    core.GiveUp(code, why);
    owner_->Part(std::move(gone.endpoint));
  }
}

void PeerLink::Refuse(Member member) {
  if (member.endpoint == nullptr) return;
  ++owner_->counts().superseded;
  EndpointCore& core = PeerEndpoints::CoreOf(*member.endpoint);
  core.Watch(nullptr);
  core.Supersede();
  owner_->Part(std::move(member.endpoint));
}

void PeerLink::OnOpened(uint64_t number, const absl::Status& status) {
  if (owner_ == nullptr || number != current_.number || !status.ok()) return;
  const auto self = shared_from_this();
  Do(core_.OnOpened(PeerEndpoints::CoreOf(*current_.endpoint).peer_attempt()));
  Settle();
}

// With the callbacks of its operations behind it.
void PeerLink::OnEnded(uint64_t number, absl::Status why) {
  if (owner_ == nullptr) return;
  const auto self = shared_from_this();
  const auto at = std::find_if(retired_.begin(), retired_.end(),
                               [&](const Member& member) { return member.number == number; });
  if (number == current_.number) {
    OnCurrentEnded(std::move(why));
  } else if (number == held_.number) {
    owner_->Part(std::exchange(held_, {}).endpoint);
    Do(core_.OnHeldGone());
  } else if (at != retired_.end()) {
    std::unique_ptr<RdmaEndpoint> endpoint = std::move(at->endpoint);
    retired_.erase(at);
    OnRetired(std::move(endpoint), std::move(why));
  }
  Settle();
}

// The endpoint, or the stream that was being made.
void PeerLink::OnCurrentEnded(absl::Status why) {
  const auto self = shared_from_this();
  Member gone = std::exchange(current_, {});
  const bool told = std::exchange(told_, false);
  open_late_ = false;
  last_ = why;
  const bool mendable = MayFareBetter(why);
  if (gone.endpoint != nullptr) {
    retry_after_ = gone.endpoint->retry_after();
    if (BytesMoved(gone.endpoint->stats())) backoff_.Reset();
  }
  const bool wanted = core_.wanted();
  const PeerAction action = core_.OnEnded(mendable);
  const bool gives_up = wanted && !core_.wanted();
  Do(action);
  if (told) return OnRetired(std::move(gone.endpoint), std::move(why));
  if (gone.endpoint != nullptr) owner_->Part(std::move(gone.endpoint));
  if (gives_up) owner_->OnEnd(*this, nullptr, std::move(why));
}

void PeerLink::OnRetired(std::unique_ptr<RdmaEndpoint> endpoint, absl::Status why) {
  owner_->OnEnd(*this, std::move(endpoint), std::move(why));
  if (owner_ != nullptr && open_late_ && retired_.empty()) Tell();
}

// --- Work ---

// No endpoint will open for it.
void PeerLink::FailQueue() {
  WorkList works = queue_.TakeAll();
  queue_timer_->Cancel();
  if (!works.empty()) owner_->Fail(std::move(works), Explain(last_.code(), MessageOf(last_)));
}

absl::Status PeerLink::Explain(absl::StatusCode code, std::string_view why) const {
  return absl::Status(code, absl::StrCat("RDMA send to ", name_, ": ", AbslView(why)));
}

void PeerLink::ArmQueueTimer() {
  const int64_t deadline = queue_.next_deadline_ns();
  if (deadline == Work::kNever) return queue_timer_->Cancel();
  const int64_t left = deadline - loop_.core().sys().Now();
  queue_timer_->Arm(absl::Nanoseconds(std::max<int64_t>(left, 0)), [this] { OnQueueTime(); });
}

void PeerLink::OnQueueTime() {
  WorkList expired = queue_.TakeExpired(loop_.core().sys().Now());
  ArmQueueTimer();
  if (expired.empty()) return;
  owner_->Fail(std::move(expired), Explain(absl::StatusCode::kDeadlineExceeded,
                                           "wait_max has passed before an endpoint was open"));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
