// LaneHub: what the lanes of one loop share on one device: the completion queue with its pump, the
// registered slabs of the loop's pool, and a bank of receives, by which every lane's messages come,
// so that a lane that waits pins no memory of its own (I1).
//
// The bank has a fixed number of receives posted, whatever the number of lanes, in memory of its
// own that nothing that is sent can take (I10). Lanes take grants from it and tell them to their
// peers as credits; the grants never exceed the receives that are posted. A message is copied out
// of its receive, which is posted again when whoever the message woke has acted on it, or at once
// where that would be a receive less than is granted.
//
// Receives and sends have a completion queue each, so that what a peer's device acknowledges wakes
// nobody while no one waits for an end of anything that is out. Neither can overflow, however many
// lanes there are: each work request that is posted has a slot, there are no more slots and
// receives than the queues have places, and a lane that finds no slot waits for its turn. A slot
// also keeps what the device reads from or writes to.
//
// A lane that goes leaves its queue pair here, until everything that was posted to it has ended and
// everything that came by it has been taken. Nothing says when that is, so a marker is sent by it
// in the error state, which ends at once, after everything that came before it. Numbers of queue
// pairs are used again, and completions of a queue pair that was destroyed may still wait in the
// queue. So a number is not taken again before the queue has been seen empty.
//
// It takes the events of the device, so it has an open device of its own.
//
// Owned by its creator, on the loop's thread; outlives its lanes. Device and loop outlive it.
#ifndef PENSTOCK_RDMA_LANE_HUB_H_
#define PENSTOCK_RDMA_LANE_HUB_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/rdma.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "base/fifo.h"
#include "base/timer_wheel.h"
#include "engine/deferred.h"
#include "engine/loop_core.h"
#include "rdma/completion_pump.h"
#include "rdma/control_message.h"
#include "rdma/exposed_memory.h"
#include "rdma/fabric.h"
#include "rdma/slab_registry.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Lane;
struct LaneWork;

// One work request that is posted.
struct LaneSlot {
  uint32_t qp_number = 0;  // 0: free
  FabricOp op = FabricOp::kSend;
  bool last = false;         // of `work`
  LaneWork* work = nullptr;  // the lane's, if anybody is to be told
  BufferChain held;          // what the device reads from, or writes to
};

class LaneHub final : private CompletionSink {
 public:
  static constexpr uint32_t kNoSlot = UINT32_MAX;

  struct Options {
    uint8_t port = 1;
    uint8_t gid_index = 0;
    uint32_t receives = 1024;           // in the bank
    uint32_t receive_size = 8192;       // bytes: the longest message
    uint32_t completion_depth = 16384;  // more than `receives`
    uint32_t read_depth = 16;           // at most 255; less when the device serves fewer
    absl::Duration spin_max = absl::ZeroDuration();
  };

  // Errors: what the device says.
  static absl::StatusOr<std::unique_ptr<LaneHub>> Create(LoopCore& loop, FabricDevice& device,
                                                         const Options& options);
  ~LaneHub() override;

  const Options& options() const { return options_; }
  // What the peers of its lanes are told, but for the queue pair's numbers.
  const LaneAddress& address() const { return address_; }
  // Receives that may still be granted.
  uint32_t available() const { return options_.receives - granted_; }
  uint32_t posted() const { return posted_; }
  size_t lanes() const { return lanes_.size(); }
  // Of lanes, and of lanes that have gone whose work has not ended.
  size_t queue_pairs() const { return lanes_.size() + graves_.size(); }
  // READs that a peer may have outstanding on a lane.
  uint32_t read_depth() const { return read_depth_; }
  // Lets peers reach memory by a key. The hub outlives what it returns.
  absl::StatusOr<ExposedMemory> Expose(std::span<char> memory, RdmaAccess access) {
    return ExposedMemory::Create(device_, memory, access);
  }
  // Memory of the pool that the device has not let go of, though it was asked to: stays with it.
  void Keep(ExposedMemory memory, Buffer bytes) {
    kept_.push_back({std::move(bytes), std::move(memory)});
  }
  size_t kept() const { return kept_.size(); }
  // What the endpoints of the loop have offered at once, all together: registrations and pinned
  // pages that slabs need as well, where a refusal is for good.
  static constexpr uint64_t kOfferedBlocksMax = 1024;
  static constexpr uint64_t kOfferedBytesMax = 64 * 1024 * 1024;
  // False: messages go in pieces. Also once the device has refused a slab, or kept an offer.
  bool MayOffer() const {
    return kept_.empty() && offered_.blocks < kOfferedBlocksMax &&
           offered_.bytes < kOfferedBytesMax && registry_.refusal().ok();
  }
  struct OfferedMemory {
    uint64_t blocks = 0;
    uint64_t bytes = 0;
  };
  const OfferedMemory& offered() const { return offered_; }
  void OnOffered(const OfferedMemory& more) {
    offered_.blocks += more.blocks;
    offered_.bytes += more.bytes;
  }
  void OnWithdrawn(const OfferedMemory& less) {
    offered_.blocks -= less.blocks;
    offered_.bytes -= less.bytes;
  }
  CompletionPump& pump() { return *pump_; }
  // Not OK: why there are no new lanes.
  const absl::Status& lost() const { return lost_; }

