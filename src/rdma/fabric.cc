#include "rdma/fabric.h"

#ifdef PENSTOCK_HAVE_VERBS
#include "rdma/verbs_fabric.h"
#endif

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

std::string_view FabricOpName(FabricOp op) {
  switch (op) {
    case FabricOp::kSend:
      return "SEND";
    case FabricOp::kSendImmediate:
      return "SEND_WITH_IMM";
    case FabricOp::kWrite:
      return "WRITE";
    case FabricOp::kRead:
      return "READ";
    case FabricOp::kReceive:
      return "RECV";
  }
  return "unknown";
}

std::string_view FabricOutcomeName(FabricOutcome outcome) {
  switch (outcome) {
    case FabricOutcome::kOk:
      return "ok";
    case FabricOutcome::kFlushed:
      return "flushed";
    case FabricOutcome::kRetriesExceeded:
      return "retries exceeded";
    case FabricOutcome::kReceiverNotReady:
      return "receiver not ready";
    case FabricOutcome::kLocalLength:
      return "local length error";
    case FabricOutcome::kLocalProtection:
      return "local protection error";
    case FabricOutcome::kLocalQueuePair:
      return "local queue pair error";
    case FabricOutcome::kRemoteInvalid:
      return "remote invalid request";
    case FabricOutcome::kRemoteAccess:
      return "remote access error";
    case FabricOutcome::kRemoteOperation:
      return "remote operation error";
    case FabricOutcome::kOther:
      return "other error";
  }
  return "unknown";
}

std::string_view FabricEventKindName(FabricEventKind kind) {
  switch (kind) {
    case FabricEventKind::kDeviceFatal:
      return "device fatal";
    case FabricEventKind::kPortActive:
      return "port active";
    case FabricEventKind::kPortError:
      return "port error";
    case FabricEventKind::kAddressChange:
      return "address change";
    case FabricEventKind::kCqError:
      return "completion queue error";
    case FabricEventKind::kQpFatal:
      return "queue pair fatal";
    case FabricEventKind::kQpEstablished:
      return "queue pair established";
    case FabricEventKind::kQpLastReceive:
      return "last receive reached";
    case FabricEventKind::kSrqError:
      return "shared receive queue error";
    case FabricEventKind::kSrqLimit:
      return "shared receive queue limit";
    case FabricEventKind::kOther:
      return "other event";
  }
  return "unknown";
}

#ifdef PENSTOCK_HAVE_VERBS

Fabric& SystemFabric() {
  static VerbsFabric fabric;
  return fabric;
}

#else

namespace {

class AbsentFabric final : public Fabric {
 public:
  absl::StatusOr<std::vector<std::string> > ListDevices() override { return Absent(); }
  absl::StatusOr<std::unique_ptr<FabricDevice> > Open(std::string_view) override {
    return Absent();
  }

 private:
  static absl::Status Absent() {
    return absl::UnavailableError("RDMA devices: this Penstock was built without libibverbs");
  }
};

}  // namespace

Fabric& SystemFabric() {
  static AbsentFabric fabric;
  return fabric;
}

#endif

}  // namespace internal
PENSTOCK_END_NAMESPACE
