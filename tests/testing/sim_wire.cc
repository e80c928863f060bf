#include "testing/sim_wire.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace penstock::testing {
namespace {

// A SYN that finds the backlog full is sent again, as in tcp(7), and given up after this many.
constexpr int kSynAttempts = 5;
constexpr int64_t kSynRetryNs = 1'000'000'000;

}  // namespace

void SimWire::Bind(int fd, Socket socket) {
  if (sockets_.size() <= static_cast<size_t>(fd)) sockets_.resize(static_cast<size_t>(fd) + 1);
  sockets_[static_cast<size_t>(fd)] = socket;
}

size_t SimWire::Room(const SimSide& side) const {
  return send_bytes_ - std::min(send_bytes_, side.flying_bytes);
}

// --- Listening and connecting ---

int SimWire::Listen(const SocketAddress& address, int backlog, bool reuse_port) {
  const SocketAddress bound = address.port() == 0 ? address.WithPort(next_port_++) : address;
  for (const auto& listener : listeners_) {
    if (listener->fd >= 0 && listener->address == bound && !reuse_port) return -EADDRINUSE;
  }
  const int fd = world_.OpenFd();
  if (fd < 0) return fd;
  auto listener = std::make_unique<Listener>();
  listener->fd = fd;
  listener->address = bound;
  listener->backlog = static_cast<size_t>(backlog);
  Bind(fd, Socket{.listener = listener.get()});
  listeners_.push_back(std::move(listener));
  return fd;
}

int SimWire::Connect(const SocketAddress& address) {
  const int fd = world_.OpenFd();
  if (fd < 0) return fd;
  auto owned = std::make_unique<SimLink>();
  SimLink& link = *owned;
  links_.push_back(std::move(owned));
  link.id = links_.size();
  link.client = SocketAddress::Parse("10.9.0.1:1")->WithPort(next_port_++);
  link.server = address;
  link.sides[0].fd = fd;
  Bind(fd, Socket{.link = &link, .side = 0});
  const SimFaults& faults = world_.faults();
  const int64_t arrives = world_.now_ns() + world_.Delay(faults.wire_delay_max);
  world_.Note("connect", link.id, static_cast<uint64_t>(fd));
  if (world_.random().Chance(faults.connect_refused)) {
    world_.At(arrives, [this, &link] { FailConnect(link, ECONNREFUSED); });
  } else if (world_.random().Chance(faults.connect_unreachable)) {
    world_.At(arrives, [this, &link] { FailConnect(link, EHOSTUNREACH); });
  } else if (!world_.random().Chance(faults.connect_lost)) {
    world_.At(arrives, [this, &link] { ArriveSyn(link, 0); });
  }
  return fd;
}

void SimWire::ArriveSyn(SimLink& link, int attempt) {
  SimSide& client = link.sides[0];
  if (client.closed || client.dead) return;
  std::vector<Listener*> candidates;
  for (const auto& listener : listeners_) {
    if (listener->fd >= 0 && listener->address == link.server) candidates.push_back(listener.get());
  }
  if (candidates.empty()) return FailConnect(link, ECONNREFUSED);
  Listener& listener = *candidates[world_.random().Below(candidates.size())];
  if (listener.waiting.size() >= listener.backlog) {
    if (attempt >= kSynAttempts) return FailConnect(link, ETIMEDOUT);
    world_.At(world_.now_ns() + (kSynRetryNs << attempt),
              [this, &link, attempt] { ArriveSyn(link, attempt + 1); });
    return;
  }
  listener.waiting.push_back(&link);
  link.sides[1].connected = true;
  world_.RaiseFd(listener.fd, kSimIn);
  world_.At(world_.now_ns() + world_.Delay(world_.faults().wire_delay_max), [this, &link] {
    SimSide& side = link.sides[0];
    if (side.closed || side.dead) return;
    side.connected = true;
    world_.RaiseFd(side.fd, kSimOut);
    Deliver(link, 0);
  });
}

