// RdmaEndpoint: messages, and reads and writes of memory that the peer has exposed, between two
// programs that share a stream; the same program whether an RDMA device is there or not.
//
//   auto endpoint = RdmaEndpoint::Connect(std::move(stream));   // the other side: Accept
//   endpoint->Send(std::move(message), [](absl::Status status) { ... });
//   endpoint->Receive([](absl::StatusOr<BufferChain> message) { ... });
//
// Any stream will do, plain or sealed: over it the two sides agree on what they are and tell each
// other when they are ready, and its end is the endpoint's end. When both have a device
// (RdmaOptions::device), everything goes over it, by a queue pair of their own; when one has none,
// or the device fails, or the stream may be sealed and the device is not asked for all the same
// (unsealed_lanes), the stream carries the data, without loss and without repetition, and
// one-sided operations are carried out by the peer's loop, which checks the bounds of every one of
// them before a byte is touched.
//
// Opening
//   Work may be started at once. It waits, bounded and without using the processor, until the gate
//   is open: until it is proved that the peer can receive (I6). NotifyOpen tells when that is.
// Outcomes
//   A failed operation tells whether it may be started again: OutcomeOf(status) is kNeverPosted
//   when the peer cannot have seen any of it, and kInDoubt when it may have.
// Order
//   Messages arrive once, in the order they were started, and so do writes. A message that was
//   started after a write arrives when all of the write is in the peer's memory. Reads may be
//   overtaken by messages and writes that are started later. Several lanes (RdmaOptions::lanes)
//   keep the order of messages, of what is done to one place in memory, and of a write and the
//   messages after it, and no other.
// Flow control
//   The peer says how many messages it has room for; what goes beyond waits in the queue, so that a
//   slow receiver slows the sender. RdmaOptions bounds the queue; beyond it operations are refused
//   (RESOURCE_EXHAUSTED, kNeverPosted) without touching the endpoint.
// Ends
//   An endpoint has one life: it opens once, and when it has ended everything pending and later
//   fails the same way. Close ends it in order: the peer gets every message and then IsEof, with
//   which AwaitRegion ends too; the peer's own operations end with UNAVAILABLE.
//   Destroying it is safe at any time, in any callback; the peer sees that it has gone.
// Callbacks
//   Each runs exactly once, on the loop's thread, never inside the call that started it (I3), or is
//   destroyed unrun when its endpoint or the loop is destroyed first.
// Memory
//   An endpoint that waits holds no buffer (I1). It stays on the loop that it was made on; its
//   stream may change engine, but not the loop.
#ifndef PENSTOCK_RDMA_H_
#define PENSTOCK_RDMA_H_

#include <penstock/address.h>
#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/stream.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#ifdef PENSTOCK_NO_RDMA
#error "This build of Penstock has no component rdma."
#endif

PENSTOCK_BEGIN_NAMESPACE

namespace internal {
class DialCore;
class EndpointCore;
class PeerEndpoints;
}  // namespace internal

// What became of an operation.
enum class RdmaOutcome : uint8_t {
  kDone,
  kNeverPosted,  // the peer has seen nothing of it: starting it again does it once
  kInDoubt,      // the peer may have seen some or all of it
};
// Of the status that an operation of an RdmaEndpoint ended with. Any other error is kInDoubt.
PENSTOCK_EXPORT RdmaOutcome OutcomeOf(const absl::Status& status);
// "done", "never posted", "in doubt".
PENSTOCK_EXPORT std::string_view RdmaOutcomeName(RdmaOutcome outcome);

struct RdmaDeviceOptions {
  // Empty: the first that the machine has.
  std::string name;
  uint8_t port = 1;
  // Of the address that peers reach the port by; soft RoCE and most others have IPv4 at 1.
  uint8_t gid_index = 0;
  // Receives that are posted at all times, shared by all endpoints, and bytes of each (512 to
  // 65,536), which is the longest piece of a message. This much memory is pinned, and no more for
  // more endpoints.
  uint32_t receives = 4096;
  uint32_t receive_size = 8192;
  // Receives of these that one endpoint may have its peer use, 2 at least; it takes 8 more. An
  // endpoint that finds fewer left uses the stream. When nothing comes by it for a while
  // (RdmaOptions::ping_interval) it keeps 10 of all these, and takes the rest again when something
  // does.
  uint32_t endpoint_receives = 32;
  // While traffic is brisk, how long the loop looks for more instead of sleeping; zero: not at all.
  absl::Duration spin_max = absl::ZeroDuration();
  // Endpoints made by Accept that open over the device at the same time, 1 at least, from the
  // peer's first word until they are open or use the stream; one of several lanes counts as many
  // times. And those that wait in line for that, in order. Peers beyond both are refused at once,
  // and told to come again after `retry_after` (the first; each after it a little later, up to
  // eight times that): see RdmaDial.
  uint32_t openings_max = 64;
  uint32_t openings_waiting_max = 1024;
  absl::Duration retry_after = absl::Milliseconds(250);
};

