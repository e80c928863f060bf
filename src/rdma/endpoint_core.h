// EndpointCore: one endpoint over its control stream: what RdmaEndpoint promises, kept.
//
// Shared by its RdmaEndpoint, which is its owner, and for the length of a call by whatever runs in
// it; regions only look at it. Loop's thread. All callbacks run in Service, one after the other,
// never in the call that started them (I3).
//
// Parts: ReadyGate judges when work may be posted (I6, I7), WorkQueue holds what waits,
// CreditWindow how much may go and what has come, RegionTable and PeerRegions who may reach which
// memory. Here they meet what carries the data: Pump posts, OnData takes, and every operation is in
// exactly one list from its start to its callback: the queue, one of those that are out, those that
// are finished.
//
// A large message is offered: the peer reads it from where it lies, and tells when it has. What
// comes behind an offer waits there (`behind_`) until that is fetched, so that messages are
// delivered in order, and whole.
//
// The carrier is a LaneGroup when both sides have a device, and the ControlChannel otherwise. It
// changes once at most, from the lane to the channel: each side that has given up its lane tells by
// FALLBACK how many messages it had from it, and sends on the channel what the peer has not, when
// it has heard the same of the peer.
#ifndef PENSTOCK_RDMA_ENDPOINT_CORE_H_
#define PENSTOCK_RDMA_ENDPOINT_CORE_H_

#include <penstock/export.h>
#include <penstock/rdma.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fifo.h"
#include "base/timer_wheel.h"
#include "engine/deferred.h"
#include "engine/loop_core.h"
#include "engine/parcel.h"
#include "rdma/admission.h"
#include "rdma/control_channel.h"
#include "rdma/control_message.h"
#include "rdma/credit_window.h"
#include "rdma/exposed_memory.h"
#include "rdma/idle_grant.h"
#include "rdma/lane_device.h"
#include "rdma/lane_group.h"
#include "rdma/lane_window.h"
#include "rdma/message_header.h"
#include "rdma/quiet_sends.h"
#include "rdma/ready_gate.h"
#include "rdma/region_table.h"
#include "rdma/work_queue.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// The life of an endpoint; how far opening has come is the gate's to know.
enum class EndpointState : uint8_t {
  kOpening,
  kOpen,
  kDraining,  // Close was called: what was started before it is being sent
  kFlushing,  // the peer is asked whether it has everything
  kDead,
};
inline constexpr size_t kEndpointStates = 5;

enum class EndpointEvent : uint8_t {
  kGateOpen,
  kClose,
  kSent,  // everything is done, as far as this side can tell
  kEnd,
};
inline constexpr size_t kEndpointEvents = 4;

// The next state, or the same one where the event means nothing.
inline constexpr std::array<std::array<EndpointState, kEndpointEvents>, kEndpointStates>
    kEndpointTransitions = {{
        /* kOpening  */ {EndpointState::kOpen, EndpointState::kOpening, EndpointState::kOpening,
                         EndpointState::kDead},
        /* kOpen     */
        {EndpointState::kOpen, EndpointState::kDraining, EndpointState::kOpen,
         EndpointState::kDead},
        /* kDraining */
        {EndpointState::kDraining, EndpointState::kDraining, EndpointState::kFlushing,
         EndpointState::kDead},
        /* kFlushing */
        {EndpointState::kFlushing, EndpointState::kFlushing, EndpointState::kFlushing,
         EndpointState::kDead},
        /* kDead     */
        {EndpointState::kDead, EndpointState::kDead, EndpointState::kDead, EndpointState::kDead},
    }};

// What carries the data.
enum class Carrier : uint8_t {
  kStream,
  kLane,     // all lanes of the endpoint
  kLeaving,  // they are gone, and the peer has not said yet what it had from it
};
inline constexpr size_t kCarriers = 3;

enum class CarrierEvent : uint8_t {
  kUp,     // the lane is connected
  kTold,   // FALLBACK is on its way to the peer
  kHeard,  // FALLBACK has come from the peer, and this side's has gone
};
inline constexpr size_t kCarrierEvents = 3;

