// Connection: the engine-neutral state of one byte stream. It has no engine-specific field and owns
// no kernel operation, so the engine under it can change; it owns no buffer while idle (I1), and
// belongs to one engine at a time (I4).
//
// Shared by its holders, counted in `holds_`: the owner's stream handle, the engine (from Attach
// until it has let go), the loop's ready list, and Service while it runs. All on the loop's thread.
#ifndef PENSTOCK_ENGINE_CONNECTION_H_
#define PENSTOCK_ENGINE_CONNECTION_H_

#include <penstock/address.h>
#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/stream.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fifo.h"
#include "base/timer_wheel.h"
#include "engine/engine.h"
#include "engine/parcel.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class LoopCore;

// The life of a connection, as a table: docs/architecture.md shows it as a graph.
enum class ConnectionState : uint8_t {
  kConnecting,  // the kernel is setting it up
  kOpen,
  kClosing,  // given up or ended; the kernel may still hold an operation
  kClosed,   // the kernel has let go; lives on while its owner keeps the handle
};
inline constexpr size_t kConnectionStates = 4;

enum class ConnectionEvent : uint8_t {
  kConnected,  // the socket is ready
  kEnd,        // by the owner, a deadline, or a failure
  kDetached,   // the engine has let go
};
inline constexpr size_t kConnectionEvents = 3;

// The next state, or the same one where the event means nothing.
inline constexpr std::array<std::array<ConnectionState, kConnectionEvents>, kConnectionStates>
    kConnectionTransitions = {{
        /* kConnecting */ {ConnectionState::kOpen, ConnectionState::kClosing,
                           ConnectionState::kConnecting},
        /* kOpen       */
        {ConnectionState::kOpen, ConnectionState::kClosing, ConnectionState::kOpen},
        /* kClosing    */
        {ConnectionState::kClosing, ConnectionState::kClosing, ConnectionState::kClosed},
        /* kClosed     */
        {ConnectionState::kClosed, ConnectionState::kClosed, ConnectionState::kClosed},
    }};

// Whether PENSTOCK_PINNED_READS turns StreamOptions::pinned_reads on for every stream.
// InvalidArgument when it is neither 0 nor 1.
absl::StatusOr<bool> PinnedReadsByEnvironment();

// Told once when a connection has closed, for whoever counts them (a listener's bound).
class CloseObserver {
 public:
  virtual ~CloseObserver() = default;
  virtual void OnConnectionClosed() = 0;
};

// The private base is the timer of its deadlines.
class Connection : private TimerNode {
 public:
  using ReadCallback = Stream::ReadCallback;
  using DoneCallback = Stream::DoneCallback;

  // Made by LoopCore::NewConnection. Held once, for the owner.
  Connection(LoopCore& loop, Engine& engine, int fd, const SocketAddress& peer,
             const StreamOptions& options, std::shared_ptr<CloseObserver> observer);
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // --- The owner's side: the calls of Stream, same contracts ---
  void ReadReady(ReadCallback&& done);
  void CancelRead();
  void Write(BufferChain&& data, DoneCallback&& done);
  bool writable() const { return tx_.size() <= send_queue_high_; }
  void NotifyWritable(DoneCallback&& done);
  void ShutdownWrite(DoneCallback&& done);
  void ShutdownRead();
  void Abort();
  void SetReadDeadline(absl::Duration after);
  void SetWriteDeadline(absl::Duration after);
  void SetIdleDeadline(absl::Duration after);
  StreamStats stats() const;
  SendBounds send_bounds() const { return {send_queue_low_, send_queue_high_, send_queue_max_}; }
  // Of penstock/move.h: SwitchEngine, and with `target` Migrate.
  void Move(EngineKind engine, const LoopHandle* target, DoneCallback&& done);
  bool moving() const { return parcel_ != nullptr; }
  bool settled() const { return state_ == ConnectionState::kOpen && !moving(); }
  // By a layer whose owner has gone while the connection lives on: to be destroyed unrun.
  struct MoveEnd {
    DoneCallback done;
    absl::Status status;
  };
  struct MoveCallbacks {
    Parcel::Callbacks under_way;
    Fifo<MoveEnd> ended;
  };
  MoveCallbacks TakeMoveCallbacks();
  // In the loop's list of all its connections.
  Connection* next() const { return next_; }
  // Whether a sweep or a balancer may have it switch to that engine, or leave the loop, without
  // being asked to by its owner.
  bool MayBeSwitched(EngineKind to) const {
    return settled() && !pinned_engine_ && engine_->kind() != to;
  }
  // By a sweep that switches all: one that is connecting follows when it is open.
  void SwitchWhenOpen() {
    follows_ = follows_ || (state_ == ConnectionState::kConnecting && !pinned_engine_);
  }
  bool MayBeMigrated() const { return settled() && migratable_; }
  // The engine that it then wants there: any, or the one that it is pinned to.
  EngineKind EngineElsewhere() const {
    return pinned_engine_ ? engine_->kind() : EngineKind::kAuto;
  }
  // Its engine is broken: another one is to have it, whatever it was told to do, and by whomever.
  bool MustLeaveBroken() const {
    return engine_->broken() && state_ == ConnectionState::kOpen &&
           !(moving() && parcel_->target.has_value());
  }
  // Nobody tells it any more when it is connected, if its engine is broken.
  void EndIfConnectingByBroken();
  // Layers come and go on the loop's thread, and go before this does.
  void AddLayer(Layer& layer);
  void RemoveLayer(Layer& layer);
  // The owner has gone: pending callbacks are destroyed unrun, the socket is closed, abortively
  // when bytes are queued.
  void ReleaseOwner();

