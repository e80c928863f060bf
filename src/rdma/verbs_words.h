// What fabric.h and libibverbs call the same things by: translations without state, and the small
// arrays that a posted request points to while it is posted. Any thread.
#ifndef PENSTOCK_RDMA_VERBS_WORDS_H_
#define PENSTOCK_RDMA_VERBS_WORDS_H_

#include <infiniband/verbs.h>
#include <penstock/export.h>

#include <array>
#include <cstdint>
#include <span>

#include "rdma/fabric.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// The positive errno of what a call of libibverbs returned; 0 when all went well.
int VerbsError(int result);

int VerbsAccess(uint8_t access);
// 0 for what it does not know.
uint32_t VerbsMtuBytes(ibv_mtu mtu);
// False for what is no MTU.
bool VerbsMtu(uint32_t bytes, ibv_mtu* mtu);
ibv_wr_opcode VerbsOpcode(FabricOp op);
FabricOp VerbsOp(ibv_wc_opcode opcode, unsigned flags);
FabricOutcome VerbsOutcome(ibv_wc_status status);
FabricEventKind VerbsEventKind(ibv_event_type type);
// Between a number and what the wire carries, either way.
uint32_t VerbsImmediate(uint32_t immediate);

class VerbsParts {
 public:
  // False when there are more than a request may have.
  bool Fill(std::span<const FabricPart> parts);
  ibv_sge* list() { return list_.data(); }
  int count() const { return count_; }

 private:
  static constexpr size_t kMax = 16;
  std::array<ibv_sge, kMax> list_;
  int count_ = 0;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_VERBS_WORDS_H_
