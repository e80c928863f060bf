#include "testing/bare_peer.h"

#include <poll.h>
#include <sys/uio.h>

#include <utility>

#include "testing/patient_poll.h"
#include "testing/sim_wire.h"
#include "testing/sim_world.h"

PENSTOCK_BEGIN_NAMESPACE
namespace internal {
namespace {

class PlainPeer final : public BarePeer {
 public:
  explicit PlainPeer(PlainSocket socket) : socket_(std::move(socket)) {}

  int64_t Send(std::string_view bytes) override { return socket_.Send(bytes); }
  std::string ReceiveAll(int* end) override { return socket_.ReceiveAll(end); }
  bool AwaitInput() override { return PatientPoll(socket_.fd(), POLLIN, 60'000); }

 private:
  PlainSocket socket_;
};

class SimulatedPeer final : public BarePeer {
 public:
  SimulatedPeer(testing::SimWorld& world, int fd) : world_(world), fd_(fd) {}
  ~SimulatedPeer() override { world_.wire().Close(fd_, /*reset=*/false); }

  int64_t Send(std::string_view bytes) override {
    const iovec part{.iov_base = const_cast<char*>(bytes.data()), .iov_len = bytes.size()};
    return world_.wire().Send(fd_, {&part, 1});
  }
  std::string ReceiveAll(int* end) override {
    std::string all;
    char piece[16 * 1024];
    for (;;) {
      const int64_t received = world_.wire().Receive(fd_, piece, sizeof piece);
      if (received <= 0) {
        *end = static_cast<int>(-received);
        return all;
      }
      all.append(piece, static_cast<size_t>(received));
    }
  }
  bool AwaitInput() override {
    return world_.Run([this] { return (world_.wire().Ready(fd_) & testing::kSimIn) != 0; },
                      absl::Minutes(1));
  }

 private:
  testing::SimWorld& world_;
  const int fd_;
};

}  // namespace

std::unique_ptr<BarePeer> NewPeer(Environment& environment, const SocketAddress& address) {
  if (testing::SimWorld* const world = environment.world()) {
    const int fd = world->wire().Connect(address);
    if (fd < 0) return nullptr;
    return std::make_unique<SimulatedPeer>(*world, fd);
  }
  PlainSocket socket = PlainSocket::Connect(address);
  if (!socket.valid()) return nullptr;
  return std::make_unique<PlainPeer>(std::move(socket));
}

SocketAddress DeafAddress(Environment& environment) {
  if (environment.world() != nullptr) return environment.NewAddress().WithPort(1);
  return PlainSocket::Listen(environment.NewAddress(), 1).local();
}

SilentListener::SilentListener(Environment& environment) {
  if (testing::SimWorld* const world = environment.world()) {
    // With room for nobody, and nobody accepts.
    address_ = world->wire().LocalAddress(
        world->wire().Listen(environment.NewAddress(), /*backlog=*/0, /*reuse_port=*/false));
    return;
  }
  // A backlog that is full: the kernel takes one more than it says, and answers no SYN after that.
  sockets_.push_back(PlainSocket::Listen(environment.NewAddress(), 1));
  address_ = sockets_.front().local();
  for (int i = 0; i < 8; ++i) sockets_.push_back(PlainSocket::Connect(address_));
}

}  // namespace internal
PENSTOCK_END_NAMESPACE
