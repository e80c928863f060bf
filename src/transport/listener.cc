#include <penstock/listener.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/fifo.h"
#include "base/timer_wheel.h"
#include "engine/loop_core.h"
#include "transport/check_options.h"
#include "transport/socket_stream.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

constexpr std::string_view kOperation = "listen on";

constexpr absl::Duration kRetryMin = absl::Milliseconds(10);
constexpr absl::Duration kRetryMax = absl::Seconds(1);
// Between two lines of one listener's log: each stream that goes meanwhile has it try again.
constexpr int64_t kLogPauseNs = 1'000'000'000;

// Why a listener takes no connections; it accepts while none of these holds.
enum PauseReason : uint8_t {
  kByOwner = 1,
  kAtLimit = 2,    // its own connections_max, or the loop's
  kExhausted = 4,  // descriptors or memory have run out
  kDraining = 8,   // the loop is ending, and the socket closed
  kRefused = 16,   // the kernel lets nobody in
};

class SocketListener;

// Of accept(2)'s errors those that are the peer's or the network's doing: the next may do better.
bool IsOfOneConnection(int error) {
  switch (error) {
    case ECONNABORTED:
    case EHOSTDOWN:
    case EHOSTUNREACH:
    case EINTR:
    case ENETDOWN:
    case ENETUNREACH:
    case ENONET:
    case ENOPROTOOPT:
    case EOPNOTSUPP:
    case EPROTO:
    case ETIMEDOUT:
      return true;
    default:
      return false;
  }
}

// Counts the streams of a listener that are open; outlives it in the streams that do.
class OpenCount : public CloseObserver {
 public:
  explicit OpenCount(SocketListener* listener) : listener_(listener) {}
  void OnConnectionClosed() override;
  void Forget() { listener_ = nullptr; }
  SocketListener* listener() const { return listener_; }

  uint64_t open = 0;

 private:
  SocketListener* listener_;
};

class SocketListener final : public Listener, public Acceptor, private LoopObserver {
 public:
  SocketListener(LoopCore& core, ListenOptions options, AcceptCallback on_accept)
      : core_(&core),
        options_(std::move(options)),
        on_accept_(std::move(on_accept)),
        count_(std::make_shared<OpenCount>(this)),
        retry_timer_(core.timers()) {}

  ~SocketListener() override {
    count_->Forget();
    if (destroyed_ != nullptr) *destroyed_ = true;
    Close();
  }

  absl::Status Open(Engine& chosen, const SocketAddress& wanted) {
    if (core_->draining()) {
      return PeerStatus(absl::StatusCode::kFailedPrecondition, kOperation, &wanted,
                        "the loop is draining");
    }
    const SocketSetup setup{.stream = &options_.stream,
                            .reuse_port = options_.reuse_port,
                            .unlink_stale = options_.unlink_path,
                            .backlog = options_.backlog};
    absl::StatusOr<int> socket = chosen.OpenListener(wanted, setup);
    if (!socket.ok()) return socket.status();
    fd = *socket;
    address_ = chosen.LocalAddress(fd);
    if (absl::Status status = chosen.Add(*this); !status.ok()) {
      chosen.CloseSocket(std::exchange(fd, -1), false);
      return Explain(status, kOperation, wanted);
    }
    engine = stream_engine_ = &chosen;
    core_->counters().listeners.Add(1);
    core_->AddObserver(this);
    engine->Accept(*this);
    return absl::OkStatus();
  }

  // --- Listener ---
  SocketAddress address() const override { return address_; }
  void Pause() override { SetReason(kByOwner, true); }
  void Resume() override {
    SetReason(kByOwner, false);
    TakeUpRoom();
  }
  ListenerStats stats() const override {
    ListenerStats stats = stats_;
    stats.open = count_->open;
    stats.paused = reasons_ != 0;
    return stats;
  }

  absl::Status SwitchEngine(EngineKind to) override { return Switch(to, nullptr); }

