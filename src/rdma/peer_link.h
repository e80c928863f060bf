// PeerLink: one peer of a set: does what its PeerCore says, to streams, endpoints and timers.
//
// Shared by its PeerSet, the owner, and for the length of a call by whatever runs in it. Loop's
// thread. It owns the endpoints between the two sides: the current one, one whose HELLO is held,
// and those that have ended and whose callbacks have not all run. Each has a number, by which what
// comes of one that is not current any more is known. Work waits here (I9) until an endpoint has
// opened: so it is never in one that another supersedes.
#ifndef PENSTOCK_RDMA_PEER_LINK_H_
#define PENSTOCK_RDMA_PEER_LINK_H_

#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/rdma.h>
#include <penstock/rdma_peers.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rdma/backoff.h"
#include "rdma/control_message.h"
#include "rdma/endpoint_core.h"
#include "rdma/peer_set_core.h"
#include "rdma/work_queue.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

// Makes endpoints of sets, and knows what is inside.
class PeerEndpoints {
 public:
  static std::unique_ptr<RdmaEndpoint> Make(GateRole role, StreamPtr stream,
                                            const RdmaOptions& options, EndpointMember member);
  static EndpointCore& CoreOf(RdmaEndpoint& endpoint) { return *endpoint.core_; }
};

class PeerLink final : public std::enable_shared_from_this<PeerLink> {
 public:
  // The set. Each call may destroy the set, and release the link.
  class Owner {
   public:
    virtual const RdmaPeerSetOptions& options() const = 0;
    virtual const Bytes16& incarnation() const = 0;
    virtual RdmaPeerSetStats& counts() = 0;
    virtual void OnOpen(PeerLink& link, RdmaEndpoint& endpoint) = 0;
    virtual void OnEnd(PeerLink& link, std::unique_ptr<RdmaEndpoint> endpoint,
                       absl::Status why) = 0;
    // Nothing is left of it: it is to be released.
    virtual void OnIdle(PeerLink& link) = 0;
    // Keeps an endpoint that has ended, and was never open, until the peer may know it.
    virtual void Part(std::unique_ptr<RdmaEndpoint> endpoint) = 0;
    // Runs the callbacks of these in a turn of their own.
    virtual void Fail(WorkList works, absl::Status status) = 0;

   protected:
    ~Owner() = default;
  };

  PeerLink(Loop& loop, Owner& owner, std::string name);
  // The set goes.
  void Release();

  const std::string& name() const { return name_; }
  bool wanted() const { return core_.wanted(); }
  // Rather than that all of it is over.
  bool expects_endpoint() const { return core_.state() != PeerState::kIdle; }
  // Null: none is open. One that has ended is not, though its end has not been told: work would
  // come behind that, and be lost with the endpoint.
  RdmaEndpoint* open_endpoint() const;

  void Dial(RdmaPeerSet::Connector connect);
  void Forget();
  // The endpoint has its peer's HELLO, and waits for what is said to that.
  void OnHello(std::unique_ptr<RdmaEndpoint> endpoint);
  void Send(WorkList one, absl::Duration wait_max);

 private:
  struct Member {
    uint64_t number = 0;
    std::unique_ptr<RdmaEndpoint> endpoint;
  };

  void Do(PeerAction action);
  void Connect();
  void OnStream(uint64_t number, absl::StatusOr<StreamPtr> stream);
  void TakeStream();
  void Call(StreamPtr stream);
  void Pause();
  void Answer(Member member);
  void Hold();
  void Tell();
  void AtTime(absl::Duration after);
  Member Keep(std::unique_ptr<RdmaEndpoint> endpoint);
  void GiveUpCurrent(absl::StatusCode code, std::string_view why);
  void Refuse(Member member);
  void OnOpened(uint64_t number, const absl::Status& status);
  void OnEnded(uint64_t number, absl::Status why);
  void OnCurrentEnded(absl::Status why);
  void OnRetired(std::unique_ptr<RdmaEndpoint> endpoint, absl::Status why);
  void Settle();
  void FailQueue();
  absl::Status Explain(absl::StatusCode code, std::string_view why) const;
  void ArmQueueTimer();
  void OnQueueTime();

  Loop& loop_;
  Owner* owner_;  // null when released
  const std::string name_;
  PeerCore core_;
  Backoff backoff_;
  std::shared_ptr<RdmaPeerSet::Connector> connect_;  // shared with its own run
  uint64_t last_number_ = 0;
  uint64_t connecting_ = 0;                        // the number of the stream that is being made
  std::optional<absl::StatusOr<StreamPtr>> made_;  // that one
  Member current_;
  bool told_ = false;       // that it is open
  bool open_late_ = false;  // it is, and will be told when those that end have ended
  Member held_;
  Member arrived_;               // with the HELLO that is being judged
  std::vector<Member> retired_;  // were told of, and end
  absl::Duration retry_after_;   // what the peer has asked for
  absl::Status last_;            // how the last one ended
  WorkQueue queue_;
  std::unique_ptr<Timer> timer_;
  std::unique_ptr<Timer> queue_timer_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_PEER_LINK_H_
