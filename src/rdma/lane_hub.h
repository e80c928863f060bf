// LaneHub: what the lanes of one loop share on one device: the completion queue with its pump, the
// registered slabs of the loop's pool, and a bank of receives, from which every lane's messages
// come, so that a lane that waits pins no memory of its own (I1, I10).
//
// The bank has a fixed number of receives posted, whatever the number of lanes. Lanes take grants
// from it and tell them to their peers as credits; the grants never exceed the receives. A receive
// that has brought a message is replaced at once by a fresh buffer of the pool, or, when the pool
// refuses, a little later.
//
// Numbers of queue pairs are used again, and completions of a queue pair that was destroyed may
// still wait in the queue. So a number is not taken again before the queue has been seen empty.
//
// Owned by its creator, on the loop's thread; outlives its lanes. Device and loop outlive it.
#ifndef PENSTOCK_RDMA_LANE_HUB_H_
#define PENSTOCK_RDMA_LANE_HUB_H_

#include <penstock/buffer.h>
#include <penstock/export.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/timer_wheel.h"
#include "engine/loop_core.h"
#include "rdma/completion_pump.h"
#include "rdma/control_message.h"
#include "rdma/fabric.h"
#include "rdma/slab_registry.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class Lane;

class LaneHub final : private CompletionSink {
 public:
  struct Options {
    uint8_t port = 1;
    uint8_t gid_index = 0;
    uint32_t receives = 1024;      // in the bank
    uint32_t receive_size = 8192;  // bytes: the longest message
    uint32_t completion_depth = 16384;
    absl::Duration spin_max = absl::ZeroDuration();
  };

  // Errors: what the device says; ResourceExhausted when the pool has no room for the bank.
  static absl::StatusOr<std::unique_ptr<LaneHub>> Create(LoopCore& loop, FabricDevice& device,
                                                         const Options& options);
  ~LaneHub() override;

  const Options& options() const { return options_; }
  // What the peers of its lanes are told, but for the queue pair's numbers.
  const LaneAddress& address() const { return address_; }
  // Receives that may still be granted.
  uint32_t available() const { return options_.receives - granted_; }
  uint32_t posted() const { return posted_; }
  CompletionPump& pump() { return *pump_; }

  // --- For lanes ---
  // Takes `count` receives of the bank for one peer: false when not so many are left.
  bool Grant(uint32_t count);
  void GiveBack(uint32_t count) { granted_ -= count; }
  // A queue pair whose number no completion in the queue can have, with receives from the bank;
  // `lane` gets what comes by it until Leave.
  absl::StatusOr<std::unique_ptr<FabricQp>> NewQp(Lane& lane, uint32_t send_depth);
  // Destroys it.
  void Leave(std::unique_ptr<FabricQp> qp);
  // A buffer with a copy of what the parts are, registered; empty when the pool has no room.
  Buffer NewBuffer(size_t size);
  // The key of registered memory; false when it is not.
  bool FindKey(const void* data, size_t size, uint32_t* key) const;
  LoopCore& loop() { return loop_; }

 private:
  LaneHub(LoopCore& loop, FabricDevice& device, const Options& options);
  absl::Status Start();
  void OnCompletion(uint32_t word, const FabricCompletion& completion) override;
  bool PostReceive(uint32_t slot);
  void FillUp();
  void OnLost(absl::Status status);
  // Whether the queue has been polled empty since then; the poll that was under way does not count.
  bool Rested(uint64_t empties) const { return pump_->stats().empties > empties + 1; }

  LoopCore& loop_;
  FabricDevice& device_;
  const Options options_;
  LaneAddress address_;
  SlabRegistry registry_;
  std::unique_ptr<CompletionPump> pump_;
  uint32_t sink_ = 0;
  std::unique_ptr<FabricSrq> srq_;
  std::vector<Buffer> receives_;      // by slot, posted
  std::vector<uint32_t> free_slots_;  // not posted
  uint32_t posted_ = 0;
  uint32_t granted_ = 0;
  CallbackTimer retry_;
  absl::flat_hash_map<uint32_t, Lane*> lanes_;       // by queue pair number
  absl::flat_hash_map<uint32_t, uint64_t> resting_;  // numbers, and PumpStats::empties by then
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_LANE_HUB_H_