  // `switched`: of a switch that has begun, what becomes of it.
  absl::Status Switch(EngineKind to, ListenerSwitched switched) {
    if (fd < 0) {
      return PeerStatus(absl::StatusCode::kFailedPrecondition, kOperation, &address_,
                        "the listener is closed");
    }
    const absl::StatusOr<Engine*> chosen = core_->EngineFor(to);
    if (!chosen.ok()) return Explain(chosen.status(), kOperation, address_);
    stream_engine_ = *chosen;
    if (hold_ == Hold::kEngine && engine == stream_engine_) return absl::OkStatus();
    switched_ = std::move(switched);
    if (hold_ != Hold::kEngine) return absl::OkStatus();
    hold_ = Hold::kReleasing;
    refusal_counted_ = false;
    if (engine->Release(*this)) OnReleased();
    return absl::OkStatus();
  }

  // --- Acceptor ---
  void OnReleased() override {
    hold_ = Hold::kNone;
    const absl::Status refused = stream_engine_->Add(*this);
    if (refused.ok()) return BelongTo(*stream_engine_, refused);
    CountRefusal(refused);
    if (engine->Add(*this).ok()) return BelongTo(*engine, refused);
    retry_timer_.Arm(TimerWheel::DeadlineTick(core_->sys().Now(), kRetryMax), [this] { Retry(); });
    Told(refused);
  }

  void OnNotReleased() override {
    if (stream_engine_ == engine) return BelongTo(*engine, absl::OkStatus());  // called back
    const absl::Status held = PeerStatus(
        absl::StatusCode::kUnavailable, kOperation, &address_,
        "the kernel does not end what it was told to end; its engine keeps the listener");
    core_->counters().listener_switches_refused.Add(1);
    core_->EngineFault(engine->kind(), held.ToString());
    BelongTo(*engine, held);
  }

  void OnAccepted(int accepted, const SocketAddress& peer) override {
    ++stats_.accepted;
    core_->counters().accepted.Add(1);
    retry_after_ = kRetryMin;
    if (!HasRoom() || (reasons_ & kByOwner)) {
      // Accepted by the kernel before accepting stopped (io_uring takes several at once): it waits
      // here as it would in the backlog.
      parked_.push({accepted, peer});
      return SetReason(kAtLimit, true);
    }
    Admit(accepted, peer);
  }

  void OnAcceptFailed(int error) override {
    switch (error) {
      case EMFILE:
      case ENFILE:
        ++stats_.fd_exhausted;
        core_->counters().fd_exhausted.Add(1);
        if (engine->RefuseOne(*this)) {
          ++stats_.refused;
          core_->counters().accepts_refused.Add(1);
        }
        return WaitFor(kExhausted, "out of descriptors");
      case ENOBUFS:
      case ENOMEM:
        ++stats_.errors;
        core_->counters().accept_errors.Add(1);
        return WaitFor(kExhausted, "out of memory");
      default:
        ++stats_.errors;
        core_->counters().accept_errors.Add(1);
        // Of a policy (EPERM, EACCES) every call says so.
        if (!IsOfOneConnection(error)) return WaitFor(kRefused, ErrnoText(error));
        if (reasons_ == 0 && hold_ == Hold::kEngine) engine->Accept(*this);
    }
  }

  // A stream has gone, or the owner has resumed. Parked connections are served first, and in a
  // task: this may be the middle of another stream's end.
  void TakeUpRoom() {
    if (!(reasons_ & kAtLimit) || !MayAdmit()) return;
    if (parked_.empty()) return SetReason(kAtLimit, false);
    core_->Post([count = count_] {
      if (count->listener() != nullptr) count->listener()->AdmitParked();
    });
  }

 private:
  // --- LoopObserver ---
  void OnConnectionClosed() override {
    if (reasons_ & kExhausted) Retry();
    TakeUpRoom();
  }
  // Closed rather than paused: peers shall find who takes the address over, or nobody.
  void OnDrain() override {
    SetReason(kDraining, true);
    CloseSocket();
  }
  void OnSwitchAll(EngineKind to, BeginListenerSwitch begin) override {
    if (fd < 0) return;  // drained
    const bool stuck = hold_ == Hold::kEngine && engine->broken();
    if (options_.stream.pinned_engine && !stuck) return;
    if (absl::Status status = Switch(to, begin()); !status.ok()) core_->Fault(status.ToString());
  }
  void OnLoopGone() override {
    Close();
    core_->AtEnd(loop_end_);
    core_ = nullptr;
  }

