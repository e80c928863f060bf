// How a Connection moves, to the other engine of its loop or to another loop; the rest of it is in
// connection.cc. engine/parcel.h has the states.
#include <sys/socket.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

MoveRefusal RefusalOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnimplemented:
      return MoveRefusal::kUnsupported;
    case absl::StatusCode::kFailedPrecondition:
      return MoveRefusal::kBusy;
    case absl::StatusCode::kResourceExhausted:
      return MoveRefusal::kNoRoom;
    case absl::StatusCode::kUnavailable:
      return MoveRefusal::kGone;
    default:
      return MoveRefusal::kError;
  }
}

// Tells a listener on its own loop, if that still exists, of the end of a connection that it
// accepted and that has moved away.
class RemoteCloseObserver : public CloseObserver {
 public:
  RemoteCloseObserver(LoopHandle loop, std::shared_ptr<CloseObserver> observer)
      : loop_(std::move(loop)), observer_(std::move(observer)) {}
  void OnConnectionClosed() override {
    loop_.Post([observer = std::move(observer_)] { observer->OnConnectionClosed(); });
  }

 private:
  LoopHandle loop_;
  std::shared_ptr<CloseObserver> observer_;
};

}  // namespace

// Carries a connection to a loop, as a task for it. Destroyed unrun, for that loop has gone, it
// goes back to where the connection came from; and when that has gone too, the connection ends.
class Connection::Transit {
 public:
  enum class Way : uint8_t { kThere, kBack };

  // Posts one; `connection` may be anywhere afterwards.
  static void Send(Connection& connection, Way way) {
    const Parcel& parcel = *connection.parcel_;
    const LoopHandle to = way == Way::kThere ? *parcel.target : parcel.source;
    Transit transit(connection, to.core_, way);
    if (to.mailbox_ == nullptr) return;  // a handle of no loop: as if it had gone
    // Back it goes to the mailbox in any case, which goes with the loop, on its thread.
    way == Way::kThere ? to.mailbox_->PushMove(std::move(transit))
                       : to.mailbox_->Push(std::move(transit));
  }

  Transit(Transit&& other) noexcept
      : connection_(std::exchange(other.connection_, nullptr)),
        loop_(other.loop_),
        way_(other.way_) {}
  Transit& operator=(Transit&&) = delete;
  ~Transit() {
    if (connection_ == nullptr) return;
    if (way_ == Way::kThere) {
      connection_->parcel_->target.reset();  // nobody there counts the refusal
      connection_->parcel_->refusal =
          connection_->MoveError(absl::UnavailableError("the target loop is gone"));
      Send(*connection_, Way::kBack);
    } else {
      connection_->EndInTransit();
    }
  }

  void operator()() && {
    Connection& connection = *std::exchange(connection_, nullptr);
    way_ == Way::kThere ? connection.Arrive(*loop_) : connection.ComeBack(*loop_);
  }

 private:
  Transit(Connection& connection, LoopCore* loop, Way way)
      : connection_(&connection), loop_(loop), way_(way) {}

  Connection* connection_;
  LoopCore* loop_;  // alive whenever this runs: as a task of its own
  Way way_;
};

// --- Asking ---

void Connection::Move(EngineKind engine, const LoopHandle* target, DoneCallback&& done) {
  CheckThread();
  if (loop_ == nullptr) return;
  if (parcel_ == nullptr) {
    parcel_ = std::make_unique<Parcel>(
        *this, [](Deferred* node) { static_cast<Parcel*>(node)->connection.BeginMove(); });
    parcel_->switches = loop_->switches_ended();
  } else if (parcel_->callbacks.done) {
    parcel_->callbacks.replaced.push(std::move(parcel_->callbacks.done));
  }
  parcel_->Apply(MoveEvent::kAsk);
  parcel_->engine = engine;
  parcel_->target.reset();
  // A move to its own loop is at most a switch.
  if (target != nullptr && target->core_ != loop_) parcel_->target = *target;
  parcel_->callbacks.done = std::move(done);
  if (state_ != ConnectionState::kOpen) {
    parcel_->refusal = write_end_.ok() ? Refusal("move", "it is not open") : write_end_;
  }
  if (parcel_->state == MoveState::kAsked) loop_->Defer(*parcel_);
}