  // --- For lanes ---
  // Takes `count` receives of the bank for one peer: false when not so many are left.
  bool Grant(uint32_t count);
  void GiveBack(uint32_t count) { granted_ -= count; }
  // A queue pair whose number no completion in the queue can have, with receives from the bank;
  // `lane` gets what comes by it until Leave.
  absl::StatusOr<std::unique_ptr<FabricQp>> NewQp(Lane& lane, uint32_t send_depth);
  // How far a queue pair has come with its end.
  enum class End : uint8_t {
    kWorks,     // it sends what it has
    kFailed,    // in the error state; its marker is not posted
    kFlushing,  // what is posted ends, the marker last
    kDrained,   // nothing of it is in the completion queue any more
  };
  // Destroys it, when nothing of it can be in the completion queue any more: destroyed earlier,
  // some devices take back what has come by the bank, which would be that much smaller from then
  // on. `out`: work requests that have not ended.
  void Leave(std::unique_ptr<FabricQp> qp, uint32_t out, End end);
  // kNoSlot: there is none, and the lane's OnSlots will be called when there is.
  uint32_t TakeSlot(uint32_t qp_number);
  void FreeSlot(uint32_t number);
  // Of work that could not be posted.
  void ReturnSlot(uint32_t number);
  enum class Marked : uint8_t { kPosted, kLater, kNever };
  // Of a queue pair in the error state. kLater: as TakeSlot has it, or by the hub itself when the
  // lane has left.
  Marked PostMarker(FabricQp& qp);
  // Until the next one is taken.
  LaneSlot& slot(uint32_t number) { return slots_[number]; }
  // Somebody waits for the end of work that is posted, or will be: every end is told at once until
  // nothing is out. Otherwise nobody is woken for one, and it is told with what comes, or some
  // milliseconds later.
  void AwaitSends() { pump_->AwaitSends(); }
  uint64_t SendTag(uint32_t slot) const { return CompletionPump::Tag(send_sink_.number, slot); }
  // An empty buffer of registered memory; none when the pool has no room.
  Buffer NewBuffer(size_t size);
  // The key of registered memory; false when it is not.
  bool FindKey(const void* data, size_t size, uint32_t* key) const;
  LoopCore& loop() { return loop_; }
  // A list of one, from those that were returned if there are any: what is steadily sent allocates
  // nothing, and a lane that is idle keeps none.
  std::list<LaneWork> TakeWork();
  void ReturnWork(std::list<LaneWork> one);

 private:
  static constexpr size_t kSpareWorksMax = 256;

  // Gets the completions of sends; the hub itself those of receives.
  struct SendSink final : CompletionSink {
    explicit SendSink(LaneHub& owner) : hub(owner) {}
    void OnCompletion(uint32_t word, const FabricCompletion& completion) override {
      hub.OnSendDone(word, completion);
    }
    LaneHub& hub;
    uint32_t number = 0;
  };
  struct PostLater : Deferred {
    explicit PostLater(LaneHub& owner);
    LaneHub& hub;
  };
  struct Member {
    Lane* lane = nullptr;
    uint64_t owner = 0;  // FabricQpOptions::owner
  };
  struct Grave {
    std::unique_ptr<FabricQp> qp;
    uint32_t out = 0;
    int64_t since_ns = 0;
    End end = End::kWorks;  // kFailed: the marker waits for a slot
  };
  struct Kept {
    Buffer bytes;
    ExposedMemory memory;  // goes first
  };
  // Of a queue pair that is destroyed.
  struct Rest {
    uint64_t empties = 0;  // PumpStats::empties by then
    bool slots = false;    // some of its slots have not been given back
  };