// Figures of one device since it was opened.
struct RdmaDeviceStats {
  uint32_t openings = 0;          // lanes of endpoints that are opening over the device
  uint32_t openings_waiting = 0;  // that wait in line for it
  uint64_t openings_admitted = 0;
  uint64_t openings_refused = 0;
  uint64_t spins = 0;          // turns that looked for more instead of sleeping
  absl::Duration spin_budget;  // that the next one may look for; zero when traffic is not brisk
  // Why it serves nobody any more: it has failed, or lost a queue. Empty while it serves.
  std::string lost;
};

// An RDMA device, open for the endpoints of one loop; share it among all of them. Loop's thread;
// may be dropped while endpoints use it, which then keep it.
class PENSTOCK_EXPORT RdmaDevice {
 public:
  // UNAVAILABLE when the machine has no RDMA or the port is down; NOT_FOUND when it has RDMA and no
  // device, or none of this name, or the port no such address; INVALID_ARGUMENT;
  // RESOURCE_EXHAUSTED when the options exceed a limit of the device, which the message names, or
  // it has no shared receive queue; or what the device says.
  static absl::StatusOr<std::shared_ptr<RdmaDevice>> Open(Loop& loop,
                                                          const RdmaDeviceOptions& options = {});
  virtual ~RdmaDevice() = default;
  RdmaDevice(const RdmaDevice&) = delete;
  RdmaDevice& operator=(const RdmaDevice&) = delete;
  virtual const std::string& name() const = 0;
  virtual RdmaDeviceStats stats() const = 0;

 protected:
  RdmaDevice() = default;
};

// What is done with a peer that never says when it is ready. The two that are not kRequire serve
// peers of other makes: every version of Penstock says it. Which of them it is matters to the
// passive side (Accept); the active one opens with the peer's answer then, whose queue pairs are
// up.
enum class RdmaReadyPolicy : uint8_t {
  kRequire,          // refuse such a peer
  kOpenOnFirstData,  // open when its first data has come: for peers that send first
  kOpenAtOnce,  // open when this side is ready: the peer may not be, and early sends then stall
};

struct RdmaOptions {
  // Of the loop of the stream. Null: the stream carries the data. What goes over the device is
  // neither encrypted nor authenticated, whatever the stream is.
  std::shared_ptr<RdmaDevice> device;
  // Only over a stream of Penstock's sockets is the device used by itself: any other stream may be
  // sealed, and what it protects would go past it in the clear. True: over every stream.
  bool unsealed_lanes = false;
  RdmaReadyPolicy ready_policy = RdmaReadyPolicy::kRequire;
  // From the making of the endpoint until it is open; within that the passive side waits
  // `ready_deadline` at most for the peer's last word. Both positive. Passing it ends the endpoint
  // with DEADLINE_EXCEEDED. So does a peer of an open endpoint that does not say within 30 s what
  // it had from lanes that this side has given up, without which nothing goes on.
  absl::Duration open_deadline = absl::Seconds(5);
  absl::Duration ready_deadline = absl::Seconds(3);
  // An open endpoint that has heard nothing for this long asks whether the peer is still there, and
  // ends with DEADLINE_EXCEEDED when `pings_missed_max` questions in a row stay unanswered. Both
  // positive.
  // Infinite: it does not ask, so an idle endpoint may not notice a peer that is gone without a
  // word, and gives none of its receives back (RdmaDeviceOptions::endpoint_receives).
  absl::Duration ping_interval = absl::Seconds(2);
  uint32_t pings_missed_max = 3;
  // Queue pairs for this endpoint, 1 to 8; with fewer at the peer, or fewer to be had, as many as
  // both have. Messages go by the first of them; reads, writes and what is offered
  // (`rendezvous_min`) are spread over all, in slices of 64 KiB by their place in the peer's
  // memory. With more than one, writes to different places, and writes and the messages before
  // them, may arrive in another order than they were started. If one fails, all are given up.
  uint32_t lanes = 1;
  // Operations that wait to be posted, and their bytes.
  uint32_t queue_operations_max = 4096;
  uint64_t queue_bytes_max = 64 * 1024 * 1024;
  // Largest message that is received, and largest single read, in bytes. The peer is told, and has
  // larger messages refused at its own side; one that sends one nevertheless ends the endpoint.
  uint32_t message_max = 16 * 1024 * 1024;
  // Pieces of messages (of 64 KiB at most) that the peer may have on the way or unread here; 2 to
  // 32,768. With a device not more than RdmaDeviceOptions::endpoint_receives count.
  uint32_t receive_depth = 64;
  // Reads that the peer may have outstanding; 1 to 1,024. With a device not more than it serves of
  // one queue pair, 16 at most, count.
  uint32_t read_depth = 16;
  // Over a device, messages of more bytes than this are not sent but offered: the peer's device
  // reads them where they lie, as far as that is in blocks of 32 KiB and more of a pool. What is
  // offered is registered with the device until it has been read. UINT32_MAX: none are.
  uint32_t rendezvous_min = 256 * 1024;
};

