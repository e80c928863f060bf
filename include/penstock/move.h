// Moving live streams: to the other engine of their loop, and to another loop on another thread.
//
// A connection owns no kernel operation, so what moves it can change at any point of its stream:
// with a record half read, writes queued or half sent, reading stopped by back-pressure, either
// side half closed, deadlines running, an end or a reset on its way. No byte is lost, repeated or
// reordered, and ends arrive as themselves (I5). Pending operations are carried over. Streams of
// layers (sealed streams, framed readers) move with what lies under them: give any of them.
//
// While a move is under way, some microseconds, no callback of the stream runs; calls are kept.
#ifndef PENSTOCK_MOVE_H_
#define PENSTOCK_MOVE_H_

#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"

PENSTOCK_BEGIN_NAMESPACE

namespace internal {
class StreamMail;
}  // namespace internal

// Has `to` (kEpoll or kUring; kAuto: the loop's own) serve `stream`, in a later step of its loop
// and on the same thread. `done` runs there, before the callbacks that the move held up:
//   OK                  it does; also when it did already
//   FAILED_PRECONDITION the stream is not open
//   UNIMPLEMENTED       the engine is absent or forbidden, or no socket of Penstock's is below
//   RESOURCE_EXHAUSTED  and others: the engine did not take it, and the old one serves it still
//   UNAVAILABLE         the engine has failed, or the kernel does not end what it was told to end
//   CANCELLED           a later move of the same stream took the place of this one
// or how the stream has ended meanwhile. Loop's thread.
PENSTOCK_EXPORT void SwitchEngine(Stream& stream, EngineKind to,
                                  Stream::DoneCallback done = nullptr);

// SwitchEngine for every open stream of `loop`, idle or busy, except those of
// StreamOptions::pinned_engine and those that move already; as a rule at most 32 are under way at
// once, so that the others are served meanwhile. Listeners without that option switch too, and with
// them the streams they accept, without closing: no connection is refused. Who connects, listens or
// comes from another loop from then on without asking for an engine begins on `to`; who is
// connecting follows when open, and is counted by LoopSnapshot alone. `done` runs when all
// have, or have stayed, and counts both. A sweep that is under way ends, with what it had done,
// when another one begins. Loop's thread. Errors of Loop::EnableEngine.
PENSTOCK_EXPORT absl::Status SwitchAll(Loop& loop, EngineKind to,
                                       absl::AnyInvocable<void(MoveCount) &&> done = nullptr);

// Has the loop of `target` serve `stream`: its callbacks run on that loop's thread from then on,
// pending ones included. `done` runs there, before them, with OK; or on the thread of the loop
// where the stream then still is, with
//   UNAVAILABLE         the target is gone or draining, or went meanwhile
//   RESOURCE_EXHAUSTED  it has its connections_max, or its engine could not take the stream
//   FAILED_PRECONDITION the stream is not open, or a handshake is running on it
//   UNIMPLEMENTED       as above; also when the engine asked for is absent there
//   CANCELLED           a later move took the place of this one
// or how the stream has ended. It is never lost: when the target refuses it goes on where it was. A
// loop that drains waits, within its grace, for a stream that is on its way and may come back.
// When both loops go while it is under way, it is closed and its callbacks are destroyed unrun, on
// the thread of the loop that went last.
//
// The stream keeps its owner, who must follow it: between this call and `done` only its own
// callbacks may use it, and after `done` only the target's thread. So the closure or coroutine that
// owns the stream, and what else its callbacks touch, goes to the other thread with it; coroutines
// call this when they wait for nothing else of the stream. `engine`: which of the target's is to
// serve it, kAuto for that loop's own.
//
// Bytes that are held at that moment stay in the pool they came from until they are delivered or
// sent: loops that pass streams on should share a pool (LoopOptions::pool).
PENSTOCK_EXPORT void Migrate(Stream& stream, const LoopHandle& target, Stream::DoneCallback done,
                             EngineKind engine = EngineKind::kAuto);

// The same with the owner's pointer: in here, on the thread of the stream's loop, and out again in
// `done`, on the thread of the loop that then has the stream: the target's with OK, and otherwise
// its own, with why it stayed or how it has ended (the stream is there all the same). Meanwhile
// nobody has it but the move. When `done` is destroyed unrun, because both loops have gone, the
// stream goes with it. `stream` must not be null. Errors as above.
using MigrateCallback = absl::AnyInvocable<void(absl::Status, StreamPtr) &&>;
PENSTOCK_EXPORT void Migrate(StreamPtr stream, const LoopHandle& target, MigrateCallback done,
                             EngineKind engine = EngineKind::kAuto);

// Migrate for every open stream of `loop` that has StreamOptions::migratable, idle or busy, but for
// those that move already; at most 8, where the other loop is slow up to 32, are under way at once:
// the others are served. Streams that come meanwhile are left alone. `done` runs on the thread of
// `loop` when each of them has arrived, has stayed (a handshake is running on it, or an error of
// Migrate) or has ended. A sweep that is under way ends, with what it had done, when another one
// begins. Loop's thread.
//
// A loop that is drained meanwhile waits, within its grace, for what may come back; later it ends
// that. A stream that finds neither loop running any more is closed.
PENSTOCK_EXPORT void MigrateAll(Loop& loop, const LoopHandle& target,
                                absl::AnyInvocable<void(MoveCount) &&> done = nullptr,
                                EngineKind engine = EngineKind::kAuto);

// Posts to a stream, wherever it is. Copyable, any thread.
class PENSTOCK_EXPORT StreamHandle {
 public:
  using Task = absl::AnyInvocable<void(Stream&) &&>;
  StreamHandle() = default;
  // Runs `task` on the thread of the loop that then has the stream, in a later turn. Tasks of one
  // poster keep their order, whatever moves happen meanwhile. False, and `task` destroyed unrun,
  // when the mailbox or its last loop is gone.
  bool Post(Task task) const;

 private:
  friend class StreamMailbox;
  explicit StreamHandle(std::shared_ptr<internal::StreamMail> mail) : mail_(std::move(mail)) {}
  std::shared_ptr<internal::StreamMail> mail_;
};

// What others post to a stream by. Belongs beside the stream, on its thread, and must go before it;
// what has not run by then is destroyed unrun. Moves with it.
class PENSTOCK_EXPORT StreamMailbox {
 public:
  explicit StreamMailbox(Stream& stream);
  ~StreamMailbox();
  StreamMailbox(const StreamMailbox&) = delete;
  StreamMailbox& operator=(const StreamMailbox&) = delete;

  StreamHandle handle() const { return StreamHandle(mail_); }

 private:
  std::shared_ptr<internal::StreamMail> mail_;
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_MOVE_H_