  // Room for the owner's handle, so that a stream is one allocation.
  void* handle_storage() { return handle_storage_; }
  static constexpr size_t kHandleSize = 2 * sizeof(void*);

  // Called with OK when connected, or with how that failed. Set before Attach.
  void set_connect_done(DoneCallback done);
  // Ends the connection: pending and later operations end with `status`. `reset`: the peer shall
  // see a reset.
  void End(absl::Status status, bool reset);
  // Its loop has been drained, and waits no longer.
  void EndDrained();

  // --- The engine's side ---
  void OnReady() { Service(); }  // bytes or an end may wait
  void OnReceived(Buffer&& bytes);
  // `error` 0: end of stream; otherwise a positive errno. Bytes received before are delivered
  // first.
  [[gnu::cold]] void OnReceiveEnded(int error);
  void OnWritable();
  void OnDetached();
  // Engine::Release is done, or cannot be done.
  void OnReleased();
  [[gnu::cold]] void OnNotReleased();

  // The receive size that suits this stream's traffic, and the feedback that adapts it. A little
  // that comes once is the rest of what did not fit, and says nothing of what comes next: were the
  // size halved for it, a message that is somewhat longer would take two receives every time.
  uint32_t receive_size() const { return receive_size_; }
  void AdaptReceiveSize(size_t received) {
    const bool little = received < receive_size_ / 8;
    if (received >= receive_size_) {
      receive_size_ = std::min(receive_size_ * 2, receive_max_);
    } else if (little && received_little_ && receive_size_ > kReceiveMin) {
      receive_size_ /= 2;
    }
    received_little_ = little;
  }
  uint32_t receive_max() const { return receive_max_; }
  // StreamOptions::pinned_reads: the buffer to receive into, empty when the pool had no room for
  // one; and the way back, empty when its bytes were delivered, which replaces it.
  bool pinned_reads() const { return pinned_reads_; }
  Buffer TakePinnedBuffer();
  void KeepPinnedBuffer(Buffer buffer);

  // --- The loop's side ---
  // Does what there is to do: sends, completes, receives, delivers; bounded (I9).
  void Service() {
    if (!in_service_ && !suspended_) Serve();
  }
  // The loop is going: closes and destroys the callbacks unrun. The owner may outlive the loop, and
  // LoopCore clears loop_ at the very end.
  void EndWithLoop();

  int fd() const { return fd_; }
  uint32_t slot() const { return slot_; }
  ConnectionState state() const { return state_; }
  Engine* engine() const { return engine_; }
  LoopCore* loop() const { return loop_; }
  const SocketAddress& peer() const { return peer_; }
  SocketAddress local() const;
  bool over_tcp() const { return over_tcp_; }
  bool wants_read() const { return read_done_ != nullptr; }
  bool has_callbacks() const {
    return read_done_ != nullptr || first_write_.done != nullptr || extras_ != nullptr;
  }
  uint64_t bytes_in() const { return bytes_in_; }
  uint64_t bytes() const { return bytes_in_ + bytes_out_; }

 private:
  friend class LoopCore;

