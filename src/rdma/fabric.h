// Fabric: the only door to RDMA hardware, as Sys is the door to the kernel. Two implementations
// exist: VerbsFabric over libibverbs, and the tests' FakeFabric, which has a virtual clock, strict
// queue pair states and faults. Nothing above this header knows which one it has.
//
// The calls are those of verbs for reliable connections, no more and no less: a queue pair does
// what the device does, and what the device leaves undefined (posting too early, destroying out of
// order) the fake reports. Control calls give absl::Status that names the call and the device; the
// calls of the data path give 0 or -errno, as Sys does.
//
// Ownership: a FabricDevice owns its protection domain; queues and queue pairs are owned by whoever
// created them and destroyed before what they were created with: queue pairs, then completion and
// shared receive queues, then memory, then the device, then the fabric. Memory that was posted
// belongs to the device until its completion has been polled, or its queue pair destroyed.
//
// Threads: Fabric and the device's control calls may be used from any thread at once (the fake: one
// thread). A completion queue, a shared receive queue and a queue pair each by one thread at a
// time.
#ifndef PENSTOCK_RDMA_FABRIC_H_
#define PENSTOCK_RDMA_FABRIC_H_

#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

using FabricGid = std::array<uint8_t, 16>;

// What a queue pair number, and a packet sequence number, fits in.
inline constexpr uint32_t kFabricNumberMask = 0xffffff;

struct FabricLimits {
  uint32_t queue_pairs = 0;
  uint32_t queue_depth = 0;            // work requests of one send or receive queue
  uint32_t completion_depth = 0;       // of one completion queue
  uint32_t shared_receive_queues = 0;  // 0: the device has none
  uint32_t shared_receive_depth = 0;   // of one of them
  uint32_t parts = 0;                  // of one work request
  uint32_t read_depth = 0;             // reads one queue pair may serve, or have out, at once
  uint32_t memory_regions = 0;
  uint64_t memory_region_size = 0;  // bytes
  uint8_t ports = 0;                // numbered from 1
};

struct FabricPort {
  bool active = false;
  bool ethernet = false;  // RoCE: peers are found by GID alone, there is no LID
  uint16_t lid = 0;
  uint32_t mtu = 0;  // active, in bytes
  uint32_t gids = 0;
};

// What a peer, or the device itself, may do with memory. Every region may be read by sends.
enum FabricAccess : uint8_t {
  kFabricLocalWrite = 1,  // receives and reads may land in it; needed by kFabricRemoteWrite
  kFabricRemoteWrite = 2,
  kFabricRemoteRead = 4,
};

struct FabricMemory {
  void* handle = nullptr;  // the implementation's; null when nothing is registered
  uint32_t local_key = 0;
  uint32_t remote_key = 0;
};

struct FabricPart {
  void* data = nullptr;
  uint32_t size = 0;
  uint32_t local_key = 0;
};

enum class FabricOp : uint8_t { kSend, kSendImmediate, kWrite, kRead, kReceive };
// "SEND", "WRITE", ...
std::string_view FabricOpName(FabricOp op);

struct FabricSend {
  uint64_t id = 0;  // comes back in the completion
  FabricOp op = FabricOp::kSend;
  std::span<const FabricPart> parts;
  uint64_t remote_address = 0;  // of kWrite and kRead, with remote_key
  uint32_t remote_key = 0;
  uint32_t immediate = 0;  // of kSendImmediate; arrives as it was given, whatever the byte order
  bool signalled = true;   // a completion is wanted also when all goes well
  bool solicited = false;  // wakes a peer that armed its queue for solicited completions only
  bool inlined = false;    // the bytes are taken during the call; at most FabricQpLimits::inlined
  bool fenced = false;     // after the reads that were posted before it
};

struct FabricReceive {
  uint64_t id = 0;
  std::span<const FabricPart> parts;
};