// What the peer may do with exposed memory.
enum class RdmaAccess : uint8_t { kRead = 1, kWrite = 2, kReadWrite = 3 };

// Memory of the peer, as it has exposed it. A value: copies name the same region. It is of no use
// to another endpoint.
struct RdmaRemoteRegion {
  bool readable() const { return (static_cast<uint8_t>(access) & 1) != 0; }
  bool writable() const { return (static_cast<uint8_t>(access) & 2) != 0; }

  uint64_t id = 0;
  uint32_t epoch = 0;  // ids are used again, with another epoch
  uint64_t size = 0;   // bytes
  RdmaAccess access = RdmaAccess::kRead;
};

// Memory of this program, exposed to the peer of one endpoint. Owned by whoever exposed it. Loop's
// thread.
class PENSTOCK_EXPORT RdmaRegion {
 public:
  // None.
  RdmaRegion() = default;
  // Takes the peer's access away at once. A peer that uses the region nevertheless (it cannot know
  // in time, without Revoke) ends the endpoint. The memory may be freed afterwards.
  ~RdmaRegion();
  RdmaRegion(RdmaRegion&& other) noexcept;
  RdmaRegion& operator=(RdmaRegion&& other) noexcept;

  uint64_t id() const { return id_; }
  uint32_t epoch() const { return epoch_; }

  // Asks the peer to let go of it. `done` runs with OK when what the peer had started is done and
  // nothing more can come, because the peer says so or because the endpoint has ended: the memory
  // is the caller's alone then. Until then keep the region. FailedPrecondition when asked already;
  // any other error is what the device said when it was to let go: the memory must stay where it
  // is until endpoint and RdmaDevice have gone.
  void Revoke(Stream::DoneCallback done);

 private:
  friend class internal::EndpointCore;
  RdmaRegion(std::weak_ptr<internal::EndpointCore> core, uint64_t id, uint32_t epoch);

  std::weak_ptr<internal::EndpointCore> core_;
  uint64_t id_ = 0;
  uint32_t epoch_ = 0;
};

// Figures of one endpoint since it was made. Loop's thread.
struct RdmaStats {
  bool open = false;
  bool over_device = false;  // the data goes over a device
  uint32_t lanes = 0;        // by so many queue pairs
  // Why the stream carries the data although a device was given. Empty when it does not.
  std::string fallback;
  uint64_t messages_sent = 0;  // taken by the peer's endpoint
  uint64_t messages_received = 0;
  uint64_t writes = 0;  // done
  uint64_t reads = 0;
  uint64_t bytes_out = 0;          // of messages and writes that are done, and of reads served
  uint64_t bytes_in = 0;           // of messages and writes received, and of reads that are done;
                                   // what a device wrote or served is not seen here
  uint32_t operations_queued = 0;  // not posted
  uint64_t bytes_queued = 0;
  uint32_t operations_posted = 0;  // and not done
  uint32_t credits = 0;            // pieces of messages that may be posted now
  uint64_t credit_waits = 0;       // times that the first in the queue had to wait for one
  uint64_t refused = 0;            // operations, for a full queue
  uint64_t expired = 0;            // operations, before they were posted
  uint64_t pings = 0;              // sent
  uint64_t offers = 0;             // parts of messages, of up to 8 blocks, for the peer to read
  uint32_t unregistered = 0;       // regions exposed that the device has refused to register
  uint32_t late = 0;               // messages of an attempt to open that came too late to matter
};

