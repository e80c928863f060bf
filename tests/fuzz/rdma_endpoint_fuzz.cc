// An endpoint, over a stream and a simulated device, and everything that can happen to it: what its
// program asks for, what the peer says by either, what the device does and fails to do, time. It
// posts nothing before its gate is open and nothing that verbs leave undefined, keeps its bounds,
// ends once, and runs each callback once, outside the call that started it.
#include <penstock/rdma.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "fuzz/replay.h"
#include "open_stream.h"
#include "rdma/lane_device.h"
#include "rdma_peer.h"
#include "testing/fake_fabric.h"
#include "testing/sim_world.h"

namespace penstock::internal {
namespace {

using testing::FakeCall;

void ExpectOfEndpoint(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "endpoint: %s\n", what);
  std::abort();
}

constexpr uint32_t kOperationsMax = 8;
constexpr uint64_t kBytesMax = 128 * 1024;
// What the peer may read by itself.
constexpr size_t kLarge = 40 * 1024;

// The input: a byte of options, then one for each step and what the step takes.
class EndpointSession {
 public:
  explicit EndpointSession(uint8_t options)
      : world_(/*seed=*/1),
        host_(world_),
        pool_(world_.NewPool({})),
        loop_(NewLoop()),
        fabric_(host_, 1 + options / 64),
        wire_(std::make_shared<OpenStream::Wire>()) {
    const bool active = (options & 1) != 0;
    peer_ = std::make_unique<FuzzPeer>(fabric_, active ? GateRole::kPassive : GateRole::kActive,
                                       (options & 2) == 0);
    RdmaDeviceOptions device;
    device.name = "fake0";
    device.receives = 64;
    device.receive_size = 512;
    device.endpoint_receives = 8;
    device_ = *LaneDevice::Open(loop_->core(), fabric_, device);
    fabric_.set_drop([this](const testing::FakePacket& packet) { return Loses(packet); });
    RdmaOptions own;
    if ((options & 4) == 0) own.device = device_;
    own.unsealed_lanes = true;
    own.queue_operations_max = kOperationsMax;
    own.queue_bytes_max = kBytesMax;
    own.message_max = 8 * 1024;
    own.receive_depth = 8;
    own.read_depth = 2;
    own.rendezvous_min = 1024;
    auto stream = std::make_unique<OpenStream>(*loop_, wire_);
    endpoint_ = active ? RdmaEndpoint::Connect(std::move(stream), std::move(own))
                       : RdmaEndpoint::Accept(std::move(stream), std::move(own));
    endpoint_->NotifyOpen(Outcome());
    Receive();
    destroys_ = (options & 8) != 0;
    if ((options & 16) == 0) Converse();
  }

  void Step(FuzzBytes& bytes) {
    const uint8_t kind = bytes.Next();
    switch (kind % 8) {
      case 0:
        Converse();
        break;
      case 1:
        Hear(peer_->Control(bytes));
        break;
      case 2:
        Hear(FuzzPeer::Framed(peer_->Data(bytes, false, peer_->region())));
        break;
      case 3:
        peer_->Post(peer_->Data(bytes, true, peer_->region()));
        break;
      case 4:
        if (endpoint_ != nullptr) Ask(kind / 8, bytes);
        break;
      case 5:
        Trouble(kind / 8, bytes);
        break;
      case 6:
        Pass(absl::Microseconds(int64_t{1} << kind / 8 % 24));
        break;
      default:
        peer_->PostOneSided(bytes, peer_->region());
        break;
    }
    Pass(absl::Microseconds(10));
    Check();
  }

  // Everything ends, by its destruction or by the end of its stream, and nothing is left.
  void End() {
    losses_ = 0;
    fabric_.SetLink("fake0", true);
    if (destroys_) endpoint_ = nullptr;
    if (endpoint_ != nullptr && !receiving_) Receive();
    if (wire_->end.ok()) wire_->end = absl::UnavailableError("reset");
    Pass(absl::Seconds(10));
    if (endpoint_ != nullptr) {
      ExpectOfEndpoint(!receiving_, "does not tell of its end");
      for (const int count : outcomes_) {
        ExpectOfEndpoint(count == 1, "an operation without an outcome");
      }
    }
    regions_.clear();
    endpoint_ = nullptr;
    Pass(absl::Seconds(10));
    Check();
    peer_ = nullptr;
    device_ = nullptr;
    ExpectOfEndpoint(fabric_.objects() == 0, "something of the device is left");
    ExpectOfEndpoint(fabric_.receive_bytes_posted() == 0, "receives are left");
    loop_ = nullptr;
    ExpectOfEndpoint(pool_->Stats().live == 0, "buffers are left");
  }
  bool was_open() const { return was_open_; }
  bool was_over_device() const { return was_over_device_; }