// How a work request ended. After the first that is not kOk the queue pair is in the error state
// and what it still holds ends with kFlushed (but not what a shared receive queue holds).
enum class FabricOutcome : uint8_t {
  kOk,
  kFlushed,           // never tried, or in doubt: see FabricQp::ToError
  kRetriesExceeded,   // the peer never acknowledged
  kReceiverNotReady,  // the peer had no receive posted, for too long
  kLocalLength,       // a message longer than the receive it met, or than the device sends
  kLocalProtection,   // a part outside registered memory
  kLocalQueuePair,    // the queue pair is inconsistent
  kRemoteInvalid,     // the peer's device refused the request as malformed
  kRemoteAccess,      // the peer's memory is not there, or not for this
  kRemoteOperation,   // the peer could not do it
  kOther,
};
// "retries exceeded", ...
std::string_view FabricOutcomeName(FabricOutcome outcome);

struct FabricCompletion {
  uint64_t id = 0;
  FabricOutcome outcome = FabricOutcome::kOther;
  FabricOp op = FabricOp::kSend;  // valid with kOk only
  bool has_immediate = false;
  uint32_t bytes = 0;  // received, or read; with kOk only
  uint32_t immediate = 0;
  uint32_t qp_number = 0;  // numbers are used again after a queue pair is destroyed
  uint32_t vendor_error = 0;
};

enum class FabricEventKind : uint8_t {
  kDeviceFatal,
  kPortActive,
  kPortError,
  kAddressChange,  // of the port: its GID or LID may be another one
  kCqError,        // the completion queue overflowed; its queue pairs are lost
  kQpFatal,
  kQpEstablished,  // data came before the queue pair was RTS; not reported by every device
  kQpLastReceive,  // nothing more is taken from the shared receive queue; not by every device
  kSrqError,
  kSrqLimit,  // fewer receives than the armed limit are left
  kOther,
};
std::string_view FabricEventKindName(FabricEventKind kind);

struct FabricEvent {
  FabricEventKind kind = FabricEventKind::kOther;
  uint64_t owner = 0;  // what the queue or queue pair was created with; 0 for ports and the device
  uint8_t port = 0;
};

// A completion queue with a completion channel of its own.
class FabricCq {
 public:
  virtual ~FabricCq() = default;
  // Becomes readable when a completion comes while armed. Nonblocking; owned by the queue.
  virtual int fd() const = 0;
  // Asks for one event, for the next completion that comes after this call: poll again before
  // sleeping.
  virtual int Arm() = 0;
  // Takes events that wait, `max` at most, without blocking: how many, or -errno. There is no more
  // than one for each Arm.
  virtual int TakeEvents(uint32_t max) = 0;
  // Every event taken must be acknowledged before the queue is destroyed; takes a lock, so best in
  // batches.
  virtual void AckEvents(uint32_t count) = 0;
  // Takes up to out.size() completions: how many, or -errno (the queue is lost).
  virtual int Poll(std::span<FabricCompletion> out) = 0;
};

// Receives shared by queue pairs. A queue pair that fails does not give back what it has not used.
class FabricSrq {
 public:
  virtual ~FabricSrq() = default;
  // -ENOMEM when it is full.
  virtual int PostReceive(const FabricReceive& receive) = 0;
  // Asks for one kSrqLimit when fewer than `limit` receives are left.
  virtual int ArmLimit(uint32_t limit) = 0;
};

struct FabricQpOptions {
  uint64_t owner = 0;  // named by events
  FabricCq* send_cq = nullptr;
  FabricCq* receive_cq = nullptr;  // may be the same
  FabricSrq* srq = nullptr;        // null: receives are posted to the queue pair
  uint32_t send_depth = 128;
  uint32_t receive_depth = 128;  // without `srq`
  uint32_t send_parts = 4;
  uint32_t receive_parts = 1;
  uint32_t inlined = 128;  // bytes; fewer when the device has not so many
};

// What was granted.
struct FabricQpLimits {
  uint32_t send_depth = 0;
  uint32_t receive_depth = 0;
  uint32_t inlined = 0;
};

struct FabricInit {
  uint8_t port = 1;
  uint8_t access = 0;  // FabricAccess: what the peer may do by this queue pair
};

// Where the peer is, and how its packets are taken.
struct FabricPath {
  uint8_t port = 1;
  uint8_t gid_index = 0;
  FabricGid peer_gid = {};
  uint16_t peer_lid = 0;
  uint32_t peer_qp_number = 0;
  uint32_t peer_psn = 0;  // the number the peer's first packet has
  uint32_t mtu = 1024;    // bytes: 256, 512, 1024, 2048, 4096
  uint8_t hop_limit = 64;
  uint8_t service_level = 0;
  uint8_t traffic_class = 0;
  uint8_t read_depth = 1;      // reads served at once
  uint8_t min_rnr_timer = 13;  // code of what a peer waits when no receive is posted: 13 is 0.96 ms
};