  // Due when byte number `end` of the stream has been sent, or when sending has failed.
  struct PendingWrite {
    DoneCallback done;  // first: it is aligned to 16, and this order wastes nothing
    uint64_t end : 63 = 0;
    uint64_t empty : 1 = 0;  // brings no byte
    absl::Status refusal;    // not OK: nothing was queued, `done` ends with this in its turn
  };
  // What few connections need, made on first use.
  struct Extras {
    Fifo<PendingWrite> more_writes;  // after first_write_
    size_t empty_writes = 0;         // of more_writes
    Fifo<ReadCallback> refused_reads;
    DoneCallback shutdown_done;
    DoneCallback writable_done;
    DoneCallback connect_done;
    Fifo<MoveEnd> move_ends;  // to be told before anything else
    Buffer pinned_buffer;
  };
  enum class WriteSide : uint8_t { kOpen, kShutdownQueued, kShut };
  // Every callback there is, to be destroyed together after the connection's state is settled.
  struct Callbacks {
    ReadCallback read_done;
    PendingWrite first_write;
    std::unique_ptr<Extras> extras;
    std::unique_ptr<Parcel> parcel;
  };
  class Transit;

  // Stands for an infinite deadline. Points in time are ticks of the loop's timer wheel.
  static constexpr uint32_t kNever = UINT32_MAX;
  static constexpr uint32_t kReceiveMin = 4 * 1024;
  static constexpr size_t kEmptyWritesMax = 1 << 20;

  void Hold() { ++holds_; }
  void Drop() {
    if (--holds_ == 0) [[unlikely]]
      Destroy();
  }
  [[gnu::cold]] void Destroy();
  void Apply(ConnectionEvent event);
  Extras& extras();
  // Most connections need none: they shall not weigh on them while idle.
  [[gnu::cold]] void FreeExtras();
  Callbacks TakeCallbacks();
  void MarkReady() {
    if (!in_service_ && !suspended_ && !ready_) BecomeReady();
  }
  void BecomeReady();
  bool alive() const {
    return state_ == ConnectionState::kOpen || state_ == ConnectionState::kConnecting;
  }

  void Serve();
  // A step of Serve: false when there is nothing left to do without another event.
  bool Step();
  [[gnu::cold]] bool FinishConnect();
  // One callback each, if one is due; true when it ran.
  bool RunWriteDone();
  bool RunReadDone();
  bool RunExtras();
  // What of a callback's doing the next step would see to.
  bool HasMore() const {
    return !tx_.empty() || first_write_.done != nullptr || extras_ != nullptr ||
           write_side_ == WriteSide::kShutdownQueued || state_ != ConnectionState::kOpen;
  }
  void Flush();
  void Settle();

  // The same for one that ends with an error.
  [[gnu::cold]] bool RunWriteFailed();
  [[gnu::cold]] bool RunReadFailed();
  [[gnu::cold]] void FailSending(int error, std::string_view operation);
  [[gnu::cold]] void FinishShutdown();
  // Whether `data` may be queued; if not, RefuseWrite says why.
  bool MayWrite(const BufferChain& data) const {
    return write_side_ == WriteSide::kOpen && write_end_.ok() &&
           tx_.size() + data.size() <= send_queue_max_;
  }
  [[gnu::cold]] void RefuseWrite(size_t size, DoneCallback&& done);
  [[gnu::cold]] void RefuseRead(ReadCallback&& done);
  // To the writes after first_write_, and from there. Each is told in its turn, one that brings no
  // byte (empty, refused) too, so the bound on bytes is none on these (I9): beyond kEmptyWritesMax
  // of them the stream ends.
  [[gnu::noinline]] void QueueWrite(PendingWrite&& write);
  [[gnu::noinline]] void UnqueueWrite();
  void AddRefusedWrite(DoneCallback&& done, absl::Status refusal);
  void Close(bool reset);
  // Whether bytes that were written will never arrive: then the peer must not see an end of stream.
  bool BytesLost() const { return !tx_.empty() || !write_end_.ok(); }
  void UpdatePinned() {
    if (pinned_ != 0 || pinned_reads_ || !rx_.empty() || !tx_.empty()) CountPinned();
  }
  void CountPinned();
  // Before the engine knows the connection.
  void PinReads();
  size_t pinned_buffer_size() const {
    return pinned_reads_ && extras_ != nullptr ? extras_->pinned_buffer.block_size() : 0;
  }
  // Moving: connection_move.cc.
  void BeginMove();
  void Proceed();
  // From now on it is that engine's, which was told nothing of it.
  void BelongTo(Engine& engine);
  absl::Status AttachTo(Engine& engine);
  // It is open with its engine, or is so no more.
  void CountEngine(int by);
  // An engine has it: the one it was to go to, or with an error the old one.
  void Settled(absl::Status status);
  void Stay(absl::Status why);
  // All streams of `loop` have been switched since it was asked to move, and it may not have been
  // among them: with a move that comes to nothing it goes where they went, if that engine takes it.
  bool HasMissedSwitch(const LoopCore& loop) const;
  // No engine takes it: it ends, and counts as stranded.
  [[gnu::cold]] void Strand(const absl::Status& why);
  void FinishMove(absl::Status status);
  [[gnu::cold]] void EndMove();
  void HandOver();
  // Those layers that are below `first_not` leave as well.
  void LeaveLoop(const Layer* first_not);
  absl::Status JoinLoop(LoopCore& loop, EngineKind kind);
  // With its primary engine, which was told nothing of it. False: a layer could not come along.
  [[gnu::cold]] bool JoinWithoutEngine(LoopCore& loop);
  void Arrive(LoopCore& loop);
  void ComeBack(LoopCore& loop);
  void EndInTransit();
  absl::Status MoveError(const absl::Status& why) const;
  // By the loop that has it.
  void CountRefused(MoveRefusal why);

