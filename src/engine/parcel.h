// Parcel: a connection on its way to another engine of its loop, or to another loop; and Layer,
// what lies on a connection and keeps something with its loop.
//
// From the moment its engine has let go until another has taken it, the parcel is what the
// connection belongs to (I4): it runs no callback, and what the old engine still delivered lies in
// its receive chain (I5). A parcel belongs to the thread that has the connection: of the old loop,
// and then of the new one; in between the mailbox of the one that it is sent to owns it.
#ifndef PENSTOCK_ENGINE_PARCEL_H_
#define PENSTOCK_ENGINE_PARCEL_H_

#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "base/fifo.h"
#include "engine/deferred.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Connection;
class Engine;
class LoopCore;
class Sys;

// How far a move has come, as a table: docs/architecture.md shows it as a graph, and
// tests/model/move.pml proves it.
enum class MoveState : uint8_t {
  kAttached,   // to its engine; no move
  kAsked,      // a move was asked for, and begins in a later step of the loop
  kQuiescing,  // the old engine lets go; it still takes what the kernel delivers
  kInTransit,  // no engine has it
};
inline constexpr size_t kMoveStates = 4;

enum class MoveEvent : uint8_t {
  kAsk,
  kBegin,
  kReleased,  // the old engine has let go
  kTaken,     // an engine has it: the new one, or the old one again
  kEnd,       // the connection has ended, or nothing came of the move
};
inline constexpr size_t kMoveEvents = 5;

// The next state, or the same one where the event means nothing.
inline constexpr std::array<std::array<MoveState, kMoveEvents>, kMoveStates> kMoveTransitions = {{
    /* kAttached  */ {MoveState::kAsked, MoveState::kAttached, MoveState::kAttached,
                      MoveState::kAttached, MoveState::kAttached},
    /* kAsked     */
    {MoveState::kAsked, MoveState::kQuiescing, MoveState::kAsked, MoveState::kAsked,
     MoveState::kAttached},
    /* kQuiescing */
    {MoveState::kQuiescing, MoveState::kQuiescing, MoveState::kInTransit, MoveState::kAttached,
     MoveState::kAttached},
    /* kInTransit */
    {MoveState::kInTransit, MoveState::kInTransit, MoveState::kInTransit, MoveState::kAttached,
     MoveState::kAttached},
}};

// The streams that a loop has sent to others and that have not arrived, nor come back. The loop
// writes `awaited`, when it drains; tickets count, on any thread.
class Away {
 public:
  bool any() const { return count_.load(std::memory_order_seq_cst) != 0; }
  // From now on the loop is woken when one has arrived. Each side writes its own word before it
  // reads the other's, so that one of them sees the other.
  void Await() { awaited_.store(true, std::memory_order_seq_cst); }

 private:
  friend class AwayTicket;
  std::atomic<uint64_t> count_{0};
  std::atomic<bool> awaited_{false};
};

// One of them; gone once another loop, or the old one again, counts the stream among its own.
class AwayTicket {
 public:
  AwayTicket() = default;
  AwayTicket(std::shared_ptr<Away> away, LoopHandle loop)
      : away_(std::move(away)), loop_(std::move(loop)) {
    away_->count_.fetch_add(1, std::memory_order_relaxed);
  }
  AwayTicket(AwayTicket&&) = default;
  AwayTicket& operator=(AwayTicket&& other) noexcept {
    Return();
    away_ = std::move(other.away_);
    loop_ = std::move(other.loop_);
    return *this;
  }
  ~AwayTicket() { Return(); }

 private:
  void Return() {
    if (away_ == nullptr) return;
    away_->count_.fetch_sub(1, std::memory_order_seq_cst);
    if (away_->awaited_.load(std::memory_order_seq_cst)) loop_.Post([] {});
    away_ = nullptr;
  }

  std::shared_ptr<Away> away_;
  LoopHandle loop_;
};

class Parcel : public Deferred {
 public:
  Parcel(Connection& connection, Run begin) : Deferred(begin), connection(connection) {}

  void Apply(MoveEvent event) {
    state = kMoveTransitions[static_cast<size_t>(state)][static_cast<size_t>(event)];
  }

  Connection& connection;
  MoveState state = MoveState::kAttached;
  EngineKind engine = EngineKind::kAuto;  // kAuto: its loop's own, and for a switch none at all
  std::optional<LoopHandle> target;       // of a loop move
  int64_t began_ns = 0;
  Engine* from = nullptr;  // of a switch: who has had it
  uint64_t switches = 0;   // LoopCore::switches_ended when it was asked
  // Of a loop move, once under way: that it is, the way back, and how to close the socket without a
  // loop.
  AwayTicket away;
  LoopHandle source;
  EngineKind source_engine = EngineKind::kAuto;
  Sys* sys = nullptr;
  // Not OK: why nothing comes of it; `done` is still to be told.
  absl::Status refusal;
  // Of the move, and of earlier ones that it took the place of.
  struct Callbacks {
    Stream::DoneCallback done;
    Fifo<Stream::DoneCallback> replaced;
  } callbacks;
};

// Registered with the connection at the bottom, in the order of the layers from there up. Sealed
// streams and framed readers are layers.
class Layer {
 public:
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  // Whether this can change loops now; FailedPrecondition says why not.
  virtual absl::Status MayLeave() const { return absl::OkStatus(); }
  // On the thread of the loop that the connection leaves: forget it. No callback may run or be
  // destroyed, and nothing is called until one of the two below.
  virtual void OnLeave() = 0;
  // On the thread of the loop that it joins, which is the old one when the move was refused; it has
  // taken the connection already. An error refuses the move.
  virtual absl::Status OnJoin(LoopCore& loop) = 0;
  // Both loops have gone: as if the loop of this had.
  virtual void OnLost() = 0;

 protected:
  Layer() = default;
  ~Layer() = default;

 private:
  friend class Connection;
  Layer* above_ = nullptr;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_PARCEL_H_