// How packets are sent, and sent again.
struct FabricTiming {
  uint32_t psn = 0;         // of the first packet
  uint8_t timeout = 14;     // an acknowledgement is waited for 4.096 us << timeout: 67 ms
  uint8_t retry_count = 7;  // 0 to 7; rdma_rxe takes 7 for ever
  uint8_t rnr_retry = 6;    // 0 to 6; 7 is for ever
  uint8_t read_depth = 1;   // reads out at once
};

// A queue pair of a reliable connection. Created in RESET; the states follow one another: INIT,
// RTR (ready to receive), RTS (ready to send), and from each of them the error state.
class FabricQp {
 public:
  virtual ~FabricQp() = default;
  virtual uint32_t number() const = 0;
  virtual FabricQpLimits limits() const = 0;
  // From INIT on receives may be posted.
  virtual absl::Status ToInit(const FabricInit& init) = 0;
  // From RTR on packets are taken. Packets that came earlier were dropped in silence, and their
  // sender waits a whole timeout before it tries again.
  virtual absl::Status ToReadyToReceive(const FabricPath& path) = 0;
  // From RTS on sends may be posted.
  virtual absl::Status ToReadyToSend(const FabricTiming& timing) = 0;
  // Everything posted ends with kFlushed, in order for each queue; a send that ends so may have
  // reached the peer. From any state but RESET.
  virtual absl::Status ToError() = 0;
  // Posts in order. `posted`: how many were taken, fewer than all with an error: -ENOMEM when the
  // queue is full (completions give room), -EINVAL when the state, the size or the number of parts
  // does not allow it. In the error state requests are taken and flushed.
  virtual int PostSends(std::span<const FabricSend> sends, size_t* posted) = 0;
  virtual int PostReceive(const FabricReceive& receive) = 0;

  int PostSend(const FabricSend& send) {
    size_t posted;
    return PostSends({&send, 1}, &posted);
  }
};

// An open device with one protection domain.
class FabricDevice {
 public:
  virtual ~FabricDevice() = default;
  virtual const std::string& name() const = 0;
  virtual const FabricLimits& limits() const = 0;
  virtual absl::StatusOr<FabricPort> QueryPort(uint8_t port) = 0;
  // NotFound when there is none at `index`, or it is all zero.
  virtual absl::StatusOr<FabricGid> QueryGid(uint8_t port, uint32_t index) = 0;

  // `access`: of FabricAccess. The memory must stay mapped until it is deregistered.
  virtual absl::StatusOr<FabricMemory> Register(void* data, size_t size, uint8_t access) = 0;
  // On an error the memory may still be reached by the device: it must not be unmapped.
  virtual absl::Status Deregister(const FabricMemory& memory) = 0;

  // `owner` is named by events.
  virtual absl::StatusOr<std::unique_ptr<FabricCq>> CreateCq(uint32_t depth, uint64_t owner) = 0;
  virtual absl::StatusOr<std::unique_ptr<FabricSrq>> CreateSrq(uint32_t depth, uint32_t parts,
                                                               uint64_t owner) = 0;
  virtual absl::StatusOr<std::unique_ptr<FabricQp>> CreateQp(const FabricQpOptions& options) = 0;

  // Readable while events wait. Nonblocking; owned by the device.
  virtual int event_fd() const = 0;
  // Takes one event, already acknowledged. False: none waits.
  virtual bool TakeEvent(FabricEvent* event) = 0;
};

class Fabric {
 public:
  virtual ~Fabric() = default;
  // Names of the devices. Unavailable when the system has no RDMA, the reason in the message.
  virtual absl::StatusOr<std::vector<std::string>> ListDevices() = 0;
  // NotFound names the devices that are there.
  virtual absl::StatusOr<std::unique_ptr<FabricDevice>> Open(std::string_view name) = 0;
};

// The devices of this machine; lives as long as the process. Every call fails with Unavailable in a
// library built without libibverbs. Thread-safe.
Fabric& SystemFabric();

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_FABRIC_H_
