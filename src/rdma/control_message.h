// The messages of an RDMA endpoint's control stream, as values; control_codec.h turns them into
// bytes and back, docs/wire-formats.md has those bytes.
//
// Pure data; any thread. What a decoded message says is within the bounds given here, and nothing
// more: whether it fits the moment is the gate's and the endpoint's to judge (I6, I7).
#ifndef PENSTOCK_RDMA_CONTROL_MESSAGE_H_
#define PENSTOCK_RDMA_CONTROL_MESSAGE_H_

#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Versions of the protocol that this build speaks.
inline constexpr uint8_t kControlVersionMin = 1;
inline constexpr uint8_t kControlVersionMax = 1;

// Of a message's fields together, in bytes.
inline constexpr size_t kControlBodyMax = 4096;
inline constexpr size_t kControlTextMax = 256;
inline constexpr size_t kLanesMax = 8;
// Queue pair numbers and packet sequence numbers have 24 bits.
inline constexpr uint32_t kLaneNumberMax = 0xffffff;

enum class ControlType : uint8_t {
  kHello = 1,
  kAccept = 2,
  kReject = 3,
  kReady = 4,
  kCredit = 5,
  kRegion = 6,
  kRevoke = 7,
  kPing = 8,
  kPong = 9,
  kFallback = 10,
  kDrain = 11,
  kClose = 12,
  kGrant = 13,
  // Not a message of fields: bytes of the endpoint's own, once the fallback is agreed. See
  // control_codec.h.
  kData = 64,
};
// "HELLO", "type 77".
std::string ControlTypeName(ControlType type);

// What a side can do, and in ACCEPT what both do. Unknown bits are ignored.
inline constexpr uint64_t kFeatureReady = 1 << 0;     // the active side sends READY
inline constexpr uint64_t kFeatureFallback = 1 << 1;  // the control stream can carry the data
inline constexpr uint64_t kFeatureOneSided = 1 << 2;  // regions can be read and written
inline constexpr uint64_t kFeatureOffers = 1 << 3;    // offered messages are fetched
inline constexpr uint64_t kFeatureGrants = 1 << 4;    // GRANT is sent and understood

using Bytes16 = std::array<uint8_t, 16>;

// Who speaks. Numbers of attempts are never used twice by one process, and ascend; a process that
// starts again has another incarnation.
struct AttemptId {
  Bytes16 incarnation{};  // random, of the process, or of its set of peers (peer_set.h)
  uint64_t endpoint = 0;
  uint64_t attempt = 0;  // not 0

  bool operator==(const AttemptId&) const = default;
};

// Where one queue pair is. A GID or a LID must be given.
struct LaneAddress {
  uint32_t qpn = 0;  // 1 to kLaneNumberMax
  uint32_t psn = 0;  // of the first packet; random, to kLaneNumberMax
  uint16_t lid = 0;
  uint8_t mtu = 0;  // 1 to 5: 256 to 4096 bytes, as enum ibv_mtu
  Bytes16 gid{};

  bool operator==(const LaneAddress&) const = default;
};

inline constexpr uint32_t LaneMtuBytes(const LaneAddress& lane) { return 128u << lane.mtu; }

// What a side can take at once.
struct ReceiveTerms {
  uint32_t depth = 0;       // messages
  uint32_t size = 0;        // of a message, in bytes
  uint32_t read_depth = 0;  // READs that the peer may have outstanding on a lane
  // Of a message of the endpoint, which may be many of the above, in bytes; 0: nothing is told.
  uint32_t message_max = 0;

  bool operator==(const ReceiveTerms&) const = default;
};

// The active side's first message. No lanes: it has no device, and offers kFeatureFallback.
struct ControlHello {
  uint8_t version_min = kControlVersionMin;
  uint8_t version_max = kControlVersionMax;
  uint64_t features = 0;
  AttemptId from{};
  Bytes16 nonce{};           // random, of this attempt
  uint32_t deadline_ms = 0;  // that are left for opening; 0: none is told
  std::vector<LaneAddress> lanes{};
  ReceiveTerms terms{};
  std::string name{};  // that others dial the sender by; ASCII, at most kControlTextMax bytes

  bool operator==(const ControlHello&) const = default;
};