void Connection::BeginMove() {
  Parcel& parcel = *parcel_;
  if (parcel.state == MoveState::kInTransit) return Proceed();
  if (!parcel.refusal.ok()) return FinishMove(std::exchange(parcel.refusal, absl::OkStatus()));
  if (!parcel.target.has_value()) {
    const absl::StatusOr<Engine*> to = loop_->EngineFor(parcel.engine);
    if (!to.ok()) {
      CountRefused(RefusalOf(to.status()));
      // It may have taken the place of the move that was to rescue it.
      if (engine_->broken()) loop_->LeaveBrokenAgain();
      return FinishMove(MoveError(to.status()));
    }
    if (*to == engine_) return FinishMove(absl::OkStatus());
  }
  parcel.Apply(MoveEvent::kBegin);
  parcel.began_ns = loop_->sys().Now();
  parcel.from = engine_;
  suspended_ = true;
  if (engine_->Release(*this)) OnReleased();
}

absl::Status Connection::MoveError(const absl::Status& why) const {
  return PeerStatus(why.code(), "move the connection to", &peer_,
                    std::string_view(why.message().data(), why.message().size()));
}

void Connection::CountRefused(MoveRefusal why) {
  const bool leaves = parcel_->target.has_value();
  loop_->CountRefusal(leaves ? MoveDirection::kOut : loop_->DirectionTo(parcel_->engine), why);
}

// --- The old engine has let go ---

void Connection::OnReleased() {
  parcel_->Apply(MoveEvent::kReleased);
  loop_->counters().bytes_carried.Add(rx_.size() + tx_.size());
  Proceed();
}

void Connection::Proceed() {
  if (parcel_->target.has_value()) return HandOver();
  absl::StatusOr<Engine*> to = loop_->EngineFor(parcel_->engine);
  absl::Status status = to.status();
  if (status.ok()) {
    status = AttachTo(**to);
    if (status.ok() && engine_ == parcel_->from) {
      return Settled(absl::OkStatus());  // a later move has called it back
    }
    if (status.ok()) {
      LoopCounters& counters = loop_->counters();
      (engine_->kind() == EngineKind::kUring ? counters.switches_to_uring
                                             : counters.switches_to_epoll)
          .Add(1);
      return Settled(absl::OkStatus());
    }
  }
  Stay(std::move(status));
}

void Connection::OnNotReleased() {
  const absl::StatusOr<Engine*> to = loop_->EngineFor(parcel_->engine);
  if (!parcel_->target.has_value() && to.ok() && *to == engine_) {
    return Settled(absl::OkStatus());  // a later move has called it back
  }
  CountRefused(MoveRefusal::kHeld);
  const absl::Status why =
      MoveError(absl::UnavailableError("the kernel does not end what it was told to end"));
  loop_->EngineFault(engine_->kind(), why.ToString());
  Settled(why);
}

void Connection::BelongTo(Engine& engine) {
  loop_->slots().Renew(slot_);
  const bool open = state_ == ConnectionState::kOpen;
  if (open) CountEngine(-1);
  engine_ = &engine;
  if (open) CountEngine(1);
}

absl::Status Connection::AttachTo(Engine& engine) {
  BelongTo(engine);
  return engine.Attach(*this);
}

void Connection::Stay(absl::Status why) {
  CountRefused(RefusalOf(why));
  Engine& from = *parcel_->from;
  absl::StatusOr<Engine*> back = &from;
  const bool follows = parcel_->target.has_value() && HasMissedSwitch(*loop_);
  if (follows || from.broken()) back = loop_->EngineFor(EngineKind::kAuto);
  absl::Status again = back.ok() ? AttachTo(**back) : back.status();
  if (!again.ok() && follows && !from.broken()) again = AttachTo(from);
  if (!again.ok()) {
    if (!from.broken()) return Strand(again);
    BelongTo(from);
    loop_->LeaveBrokenLater(again);
  }
  Settled(MoveError(why));
}