class PENSTOCK_EXPORT RdmaEndpoint {
 public:
  using DoneCallback = Stream::DoneCallback;
  using ReceiveCallback = absl::AnyInvocable<void(absl::StatusOr<BufferChain>) &&>;
  using ReadCallback = ReceiveCallback;
  using RegionCallback = absl::AnyInvocable<void(absl::StatusOr<RdmaRemoteRegion>) &&>;

  // An endpoint over `control`, which nobody has an operation pending on and whose peer does the
  // other of the two. What is wrong with the options or the stream shows as the end of the
  // endpoint. The read and idle deadlines of `control` are turned off, pings take their place; its
  // write deadline holds. A peer that takes nothing off it while 4 MiB wait for it ends the
  // endpoint with RESOURCE_EXHAUSTED.
  static std::unique_ptr<RdmaEndpoint> Connect(StreamPtr control, RdmaOptions options = {});
  static std::unique_ptr<RdmaEndpoint> Accept(StreamPtr control, RdmaOptions options = {});
  ~RdmaEndpoint();
  RdmaEndpoint(const RdmaEndpoint&) = delete;
  RdmaEndpoint& operator=(const RdmaEndpoint&) = delete;

  // `done` runs with OK when the endpoint is open, or with the reason why it never will be:
  // DEADLINE_EXCEEDED, UNAVAILABLE (the peer has gone or cannot now), ABORTED (another endpoint to
  // this peer lives on; RdmaPeerSet), FAILED_PRECONDITION (the peers have no version or feature in
  // common), INVALID_ARGUMENT (the peer broke the protocol, or the options are none).
  void NotifyOpen(DoneCallback done);
  // What a peer that refused, being busy, said about when to try again with a new endpoint; zero
  // when it said nothing.
  absl::Duration retry_after() const;

  // Sends one message, which may be empty. `done` runs with OK when the peer's endpoint has it,
  // which does not mean that the peer's program has received it. An operation that has waited for
  // `wait_max` without being posted ends with DEADLINE_EXCEEDED and kNeverPosted; once posted it
  // cannot be called back. So for all operations. INVALID_ARGUMENT and kNeverPosted, at once or
  // when the endpoint opens, for a message larger than the peer takes (its RdmaOptions::
  // message_max), that of a WriteThenSend included.
  void Send(BufferChain message, DoneCallback done = nullptr,
            absl::Duration wait_max = absl::InfiniteDuration());
  // Calls `done` with the next message, or with how the endpoint ended, after the last message:
  // IsEof when the peer closed it in order. FailedPrecondition when one is pending.
  void Receive(ReceiveCallback done);
  // Ends a pending Receive with Cancelled, in a later turn. No message is lost.
  void CancelReceive();

  // Lets the peer read or write `memory`, until the region goes. FailedPrecondition when the
  // endpoint has ended, InvalidArgument for empty memory or an access that is none of the three,
  // ResourceExhausted beyond 1,024 regions.
  // What the device does not register (RdmaStats::unregistered) this side's loop reads and writes
  // for the peer, as over a stream.
  absl::StatusOr<RdmaRegion> Expose(std::span<char> memory, RdmaAccess access);
  // Calls `done` with the next region that the peer exposes, or has exposed and nobody has asked
  // for, or with how the endpoint ended. FailedPrecondition when one is pending.
  void AwaitRegion(RegionCallback done);
  // One-sided operations: the peer's program is not told. `done` runs with OK when the bytes are in
  // the peer's memory, or with those that were there. Refused with kNeverPosted: OUT_OF_RANGE
  // beyond the region (IsEof holds for it, and it is no end: ask OutcomeOf first),
  // PERMISSION_DENIED when it does not allow this, FAILED_PRECONDITION when the peer has revoked it
  // or after Close, INVALID_ARGUMENT for a read of more than RdmaOptions::message_max.
  void Write(const RdmaRemoteRegion& region, uint64_t offset, BufferChain data,
             DoneCallback done = nullptr, absl::Duration wait_max = absl::InfiniteDuration());
  void Read(const RdmaRemoteRegion& region, uint64_t offset, uint64_t size, ReadCallback done,
            absl::Duration wait_max = absl::InfiniteDuration());
  // Write, and then Send of `message`, as one operation: the message is the news of the write.
  void WriteThenSend(const RdmaRemoteRegion& region, uint64_t offset, BufferChain data,
                     BufferChain message, DoneCallback done = nullptr,
                     absl::Duration wait_max = absl::InfiniteDuration());

