#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/error.h"
#include "rdma/verbs_device.h"
#include "rdma/verbs_words.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// Bytes: with fewer no message of ours fits.
constexpr uint32_t kInlineWorth = 32;

}  // namespace

std::unique_ptr<VerbsQp> VerbsQp::Create(ibv_pd* pd, std::string_view name,
                                         const FabricQpOptions& options, int* error) {
  std::unique_ptr<VerbsQp> made(new VerbsQp(name, options.owner));
  ibv_qp_init_attr attributes = {};
  attributes.qp_context = made.get();
  attributes.send_cq = static_cast<VerbsCq*>(options.send_cq)->cq();
  attributes.recv_cq = static_cast<VerbsCq*>(options.receive_cq)->cq();
  attributes.qp_type = IBV_QPT_RC;
  attributes.sq_sig_all = 0;
  attributes.cap.max_send_wr = options.send_depth;
  attributes.cap.max_send_sge = options.send_parts;
  attributes.cap.max_inline_data = options.inlined;
  if (options.srq != nullptr) {
    attributes.srq = static_cast<VerbsSrq*>(options.srq)->srq();
  } else {
    attributes.cap.max_recv_wr = options.receive_depth;
    attributes.cap.max_recv_sge = options.receive_parts;
  }
  made->qp_ = ibv_create_qp(pd, &attributes);
  while (made->qp_ == nullptr && attributes.cap.max_inline_data > 0) {
    // A device refuses what it cannot inline, and does not say how much it could.
    attributes.cap.max_inline_data /= 2;
    if (attributes.cap.max_inline_data < kInlineWorth) attributes.cap.max_inline_data = 0;
    made->qp_ = ibv_create_qp(pd, &attributes);
  }
  if (made->qp_ == nullptr) {
    *error = errno != 0 ? errno : EIO;
    return nullptr;
  }
  // The device may grant more, of which nothing is known above.
  made->limits_.send_depth = std::min(attributes.cap.max_send_wr, options.send_depth);
  made->limits_.receive_depth =
      options.srq != nullptr ? 0 : std::min(attributes.cap.max_recv_wr, options.receive_depth);
  made->limits_.inlined = std::min(attributes.cap.max_inline_data, options.inlined);
  return made;
}

VerbsQp::~VerbsQp() {
  if (qp_ != nullptr) ibv_destroy_qp(qp_);
}

absl::Status VerbsQp::Modify(ibv_qp_attr& attributes, int mask, std::string_view state) {
  const int error = VerbsError(ibv_modify_qp(qp_, &attributes, mask));
  if (error == 0) return absl::OkStatus();
  return ErrnoStatus(error, absl::StrCat("move queue pair to ", AbslView(state), " on ", name_));
}

absl::Status VerbsQp::ToInit(const FabricInit& init) {
  ibv_qp_attr attributes = {};
  attributes.qp_state = IBV_QPS_INIT;
  attributes.pkey_index = 0;
  attributes.port_num = init.port;
  attributes.qp_access_flags = static_cast<unsigned>(VerbsAccess(init.access));
  return Modify(attributes, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS,
                "INIT");
}

absl::Status VerbsQp::ToReadyToReceive(const FabricPath& path) {
  ibv_qp_attr attributes = {};
  attributes.qp_state = IBV_QPS_RTR;
  if (!VerbsMtu(path.mtu, &attributes.path_mtu)) {
    return ErrnoStatus(EINVAL,
                       absl::StrCat("move queue pair to RTR on ", name_, " with MTU ", path.mtu));
  }
  attributes.dest_qp_num = path.peer_qp_number;
  attributes.rq_psn = path.peer_psn;
  attributes.max_dest_rd_atomic = path.read_depth;
  attributes.min_rnr_timer = path.min_rnr_timer;
  attributes.ah_attr.port_num = path.port;
  attributes.ah_attr.dlid = path.peer_lid;
  attributes.ah_attr.sl = path.service_level;
  if (path.peer_gid != FabricGid{}) {
    attributes.ah_attr.is_global = 1;
    std::memcpy(attributes.ah_attr.grh.dgid.raw, path.peer_gid.data(), path.peer_gid.size());
    attributes.ah_attr.grh.sgid_index = path.gid_index;
    attributes.ah_attr.grh.hop_limit = path.hop_limit;
    attributes.ah_attr.grh.traffic_class = path.traffic_class;
  }
  return Modify(attributes,
                IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                    IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER,
                "RTR");
}

absl::Status VerbsQp::ToReadyToSend(const FabricTiming& timing) {
  ibv_qp_attr attributes = {};
  attributes.qp_state = IBV_QPS_RTS;
  attributes.sq_psn = timing.psn;
  attributes.timeout = timing.timeout;
  attributes.retry_cnt = timing.retry_count;
  attributes.rnr_retry = timing.rnr_retry;
  attributes.max_rd_atomic = timing.read_depth;
  return Modify(attributes,
                IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
                    IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC,
                "RTS");
}

absl::Status VerbsQp::ToError() {
  ibv_qp_attr attributes = {};
  attributes.qp_state = IBV_QPS_ERR;
  return Modify(attributes, IBV_QP_STATE, "the error state");
}

int VerbsQp::PostSends(std::span<const FabricSend> sends, size_t* posted) {
  // One call of the device for several requests: it rings its doorbell once.
  constexpr size_t kBatch = 16;
  std::array<ibv_send_wr, kBatch> requests;
  std::array<VerbsParts, kBatch> parts;
  *posted = 0;
  while (*posted < sends.size()) {
    const size_t count = std::min(kBatch, sends.size() - *posted);
    size_t filled = 0;
    for (; filled < count; ++filled) {
      const FabricSend& send = sends[*posted + filled];
      if (send.op == FabricOp::kReceive || !parts[filled].Fill(send.parts)) break;
      ibv_send_wr& request = requests[filled] = {};
      request.wr_id = send.id;
      request.opcode = VerbsOpcode(send.op);
      request.sg_list = parts[filled].list();
      request.num_sge = parts[filled].count();
      if (send.signalled) request.send_flags |= IBV_SEND_SIGNALED;
      if (send.solicited) request.send_flags |= IBV_SEND_SOLICITED;
      if (send.inlined) request.send_flags |= IBV_SEND_INLINE;
      if (send.fenced) request.send_flags |= IBV_SEND_FENCE;
      request.imm_data = VerbsImmediate(send.immediate);
      request.wr.rdma.remote_addr = send.remote_address;
      request.wr.rdma.rkey = send.remote_key;
      if (filled > 0) requests[filled - 1].next = &request;
    }
    if (filled == 0) return -EINVAL;
    ibv_send_wr* bad = nullptr;
    const int error = VerbsError(ibv_post_send(qp_, requests.data(), &bad));
    if (error != 0) {
      if (bad != nullptr) *posted += static_cast<size_t>(bad - requests.data());
      return -error;
    }
    *posted += filled;
    if (filled < count) return -EINVAL;
  }
  return 0;
}

int VerbsQp::PostReceive(const FabricReceive& receive) {
  VerbsParts parts;
  if (!parts.Fill(receive.parts)) return -EINVAL;
  ibv_recv_wr request = {};
  request.wr_id = receive.id;
  request.sg_list = parts.list();
  request.num_sge = parts.count();
  ibv_recv_wr* bad;
  return -VerbsError(ibv_post_recv(qp_, &request, &bad));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
