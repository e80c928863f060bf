// PeerSite: a program with a set of peers, for tests: what its set has told it, and the messages
// that it has received. Endpoints that have ended stay with it, so that all that had come is read,
// unless it is told to drop them.
//
// Owns its set. The loop's thread.
#ifndef PENSTOCK_TESTS_TESTING_PEER_SITE_H_
#define PENSTOCK_TESTS_TESTING_PEER_SITE_H_

#include <penstock/export.h>
#include <penstock/rdma_peers.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rdma/peer_set.h"
#include "testing/gate_kit.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class PeerSite {
 public:
  PeerSite(Loop& loop, RdmaPeerSetOptions options, uint8_t incarnation)
      : set_(std::make_shared<PeerSet>(
            loop, std::move(options),
            [this](const std::string&, RdmaEndpoint& endpoint) { OnOpen(endpoint); },
            [this](const std::string&, std::unique_ptr<RdmaEndpoint> endpoint, absl::Status why) {
              OnEnd(std::move(endpoint), std::move(why));
            },
            RepeatedByte(incarnation))) {}
  ~PeerSite() { set_->Release(); }
  PeerSite(const PeerSite&) = delete;
  PeerSite& operator=(const PeerSite&) = delete;

  PeerSet& set() { return *set_; }

  int opened = 0;
  std::vector<absl::Status> ends{};
  std::vector<std::string> received{};
  bool drops_ended = false;
  std::function<void()> at_open{};
  std::function<void()> at_end{};

 private:
  void OnOpen(RdmaEndpoint& endpoint) {
    ++opened;
    Receive(endpoint);
    if (at_open) at_open();
  }
  void OnEnd(std::unique_ptr<RdmaEndpoint> endpoint, absl::Status why) {
    ends.push_back(std::move(why));
    if (!drops_ended) ended_.push_back(std::move(endpoint));
    endpoint = nullptr;
    if (at_end) at_end();
  }
  void Receive(RdmaEndpoint& endpoint) {
    endpoint.Receive([this, &endpoint](absl::StatusOr<BufferChain> message) {
      if (!message.ok()) return;
      received.push_back(message->ToString());
      Receive(endpoint);
    });
  }

  std::vector<std::unique_ptr<RdmaEndpoint>> ended_;
  std::shared_ptr<PeerSet> set_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_PEER_SITE_H_
