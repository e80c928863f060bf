// The simulated sockets by themselves: they must end connections as Linux does, or the simulation
// would judge streams by a world that is not.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <cerrno>
#include <string>

#include "absl/time/time.h"
#include "testing/sim_wire.h"
#include "testing/sim_world.h"

namespace penstock::testing {
namespace {

class SimWireTest : public ::testing::Test {
 protected:
  SimWireTest() {
    listener_ = wire_.Listen(*SocketAddress::Parse("10.0.0.1:7"), 8, false);
    client_ = wire_.Connect(*SocketAddress::Parse("10.0.0.1:7"));
    Settle();
    EXPECT_EQ(wire_.ConnectResult(client_), 0);
    SocketAddress peer;
    server_ = wire_.Accept(listener_, &peer);
    EXPECT_GE(server_, 0);
    EXPECT_EQ(peer, wire_.LocalAddress(client_));
  }

  void Settle() {
    world_.Run([] { return false; }, absl::Seconds(1));
  }
  int64_t Send(int fd, const std::string& text) {
    const iovec part{const_cast<char*>(text.data()), text.size()};
    return wire_.Send(fd, {&part, 1});
  }
  std::string Receive(int fd) {
    char bytes[256];
    const int64_t result = wire_.Receive(fd, bytes, sizeof bytes);
    if (result <= 0) return "error " + std::to_string(-result);
    return std::string(bytes, static_cast<size_t>(result));
  }

  SimWorld world_{1};
  SimWire& wire_ = world_.wire();
  int listener_ = -1;
  int client_ = -1;
  int server_ = -1;
};

const std::string kEnd = "error 0";
const std::string kAgain = "error " + std::to_string(EAGAIN);
const std::string kReset = "error " + std::to_string(ECONNRESET);

TEST_F(SimWireTest, BytesThenTheEnd) {
  EXPECT_EQ(Receive(server_), kAgain);
  EXPECT_EQ(Send(client_, "ab"), 2);
  EXPECT_EQ(Send(client_, "c"), 1);
  wire_.Close(client_, false);
  Settle();
  EXPECT_EQ(Receive(server_), "abc");
  EXPECT_EQ(Receive(server_), kEnd);
  EXPECT_EQ(Receive(server_), kEnd);
}

TEST_F(SimWireTest, AResetLeavesWhatHadArrivedAndIsHandedOutOnce) {
  Send(client_, "abc");
  Settle();
  wire_.Close(client_, true);
  Settle();
  EXPECT_EQ(Receive(server_), "abc");
  EXPECT_EQ(Receive(server_), kReset);
  EXPECT_EQ(Receive(server_), kEnd);
  EXPECT_EQ(Send(server_, "x"), -EPIPE);
}

TEST_F(SimWireTest, ASendMayMeetTheResetFirst) {
  wire_.Close(client_, true);
  Settle();
  EXPECT_EQ(Send(server_, "x"), -ECONNRESET);
  EXPECT_EQ(Send(server_, "x"), -EPIPE);
  EXPECT_EQ(Receive(server_), kEnd);
}

TEST_F(SimWireTest, ClosingWithUnreadBytesResets) {
  Send(client_, "abc");
  Settle();
  wire_.Close(server_, false);
  Settle();
  EXPECT_EQ(Receive(client_), kReset);
}

TEST_F(SimWireTest, BytesToAClosedSocketReset) {
  wire_.Close(server_, false);
  Settle();
  EXPECT_EQ(Send(client_, "abc"), 3);
  Settle();
  // The end had come before (CLOSE_WAIT): reads still see it, sends see the pipe broken.
  EXPECT_EQ(Receive(client_), kEnd);
  EXPECT_EQ(Send(client_, "x"), -EPIPE);
}

TEST_F(SimWireTest, HalfCloseGoesOneWay) {
  EXPECT_EQ(wire_.Shutdown(client_, SHUT_WR), 0);
  EXPECT_EQ(Send(client_, "x"), -EPIPE);
  Settle();
  EXPECT_EQ(Receive(server_), kEnd);
  EXPECT_EQ(Send(server_, "back"), 4);
  Settle();
  EXPECT_EQ(Receive(client_), "back");
}

TEST_F(SimWireTest, BuffersAreBounded) {
  wire_.set_buffers(4, 8);
  size_t taken = 0;
  for (int i = 0; i < 10; ++i) {
    const int64_t sent = Send(client_, "abcd");
    if (sent > 0) taken += static_cast<size_t>(sent);
    Settle();
  }
  EXPECT_LE(taken, 12u);
  EXPECT_EQ(Send(client_, "abcd"), -EAGAIN);
  EXPECT_EQ(wire_.Ready(client_) & kSimOut, 0u);
  EXPECT_EQ(Receive(server_), "abcdabcd");
  Settle();
  EXPECT_NE(wire_.Ready(client_) & kSimOut, 0u);
}

TEST_F(SimWireTest, NobodyListens) {
  const int fd = wire_.Connect(*SocketAddress::Parse("10.0.0.1:8"));
  Settle();
  EXPECT_EQ(wire_.ConnectResult(fd), ECONNREFUSED);
}

TEST_F(SimWireTest, ClosingAListenerResetsItsBacklog) {
  const int fd = wire_.Connect(*SocketAddress::Parse("10.0.0.1:7"));
  Settle();
  EXPECT_EQ(wire_.ConnectResult(fd), 0);
  wire_.Close(listener_, false);
  Settle();
  EXPECT_EQ(Receive(fd), kReset);
}

TEST_F(SimWireTest, DescriptorsAreLimitedAndCounted) {
  world_.faults().descriptors_max = world_.descriptors_open();
  EXPECT_EQ(wire_.Connect(*SocketAddress::Parse("10.0.0.1:7")), -EMFILE);
  wire_.Close(client_, false);
  EXPECT_EQ(wire_.Connect(*SocketAddress::Parse("10.0.0.1:7")), client_);  // the lowest free one
  EXPECT_TRUE(world_.errors().empty());
  world_.CloseFd(900);
  EXPECT_EQ(world_.errors().size(), 1u);
}

}  // namespace
}  // namespace penstock::testing