 private:
  std::unique_ptr<Loop> NewLoop() {
    LoopOptions options;
    options.pool = pool_.get();
    return *world_.NewLoop(std::move(options));
  }

  // Counts how often each runs.
  Stream::DoneCallback Outcome() {
    outcomes_.push_back(0);
    return [this, number = outcomes_.size() - 1](absl::Status) { Count(number); };
  }
  void Count(size_t number) {
    ExpectOfEndpoint(!in_call_, "a callback inside a call");
    ExpectOfEndpoint(++outcomes_[number] == 1, "an operation with two outcomes");
  }
  void Receive() {
    endpoint_->Receive([this](absl::StatusOr<BufferChain> message) {
      ExpectOfEndpoint(!in_call_, "a message inside a call");
      if (!message.ok()) {
        receiving_ = false;
      } else if (destroy_in_callback_) {
        endpoint_ = nullptr;
      } else {
        Receive();
      }
    });
    receiving_ = true;
  }

  // What the endpoint has said reaches the peer, and the answer the endpoint.
  void Converse() {
    Hear(peer_->Listen(std::exchange(wire_->said, {})));
    Pass(absl::Microseconds(100));
    Hear(peer_->Listen(std::exchange(wire_->said, {})));
  }
  void Hear(std::string bytes) {
    if (damage_ != 0 && !bytes.empty()) {
      char& byte = bytes[damage_ % bytes.size()];
      byte = static_cast<char>(byte ^ std::exchange(damage_, 0));
    }
    wire_->incoming += bytes;
  }

  void Ask(int what, FuzzBytes& bytes) {
    in_call_ = true;
    const uint8_t sixteenths = bytes.Next();
    const size_t size = sixteenths < 240 ? size_t{sixteenths} * 16 : kLarge;
    const bool limited = (size & 16) != 0;
    const absl::Duration wait = limited ? absl::Milliseconds(size) : absl::InfiniteDuration();
    switch (what % 14) {
      case 0:
        endpoint_->Send(Chain(size), Outcome(), wait);
        break;
      case 1:
        endpoint_->Write(remote_, bytes.Next(), Chain(size), Outcome(), wait);
        break;
      case 2:
        Read(bytes.Next(), size, wait);
        break;
      case 3:
        endpoint_->WriteThenSend(remote_, bytes.Next(), Chain(size), Chain(8), Outcome(), wait);
        break;
      case 4:
        Expose(size);
        break;
      case 5:
        if (!regions_.empty()) regions_.back().region.Revoke(Outcome());
        break;
      case 6:
        if (!regions_.empty()) regions_.pop_back();
        break;
      case 7:
        AwaitRegion();
        break;
      case 8:
        endpoint_->Close(Outcome());
        break;
      case 9:
        endpoint_->Abort();
        break;
      case 10:
        if (!receiving_) Receive();
        break;
      case 11:
        endpoint_->CancelReceive();
        break;
      case 12:
        destroy_in_callback_ = true;
        break;
      default:
        endpoint_ = nullptr;
        break;
    }
    in_call_ = false;
  }
  BufferChain Chain(size_t size) {
    return BufferChain(*loop_->pool().Copy(std::string(size, 'e')));
  }
  void Read(uint64_t offset, uint64_t size, absl::Duration wait) {
    outcomes_.push_back(0);
    endpoint_->Read(
        remote_, offset, size,
        [this, size, number = outcomes_.size() - 1](absl::StatusOr<BufferChain> bytes) {
          Count(number);
          ExpectOfEndpoint(!bytes.ok() || bytes->size() == size, "another read than was asked for");
        },
        wait);
  }
  void AwaitRegion() {
    outcomes_.push_back(0);
    endpoint_->AwaitRegion([this, number = outcomes_.size() - 1](auto region) {
      Count(number);
      if (region.ok()) remote_ = *region;
    });
  }
  void Expose(size_t size) {
    Exposed one;
    one.memory = std::make_unique<char[]>(size);
    auto region = endpoint_->Expose({one.memory.get(), size}, RdmaAccess::kReadWrite);
    if (!region.ok()) return;
    one.region = *std::move(region);
    regions_.push_back(std::move(one));
  }

