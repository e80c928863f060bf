#include "rdma/verbs_device.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/absl_view.h"
#include "base/error.h"
#include "base/nonblocking.h"
#include "rdma/verbs_words.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

namespace {

int VerbsErrno() { return errno != 0 ? errno : EIO; }

}  // namespace

// --- VerbsDevice ---

absl::StatusOr<std::unique_ptr<FabricDevice>> VerbsDevice::Open(ibv_device* device) {
  std::unique_ptr<VerbsDevice> made(new VerbsDevice(ibv_get_device_name(device)));
  made->context_ = ibv_open_device(device);
  if (made->context_ == nullptr) return made->Failure("open device", VerbsErrno());
  ibv_device_attr attributes;
  if (const int error = VerbsError(ibv_query_device(made->context_, &attributes))) {
    return made->Failure("query device", error);
  }
  const auto count = [](int value) { return static_cast<uint32_t>(std::max(0, value)); };
  FabricLimits& limits = made->limits_;
  limits.queue_pairs = count(attributes.max_qp);
  limits.queue_depth = count(attributes.max_qp_wr);
  limits.completion_depth = count(attributes.max_cqe);
  limits.shared_receive_queues = count(attributes.max_srq);
  limits.shared_receive_depth = count(attributes.max_srq_wr);
  limits.parts = count(attributes.max_sge);
  limits.read_depth =
      std::min(count(attributes.max_qp_rd_atom), count(attributes.max_qp_init_rd_atom));
  limits.memory_regions = count(attributes.max_mr);
  limits.memory_region_size = attributes.max_mr_size;
  limits.ports = attributes.phys_port_cnt;
  made->pd_ = ibv_alloc_pd(made->context_);
  if (made->pd_ == nullptr) return made->Failure("allocate protection domain", VerbsErrno());
  // ibv_get_async_event blocks otherwise.
  if (const int error = MakeNonblocking(made->context_->async_fd)) {
    return made->Failure("make events nonblocking", -error);
  }
  return made;
}

VerbsDevice::~VerbsDevice() {
  if (pd_ != nullptr) ibv_dealloc_pd(pd_);
  if (context_ != nullptr) ibv_close_device(context_);
}

absl::Status VerbsDevice::Failure(std::string_view operation, int error) const {
  return ErrnoStatus(error, absl::StrCat(AbslView(operation), " on ", name_));
}

absl::StatusOr<FabricPort> VerbsDevice::QueryPort(uint8_t port) {
  ibv_port_attr attributes;
  if (const int error = VerbsError(ibv_query_port(context_, port, &attributes))) {
    return Failure(absl::StrCat("query port ", port), error);
  }
  FabricPort out;
  out.active = attributes.state == IBV_PORT_ACTIVE;
  out.ethernet = attributes.link_layer == IBV_LINK_LAYER_ETHERNET;
  out.lid = attributes.lid;
  out.mtu = VerbsMtuBytes(attributes.active_mtu);
  out.gids = static_cast<uint32_t>(std::max(0, attributes.gid_tbl_len));
  return out;
}

absl::StatusOr<FabricGid> VerbsDevice::QueryGid(uint8_t port, uint32_t index) {
  ibv_gid gid;
  FabricGid out = {};
  if (ibv_query_gid(context_, port, static_cast<int>(index), &gid) == 0) {
    std::memcpy(out.data(), gid.raw, out.size());
  }
  if (out == FabricGid{}) {
    return absl::NotFoundError(
        absl::StrCat("query GID ", index, " of port ", port, " on ", name_, ": none"));
  }
  return out;
}

absl::StatusOr<FabricMemory> VerbsDevice::Register(void* data, size_t size, uint8_t access) {
  ibv_mr* const region = ibv_reg_mr(pd_, data, size, VerbsAccess(access));
  if (region == nullptr) {
    return Failure(absl::StrCat("register ", size, " bytes of memory"), VerbsErrno());
  }
  return FabricMemory{region, region->lkey, region->rkey};
}

