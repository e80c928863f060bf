// Programs that keep endpoints to each other by RdmaPeerSet, and peers that are none, for tests.
//
// The fixture owns all; its loop is the harness's.
#ifndef PENSTOCK_TESTS_TESTING_PEER_HARNESS_H_
#define PENSTOCK_TESTS_TESTING_PEER_HARNESS_H_

#include <penstock/export.h>
#include <penstock/rdma_peers.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "testing/peer_site.h"
#include "testing/raw_peer.h"
#include "testing/rdma_pair.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {

class PeerHarness : public RdmaHarness {
 protected:
  using Site = PeerSite;

  void TearDown() override {
    raw_.clear();
    a_ = nullptr;
    b_ = nullptr;
    kept_.clear();
    streams_.clear();
    RdmaHarness::TearDown();
  }

  static RdmaPeerSetOptions Named(std::string name) {
    RdmaPeerSetOptions options;
    options.name = std::move(name);
    options.endpoint = Quiet();
    options.pause_min = absl::Milliseconds(4);
    options.pause_max = absl::Milliseconds(20);
    return options;
  }
  void MakeSites(uint8_t a = 0x10, uint8_t b = 0x20) {
    a_ = std::make_unique<Site>(loop(), Named("a"), a);
    b_ = std::make_unique<Site>(loop(), Named("b"), b);
  }
  // Streams that connectors give out.
  void Prepare(int count) {
    for (int i = 0; i < count; ++i) streams_.push_back(Pair());
  }
  StreamPair Next() {
    StreamPair pair = std::move(streams_.front());
    streams_.pop_front();
    return pair;
  }
  // To whatever is at `site` when it is called.
  RdmaPeerSet::Connector To(std::unique_ptr<Site>& site) {
    return [this, &site](RdmaDial::StreamCallback give) {
      times_.push_back(loop().now());
      if (streams_.empty() || site == nullptr) {
        return std::move(give)(absl::UnavailableError("connection refused"));
      }
      StreamPair pair = Next();
      site->set().Accept(std::move(pair.server), "");
      std::move(give)(std::move(pair.client));
    };
  }
  bool DriveJoined() {
    return Drive(
        [this] { return a_->set().Find("b") != nullptr && b_->set().Find("a") != nullptr; });
  }
  void SendTo(Site& site, std::string_view peer, std::string_view text, Fate& fate) {
    site.set().Send(peer, Chain(text), fate.OnDone(), absl::InfiniteDuration());
  }
  // A peer that is no set: named, and with this incarnation and attempt.
  std::unique_ptr<RawPeer> Come(Site& site, std::string name, uint8_t incarnation, uint64_t attempt,
                                uint32_t depth = 4) {
    StreamPair streams = Pair();
    GateOptions options = RawPeer::Options(GateRole::kActive);
    options.self = {.incarnation = RepeatedByte(incarnation), .endpoint = 1, .attempt = attempt};
    options.name = std::move(name);
    site.set().Accept(std::move(streams.server), "");
    return std::make_unique<RawPeer>(
        std::move(streams.client), options,
        GateOffer{.lanes = {},
                  .terms = {.depth = depth, .size = kStreamPieceMax, .read_depth = 2}});
  }
  bool Superseded(const RawPeer& peer) {
    const auto* reject = peer.Last<ControlReject>();
    return reject != nullptr && reject->code == RejectCode::kSuperseded;
  }

  std::deque<StreamPair> streams_;
  std::vector<absl::Time> times_;
  std::unique_ptr<Site> a_;
  std::unique_ptr<Site> b_;
  std::vector<std::unique_ptr<Site>> kept_;
  std::vector<std::unique_ptr<RawPeer>> raw_;
};

}  // namespace internal
PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_TESTS_TESTING_PEER_HARNESS_H_
