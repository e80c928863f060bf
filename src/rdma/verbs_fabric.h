// VerbsFabric: the Fabric of this machine, over libibverbs. The only place that knows verbs.
//
// Thread-safe as fabric.h says. Owns no state but what its devices own.
#ifndef PENSTOCK_RDMA_VERBS_FABRIC_H_
#define PENSTOCK_RDMA_VERBS_FABRIC_H_

#include <penstock/export.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rdma/fabric.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class VerbsFabric final : public Fabric {
 public:
  absl::StatusOr<std::vector<std::string>> ListDevices() override;
  absl::StatusOr<std::unique_ptr<FabricDevice>> Open(std::string_view name) override;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_VERBS_FABRIC_H_
