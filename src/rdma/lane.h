// Lane: one queue pair of an endpoint, as a carrier of messages and of one-sided operations: bytes
// go in at one side and come out whole, once and in order at the other, or in the memory that the
// peer has exposed, until it fails.
//
// It neither knows what the messages are nor when they may be sent: that is the gate's to judge
// (I6). Receives come from the hub's bank; how many the peer may use is this lane's grant, which
// its owner tells the peer as credits. Payload that lies in registered slabs is sent from where it
// is; other bytes are copied into a buffer of the pool first. What is read lands in buffers of the
// pool.
//
// When it fails, the queue pair is moved to the error state and drained before the owner hears of
// it: messages that had come by then are delivered, what the peer had acknowledged counts as done,
// and the device reads and writes no more of what is held. A lane that is destroyed earlier leaves
// that to its hub.
//
// Owned by its endpoint, on the loop's thread; the hub outlives it. The owner may destroy it in any
// of its calls, and is never called inside a call of its own (I3).
#ifndef PENSTOCK_RDMA_LANE_H_
#define PENSTOCK_RDMA_LANE_H_

#include <penstock/buffer.h>
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

#include "absl/container/inlined_vector.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/timer_wheel.h"
#include "rdma/control_message.h"
#include "rdma/fabric.h"
#include "rdma/lane_hub.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// A place in memory that the peer has exposed: address and key of its REGION message, the offset
// added to the address.
struct LaneTarget {
  uint64_t address = 0;
  uint32_t key = 0;
};

// One thing that was started on a lane.
struct LaneWork {
  FabricOp op = FabricOp::kSend;
  std::optional<uint64_t> token;  // none: nobody is told of its end
  bool begun = false;             // the peer may have seen some of it
  absl::InlinedVector<char, 48> head;
  BufferChain data;  // still to be sent, or what has been read
  LaneTarget target;
  uint64_t left = 0;  // bytes that are not posted
  BufferChain into;   // memory for what is read of these, as far as it has been found
};

class Lane final {
 public:
  // The most that one work request reads or writes, in bytes.
  static constexpr size_t kSliceMax = 64 * 1024;

  class Owner {
   public:
    // All of it, in one piece.
    virtual void OnLaneMessage(Buffer message) = 0;
    // HasRoom has become true.
    virtual void OnLaneRoom() = 0;
    // What was started with `token` has ended. kDone: the peer's device has all of it, in a receive
    // or in place; of a read, `data` is what was there. kInDoubt: some of it may have arrived.
    // What is done is told in the order it was posted.
    virtual void OnLaneDone(uint64_t token, RdmaOutcome outcome, BufferChain data) = 0;
    // It has failed, and nothing more comes: everything that had a token has been told of.
    // Unavailable, with what the device said.
    virtual void OnLaneEnd(absl::Status status) = 0;

   protected:
    ~Owner() = default;
  };

  // A queue pair in INIT. `psn`: random, of 24 bits. `grant`: receives that the peer may use.
  // ResourceExhausted when the bank has not so many left.
  static absl::StatusOr<std::unique_ptr<Lane>> Create(LaneHub& hub, Owner& owner, uint32_t psn,
                                                      uint32_t grant);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // What the peer must know to bring its lane up.
  const LaneAddress& address() const { return address_; }
  uint32_t grant() const { return grant_; }
  // Gives receives back to the bank, or takes more: false when it has not so many left.
  bool SetGrant(uint32_t grant);
  // Brings it to RTR and RTS: it can receive and send when this returns OK. `peer_read_depth`: what
  // the peer has announced as ReceiveTerms::read_depth; with 0 nothing may be read.
  absl::Status BringUp(const LaneAddress& peer, uint32_t peer_read_depth = 0);

  // The three that start something, after BringUp only and not after OnLaneEnd. What finds the
  // device's queue or the pool full waits here. Messages and writes happen at the peer in the order
  // they were started; a read sees the writes that were started before it, and may be overtaken by
  // what was started later.
  //
  // Sends `head` and `payload` as one message, at most the peer's receive_size together. Heads of
  // up to 48 bytes are kept without an allocation.
  void Send(std::string_view head, BufferChain payload,
            std::optional<uint64_t> token = std::nullopt);
  // The same for a small message, of which nobody is to be told, with nothing before it: the device
  // takes its bytes during the call. False: it has not, and nothing has been started.
  bool SendAtOnce(std::string_view head, const BufferChain& payload);
  // One-sided: the peer's program is not told. That the peer has exposed this memory for it, all of
  // it and still, is the caller's to check: the peer's device refuses otherwise, which ends the
  // lanes of both sides.
  void Write(uint64_t token, const LaneTarget& target, BufferChain data);
  // `into`: from NewMemory(size). Without it memory is found when it is this read's turn.
  void Read(uint64_t token, const LaneTarget& target, uint64_t size, BufferChain into = {});
  // Memory for a read of `size` bytes; empty when the pool has no room for all of it.
  BufferChain NewMemory(uint64_t size);

