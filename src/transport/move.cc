#include <penstock/move.h>

#include <utility>

#include "base/error.h"
#include "engine/connection.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace {

void MoveStream(Stream& stream, EngineKind engine, const LoopHandle* target,
                Stream::DoneCallback done) {
  if (internal::Connection* const connection = stream.connection()) {
    return connection->Move(engine, target, std::move(done));
  }
  internal::LoopCore& core = stream.loop().core();
  core.CountRefusal(target != nullptr ? MoveDirection::kOut : core.DirectionTo(engine),
                    MoveRefusal::kUnsupported);
  if (!done) return;
  const SocketAddress peer = stream.peer();
  stream.loop().Post([done = std::move(done),
                      status = internal::PeerStatus(
                          absl::StatusCode::kUnimplemented, "move the connection to", &peer,
                          "this stream is not made upon a socket of Penstock's")]() mutable {
    std::move(done)(std::move(status));
  });
}

}  // namespace

void SwitchEngine(Stream& stream, EngineKind to, Stream::DoneCallback done) {
  MoveStream(stream, to, nullptr, std::move(done));
}

absl::Status SwitchAll(Loop& loop, EngineKind to, absl::AnyInvocable<void(MoveCount) &&> done) {
  return loop.core().SwitchAll(to, std::move(done));
}

void MigrateAll(Loop& loop, const LoopHandle& target, absl::AnyInvocable<void(MoveCount) &&> done,
                EngineKind engine) {
  loop.core().MigrateAll(target, engine, std::move(done));
}

void Migrate(Stream& stream, const LoopHandle& target, Stream::DoneCallback done,
             EngineKind engine) {
  MoveStream(stream, engine, &target, std::move(done));
}

void Migrate(StreamPtr stream, const LoopHandle& target, MigrateCallback done, EngineKind engine) {
  Stream& moving = *stream;
  MoveStream(moving, engine, &target,
             [stream = std::move(stream), done = std::move(done)](absl::Status status) mutable {
               std::move(done)(std::move(status), std::move(stream));
             });
}

PENSTOCK_END_NAMESPACE