// The same again where the event means nothing. Nothing leads from the lane to the stream but by
// both sides' FALLBACK.
inline constexpr std::array<std::array<Carrier, kCarrierEvents>, kCarriers> kCarrierTransitions = {{
    // The lane of an active side that did not come up is told of, too: the peer's is up.
    /* kStream  */ {Carrier::kLane, Carrier::kLeaving, Carrier::kStream},
    /* kLane    */ {Carrier::kLane, Carrier::kLeaving, Carrier::kLane},
    /* kLeaving */ {Carrier::kLeaving, Carrier::kLeaving, Carrier::kStream},
}};

// A piece of a message that is not whole, or is behind one that is not: in the order of coming.
struct Arrival {
  BufferChain data;
  std::vector<BufferChain> read;  // the parts of an offer, until all are there
  size_t parts = 0;               // that are still to be fetched
  uint64_t offered = 0;           // bytes, of what is fetched
  uint32_t message = 0;           // that it belongs to, counted
  bool last = false;              // of its message
};

// What an endpoint that belongs to a set of peers (peer_set.h) has besides.
struct EndpointMember {
  Bytes16 incarnation{};  // the set's
  std::string name{};     // that is told in HELLO
  // The passive side's HELLO has come, and Admit or a refusal is to follow. In a turn of callbacks.
  absl::AnyInvocable<void() &&> on_hello;
};

