// SimWire: the network and the kernel's sockets of a SimWorld. A link joins two sockets by two
// half-pipes, each with a bounded send side, segments in flight that take time, and a bounded
// receive buffer. Bytes of one direction never overtake each other; what may happen to them is
// SimFaults. Ends behave as TCP's do on Linux: a FIN comes after the bytes before it, a reset loses
// what is in flight, is reported once, and leaves what had arrived readable.
//
// Links are kept after both ends are closed: they are the truth that tests compare streams with.
#ifndef PENSTOCK_TESTS_TESTING_SIM_WIRE_H_
#define PENSTOCK_TESTS_TESTING_SIM_WIRE_H_

#include <penstock/address.h>
#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "testing/sim_world.h"

namespace penstock::testing {

struct SimSegment {
  enum class Kind : uint8_t { kData, kFin, kReset };
  Kind kind = Kind::kData;
  int64_t arrives_ns = 0;
  std::string bytes = {};
};

// One end of a link.
struct SimSide {
  int fd = -1;
  bool connected = false;
  bool closed = false;  // the socket is gone
  bool dead = false;    // a reset has come, or the attempt has failed
  int error = 0;        // not yet reported
  bool shut_read = false;
  bool wants_room = false;  // a send found none: an event is due when there is
  // Towards the other side.
  std::deque<SimSegment> flying;
  size_t flying_bytes = 0;
  int64_t last_arrival_ns = 0;
  bool fin_sent = false;
  bool reset_sent = false;
  uint64_t sent = 0;  // bytes taken from the socket's owner
  // From the other side.
  std::string arrived;
  size_t arrived_head = 0;
  bool fin_arrived = false;
  uint64_t received = 0;  // bytes handed to the socket's owner
  // The owner may see an error here that no call of either side explains.
  bool failed = false;

  size_t waiting() const { return arrived.size() - arrived_head; }
};

struct SimLink {
  uint64_t id = 0;
  SocketAddress client;
  SocketAddress server;
  std::array<SimSide, 2> sides;  // 0: the one that connected
  int64_t stalled_until_ns = 0;
};

class SimWire {
 public:
  explicit SimWire(SimWorld& world) : world_(world) {}

  // --- The kernel's calls; results as of Sys ---
  int Listen(const SocketAddress& address, int backlog, bool reuse_port);
  int Connect(const SocketAddress& address);
  int ConnectResult(int fd);
  int Accept(int listener, SocketAddress* peer);
  int64_t Receive(int fd, void* data, size_t size);
  int64_t Send(int fd, std::span<const iovec> parts);
  int Shutdown(int fd, int how);
  void Close(int fd, bool reset);
  SocketAddress LocalAddress(int fd) const;
  // A stream's, not a listener's or another descriptor.
  bool IsSocket(int fd) const {
    return static_cast<size_t>(fd) < sockets_.size() &&
           sockets_[static_cast<size_t>(fd)].link != nullptr;
  }
  // Somebody polls for room to send: an event is due when there is some.
  void WantRoom(int fd) { SideOf(fd).wants_room = true; }
  // The events that hold now.
  uint32_t Ready(int fd) const;

  // --- For tests ---
  // The link of the client at `address`; null when there is none.
  const SimLink* LinkOf(const SocketAddress& client) const;
  const std::vector<std::unique_ptr<SimLink>>& links() const { return links_; }
  // Both ends get a reset.
  void Reset(uint64_t link);
  // Faults are over: stalled links go on.
  void Heal();
  void set_buffers(size_t send_bytes, size_t receive_bytes) {
    send_bytes_ = send_bytes;
    receive_bytes_ = receive_bytes;
  }

 private:
  struct Listener {
    int fd = -1;
    SocketAddress address;
    size_t backlog = 0;
    std::deque<SimLink*> waiting;
  };
  struct Socket {
    SimLink* link = nullptr;
    int side = 0;
    Listener* listener = nullptr;
  };

  SimSide& SideOf(int fd) {
    const Socket& socket = sockets_[static_cast<size_t>(fd)];
    return socket.link->sides[static_cast<size_t>(socket.side)];
  }
  void Bind(int fd, Socket socket);
  size_t Room(const SimSide& side) const;
  void ArriveSyn(SimLink& link, int attempt);
  void FailConnect(SimLink& link, int error);
  void Push(SimLink& link, int from, SimSegment segment);
  void PushData(SimLink& link, int from, std::string bytes);
  // Moves what has come so far to side `to`.
  void Deliver(SimLink& link, int to);
  void DeliverReset(SimLink& link, int to);
  void SendReset(SimLink& link, int from, bool lose_flying);

  SimWorld& world_;
  size_t send_bytes_ = 64 * 1024;
  size_t receive_bytes_ = 64 * 1024;
  uint16_t next_port_ = 20'000;
  std::vector<std::unique_ptr<SimLink>> links_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::vector<Socket> sockets_;  // by descriptor
};

}  // namespace penstock::testing

#endif  // PENSTOCK_TESTS_TESTING_SIM_WIRE_H_
