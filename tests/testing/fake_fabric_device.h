// FakeDevice, FakeCq and FakeSrq: an open device of a FakeFabric and its queues. Each tells the
// fabric when it is destroyed before what depends on it. One thread.
#ifndef PENSTOCK_TESTS_TESTING_FAKE_FABRIC_DEVICE_H_
#define PENSTOCK_TESTS_TESTING_FAKE_FABRIC_DEVICE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "rdma/fabric.h"
#include "testing/fake_fabric.h"

namespace penstock::testing {

// A receive as the device keeps it.
struct FakeReceive {
  uint64_t id = 0;
  std::vector<internal::FabricPart> parts;
  uint64_t bytes() const;
};

bool FakeUses(const std::vector<internal::FabricPart>& parts, uint32_t key);

class FakeCq final : public internal::FabricCq {
 public:
  FakeCq(FakeDevice& device, uint32_t depth, uint64_t owner);
  ~FakeCq() override;

  int fd() const override { return fd_; }
  int Arm() override;
  int TakeEvents(uint32_t max) override;
  void AckEvents(uint32_t count) override;
  int Poll(std::span<internal::FabricCompletion> out) override;

  // `sends` and `receives`: how much room the completion gives back to the queue pair.
  void Push(internal::FabricCompletion completion, uint64_t serial, uint32_t sends,
            uint32_t receives);
  void AddUser(uint64_t serial) { users_.insert(serial); }
  void RemoveUser(uint64_t serial);

 private:
  struct Entry {
    internal::FabricCompletion completion;
    uint64_t serial;
    uint32_t sends;
    uint32_t receives;
  };
  void Overflow();

  FakeDevice& device_;
  const uint32_t depth_;
  const uint64_t owner_;
  const int fd_;
  std::deque<Entry> entries_;
  std::multiset<uint64_t> users_;
  bool armed_ = false;
  bool lost_ = false;
  uint32_t events_ = 0;  // not taken
  uint32_t unacked_ = 0;
};

class FakeSrq final : public internal::FabricSrq {
 public:
  FakeSrq(FakeDevice& device, uint32_t depth, uint32_t parts, uint64_t owner);
  ~FakeSrq() override;

  int PostReceive(const internal::FabricReceive& receive) override;
  int ArmLimit(uint32_t limit) override;

  // False when it is empty.
  bool Take(FakeReceive* receive);
  void AddUser() { ++users_; }
  void RemoveUser() { --users_; }
  bool Uses(uint32_t key) const;

 private:
  FakeDevice& device_;
  const uint32_t depth_;
  const uint32_t parts_;
  const uint64_t owner_;
  std::deque<FakeReceive> receives_;
  uint32_t limit_ = 0;
  int users_ = 0;
};

class FakeDevice final : public internal::FabricDevice {
 public:
  FakeDevice(FakeFabric& fabric, FakeFabric::Nic& nic);
  ~FakeDevice() override;

  const std::string& name() const override { return nic_.name; }
  const internal::FabricLimits& limits() const override { return fabric_.options().limits; }
  absl::StatusOr<internal::FabricPort> QueryPort(uint8_t port) override;
  absl::StatusOr<internal::FabricGid> QueryGid(uint8_t port, uint32_t index) override;
  absl::StatusOr<internal::FabricMemory> Register(void* data, size_t size, uint8_t access) override;
  absl::Status Deregister(const internal::FabricMemory& memory) override;
  absl::StatusOr<std::unique_ptr<internal::FabricCq>> CreateCq(uint32_t depth,
                                                               uint64_t owner) override;
  absl::StatusOr<std::unique_ptr<internal::FabricSrq>> CreateSrq(uint32_t depth, uint32_t parts,
                                                                 uint64_t owner) override;
  absl::StatusOr<std::unique_ptr<internal::FabricQp>> CreateQp(
      const internal::FabricQpOptions& options) override;
  int event_fd() const override { return fd_; }
  bool TakeEvent(internal::FabricEvent* event) override;

  FakeFabric& fabric() { return fabric_; }
  FakeFabric::Nic& nic() { return nic_; }
  void PushEvent(internal::FabricEvent event);
  // Whether memory with the key allows `access` (FabricAccess) to these bytes.
  bool Allows(uint32_t key, uint64_t address, uint64_t size, uint8_t access) const;
  absl::Status Failure(std::string_view operation, int error) const;
  void AddSrq(FakeSrq* srq) { srqs_.insert(srq); }
  void RemoveSrq(FakeSrq* srq) { srqs_.erase(srq); }
  void CountObjects(int change);

 private:
  struct Memory {
    uint64_t address;
    uint64_t size;
    uint8_t access;
  };

  FakeFabric& fabric_;
  FakeFabric::Nic& nic_;
  const int fd_;
  std::deque<internal::FabricEvent> events_;
  std::map<uint32_t, Memory> memory_;  // by key
  std::set<FakeSrq*> srqs_;
  int objects_ = 0;
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_FAKE_FABRIC_DEVICE_H_
