#include <penstock/connect.h>
#include <sys/socket.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/error.h"
#include "base/timer_wheel.h"
#include "engine/loop_core.h"
#include "transport/check_options.h"
#include "transport/socket_stream.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// One attempt. Owned by its connection's connect callback, so that it ends with the callback, run
// or unrun; ConnectAttempt only looks at it.
class ConnectState {
 public:
  ConnectState(LoopCore& core, ConnectCallback done)
      : core_(core), deadline_(core.timers()), done_(std::move(done)) {}
  ~ConnectState() {
    if (connection_ != nullptr) connection_->ReleaseOwner();
  }

  void Begin(Connection* connection, absl::Duration deadline) {
    connection_ = connection;
    if (deadline == absl::InfiniteDuration()) return;
    deadline_.Arm(TimerWheel::DeadlineTick(core_.sys().Now(), deadline), [this, deadline] {
      core_.counters().deadlines.Add(1);
      End(absl::DeadlineExceededError(absl::StrCat("connect to ", connection_->peer().ToString(),
                                                   ": no answer in ",
                                                   absl::FormatDuration(deadline))));
    });
  }

  void End(absl::Status status) {
    if (connection_ != nullptr) connection_->End(std::move(status), false);
  }

  void Cancel() {
    if (connection_ == nullptr) return;
    End(absl::CancelledError(
        absl::StrCat("connect to ", connection_->peer().ToString(), ": cancelled")));
  }

  void Finish(absl::Status status) {
    deadline_.Cancel();
    Connection* const connection = std::exchange(connection_, nullptr);
    if (status.ok()) {
      core_.counters().connected.Add(1);
      std::move(done_)(SocketStream::Adopt(connection));
    } else {
      connection->ReleaseOwner();
      std::move(done_)(std::move(status));
    }
  }

 private:
  LoopCore& core_;
  CallbackTimer deadline_;
  Connection* connection_ = nullptr;
  ConnectCallback done_;
};

namespace {

// A connecting or connected connection, held for its owner.
absl::StatusOr<Connection*> Start(LoopCore& core, const SocketAddress& address,
                                  const ConnectOptions& options) {
  constexpr std::string_view kOperation = "connect to";
  if (absl::Status status = CheckStreamOptions(options.stream, kOperation, address); !status.ok()) {
    return status;
  }
  if (options.deadline < absl::ZeroDuration()) {
    return PeerStatus(absl::StatusCode::kInvalidArgument, kOperation, &address,
                      "deadline must not be negative");
  }
  const int local_family = options.local.family();
  if (local_family != AF_UNSPEC && local_family != address.family()) {
    return PeerStatus(absl::StatusCode::kInvalidArgument, kOperation, &address,
                      absl::StrCat("the local address ", options.local.ToString(),
                                   " must be of the same family"));
  }
  absl::StatusOr<Engine*> engine = core.EngineFor(options.engine);
  if (!engine.ok()) return Explain(engine.status(), kOperation, address);
  if (absl::Status status = core.AdmitConnection(); !status.ok()) {
    return Explain(status, kOperation, address);
  }
  const SocketSetup setup{.stream = &options.stream};
  bool connected = false;
  absl::StatusOr<int> fd = (*engine)->OpenConnecting(address, options.local, setup, &connected);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<Connection*> connection =
      core.NewConnection(**engine, *fd, address, options.stream, connected, nullptr);
  if (!connection.ok()) return Explain(connection.status(), kOperation, address);
  return connection;
}

}  // namespace
}  // namespace internal

void ConnectAttempt::Cancel() {
  if (const auto state = state_.lock()) state->Cancel();
}

ConnectAttempt Connect(Loop& loop, const SocketAddress& address, ConnectOptions options,
                       ConnectCallback done) {
  internal::LoopCore& core = loop.core();
  absl::StatusOr<internal::Connection*> connection = internal::Start(core, address, options);
  if (!connection.ok()) {
    core.Post([done = std::move(done), status = connection.status()]() mutable {
      std::move(done)(std::move(status));
    });
    return ConnectAttempt();
  }
  auto state = std::make_shared<internal::ConnectState>(core, std::move(done));
  state->Begin(*connection, options.deadline);
  ConnectAttempt attempt{std::weak_ptr<internal::ConnectState>(state)};
  (*connection)->set_connect_done([state = std::move(state)](absl::Status status) {
    state->Finish(std::move(status));
  });
  return attempt;
}

PENSTOCK_END_NAMESPACE
