// VerbsDevice and its queues and queue pairs: each owns the object of libibverbs of its name.
//
// Threads and order of destruction are those of fabric.h. A context of an object of libibverbs
// points to the object here, and is read only while an event holds it.
#ifndef PENSTOCK_RDMA_VERBS_DEVICE_H_
#define PENSTOCK_RDMA_VERBS_DEVICE_H_

#include <infiniband/verbs.h>
#include <penstock/export.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "rdma/fabric.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class VerbsCq final : public FabricCq {
 public:
  // Null and `error` when the device has no room.
  static std::unique_ptr<VerbsCq> Create(ibv_context* context, uint32_t depth, uint64_t owner,
                                         int* error);
  ~VerbsCq() override;

  int fd() const override { return channel_->fd; }
  int Arm() override;
  int TakeEvents(uint32_t max) override;
  void AckEvents(uint32_t count) override;
  int Poll(std::span<FabricCompletion> out) override;

  ibv_cq* cq() const { return cq_; }
  uint64_t owner() const { return owner_; }

 private:
  explicit VerbsCq(uint64_t owner) : owner_(owner) {}

  const uint64_t owner_;
  ibv_comp_channel* channel_ = nullptr;
  ibv_cq* cq_ = nullptr;
};

class VerbsSrq final : public FabricSrq {
 public:
  static std::unique_ptr<VerbsSrq> Create(ibv_pd* pd, uint32_t depth, uint32_t parts,
                                          uint64_t owner, int* error);
  ~VerbsSrq() override;

  int PostReceive(const FabricReceive& receive) override;
  int ArmLimit(uint32_t limit) override;

  ibv_srq* srq() const { return srq_; }
  uint64_t owner() const { return owner_; }

 private:
  explicit VerbsSrq(uint64_t owner) : owner_(owner) {}

  const uint64_t owner_;
  ibv_srq* srq_ = nullptr;
};

class VerbsQp final : public FabricQp {
 public:
  // `name`: of the device, for errors.
  static std::unique_ptr<VerbsQp> Create(ibv_pd* pd, std::string_view name,
                                         const FabricQpOptions& options, int* error);
  ~VerbsQp() override;

  uint32_t number() const override { return qp_->qp_num; }
  FabricQpLimits limits() const override { return limits_; }
  absl::Status ToInit(const FabricInit& init) override;
  absl::Status ToReadyToReceive(const FabricPath& path) override;
  absl::Status ToReadyToSend(const FabricTiming& timing) override;
  absl::Status ToError() override;
  int PostSends(std::span<const FabricSend> sends, size_t* posted) override;
  int PostReceive(const FabricReceive& receive) override;

  uint64_t owner() const { return owner_; }

 private:
  VerbsQp(std::string_view name, uint64_t owner) : name_(name), owner_(owner) {}
  absl::Status Modify(ibv_qp_attr& attributes, int mask, std::string_view state);

  const std::string name_;
  const uint64_t owner_;
  FabricQpLimits limits_;
  ibv_qp* qp_ = nullptr;
};

class VerbsDevice final : public FabricDevice {
 public:
  // Opens `device`, which stays the caller's.
  static absl::StatusOr<std::unique_ptr<FabricDevice>> Open(ibv_device* device);
  ~VerbsDevice() override;

  const std::string& name() const override { return name_; }
  const FabricLimits& limits() const override { return limits_; }
  absl::StatusOr<FabricPort> QueryPort(uint8_t port) override;
  absl::StatusOr<FabricGid> QueryGid(uint8_t port, uint32_t index) override;
  absl::StatusOr<FabricMemory> Register(void* data, size_t size, uint8_t access) override;
  absl::Status Deregister(const FabricMemory& memory) override;
  absl::StatusOr<std::unique_ptr<FabricCq>> CreateCq(uint32_t depth, uint64_t owner) override;
  absl::StatusOr<std::unique_ptr<FabricSrq>> CreateSrq(uint32_t depth, uint32_t parts,
                                                       uint64_t owner) override;
  absl::StatusOr<std::unique_ptr<FabricQp>> CreateQp(const FabricQpOptions& options) override;
  int event_fd() const override { return context_->async_fd; }
  bool TakeEvent(FabricEvent* event) override;

 private:
  explicit VerbsDevice(std::string name) : name_(std::move(name)) {}
  absl::Status Failure(std::string_view operation, int error) const;

  const std::string name_;
  FabricLimits limits_;
  ibv_context* context_ = nullptr;
  ibv_pd* pd_ = nullptr;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_VERBS_DEVICE_H_
