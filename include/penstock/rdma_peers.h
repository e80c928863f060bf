// RdmaPeerSet: one endpoint to each peer, kept up: for programs that connect to each other, both
// ways, at any time, and that are started again now and then.
//
//   RdmaPeerSet peers(loop, {.name = "10.0.0.1:7000"}, on_open, on_end);
//   auto listener = Listener::Listen(loop, address, {}, [&](StreamPtr stream) {
//     peers.Accept(std::move(stream));
//   });
//   peers.Dial("10.0.0.2:7000", connect);
//   peers.Send("10.0.0.2:7000", std::move(message), done);
//
// Names
//   A peer is what its set is named (RdmaPeerSetOptions::name), which it says in its first message;
//   the others dial it by that name, and it listens there. A peer without one is known by its
//   incarnation, as "incarnation 0123..": it cannot be dialled, and a process of RdmaEndpoint::
//   Connect alone has one for all its endpoints. Names are believed: where peers are not trusted,
//   let Accept have the name that sealing has proved.
// One endpoint
//   When both sides dial, one stream lives on, in every order of events: that of the side whose set
//   has the smaller incarnation (16 random bytes of each set), if both had said HELLO. The other is
//   refused. Work never waits in an endpoint that may lose: it stays with the peer, in order, until
//   one has opened, and runs once.
// Restart
//   When a peer of the same name comes with another incarnation, it has been started again: the
//   endpoint that it had ends at once, what was posted to it in doubt. When it comes with the same
//   one although its endpoint is open here, that is asked first, and replaced if it does not answer
//   within `probe_max`.
// Redial
//   An endpoint that ends is dialled again as long as Dial asks for the peer: after a pause, longer
//   each time until bytes have moved.
// Callbacks
//   Each runs on the loop's thread, never inside a call (I3). All may destroy the set, which leaves
//   those that have not run unrun.
#ifndef PENSTOCK_RDMA_PEERS_H_
#define PENSTOCK_RDMA_PEERS_H_

#include <penstock/buffer.h>
#include <penstock/export.h>
#include <penstock/loop.h>
#include <penstock/rdma.h>
#include <penstock/stream.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"

PENSTOCK_BEGIN_NAMESPACE

namespace internal {
class PeerSet;
}  // namespace internal

struct RdmaPeerSetOptions {
  // That the others dial this set by: 1 to 256 printable characters of ASCII; empty: none do.
  std::string name;
  // Of each endpoint. `queue_operations_max` and `queue_bytes_max` bound what waits for a peer,
  // too.
  RdmaOptions endpoint;
  // Before an attempt that follows on one that failed, or on an endpoint that ended: half to all of
  // `pause_min`, by chance, of twice as much each time, up to `pause_max`; longer where the peer
  // has asked for more, but by its wish no longer than a minute. From the beginning again when
  // bytes had moved.
  absl::Duration pause_min = absl::Milliseconds(100);
  absl::Duration pause_max = absl::Seconds(30);
  // That a connector has to make its stream.
  absl::Duration connect_max = absl::Seconds(30);
  // That an endpoint has to answer whether it is alive, when its peer comes again; it ends when it
  // has not, even if the peer has gone again meanwhile.
  absl::Duration probe_max = absl::Seconds(2);
  // Peers that are known: dialled, opening or open. Beyond that, those that come are told to come
  // again after `retry_after`, at most an hour.
  uint32_t peers_max = 1024;
  absl::Duration retry_after = absl::Seconds(1);
  // Accepted streams that have not said HELLO, or that are being told that they are refused.
  // More are reset.
  uint32_t accepts_max = 256;
};

// Figures since the set was made.
struct RdmaPeerSetStats {
  uint32_t peers = 0;       // that are known
  uint32_t open = 0;        // endpoints
  uint64_t attempts = 0;    // to dial
  uint64_t superseded = 0;  // streams of peers that were refused, as another one lives on
  uint64_t restarts = 0;    // peers that came with another incarnation
  uint64_t probes = 0;      // endpoints that were asked whether they are alive
  uint64_t refused = 0;     // streams, beyond peers_max or accepts_max
};

// Loop's thread; must not outlive the loop.
class PENSTOCK_EXPORT RdmaPeerSet {
 public:
  using Connector = RdmaDial::Connector;
  using DoneCallback = RdmaEndpoint::DoneCallback;
  // An endpoint of `peer` is open. It is the set's, and stays until EndCallback gives it away. What
  // waited to be sent has been handed to it.
  using OpenCallback = absl::AnyInvocable<void(const std::string& peer, RdmaEndpoint& endpoint)>;
  // The endpoint of `peer` has ended, `why`. The callbacks of its operations have run; what its
  // peer had sent can still be received. The next one opens afterwards. Without an endpoint: a call
  // of this set's own has failed, and the peer is not dialled any more, because waiting would not
  // mend it (INVALID_ARGUMENT, PERMISSION_DENIED and the like); what waited for it has failed. How
  // a stream ends that was accepted never has that effect.
  using EndCallback = absl::AnyInvocable<void(
      const std::string& peer, std::unique_ptr<RdmaEndpoint> endpoint, absl::Status why)>;

  // A set whose options are none answers everything with INVALID_ARGUMENT.
  RdmaPeerSet(Loop& loop, RdmaPeerSetOptions options, OpenCallback on_open, EndCallback on_end);
  // Its endpoints go; the peers see that they have gone.
  ~RdmaPeerSet();
  RdmaPeerSet(const RdmaPeerSet&) = delete;
  RdmaPeerSet& operator=(const RdmaPeerSet&) = delete;

  // Asks for an endpoint to `peer` from now on: `connect` makes a stream to it whenever there is
  // none. ALREADY_EXISTS when asked for already, INVALID_ARGUMENT for a name that is none or the
  // set's own, RESOURCE_EXHAUSTED beyond `peers_max`.
  absl::Status Dial(std::string_view peer, Connector connect);
  // Takes that back, and ends its endpoint now; RdmaEndpoint::Close, before, does so in order. What
  // has not been handed to an endpoint ends with Cancelled, kNeverPosted. EndCallback runs as ever.
  void Forget(std::string_view peer);
  // A stream of a peer, of which nothing has been read. `peer`: who it is, whatever it says; empty:
  // who it says it is.
  void Accept(StreamPtr stream, std::string_view peer = {});

  // As RdmaEndpoint::Send, to the endpoint that is open, or else to the next one. NOT_FOUND,
  // kNeverPosted, for a peer that is neither dialled nor here. What was handed to an endpoint ends
  // with that one.
  void Send(std::string_view peer, BufferChain message, DoneCallback done = nullptr,
            absl::Duration wait_max = absl::InfiniteDuration());
  // Null: none is open. One that has ended is not, from the moment on: in the callbacks of its
  // operations Send waits for the next one.
  RdmaEndpoint* Find(std::string_view peer) const;

  RdmaPeerSetStats stats() const;

 private:
  std::shared_ptr<internal::PeerSet> core_;
};

PENSTOCK_END_NAMESPACE

#endif  // PENSTOCK_RDMA_PEERS_H_