void Connection::Strand(const absl::Status& why) {
  loop_->counters().stranded.Add(1);
  loop_->EngineFault(engine_->kind(), why.ToString());
  Hold();
  End(MoveError(why), true);
  Drop();
}

void Connection::Settled(absl::Status status) {
  const int64_t pause = std::max<int64_t>(loop_->sys().Now() - parcel_->began_ns, 0);
  const auto bucket = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(pause) / 1000));
  loop_->counters().pauses[std::min(bucket, kPauseBuckets - 1)].Add(1);
  loop_->counters().pause_ns.Add(static_cast<uint64_t>(pause));
  parcel_->Apply(MoveEvent::kTaken);
  // Whoever serves it finds out for itself: the poll that waited for room may have ended meanwhile.
  write_blocked_ = false;
  FinishMove(std::move(status));
}

void Connection::FinishMove(absl::Status status) {
  Hold();
  suspended_ = false;
  {
    const std::unique_ptr<Parcel> parcel = std::move(parcel_);
    Parcel::Callbacks& callbacks = parcel->callbacks;
    while (!callbacks.replaced.empty()) {
      extras().move_ends.push({callbacks.replaced.pop(),
                               MoveError(absl::CancelledError("a later move took its place"))});
    }
    if (callbacks.done) extras().move_ends.push({std::move(callbacks.done), std::move(status)});
  }
  // Before whatever the move has held up.
  in_service_ = true;
  while (extras_ != nullptr && !extras_->move_ends.empty()) {
    MoveEnd end = extras_->move_ends.pop();
    std::move(end.done)(std::move(end.status));
  }
  in_service_ = false;
  FreeExtras();
  Service();
  Drop();
}

void Connection::EndMove() {
  suspended_ = false;
  if (parcel_ == nullptr) return;
  parcel_->Apply(MoveEvent::kEnd);
  parcel_->refusal = write_end_.ok() ? Refusal("move", "it was closed") : write_end_;
  loop_->Defer(*parcel_);
}

void Connection::EndIfConnectingByBroken() {
  if (!engine_->broken() || state_ != ConnectionState::kConnecting) return;
  End(PeerStatus(absl::StatusCode::kUnavailable, "connect to", &peer_,
                 "the engine that waited for it has failed"),
      true);
}

// --- To another loop ---

void Connection::HandOver() {
  // The loop's list still has it; suspended, it is taken off without being served.
  if (ready_) return loop_->Defer(*parcel_);
  for (Layer* layer = layers_; layer != nullptr; layer = layer->above_) {
    if (absl::Status status = layer->MayLeave(); !status.ok()) return Stay(std::move(status));
  }
  parcel_->source = loop_->handle();
  parcel_->source_engine = engine_->kind();
  parcel_->sys = &loop_->sys();
  if (observer_ != nullptr && !observer_is_remote_) {
    observer_is_remote_ = true;
    observer_ = std::make_shared<RemoteCloseObserver>(parcel_->source, std::move(observer_));
  }
  loop_->counters().moves_out.Add(1);
  parcel_->away = loop_->NewAwayTicket();  // before the loop counts it no more
  LeaveLoop(nullptr);
  Transit::Send(*this, Transit::Way::kThere);
}

void Connection::LeaveLoop(const Layer* first_not) {
  for (Layer* layer = layers_; layer != first_not; layer = layer->above_) layer->OnLeave();
  loop_->Leave(*this);
  engine_ = nullptr;
  loop_ = nullptr;
}

absl::Status Connection::JoinLoop(LoopCore& loop, EngineKind kind) {
  const absl::StatusOr<Engine*> engine = loop.EngineFor(kind);
  if (!engine.ok()) return engine.status();
  loop_ = &loop;
  engine_ = *engine;
  loop.Join(*this);
  absl::Status status;
  const Layer* failed = nullptr;
  for (Layer* layer = layers_; layer != nullptr && status.ok(); layer = layer->above_) {
    status = layer->OnJoin(loop);
    if (!status.ok()) failed = layer;
  }
  if (status.ok()) status = engine_->Attach(*this);
  if (!status.ok()) LeaveLoop(failed);
  return status;
}