  void Trouble(int what, FuzzBytes& bytes) {
    static constexpr std::array kCalls = {FakeCall::kRegister,  FakeCall::kCreateQp,
                                          FakeCall::kToInit,    FakeCall::kToReadyToReceive,
                                          FakeCall::kToError,   FakeCall::kPostSend,
                                          FakeCall::kArm,       FakeCall::kToReadyToSend,
                                          FakeCall::kPoll,      FakeCall::kPostShared,
                                          FakeCall::kTakeEvents};
    static constexpr std::array kEvents = {
        FabricEventKind::kQpFatal,     FabricEventKind::kPortError, FabricEventKind::kPortActive,
        FabricEventKind::kDeviceFatal, FabricEventKind::kSrqError,  FabricEventKind::kCqError};
    const uint8_t more = bytes.Next();
    switch (what % 9) {
      case 0:
        fabric_.FailNth(kCalls[more % kCalls.size()], 1 + more / 64, more % 2 == 0 ? EIO : ENOMEM);
        break;
      case 1:
        fabric_.SetLink("fake0", more % 2 == 0);
        break;
      case 2:
        fabric_.PushEvent(
            "fake0", {.kind = kEvents[more % kEvents.size()], .owner = 1 + more / 64u, .port = 1});
        break;
      case 3:
        losses_ = more % 16;
        break;
      case 4:
        wire_->stalled = !wire_->stalled;
        break;
      case 5:
        if (wire_->end.ok()) {
          wire_->end = more % 2 == 0 ? absl::OutOfRangeError("end of stream")
                                     : absl::UnavailableError("reset");
        }
        break;
      case 6:
        damage_ = more;
        break;
      case 7:
        piece_ = 1 + more;
        break;
      default:
        Hear(std::string(more, static_cast<char>(bytes.Next())));
        break;
    }
  }

  void Pass(absl::Duration time) {
    world_.Touch(*loop_);
    if (wire_->there) wire_->Turn(piece_);
    world_.Run([] { return false; }, time);
    for (int turns = 0; turns < 64 && wire_->there; ++turns) {
      wire_->Turn(piece_);
      world_.Touch(*loop_);
      world_.Run([] { return false; }, absl::Microseconds(1));
      if (wire_->incoming.empty() || !wire_->read) break;
    }
  }

  // Every packet, when it leaves.
  bool Loses(const testing::FakePacket& packet) {
    if (endpoint_ != nullptr) was_open_ = was_open_ || endpoint_->stats().open;
    if (packet.kind == testing::FakePacketKind::kRequest && packet.from == fabric_.gid("fake0")) {
      ExpectOfEndpoint(was_open_, "work is posted before the gate is open");
      ExpectOfEndpoint(peer_->lane_up(), "work is posted before the peer is ready");
    }
    return losses_ > 0 && losses_-- > 0;
  }

  void Check() {
    for (const std::string& what : fabric_.violations()) ExpectOfEndpoint(false, what.c_str());
    for (const std::string& what : world_.errors()) ExpectOfEndpoint(false, what.c_str());
    if (endpoint_ == nullptr) return;
    const RdmaStats stats = endpoint_->stats();
    ExpectOfEndpoint(stats.operations_queued <= kOperationsMax, "too many operations are queued");
    ExpectOfEndpoint(stats.bytes_queued <= kBytesMax, "too many bytes are queued");
    ExpectOfEndpoint(!stats.open || !closed_, "opens again");
    was_open_ = was_open_ || stats.open;
    was_over_device_ = was_over_device_ || stats.over_device;
    closed_ = closed_ || (was_open_ && !stats.open);
  }

  struct Exposed {
    std::unique_ptr<char[]> memory;
    RdmaRegion region;  // goes first
  };

  testing::SimWorld world_;
  testing::SimHost host_;
  std::unique_ptr<BufferPool> pool_;
  std::unique_ptr<Loop> loop_;
  testing::FakeFabric fabric_;
  std::shared_ptr<OpenStream::Wire> wire_;
  std::unique_ptr<FuzzPeer> peer_;
  std::shared_ptr<RdmaDevice> device_;
  std::vector<Exposed> regions_;
  std::unique_ptr<RdmaEndpoint> endpoint_;
  std::deque<int> outcomes_;
  RdmaRemoteRegion remote_;
  size_t piece_ = 4096;
  uint8_t damage_ = 0;
  int losses_ = 0;
  bool destroys_ = false;
  bool destroy_in_callback_ = false;
  bool receiving_ = false;
  bool in_call_ = false;
  bool was_open_ = false;
  bool was_over_device_ = false;
  bool closed_ = false;
};

// Sessions that came so far.
int sessions_open = 0;
int sessions_over_device = 0;

}  // namespace
}  // namespace penstock::internal

extern "C" const char* MissedByCorpus() {
  std::printf("%d sessions opened, %d of them over the device\n", penstock::internal::sessions_open,
              penstock::internal::sessions_over_device);
  if (penstock::internal::sessions_open < 32) return "too few sessions open";
  return penstock::internal::sessions_over_device < 24 ? "too few go over the device" : "";
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > 512) return 0;
  penstock::internal::FuzzBytes bytes({reinterpret_cast<const char*>(data), size});
  penstock::internal::EndpointSession session(bytes.Next());
  while (!bytes.empty()) session.Step(bytes);
  session.End();
  penstock::internal::sessions_open += session.was_open() ? 1 : 0;
  penstock::internal::sessions_over_device += session.was_over_device() ? 1 : 0;
  return 0;
}