void SimWire::FailConnect(SimLink& link, int error) {
  SimSide& client = link.sides[0];
  if (client.closed || client.dead) return;
  client.dead = true;
  client.failed = true;
  client.error = error;
  world_.RaiseFd(client.fd, kSimIn | kSimOut | kSimEnd);
}

int SimWire::ConnectResult(int fd) {
  SimSide& side = SideOf(fd);
  if (side.error != 0) return std::exchange(side.error, 0);
  return side.connected ? 0 : EINPROGRESS;
}

int SimWire::Accept(int listener_fd, SocketAddress* peer) {
  Listener& listener = *sockets_[static_cast<size_t>(listener_fd)].listener;
  if (listener.waiting.empty()) return -EAGAIN;
  if (world_.random().Chance(world_.faults().accept_no_memory)) return -ENOBUFS;
  SimLink& link = *listener.waiting.front();
  if (world_.random().Chance(world_.faults().accept_aborted)) {
    listener.waiting.pop_front();
    link.sides[1].closed = true;
    SendReset(link, 1, true);
    return -ECONNABORTED;
  }
  // As in the kernel, a descriptor is found before a connection is taken off the queue.
  const int fd = world_.OpenFd();
  if (fd < 0) return fd;
  listener.waiting.pop_front();
  link.sides[1].fd = fd;
  Bind(fd, Socket{.link = &link, .side = 1});
  *peer = link.client;
  return fd;
}

// --- Bytes ---

int64_t SimWire::Receive(int fd, void* data, size_t size) {
  SimSide& side = SideOf(fd);
  const size_t waiting = side.waiting();
  if (waiting == 0) {
    if (side.fin_arrived) return 0;
    if (side.error != 0) return -std::exchange(side.error, 0);
    if (side.dead || side.shut_read) return 0;
    return side.connected ? -EAGAIN : -ENOTCONN;
  }
  size_t taken = std::min(waiting, size);
  if (world_.random().Chance(world_.faults().short_receive)) {
    taken = world_.random().Between(1, taken);
  }
  std::memcpy(data, side.arrived.data() + side.arrived_head, taken);
  side.arrived_head += taken;
  side.received += taken;
  if (side.waiting() == 0) {
    side.arrived.clear();
    side.arrived_head = 0;
  }
  // Room for what stands at the door.
  const Socket& socket = sockets_[static_cast<size_t>(fd)];
  Deliver(*socket.link, socket.side);
  return static_cast<int64_t>(taken);
}

int64_t SimWire::Send(int fd, std::span<const iovec> parts) {
  const Socket socket = sockets_[static_cast<size_t>(fd)];
  SimSide& side = SideOf(fd);
  SimRandom& random = world_.random();
  const SimFaults& faults = world_.faults();
  if (side.error != 0) return -std::exchange(side.error, 0);
  if (side.dead || side.fin_sent) return -EPIPE;
  if (!side.connected) return -EAGAIN;
  if (random.Chance(faults.send_error)) {
    side.failed = true;
    constexpr int kErrors[] = {ENOBUFS, EIO, EHOSTUNREACH};
    return -kErrors[random.Below(3)];
  }
  if (random.Chance(faults.link_reset)) Reset(socket.link->id);
  if (random.Chance(faults.link_stall)) {
    socket.link->stalled_until_ns = world_.now_ns() + world_.Delay(faults.stall_max);
    world_.At(socket.link->stalled_until_ns, [this, link = socket.link] {
      Deliver(*link, 0);
      Deliver(*link, 1);
    });
  }
  if (random.Chance(faults.send_again)) {
    world_.At(world_.now_ns() + world_.Delay(faults.event_delay_max),
              [this, fd] { world_.RaiseFd(fd, kSimOut); });
    return -EAGAIN;
  }
  size_t room = Room(side);
  if (room > 1 && random.Chance(faults.short_send)) room = random.Between(1, room);
  std::string bytes;
  size_t asked = 0;
  for (const iovec& part : parts) {
    asked += part.iov_len;
    const size_t n = std::min(part.iov_len, room - bytes.size());
    bytes.append(static_cast<const char*>(part.iov_base), n);
  }
  if (bytes.size() < asked && Room(side) == bytes.size()) side.wants_room = true;
  if (bytes.empty()) return -EAGAIN;
  const auto taken = static_cast<int64_t>(bytes.size());
  world_.Note("send", socket.link->id, static_cast<uint64_t>(socket.side), bytes.size());
  side.sent += bytes.size();
  PushData(*socket.link, socket.side, std::move(bytes));
  return taken;
}

