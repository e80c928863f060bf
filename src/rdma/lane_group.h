// LaneGroup: the lanes of one endpoint, 1 to 8, as one carrier of messages and of one-sided
// operations.
//
// Messages go by the first lane, in order. Reads and writes are cut where the peer's addresses are
// multiples of 64 KiB, and each slice has its lane by that address: so whatever is done to one
// place is done by one lane, in the order it was started, and nothing else needs to wait. A message
// waits here until the writes that were started before it, and that other lanes have a part in, are
// done. That the peer's program sees them then is the devices' doing: between queue pairs the
// InfiniBand specification may promise no more than that the peer's device has acknowledged them.
//
// An operation ends when the last of its slices has, once, in the order it was started among those
// of its kind; after one that has failed none counts as done. When one lane fails, all are retired:
// the owner hears of it when every one of them is drained, with what the first has said.
//
// What has ended and is kept from being told holds memory: while the oldest read or write lags
// behind, no more than some MiB for each lane are started after it (I9).
//
// Owned by its endpoint, on the loop's thread; the hub outlives it. The owner may destroy it in any
// of its calls, and is never called inside a call of its own (I3).
#ifndef PENSTOCK_RDMA_LANE_GROUP_H_
#define PENSTOCK_RDMA_LANE_GROUP_H_

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
#include "absl/container/inlined_vector.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/fifo.h"
#include "rdma/control_message.h"
#include "rdma/lane.h"
#include "rdma/lane_hub.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class LaneGroup final {
 public:
  // Of whole operations, and of all lanes. Where OnLaneDone has made HasRoom true, that is all that
  // is told.
  class Owner : public Lane::Owner {
   public:
    // A message by another lane than the first: the peer does not keep to the protocol.
    virtual void OnLaneStray() = 0;

   protected:
    ~Owner() = default;
  };

  // `count` lanes in INIT, or as many as the device makes, one at least. `grant`: receives that the
  // peer may use, all of the first lane. `psn` gives each lane a random one. Errors: as
  // Lane::Create, of the first.
  static absl::StatusOr<std::unique_ptr<LaneGroup>> Create(LaneHub& hub, Owner& owner, size_t count,
                                                           uint32_t grant,
                                                           absl::FunctionRef<uint32_t()> psn);
  ~LaneGroup() {
    if (gone_ != nullptr) *gone_ = true;
  }
  LaneGroup(const LaneGroup&) = delete;
  LaneGroup& operator=(const LaneGroup&) = delete;

  size_t size() const { return lanes_.size(); }
  // What the peer must know to bring its lanes up, in order.
  std::vector<LaneAddress> addresses() const;
  // Connects each lane to the peer's in the same place, and gives those up that have none. All of
  // them can receive and send when this returns OK; otherwise none is to be used.
  absl::Status BringUp(std::span<const LaneAddress> peers, uint32_t peer_read_depth);

  // As Lane has them, each once BringUp has returned OK, and not after OnLaneEnd; reads and writes
  // of one byte at least. Beyond the order that is told above: what is started after a message may
  // be done before it arrives.
  void Send(std::string_view head, BufferChain payload);
  bool SendAtOnce(std::string_view head, const BufferChain& payload) {
    return held_.empty() && MaySend(barrier_) && lanes_.front()->lane->SendAtOnce(head, payload);
  }
  void Write(uint64_t token, const LaneTarget& target, BufferChain data);
  // `into`: from NewMemory for the same place.
  void Read(uint64_t token, const LaneTarget& target, uint64_t size, BufferChain into = {});
  BufferChain NewMemory(const LaneTarget& target, uint64_t size);
  void Stop();
  bool HasRoom() const;
  // The last so many messages have not gone out yet: the peer cannot have any of them.
  size_t held() const { return held_.size() + lanes_.front()->lane->unsent(); }
  // As Lane has it.
  bool SetGrant(uint32_t grant) { return lanes_.front()->lane->SetGrant(grant); }

 private:
  // Hears of one lane for the group.
  struct Member final : Lane::Owner {
    explicit Member(LaneGroup& of) : group(of) {}
    void OnLaneMessage(Buffer message) override;
    void OnLaneRoom() override;
    void OnLaneDone(uint64_t token, RdmaOutcome outcome, BufferChain data) override;
    void OnLaneEnd(absl::Status status) override { group.OnEnd(std::move(status)); }
    LaneGroup& group;
    std::unique_ptr<Lane> lane;
  };
  // An operation of which not all slices have ended, or that another one keeps from being told.
  struct Striped {
    uint64_t token = 0;
    uint64_t size = 0;
    uint32_t slices = 0;
    uint32_t ended = 0;                           // of these
    RdmaOutcome outcome = RdmaOutcome::kInDoubt;  // of these; kInDoubt when they differ
    absl::InlinedVector<BufferChain, 1> read;     // by slice
  };
  // Operations of one kind, by their numbers from `first` on, the oldest that has not been told.
  struct Line {
    absl::flat_hash_map<uint32_t, Striped> works;
    uint64_t first = 0;
    uint64_t next = 0;
    uint64_t bytes = 0;   // of all works
    bool broken = false;  // one has failed
  };
  struct Held {
    absl::InlinedVector<char, 48> head;
    BufferChain payload;
    uint64_t after = 0;  // writes with smaller numbers come first
  };
  struct HeldRead {
    uint64_t token = 0;
    LaneTarget target;
    uint64_t size = 0;
    BufferChain into;
  };

  explicit LaneGroup(Owner& owner) : owner_(owner) {}
  bool single() const { return lanes_.size() == 1; }
  Lane& LaneAt(uint64_t address) const;
  bool MaySend(uint64_t after) const { return after <= writes_.first && !writes_.broken; }
  void SendHeld();
  bool MayRead() const;
  void StartRead(HeldRead read);
  void OnSliceDone(uint64_t token, RdmaOutcome outcome, BufferChain data);
  bool TellDone(Line& line);
  void OnEnd(absl::Status status);
  void TellEnd();

  Owner& owner_;
  std::vector<std::unique_ptr<Member>> lanes_;  // lanes keep the address of theirs
  size_t ended_ = 0;
  Line writes_;
  Line reads_;
  uint64_t barrier_ = 0;  // of writes that other lanes than the first have a part in
  std::list<Held> held_;
  Fifo<HeldRead> held_reads_;
  absl::Status end_;  // what the first that failed has said
  bool* gone_ = nullptr;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_LANE_GROUP_H_