  // `taker` has it: with `refused` the one that it had been with.
  void BelongTo(Engine& taker, const absl::Status& refused) {
    hold_ = Hold::kEngine;
    if (engine != &taker) core_->counters().listener_switches.Add(1);
    engine = stream_engine_ = &taker;
    // Of one that it kept, what is armed accepts on.
    reasons_ == 0 ? engine->Accept(*this) : engine->StopAccepting(*this);
    Told(refused);
    TakeUpRoom();
  }
  // Once, however often the same is tried again.
  void CountRefusal(const absl::Status& why) {
    if (std::exchange(refusal_counted_, true)) return;
    core_->counters().listener_switches_refused.Add(1);
    core_->Fault(why.ToString());
  }
  void Told(const absl::Status& status) {
    if (switched_) std::exchange(switched_, nullptr)(status);
  }

  bool HasRoom() const { return count_->open < options_.connections_max && core_->HasRoom(); }

  // Closed: the loop may be gone. A broken engine takes nobody: until another has taken over.
  bool MayAdmit() const {
    return fd >= 0 && !(reasons_ & kByOwner) && HasRoom() && !stream_engine_->broken();
  }

  void AdmitParked() {
    if (parked_.empty() || !MayAdmit()) return;
    const Parked next = parked_.pop();
    const std::shared_ptr<OpenCount> count = count_;
    Admit(next.fd, next.peer);
    if (count->listener() != nullptr) TakeUpRoom();
  }

  // Makes a stream of `accepted`; the listener may be gone afterwards.
  void Admit(int accepted, const SocketAddress& peer) {
    if (absl::Status status = Prepare(accepted); !status.ok()) {
      stream_engine_->CloseSocket(accepted, true);
      return NotAdmitted(status);
    }
    ++count_->open;
    absl::StatusOr<Connection*> connection =
        core_->NewConnection(*stream_engine_, accepted, peer, options_.stream, true, count_);
    if (!connection.ok()) {
      --count_->open;
      return NotAdmitted(connection.status());
    }
    if (!HasRoom()) SetReason(kAtLimit, true);
    Deliver(SocketStream::Adopt(*connection));
  }

  // Sockets of TCP inherit their options from the one that listens, those of Unix none.
  absl::Status Prepare(int accepted) {
    if (address_.family() != AF_UNIX) return absl::OkStatus();
    return stream_engine_->SetOptions(accepted, address_, {.stream = &options_.stream});
  }

  void NotAdmitted(const absl::Status& why) {
    ++stats_.errors;
    core_->counters().accept_errors.Add(1);
    core_->Fault(why.ToString());
  }

  // The callback may destroy the listener, and with it the callable that is running.
  void Deliver(StreamPtr stream) {
    bool destroyed = false;
    destroyed_ = &destroyed;
    AcceptCallback on_accept = std::move(on_accept_);
    on_accept(std::move(stream));
    if (destroyed) return;
    on_accept_ = std::move(on_accept);
    destroyed_ = nullptr;
  }

  void SetReason(PauseReason reason, bool holds) {
    if (fd < 0) return;
    const uint8_t before = reasons_;
    reasons_ = holds ? before | reason : before & ~reason;
    if ((before == 0) == (reasons_ == 0)) return;
    if (reasons_ == 0) {
      core_->counters().listeners_paused.Sub(1);
      if (hold_ == Hold::kEngine) engine->Accept(*this);
    } else {
      core_->counters().listeners_paused.Add(1);
      if (hold_ == Hold::kEngine) engine->StopAccepting(*this);
    }
  }

  void WaitFor(PauseReason reason, std::string_view what) {
    if (!(reasons_ & reason)) LogPause(what);
    SetReason(reason, true);
    retry_timer_.Arm(TimerWheel::DeadlineTick(core_->sys().Now(), retry_after_),
                     [this] { Retry(); });
    retry_after_ = std::min(retry_after_ * 2, kRetryMax);
  }

  void LogPause(std::string_view what) {
    const int64_t now = core_->sys().Now();
    if (now < log_after_ns_) {
      ++pauses_unlogged_;
      return;
    }
    log_after_ns_ = now + kLogPauseNs;
    std::string line = absl::StrCat("listener on ", address_.ToString(), ": ", std::string(what),
                                    "; pausing for ", absl::FormatDuration(retry_after_));
    if (pauses_unlogged_ > 0) {
      absl::StrAppend(&line, "; paused ", std::exchange(pauses_unlogged_, 0),
                      " more times, for whatever reason, since the last line");
    }
    core_->Log(LogSeverity::kWarning, line);
  }