// The passive side's answer, sent when each of its lanes can receive and send (I6). As many lanes
// as the HELLO at most; none: the control stream carries the data.
struct ControlAccept {
  uint8_t version = kControlVersionMax;
  uint64_t features = 0;
  AttemptId from{};
  AttemptId to{};  // AttemptId of the HELLO
  Bytes16 nonce{};
  std::vector<LaneAddress> lanes{};
  ReceiveTerms terms{};

  bool operator==(const ControlAccept&) const = default;
};

// Others may come; the text says what they mean.
enum class RejectCode : uint16_t {
  kUnspecified = 0,
  kBusy = 1,        // try again after retry_after_ms
  kVersion = 2,     // no version in common
  kMalformed = 3,   // the HELLO is none
  kFeature = 4,     // a feature that this side insists on is missing
  kLanes = 5,       // the lanes could not be brought up
  kSuperseded = 6,  // another connection to this peer lives on
  kShutdown = 7,
};

struct ControlReject {
  RejectCode code = RejectCode::kUnspecified;
  uint32_t retry_after_ms = 0;  // 0: nothing is said
  uint64_t attempt = 0;         // of the HELLO; 0: not understood so far
  std::string text{};           // at most kControlTextMax bytes

  bool operator==(const ControlReject&) const = default;
};

// The active side's: each of its lanes can receive and send (I6). All of it must match.
struct ControlReady {
  uint64_t active_attempt = 0;
  uint64_t passive_attempt = 0;
  Bytes16 active_nonce{};
  Bytes16 passive_nonce{};
  uint64_t transcript = 0;  // TranscriptHash of HELLO and ACCEPT

  bool operator==(const ControlReady&) const = default;
};

struct ControlCredit {
  uint32_t granted = 0;  // since the endpoint opened, modulo 2^32

  bool operator==(const ControlCredit&) const = default;
};

inline constexpr uint32_t kRegionRead = 1 << 0;
inline constexpr uint32_t kRegionWrite = 1 << 1;

// Grants the peer a region; only after the gate has opened.
struct ControlRegion {
  uint64_t region = 0;
  uint32_t epoch = 0;
  uint64_t address = 0;
  uint64_t length = 0;
  uint32_t rkey = 0;
  uint32_t access = 0;  // kRegionRead, kRegionWrite

  bool operator==(const ControlRegion&) const = default;
};

struct ControlRevoke {
  bool reply = false;  // it is no longer used
  uint64_t region = 0;
  uint32_t epoch = 0;

  bool operator==(const ControlRevoke&) const = default;
};

struct ControlPing {
  uint64_t token = 0;

  bool operator==(const ControlPing&) const = default;
};

struct ControlPong {
  uint64_t token = 0;  // of the PING

  bool operator==(const ControlPong&) const = default;
};

// From here on the control stream carries the data.
struct ControlFallback {
  bool reply = false;
  bool closing = false;   // CLOSE follows, and no data: nothing has failed
  uint64_t received = 0;  // messages received in order so far: the peer sends again what follows
  std::string text{};     // why; at most kControlTextMax bytes

  bool operator==(const ControlFallback&) const = default;
};

struct ControlDrain {
  bool reply = false;     // everything up to the peer's has been received
  uint64_t sequence = 0;  // of the last message that the sender sent

  bool operator==(const ControlDrain&) const = default;
};

enum class CloseCode : uint16_t {
  kNormal = 0,
  kViolation = 1,  // the peer broke the protocol
  kDeadline = 2,
  kLanes = 3,  // a lane has failed
  kShutdown = 4,
};

// Ends the endpoint; the last message.
struct ControlClose {
  CloseCode code = CloseCode::kNormal;
  std::string text{};  // at most kControlTextMax bytes

  bool operator==(const ControlClose&) const = default;
};

// How many messages may be on the way to the sender by the lane, from now on. One that takes some
// back is answered by the number that holds: this one, or the old one when more are on the way.
struct ControlGrant {
  bool reply = false;
  uint32_t receives = 0;

  bool operator==(const ControlGrant&) const = default;
};

// A message of a later version that may be skipped.
struct ControlSkipped {
  uint8_t type = 0;

  bool operator==(const ControlSkipped&) const = default;
};

using ControlMessage =
    std::variant<ControlHello, ControlAccept, ControlReject, ControlReady, ControlCredit,
                 ControlRegion, ControlRevoke, ControlPing, ControlPong, ControlFallback,
                 ControlDrain, ControlClose, ControlGrant, ControlSkipped>;

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_CONTROL_MESSAGE_H_
