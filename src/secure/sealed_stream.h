// SealedStream: a stream of records over any stream: the same contract, sealed.
//
// Made by the handshake driver when the keys are agreed. It owns the stream below, the codec of
// each direction, the plaintext that is queued and not sealed yet, and the received bytes that are
// not opened yet. While it waits it holds none of these (I1): it reads below only while a read of
// its own is pending, and takes received blocks over without copying.
//
// Writing is lazy: plaintext is sealed when the stream below has taken the batch before, so that it
// is never held twice, and all that one callback writes becomes one batch. A write ends when the
// stream below has taken its last byte.
//
// It is its owner's handle and one allocation. Holds keep it beyond its owner: the running Service,
// and, when it is destroyed with nothing unsent, the authenticated end that is still to be sent.
// Callbacks run in Service only, never in the call that started them (I3). One bad record, and
// nothing is sealed or opened any more (I8). Loop's thread.
#ifndef PENSTOCK_SECURE_SEALED_STREAM_H_
#define PENSTOCK_SECURE_SEALED_STREAM_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/handshake.h>
#include <penstock/stream.h>

#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fifo.h"
#include "base/timer_wheel.h"
#include "engine/deferred.h"
#include "engine/loop_core.h"
#include "engine/parcel.h"
#include "secure/plain_queue.h"
#include "secure/record_opener.h"
#include "secure/record_sealer.h"
#include "secure/seal_loop.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class SealedStream final : public Stream, private SealMember, private Deferred, private Layer {
 public:
  // `below` has no operation pending but writes, and stays the caller's after an error. `keys` are
  // wiped; `first` came after the handshake. InvalidArgument for keys or records of a size that
  // there is not.
  static absl::StatusOr<StreamPtr> Create(SealLoop& seal_loop, StreamPtr&& below,
                                          HandshakeResult keys, BufferChain first);

  // What `delete` of a StreamPtr comes to; the object goes with its last hold.
  static void operator delete(SealedStream* self, std::destroying_delete_t) {
    self->ReleaseOwner();
  }

  // For tests of the last counters: those of the next records.
  void SetCounters(uint64_t send, uint64_t receive) {
    sealer_->keys().SetCounter(send);
    opener_->keys().SetCounter(receive);
  }

  void ReadReady(ReadCallback done) override;
  void CancelRead() override;
  void Write(BufferChain data, DoneCallback done) override;
  bool writable() const override { return queued() <= bounds_.high; }
  void NotifyWritable(DoneCallback done) override;
  void ShutdownWrite(DoneCallback done) override;
  void ShutdownRead() override;
  void Abort() override;
  void SetReadDeadline(absl::Duration after) override { below_->SetReadDeadline(after); }
  void SetWriteDeadline(absl::Duration after) override { below_->SetWriteDeadline(after); }
  void SetIdleDeadline(absl::Duration after) override { below_->SetIdleDeadline(after); }
  SocketAddress peer() const override { return below_->peer(); }
  SocketAddress local() const override { return below_->local(); }
  Loop& loop() const override { return below_->loop(); }
  // Of the plaintext, but for the blocks that the stream below holds.
  StreamStats stats() const override;
  SendBounds send_bounds() const override { return bounds_; }
  Connection* connection() override { return below_->connection(); }

 private:
  // Due when plaintext byte number `end` has been taken by the stream below, or sending has failed.
  struct PendingWrite {
    uint64_t end = 0;
    DoneCallback done;
    absl::Status refusal;  // not OK: nothing was queued, `done` ends with this in its turn
  };
  struct RestTimer : TimerNode {
    explicit RestTimer(SealedStream& of)
        : TimerNode([](TimerNode* node) { static_cast<RestTimer*>(node)->owner.OnRested(); }),
          owner(of) {}
    SealedStream& owner;
  };
  // What few streams need, made on first use. Freed when nothing has used it for a while: not at
  // once, or a stream that writes in batches would allocate for each (I1).
  struct Extras {
    explicit Extras(SealedStream& of) : rest(of) {}
    bool idle() const {
      return more_writes.empty() && refused_reads.empty() && !shutdown_done && !writable_done;
    }

    Fifo<PendingWrite> more_writes;  // after first_write_
    Fifo<ReadCallback> refused_reads;
    DoneCallback shutdown_done;
    DoneCallback writable_done;
    RestTimer rest;     // armed while idle; never once taken away with the callbacks
    bool used = false;  // since it was armed
  };
  // Every callback there is, to be destroyed together after the stream's state is settled.
  struct Callbacks {
    ReadCallback read_done;
    PendingWrite first_write;
    std::unique_ptr<Extras> extras;
  };
  enum class WriteSide : uint8_t {
    kOpen,
    kShutdownQueued,  // plaintext, and then the end, are still to be sealed
    kEndSent,         // ShutdownWrite of the stream below is out
    kShut,
  };

  SealedStream(SealLoop& seal_loop, StreamPtr below, const HandshakeResult& keys, RecordCipher send,
               RecordCipher receive);
  ~SealedStream() override = default;

  void Hold() { ++holds_; }
  void Drop();
  void ReleaseOwner();
  bool EndsInOrder() const;
  void OnRoom() override { MarkReady(); }
  void OnLoopGone() override { EndWithLoop(); }
  void OnLeave() override;
  absl::Status OnJoin(LoopCore& loop) override;
  void OnLost() override { EndWithLoop(); }
  void ReleaseBelow();
  // Ends without a loop: callbacks are destroyed unrun.
  void EndWithLoop();

  void MarkReady();
  void Service();
  bool Step();
  bool RunWriteDone();
  bool RunReadDone();
  bool RunReadEnded();
  // Nothing can be told to a reader before the stream below has more to say.
  bool read_waits() const {
    return hungry_ && !wire_ended_ && !read_cancelled_ && read_end_.ok() && read_below_.ok();
  }
  // What of a callback's doing the next step would see to.
  bool HasMore() const {
    const bool written =
        first_write_.done && (bytes_out_ >= first_write_.end || !first_write_.refusal.ok());
    return written || (read_done_ && !read_waits()) || !write_end_.ok() || extras_ != nullptr;
  }
  bool RunExtras();
  void Settle();

  // Runs `work` on the opener. Releasing a received buffer may run code of the caller that ends
  // this stream's reading: the opener goes then, but not before it is done.
  template <typename Work>
  auto WithOpener(Work work);
  [[gnu::cold]] void DropOpener();
  [[gnu::cold]] void DropSealer();
  // Opens the next plaintext for a pending read; sets hungry_ or read_end_ when there is none.
  RecordOpener::Result Open(Buffer& bytes);
  [[gnu::noinline]] RecordOpener::Result OpenedNothing(RecordOpener::Result result);
  void Deliver(absl::StatusOr<Buffer>&& result);
  void OnReadBelow(absl::StatusOr<Buffer>&& data);
  [[gnu::cold]] void OnReadBelowEnded(const absl::Status& end);
  // Whether another read of the stream below may bring bytes although one ended like this.
  bool GoesOnAfter(const absl::Status& end) const;
  // Seals what is queued, and the end after it, and hands it down; one batch at a time.
  void Pump();
  void SealQueued(BufferChain& wire);
  bool SealEnd(BufferChain& wire);
  void SendBelow(BufferChain wire);
  void OnWrittenBelow(absl::Status&& status);
  void OnShutBelow(absl::Status status);
  void FinishShutdown(absl::Status status);
  void FinishLinger();
  void DropReceived();
  // The peer, or our own codec, broke the protocol: nothing can be believed or sent any more.
  void Fail(absl::Status status);

  Extras& extras() {
    if (extras_ == nullptr) extras_ = std::make_unique<Extras>(*this);
    extras_->used = true;
    return *extras_;
  }
  void WatchExtras();
  void OnRested();
  Callbacks TakeCallbacks();
  [[gnu::cold]] void RefuseWrite(size_t size, DoneCallback&& done);
  [[gnu::cold]] void RefuseRead(ReadCallback&& done);
  void AddWrite(DoneCallback&& done);
  void AddRefusedWrite(DoneCallback&& done, absl::Status refusal);
  // To the writes after first_write_, and from there.
  [[gnu::noinline]] void QueueWrite(PendingWrite&& write);
  [[gnu::noinline]] void UnqueueWrite();
  absl::Status Refusal(std::string_view operation, std::string_view reason) const;
  absl::Status Explain(const absl::Status& status, std::string_view operation) const;
  // Plaintext written and not yet taken by the stream below.
  uint64_t queued() const {
    if (!write_end_.ok()) return 0;
    const uint64_t waiting = written_ - bytes_out_;
    return batch_ == 0 ? waiting : QueuedBehind(waiting);
  }
  uint64_t QueuedBehind(uint64_t waiting) const;
  size_t PinnedForReads() const {
    const size_t received = opener_.has_value() ? opener_->pinned_bytes() : 0;
    return received + (pinned_buffer_ ? pinned_buffer_.block_size() : 0);
  }
  void UpdatePinned() {
    const bool holds = opener_.has_value() && opener_->holds_bytes();
    if (pinned_ != 0 || holds || !plain_.empty() || pinned_buffer_) CountPinned();
  }
  [[gnu::noinline]] void CountPinned();

  SealLoop* seal_loop_;  // null once the loop is gone
  StreamPtr below_;
  std::optional<RecordOpener> opener_;  // none once reading has ended
  // None once sending has failed or ended: neither its key nor its context is needed any more.
  std::optional<RecordSealer> sealer_;

  const RecordMode mode_;
  WriteSide write_side_ = WriteSide::kOpen;
  uint8_t holds_ = 1;
  bool in_service_ : 1 = false;
  bool released_ : 1 = false;       // its owner has gone
  bool lingering_ : 1 = false;      // and its end is still to be sent
  bool reading_below_ : 1 = false;  // a read of the stream below is pending
  bool writing_below_ : 1 = false;  // a batch, too
  bool hungry_ : 1 = false;         // the opener has nothing left to open
  bool wire_ended_ : 1 = false;     // the stream below has ended
  bool read_cancelled_ : 1 = false;
  bool read_shut_ : 1 = false;
  bool opening_ : 1 = false;  // the opener is at work

  SendBounds bounds_;
  PlainQueue plain_;
  Buffer pinned_buffer_;    // StreamOptions::pinned_reads: held for nothing, and nothing compacted
  uint64_t written_ = 0;    // plaintext ever queued
  uint64_t batch_ = 0;      // of it, in the batch on its way
  uint64_t bytes_out_ = 0;  // of it, in those before
  uint64_t bytes_in_ = 0;   // plaintext delivered
  uint64_t pinned_ = 0;     // as counted in the loop's figures
  ReadCallback read_done_;
  PendingWrite first_write_;
  std::unique_ptr<Extras> extras_;
  absl::Status read_end_;    // not OK: how reading ended
  absl::Status write_end_;   // not OK: how sending ended
  absl::Status read_below_;  // not OK: how the last read below failed, to be told once
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_SECURE_SEALED_STREAM_H_