  void Retry() {
    if (fd < 0) return;  // drained
    retry_timer_.Cancel();
    engine->RestoreReserve();
    if (hold_ == Hold::kNone) OnReleased();
    SetReason(kExhausted, false);
    SetReason(kRefused, false);
  }

  void Close() {
    if (core_ == nullptr) return;
    core_->RemoveObserver(this);
    CloseSocket();
  }

  void CloseSocket() {
    if (fd < 0) return;
    retry_timer_.Cancel();
    if (reasons_ != 0) core_->counters().listeners_paused.Sub(1);
    core_->counters().listeners.Sub(1);
    // While the socket still listens: once it does not, the file may be a successor's.
    if (address_.family() == AF_UNIX && options_.unlink_path && !address_.path().starts_with('@')) {
      core_->sys().Unlink(std::string(address_.path()).c_str());
    }
    if (hold_ == Hold::kNone) {
      engine->CloseSocket(fd, false);
    } else {
      engine->Forget(*this);
    }
    fd = -1;
    switched_ = nullptr;
    while (!parked_.empty()) engine->CloseSocket(parked_.pop().fd, true);
  }

  // Who has the socket: its engine; the same, but letting go of it; or nobody.
  enum class Hold : uint8_t { kEngine, kReleasing, kNone };
  struct Parked {
    int fd = -1;
    SocketAddress peer;
  };
  // When every listener knows that the loop is going: destroys the callback unrun, which may
  // destroy this listener or another one.
  struct LoopEnd : Deferred {
    explicit LoopEnd(SocketListener& owner)
        : Deferred([](Deferred* node) {
            const AcceptCallback unrun =
                std::exchange(static_cast<LoopEnd*>(node)->listener.on_accept_, nullptr);
          }),
          listener(owner) {}
    SocketListener& listener;
  };

  LoopCore* core_;
  ListenOptions options_;
  AcceptCallback on_accept_;
  std::shared_ptr<OpenCount> count_;
  Fifo<Parked> parked_;
  SocketAddress address_;
  ListenerStats stats_;
  Engine* stream_engine_ = nullptr;  // of streams to come; other than `engine` during a switch
  Hold hold_ = Hold::kEngine;
  ListenerSwitched switched_;     // of the switch under way
  bool refusal_counted_ = false;  // of that one
  uint8_t reasons_ = 0;
  bool* destroyed_ = nullptr;  // set while on_accept_ runs
  LoopEnd loop_end_{*this};
  CallbackTimer retry_timer_;
  absl::Duration retry_after_ = kRetryMin;
  int64_t log_after_ns_ = 0;
  uint64_t pauses_unlogged_ = 0;
};

void OpenCount::OnConnectionClosed() {
  --open;
  if (listener_ != nullptr) listener_->TakeUpRoom();
}

absl::Status CheckListenOptions(const SocketAddress& address, const ListenOptions& options) {
  const auto bad = [&](std::string_view what) {
    return PeerStatus(absl::StatusCode::kInvalidArgument, kOperation, &address, what);
  };
  if (options.backlog < 1) return bad("backlog must be at least 1");
  if (options.connections_max < 1) return bad("connections_max must be at least 1");
  return CheckStreamOptions(options.stream, kOperation, address);
}

}  // namespace
}  // namespace internal

absl::StatusOr<std::unique_ptr<Listener>> Listener::Listen(Loop& loop, const SocketAddress& address,
                                                           ListenOptions options,
                                                           AcceptCallback on_accept) {
  if (absl::Status status = internal::CheckListenOptions(address, options); !status.ok())
    return status;
  internal::LoopCore& core = loop.core();
  absl::StatusOr<internal::Engine*> engine = core.EngineFor(options.engine);
  if (!engine.ok()) {
    return internal::Explain(engine.status(), internal::kOperation, address);
  }
  auto listener =
      std::make_unique<internal::SocketListener>(core, std::move(options), std::move(on_accept));
  if (absl::Status status = listener->Open(**engine, address); !status.ok()) return status;
  return listener;
}

PENSTOCK_END_NAMESPACE