  // Ends it in order: nothing more may be started; what is queued is sent, and the peer's endpoint
  // has all of it when `done` runs with OK. Messages that the peer still sends are received until
  // then. Otherwise `done` runs with what came between; FailedPrecondition when asked already. What
  // is pending when it has closed, a Receive for one, ends with Cancelled.
  void Close(DoneCallback done = nullptr);
  // Ends it now, everything pending with Cancelled. The peer sees a reset.
  void Abort();

  RdmaStats stats() const;
  SocketAddress peer() const;
  SocketAddress local() const;
  // As Stream::loop.
  Loop& loop() const;

 private:
  friend class internal::PeerEndpoints;
  explicit RdmaEndpoint(std::shared_ptr<internal::EndpointCore> core);
  std::shared_ptr<internal::EndpointCore> core_;
};

struct RdmaDialOptions {
  RdmaOptions endpoint;
  // Of all attempts together.
  absl::Duration deadline = absl::Seconds(30);
  uint32_t attempts_max = 10;  // 1 at least
  // Between two attempts: half to all of `pause_min` (by chance, so that many that were refused
  // together do not come back together), of twice as much each time, up to `pause_max`; longer
  // where the peer has asked for more, up to a minute or `pause_max`. 0 < pause_min <= pause_max.
  absl::Duration pause_min = absl::Milliseconds(100);
  absl::Duration pause_max = absl::Seconds(30);
};

// RdmaEndpoint::Connect, again and again: each attempt over a stream of its own, until an endpoint
// is open, and not before the peer that is busy has asked for (RdmaEndpoint::retry_after). What
// cannot be mended by waiting ends it at once. Loop's thread; must not outlive the loop.
class PENSTOCK_EXPORT RdmaDial {
 public:
  // Makes a stream to the peer, and calls what it is given, in any turn, once.
  using StreamCallback = absl::AnyInvocable<void(absl::StatusOr<StreamPtr>) &&>;
  using Connector = absl::AnyInvocable<void(StreamCallback)>;
  using Callback = absl::AnyInvocable<void(absl::StatusOr<std::unique_ptr<RdmaEndpoint>>) &&>;

  // `done` runs with an endpoint that is open, or with how the last attempt ended: what may be
  // tried again is UNAVAILABLE and DEADLINE_EXCEEDED, of streams and endpoints. DEADLINE_EXCEEDED
  // also when `deadline` passes, or would before the next attempt. INVALID_ARGUMENT, before the
  // first attempt, for options that are none.
  RdmaDial(Loop& loop, Connector connect, RdmaDialOptions options, Callback done);
  // `done`, if it has not run, is destroyed unrun. May be destroyed in any callback.
  ~RdmaDial();
  RdmaDial(const RdmaDial&) = delete;
  RdmaDial& operator=(const RdmaDial&) = delete;

  // That have begun.
  uint32_t attempts() const;

 private:
  std::shared_ptr<internal::DialCore> core_;
};

// A byte stream over `endpoint`, whose messages are all its own from then on, and on which nothing
// is queued; the peer's program does the same. It may be used before the endpoint is open. The
// contract is Stream's, and what differs from a socket stream:
//   - A write ends OK when the peer's endpoint has its last byte.
//   - Destroying it with everything sent tells the peer's stream that this was all, and stays up to
//     5 s for that. The end of the endpoint without it is a reset (UNAVAILABLE), also when the peer
//     has closed the endpoint in order.
//   - Of `options` the deadlines and bounds count, the deadlines for the stream's own bytes. What
//     is written waits here as long as the endpoint's own queue has no room for it.
//   - Unread bytes are kept in memory, bounded by RdmaOptions::receive_depth; LoopSnapshot counts
//     what the stream below `endpoint` holds, and not this.
//   - It stays on its loop; connection() is null.
PENSTOCK_EXPORT StreamPtr AsStream(std::unique_ptr<RdmaEndpoint> endpoint,
                                   const StreamOptions& options = {});

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_H_
