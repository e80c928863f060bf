// FakeFabric: RDMA devices that are not there, decided by a seed and driven by a FakeHost's clock.
// It does what verbs promise and no more, and is otherwise as unpleasant as devices may be:
//
// - Queue pair states are strict. A packet for one that is not ready to receive is dropped in
//   silence, and its sender waits a whole timeout (67 ms by default) before it tries again.
// - Numbers of destroyed queue pairs are given to the next ones. A packet is taken by whoever has
//   the number, if it comes from the right address and its sequence number fits.
// - A send queue has room again when completions are polled, not when sends end. A completion queue
//   that overflows is lost, with its queue pairs.
// - A queue pair that fails flushes what it holds later and in order for each queue; receives of a
//   shared queue stay there. Completions of a destroyed queue pair stay in their queue.
//
// What verbs leave undefined is noted in violations(), which a test must find empty.
//
//   VirtualHost host;
//   FakeFabric fabric(host, seed);
//   auto device = fabric.Open("fake0");
//   host.Run([&] { return done; });
//
// Messages are delivered whole, and count as many packet sequence numbers as they have packets.
// Outlives its devices. One thread.
#ifndef PENSTOCK_TESTS_TESTING_FAKE_FABRIC_H_
#define PENSTOCK_TESTS_TESTING_FAKE_FABRIC_H_

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rdma/fabric.h"
#include "testing/fake_fabric_host.h"
#include "testing/sim_random.h"

namespace penstock::testing {

class FakeDevice;
class FakeQp;

struct FakeFabricOptions {
  uint32_t devices = 2;  // "fake0", "fake1", ...
  int64_t latency_min_ns = 1'000;
  int64_t latency_max_ns = 3'000;
  uint32_t loss = 0;  // thousandths of packets
  bool ethernet = true;
  bool reports_established = false;   // kQpEstablished
  bool reports_last_receive = false;  // kQpLastReceive
  bool takes_back = false;  // what is in the completion queue, when a queue pair is destroyed
  uint32_t inlined_max = 256;
  uint32_t mtu = 1024;
  internal::FabricLimits limits = {.queue_pairs = 65536,
                                   .queue_depth = 16384,
                                   .completion_depth = 1 << 20,
                                   .shared_receive_queues = 1024,
                                   .shared_receive_depth = 65536,
                                   .parts = 16,
                                   .read_depth = 16,
                                   .memory_regions = 65536,
                                   .memory_region_size = uint64_t{1} << 40,
                                   .ports = 1};
};

enum class FakeCall : uint8_t {
  kListDevices,
  kOpen,
  kQueryPort,
  kQueryGid,
  kRegister,
  kDeregister,
  kCreateCq,
  kCreateSrq,
  kCreateQp,
  kToInit,
  kToReadyToReceive,
  kToReadyToSend,
  kToError,
  kPostSend,
  kPostReceive,
  kPostShared,
  kArm,
  kTakeEvents,
  kPoll,
  kArmLimit,
};
inline constexpr size_t kFakeCalls = 20;

enum class FakePacketKind : uint8_t {
  kRequest,
  kReadResponse,
  kAck,
  kNakSequence,
  kNakNotReady,
  kNak
};

struct FakePacket {
  FakePacketKind kind = FakePacketKind::kRequest;
  internal::FabricGid from = {};
  internal::FabricGid to = {};
  uint32_t to_number = 0;
  uint32_t psn = 0;
  uint32_t count = 1;  // sequence numbers it takes, of a request
  // Of a request.
  internal::FabricOp op = internal::FabricOp::kSend;
  std::string bytes;  // also of a read's response
  uint32_t read_size = 0;
  uint64_t remote_address = 0;
  uint32_t remote_key = 0;
  uint32_t immediate = 0;
  bool solicited = false;
  uint32_t reads_out = 0;  // of the sender, this one included
  // Of kNak, and the code of kNakNotReady.
  internal::FabricOutcome outcome = internal::FabricOutcome::kOther;
  uint8_t rnr_timer = 0;
};

struct FakeStats {
  uint64_t packets = 0;
  uint64_t lost = 0;             // by chance, by the drop hook, by a link that is down
  uint64_t dropped_unknown = 0;  // no queue pair has the number
  uint64_t dropped_early = 0;    // the queue pair was not ready to receive
  uint64_t dropped_error = 0;    // the queue pair had failed
  uint64_t dropped_stale = 0;    // from another address, or an answer that fits nothing
  uint64_t duplicates = 0;
  uint64_t sequence_naks = 0;
  uint64_t not_ready_naks = 0;
  uint64_t timeouts = 0;  // a send was tried again after one
  uint64_t retries_exceeded = 0;
  uint64_t sends_posted = 0;
  uint64_t receives_posted = 0;
  uint64_t calls = 0;
};

class FakeFabric final : public internal::Fabric {
 public:
  FakeFabric(FakeHost& host, uint64_t seed, FakeFabricOptions options = {});
  ~FakeFabric() override;
  FakeFabric(const FakeFabric&) = delete;
  FakeFabric& operator=(const FakeFabric&) = delete;