void SimWire::PushData(SimLink& link, int from, std::string bytes) {
  SimRandom& random = world_.random();
  while (bytes.size() > 1 && random.Chance(world_.faults().split_segment)) {
    const size_t cut = random.Between(1, bytes.size() - 1);
    Push(link, from, SimSegment{.bytes = bytes.substr(0, cut)});
    bytes.erase(0, cut);
  }
  Push(link, from, SimSegment{.bytes = std::move(bytes)});
}

void SimWire::Push(SimLink& link, int from, SimSegment segment) {
  SimSide& side = link.sides[static_cast<size_t>(from)];
  segment.arrives_ns = std::max(side.last_arrival_ns,
                                world_.now_ns() + world_.Delay(world_.faults().wire_delay_max));
  side.last_arrival_ns = segment.arrives_ns;
  side.flying_bytes += segment.bytes.size();
  const int64_t at = segment.arrives_ns;
  side.flying.push_back(std::move(segment));
  world_.At(at, [this, &link, from] { Deliver(link, 1 - from); });
}

void SimWire::Deliver(SimLink& link, int to) {
  SimSide& from = link.sides[static_cast<size_t>(1 - to)];
  SimSide& side = link.sides[static_cast<size_t>(to)];
  bool arrived = false;
  while (!from.flying.empty() && from.flying.front().arrives_ns <= world_.now_ns() &&
         world_.now_ns() >= link.stalled_until_ns && side.connected) {
    SimSegment& segment = from.flying.front();
    if (segment.kind == SimSegment::Kind::kReset) {
      from.flying.clear();
      from.flying_bytes = 0;
      DeliverReset(link, to);
      return;
    }
    if ((side.closed || side.dead) && segment.kind == SimSegment::Kind::kData) {
      // Nobody is there to read it: RFC 9293, 3.5.2.
      SendReset(link, to, false);
      from.flying.clear();
      from.flying_bytes = 0;
      return;
    }
    if (segment.kind == SimSegment::Kind::kData) {
      if (side.waiting() >= receive_bytes_) break;  // Receive comes back here
      side.arrived.append(segment.bytes);
      from.flying_bytes -= segment.bytes.size();
    } else {
      side.fin_arrived = true;
    }
    arrived = true;
    from.flying.pop_front();
  }
  if (arrived) world_.RaiseFd(side.fd, side.fin_arrived ? kSimIn | kSimEnd : kSimIn);
  if (from.wants_room && Room(from) > 0) {
    from.wants_room = false;
    world_.RaiseFd(from.fd, kSimOut);
  }
}

void SimWire::DeliverReset(SimLink& link, int to) {
  SimSide& side = link.sides[static_cast<size_t>(to)];
  if (side.closed || side.dead) return;
  world_.Note("reset arrives", link.id, static_cast<uint64_t>(to));
  side.dead = true;
  side.failed = true;
  // tcp_reset(): EPIPE in CLOSE_WAIT.
  side.error = side.fin_arrived ? EPIPE : ECONNRESET;
  // Its own bytes are lost, but not a reset that it has sent.
  std::erase_if(side.flying,
                [](const SimSegment& s) { return s.kind != SimSegment::Kind::kReset; });
  side.flying_bytes = 0;
  world_.RaiseFd(side.fd, kSimIn | kSimOut | kSimEnd);
}

