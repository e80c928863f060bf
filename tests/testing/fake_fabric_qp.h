// FakeQp: a queue pair of a FakeFabric: its states, and both ends of the protocol of a reliable
// connection. As requester it numbers messages, keeps them until they are acknowledged, and sends
// them again from the oldest after a timeout; as responder it takes them in the order of their
// numbers, once. One thread.
#ifndef PENSTOCK_TESTS_TESTING_FAKE_FABRIC_QP_H_
#define PENSTOCK_TESTS_TESTING_FAKE_FABRIC_QP_H_

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "rdma/fabric.h"
#include "testing/fake_fabric.h"
#include "testing/fake_fabric_device.h"

namespace penstock::testing {

class FakeQp final : public internal::FabricQp {
 public:
  FakeQp(FakeDevice& device, const internal::FabricQpOptions& options);
  ~FakeQp() override;

  uint32_t number() const override { return number_; }
  internal::FabricQpLimits limits() const override;
  absl::Status ToInit(const internal::FabricInit& init) override;
  absl::Status ToReadyToReceive(const internal::FabricPath& path) override;
  absl::Status ToReadyToSend(const internal::FabricTiming& timing) override;
  absl::Status ToError() override;
  int PostSends(std::span<const internal::FabricSend> sends, size_t* posted) override;
  int PostReceive(const internal::FabricReceive& receive) override;

  // --- For the fabric ---
  FakeDevice& device() { return device_; }
  void OnPacket(const FakePacket& packet);
  // A completion was polled that frees room.
  void GiveRoom(uint32_t sends, uint32_t receives);
  // The completion queue is lost, and this with it.
  void Lose();
  // Whether something that is posted lies in memory with the key.
  bool Uses(uint32_t key) const;

 private:
  enum class State : uint8_t { kReset, kInit, kReadyToReceive, kReadyToSend, kError };

  // A send as the device keeps it.
  struct Request {
    uint64_t id = 0;
    internal::FabricOp op = internal::FabricOp::kSend;
    std::vector<internal::FabricPart> parts;  // none when inlined
    std::string inlined;
    uint64_t remote_address = 0;
    uint32_t remote_key = 0;
    uint32_t immediate = 0;
    bool signalled = true;
    bool solicited = false;
    bool fenced = false;
    bool numbered = false;
    bool answered = false;  // a read, whose bytes are here
    uint32_t size = 0;
    uint32_t psn = 0;
    uint32_t count = 1;
  };

  FakeFabric& fabric() { return device_.fabric(); }
  absl::Status Modify(FakeCall call, bool allowed, State next, std::string_view name);
  int Check(const internal::FabricSend& send) const;
  Request Taken(const internal::FabricSend& send) const;

  void Begin();

  // Requester.
  void Pump();
  bool SendRequest(Request& request);
  void SendAgain();
  uint32_t ReadsOut() const;
  void OnAck(uint32_t psn);
  void OnReadResponse(const FakePacket& packet);
  void OnNak(const FakePacket& packet);
  bool InFlight(uint32_t psn) const;
  void CompleteFront(internal::FabricOutcome outcome);
  void ArmTimer();
  void OnTimer();

  // Responder.
  void OnRequest(const FakePacket& packet);
  void Execute(const FakePacket& packet);
  bool TakeReceive(FakeReceive* receive);
  bool Land(const FakePacket& packet);
  void AnswerRead(const FakePacket& packet);
  void Answer(FakePacketKind kind, uint32_t psn,
              internal::FabricOutcome outcome = internal::FabricOutcome::kOk);
  void Refuse(const FakePacket& packet, internal::FabricOutcome outcome);

  // Scatters into memory that the device may write.
  bool Scatter(const std::vector<internal::FabricPart>& parts, std::string_view bytes) const;
  void Send(FakePacket packet);
  void Fail();
  void Flush();

  FakeDevice& device_;
  const internal::FabricQpOptions options_;
  const uint32_t inlined_max_;
  uint32_t number_ = 0;
  uint64_t serial_ = 0;
  State state_ = State::kReset;
  internal::FabricInit init_;
  internal::FabricPath path_;
  internal::FabricTiming timing_;
  int64_t last_due_ns_ = 0;
  bool flushing_ = false;

  std::deque<Request> sends_;
  size_t sent_ = 0;  // of sends_, from the front
  uint32_t send_room_used_ = 0;
  uint32_t unreported_ = 0;  // ended without a completion since the last one
  uint32_t next_psn_ = 0;
  uint8_t retries_ = 0;
  uint8_t rnr_retries_ = 0;
  bool waiting_ = false;  // for the peer to have a receive
  bool timer_ = false;
  int64_t progress_ns_ = 0;

  std::deque<FakeReceive> receives_;
  uint32_t receive_room_used_ = 0;
  uint32_t expected_psn_ = 0;
  bool nak_sent_ = false;
  bool heard_ = false;
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_FAKE_FABRIC_QP_H_
