#include "secure/seal_state.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "buffer/heap_buffer.h"
#include "secure/sealed_stream.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// How long a peer that was refused may take to read why.
constexpr absl::Duration kTellMax = absl::Seconds(2);

// One step of a handshake, away from its loop. Says so when it is dropped unrun. It has the place
// in the limiter meanwhile: what a deadline has ended still takes memory, until the executor comes
// to it.
class StepJob {
 public:
  StepJob(std::weak_ptr<SealState> state, LoopHandle loop, std::unique_ptr<Handshaker> handshaker,
          SealTicket ticket, std::string in)
      : state_(std::move(state)),
        loop_(std::move(loop)),
        ticket_(std::move(ticket)),
        handshaker_(std::move(handshaker)),
        in_(std::move(in)) {}
  StepJob(StepJob&& other) noexcept = default;
  ~StepJob() {
    if (handshaker_ == nullptr) return;
    loop_.Post([state = std::move(state_)] {
      if (const auto self = state.lock()) self->OnJobDropped();
    });
  }

  void operator()() && {
    if (state_.expired()) {
      handshaker_ = nullptr;
      return ticket_.Release();
    }
    Handshaker::Progress progress = handshaker_->Step(in_);
    loop_.Post([state = std::move(state_), ticket = std::move(ticket_),
                handshaker = std::move(handshaker_), progress = std::move(progress)]() mutable {
      if (const auto self = state.lock()) {
        self->OnStepped(std::move(handshaker), std::move(ticket), std::move(progress));
      }
    });
  }

 private:
  std::weak_ptr<SealState> state_;
  LoopHandle loop_;
  SealTicket ticket_;
  std::unique_ptr<Handshaker> handshaker_;
  std::string in_;
};

// The caller's way to answer. Refuses when it is dropped unused.
class VerdictGiver {
 public:
  explicit VerdictGiver(std::weak_ptr<SealState> state) : state_(std::move(state)) {}
  VerdictGiver(VerdictGiver&& other) noexcept = default;
  ~VerdictGiver() { Give(absl::PermissionDeniedError("the authorization was dropped")); }
  void operator()(absl::Status verdict) && { Give(std::move(verdict)); }

 private:
  void Give(absl::Status verdict) {
    const std::weak_ptr<SealState> state = std::move(state_);
    if (const auto self = state.lock()) self->OnVerdict(std::move(verdict));
  }

  std::weak_ptr<SealState> state_;
};

}  // namespace

SealState::SealState(SealLoop& seal_loop, StreamPtr plain, SealOptions options,
                     SealedPeerCallback done)
    : Deferred([](Deferred* node) { static_cast<SealState*>(node)->Run(); }),
      seal_loop_(seal_loop),
      plain_(std::move(plain)),
      anchor_(plain_->connection()),
      options_(std::move(options)),
      done_(std::move(done)),
      deadline_(seal_loop.core().timers()) {}

// --- The caller's side ---

void SealState::Start(std::unique_ptr<Handshaker> handshaker) {
  handshaker_ = std::move(handshaker);
  Join();
}

void SealState::Start(CredentialsPtr credentials, HandshakeOptions handshake) {
  making_ = std::make_unique<Making>(Making{std::move(credentials), std::move(handshake)});
  Join();
}

void SealState::Join() {
  self_ = shared_from_this();
  seal_loop_.Join(*this);
  seal_loop_.core().Defer(*this);
  if (options_.deadline != absl::InfiniteDuration()) {
    deadline_.Arm(TimerWheel::DeadlineTick(seal_loop_.core().sys().Now(), options_.deadline),
                  [this] { OnDeadline(); });
  }
}

void SealState::Cancel() {
  if (phase_ == Phase::kTelling || phase_ == Phase::kEnded || !failure_.ok()) return;
  failure_ = absl::CancelledError("cancelled");
  seal_loop_.core().Defer(*this);
}

// --- Steps ---

void SealState::Run() {
  const std::shared_ptr<SealState> self = shared_from_this();
  if (!failure_.ok()) return End(Explain(failure_));
  switch (phase_) {
    case Phase::kNew:
      if (making_ == nullptr || !making_->credentials->PeerSpeaksFirst(making_->handshake)) {
        return EnterQueue();
      }
      phase_ = Phase::kSilent;
      return Read();
    case Phase::kAdmitted:
      return Begin();
    case Phase::kAuthorizing:
      if (!verdict_.has_value()) return;
      return OnAuthorized(handshaker_->Authorize(*verdict_));
    case Phase::kWaiting:
      if (std::exchange(woken_, false)) Step();
      return;
    default:
      return;
  }
}

