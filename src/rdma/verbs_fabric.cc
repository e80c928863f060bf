#include "rdma/verbs_fabric.h"

#include <infiniband/verbs.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/absl_view.h"
#include "base/error.h"
#include "rdma/verbs_device.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

// The list of devices as libibverbs hands it out; opened devices outlive it.
class VerbsList {
 public:
  VerbsList() : devices_(ibv_get_device_list(&count_)), error_(devices_ == nullptr ? errno : 0) {}
  ~VerbsList() {
    if (devices_ != nullptr) ibv_free_device_list(devices_);
  }
  VerbsList(const VerbsList&) = delete;
  VerbsList& operator=(const VerbsList&) = delete;

  // A kernel without RDMA says that it lacks the call (ENOSYS), or has the class and no device.
  absl::Status status() const {
    if (error_ == 0) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat("list RDMA devices: ", ErrnoText(error_)));
  }
  int count() const { return count_; }
  ibv_device* at(int index) const { return devices_[index]; }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (int i = 0; i < count_; ++i) names.emplace_back(ibv_get_device_name(devices_[i]));
    return names;
  }

 private:
  int count_ = 0;
  ibv_device** devices_;
  int error_;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> VerbsFabric::ListDevices() {
  const VerbsList list;
  if (absl::Status status = list.status(); !status.ok()) return status;
  return list.names();
}

absl::StatusOr<std::unique_ptr<FabricDevice>> VerbsFabric::Open(std::string_view name) {
  const VerbsList list;
  if (absl::Status status = list.status(); !status.ok()) return status;
  for (int i = 0; i < list.count(); ++i) {
    if (ibv_get_device_name(list.at(i)) == name) return VerbsDevice::Open(list.at(i));
  }
  return absl::NotFoundError(absl::StrCat(
      "open RDMA device ", AbslView(name), ": no such device; there ",
      list.count() == 0 ? "is none" : absl::StrCat("are: ", absl::StrJoin(list.names(), ", "))));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