absl::Status VerbsDevice::Deregister(const FabricMemory& memory) {
  if (const int error = VerbsError(ibv_dereg_mr(static_cast<ibv_mr*>(memory.handle)))) {
    return Failure("deregister memory", error);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<FabricCq>> VerbsDevice::CreateCq(uint32_t depth, uint64_t owner) {
  int error = 0;
  std::unique_ptr<FabricCq> cq = VerbsCq::Create(context_, depth, owner, &error);
  if (cq == nullptr) return Failure("create completion queue", error);
  return cq;
}

absl::StatusOr<std::unique_ptr<FabricSrq>> VerbsDevice::CreateSrq(uint32_t depth, uint32_t parts,
                                                                  uint64_t owner) {
  int error = 0;
  std::unique_ptr<FabricSrq> srq = VerbsSrq::Create(pd_, depth, parts, owner, &error);
  if (srq == nullptr) return Failure("create shared receive queue", error);
  return srq;
}

absl::StatusOr<std::unique_ptr<FabricQp>> VerbsDevice::CreateQp(const FabricQpOptions& options) {
  int error = 0;
  std::unique_ptr<FabricQp> qp = VerbsQp::Create(pd_, name_, options, &error);
  if (qp == nullptr) return Failure("create queue pair", error);
  return qp;
}

bool VerbsDevice::TakeEvent(FabricEvent* event) {
  ibv_async_event taken;
  if (ibv_get_async_event(context_, &taken) != 0) return false;
  event->kind = VerbsEventKind(taken.event_type);
  event->owner = 0;
  event->port = 0;
  switch (event->kind) {
    case FabricEventKind::kCqError:
      event->owner = static_cast<VerbsCq*>(taken.element.cq->cq_context)->owner();
      break;
    case FabricEventKind::kQpFatal:
    case FabricEventKind::kQpEstablished:
    case FabricEventKind::kQpLastReceive:
      event->owner = static_cast<VerbsQp*>(taken.element.qp->qp_context)->owner();
      break;
    case FabricEventKind::kSrqError:
    case FabricEventKind::kSrqLimit:
      event->owner = static_cast<VerbsSrq*>(taken.element.srq->srq_context)->owner();
      break;
    case FabricEventKind::kPortActive:
    case FabricEventKind::kPortError:
    case FabricEventKind::kAddressChange:
      event->port = static_cast<uint8_t>(taken.element.port_num);
      break;
    case FabricEventKind::kDeviceFatal:
    case FabricEventKind::kOther:
      break;
  }
  // Destroying what the event names waits until here, so this comes before anything else is done.
  ibv_ack_async_event(&taken);
  return true;
}

// --- VerbsCq ---

std::unique_ptr<VerbsCq> VerbsCq::Create(ibv_context* context, uint32_t depth, uint64_t owner,
                                         int* error) {
  std::unique_ptr<VerbsCq> made(new VerbsCq(owner));
  made->channel_ = ibv_create_comp_channel(context);
  if (made->channel_ == nullptr) {
    *error = VerbsErrno();
    return nullptr;
  }
  *error = -MakeNonblocking(made->channel_->fd);
  if (*error != 0) return nullptr;
  made->cq_ = ibv_create_cq(context, static_cast<int>(depth), made.get(), made->channel_, 0);
  if (made->cq_ == nullptr) {
    *error = VerbsErrno();
    return nullptr;
  }
  return made;
}

VerbsCq::~VerbsCq() {
  if (cq_ != nullptr) ibv_destroy_cq(cq_);
  if (channel_ != nullptr) ibv_destroy_comp_channel(channel_);
}

int VerbsCq::Arm() { return -VerbsError(ibv_req_notify_cq(cq_, 0)); }

int VerbsCq::TakeEvents(uint32_t max) {
  uint32_t count = 0;
  ibv_cq* from;
  void* context;
  while (count < max && ibv_get_cq_event(channel_, &from, &context) == 0) ++count;
  return count > 0 || max == 0 || errno == EAGAIN ? static_cast<int>(count) : -VerbsErrno();
}

void VerbsCq::AckEvents(uint32_t count) { ibv_ack_cq_events(cq_, count); }

int VerbsCq::Poll(std::span<FabricCompletion> out) {
  ibv_wc batch[32];
  const int room = static_cast<int>(std::min<size_t>(out.size(), std::size(batch)));
  const int count = ibv_poll_cq(cq_, room, batch);
  if (count < 0) return -EIO;
  for (int i = 0; i < count; ++i) {
    const ibv_wc& from = batch[i];
    FabricCompletion& to = out[static_cast<size_t>(i)];
    to.id = from.wr_id;
    to.outcome = VerbsOutcome(from.status);
    // The other fields are undefined unless all went well.
    const bool ok = from.status == IBV_WC_SUCCESS;
    to.op = ok ? VerbsOp(from.opcode, from.wc_flags) : FabricOp::kSend;
    to.has_immediate = ok && (from.wc_flags & IBV_WC_WITH_IMM) != 0;
    to.bytes = ok ? from.byte_len : 0;
    to.immediate = to.has_immediate ? VerbsImmediate(from.imm_data) : 0;
    to.qp_number = from.qp_num;
    to.vendor_error = ok ? 0 : from.vendor_err;
  }
  return count;
}

// --- VerbsSrq ---

std::unique_ptr<VerbsSrq> VerbsSrq::Create(ibv_pd* pd, uint32_t depth, uint32_t parts,
                                           uint64_t owner, int* error) {
  std::unique_ptr<VerbsSrq> made(new VerbsSrq(owner));
  ibv_srq_init_attr attributes = {};
  attributes.srq_context = made.get();
  attributes.attr.max_wr = depth;
  attributes.attr.max_sge = parts;
  made->srq_ = ibv_create_srq(pd, &attributes);
  if (made->srq_ != nullptr) return made;
  *error = VerbsErrno();
  return nullptr;
}

VerbsSrq::~VerbsSrq() {
  if (srq_ != nullptr) ibv_destroy_srq(srq_);
}

int VerbsSrq::PostReceive(const FabricReceive& receive) {
  VerbsParts parts;
  ibv_recv_wr request = {};
  if (!parts.Fill(receive.parts)) return -EINVAL;
  request.wr_id = receive.id;
  request.sg_list = parts.list();
  request.num_sge = parts.count();
  ibv_recv_wr* bad;
  return -VerbsError(ibv_post_srq_recv(srq_, &request, &bad));
}

int VerbsSrq::ArmLimit(uint32_t limit) {
  ibv_srq_attr attributes = {};
  attributes.srq_limit = limit;
  return -VerbsError(ibv_modify_srq(srq_, &attributes, IBV_SRQ_LIMIT));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