  absl::StatusOr<std::vector<std::string>> ListDevices() override;
  // A device may be open more than once, as in several processes.
  absl::StatusOr<std::unique_ptr<internal::FabricDevice>> Open(std::string_view name) override;

  // --- For tests ---
  const FakeStats& stats() const { return stats_; }
  const std::vector<std::string>& violations() const { return violations_; }
  // The `nth` call from here on (1 is the next), of any kind or of one kind, fails with `error`.
  void FailNth(uint64_t nth, int error);
  void FailNth(FakeCall call, uint64_t nth, int error);
  // Runs inside every call, before it does anything.
  void set_on_call(std::function<void(FakeCall)> on_call) { on_call_ = std::move(on_call); }
  // True: the packet is lost.
  void set_drop(std::function<bool(const FakePacket&)> drop) { drop_ = std::move(drop); }
  void set_loss(uint32_t thousandths) { options_.loss = thousandths; }
  void set_takes_back() { options_.takes_back = true; }
  // A link that is down loses every packet; devices hear of it as kPortError, kPortActive.
  void SetLink(std::string_view device, bool up);
  // Packets to the old one find nobody; devices hear of it as kAddressChange.
  void SetGid(std::string_view device, internal::FabricGid gid);
  void PushEvent(std::string_view device, internal::FabricEvent event);
  internal::FabricGid gid(std::string_view device) const;
  // Bytes of all receives that are posted, shared ones included.
  uint64_t receive_bytes_posted() const { return receive_bytes_; }
  size_t queue_pairs() const { return qps_.size(); }
  size_t objects() const { return objects_; }

  // --- For the parts ---
  struct Nic {
    std::string name;
    internal::FabricGid gid = {};
    bool up = true;
    uint32_t next_number = 0x11;
    std::vector<uint32_t> free_numbers;
    std::map<uint32_t, FakeQp*> qps;
    std::vector<FakeDevice*> devices;
  };
  FakeHost& host() { return host_; }
  SimRandom& random() { return random_; }
  const FakeFabricOptions& options() const { return options_; }
  FakeStats& counts() { return stats_; }
  void Violate(std::string what) { violations_.push_back(std::move(what)); }
  // Counts the call; 0, or the error that it must fail with.
  int Fault(FakeCall call);
  // Runs `action` on the queue pair later, if it is still there.
  void Later(uint64_t serial, int64_t delay_ns, std::function<void(FakeQp&)> action);
  int64_t Delay();
  uint64_t AddQp(Nic& nic, FakeQp& qp, uint32_t* number);
  void RemoveQp(Nic& nic, uint64_t serial, uint32_t number);
  FakeQp* FindQp(uint64_t serial);
  void Transmit(Nic& from, FakePacket packet, int64_t* last_due_ns);
  void CountReceiveBytes(int64_t change) { receive_bytes_ += static_cast<uint64_t>(change); }
  void CountObjects(int change) { objects_ += static_cast<size_t>(change); }
  uint32_t NewKey() { return next_key_ += 0x101; }

 private:
  struct Failure {
    uint64_t nth = 0;
    int error = 0;
  };

  Nic* FindNic(std::string_view name);
  const Nic* FindNic(std::string_view name) const;
  void Deliver(const FakePacket& packet);

  FakeHost& host_;
  SimRandom random_;
  FakeFabricOptions options_;
  std::vector<std::unique_ptr<Nic>> nics_;
  std::map<uint64_t, FakeQp*> qps_;  // by serial number, which is never used again
  uint64_t next_serial_ = 1;
  uint32_t next_key_ = 0x1000;
  FakeStats stats_;
  std::vector<std::string> violations_;
  Failure fail_any_;
  std::array<Failure, kFakeCalls> fail_;
  std::function<bool(const FakePacket&)> drop_;
  std::function<void(FakeCall)> on_call_;
  uint64_t receive_bytes_ = 0;
  size_t objects_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_FAKE_FABRIC_H_
