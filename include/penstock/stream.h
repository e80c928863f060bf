// Stream: the contract that every byte stream obeys, plain or sealed, over any engine.
//
// A stream is two ordered runs of bytes, one each way. It holds no buffer while it waits (I1): a
// buffer is taken from the pool when bytes have arrived, handed to the callback, and is the
// callback's to keep, pass on or drop.
//
// Callbacks
//   Each runs exactly once, on the loop's thread, never inside the call that started it (I3); or it
//   is destroyed unrun when its stream or its loop is destroyed first. They may call the stream,
//   destroy it, or start the next operation.
// Reading
//   One ReadReady may be pending. It ends with at least one byte, or with the way the stream ended:
//   end of stream (IsEof), reset, deadline or cancellation, and every byte received before that is
//   delivered first. An end that came from the peer is repeated to every later ReadReady.
// Writing
//   Writes are sent in the order they were started. A write ends OK when the kernel has taken its
//   last byte. When sending fails, this write and all later ones end with that error;
//   a failure that is no reset by the peer ends the whole stream.
// Half close
//   ShutdownWrite ends this side's bytes after those queued; reading goes on. ShutdownRead gives up
//   what the peer still sends; writing goes on.
// Destroying
//   Safe at any time, in any callback. Bytes still queued are not sent, and the peer then sees a
//   reset, not an end of stream, so that it cannot take a part for the whole. To end in order:
//   ShutdownWrite, read to the end of stream, then destroy. (TCP resets a connection that is closed
//   while bytes from the peer lie unread in the kernel, and the peer may then lose the tail of
//   ours.) Unix sockets have no reset of their own: their peer sees one only if it had sent bytes
//   that nobody took, otherwise an end of stream after what came before. Where that could pass for
//   the whole, tell lengths or seal the stream.
// Bounds
//   Beyond StreamOptions::send_queue_max a write is refused (RESOURCE_EXHAUSTED), the stream left
//   untouched if Write has a `done`. Callbacks are told in the order of their writes, those of
//   refused and empty ones too: a plain stream ends (RESOURCE_EXHAUSTED) when more than 1,048,576
//   of these wait. Above the high watermark writable() is false; NotifyWritable tells when the
//   queue has fallen to the low one.
#ifndef PENSTOCK_STREAM_H_
#define PENSTOCK_STREAM_H_

#include <penstock/address.h>
#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/status.h>

#include <cstdint>
#include <memory>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE

// How a socket stream behaves; given to Listen and Connect, kept for its life.
struct StreamOptions {
  // Socket options (tcp(7), socket(7)); those of TCP are ignored on Unix sockets.
  bool nodelay = true;
  // Zero: no keep-alive. Otherwise probe after this long idle and then every interval, `probes`
  // times. Whole seconds (rounded up), at least one and at most 32,767 (tcp(7)).
  absl::Duration keepalive_idle = absl::ZeroDuration();
  absl::Duration keepalive_interval = absl::Seconds(10);
  int keepalive_probes = 6;
  // Longest time sent bytes may stay unacknowledged (TCP_USER_TIMEOUT), at most 2^31 - 1 ms; zero:
  // the kernel's choice.
  absl::Duration user_timeout = absl::ZeroDuration();
  // SO_RCVBUF and SO_SNDBUF in bytes; zero: the kernel's tuning.
  int receive_buffer = 0;
  int send_buffer = 0;

  // Deadlines, infinite by default; 1 ms resolution. Read: a pending ReadReady ends with
  // DEADLINE_EXCEEDED when no byte comes for this long; the stream stays usable. Write: queued
  // bytes that make no progress for this long end the stream. Idle: no byte either way for this
  // long ends the stream. An ended stream fails every pending and later operation with
  // DEADLINE_EXCEEDED. From 2^32 - 1 ms (49.7 days) on they count as infinite.
  absl::Duration read_deadline = absl::InfiniteDuration();
  absl::Duration write_deadline = absl::InfiniteDuration();
  absl::Duration idle_deadline = absl::InfiniteDuration();

