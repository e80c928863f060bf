// What becomes of a loop when io_uring_register(2) fails: it starts the ring, lends it buffers, and
// ties an eventfd to it. Exhaustion is an error; what passes is tried again; what does not work at
// all is done without, and said.
#include <penstock/buffer.h>
#include <penstock/connect.h>
#include <penstock/listener.h>
#include <penstock/loop.h>

#include <linux/io_uring.h>

#include <cerrno>
#include <string>
#include <utility>

#include <gtest/gtest.h>

#include "testing/environment.h"
#include "testing/fault_sys.h"
#include "testing/logged_loop.h"
#include "testing/plain_socket.h"

namespace penstock::internal {
namespace {

// One that fails calls of `op`: all but the first `spared`, until `failures` have.
class RegisterSys final : public FaultSys {
 public:
  int RingRegister(int ring, unsigned op, const void* argument, unsigned count) override {
    if (op != failing_op || seen++ < spared || failed >= failures) {
      return FaultSys::RingRegister(ring, op, argument, count);
    }
    ++failed;
    // Time passes for whoever waits that it gets better.
    AdvanceClock(100'000'000);
    return -error;
  }

  unsigned failing_op = 0;
  int error = 0;
  int spared = 0;
  int failures = 0;
  int seen = 0;
  int failed = 0;
};

class UringRegisterTest : public LoggedLoop<RegisterSys> {
 protected:
  static constexpr int kForGood = 1'000'000;

  void SetUp() override {
    if (const std::string why = MissingEngine(EngineKind::kUring); !why.empty()) {
      GTEST_SKIP() << why;
    }
  }
  void Fail(unsigned op, int error, int spared, int failures) {
    sys_.failing_op = op;
    sys_.error = error;
    sys_.spared = spared;
    sys_.failures = failures;
  }
  // A stream of the loop hears a plain socket.
  void ExpectService() {
    PlainSocket listener = PlainSocket::Listen(*SocketAddress::Parse("127.0.0.1:0"), 1);
    Connect(*loop_, listener.local(), {},
            [this](absl::StatusOr<StreamPtr> made) { stream_ = *std::move(made); });
    ASSERT_TRUE(PollUntil([&] { return stream_ != nullptr; }));
    PlainSocket peer = listener.Accept();
    ExpectHears(*stream_, peer);
  }
};

TEST_F(UringRegisterTest, ARingThatCannotBeStartedAtFirstIsStartedLater) {
  Fail(IORING_REGISTER_ENABLE_RINGS, ENOMEM, /*spared=*/1, /*failures=*/2);
  ASSERT_TRUE(Make(EngineKind::kUring).ok());
  ExpectService();
  EXPECT_EQ(sys_.failed, 2);
  EXPECT_EQ(loop_->engine(), EngineKind::kUring);
  EXPECT_EQ(stream_->stats().engine, EngineKind::kUring);
}

TEST_F(UringRegisterTest, OneThatNeverStartsIsGivenUp) {
  Fail(IORING_REGISTER_ENABLE_RINGS, ENOMEM, /*spared=*/1, kForGood);
  ASSERT_TRUE(Make(EngineKind::kUring).ok());
  ASSERT_TRUE(PollUntil([&] { return loop_->engine() == EngineKind::kEpoll; }));
  EXPECT_TRUE(Logged("io_uring_register")) << "what failed is not said";
  ExpectService();
  EXPECT_GT(loop_->Snapshot().faults_uring, 0u);
}

TEST_F(UringRegisterTest, WhereItIsForbiddenThereIsNoIoUring) {
  Fail(IORING_REGISTER_ENABLE_RINGS, EPERM, /*spared=*/0, kForGood);
  const absl::Status asked = Make(EngineKind::kUring);
  EXPECT_TRUE(absl::IsUnimplemented(asked)) << asked;
  EXPECT_TRUE(asked.ToString().find("io_uring_register") != std::string::npos) << asked;
  Fail(IORING_REGISTER_ENABLE_RINGS, ENOMEM, /*spared=*/0, kForGood);
  const absl::Status exhausted = Make(EngineKind::kUring);
  EXPECT_TRUE(absl::IsResourceExhausted(exhausted)) << exhausted;
}

TEST_F(UringRegisterTest, WithoutItsBuffersARingReceivesWithoutThem) {
  constexpr unsigned kLend = IORING_REGISTER_PBUF_RING;
  Fail(kLend, ENOMEM, /*spared=*/1, /*failures=*/1);
  const absl::Status exhausted = Make(EngineKind::kUring);
  if (exhausted.ok()) GTEST_SKIP() << "this kernel's rings have no buffers";
  EXPECT_TRUE(absl::IsResourceExhausted(exhausted)) << exhausted;
  sys_.seen = sys_.failed = 0;
  Fail(kLend, EPERM, /*spared=*/1, kForGood);
  ASSERT_TRUE(Make(EngineKind::kUring).ok());
  EXPECT_TRUE(Logged("plain receives")) << "it is not said";
  ExpectService();
  EXPECT_EQ(loop_->engine(), EngineKind::kUring);
}

TEST_F(UringRegisterTest, AHostIsToldWhenThereIsNoDescriptorAndMayAskAgain) {
  Fail(IORING_REGISTER_EVENTFD, ENOMEM, /*spared=*/0, /*failures=*/1);
  ASSERT_TRUE(Make(EngineKind::kUring).ok());
  const int first = loop_->fd();
  if (sys_.seen == 0) GTEST_SKIP() << "on this kernel the ring's own descriptor is watched";
  EXPECT_EQ(first, -ENOMEM);
  EXPECT_GE(loop_->fd(), 0);
  ExpectService();
}

}  // namespace
}  // namespace penstock::internal