class EndpointCore final : public std::enable_shared_from_this<EndpointCore>,
                           private ControlChannel::Owner,
                           private LaneGroup::Owner,
                           private Deferred,
                           private Layer {
 public:
  EndpointCore(GateRole role, StreamPtr control, RdmaOptions options,
               std::optional<EndpointMember> member = std::nullopt);
  ~EndpointCore();
  // Once shared.
  void Start();
  // The RdmaEndpoint goes.
  void Release();

  void NotifyOpen(RdmaEndpoint::DoneCallback done);
  absl::Duration retry_after() const { return gate_.retry_after(); }
  // A message of whose end nobody is to be told. Where nothing goes before it the lanes have it
  // when this returns; false: it waits for a turn, nothing has been done.
  bool SendAtOnce(BufferChain& message);
  // `work` is one operation with its callbacks.
  void Add(WorkList work, absl::Duration wait_max);
  void Receive(RdmaEndpoint::ReceiveCallback&& done);
  void CancelReceive();
  absl::StatusOr<RdmaRegion> Expose(std::span<char> memory, RdmaAccess access);
  void AwaitRegion(RdmaEndpoint::RegionCallback done);
  void Close(RdmaEndpoint::DoneCallback done);
  void Abort();
  // Of RdmaRegion.
  void Revoke(uint64_t id, uint32_t epoch, Stream::DoneCallback done);
  void Remove(uint64_t id, uint32_t epoch);

  // Of a set of peers, its owner. The passive side goes on after its HELLO, or refuses it: that
  // ends it, with Aborted, or with Unavailable.
  void Admit();
  void Supersede();
  void RefuseBusy(absl::Duration retry_after);
  // Ends it; the peer is told why.
  void GiveUp(absl::StatusCode code, std::string_view why);
  // `done` runs once with how it ended, when all callbacks have run that were due then: it may
  // destroy the endpoint. Replaces an earlier one; null: none.
  void Watch(RdmaEndpoint::DoneCallback done);
  // `alive` runs when the peer has answered, if it does; of an open endpoint. As Watch.
  void Probe(absl::AnyInvocable<void() &&> alive);
  const RdmaOptions& options() const { return options_; }
  // In bytes; known once it is open.
  uint32_t peer_message_max() const { return peer_message_max_; }
  // Known from HELLO, or ACCEPT, on. The name is HELLO's.
  const AttemptId& peer_attempt() const { return gate_.peer(); }
  const std::string& peer_name() const { return gate_.peer_name(); }
  GateRole role() const { return gate_.role(); }
  // It has ended, whoever knows of it yet.
  bool dead() const { return state_ == EndpointState::kDead; }

  RdmaStats stats() const;
  const SocketAddress& peer() const { return peer_; }
  const SocketAddress& local() const { return local_; }
  Loop& loop() const { return *loop_; }

 private:
  using Call = absl::AnyInvocable<void() &&>;
  // Some or all of a message.
  struct Message {
    BufferChain data;
    uint32_t held = 0;     // pieces whose room has not been given back
    uint64_t fetched = 0;  // bytes that came by this side's reads
  };
  // What the peer is to read by itself, in memory that its device can reach.
  struct OfferedPart {
    Buffer bytes;
    ExposedMemory exposed;
  };
  struct Offered {
    uint32_t number = 0;  // from 1 on
    uint64_t size = 0;
    LaneHub::OfferedMemory counted;  // at the hub
    std::vector<OfferedPart> parts;
  };
  // A read of the peer that is being answered.
  struct ServedRead {
    uint32_t number = 0;
    AccessPrefix access;  // of what is still to be sent
  };
  // Everything that holds a caller's code or bytes, to be destroyed together, last.
  struct Leftovers {
    Fifo<Call> calls;
    WorkList works;
    absl::AnyInvocable<void() &&> probe;
    RdmaEndpoint::DoneCallback watcher;
    RdmaEndpoint::ReceiveCallback receive_done;
    RdmaEndpoint::RegionCallback region_done;
    RdmaEndpoint::DoneCallback close_done;
    Fifo<RdmaEndpoint::DoneCallback> open_waiters;
    Fifo<RegionTable::Revoked> revocations;
    Fifo<Message> ready;
    Message partial;
    std::list<Arrival> behind;
    std::list<Offered> offers;
    LaneWindow sent;
  };

  void Apply(EndpointEvent event) {
    state_ = kEndpointTransitions[static_cast<size_t>(state_)][static_cast<size_t>(event)];
  }
  void Apply(CarrierEvent event) {
    carrier_ = kCarrierTransitions[static_cast<size_t>(carrier_)][static_cast<size_t>(event)];
  }

  // --- endpoint_core.cc: life ---
  void Act(GateAction action);
  // The lanes, and what the gate says to that.
  GateAction BringUp();
  absl::Status PeerProblem() const;
  GateOffer Offer() const;
  void OnOpen();
  void ArmGateTimer();
  void ArmPing();
  void OnPingTime();
  void ArmQueueTimer();
  // Why it ended; the peer is told if it can be.
  void End(absl::Status status);
  // Because the peer does not keep to the protocol, or cannot be kept up with.
  [[gnu::cold]] void EndBy(const absl::Status& problem);
  absl::Status EndOfOperations() const;
  void FailAll();
  void Retire();
  void DropChannel();
  void FinishClose();
  void OnLoopEnd();
  Leftovers TakeLeftovers();
  absl::Status Explain(absl::StatusCode code, std::string_view operation,
                       std::string_view reason) const;

  // --- endpoint_member.cc: what a set of peers asks of it ---
  GateAction AskOwner();
  void TellWatcher();
  void OnProbed(uint64_t token);

  // --- endpoint_turn.cc: callbacks, and posting ---
  void MarkReady();
  // For what comes by the lanes: in this ready step if one runs, unless it is marked for the next.
  void MarkReadySoon();
  void Service();
  bool HasCallbacks() const;
  bool Step();
  [[gnu::noinline]] bool RunCall();
  bool RunFinished();
  bool RunReceive();
  [[gnu::noinline]] bool EndReceive();
  bool RunRegion();
  void Settle();
  void Pump();
  bool HasToPost() const;
  bool HasRoom() const;
  void PostData(MessageHeader header, const std::optional<AccessPrefix>& access,
                BufferChain&& payload);
  bool PostNext();
  bool PostPieceOfMessage(Work& work);
  void EndPiece(Work& work);
  bool PostPieceOfWrite(Work& work);
  void BeginWrite(Work& work);
  void PostWriteByLane(Work& work, const LaneTarget& target);
  void EndWrite(Work& work, WorkList& out);
  bool PostRead(Work& work);
  LaneTarget TargetOf(const Work& work) const;
  bool MayTell() const;
  void TellEnds();
  void Announce();
  void DrainOut();
  MessageHeader Header(MessageType type, uint32_t sequence, bool last);
  void Finish(WorkList work, absl::Status status, RdmaOutcome outcome);
  void Refuse(WorkList work, absl::Status status);
  // OK: the peer takes its message, as far as that is known.
  absl::Status CheckMessage(const Work& work) const;
  // Of what has waited for the gate.
  void RefuseTooLarge();
  void TellRevoked(RegionTable::Revoked revoked);

  // --- endpoint_receive.cc: what the peer sends ---
  void OnControl(const ControlMessage& message, std::string_view bytes) override;
  void OnOpenControl(const ControlMessage& message);
  void OnPong(const ControlPong& pong);
  void OnRevoke(const ControlRevoke& revoke);
  void OnDrain(const ControlDrain& drain);
  void OnPeerClose(const ControlClose& close);
  void OnData(const MessageHeader& header, BufferChain body) override;
  void Take(MessageHeader header, BufferChain&& body, bool by_lane);
  absl::Status TakeHeader(MessageHeader& header, bool by_lane);
  absl::Status TakeData(const MessageHeader& header, BufferChain&& body);
  absl::Status TakePiece(const MessageHeader& header, BufferChain&& body);
  void AddPiece(BufferChain&& data, uint64_t fetched, bool last);
  absl::Status TakeWrite(const MessageHeader& header, BufferChain body);
  absl::Status TakeWritten(uint32_t number);
  absl::Status TakeRead(const MessageHeader& header, const BufferChain& body);
  absl::Status TakeReadData(const MessageHeader& header, BufferChain body);
  void FinishAcknowledged();
  void FinishFirst(WorkList& out);
  void OnChannelRoom() override { Service(); }
  void OnChannelEnd(absl::Status status) override;

  // --- endpoint_offer.cc: what the other side reads by itself ---
  bool OffersAgreed() const;
  // Null when there is none.
  LaneHub* Hub() const;
  bool WantsOffer(const Work& work) const;
  bool OffersFull() const;
  Offered MakeOffer(Work& work);
  bool PostOffer(Work& work);
  void Withdraw(Offered& offer);
  void WithdrawOffers();
  absl::Status TakeFetched(uint32_t number);
  absl::Status TakeOffer(const MessageHeader& header, const BufferChain& body);
  Arrival& Arrive(const MessageHeader& header, uint64_t size);
  void CountArriving(uint64_t size, bool last);
  bool MayFetch(const Work& work) const;
  bool PostFetch();
  void FinishFetch(WorkList one);
  void ReturnReads();
  // Null: no such bytes are offered.
  const OfferedPart* FindOffered(const AccessPrefix& access, uint64_t size) const;
  absl::StatusOr<BufferChain> BytesToRead(const AccessPrefix& access, uint64_t size) const;
  absl::Status CheckRead(const AccessPrefix& access) const;
  bool ServeRead();

  // --- endpoint_lane.cc: the lanes, and from them to the stream ---
  // Lets the window know which messages have not left this side.
  void CountHeld();
  // For the peer's device to reach; none when there is no lane, or the device does not take it.
  ExposedMemory Register(std::span<char> memory, RdmaAccess access);
  // Null, or the device, if the control stream allows it.
  LaneDevice* Device() const;
  // The passive side: when it is this endpoint's turn.
  GateAction AskToBringUp();
  void OnAdmitted();
  // Up to `count` queue pairs, not connected. None, for the reason that is noted: the stream is to
  // do.
  void MakeLanes(size_t count);
  void BringUpLanes();
  void GiveUpLanes(std::string_view why);
  // Without `why` that is the end in order, and no failure.
  void LeaveLanes(std::string_view why, bool reply);
  void SendFallback(ControlFallback fallback);
  void ArmLeavingTimer();
  void OnFallback(const ControlFallback& fallback);
  bool Resend();
  void ResendWrite(LaneWindow::Write write);
  void OnLaneMessage(Buffer message) override;
  void OnLaneStray() override;
  void OnLaneRoom() override { MarkReadySoon(); }
  void OnLaneDone(uint64_t token, RdmaOutcome outcome, BufferChain data) override;
  void OnLaneEnd(absl::Status status) override;

  // --- endpoint_grant.cc: the receives that the peer may use ---
  uint32_t WholeGrant() const { return window_.depth() + LaneWindow::kSpare; }
  void OnGrantEvent(GrantEvent event);
  void LookForQuiet();
  void TakeGrantAgain();
  absl::Status OnGrant(const ControlGrant& grant);

  // --- Layer: it stays on its loop ---
  absl::Status MayLeave() const override;
  void OnLeave() override {}
  absl::Status OnJoin(LoopCore&) override { return absl::OkStatus(); }
  void OnLost() override {}

  Loop* const loop_;
  LoopCore* core_;  // null once the loop is gone
  const RdmaOptions options_;
  const SocketAddress peer_;
  const SocketAddress local_;
  std::unique_ptr<ControlChannel> channel_;  // null when the stream is done with
  Connection* connection_;                   // of the stream, while this is a layer on it
  struct LoopEnd : Deferred {
    LoopEnd(Run run, EndpointCore& of) : Deferred(run), core(of) {}
    EndpointCore& core;
  } loop_end_;

  EndpointState state_ = EndpointState::kOpening;
  bool in_service_ = false;
  bool released_ = false;
  bool may_leave_stream_ = false;  // the device may carry what the control stream would
  bool closing_ = false;           // Close was called
  bool receive_cancelled_ = false;
  bool heard_ = false;          // of the peer, since the last look
  bool lane_heard_ = false;     // by the lanes, more than acknowledgements
  bool written_due_ = false;    // the peer's writes are to be acknowledged
  bool fetched_due_ = false;    // and its offers
  bool fetch_first_ = true;     // by turns with the reads that were asked for
  bool credit_waited_ = false;  // the first in the queue has been counted as waiting
  uint32_t pings_missed_ = 0;
  uint64_t answered_ = 0;  // the last ping that the peer has answered
  ReadyGate gate_;
  Admission::Place place_;  // from HELLO until open; of the passive side with a device
  absl::Status end_;        // not OK: how it ended
  std::optional<CallbackTimer> timer_;
  std::optional<CallbackTimer> queue_timer_;
  std::optional<CallbackTimer> leaving_timer_;  // with kLeaving

  // Ours.
  WorkQueue queue_;
  WorkList sends_out_, writes_out_, reads_out_;
  QuietSends quiet_out_;               // messages that were sent at once
  WorkList lane_writes_, lane_reads_;  // that the device does
  uint32_t messaged_writes_ = 0;       // that are out and that the peer's loop carries out
  WorkList finished_;
  Carrier carrier_ = Carrier::kStream;
  std::unique_ptr<LaneGroup> lanes_;  // with kLane, and before that while opening
  IdleGrant idle_grant_;
  LaneWindow lane_window_;                    // with kLeaving, and until all is sent again, too
  std::optional<LaneWindow::Write> rewrite_;  // what is left of a write that is made again
  CreditWindow window_;
  size_t piece_max_ = kStreamPieceMax;
  uint32_t peer_read_depth_ = 0;
  uint32_t peer_message_max_ = UINT32_MAX;
  uint32_t writes_begun_ = 0;
  uint32_t writes_done_ = 0;
  uint32_t reads_begun_ = 0;
  PeerRegions peer_regions_;
  std::list<Offered> offers_out_;  // not fetched
  uint64_t offered_bytes_ = 0;     // of these
  uint32_t offers_begun_ = 0;
  uint32_t offers_fetched_ = 0;

  // The peer's.
  Message partial_;
  Fifo<Message> ready_;
  std::list<Arrival> behind_;    // the first of which is to be fetched
  WorkList fetches_;             // not posted, for `behind_`
  uint64_t arriving_ = 0;        // bytes of the message that is arriving
  uint64_t fetched_bytes_ = 0;   // or being fetched, of messages that are not delivered
  uint32_t messages_begun_ = 0;  // that have come to their last piece
  uint32_t messages_whole_ = 0;
  uint32_t offers_taken_ = 0;
  uint32_t fetched_ = 0;  // offers
  RegionTable regions_;
  Fifo<ServedRead> serving_;
  std::optional<ServedRead> served_;  // the one being answered
  uint32_t written_ = 0;

  // Callbacks.
  absl::AnyInvocable<void() &&> on_hello_;  // of a set of peers, as the next two
  RdmaEndpoint::DoneCallback watcher_;
  absl::AnyInvocable<void() &&> probe_;
  uint64_t probe_token_ = 0;
  Fifo<Call> calls_;  // all that are neither an operation's nor pending below
  Fifo<RdmaEndpoint::DoneCallback> open_waiters_;
  RdmaEndpoint::ReceiveCallback receive_done_;
  RdmaEndpoint::RegionCallback region_done_;
  RdmaEndpoint::DoneCallback close_done_;
  RdmaStats stats_;
};

Bytes16 RandomBytes();

// InvalidArgument names the first that is none.
absl::Status CheckRdmaOptions(const RdmaOptions& options);

// The status of an operation that failed.
absl::Status WithOutcome(absl::Status status, RdmaOutcome outcome);

// Of a read's token on a lane; the rest is its number. That of a write is its number.
inline constexpr uint64_t kReadToken = uint64_t{1} << 32;

inline std::string_view MessageOf(const absl::Status& status) {
  return {status.message().data(), status.message().size()};
}

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_ENDPOINT_CORE_H_
