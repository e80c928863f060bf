#include "rdma/verbs_words.h"

#include <arpa/inet.h>

#include <cerrno>

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// They return errno, or set it, or return it negated, as the provider likes.
int VerbsError(int result) {
  if (result == 0) return 0;
  if (result == -1) return errno != 0 ? errno : EIO;
  return result < 0 ? -result : result;
}

int VerbsAccess(uint8_t access) {
  int flags = 0;
  if (access & kFabricLocalWrite) flags |= IBV_ACCESS_LOCAL_WRITE;
  if (access & kFabricRemoteWrite) flags |= IBV_ACCESS_REMOTE_WRITE;
  if (access & kFabricRemoteRead) flags |= IBV_ACCESS_REMOTE_READ;
  return flags;
}

uint32_t VerbsMtuBytes(ibv_mtu mtu) {
  return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128u << mtu : 0;
}

bool VerbsMtu(uint32_t bytes, ibv_mtu* mtu) {
  for (const ibv_mtu each : {IBV_MTU_256, IBV_MTU_512, IBV_MTU_1024, IBV_MTU_2048, IBV_MTU_4096}) {
    *mtu = each;
    if (VerbsMtuBytes(each) == bytes) return true;
  }
  return false;
}

ibv_wr_opcode VerbsOpcode(FabricOp op) {
  switch (op) {
    case FabricOp::kSendImmediate:
      return IBV_WR_SEND_WITH_IMM;
    case FabricOp::kWrite:
      return IBV_WR_RDMA_WRITE;
    case FabricOp::kRead:
      return IBV_WR_RDMA_READ;
    case FabricOp::kSend:
    case FabricOp::kReceive:
      break;
  }
  return IBV_WR_SEND;
}

FabricOp VerbsOp(ibv_wc_opcode opcode, unsigned flags) {
  switch (opcode) {
    case IBV_WC_RDMA_WRITE:
      return FabricOp::kWrite;
    case IBV_WC_RDMA_READ:
      return FabricOp::kRead;
    case IBV_WC_SEND:
      return flags & IBV_WC_WITH_IMM ? FabricOp::kSendImmediate : FabricOp::kSend;
    default:
      return opcode & IBV_WC_RECV ? FabricOp::kReceive : FabricOp::kSend;
  }
}

FabricOutcome VerbsOutcome(ibv_wc_status status) {
  switch (status) {
    case IBV_WC_SUCCESS:
      return FabricOutcome::kOk;
    case IBV_WC_WR_FLUSH_ERR:
      return FabricOutcome::kFlushed;
    case IBV_WC_RETRY_EXC_ERR:
      return FabricOutcome::kRetriesExceeded;
    case IBV_WC_RNR_RETRY_EXC_ERR:
      return FabricOutcome::kReceiverNotReady;
    case IBV_WC_LOC_LEN_ERR:
      return FabricOutcome::kLocalLength;
    case IBV_WC_LOC_PROT_ERR:
    case IBV_WC_LOC_ACCESS_ERR:
      return FabricOutcome::kLocalProtection;
    case IBV_WC_LOC_QP_OP_ERR:
      return FabricOutcome::kLocalQueuePair;
    case IBV_WC_REM_INV_REQ_ERR:
      return FabricOutcome::kRemoteInvalid;
    case IBV_WC_REM_ACCESS_ERR:
      return FabricOutcome::kRemoteAccess;
    case IBV_WC_REM_OP_ERR:
    case IBV_WC_REM_ABORT_ERR:
      return FabricOutcome::kRemoteOperation;
    default:
      return FabricOutcome::kOther;
  }
}

FabricEventKind VerbsEventKind(ibv_event_type type) {
  switch (type) {
    case IBV_EVENT_DEVICE_FATAL:
      return FabricEventKind::kDeviceFatal;
    case IBV_EVENT_PORT_ACTIVE:
      return FabricEventKind::kPortActive;
    case IBV_EVENT_PORT_ERR:
      return FabricEventKind::kPortError;
    case IBV_EVENT_GID_CHANGE:
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_CLIENT_REREGISTER:  // the subnet manager may have given another LID
      return FabricEventKind::kAddressChange;
    case IBV_EVENT_CQ_ERR:
      return FabricEventKind::kCqError;
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
      return FabricEventKind::kQpFatal;
    case IBV_EVENT_COMM_EST:
      return FabricEventKind::kQpEstablished;
    case IBV_EVENT_QP_LAST_WQE_REACHED:
      return FabricEventKind::kQpLastReceive;
    case IBV_EVENT_SRQ_ERR:
      return FabricEventKind::kSrqError;
    case IBV_EVENT_SRQ_LIMIT_REACHED:
      return FabricEventKind::kSrqLimit;
    default:
      return FabricEventKind::kOther;
  }
}

uint32_t VerbsImmediate(uint32_t immediate) { return htonl(immediate); }

bool VerbsParts::Fill(std::span<const FabricPart> parts) {
  if (parts.size() > kMax) return false;
  count_ = 0;
  for (const FabricPart& part : parts) {
    ibv_sge& entry = list_[static_cast<size_t>(count_++)];
    entry.addr = reinterpret_cast<uint64_t>(part.data);
    entry.length = part.size;
    entry.lkey = part.local_key;
  }
  return true;
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