  void CheckThread() const;  // debug builds
  absl::Status Refusal(std::string_view operation, std::string_view reason) const;

  // Deadlines: one timer for the earliest; it re-arms itself lazily. The clock is read only for
  // connections that have one.
  void NoteDeadlines() {
    has_deadlines_ = (read_deadline_ms_ & write_deadline_ms_ & idle_deadline_ms_) != kNever;
  }
  void SetDeadline(uint32_t& deadline_ms, uint64_t& since, absl::Duration after);
  static void OnTimer(TimerNode* node);
  void CheckDeadlines();
  void ArmDeadlines() {
    if (has_deadlines_) ArmTimer();
  }
  void ArmTimer();
  uint64_t NextDeadline() const;

  // What a request touches comes first, down to bytes_out_ (SlotTable::Prefetch).
  alignas(void*) unsigned char handle_storage_[kHandleSize];
  LoopCore* loop_;
  Engine* engine_;
  int fd_;
  uint32_t slot_ = 0;

  ConnectionState state_ = ConnectionState::kConnecting;
  WriteSide write_side_ = WriteSide::kOpen;
  uint8_t holds_ = 1;
  bool in_service_ : 1 = false;
  bool suspended_ : 1 = false;      // on its way: no engine serves it
  bool ready_ : 1 = false;          // on the loop's ready list
  bool write_blocked_ : 1 = false;  // WantWrite is out
  bool busy_ : 1 = false;           // counted as holding bytes
  bool read_cancelled_ : 1 = false;
  bool read_timed_out_ : 1 = false;
  bool read_shut_ : 1 = false;
  bool connect_ready_ : 1 = false;  // the connecting socket has become writable
  bool close_reset_ : 1 = false;    // the peer shall see a reset
  bool has_deadlines_ : 1 = false;
  bool over_tcp_ : 1;
  bool pinned_reads_ : 1 = false;
  bool pinned_engine_ : 1;
  bool migratable_ : 1;
  bool observer_is_remote_ : 1 = false;
  bool received_little_ : 1 = false;  // the last receive, for its size
  bool follows_ : 1 = false;          // SwitchWhenOpen
  uint32_t receive_size_;
  uint32_t receive_max_;
  uint32_t send_queue_high_;
  uint32_t send_queue_max_;

  uint64_t pinned_ = 0;
  BufferChain rx_;
  BufferChain tx_;
  std::unique_ptr<Extras> extras_;
  ReadCallback read_done_;
  PendingWrite first_write_;
  absl::Status read_end_;   // not OK: how receiving ended, once rx_ is empty
  absl::Status write_end_;  // not OK: how sending ended
  uint64_t bytes_in_ = 0;
  uint64_t bytes_out_ = 0;

  Connection* next_ready_ = nullptr;
  Connection* next_ = nullptr;  // the loop's list of all its connections
  Connection* previous_ = nullptr;
  std::unique_ptr<Parcel> parcel_;  // of a move that was asked for
  Layer* layers_ = nullptr;         // from the lowest up
  std::shared_ptr<CloseObserver> observer_;
  SocketAddress peer_;

  uint64_t read_since_ = 0;
  uint64_t write_since_ = 0;
  uint64_t active_at_ = 0;
  uint32_t read_deadline_ms_;
  uint32_t write_deadline_ms_;
  uint32_t idle_deadline_ms_;
  uint32_t send_queue_low_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_ENGINE_CONNECTION_H_
