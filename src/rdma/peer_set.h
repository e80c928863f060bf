// PeerSet: what RdmaPeerSet promises: its peers by name, what came and has no name yet, and the
// callbacks that belong to no endpoint.
//
// Shared by its RdmaPeerSet, which is its owner, and for the length of a call by whatever runs in
// it. Loop's thread. Owns its links, and endpoints that have not said HELLO or have been refused;
// bounded (I9).
#ifndef PENSTOCK_RDMA_PEER_SET_H_
#define PENSTOCK_RDMA_PEER_SET_H_

#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/rdma.h>
#include <penstock/rdma_peers.h>

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "rdma/control_message.h"
#include "rdma/peer_link.h"
#include "rdma/work_queue.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class PeerSet final : public std::enable_shared_from_this<PeerSet>, private PeerLink::Owner {
 public:
  // `incarnation`: random.
  PeerSet(Loop& loop, RdmaPeerSetOptions options, RdmaPeerSet::OpenCallback on_open,
          RdmaPeerSet::EndCallback on_end, const Bytes16& incarnation);
  // The RdmaPeerSet goes.
  void Release();

  absl::Status Dial(std::string_view peer, RdmaPeerSet::Connector connect);
  void Forget(std::string_view peer);
  void Accept(StreamPtr stream, std::string_view peer);
  void Send(std::string_view peer, BufferChain message, RdmaPeerSet::DoneCallback done,
            absl::Duration wait_max);
  RdmaEndpoint* Find(std::string_view peer) const;
  RdmaPeerSetStats stats() const;

 private:
  using Links = std::map<std::string, std::shared_ptr<PeerLink>, std::less<>>;
  struct Arriving {
    std::unique_ptr<RdmaEndpoint> endpoint;
    std::string name;  // that Accept was told
  };
  // Waits for its peer to take what it was told.
  struct Parting {
    std::unique_ptr<RdmaEndpoint> endpoint;
    std::unique_ptr<Timer> timer;
    bool came;  // from outside: calls of the set's own take no place of those
  };

  const RdmaPeerSetOptions& options() const override { return options_; }
  const Bytes16& incarnation() const override { return incarnation_; }
  RdmaPeerSetStats& counts() override { return counts_; }
  void OnOpen(PeerLink& link, RdmaEndpoint& endpoint) override;
  void OnEnd(PeerLink& link, std::unique_ptr<RdmaEndpoint> endpoint, absl::Status why) override;
  void OnIdle(PeerLink& link) override;
  void Part(std::unique_ptr<RdmaEndpoint> endpoint) override;
  void Fail(WorkList works, absl::Status status) override;

  void OnHello(uint64_t number);
  void OnArrivingEnd(uint64_t number);
  // Null: there are too many.
  std::shared_ptr<PeerLink> LinkFor(std::string_view peer);
  void RunFailed();

  Loop& loop_;
  const RdmaPeerSetOptions options_;
  const absl::Status problem_;  // of the options
  RdmaPeerSet::OpenCallback on_open_;
  RdmaPeerSet::EndCallback on_end_;
  const Bytes16 incarnation_;
  bool released_ = false;
  Links links_;
  std::map<uint64_t, Arriving> arriving_;
  uint64_t last_number_ = 0;
  std::list<Parting> parting_;
  WorkList failed_;
  std::unique_ptr<Timer> turn_;  // for these
  RdmaPeerSetStats counts_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_PEER_SET_H_