void SimWire::SendReset(SimLink& link, int from, bool lose_flying) {
  SimSide& side = link.sides[static_cast<size_t>(from)];
  if (side.reset_sent || side.dead) return;
  side.reset_sent = true;
  if (lose_flying) {
    // What had not left the host is dropped; how much that is, is chance.
    size_t keep = world_.random().Below(side.flying.size() + 1);
    while (side.flying.size() > keep) {
      side.flying_bytes -= side.flying.back().bytes.size();
      side.flying.pop_back();
    }
  }
  Push(link, from, SimSegment{.kind = SimSegment::Kind::kReset});
}

void SimWire::Reset(uint64_t id) {
  SimLink& link = *links_[id - 1];
  if (!link.sides[0].connected || !link.sides[1].connected) return;
  world_.Note("link resets", id);
  SendReset(link, 0, true);
  SendReset(link, 1, true);
}

void SimWire::Heal() {
  for (const auto& link : links_) {
    link->stalled_until_ns = 0;
    Deliver(*link, 0);
    Deliver(*link, 1);
  }
}

// --- Ends ---

int SimWire::Shutdown(int fd, int how) {
  const Socket socket = sockets_[static_cast<size_t>(fd)];
  SimSide& side = SideOf(fd);
  if (!side.connected || side.dead) return -ENOTCONN;
  if (how == SHUT_RD || how == SHUT_RDWR) {
    side.shut_read = true;
    world_.RaiseFd(fd, kSimIn);
  }
  if ((how == SHUT_WR || how == SHUT_RDWR) && !side.fin_sent) {
    side.fin_sent = true;
    Push(*socket.link, socket.side, SimSegment{.kind = SimSegment::Kind::kFin});
  }
  return 0;
}

void SimWire::Close(int fd, bool reset) {
  const Socket socket = std::exchange(sockets_[static_cast<size_t>(fd)], {});
  world_.CloseFd(fd);
  if (socket.listener != nullptr) {
    socket.listener->fd = -1;
    for (SimLink* link : std::exchange(socket.listener->waiting, {})) {
      link->sides[1].closed = true;
      SendReset(*link, 1, true);
    }
    return;
  }
  SimLink& link = *socket.link;
  SimSide& side = link.sides[static_cast<size_t>(socket.side)];
  side.fd = -1;
  side.closed = true;
  if (!side.connected) {
    // A SYN that is answered after this is answered to nobody.
    if (link.sides[1].connected) SendReset(link, 0, true);
    return;
  }
  // Bytes nobody will read: RFC 2525, 2.17.
  if (reset || side.waiting() > 0) {
    SendReset(link, socket.side, true);
  } else if (!side.fin_sent && !side.dead) {
    side.fin_sent = true;
    Push(link, socket.side, SimSegment{.kind = SimSegment::Kind::kFin});
  }
}

SocketAddress SimWire::LocalAddress(int fd) const {
  const Socket& socket = sockets_[static_cast<size_t>(fd)];
  if (socket.listener != nullptr) return socket.listener->address;
  return socket.side == 0 ? socket.link->client : socket.link->server;
}

uint32_t SimWire::Ready(int fd) const {
  const Socket& socket = sockets_[static_cast<size_t>(fd)];
  if (socket.listener != nullptr) {
    return socket.listener->waiting.empty() ? 0u : uint32_t{kSimIn};
  }
  const SimSide& side = socket.link->sides[static_cast<size_t>(socket.side)];
  uint32_t events = 0;
  if (side.waiting() > 0 || side.fin_arrived || side.dead || side.shut_read) events |= kSimIn;
  if (side.dead || (side.connected && Room(side) > 0)) events |= kSimOut;
  if (side.dead || side.fin_arrived) events |= kSimEnd;
  return events;
}

const SimLink* SimWire::LinkOf(const SocketAddress& client) const {
  for (const auto& link : links_) {
    if (link->client == client) return link.get();
  }
  return nullptr;
}

}  // namespace penstock::testing