void SealState::EnterQueue() {
  if (options_.limiter == nullptr) return Begin();
  SealQueue& queue = *options_.limiter->queue_;
  const auto admit = [state = weak_from_this()](SealTicket ticket) {
    const auto self = state.lock();
    if (self == nullptr || self->phase_ != Phase::kQueued) return;
    self->ticket_ = std::move(ticket);
    self->phase_ = Phase::kAdmitted;
    self->seal_loop_.core().Defer(*self);
  };
  switch (queue.Enter(this, loop_handle(), admit, ticket_)) {
    case SealQueue::Answer::kAdmitted:
      return Begin();
    case SealQueue::Answer::kWaiting:
      phase_ = Phase::kQueued;
      return;
    case SealQueue::Answer::kRefused:
      return End(Explain(absl::ResourceExhaustedError("too many handshakes run and wait")));
  }
}

void SealState::Begin() {
  if (const std::unique_ptr<Making> making = std::move(making_)) {
    absl::StatusOr<std::unique_ptr<Handshaker>> made =
        making->credentials->NewHandshaker(making->handshake);
    if (!made.ok()) return End(Explain(made.status()));
    handshaker_ = *std::move(made);
  }
  handshaker_->SetWake([state = weak_from_this(), loop = loop_handle()] {
    loop.Post([state] {
      if (const auto self = state.lock()) self->OnWake();
    });
  });
  Step();
}

void SealState::Step() {
  shown_ = std::exchange(begun_, true);
  const size_t allowed = shown_ ? options_.handshake_bytes_max - consumed_ : 0;
  const std::string_view in = std::string_view(rest_).substr(0, allowed);
  if (options_.executor == nullptr || !handshaker_->MayStepElsewhere()) {
    return Advance(handshaker_->Step(in));
  }
  phase_ = Phase::kStepping;
  (*options_.executor)(StepJob(weak_from_this(), loop_handle(), std::move(handshaker_),
                               std::move(ticket_), std::string(in)));
}

void SealState::OnStepped(std::unique_ptr<Handshaker> handshaker, SealTicket ticket,
                          Handshaker::Progress progress) {
  if (phase_ != Phase::kStepping) return;
  const std::shared_ptr<SealState> self = shared_from_this();
  handshaker_ = std::move(handshaker);
  ticket_ = std::move(ticket);
  if (!failure_.ok()) return;  // Run is about to end this
  Advance(std::move(progress));
}

void SealState::OnJobDropped() {
  if (phase_ != Phase::kStepping) return;
  const std::shared_ptr<SealState> self = shared_from_this();
  End(Explain(absl::CancelledError("the executor dropped the handshake")));
}

void SealState::Advance(Handshaker::Progress progress) {
  consumed_ += progress.consumed;
  rest_.erase(0, progress.consumed);
  const bool tells = progress.state == Handshaker::State::kFailed && !progress.out.empty();
  if (tells) {
    plain_->Write(HeapBuffer(std::move(progress.out)), [this](absl::Status) { OnTold(); });
  } else if (!progress.out.empty()) {
    plain_->Write(HeapBuffer(std::move(progress.out)));
  }
  switch (progress.state) {
    case Handshaker::State::kMore:
      if (!shown_ && !rest_.empty()) return Step();
      if (consumed_ + rest_.size() >= options_.handshake_bytes_max) {
        return End(Explain(absl::ResourceExhaustedError(
            absl::StrCat("the peer sent ", options_.handshake_bytes_max,
                         " bytes and no end of its handshake"))));
      }
      phase_ = Phase::kReading;
      return Read();
    case Handshaker::State::kAuthorize:
      return Ask();
    case Handshaker::State::kWaiting:
      phase_ = Phase::kWaiting;
      if (woken_) seal_loop_.core().Defer(*this);
      return;
    case Handshaker::State::kDone:
      return Finish();
    case Handshaker::State::kFailed:
      return tells ? Tell(progress.error) : End(Explain(progress.error));
  }
}

void SealState::Read() {
  plain_->ReadReady([this](absl::StatusOr<Buffer> data) { OnRead(std::move(data)); });
}

void SealState::OnRead(absl::StatusOr<Buffer> data) {
  if (!failure_.ok()) return;  // Run is about to end this
  const std::shared_ptr<SealState> self = shared_from_this();
  if (data.ok()) {
    rest_.append(data->data(), data->size());
    *data = Buffer();
    return phase_ == Phase::kSilent ? EnterQueue() : Step();
  }
  if (IsEof(data.status())) {
    return End(Explain(handshaker_ != nullptr
                           ? handshaker_->OnPeerEnd()
                           : absl::DataLossError("the peer ended the stream without a word")));
  }
  End(Explain(data.status()));
}

void SealState::Ask() {
  phase_ = Phase::kAuthorizing;
  verdict_.reset();
  if (!options_.authorize) return OnAuthorized(handshaker_->Authorize(absl::OkStatus()));
  options_.authorize(handshaker_->peer(), *plain_, VerdictGiver(weak_from_this()));
}

void SealState::OnVerdict(absl::Status verdict) {
  if (phase_ != Phase::kAuthorizing || verdict_.has_value()) return;
  verdict_ = std::move(verdict);
  seal_loop_.core().Defer(*this);
}

