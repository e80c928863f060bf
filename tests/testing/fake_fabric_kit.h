// FakeEnd: what tests of a fabric begin with: a device with a completion queue, a
// queue pair in INIT and some registered memory. One thread.
#ifndef PENSTOCK_TESTS_TESTING_FAKE_FABRIC_KIT_H_
#define PENSTOCK_TESTS_TESTING_FAKE_FABRIC_KIT_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "rdma/fabric.h"

namespace penstock::testing {

struct FakeEndOptions {
  uint32_t cq_depth = 256;
  uint32_t srq_depth = 0;  // 0: receives of its own
  internal::FabricQpOptions qp = {};
  internal::FabricTiming timing = {};
  uint8_t read_depth = 4;
  uint32_t psn = 0;
  // Of the address to use: rdma_rxe has its IPv4 address at 1.
  uint8_t gid_index = 0;
};

class FakeEnd {
 public:
  static constexpr size_t kMemory = 1 << 16;

  FakeEnd(internal::Fabric& fabric, std::string_view name, FakeEndOptions options = {})
      : options(options) {
    auto opened = fabric.Open(name);
    EXPECT_TRUE(opened.ok()) << opened.status();
    device = *std::move(opened);
    cq = *device->CreateCq(options.cq_depth, 1);
    if (options.srq_depth > 0) srq = *device->CreateSrq(options.srq_depth, 1, 2);
    const uint8_t all =
        internal::kFabricLocalWrite | internal::kFabricRemoteWrite | internal::kFabricRemoteRead;
    bytes.resize(kMemory);
    memory = *device->Register(bytes.data(), bytes.size(), all);
    NewQp();
  }
  ~FakeEnd() {
    qp.reset();
    srq.reset();
    if (device == nullptr) return;
    EXPECT_TRUE(device->Deregister(memory).ok());
  }

  void NewQp() {
    options.qp.owner = 3;
    options.qp.send_cq = cq.get();
    options.qp.receive_cq = cq.get();
    options.qp.srq = srq.get();
    auto made = device->CreateQp(options.qp);
    EXPECT_TRUE(made.ok()) << made.status();
    qp = *std::move(made);
    const uint8_t all =
        internal::kFabricLocalWrite | internal::kFabricRemoteWrite | internal::kFabricRemoteRead;
    EXPECT_TRUE(qp->ToInit({.port = 1, .access = all}).ok());
  }
  absl::Status Receive(const FakeEnd& peer) {
    internal::FabricPath path;
    path.gid_index = options.gid_index;
    path.peer_gid = *peer.device->QueryGid(1, peer.options.gid_index);
    path.peer_qp_number = peer.qp->number();
    path.peer_psn = peer.options.psn;
    path.read_depth = options.read_depth;
    return qp->ToReadyToReceive(path);
  }
  absl::Status Send() {
    internal::FabricTiming timing = options.timing;
    timing.psn = options.psn;
    timing.read_depth = options.read_depth;
    return qp->ToReadyToSend(timing);
  }
  int PostReceive(uint64_t id, size_t offset, uint32_t size) {
    const internal::FabricPart part = Part(offset, size);
    const internal::FabricReceive receive{id, {&part, 1}};
    return srq != nullptr ? srq->PostReceive(receive) : qp->PostReceive(receive);
  }
  int Post(uint64_t id, internal::FabricOp op, size_t offset, uint32_t size,
           const FakeEnd* target = nullptr, size_t target_offset = 0) {
    const internal::FabricPart part = Part(offset, size);
    internal::FabricSend send;
    send.id = id;
    send.op = op;
    send.parts = {&part, 1};
    if (target != nullptr) {
      send.remote_address = reinterpret_cast<uint64_t>(target->bytes.data() + target_offset);
      send.remote_key = target->memory.remote_key;
    }
    return qp->PostSend(send);
  }
  internal::FabricPart Part(size_t offset, uint32_t size) {
    return {bytes.data() + offset, size, memory.local_key};
  }
  // Polls into `done`; how many there are by now.
  size_t Poll() {
    internal::FabricCompletion out[16];
    int count;
    while ((count = cq->Poll(out)) > 0) done.insert(done.end(), out, out + count);
    return done.size();
  }
  std::string_view Bytes(size_t offset, size_t size) const { return {bytes.data() + offset, size}; }
  void Fill(size_t offset, std::string_view text) { text.copy(bytes.data() + offset, text.size()); }

  FakeEndOptions options;
  std::unique_ptr<internal::FabricDevice> device;
  std::vector<char> bytes;
  std::unique_ptr<internal::FabricCq> cq;
  std::unique_ptr<internal::FabricSrq> srq;
  std::unique_ptr<internal::FabricQp> qp;
  internal::FabricMemory memory;
  std::vector<internal::FabricCompletion> done;
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_FAKE_FABRIC_KIT_H_