  // Bytes. See "Bounds" above. The bound must be at least 1. A high mark that is not below it
  // counts as one less, so that a stream that is writable has room for a byte; a low one above the
  // high one counts as that.
  uint32_t send_queue_low = 64 * 1024;
  uint32_t send_queue_high = 256 * 1024;
  uint32_t send_queue_max = 64 * 1024 * 1024;
  // Largest plain receive. Buffers are sized to each stream's traffic up to this;
  // receives that io_uring completes come in pieces of up to 16 KiB. Unread bytes in blocks of this
  // size, or of 64 KiB if that is more, stop receiving.
  uint32_t receive_max = 64 * 1024;
  // For comparison: reads as most libraries do them, into a buffer of receive_max bytes that a
  // connection holds from its birth on; a framed reader above it holds one of the same size, a
  // sealed stream one of 33,280 bytes, as grpc-go's does. PENSTOCK_PINNED_READS=1 in the
  // environment turns it on for every stream.
  bool pinned_reads = false;
  // SwitchAll (penstock/move.h) and EngineAdapter (penstock/adaptive.h) leave the stream with the
  // engine it began on; a listener with this option keeps its engine, too.
  bool pinned_engine = false;
  // MigrateAll (penstock/move.h) and LoopBalancer (penstock/balance.h) may give the stream to
  // another loop, at any time once it is connected and, if it is sealed, the handshake is over.
  // Whoever sets this says that the stream's own callbacks alone own and use it, and that what else
  // they touch either goes with them or is safe for threads.
  bool migratable = false;
};

// Figures of one stream. Loop's thread.
struct StreamStats {
  EngineKind engine = EngineKind::kAuto;
  uint64_t bytes_in = 0;      // delivered by the kernel
  uint64_t bytes_out = 0;     // taken by the kernel
  uint64_t queued_bytes = 0;  // written and not yet taken
  // Bytes of blocks held, by layer: the socket's receive chain and send queue; and those of the
  // sealed stream above it, if this is one.
  uint64_t pinned_bytes = 0;
  uint64_t sealed_pinned_bytes = 0;
  // With StreamOptions::pinned_reads: its receive_max, which the socket's layer holds for reads and
  // a framed reader again; a sealed stream holds 33,280 bytes whatever this says. Otherwise 0.
  uint32_t pinned_read_size = 0;
};

// The bounds of a stream's send queue in bytes, as StreamOptions explains them.
struct SendBounds {
  uint32_t low = 0;
  uint32_t high = 0;
  uint32_t max = 0;
};

namespace internal {
class Connection;
}  // namespace internal

class PENSTOCK_EXPORT Stream {
 public:
  using ReadCallback = absl::AnyInvocable<void(absl::StatusOr<Buffer>) &&>;
  using DoneCallback = absl::AnyInvocable<void(absl::Status) &&>;

  virtual ~Stream() = default;

  // Calls `done` with the next bytes as soon as there are any. FailedPrecondition (through `done`)
  // when one is pending already.
  virtual void ReadReady(ReadCallback done) = 0;
  // Ends a pending ReadReady with Cancelled, in a later step of the loop: until then it is pending.
  // No byte is lost. No effect when none is pending.
  virtual void CancelRead() = 0;

  // Queues `data`; `done` runs when the kernel has taken all of it. Without `done` a failure of
  // sending shows on the next operation, and a refusal (beyond send_queue_max, or after
  // ShutdownWrite) ends the stream with that status and a reset, for bytes of it would be missing.
  // An empty chain ends OK in its turn.
  virtual void Write(BufferChain data, DoneCallback done = nullptr) = 0;
  // True while the queue is at or below the high watermark.
  virtual bool writable() const = 0;
  // `done` runs OK when the queue is at or below the low watermark (at once, in a later turn, if it
  // is already), or with the error that ended sending. FailedPrecondition (through `done`) when one
  // is pending already.
  virtual void NotifyWritable(DoneCallback done) = 0;

  // Ends sending after what is queued (FIN); `done` runs when that is done. Later writes, and a
  // second ShutdownWrite, fail with FailedPrecondition.
  virtual void ShutdownWrite(DoneCallback done = nullptr) = 0;
  // Drops what has been received and not read; later reads end with IsEof. What the peer sends from
  // then on is not taken: it stops when the kernel's buffers are full.
  virtual void ShutdownRead() = 0;
  // Resets the connection now (RST where the protocol has it). Pending and later operations end
  // with Cancelled; those of a stream that had ended already, as it had ended.
  virtual void Abort() = 0;

  // Replace the deadlines given by StreamOptions, and restart the one in question. A negative one
  // counts as zero.
  virtual void SetReadDeadline(absl::Duration after) = 0;
  virtual void SetWriteDeadline(absl::Duration after) = 0;
  virtual void SetIdleDeadline(absl::Duration after) = 0;

  virtual SocketAddress peer() const = 0;
  virtual SocketAddress local() const = 0;
  // The loop whose thread runs the callbacks. Must not be called once the loop is gone.
  virtual Loop& loop() const = 0;
  virtual StreamStats stats() const = 0;
  virtual SendBounds send_bounds() const = 0;

  // What carries the bytes in the end, for penstock/move.h; a stream made upon another one gives
  // that one's. Null: not a stream of Penstock's sockets.
  virtual internal::Connection* connection() { return nullptr; }
};

using StreamPtr = std::unique_ptr<Stream>;

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_STREAM_H_