void SealState::OnAuthorized(Handshaker::Progress progress) {
  shown_ = false;
  Advance(std::move(progress));
}

void SealState::OnWake() {
  woken_ = true;
  if (phase_ == Phase::kWaiting) seal_loop_.core().Defer(*this);
}

// --- Ends ---

void SealState::Finish() {
  HandshakeResult keys = handshaker_->TakeResult();
  PeerIdentity identity = std::move(keys.peer);
  handshaker_ = nullptr;
  BufferChain first;
  if (!rest_.empty()) {
    absl::StatusOr<Buffer> copy = seal_loop_.core().pool().Copy(rest_, BufferTag::kSeal);
    first.Append(copy.ok() ? *std::move(copy) : HeapBuffer(std::move(rest_)));
  }
  anchor_.Lift();
  // `plain_` stays after an error, which then names the peer.
  absl::StatusOr<StreamPtr> sealed =
      SealedStream::Create(seal_loop_, std::move(plain_), std::move(keys), std::move(first));
  if (!sealed.ok()) return End(Explain(sealed.status()));
  End(SealedPeer{*std::move(sealed), std::move(identity)});
}

void SealState::Tell(absl::Status error) {
  phase_ = Phase::kTelling;
  alerted_ = handshaker_->FailsWithAnAlert();
  handshaker_ = nullptr;
  ticket_ = SealTicket();
  rest_ = std::string();
  const absl::Status told = Explain(error);
  deadline_.Arm(TimerWheel::DeadlineTick(seal_loop_.core().sys().Now(),
                                         std::min(options_.deadline, kTellMax)),
                [this] { OnDeadline(); });
  if (alerted_) {
    plain_->ShutdownWrite();
    ReadAway();
  }
  CallDone(told);
}

void SealState::OnTold() {
  if (alerted_) return;  // ReadAway waits for what the peer does
  const std::shared_ptr<SealState> self = shared_from_this();
  End(absl::CancelledError());
}

// What the peer has sent must be read, or closing resets the connection (tcp(7)).
void SealState::ReadAway() {
  plain_->ReadReady([this](absl::StatusOr<Buffer> data) {
    if (data.ok()) read_away_ += data->size();
    if (data.ok() && read_away_ < options_.handshake_bytes_max) return ReadAway();
    End(absl::CancelledError());
  });
}

void SealState::OnDeadline() {
  if (!failure_.ok()) return;  // Run is about to end this
  const std::shared_ptr<SealState> self = shared_from_this();
  if (phase_ == Phase::kTelling) return End(absl::CancelledError());
  seal_loop_.core().counters().deadlines.Add(1);
  const std::string missing = phase_ == Phase::kSilent        ? "the peer's first bytes"
                              : phase_ <= Phase::kAdmitted    ? "its turn"
                              : phase_ == Phase::kAuthorizing ? "the authorization"
                              : handshaker_ == nullptr        ? "the executor"
                                                              : std::string(handshaker_->phase());
  End(Explain(absl::DeadlineExceededError(
      absl::StrCat("waited ", absl::FormatDuration(options_.deadline), " in vain for ", missing))));
}

void SealState::End(absl::StatusOr<SealedPeer> result) {
  const std::shared_ptr<SealState> self = std::move(self_);
  // The peer may be done with its handshake: an orderly end would look to it like one of the
  // stream, unless it has heard better.
  if (!result.ok() && !alerted_) plain_->Abort();
  if (phase_ == Phase::kQueued) options_.limiter->queue_->Forget(this);
  phase_ = Phase::kEnded;
  deadline_.Cancel();
  Deferred::Cancel();
  Leave();
  handshaker_ = nullptr;
  ticket_ = SealTicket();
  anchor_.Lift();
  const StreamPtr plain = std::move(plain_);
  CallDone(std::move(result));
}

// Once: calling an AnyInvocable does not empty it.
void SealState::CallDone(absl::StatusOr<SealedPeer> result) {
  SealedPeerCallback done = std::move(done_);
  if (done) std::move(done)(std::move(result));
}

void SealState::OnLoopGone() {
  const std::shared_ptr<SealState> self = std::move(self_);
  if (!alerted_) plain_->Abort();  // as in End
  if (phase_ == Phase::kQueued) options_.limiter->queue_->Forget(this);
  phase_ = Phase::kEnded;
  deadline_.Cancel();
  Deferred::Cancel();
  handshaker_ = nullptr;
  ticket_ = SealTicket();
  const SealedPeerCallback unrun = std::move(done_);
  anchor_.Lift();
  const StreamPtr plain = std::move(plain_);
}

absl::Status SealState::Explain(const absl::Status& status) const {
  const std::string peer = plain_ != nullptr ? plain_->peer().ToString() : std::string();
  const std::string message(status.message());
  if (peer.empty() || absl::StrContains(message, peer)) return status;
  return absl::Status(status.code(), absl::StrCat("handshake with ", peer, ": ", message));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