  LaneHub(LoopCore& loop, FabricDevice& device, const Options& options);
  absl::Status Start();
  absl::Status FindAddress();
  absl::Status FillBank();
  void OnCompletion(uint32_t word, const FabricCompletion& completion) override;
  void OnSendDone(uint32_t word, const FabricCompletion& completion);
  void OnEvent(const FabricEvent& event);
  char* Receive(uint32_t slot) const { return bank_.get() + size_t{slot} * options_.receive_size; }
  bool PostReceive(uint32_t slot);
  // Those that are free. False: the device takes no more, and the lanes have been told.
  bool PostFreed();
  // A copy of what a receive has brought, from the heap when the pool has no room.
  Buffer CopyOf(std::string_view bytes) const;
  // Null when it has gone.
  Lane* FindLane(uint32_t qp_number);
  void Feed();
  void Drain(Grave grave);
  void Mark(Grave& grave);
  void Destroy(Grave grave);
  void ArmRest();
  void ArmGraves();
  void DestroyOld();
  bool HasSlot() const { return !spare_slots_.empty() || slots_.size() < slots_max(); }
  [[gnu::noinline]] void AddSlot();
  size_t slots_out() const { return slots_.size() - spare_slots_.size(); }
  // Sees to it that the end of what is posted is looked for, whoever waits for it.
  void LookLater();
  uint32_t slots_max() const { return options_.completion_depth - options_.receives; }
  void FreeRested();
  void FreeSlotsOf(uint32_t qp_number);
  void OnLost(absl::Status status);
  // The device is of no use any more, to no lane.
  void Lose(std::string_view operation, std::string_view reason);
  // Runs for every lane that is there still; a lane's owner may destroy lanes, this one or others.
  void ForEachLane(absl::FunctionRef<void(Lane&)> run);
  // Whether the queue has been polled empty since then; the poll that was under way does not count.
  bool Rested(uint64_t empties) const { return pump_->stats().empties > empties + 1; }

  LoopCore& loop_;
  FabricDevice& device_;
  const Options options_;
  LaneAddress address_;
  SlabRegistry registry_;
  std::unique_ptr<CompletionPump> pump_;
  std::unique_ptr<DeviceWatch> watch_;
  uint32_t sink_ = 0;
  SendSink send_sink_{*this};
  std::unique_ptr<FabricSrq> srq_;
  std::unique_ptr<char[]> bank_;  // the receives, one after the other
  FabricMemory bank_memory_;
  std::vector<Kept> kept_;  // until there are no queue pairs
  OfferedMemory offered_;
  absl::Status lost_;
  std::vector<uint32_t> freed_;  // receives that are not posted
  PostLater post_later_{*this};
  uint32_t posted_ = 0;
  uint32_t granted_ = 0;
  uint32_t read_depth_ = 0;
  std::vector<LaneSlot> slots_;  // as many as have been out at once
  std::vector<uint32_t> spare_slots_;
  std::list<LaneWork> spare_works_;
  Fifo<uint32_t> starving_;  // queue pairs whose lanes wait for a slot
  bool feeding_ = false;
  uint64_t sends_done_ = 0;
  uint64_t next_owner_ = 1;
  absl::flat_hash_map<uint32_t, Member> lanes_;  // by queue pair number
  uint32_t found_number_ = 0;                    // of the lane that was looked for last,
  Lane* found_ = nullptr;                        // which is there
  absl::flat_hash_map<uint32_t, Grave> graves_;
  absl::flat_hash_map<uint32_t, Rest> resting_;
  CallbackTimer grave_timer_;
  CallbackTimer rest_timer_;
  CallbackTimer look_timer_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_LANE_HUB_H_
