// Lane: one queue pair of an endpoint, as a carrier of messages: bytes go in at one side and come
// out whole, once and in order at the other, until it fails.
//
// It neither knows what the messages are nor when they may be sent: that is the gate's to judge
// (I6). Receives come from the hub's bank; how many the peer may use is this lane's grant, which
// its owner tells the peer as credits. Payload that lies in registered slabs is sent from where it
// is; other bytes are copied into a buffer of the pool first.
//
// Owned by its endpoint, on the loop's thread; the hub outlives it. The owner may destroy it in any
// of its calls. What was sent and has not been acknowledged by then is in doubt.
#ifndef PENSTOCK_RDMA_LANE_H_
#define PENSTOCK_RDMA_LANE_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/timer_wheel.h"
#include "rdma/completion_pump.h"
#include "rdma/control_message.h"
#include "rdma/fabric.h"
#include "rdma/lane_hub.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Lane final : private CompletionSink {
 public:
  class Owner {
   public:
    virtual void OnLaneMessage(BufferChain message) = 0;
    // HasRoom has become true.
    virtual void OnLaneRoom() = 0;
    // It has failed, and nothing more comes. Unavailable, with what the device said.
    virtual void OnLaneEnd(absl::Status status) = 0;

   protected:
    ~Owner() = default;
  };

  // A queue pair in INIT. `psn`: random, of 24 bits. `grant`: receives that the peer may use.
  // ResourceExhausted when the bank has not so many left.
  static absl::StatusOr<std::unique_ptr<Lane>> Create(LaneHub& hub, Owner& owner, uint32_t psn,
                                                      uint32_t grant);
  ~Lane() override;

  // What the peer must know to bring its lane up.
  const LaneAddress& address() const { return address_; }
  uint32_t grant() const { return grant_; }
  // Brings it to RTR and RTS: it can receive and send when this returns OK.
  absl::Status BringUp(const LaneAddress& peer);

  // Sends `head` and `payload` as one message, at most the peer's receive_size together. After
  // BringUp only. Nothing is lost when the device's queue or the pool is full: it waits here.
  void Send(std::string_view head, BufferChain payload);
  // False: Send no more until OnLaneRoom.
  bool HasRoom() const { return waiting_.empty() && !failed_; }
  // Messages that are posted and not acknowledged.
  uint32_t out() const { return out_; }

  // --- For the hub ---
  void OnReceived(Buffer buffer);
  void OnReceiveFailed(FabricOutcome outcome);
  void OnQueueLost(const absl::Status& status);

 private:
  static constexpr uint32_t kSendDepth = 128;
  static constexpr size_t kPartsMax = 4;  // as FabricQpOptions has it
  static constexpr size_t kInlinedMax = 64;

  struct Message {
    std::string head;
    BufferChain payload;
  };

  Lane(LaneHub& hub, Owner& owner) : hub_(hub), owner_(owner), retry_(hub.loop().timers()) {}
  void OnCompletion(uint32_t word, const FabricCompletion& completion) override;
  // False: no room for it now, or failed.
  bool Post(Message& message);
  // The message as parts of registered memory, kept in `held`; 0: no room.
  size_t Gather(Message& message, std::array<FabricPart, kPartsMax>& parts, BufferChain& held);
  int PostParts(std::span<const FabricPart> parts, bool inlined);
  void PostWaiting();
  void Fail(absl::Status status);
  void FailLater(absl::Status status);
  absl::Status Broken(std::string_view operation, std::string_view reason) const;

  LaneHub& hub_;
  Owner& owner_;
  LaneAddress address_;
  uint32_t grant_ = 0;
  uint32_t sink_ = 0;
  std::unique_ptr<FabricQp> qp_;
  std::vector<BufferChain> held_;     // by slot: what the device reads from
  std::vector<uint32_t> free_slots_;  // of held_
  uint32_t out_ = 0;
  std::list<Message> waiting_;
  bool failed_ = false;
  CallbackTimer retry_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_LANE_H_
