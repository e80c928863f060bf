// Actor: one user of one stream. It reads and writes as its plan and chance say, plays tricks
// (cancels, ends, deadlines, destroys the stream in any callback), and judges everything that comes
// back: the oracle of the simulation. Bytes must be the ones its peer wrote, in order; every
// callback must run once, in a turn of the loop that has the stream, outside the call that started
// it, or be destroyed unrun with its stream; every end must have its cause on the wire or in a call
// of this actor.
#ifndef PENSTOCK_TESTS_SIM_ACTOR_H_
#define PENSTOCK_TESTS_SIM_ACTOR_H_

#include <penstock/connect.h>
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "testing/sim_wire.h"

namespace penstock::testing {

class Actor;
class Scenario;

// A loop as actors know it: it may be destroyed before they are.
struct LoopState {
  std::unique_ptr<Loop> loop;
  LoopHandle handle;
  size_t index = 0;
  bool gone = false;
  bool drained = false;
  BufferPool* pool = nullptr;
  bool pool_is_tight = false;
};

// What an actor does; drawn from the seed.
struct ActorPlan {
  uint64_t bytes_to_send = 0;
  uint64_t write_max = 1;
  uint32_t trick = 0;      // thousandths, per step
  uint32_t rough = 0;      // thousandths of tricks that end something
  uint32_t pause = 0;      // thousandths, per read
  uint32_t hold = 0;       // thousandths of received buffers that are kept for a while
  uint32_t over_high = 0;  // thousandths of writes that ignore the watermark
  uint32_t ask_writable = 0;
  int64_t tick_max_ns = 1;
  bool shuts_down = true;  // ends with ShutdownWrite, else by destroying the stream
  static ActorPlan Draw(SimRandom& random);
};

// In a callback: sees that it runs once, where it should, or dies with its stream.
class Ticket {
 public:
  enum class Op : uint8_t {
    kRead,
    kExtraRead,
    kWrite,
    kShutdown,
    kWritable,
    kConnect,
    kSwitch,
    kMigrate
  };
  Ticket(Actor& actor, Op op) : actor_(&actor), op_(op) {}
  Ticket(Ticket&& other) noexcept : actor_(std::exchange(other.actor_, nullptr)), op_(other.op_) {}
  Ticket& operator=(Ticket&&) = delete;
  ~Ticket();
  // The callback runs.
  void Use();

 private:
  Actor* actor_;
  Op op_;
};

class Actor {
 public:
  Actor(Scenario& scenario, LoopState& loop, int side);

  // The client's beginning.
  void Connect(const SocketAddress& address);
  // The server's, or the client's once connected.
  void Begin(StreamPtr stream);
  // No more writes or tricks, only reads: the stream becomes idle.
  void Calm();
  // Brings everything to its end.
  void Finish();
  // Asks for the stream to go to the loop of `target`. From outside a turn only when MayAct().
  void Migrate(LoopState& target);
  // `loop` is about to be destroyed.
  void OnLoopGoing(const LoopState& loop);

  bool ended() const { return ended_; }
  // What had the stream has been destroyed, and with it the stream's callbacks.
  bool lost() const;
  // Whether the host may call the stream now, between two turns: not while it may change loops.
  bool MayAct() const;
  bool connecting() const { return connecting_; }
  uint64_t queued_bytes() const { return stream_ == nullptr ? 0 : stream_->stats().queued_bytes; }
  // Something of its own is not with the kernel yet: bytes, or the record that a sealed stream ends
  // with.
  bool sending() const { return queued_bytes() > 0 || (write_shut_ && !write_shut_done_); }
  uint64_t written() const { return written_; }
  bool write_failed() const { return write_failed_; }
  const SimLink* link() const { return link_; }
  int side() const { return side_; }
  const LoopState& loop() const { return *loop_; }
  std::string Describe() const;

 private:
  friend class Ticket;
  struct PendingWrite {
    uint64_t number = 0;
    uint64_t size = 0;
    uint64_t end = 0;
    std::optional<absl::StatusCode> refusal;  // it must end with this
  };
  // Marks the extent of a call into the stream.
  class InCall {
   public:
    explicit InCall(Actor& actor) : actor_(actor) { ++actor_.calls_; }
    ~InCall() { --actor_.calls_; }

   private:
    Actor& actor_;
  };

  // Begin, once the stream is sealed where it is to be.
  void Start(StreamPtr stream);
  void Tick();
  void ScheduleTick();
  void Step();
  void Read();
  void WriteSome();
  void MaybeEnd();
  void Trick();
  void RoughTrick();
  void Destroy();
  void Write(size_t size);
  void ShutdownWrite();
  void AskWritable();
  void SetDeadline();
  void Switch();
  // A callback of a move runs: follows the stream to where it is now.
  void FollowStream(const absl::Status& status, const LoopState* target);
  void CheckStats();
  BufferChain Bytes(size_t size);
  Buffer Piece(uint64_t position, size_t size);

  void OnConnected(absl::StatusOr<StreamPtr> stream);
  void OnRead(absl::StatusOr<Buffer> result);
  void OnBytes(Buffer bytes);
  void OnReadEnd(const absl::Status& status);
  void OnWritten(uint64_t number, const absl::Status& status);
  void OnMigrated(const LoopState& target, const absl::Status& status);
  void OnUsed(Ticket::Op op);
  void OnUnrun(Ticket::Op op);
  void CheckEnd(const absl::Status& status);
  // Whether `status` of an operation other than end of stream has a cause.
  bool HasCause(const absl::Status& status) const;
  void Wrong(const std::string& what);

  Scenario& scenario_;
  LoopState* loop_;  // that has the stream, or had it before it left for target_
  const int side_;
  ActorPlan plan_;
  StreamPtr stream_;
  const SimLink* link_ = nullptr;
  std::unique_ptr<Timer> timer_;
  ConnectAttempt attempt_;
  bool begun_ = false;
  bool ended_ = false;
  bool ending_ = false;  // the stream is being destroyed
  bool connecting_ = false;
  bool connect_cancelled_ = false;
  int64_t connect_started_ns_ = 0;
  absl::Duration connect_deadline_;
  int calls_ = 0;
  bool stepping_ = false;
  bool paused_ = false;

  int migrating_ = 0;            // done callbacks that are to come
  LoopState* target_ = nullptr;  // of the last of these; null when a switch took its place
  bool in_transit_ = false;      // when loop_ went

  bool read_pending_ = false;
  bool read_cancelled_ = false;
  bool read_shut_ = false;
  bool aborted_ = false;
  std::optional<absl::StatusCode> read_end_;
  uint64_t received_ = 0;
  std::vector<Buffer> held_;

  uint64_t written_ = 0;  // bytes accepted by Write
  uint64_t next_write_ = 0;
  std::deque<PendingWrite> writes_;
  bool write_shut_ = false;
  bool write_shut_done_ = false;
  bool write_failed_ = false;
  bool writable_pending_ = false;

  int64_t earliest_deadline_ns_ = INT64_MAX;  // no deadline may pass before it
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_SIM_ACTOR_H_