bool Connection::JoinWithoutEngine(LoopCore& loop) {
  loop_ = &loop;
  engine_ = &loop.primary();
  loop.Join(*this);
  bool whole = true;
  for (Layer* layer = layers_; layer != nullptr; layer = layer->above_) {
    if (layer->OnJoin(loop).ok()) continue;
    layer->OnLost();
    whole = false;
  }
  return whole;
}

void Connection::Arrive(LoopCore& loop) {
  absl::Status status = loop.AdmitMove();
  if (status.ok()) status = JoinLoop(loop, parcel_->engine);
  if (!status.ok()) {
    loop.CountRefusal(MoveDirection::kIn, RefusalOf(status));
    parcel_->refusal = MoveError(status);
    return Transit::Send(*this, Transit::Way::kBack);
  }
  loop.counters().moves_in.Add(1);
  Settled(absl::OkStatus());
}

bool Connection::HasMissedSwitch(const LoopCore& loop) const {
  return parcel_->switches != loop.switches_begun() && !pinned_engine_;
}

void Connection::ComeBack(LoopCore& loop) {
  loop.counters().moves_back.Add(1);
  if (!parcel_->target.has_value()) loop.CountRefusal(MoveDirection::kOut, MoveRefusal::kGone);
  const bool same = loop.EngineFor(parcel_->source_engine).ok();
  const bool follows = HasMissedSwitch(loop);
  absl::Status status =
      JoinLoop(loop, same && !follows ? parcel_->source_engine : EngineKind::kAuto);
  if (!status.ok() && same && follows) status = JoinLoop(loop, parcel_->source_engine);
  if (!status.ok()) {
    const bool whole = JoinWithoutEngine(loop);
    // It has nowhere to be; whoever waits for it is told so. But a failed engine has a successor.
    if (!whole || !engine_->broken()) return Strand(status);
    loop.LeaveBrokenLater(status);
  }
  Hold();
  Settled(std::exchange(parcel_->refusal, absl::OkStatus()));
  if (loop.drain_over()) EndDrained();
  Drop();
}

void Connection::EndInTransit() {
  state_ = ConnectionState::kClosed;  // of no loop, so counted by none
  const bool reset = BytesLost();
  if (reset) {
    const linger now{.l_onoff = 1, .l_linger = 0};  // socket(7): close sends RST
    parcel_->sys->SetOption(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }
  parcel_->sys->Close(std::exchange(fd_, -1));
  if (observer_ != nullptr) std::exchange(observer_, nullptr)->OnConnectionClosed();
  {
    // Destroyed last: a callback may own the stream of this connection, or others.
    const std::unique_ptr<Parcel> parcel = std::move(parcel_);
    const Callbacks unrun = TakeCallbacks();
    const BufferChain unsent = std::move(tx_);
    const BufferChain unread = std::move(rx_);
    suspended_ = false;
    // One may own those above it.
    while (layers_ != nullptr) {
      Layer& layer = *layers_;
      RemoveLayer(layer);
      layer.OnLost();
    }
  }
  Drop();
}

Connection::MoveCallbacks Connection::TakeMoveCallbacks() {
  MoveCallbacks taken;
  if (parcel_ != nullptr) taken.under_way = std::exchange(parcel_->callbacks, {});
  if (extras_ != nullptr) taken.ended = std::exchange(extras_->move_ends, {});
  return taken;
}

void Connection::AddLayer(Layer& layer) {
  Layer** end = &layers_;
  while (*end != nullptr) end = &(*end)->above_;
  *end = &layer;
}

void Connection::RemoveLayer(Layer& layer) {
  for (Layer** at = &layers_; *at != nullptr; at = &(*at)->above_) {
    if (*at != &layer) continue;
    *at = std::exchange(layer.above_, nullptr);
    return;
  }
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
