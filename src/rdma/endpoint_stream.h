// EndpointStream: the ordinary stream contract over an endpoint: bytes travel in messages of up to
// kStreamPieceMax, and an empty message is the end of a direction.
//
// EndpointStream is its owner's handle on a StreamOverEndpoint, which owns the endpoint and which,
// when the handle goes with everything sent, keeps itself until the peer has been told the end. It
// receives only while a read is pending, so what is unread is bounded by the endpoint's credits,
// and while it waits it holds nothing (I1). Callbacks run in Service only (I3). Loop's thread.
#ifndef PENSTOCK_RDMA_ENDPOINT_STREAM_H_
#define PENSTOCK_RDMA_ENDPOINT_STREAM_H_

#include <penstock/export.h>
#include <penstock/rdma.h>
#include <penstock/stream.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "base/fifo.h"
#include "base/timer_wheel.h"
#include "engine/deferred.h"
#include "engine/loop_core.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class StreamOverEndpoint final : public std::enable_shared_from_this<StreamOverEndpoint>,
                                 private Deferred {
 public:
  StreamOverEndpoint(std::unique_ptr<RdmaEndpoint> endpoint, const StreamOptions& options);

  // The handle goes.
  void Release();

  void ReadReady(Stream::ReadCallback done);
  void CancelRead();
  void Write(BufferChain data, Stream::DoneCallback done);
  bool writable() const { return queued() <= options_.send_queue_high; }
  void NotifyWritable(Stream::DoneCallback done);
  void ShutdownWrite(Stream::DoneCallback done);
  void ShutdownRead();
  void Abort();
  enum class Limit : uint8_t { kRead, kWrite, kIdle };
  void SetDeadline(Limit limit, absl::Duration after);
  StreamStats stats() const;
  const StreamOptions& options() const { return options_; }
  const RdmaEndpoint& endpoint() const { return *endpoint_; }

 private:
  // Due when byte number `end` has been taken by the peer's endpoint, or sending has failed.
  struct PendingWrite {
    uint64_t end = 0;
    Stream::DoneCallback done;
    absl::Status refusal;  // not OK: nothing was queued, `done` ends with this in its turn
  };
  enum class WriteSide : uint8_t {
    kOpen,
    kShutdownQueued,  // bytes, and then the end, are still to be posted
    kEndSent,
    kShut,
  };
  struct Callbacks {
    Stream::ReadCallback read_done;
    Fifo<Stream::ReadCallback> refused_reads;
    Fifo<PendingWrite> writes;
    Stream::DoneCallback shutdown_done;
    Stream::DoneCallback writable_done;
    BufferChain unsent;
    BufferChain unread;
  };

  void MarkReady();
  void Service();
  bool HasCallbacks() const;
  bool Step();
  bool RunWrite();
  bool RunRead();
  bool RunRest();
  // Posts, receives, and sets the timer.
  void Settle();
  void Pump();
  void OnOpened(const absl::Status& status);
  void OnSent(uint64_t size, const absl::Status& status);
  void EndWrites(const absl::Status& status);
  void OnEndSent(const absl::Status& status);
  void OnReceived(absl::StatusOr<BufferChain> message);
  void Fail(absl::Status status);
  void Deliver(absl::StatusOr<Buffer> result);
  void FinishShutdown(absl::Status status);
  void FinishLinger();
  Callbacks TakeCallbacks();
  void OnLoopEnd();
  uint64_t queued() const { return write_end_.ok() ? written_ - bytes_out_ : 0; }
  absl::Status Refusal(std::string_view operation, std::string_view reason) const;
  absl::Status Explain(absl::StatusCode code, std::string_view operation,
                       std::string_view reason) const;

  // --- Deadlines ---
  absl::Duration& After(Limit limit);
  bool Runs(Limit limit) const;
  int64_t DeadlineNs(Limit limit);
  void Restart(Limit limit);
  void ArmTimer();
  void CheckDeadlines();

  LoopCore* core_;  // null once the loop is gone
  std::unique_ptr<RdmaEndpoint> endpoint_;
  StreamOptions options_;
  std::shared_ptr<StreamOverEndpoint> self_;  // while it lingers
  struct LoopEnd : Deferred {
    LoopEnd(Run run, StreamOverEndpoint& of) : Deferred(run), stream(of) {}
    StreamOverEndpoint& stream;
  } loop_end_;

  WriteSide write_side_ = WriteSide::kOpen;
  bool in_service_ = false;
  bool released_ = false;
  bool receiving_ = false;
  bool read_cancelled_ = false;
  bool read_timed_out_ = false;
  bool read_shut_ = false;

  uint64_t piece_max_ = 0;   // of one message; 0: the endpoint is not open
  uint64_t posted_max_ = 0;  // bytes that are posted and not taken
  uint32_t sends_max_ = 0;
  BufferChain unsent_;  // written and not yet posted
  BufferChain unread_;  // received and not yet delivered
  uint64_t written_ = 0;
  uint64_t posted_ = 0;     // of it
  uint32_t sends_out_ = 0;  // that carry it, and have not ended
  uint64_t bytes_out_ = 0;  // of that, taken by the peer's endpoint
  uint64_t bytes_in_ = 0;
  Stream::ReadCallback read_done_;
  Fifo<Stream::ReadCallback> refused_reads_;
  Fifo<PendingWrite> writes_;
  std::optional<PendingWrite> next_write_;
  Stream::DoneCallback shutdown_done_;
  Stream::DoneCallback writable_done_;
  absl::Status read_end_;
  absl::Status write_end_;
  std::optional<CallbackTimer> timer_;
  int64_t since_ns_[3] = {};
};

class EndpointStream final : public Stream {
 public:
  EndpointStream(std::unique_ptr<RdmaEndpoint> endpoint, const StreamOptions& options)
      : stream_(std::make_shared<StreamOverEndpoint>(std::move(endpoint), options)) {}
  ~EndpointStream() override { stream_->Release(); }

  void ReadReady(ReadCallback done) override { stream_->ReadReady(std::move(done)); }
  void CancelRead() override { stream_->CancelRead(); }
  void Write(BufferChain data, DoneCallback done) override {
    stream_->Write(std::move(data), std::move(done));
  }
  bool writable() const override { return stream_->writable(); }
  void NotifyWritable(DoneCallback done) override { stream_->NotifyWritable(std::move(done)); }
  void ShutdownWrite(DoneCallback done) override { stream_->ShutdownWrite(std::move(done)); }
  void ShutdownRead() override { stream_->ShutdownRead(); }
  void Abort() override { stream_->Abort(); }
  void SetReadDeadline(absl::Duration after) override {
    stream_->SetDeadline(StreamOverEndpoint::Limit::kRead, after);
  }
  void SetWriteDeadline(absl::Duration after) override {
    stream_->SetDeadline(StreamOverEndpoint::Limit::kWrite, after);
  }
  void SetIdleDeadline(absl::Duration after) override {
    stream_->SetDeadline(StreamOverEndpoint::Limit::kIdle, after);
  }
  SocketAddress peer() const override { return stream_->endpoint().peer(); }
  SocketAddress local() const override { return stream_->endpoint().local(); }
  Loop& loop() const override { return stream_->endpoint().loop(); }
  StreamStats stats() const override { return stream_->stats(); }
  SendBounds send_bounds() const override {
    const StreamOptions& options = stream_->options();
    return {.low = options.send_queue_low,
            .high = options.send_queue_high,
            .max = options.send_queue_max};
  }

 private:
  std::shared_ptr<StreamOverEndpoint> stream_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_ENDPOINT_STREAM_H_