  // Nothing more goes out by it or comes in, from here on; nothing is told of what has not ended.
  // For an owner that does the same work another way: what the device still did of it would come
  // late.
  void Stop();

  // False: Send and Write no more until OnLaneRoom. Reads that wait for the peer's read depth are
  // not counted: how many there are is the caller's to bound.
  bool HasRoom() const { return waiting_.empty() && !failed_; }
  // Messages that wait here: the peer cannot have any of them.
  uint32_t unsent() const { return unsent_; }
  // Work requests that are posted and not acknowledged.
  uint32_t out() const { return out_; }

  // --- For the hub ---
  void OnReceived(Buffer buffer);
  // A work request has ended; `slot` is free again.
  void OnDone(LaneSlot slot, const FabricCompletion& completion);
  // There are slots again.
  void OnSlots();
  // For its group, too, when another lane has failed.
  void OnFailed(std::string_view operation, std::string_view reason);
  // No completion will come any more.
  void OnQueueLost(const absl::Status& status);

 private:
  static constexpr uint32_t kSendDepth = 128;
  static constexpr size_t kPartsMax = 4;  // as FabricQpOptions has it
  static constexpr size_t kInlinedMax = 128;

  enum class Step : uint8_t {
    kPosted,
    kFull,  // completions will make room
    kDry,   // the pool has no room
    kFailed,
  };
  // What one work request is made of.
  struct Parts {
    std::array<FabricPart, kPartsMax> parts;
    size_t count = 0;
    bool in_place = false;  // the work's data, where it lies
    Buffer copied;
    std::array<char, kInlinedMax> bytes;
  };

  Lane(LaneHub& hub, Owner& owner) : hub_(hub), owner_(owner), retry_(hub.loop().timers()) {}
  void Start(LaneWork work);
  void PostWaiting();
  Step PostFirst();
  Step PostReads();
  void MoveOn(std::list<LaneWork>& from);
  Step PostMessage(LaneWork& work);
  Step PostWrite(LaneWork& work);
  Step PostRead(LaneWork& work);
  Step Post(LaneWork& work, FabricSend& send, uint64_t size, LaneSlot** slot);
  Step Post(FabricSend& send, LaneSlot** slot);
  static void Inline(std::string_view head, const BufferChain& data, FabricSend& send, Parts& out);
  uint64_t FindParts(const BufferChain& data, uint64_t max, size_t room, FabricPart* parts,
                     size_t* count) const;
  bool GatherMessage(LaneWork& work, Parts& out);
  uint64_t GatherSlice(const BufferChain& data, Parts& out);
  bool Succeed(LaneSlot& slot);
  void GoOn();
  void Break(absl::Status status);
  void Fail(absl::Status status);
  void Mark();
  void EndLater();
  void End();
  absl::Status Broken(std::string_view operation, std::string_view reason) const;

  LaneHub& hub_;
  Owner& owner_;
  LaneAddress address_;
  uint32_t grant_ = 0;
  uint32_t out_ = 0;
  uint32_t unsent_ = 0;
  // Of the send queue, once it can receive; one of them is kept for the last of all.
  uint32_t depth_ = 0;
  size_t inlined_max_ = 0;
  uint32_t reads_out_ = 0;
  uint32_t read_depth_ = 0;
  int64_t dry_since_ns_ = 0;  // the pool has had no room; 0: it had the last time
  bool reads_dry_ = false;    // for reads alone
  bool starving_ = false;     // the hub will call OnSlots
  bool failed_ = false;
  bool ended_ = false;
  LaneHub::End drain_ = LaneHub::End::kWorks;  // of the queue pair
  std::unique_ptr<FabricQp> qp_;
  std::list<LaneWork> waiting_;
  std::list<LaneWork> reads_waiting_;  // what was started before them is posted
  std::list<LaneWork> posted_;         // all of it, in that order; those with a token
  absl::Status end_;
  CallbackTimer retry_;  // then of the end
  bool* gone_ = nullptr;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_LANE_H_
